"""Which conversations a stage trains on, and which choose its checkpoint: whole ones, never parts of one.

It reads all files of a stage or none (`qa_log`, `datasets`), and refuses what would make a validation score a lie: the
same conversation on both sides, under one id or another. What is made of the conversations is `material`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memr1_plugin.errors import DataError
from memr1_plugin.evaluation.datasets import Conversation
from memr1_plugin.training import qa_log
from memr1_plugin.training.recipe import Data


@dataclass(frozen=True)
class Split:
    """The conversations of a stage."""

    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    how: str
    """In words, where the validation comes from."""

    @property
    def questions(self) -> int:
        """Questions to train on."""
        return sum(len(c.questions) for c in self.train)


def split(data: Data, seed: int = 0) -> Split:
    """Read the files of `data` and part them by conversation.

    Without a validation file, about `data.holdout` of the conversations that have questions are kept for it: each one
    by its own id and the seed, so that logs which grow move none of them from one side to the other (but for the one
    that is held out when no other is).

    Raises:
        DataError: a bad line; an id that two files share; a conversation that would be on both sides.
    """
    told = [_asked(c, data) for c in _named(qa_log.read_all(data.files), data.only)]
    if data.validation:
        kept = [_asked(c, data) for c in _named(qa_log.read(data.validation), data.validation_only)]
        how = f"{len(kept)} conversations of {data.validation}"
        return _checked(Split(tuple(told), tuple(kept), how))
    places = {c.id: _place(seed, c.id) for c in told if c.questions}
    if data.holdout <= 0 or len(places) < 2:
        why = "holdout is 0" if data.holdout <= 0 else f"{len(places)} conversations have questions, and it takes two"
        return Split(tuple(told), (), f"none: {why if told else 'no files'}; the last checkpoint is taken")
    first = sorted(places, key=lambda name: places[name])
    out = set([name for name in first if places[name] < data.holdout][: len(first) // 2] or first[:1])
    train, kept = ([c for c in told if (c.id in out) is side] for side in (False, True))
    return _checked(Split(tuple(train), tuple(kept), f"{len(kept)} of {len(places)} conversations, held out"))


def _place(seed: int, name: str) -> float:
    """A number from 0 to 1 that the id and the seed decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") / 2**64


def _named(conversations: Sequence[Conversation], ids: Sequence[str]) -> list[Conversation]:
    """Those of `conversations` with one of `ids`; all, if none are given."""
    if conversations and (absent := sorted(set(ids) - {c.id for c in conversations})):
        raise DataError(
            f"the files have no conversation {absent[0]!r}; they have {[c.id for c in conversations][:12]}."
        )
    return [c for c in conversations if not ids or c.id in ids]


def _asked(conversation: Conversation, data: Data) -> Conversation:
    """The conversation with those of its questions that `data` wants."""
    kept = tuple(
        q
        for q in conversation.questions
        if (not data.categories or q.category in data.categories)
        and (data.unlinked == "link" or q.evidence or q.unanswerable)
    )
    return replace(conversation, questions=kept)


def _checked(made: Split) -> Split:
    if leaks := qa_log.check(made.train, made.validation).leaks:
        raise DataError(
            f"{len(leaks)} conversations are in the training and the validation data, by id or by half of their turns, "
            f"{leaks[0]!r} first. Remove one of each pair (`memr1 data check --held-out`)."
        )
    return made
