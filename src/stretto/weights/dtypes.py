"""Names of the precisions that Stretto computes and stores in."""

from __future__ import annotations

import torch

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_dtype(name: str, parameter: str = "dtype") -> torch.dtype:
    """The torch dtype a name stands for; ``parameter`` is what an error calls it.

    Raises ValueError for any other name.
    """
    if name not in DTYPES:
        raise ValueError(f"{parameter} is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a precision in ``DTYPES``, or torch's own name for any other dtype."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))
