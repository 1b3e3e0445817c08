"""Structured logs: one JSON object a line on standard error. Prompts and answers are in them only where asked for."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("stretto.serving")


class Lines(logging.Formatter):
    """A record as a line of JSON; what ``extra={"fields": {...}}`` holds stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_lines() -> None:
    """Let everything that is logged in this process come out as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)


def tell(event: str, **fields: Any) -> None:
    """Log an event with its fields."""
    log.info(event, extra={"fields": fields})
