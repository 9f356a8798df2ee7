"""JSON that comes from anybody: read with a limit, and with errors that name the place.

Python's own parser raises three kinds of errors for bad text (what is no JSON, brackets too deep, numbers too long) and
reads files of any size; here they are one `DataError` that says what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memr1_plugin.errors import DataError

MAX_BYTES = 4 * 2**30
"""Largest file that is read whole; the largest public benchmark, LongMemEval-M, has 2.7 GB."""


def loads(text: str, where: str) -> Any:
    """Return what `text` says; `where` names it in errors.

    Raises:
        DataError: it is no JSON, nests too deep, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is no JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON that can be read: {error}.") from error


def text_of(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Return a file's text.

    Raises:
        DataError: it is too large, or not UTF-8.
    """
    if (size := path.stat().st_size) > max_bytes:
        raise DataError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read. Split the file.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8. Convert the file to UTF-8.") from error
