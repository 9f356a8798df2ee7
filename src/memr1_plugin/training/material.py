"""What a stage trains on, made of its conversations: examples for SFT, episodes for GRPO and PPO.

It joins what `sources` and `episodes` yield as the recipe says, and names the result by a hash. Which conversations
there are is `split`'s; nothing here trains. A Manager whose bank the questions are asked of is given from outside, for
it is a model that serves.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.manager import Manager
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError
from memr1_plugin.evaluation.datasets import Conversation
from memr1_plugin.settings import Settings
from memr1_plugin.training import sources, synthetic
from memr1_plugin.training.episodes import AnswerEpisode, ManagerEpisode, answer_episodes, manager_episodes
from memr1_plugin.training.examples import as_in_real_talk, of_answers
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

    examples: list[Example]
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
            examples = self._examples(counts)
            made: list[Any] = []
            digest = data_hash(examples)
        else:
            examples, made = [], self._episodes(counts)
            digest = _hash_of(made)
        held = self._validation()
        counts["validation"] = f"{len(held)} episodes; {self.split.how}"
        return Material(examples, made, held, counts, digest)

    # -- SFT -------------------------------------------------------------------------------------------------------

    def _examples(self, counts: dict[str, Any]) -> list[Example]:
        found: list[Example] = []
        made = self._manager_examples() if self.stage.role is Role.MANAGER else self._answer_examples()
        for name, examples in made:
            found += examples
            counts[f"{name}: examples"] = len(examples)
        if not found:
            raise DataError(
                f"stage {self.stage.name} has nothing to learn from: set synthetic_conversations, statements or "
                "longmemeval, or, for the Answer Agent, give files with questions."
            )
        random.Random(self.seed).shuffle(found)
        return found

    def _manager_examples(self) -> Iterator[tuple[str, list[Example]]]:
        data = self.stage.data
        amount = sources.Amount(data.synthetic_seed, data.synthetic_conversations)
        yield (
            "gold operations",
            sources.operation_examples(amount, self.embedder, longmemeval=data.longmemeval, plain=data.statements),
        )

    def _answer_examples(self) -> Iterator[tuple[str, list[Example]]]:
        data, embedder, rng = self.stage.data, self.embedder, random.Random(self.seed)
        amount = sources.Amount(data.synthetic_seed, data.synthetic_conversations)
        lines = sources.chatter() if data.chatter else []
        told = _flat(sources.synthetic_episodes(amount, embedder, lines))
        most = data.synthetic_questions * data.synthetic_conversations
        yield "synthetic", of_answers(told, rng, invented=True, most=most)
        plain = _flat(sources.statement_episodes(replace(amount, conversations=data.statements), embedder))
        yield "plain statements", of_answers(plain, rng, invented=True)
        if data.chats:
            said = _flat(sources.chat_episodes(replace(amount, conversations=data.chats), embedder))
            yield "questions about real small talk", of_answers(said, rng)
        if data.longmemeval:
            found = sources.longmemeval_episodes(data.longmemeval, embedder, lines, rounds=data.longmemeval_rounds)
            yield "LongMemEval evidence", of_answers(_flat(found), rng, invented=True)
        for n, one in enumerate(self.split.train):
            self.told("conversations", n + 1, len(self.split.train))
            if one.questions:
                yield one.id, of_answers(self._asked(one), rng)

    # -- GRPO and PPO ----------------------------------------------------------------------------------------------

    def _episodes(self, counts: dict[str, Any]) -> list[Any]:
        data = self.stage.data
        found = self._of(self.split.train)
        counts["episodes of conversations"] = len(found)
        if data.synthetic_conversations:
            told = synthetic.conversations(data.synthetic_seed, data.synthetic_conversations)
            if self.stage.role is Role.ANSWER:
                asked = _flat(self._asked(one.conversation) for one in told)
                more: list[Any] = list(as_in_real_talk(asked, random.Random(self.seed)))
            else:
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
            return self._asked(conversation)
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

    def _asked(self, conversation: Conversation) -> list[AnswerEpisode]:
        asked = answer_episodes(conversation, self.embedder, manager=self.manager, settings=self.settings)
        # An answer that rests on nothing, and that nothing retrieved fits: there is no saying what would be right.
        return [e for e in asked if e.question.evidence or not e.question.answer]

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


def _flat(lists: Iterable[Sequence[AnswerEpisode]]) -> list[AnswerEpisode]:
    return [episode for one in lists for episode in one]


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
