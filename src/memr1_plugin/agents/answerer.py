"""The Answer Agent: a question and candidate memories in, the memories that matter and an answer out.

The paper's "memory distillation" (section 3.2) prints the selected memories before the answer; ours
prints their numbers, which costs two tokens instead of a sentence each:

    completion ::= " " ids " -> " answer  |  " none"

It reads no bank and ranks nothing; candidates come from `retrieval`, and are numbered as it ranks them: which memory
is the best match is half of what is to be decided, and dates stand in the lines. The question stands before the
memories and after them: a causal model reads a memory knowing only what stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from memr1_plugin import prompts
from memr1_plugin.agents.engine import Completion, Engine, Prompt, Role, ask
from memr1_plugin.bank.text_index import terms
from memr1_plugin.operations import one_line, render_date, render_memories, render_said
from memr1_plugin.types import Answer, MemoryItem, Scope, aware, storable

TRAINED = "answer"
ZERO_SHOT = "answer_zero_shot"
ABSTENTION = "I don't remember anything about that."
MAX_USED = 8
MAX_CHARS = 4_000
"""A completion is read this far: `Prompt.max_tokens` is 48, and an engine that does not keep to it fills no answer."""
COMPLETION = re.compile(r"\s*([0-9]{1,4}(?: [0-9]{1,4})*) ->[ ]?(.*)", re.DOTALL)
"""Numbers of memories, then the answer. Training's format reward reads it too."""


def prompt(question: str, items: Sequence[MemoryItem], asked_at: datetime, *, trained: bool) -> Prompt:
    """Build the Answer Agent's prompt over `items`, most relevant first; the short one for a LoRA trained on it."""
    template = prompts.load(TRAINED if trained else ZERO_SHOT)
    body = template.fill(memories=render_memories(items), asked=render_date(asked_at), question=one_line(question))
    return Prompt(fixed=template.fixed, body=body, grammar=grammar(len(items)), max_tokens=48, chat=not trained)


def grammar(n_memories: int, *, selection_only: bool = False) -> str:
    """Return the GBNF of a completion over `n_memories` memories; `selection_only` stops after the numbers."""
    if n_memories == 0:
        return 'root ::= " "? "none"'
    ids = " | ".join(f'"{n}"' for n in range(1, n_memories + 1))
    rules = [
        f'root ::= " "? (id (" " id){{0,{MAX_USED - 1}}} " ->"{"" if selection_only else " text"} | "none")',
        f"id ::= {ids}",
    ]
    if not selection_only:
        # Unbounded, for `max_tokens` bounds it: a counted repetition takes seconds to compile.
        rules.append(r'text ::= " " [^\n\r\x00-\x1f]+')
    return "\n".join(rules)


def completion(used_places: Sequence[int], text: str) -> str:
    """Write the completion that names the memories at `used_places` (from 1, the most relevant) and answers `text`."""
    if not used_places:
        return " none"
    return f" {' '.join(str(n) for n in sorted(set(used_places))[:MAX_USED])} -> {one_line(text)}"


def parse(text: str, items: Sequence[MemoryItem]) -> tuple[tuple[int, ...], str]:
    """Read a completion as (ids of the items used, answer). Total; ("", no ids) means an abstention.

    Text that is not in the language is taken as an answer that names no memory; unknown numbers are dropped.
    """
    match = COMPLETION.match(text := storable(text[:MAX_CHARS]))
    if match is None:
        words = one_line(text)
        return (), "" if words.casefold().rstrip(".") in ("none", "") else words
    places = dict.fromkeys(int(n) for n in match[1].split())
    return tuple(items[n - 1].id for n in places if 1 <= n <= len(items)), one_line(match[2])


def resting_on(words: str, used: tuple[int, ...], items: Sequence[MemoryItem]) -> tuple[int, ...]:
    """Return the ids that an answer rests on: those it names, unless they cannot be meant.

    A small model often reads the right memory and names another. Where none of the named ones holds a single word of
    the answer and another holds all of them, that one is meant; of several the most relevant.

    Args:
        words: the answer.
        used: ids that the model named.
        items: what it was shown, most relevant first.
    """
    wanted = set(terms(words))
    held = {item.id: wanted & set(terms(render_said(item.at, item.speaker, item.text))) for item in items}
    if not wanted or any(held[item_id] for item_id in used):
        return used
    return next(((item_id,) for item_id, found in held.items() if found == wanted), used)


class Answerer:
    """Answers and selects with an engine. Holds no state: one instance serves all scopes and threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def answer(
        self, question: str, items: Sequence[MemoryItem], asked_at: datetime | None = None, scope: Scope | None = None
    ) -> Answer:
        """Answer one question from `items`; nothing to answer from is an abstention without a model call."""
        [(answer, _)] = self.answer_many([(question, items, aware(asked_at))], scope=scope)
        return answer

    def answer_many(
        self, asked: Sequence[tuple[str, Sequence[MemoryItem], datetime]], scope: Scope | None = None
    ) -> list[tuple[Answer, Completion | None]]:
        """Answer several (question, items, asked at) in one batch; order is kept. None: no model call."""
        trained = self.engine.lora(Role.ANSWER) is not None
        with_items = [n for n, (_, items, _) in enumerate(asked) if items]
        calls = [prompt(*asked[n], trained=trained) for n in with_items]
        done = dict(zip(with_items, ask(self.engine, calls, Role.ANSWER) if calls else [], strict=True))
        return [(self._answer(done.get(n), *asked[n], scope or Scope()), done.get(n)) for n in range(len(asked))]

    def _answer(
        self,
        done: Completion | None,
        question: str,
        items: Sequence[MemoryItem],
        asked_at: datetime,
        scope: Scope,
    ) -> Answer:
        used, words = parse(done.text if done else "none", items)
        return Answer(
            text=words or ABSTENTION,
            used=resting_on(words, used, items),
            abstained=not words,
            question=question,
            items=tuple(items),
            scope=scope,
            asked_at=asked_at,
        )

    def select(
        self, question: str, items: Sequence[MemoryItem], asked_at: datetime
    ) -> tuple[list[MemoryItem], Completion | None]:
        """Return the items that matter for `question`: memory distillation alone, a few tokens, no answer."""
        if not items:
            return [], None
        trained = self.engine.lora(Role.ANSWER) is not None
        full = prompt(question, items, asked_at, trained=trained)
        short = replace(full, grammar=grammar(len(items), selection_only=True), max_tokens=2 * MAX_USED + 4)
        [done] = ask(self.engine, [short], Role.ANSWER)
        used, _ = parse(done.text, items)
        by_id = {item.id: item for item in items}
        return [by_id[i] for i in used], done
