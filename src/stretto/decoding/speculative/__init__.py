"""Speculation: drafters propose trees, a verifier walks them."""
