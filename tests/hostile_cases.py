"""The whole corpus of hostile checkpoints by name: safetensors and configurations, tokenizers and templates, GGUF."""

import hostile_gguf
import hostile_text
from hostile import CASES, Case, healthy

__all__ = ["CASES", "Case", "healthy", "hostile_gguf", "hostile_text"]
