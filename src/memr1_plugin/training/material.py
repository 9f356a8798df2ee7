"""What a stage trains on, made of its conversations: packed examples for SFT, episodes for GRPO and PPO.

It joins what `sources` and `episodes` yield as the recipe says, and names the result by a hash. Which conversations
there are is `split`'s; nothing here trains. A Manager whose bank the questions are asked of is given from outside, for
it is a model that serves.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.manager import Manager
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError
from memr1_plugin.evaluation.datasets import Conversation
from memr1_plugin.settings import Settings
from memr1_plugin.training import sources, statements, synthetic
from memr1_plugin.training.episodes import AnswerEpisode, ManagerEpisode, answer_episodes, manager_episodes
from memr1_plugin.training.recipe import Stage
from memr1_plugin.training.sft import Example, data_hash
from memr1_plugin.training.split import Split

Told = Callable[[str, int, int], None]
"""Told what is being made, how many of it are done, and of how many."""
CHANGING = 0.45
"""Share of tellings that change something, in synthetic conversations for the Manager."""


@dataclass(frozen=True)
class Material:
    """What one stage trains and validates on."""

    groups: list[list[Example]]
    """SFT."""
    episodes: list[Any]
    """GRPO and PPO: `episodes.AnswerEpisode` or `episodes.ManagerEpisode`, the latter with their banks."""
    validation: list[Any]
    """Episodes, also for SFT; empty: the last checkpoint is taken."""
    counts: dict[str, Any]
    hash: str
    """16 hex digits that name the training data: prompts and what is right."""


@dataclass(frozen=True)
class Maker:
    """Makes the material of one stage."""

    stage: Stage
    split: Split
    embedder: Embedder
    settings: Settings
    seed: int
    manager: Manager | None = None
    """Who keeps the bank; None: every fact is added."""
    told: Told = lambda what, done, of: None

    def make(self) -> Material:
        """Build everything; takes an embedding of every turn, and a model call a turn where a Manager keeps the bank.

        Raises:
            DataError: there is nothing to train on.
        """
        counts: dict[str, Any] = {}
        if self.stage.algorithm == "sft":
            groups = self._groups(counts)
            made: list[Any] = []
            digest = data_hash(groups)
        else:
            groups, made = [], self._episodes(counts)
            digest = _hash_of(made)
        held = self._validation()
        counts["validation"] = f"{len(held)} episodes; {self.split.how}"
        return Material(groups, made, held, counts, digest)

    # -- SFT -------------------------------------------------------------------------------------------------------

    def _groups(self, counts: dict[str, Any]) -> list[list[Example]]:
        data = self.stage.data
        amount = sources.Amount(data.synthetic_seed, data.synthetic_conversations, data.synthetic_groups)
        found: list[list[Example]] = []
        for name, groups in self._sources(amount):
            made = list(groups)
            found += made
            counts[f"{name}: examples (rows)"] = f"{sum(map(len, made))} ({len(made)})"
        if not found:
            raise DataError(
                f"stage {self.stage.name} has nothing to learn from: set synthetic_conversations, statements or "
                "longmemeval, or, for the Answer Agent, give files with questions."
            )
        return sources.mixed(found, self.seed)

    def _sources(self, amount: sources.Amount) -> Iterator[tuple[str, Any]]:
        data, embedder = self.stage.data, self.embedder
        if self.stage.role is Role.MANAGER:
            found = sources.operation_groups(amount, embedder, longmemeval=data.longmemeval, plain=data.statements)
            yield "gold operations", found
            return
        lines = sources.chatter() if data.chatter else []
        yield "synthetic", sources.synthetic_groups(amount, embedder, lines)
        yield "plain statements", statements.questions(data.synthetic_seed, data.statements)
        if data.chats:
            yield (
                "questions about real small talk",
                sources.chat_groups(replace(amount, conversations=data.chats), embedder),
            )
        if data.longmemeval:
            rounds = data.longmemeval_rounds
            yield "LongMemEval evidence", sources.longmemeval_groups(data.longmemeval, embedder, lines, rounds=rounds)
        for n, one in enumerate(self.split.train):
            self.told("conversations", n + 1, len(self.split.train))
            groups = sources.conversation_groups(
                [one], data.file_groups, embedder, self.seed + n, manager=self.manager, settings=self.settings
            )
            if one.questions:
                yield one.id, groups

    # -- GRPO and PPO ----------------------------------------------------------------------------------------------

    def _episodes(self, counts: dict[str, Any]) -> list[Any]:
        data = self.stage.data
        found = self._of(self.split.train)
        counts["episodes of conversations"] = len(found)
        if data.synthetic_conversations:
            told = synthetic.conversations(data.synthetic_seed, data.synthetic_conversations)
            more = [e for one in told for e in self._of_one(one.conversation, one.gold)]
            counts["episodes of synthetic conversations"] = len(more)
            found += more
        if not found:
            raise DataError(
                f"stage {self.stage.name} has no episodes: no conversation has a question that can be used. "
                "Check the files with `memr1 data check`, or set synthetic_conversations."
            )
        guessed = sum(q.by_retrieval for e in found for q in questions_of(e))
        counts["questions linked by retrieval"] = guessed
        if 0 < data.episodes < len(found):
            found = random.Random(self.seed).sample(found, data.episodes)
            counts["episodes taken"] = len(found)
        return found

    def _of(self, conversations: Sequence[Conversation]) -> list[Any]:
        found: list[Any] = []
        for n, one in enumerate(conversations, 1):
            self.told("conversations", n, len(conversations))
            found += self._of_one(one) if one.questions else []
        return found

    def _of_one(self, conversation: Conversation, gold: Any = None) -> list[AnswerEpisode] | list[ManagerEpisode]:
        if self.stage.role is Role.ANSWER:
            asked = answer_episodes(conversation, self.embedder, manager=self.manager, settings=self.settings)
            # An answer that rests on nothing, and that nothing retrieved fits: there is no saying what would be right.
            return [e for e in asked if e.question.evidence or not e.question.answer]
        made = manager_episodes(
            conversation,
            self.embedder,
            gold=gold,
            manager=self.manager,
            settings=self.settings,
            window=self.stage.data.window or None,
            keep_banks=True,
        )
        return [episode for episode in made if episode.questions]

    # -- validation ------------------------------------------------------------------------------------------------

    def _validation(self) -> list[Any]:
        """Held-out episodes; SFT without a held-out conversation takes synthetic ones that it does not train on."""
        stage, limit = self.stage, self.stage.validate_questions
        if limit < 1 or stage.validate_steps < 1:
            return []
        if stage.algorithm == "sft" and stage.role is Role.MANAGER:
            return self._gold_turns(limit)
        found = self._of(self.split.validation)
        if not found and stage.algorithm == "sft" and stage.data.synthetic_conversations:
            told = synthetic.conversations(stage.data.synthetic_seed + 1, 2)
            found = [e for one in told for e in self._of_one(one.conversation)]
        return random.Random(self.seed).sample(found, min(limit, len(found)))

    def _gold_turns(self, limit: int) -> list[ManagerEpisode]:
        """Turns of other synthetic conversations with their gold operations, as many of each operation as there are."""
        told = synthetic.conversations(self.stage.data.synthetic_seed + 1, 4, sessions=(5, 8), changing=CHANGING)
        turns = [
            e for one in told for e in manager_episodes(one.conversation, self.embedder, gold=one.gold, window=None)
        ]
        rng = random.Random(self.seed)
        rng.shuffle(turns)
        of_kind: dict[str, list[ManagerEpisode]] = {}
        for episode in turns:
            if episode.gold:
                of_kind.setdefault(episode.gold[0].kind.value, []).append(episode)
        ranked = [row[n] for n in range(limit) for _, row in sorted(of_kind.items()) if n < len(row)]
        return ranked[:limit]


def questions_of(episode: Any) -> Sequence[Any]:
    """The linked questions of an episode of either agent."""
    return [episode.question] if isinstance(episode, AnswerEpisode) else list(episode.questions)


def _hash_of(episodes: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for episode in episodes:
        prompt = episode.prompt()
        asked = [[q.question, q.answer, list(q.evidence)] for q in questions_of(episode)]
        digest.update(json.dumps([prompt.fixed, prompt.body, asked]).encode())
    return digest.hexdigest()[:16]
