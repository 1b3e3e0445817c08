"""Recipes that train the embedded models (PyTorch only; never imported at inference time)."""
