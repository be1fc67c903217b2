"""Log lines on stderr: for people, or as Cloud Logging reads them.

A line has a stable dotted event name, a sentence, and fields; nothing of a payload. JSON lines carry `severity`,
`message` and `time` (<https://cloud.google.com/logging/docs/structured-logging>).
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec

_SEVERITIES = {"WARN": "WARNING", "FATAL": "CRITICAL"}


class LogFormat(StrEnum):
    """How log lines look."""

    JSON = "json"
    CONSOLE = "console"


def event(name: str, **fields: object) -> dict[str, Any]:
    """The `extra` of a log call."""
    return {"event": name, "fields": fields}


def set_up(log_format: LogFormat) -> None:
    """Send this program's lines to stderr, and the warnings of the libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format is LogFormat.JSON else _Console())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("job").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


def json_line(severity: str, event_name: str, message: str, **fields: object) -> str:
    """One JSON object on one line."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"severity": severity, "time": time, "event": event_name, "message": message, **fields}
    return msgspec.json.encode(line, enc_hook=str).decode()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        severity = _SEVERITIES.get(record.levelname, record.levelname)
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json_line(severity, getattr(record, "event", record.name), record.getMessage(), **fields)


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{datetime.now().astimezone():%H:%M:%S} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
