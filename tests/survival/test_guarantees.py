"""docs/guarantees.md names tests that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_promise_names_a_test_that_there_is() -> None:
    """Each `path::name` of the page is a function in that file."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8"))
    assert len(named) > 25
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def test_torture_runs_a_part_and_writes_its_table(tmp_path: Path) -> None:
    """One part at a small scale: the seed is printed, the table is Markdown, the exit code 0."""
    out = tmp_path / "table.md"
    command = [sys.executable, str(ROOT / "tests" / "torture.py"), "models", "--completions", "50", "--seed", "7"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 7" in done.stdout and "| bad models | 50 completions" in out.read_text(encoding="utf-8")
    unknown = subprocess.run([*command[:2], "nonsense"], capture_output=True, text=True, timeout=300)
    assert unknown.returncode == 2 and "no such part: nonsense" in unknown.stderr
