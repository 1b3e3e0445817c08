"""One transformer driven by a specification, and its pass."""
