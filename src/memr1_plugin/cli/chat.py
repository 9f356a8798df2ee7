"""The verb chat: tell the memory things, ask it things, see what it does with them.

Not a conversationalist: no language model makes small talk here. What is said is observed, what is asked is
answered by the Answer Agent, and every operation on the bank is shown as it happens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from memr1_plugin.cli._shell import (
    DEFAULT_DB,
    Agent,
    Db,
    Json,
    Loras,
    Model,
    Session,
    User,
    Where,
    change_line,
    item_line,
    out,
    report,
)
from memr1_plugin.cli.recall import show_answer
from memr1_plugin.errors import InputError, MemoryR1Error
from memr1_plugin.types import Scope, new_id

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory

HELP = "/memories  /history  /undo CHANGE  /forget ITEM  /quit"


def register(app: typer.Typer) -> None:
    """Add this file's verb to the command line."""
    app.command()(chat)


def chat(
    name: str = typer.Option("user", help="Your name, as the memories will have it."),
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    model: Model = "",
    loras: Loras = "",
    as_json: Json = False,
) -> None:
    """Talk to a memory: statements are remembered, questions are answered from what it holds.

    Reads lines from stdin, also from a pipe. With --json, one JSON object per line.
    """
    where = Where(db, user, agent, session, model, loras)
    with where.open(create=True) as memory:
        talk = _Talk(memory, where.scope, name, as_json)
        if sys.stdin.isatty() and not as_json:
            out.print(f"Tell it things, ask it things. {HELP}", style="dim")
        for line in _lines(as_json):
            if line == "/quit":
                break
            try:
                talk.hear(line)
            except MemoryR1Error as error:  # a slip of the keyboard does not end a conversation
                report(error, as_json)


def _lines(quiet: bool) -> Iterator[str]:
    prompt = "> " if sys.stdin.isatty() and not quiet else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line


class _Talk:
    """One conversation: what is said goes to the memory, what happened goes to the screen."""

    def __init__(self, memory: Memory, scope: Scope, name: str, as_json: bool) -> None:
        self.memory, self.scope, self.name, self.as_json = memory, scope, name, as_json
        self.session = new_id()

    def hear(self, line: str) -> None:
        """Take in one line: a command, a question or a statement."""
        from memr1_plugin.extraction import is_question, sentences

        if line.startswith("/"):
            self._command(line)
            return
        changes = self.memory.observe(line, speaker=self.name, scope=self.scope, session=self.session)
        for change in changes:
            self._show("change", change.to_json(), change_line(change))
        said = sentences(line)
        if said and is_question(said[-1]):
            answer = self.memory.answer(line, scope=self.scope)
            self._show("answer", answer.to_json(), lambda: show_answer(answer))
            self.memory.observe(answer.text, speaker="memr1", role="assistant", scope=self.scope, session=self.session)

    def _command(self, line: str) -> None:
        verb, _, argument = line.partition(" ")
        if verb == "/memories":
            for item in self.memory.bank.items(self.scope):
                self._show("item", item.to_json(), item_line(item))
        elif verb == "/history":
            for change in self.memory.history(scope=self.scope):
                self._show("change", change.to_json(), change_line(change))
        elif verb == "/undo":
            change = self.memory.undo(_number(line, argument), scope=self.scope)
            self._show("change", change.to_json(), change_line(change))
        elif verb == "/forget":
            item_id = _number(line, argument)
            self.memory.forget(item_id, scope=self.scope)
            self._show("forgotten", item_id, f"erased item {item_id} and the turns it came from")
        else:
            raise InputError(f"{verb} is no command; expected one of: {HELP}")

    def _show(self, kind: str, value: Any, text: str | Callable[[], None]) -> None:
        if self.as_json:
            typer.echo(json.dumps({kind: value}, ensure_ascii=False))
        elif callable(text):
            text()
        else:
            out.print(text, style="dim")


def _number(line: str, argument: str) -> int:
    if not argument.isdigit():
        raise InputError(f"{line!r} needs a number after the command, as /history and /memories show them.")
    return int(argument)
