"""Command lines through the `main` that a shell calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from memr1_plugin.cli import main


class Shell:
    """Runs command lines, and keeps what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.err = capsys, ""

    def __call__(self, *words: Any, code: int = 0) -> str:
        found: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as done:
            found = done.code or 0
        printed = self.capsys.readouterr()
        self.err = printed.err
        assert found == code, printed.out + printed.err
        assert "Traceback" not in printed.err
        return printed.out

    def json(self, *words: Any, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))
