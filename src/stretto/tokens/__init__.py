"""Between text and token ids: tokenizer, incremental detokenization, chat templates, replies."""

from stretto.tokens.chat import render
from stretto.tokens.detokenize import StreamDecoder, TextStream
from stretto.tokens.folder import end_ids
from stretto.tokens.meter import TemplateLimitError
from stretto.tokens.replies import Reply, ReplyParser, ReplyStream, ToolCall, parse, read_reply
from stretto.tokens.tokenizer import Tokenizer

__all__ = [
    "Reply",
    "ReplyParser",
    "ReplyStream",
    "StreamDecoder",
    "TemplateLimitError",
    "TextStream",
    "Tokenizer",
    "ToolCall",
    "end_ids",
    "parse",
    "read_reply",
    "render",
]
