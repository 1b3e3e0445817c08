"""Between text and token ids: tokenizer, incremental detokenization, chat templates."""

from stretto.tokens.chat import render
from stretto.tokens.detokenize import StreamDecoder, TextStream
from stretto.tokens.tokenizer import Tokenizer, end_ids

__all__ = ["StreamDecoder", "TextStream", "Tokenizer", "end_ids", "render"]
