"""Documentation that cannot rot: every block runs, every verb is described, every link and path exists."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from memr1_plugin.cli import app

ROOT = Path(__file__).resolve().parent.parent
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?P<lead>[^\n]*)\n+```(?P<lang>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    lang: str
    code: str
    runs: bool


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page; a ``<!-- not run: reason -->`` before one keeps it from running."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer("\n" + text):
        line = text.count("\n", 0, max(0, match.start("code") - 1)) + 1
        runs = not re.fullmatch(r"<!-- not run: \S.* -->", match["lead"].strip())
        yield Block(page, line, match["lang"], match["code"], runs)


def name_of(page: Path) -> str:
    """A page as people call it."""
    return page.relative_to(ROOT).as_posix()


def commands() -> dict[str, Any]:
    """The verbs of the command line, those of sub-apps as "data check"."""
    found: dict[str, Any] = {}

    def walk(group: Any, prefix: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, f"{prefix}{name} ")
            else:
                found[prefix + name] = command

    walk(typer.main.get_command(app), "")
    return found


PYTHON = [page for page in PAGES if any(b.lang == "python" for b in blocks(page))]


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::Warning")  # a reader's own warnings filter is not ours
@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run from top to bottom, in an empty folder, as one program."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks(page):
        if block.lang != "python":
            continue
        lines = "\n" * block.line + block.code  # tracebacks name the page's own line
        code = compile(lines, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if block.runs:
            result = eval(code, names)
            if inspect.iscoroutine(result):
                asyncio.run(result)


SHELL = [b for page in PAGES for b in blocks(page) if b.lang in ("bash", "sh", "console")]


@pytest.mark.parametrize("block", SHELL, ids=lambda b: f"{name_of(b.page)}:{b.line}")
def test_every_command_in_a_shell_block_exists(block: Block) -> None:
    """A verb, an option or a make target that a page tells people to type is one that there is."""
    verbs = commands()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        words = [w for w in words if "=" not in w] if words[:1] and "=" in words[0] else words
        if words[:1] == ["make"]:
            assert {w for w in words[1:] if w.isalpha()} <= targets, line
        if words[:1] == ["memr1"] and words[1:] and words[1] not in ("--help", "--version"):
            verb = " ".join(words[1:3]) if " ".join(words[1:3]) in verbs else words[1]
            assert verb in verbs, f"{name_of(block.page)}:{block.line}: no verb {verb!r}: {line}"
            known = {option for param in verbs[verb].params for option in param.opts} | {"--help"}
            given = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
            assert given <= known, f"{name_of(block.page)}:{block.line}: {given - known} in: {line}"


def test_what_is_generated_is_fresh() -> None:
    """docs/cli.md is what `--help` says, and CONTRIBUTING's map what the modules say of themselves."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_verb_is_documented() -> None:
    """docs/cli.md has a section for each verb, those of sub-apps included, and every verb says what it does."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## memr1 (.+)$", text, re.MULTILINE)) == set(commands())
    assert all(command.help for command in commands().values())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """A link to another file of the repository names a file that is there."""
    text = re.sub(r"```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name_of(page)} links to {target}"


def test_every_file_of_the_package_says_what_it_is() -> None:
    """Each module opens with a docstring."""
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), path


def test_the_changelog_has_the_version_of_the_package() -> None:
    """The version in pyproject.toml has a section in CHANGELOG.md."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version and f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
