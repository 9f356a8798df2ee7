"""What our log records say: an event's name and numbers, and never what anybody said.

Every record of this library carries ``event`` ("memr1.observe") and ``memr1`` (a dict of numbers and names), for
handlers that want structure; `JsonLines` is a formatter that writes them. Messages of exceptions are left out, since
engines and frameworks quote prompts in them; MEMR1_LOG_TEXT=1 lets them in. No handler is installed here.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from memr1_plugin.errors import BankError, LoraMismatchError, MissingExtraError, WeightsNotFoundError

TEXT_VARIABLE = "MEMR1_LOG_TEXT"
"""Set to 1, it lets exceptions speak in the log: what users said may be in there."""
_SPEAKS_OF_FILES = (BankError, LoraMismatchError, MissingExtraError, WeightsNotFoundError)
"""Our errors that name files and packages, and never a text."""
_FRAMES = 4


def fields(event: str, **values: Any) -> Mapping[str, Any]:
    """Return the ``extra`` of a log call: the event's name, and values that are no text of anybody's."""
    return {"event": f"memr1.{event}", "memr1": values}


def text_allowed() -> bool:
    """True if the environment lets users' texts into the log."""
    return os.environ.get(TEXT_VARIABLE, "") not in ("", "0")


def told(error: BaseException) -> str:
    """Return an exception for a log: its type, the types that caused it, and where; its words only if they are safe.

    >>> told(ValueError("I live in Graz"))
    'ValueError'
    """
    if text_allowed() or isinstance(error, _SPEAKS_OF_FILES):
        return f"{type(error).__name__}: {error}"
    kinds, cause = [type(error).__name__], error.__cause__
    while cause is not None and len(kinds) < _FRAMES:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__
    return " from ".join(kinds) + _where(error)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    return f" at {' < '.join(places)}" if places else ""


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, event, message and the event's fields.

    >>> handler = logging.StreamHandler()
    >>> handler.setFormatter(JsonLines())
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        row = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": getattr(record, "event", None),
            "message": record.getMessage(),
            **getattr(record, "memr1", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            row["error"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=False, default=str)
