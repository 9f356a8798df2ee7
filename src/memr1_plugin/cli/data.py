"""Verbs about training data: check it, import it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memr1_plugin.cli._shell import UNHEALTHY, Json, Where, emit, out, plain
from memr1_plugin.errors import InputError

if TYPE_CHECKING:
    from memr1_plugin.evaluation.datasets import Conversation
    from memr1_plugin.training.qa_log import Report

group = typer.Typer(
    name="data",
    help="Conversations with questions, to train and evaluate on.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
SHOWN = 5
"""Names listed of what may be thousands."""


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    group.command()(check)
    group.command(name="import")(import_)
    app.add_typer(group)


def check(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Conversations with questions.")],
    held_out: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="Conversations to validate or test on: none may be in both."),
    ] = None,
    source: Annotated[str, typer.Option("--from", help="The files' format; auto knows the project's own.")] = "auto",
    as_json: Json = False,
) -> None:
    """Count what a training run would see, and name what is wrong with it.

    Bad lines, questions without evidence, duplicates, conversations without times, the same conversation on both
    sides, personal data. Exit code 5 if a run should not start.
    """
    from memr1_plugin.training import qa_log

    told = qa_log.read_all(files, source)
    report = qa_log.check(told, qa_log.read_all(held_out or [], source))
    emit(report.to_json(), as_json, lambda: _show(report))
    if report.blocking:
        raise typer.Exit(UNHEALTHY)


def _show(report: Report) -> None:
    out.print(f"{report.conversations:,} conversations, {report.turns:,} turns, {report.questions:,} questions")
    for name, count in sorted(report.categories.items()):
        out.print(f"  {plain(name)}: {count:,}")
    if report.unanswerable:
        out.print(f"  unanswerable: {report.unanswerable:,}")
    found = [
        ("questions without evidence (linked by retrieval, which guesses)", report.unlinked),
        ("questions asked twice in a conversation", report.duplicate_questions),
        ("conversations whose messages have no time", report.undated),
        ("conversations that are held out too", report.leaks),
        (
            "turns or questions that look as if they held personal data or secrets",
            tuple(f"{h.kind} in {h.turn}" for h in report.pii),
        ),
    ]
    for what, ids in found:
        if ids:
            rest = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
            out.print(f"{len(ids):,} {what}: {', '.join(plain(i) for i in ids[:SHOWN])}{rest}")
    if report.duplicate_turns:
        out.print(f"{report.duplicate_turns:,} turns that are there twice")
    for line in report.blocking:
        out.print(f"do not train: {plain(line)}", style="red")


def import_(
    path: Annotated[Path, typer.Argument(exists=True, help="A bank's file, or a file of chats.")],
    to: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    source: Annotated[
        str, typer.Option("--from", help="journal, openai, langchain, llama-index, locomo, longmemeval or auto.")
    ] = "auto",
    redact: Annotated[
        str | None, typer.Option(help="Take out secrets, personal data, or all, of turns, questions and answers.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a bot's own logs into the project's JSONL: conversations with questions, one a line.

    `--from journal` reads a bank: each scope is a conversation, each `memory.feedback(answer, correct=...)` a question.
    Chats have no questions of their own: add "questions" to the lines that you want to train on.
    """
    from memr1_plugin.cli._shell import private
    from memr1_plugin.evaluation import datasets

    if to.exists() and not force:
        raise InputError(f"{to} exists; give --force to write over it, or another --out.")
    found = _read(path, source)
    if redact is not None:
        found = _redacted(found, redact)
    new = to.with_name(f"{to.name}.new")
    private(new).close()  # what people said is in it
    datasets.save(found, new)
    new.replace(to)
    turns, asked = sum(len(c.turns) for c in found), sum(len(c.questions) for c in found)
    report = {"out": str(to), "conversations": len(found), "turns": turns, "questions": asked}
    emit(report, as_json, lambda: out.print(f"{to}: {len(found):,} conversations, {asked:,} questions"))


def _read(path: Path, source: str) -> list[Conversation]:
    from memr1_plugin.training import qa_log

    if source == "journal":
        with Where(path).open() as memory:
            return qa_log.from_bank(memory.bank)
    return qa_log.read(path, source)


def _redacted(conversations: list[Conversation], what: str) -> list[Conversation]:
    from memr1_plugin.redaction import LibraryRedactor
    from memr1_plugin.training import qa_log

    if what not in ("secrets", "personal", "all"):
        raise InputError(f"--redact is {what!r}; expected secrets, personal or all.")
    return qa_log.redacted(conversations, LibraryRedactor(what).redact)
