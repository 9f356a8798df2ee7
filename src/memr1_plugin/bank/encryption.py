"""Encryption at rest: the bank's file as a SQLCipher database, its key from the environment or a callback.

Pages, write-ahead log and full text are AES-256; index files, which would show vectors, are not written at all. Not
encrypted is what a running process has in memory. SQLCipher is Zetetic's; `sqlcipher3` brings it in a wheel.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memr1_plugin.errors import InputError, MissingExtraError

KEY_VARIABLE = "MEMR1_KEY"
Key = str | Callable[[], str] | None
"""A passphrase, 64 hex digits (a raw key: no time is spent on deriving one), a function that returns either, or None:
what the environment variable MEMR1_KEY says, if it is there."""

Connect = Callable[..., sqlite3.Connection]
_RAW = re.compile(r"[0-9A-Fa-f]{64}")


@dataclass(frozen=True)
class Driver:
    """How to open a bank's file: in plain SQLite, or encrypted."""

    connect: Connect = sqlite3.connect
    errors: tuple[type[Exception], ...] = (sqlite3.Error,)
    encrypted: bool = False


def driver(key: Key, *, memory: bool = False) -> Driver:
    """Return the driver for `key`; plain SQLite without one, and for a bank in memory."""
    secret = key() if callable(key) else key if key is not None else os.environ.get(KEY_VARIABLE)
    if memory or (key is None and not secret):
        return Driver()
    if not isinstance(secret, str) or not secret or "\x00" in secret:
        raise InputError(
            "the bank's key is empty or no text; expected a passphrase or 64 hex digits. Nothing was opened."
        )
    try:
        from sqlcipher3 import dbapi2
    except ImportError as error:
        raise MissingExtraError.of("sqlcipher3", "encrypt") from error
    return Driver(_keyed(dbapi2.connect, secret), (dbapi2.Error, sqlite3.Error), True)


def _keyed(connect: Callable[..., Any], secret: str) -> Connect:
    raw = _RAW.fullmatch(secret)
    quoted = f"\"x'{secret}'\"" if raw else "'" + secret.replace("'", "''") + "'"

    def keyed(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.execute(f"PRAGMA key = {quoted}")  # before anything else is read
        return connection

    return keyed
