"""Stretto: an inference engine for language models, faster without changing one character of what they say.

The public names load on first use, so that ``import stretto`` costs milliseconds and no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stretto.core.params import SamplingParams
    from stretto.engine.aio import AsyncEngine
    from stretto.engine.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncEngine", "SamplingParams", "__version__"]

_HOME_OF = {
    "LLM": "stretto.engine.llm",
    "AsyncEngine": "stretto.engine.aio",
    "SamplingParams": "stretto.core.params",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'stretto' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
