"""The op table: ``reference`` (plain PyTorch, the definition), ``native`` (C++)."""
