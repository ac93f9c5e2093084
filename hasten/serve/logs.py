"""The server's log on standard error, for people or for programs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import orjson

_LEVELS = {"hasten": "INFO", "uvicorn": "WARNING", "py.warnings": "WARNING"}

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


class Json(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS, default=str).decode()


class Text(logging.Formatter):
    """The same for people: a line of words, and the fields as ``name=value``."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = getattr(record, "fields", {})
        return " ".join(
            [super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())]
        )


@contextmanager
def to_stderr(form: str) -> Iterator[None]:
    """Send the logs of hasten and uvicorn, and warnings, to standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if form == "json" else Text())
    before = []
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, own_level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(own_level)
            logger.propagate = propagate
