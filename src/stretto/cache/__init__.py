"""Blocks, lanes, prefix tree, policies: where keys and values live."""
