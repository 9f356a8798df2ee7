"""The error tree: everything this library raises on purpose.

Each error says what was found, what was expected and what to do. Each class is also the
standard-library class that a caller who never heard of us would catch.

    MemoryR1Error
    ├── InputError            (ValueError)    a turn, scope, date or id that cannot be used
    │   └── UnknownItemError  (LookupError)   an item or change id that the scope does not hold
    ├── BankError             (RuntimeError)  the database file, its version, its disk
    │   ├── BankVersionError                  the file was written by a newer version
    │   ├── BankBusyError                     another process held the write lock too long
    │   └── EmbedderMismatchError             the bank was embedded by another embedder
    ├── ModelError            (RuntimeError)  an engine that failed or timed out
    │   ├── WeightsNotFoundError (FileNotFoundError)  no weights, or weights that fail their checksum
    │   └── LoraMismatchError                 a LoRA for another base model or prompt
    ├── DataError             (ValueError)    a training, import or evaluation file with a bad line
    └── MissingExtraError     (ImportError)   an optional dependency is not installed

A bad *completion* is not here: output that cannot be parsed is data (`operations.Rejection`), counted
and reported, never raised.
"""

from __future__ import annotations


class MemoryR1Error(Exception):
    """Base of all errors raised on purpose: ``except MemoryR1Error`` catches this library and no more."""


class InputError(MemoryR1Error, ValueError):
    """A value given by the caller cannot be used; nothing was written."""


class UnknownItemError(InputError, LookupError):
    """The scope holds no such memory item or change."""


class BankError(MemoryR1Error, RuntimeError):
    """The bank's file could not be read or written; what was committed before is intact."""


class BankVersionError(BankError):
    """The bank was written by a newer version of this library."""


class BankBusyError(BankError):
    """Another process held the bank's write lock for longer than the busy timeout."""


class EmbedderMismatchError(BankError):
    """The bank's vectors come from another embedder than the one given."""


class ModelError(MemoryR1Error, RuntimeError):
    """An engine failed to complete a prompt; turns that waited for it stay pending."""


class WeightsNotFoundError(ModelError, FileNotFoundError):
    """Model weights are missing, or are not what their checksum says."""


class LoraMismatchError(ModelError):
    """A LoRA was trained on another base model or another prompt."""


class DataError(MemoryR1Error, ValueError):
    """A file of conversations, questions or memories has a line that cannot be used."""


class MissingExtraError(MemoryR1Error, ImportError):
    """An optional dependency is missing; the message holds the ``pip install`` that brings it."""

    @classmethod
    def of(cls, module: str, extra: str) -> MissingExtraError:
        """Name the missing `module` and the `extra` that installs it."""
        return cls(f"{module} is not installed, and this needs it. Run: pip install 'memr1-plugin[{extra}]'")
