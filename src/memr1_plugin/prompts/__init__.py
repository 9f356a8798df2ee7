"""Prompts: text files, read once, filled in one pass, hashed.

A file holds the fixed part, a line "---", and the body with {placeholders}. The hash of the file travels
with every LoRA that is trained on it, so that a LoRA is never served under another prompt. Memory text may
hold braces: a placeholder is replaced in the file's own text only, never in what was filled in.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

LANGUAGE = "1"
"""Version of what code adds to the files: list rendering and output languages. Part of every hash."""


@dataclass(frozen=True)
class Template:
    """One prompt file: the part that never changes, and the body to fill."""

    name: str
    fixed: str
    body: str

    def fill(self, **values: str) -> str:
        """Return the body with each {key} replaced; a key that the file lacks or needs is a KeyError."""
        return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], self.body)

    @property
    def hash(self) -> str:
        """16 hex digits that change when the prompt, or what code adds to it, does."""
        text = "\x00".join([LANGUAGE, self.fixed, self.body])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def load(name: str) -> Template:
    """Read ``prompts/<name>.txt``. A file's last newline is not part of its body."""
    text = (resources.files(__package__) / f"{name}.txt").read_text(encoding="utf-8")
    fixed, body = text.split("---\n", 1)
    return Template(name, fixed, body[:-1])
