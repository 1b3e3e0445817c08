"""Checkpoints: where a model lies, and its tensors one at a time."""

from stretto.weights.checkpoint import Checkpoint
from stretto.weights.dtypes import DTYPES, dtype_name, parse_dtype
from stretto.weights.resolve import resolve

__all__ = ["DTYPES", "Checkpoint", "dtype_name", "parse_dtype", "resolve"]
