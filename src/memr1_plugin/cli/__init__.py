"""``memr1 <verb>``: the library from a shell.

One function per verb, in a file per group of verbs; each is a thin layer over `Memory`, and holds no logic
that a program would miss. The reference, docs/cli.md, is written from ``--help``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from memr1_plugin.cli import bank, chat, data, evaluate, machine, quarantine, recall, remember, revise, train
from memr1_plugin.cli._shell import EXIT_CODES, report
from memr1_plugin.errors import MemoryR1Error

app = typer.Typer(
    name="memr1",
    help="Long-term memory for bots: a local, trainable Memory-R1.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# A group of verbs is a module with `register(app)`. Its imports stay light; a verb imports what it runs.
for group in (machine, remember, chat, recall, revise, bank, quarantine, data, train, evaluate):
    group.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from memr1_plugin import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def memr1(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Long-term memory for bots: a local, trainable Memory-R1."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line; an error that the library raises on purpose is one line and an exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        app(args=args, prog_name="memr1")
    except MemoryR1Error as error:
        sys.exit(report(error, as_json="--json" in args))
