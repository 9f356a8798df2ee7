"""Filters of a LangGraph store's search, with the meanings that its SQLite store gives them.

A filter is {"field": value} or {"field": {"$gt": 3}}; a field may be a path ("profile.age"). Compared in
Python, so that no name or value is ever part of a query.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
_NOTHING = object()


def matches(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Tell whether a stored value passes the filter.

    Raises:
        ValueError: an operator or a field name that LangGraph does not know.
    """
    return all(_field(value, name, want) for name, want in (wanted or {}).items())


def _field(value: Mapping[str, Any], name: str, want: Any) -> bool:
    if not _NAME.fullmatch(name):
        raise ValueError(f"Invalid filter key: {name!r}. Expected letters, digits, '_', '.' and '-' only.")
    have = _at(value, name)
    if not isinstance(want, Mapping):
        return _equal(have, want)
    for operator in want:
        if operator not in _OPERATORS:
            raise ValueError(f"Unsupported operator: {operator}. Expected one of {', '.join(_OPERATORS)}.")
    return all(_OPERATORS[operator](have, operand) for operator, operand in want.items())


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _NOTHING
        value = value[part]
    return value


def _equal(have: Any, want: Any) -> bool:
    if want is None:
        return have is None or have is _NOTHING
    return have is not _NOTHING and bool(have == want)


def _unequal(have: Any, want: Any) -> bool:
    """A field that is not there is neither equal nor unequal, as with SQL's NULL."""
    if want is None:
        return have is not None and have is not _NOTHING
    return have is not None and have is not _NOTHING and bool(have != want)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(have: Any, want: Any) -> bool:
        if isinstance(want, (int, float)) and isinstance(have, (int, float, str)):
            return compare(_number(have), float(want))
        return isinstance(have, str) and isinstance(want, str) and compare(have, want)

    return holds


def _number(value: float | str) -> float:
    """Read a number as SQLite's CAST does: text that begins with none is 0."""
    if not isinstance(value, str):
        return float(value)
    found = re.match(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value)
    return float(found[0]) if found else 0.0


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": _equal,
    "$ne": _unequal,
    "$gt": _ordered(lambda a, b: a > b),
    "$gte": _ordered(lambda a, b: a >= b),
    "$lt": _ordered(lambda a, b: a < b),
    "$lte": _ordered(lambda a, b: a <= b),
}
