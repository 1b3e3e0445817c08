"""Drafters, one module per mechanism."""
