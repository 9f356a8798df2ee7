"""Write what is generated: docs/cli.md from ``memr1 --help``, the map in CONTRIBUTING.md from the modules' docstrings.

``--check`` writes nothing, and fails if something on disk is not what would be written.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from memr1_plugin.cli import app
from memr1_plugin.cli._shell import EXIT_CODES

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "docs" / "cli.md"
MAP = ROOT / "CONTRIBUTING.md"
PACKAGE = ROOT / "src" / "memr1_plugin"

CLI_HEAD = f"""\
# The command line

Written by `make docs` from `memr1 --help`; do not edit. `memr1 VERB --help` says the same in a terminal.

{EXIT_CODES}

A scope is the exact triple of `--user`, `--agent` and `--session`: `--user ana` and `--user ana --session s1` are
two scopes, and neither sees the other. What is left out is the empty name.
"""


def verbs(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (verb, command); the verbs of a sub-app follow its name."""
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from verbs(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def cell(text: str) -> str:
    """Return `text` as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def row(param: Any) -> str:
    """One parameter as a row of its verb's table."""
    long = param.opts[-1]
    if not long.startswith("-"):
        names = f"`{long.upper()}`"
    else:
        value = "" if param.is_flag else " " + long.lstrip("-").upper()
        names = ", ".join(f"`{option}{value}`" for option in param.opts)
    default = param.show_default if isinstance(param.show_default, str) else param.default
    shown = "" if default in (None, "", False) or callable(default) else f" Default: {default}."
    env = f" Environment: `{param.envvar}`." if param.envvar else ""
    needed = " Required." if param.required else ""
    return f"| {names} | {cell(param.help or '')}{needed}{shown}{env} |"


def section(name: str, command: Any) -> str:
    """One verb: what it does, its arguments and options."""
    rows = [row(param) for param in command.params if param.name != "help"]
    table = "\n".join(["| | |", "|---|---|", *rows])
    return f"## memr1 {name}\n\n{(command.help or '').strip()}\n\n{table}\n"


def cli() -> str:
    """The whole of docs/cli.md."""
    return "\n".join([CLI_HEAD, *(section(name, command) for name, command in verbs(typer.main.get_command(app)))])


def caption(path: Path) -> str:
    """The first paragraph's first sentence of a module's docstring; "" if it has none."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(doc.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", first)[0]


def house() -> str:
    """CONTRIBUTING.md with its map renewed: one line per module, its own first sentence as the caption."""
    lines = []
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda p: (p.parent.as_posix(), p.name)):
        if text := caption(path):
            lines.append(f"- `{path.relative_to(ROOT).as_posix()}`: {text}")
    page = MAP.read_text(encoding="utf-8")
    return re.sub(
        r"(<!-- map: written by make docs -->\n).*?(<!-- end of map -->)",
        lambda m: m[1] + "\n".join(lines) + "\n" + m[2],
        page,
        flags=re.DOTALL,
    )


def main() -> int:
    """Write both files, or check them."""
    stale = 0
    for path, text in ((CLI, cli()), (MAP, house())):
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(ROOT)} is not what `make docs` writes; run it.")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
