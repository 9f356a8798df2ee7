"""What an imported row must look like: its fields, and what each may hold.

A file that is imported may come from anybody. `portability` makes values of rows; here they are looked at first, so
that a number where a text should be is an error with the field's name and never gets into SQLite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from memr1_plugin.errors import InputError

_MAX_ID = 2**63 - 1
Check = Callable[[Any, str], None]
"""Raises `InputError` about a value, named by the path of its field."""


def _kind(kinds: type | tuple[type, ...], words: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise InputError(f"{where} is {type(value).__name__}; expected {words}.")

    return check


def _integer(low: int) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _MAX_ID:
            shown = value if isinstance(value, int) and abs(value) < 10**30 else type(value).__name__
            raise InputError(f"{where} is {shown}; expected an integer of at least {low} that SQLite can hold.")

    return check


def _number(value: Any, where: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(
            f"{where} is {value if isinstance(value, float) else type(value).__name__}; expected a number."
        )


def _or_none(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _each(check: Check) -> Check:
    def check_all(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} is {type(value).__name__}; expected a list.")
        for n, one in enumerate(value):
            check(one, f"{where}[{n}]")

    return check_all


def _object(shape: Mapping[str, Check]) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is {type(value).__name__}; expected an object.")
        for name, one in value.items():
            if name in shape:  # unknown fields are told by the value's own class
                shape[name](one, f"{where}.{name}")

    return check


_text, _flag, _any = _kind(str, "a text"), _kind(bool, "true or false"), _kind(Mapping, "an object")
_scope = _object({"user": _text, "agent": _text, "session": _text})
_ITEM: Mapping[str, Check] = {
    "id": _integer(1), "scope": _scope, "text": _text, "speaker": _text, "at": _text, "created_at": _text,
    "updated_at": _text, "turn_ids": _each(_text), "context": _text, "expires_at": _or_none(_text), "deleted": _flag,
    "metadata": _any, "score": _or_none(_number),
}  # fmt: skip
_item = _object(_ITEM)
_answer = _object({
    "text": _text, "used": _each(_integer(1)), "abstained": _flag, "question": _text, "items": _each(_item),
    "scope": _scope, "asked_at": _text, "id": _text,
})  # fmt: skip
SHAPES: Mapping[str, Check] = {
    "turn": _object({
        "text": _text, "speaker": _text, "scope": _scope, "at": _text, "id": _text, "role": _text, "session": _text,
        "metadata": _any, "managed": _flag, "caught": _each(_text),
    }),
    "item": _item,
    "change": _object({
        "id": _integer(1), "kind": _text, "scope": _scope, "item_id": _or_none(_integer(1)),
        "before": _or_none(_item), "after": _or_none(_item), "at": _text, "turn_id": _text, "source": _text,
        "undone": _flag, "said": _or_none(_number), "undoes": _or_none(_integer(1)),
    }),
    "feedback": _object({"answer": _answer, "correct": _text}),
}  # fmt: skip
"""By a row's "type"; what may be missing is the business of the value's own class."""
