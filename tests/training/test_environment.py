"""Environments: copies of the bank, a frozen Answer Agent asked once a state, rewards that say what they rest on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from memr1_plugin.agents.engine import LoraInfo, Prompt, Role
from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import DataError, InputError, ModelError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.operations import parse
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.training import rewards
from memr1_plugin.training.environment import AnswerEnvironment, ManagerEnvironment, digest
from memr1_plugin.training.histogram import CollapseWarning, Histogram
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Scope

MONDAY = datetime(2026, 3, 2, tzinfo=timezone.utc)
ANA = Scope(user="ana")
TRAINED = {Role.MANAGER: LoraInfo("m", "0"), Role.ANSWER: LoraInfo("a", "0")}


@dataclass(frozen=True)
class Asked:
    """A question of an episode."""

    question: str
    answer: str
    evidence: tuple[str, ...] = ()
    asked_at: datetime = MONDAY + timedelta(days=9)


@dataclass(frozen=True)
class Turned:
    """A Manager episode over a bank of its own."""

    bank: Bank = field(repr=False)
    facts: tuple[Fact, ...]
    questions: tuple[Asked, ...]
    ruled: tuple[Operation, ...] = ()
    near: tuple[tuple[MemoryItem, ...], ...] | None = None
    gold: tuple[Operation, ...] | None = None
    id: str = "e1"
    scope: Scope = ANA

    @property
    def memories(self) -> tuple[MemoryItem, ...]:
        """All of the bank."""
        return tuple(self.bank.items(self.scope))

    @property
    def related(self) -> tuple[tuple[MemoryItem, ...], ...]:
        """What was retrieved for each fact; all of the bank, if that is not said."""
        return (self.memories,) * len(self.facts) if self.near is None else self.near

    def open_bank(self) -> Bank:
        """A copy of the bank."""
        return self.bank.snapshot(self.scope)


@dataclass(frozen=True)
class Questioned:
    """An Answer episode."""

    question: Asked
    items: tuple[MemoryItem, ...]
    id: str = "q1"


def fact(text: str, turn: str, day: int = 0) -> Fact:
    """A fact that Ana said."""
    return Fact(text, "Ana", MONDAY + timedelta(days=day), turn)


@pytest.fixture
def bank() -> Iterator[Bank]:
    """A bank in which Ana has a cat and lives in Paris."""
    made = Bank.open(":memory:", HashEmbedder())
    told = [fact("My cat is called Rex.", "t1"), fact("I live in Paris.", "t2")]
    made.apply(ANA, [Operation(OperationKind.ADD, f) for f in told])
    yield made
    made.close()


def knows(prompt: Prompt, role: Role) -> str:
    """An Answer Agent that knows the two questions of this file, and reads the newest memory that bears on one."""
    memories, question = prompt.body.split("Memories:\n", 1)[1].rsplit("Question [", 1)
    key, answers = ("live", ("Paris", "Berlin")) if "live" in question else ("cat", ("Rex", "Tom"))
    found = [
        (datetime.strptime(line.split("[")[1].split("]")[0], "%d %B %Y"), n, answer)
        for n, line in enumerate(memories.splitlines(), 1)
        for answer in answers
        if key in line and answer in line
    ]
    return f" {max(found)[1]} -> {max(found)[2]}" if found else " none"


def environment(bank: Bank, reply: object = knows, **options: object) -> tuple[ManagerEnvironment, ScriptedModel]:
    """One episode: Ana moved; the two questions are asked afterwards."""
    engine = ScriptedModel(reply, loras=TRAINED)  # type: ignore[arg-type]
    moved = fact("I live in Berlin now.", "t3", day=1)
    asked = (Asked("Where does Ana live?", "Berlin", ("t3",)), Asked("What is the cat called?", "Rex", ("t1",)))
    episode = Turned(bank, (moved,), asked)
    return ManagerEnvironment([episode], engine, HashEmbedder(), **options), engine  # type: ignore[arg-type]


def test_a_completion_is_judged_by_what_is_answered_after_it(bank: Bank) -> None:
    """The right update answers both questions, forgetting the cat one of them; a NOOP that is overruled keeps both."""
    env, _ = environment(bank)
    update, wrong, nothing = env.score(0, ["UPDATE 2", "UPDATE 1", "NOOP"])
    assert update.breakdown.parts["exact_match"] == update.breakdown.parts["evidence_coverage"] == 1.0
    assert (wrong.breakdown.parts["exact_match"], nothing.breakdown.parts["exact_match"]) == (0.5, 1.0)
    assert wrong.breakdown.parts["evidence_coverage"] == 0.5  # the item keeps turn t1's id, and not its words
    assert update.breakdown.total > max(wrong.breakdown.total, nothing.breakdown.total)


def test_every_completion_has_a_copy_of_the_bank(bank: Bank) -> None:
    """Four completions that delete, update and add leave the bank as it was, and all were judged on one state."""
    env, _ = environment(bank)
    before = digest(bank.items(ANA))
    found = env.score(0, ["DELETE 1", "UPDATE 2: gone", "ADD", "DELETE 2"])
    assert digest(bank.items(ANA)) == before and len({o.state for o in found}) == 1
    assert [o.choices for o in found] == [("DELETE",), ("UPDATE",), ("ADD",), ("DELETE",)]
    assert env.score(0, ["UPDATE 2"])[0].breakdown.parts["exact_match"] == 1.0


def test_answers_for_one_bank_state_are_computed_once(bank: Bank) -> None:
    """Completions that lead to one state share its answers, and a completion seen before costs nothing."""
    env, engine = environment(bank)
    env.score(0, ["ADD", " ADD ", "NOOP"])  # the NOOP is overruled: the fact is added
    assert env.asked == len(engine.calls) == 2  # two questions, one state
    env.score(0, ["ADD", "UPDATE 2"])
    assert env.asked == len(engine.calls) == 4
    assert all(call.role is Role.ANSWER for call in engine.calls)


def test_certain_operations_are_applied_beside_the_decided_ones(bank: Bank) -> None:
    """Facts that needed no model are part of the state that the questions are asked of."""
    engine = ScriptedModel(knows, loras=TRAINED)
    other = Operation(OperationKind.ADD, fact("I live with Rex.", "t4", day=1))
    asked = (Asked("Where does Ana live?", "Berlin", ("t3",)),)
    episode = Turned(bank, (fact("I live in Berlin now.", "t3", day=1),), asked, (other,))
    env = ManagerEnvironment([episode], engine, HashEmbedder())
    env.score(0, ["ADD"])
    assert "with Rex" in engine.calls[-1].prompt.body and "Berlin" in engine.calls[-1].prompt.body


def test_a_completion_that_says_nothing_readable_is_worth_the_floor(bank: Bank) -> None:
    """A bad completion is data: every part 0, its lines counted as refused, and the frozen agent's answers not used."""
    env, _ = environment(bank)
    [bad] = env.score(0, ["I think we should UPDATE 9"])
    assert bad.breakdown.total == 0.0 and set(bad.breakdown.parts.values()) == {0.0}
    assert bad.choices == ("refused",) and bad.detail["refused"][0]["reason"] == "unparseable"


def test_aiming_at_the_wrong_memory_costs_form(bank: Bank) -> None:
    """A DELETE that no memory bears out ends as an ADD, as in serving, and once earned all that the ADD did. A NOOP
    that is overruled costs nothing: punished as well, it drove the policy to always ADD (training/LOG.md)."""
    env, _ = environment(bank)
    cat = bank.items(ANA)[0].with_score(0.1)
    env.episodes = [replace(env.episodes[0], near=((cat,),))]  # type: ignore[type-var]
    added, deleted, dropped = env.score(0, ["ADD", "DELETE 1", "NOOP"])
    assert {o.breakdown.parts["exact_match"] for o in (added, deleted, dropped)} == {1.0}  # the fact is kept
    assert [o.breakdown.parts["format_validity"] for o in (added, deleted, dropped)] == [1.0, 0.0, 1.0]
    assert 0 < deleted.breakdown.total < added.breakdown.total == dropped.breakdown.total
    assert dropped.choices == ("NOOP",) and deleted.detail["refused"][0]["reason"] == "unsupported"


def test_each_fact_is_believed_by_the_memories_retrieved_for_it(bank: Bank) -> None:
    """Two facts in one turn: the memory that bears out a DELETE for one of them bears out none for the other."""
    cat, home = bank.items(ANA)
    facts = (fact("Rex is gone.", "t3", day=1), fact("I moved away.", "t3", day=1))
    asked = (Asked("What is the cat called?", "Rex", ("t1",)),)
    episode = replace(Turned(bank, facts, asked), near=((cat,), (home,)))
    env = ManagerEnvironment([episode], ScriptedModel(knows, loras=TRAINED), HashEmbedder())
    own, other = env.score(0, ["DELETE 1\nDELETE 2", "DELETE 2\nDELETE 1"])
    assert (own.breakdown.parts["format_validity"], other.breakdown.parts["format_validity"]) == (1.0, 0.0)


def test_a_failing_answer_agent_raises(bank: Bank) -> None:
    """The frozen agent's failure is never a reward of 0."""
    env, _ = environment(bank, reply=[])
    with pytest.raises(ModelError, match="script"):
        env.score(0, ["ADD"])


def test_greedy_rollouts_go_through_the_engine(bank: Bank) -> None:
    """Validation lets the Manager decide as it serves, with the serving prompt."""
    env, engine = environment(bank, reply=lambda p, r: "UPDATE 2" if r is Role.MANAGER else knows(p, r))
    [outcome] = env.rollout_greedily()
    assert outcome.breakdown.parts["exact_match"] == 1.0
    assert engine.calls[0].role is Role.MANAGER and engine.calls[0].prompt == env.prompt(0)


def test_a_weighted_reward_that_cannot_be_computed_is_refused_at_the_start(bank: Bank) -> None:
    """No evidence, no questions, or an unknown weight: said before the first step, with what to do."""
    engine, known = ScriptedModel(knows), fact("I live in Berlin now.", "t3")
    with pytest.raises(DataError, match="evidence_coverage cannot be computed"):
        ManagerEnvironment([Turned(bank, (known,), (Asked("Where?", "Berlin"),))], engine, HashEmbedder())
    with pytest.raises(DataError, match="no questions"):
        ManagerEnvironment([Turned(bank, (known,), ())], engine, HashEmbedder())
    with pytest.raises(InputError, match="brevity"):
        environment(bank, weights={"brevity": 1.0})
    without = [Turned(bank, (known,), (Asked("Where does Ana live?", "Berlin"),))]
    env = ManagerEnvironment(without, engine, HashEmbedder(), weights={**rewards.PAPER_WEIGHTS, "evidence_coverage": 0})
    assert "evidence_coverage" not in env.parts and env.score(0, ["ADD"])[0].breakdown.total == 1.0


def test_adding_leaves_what_became_untrue_and_freshness_says_so(bank: Bank) -> None:
    """GRPO learned to add everything: the Answer Agent, shown both addresses, names the newer one either way."""
    moved = fact("I live in Berlin now.", "t3", day=1)
    home = bank.items(ANA)[1].id
    gold = (Operation(OperationKind.UPDATE, moved, home),)
    episode = Turned(bank, (moved,), (Asked("Where does Ana live?", "Berlin", ("t3",)),), gold=gold)
    env = ManagerEnvironment(
        [episode], ScriptedModel(knows, loras=TRAINED), HashEmbedder(), weights={"token_f1": 1.0, "freshness": 0.5}
    )
    added, updated, wrong = env.score(0, ["ADD", "UPDATE 2", "UPDATE 1"])
    assert [o.breakdown.parts["freshness"] for o in (added, updated, wrong)] == [0.0, 1.0, 0.0]
    assert [o.breakdown.parts["token_f1"] for o in (added, updated)] == [1.0, 1.0]
    assert updated.breakdown.total == 1.5
    with pytest.raises(DataError, match="freshness cannot be computed for 1 episodes"):
        environment(bank, weights={"token_f1": 1.0, "freshness": 0.5})


def items() -> tuple[MemoryItem, ...]:
    """Three memories from four turns."""
    rows = [(7, "I live in Paris.", ("t1",)), (8, "My cat is Rex.", ("t2", "t3")), (9, "I sing.", ("t4",))]
    return tuple(
        MemoryItem(n, ANA, text, "Ana", MONDAY + timedelta(days=n), MONDAY, MONDAY, turns) for n, text, turns in rows
    )


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        (" 2 -> Rex", {"exact_match": 1.0, "evidence_coverage": 1.0, "format_validity": 1.0, "brevity": 1.0}),
        (" 1 2 -> Rex", {"exact_match": 1.0, "evidence_coverage": 2 / 3, "format_validity": 1.0}),
        (" 1 -> the cat Rex", {"exact_match": 0.0, "token_f1": 0.5, "evidence_coverage": 0.0}),
        (" none", {"exact_match": 0.0, "evidence_coverage": 0.0, "format_validity": 1.0}),
        ("Rex", {"exact_match": 0.0, "token_f1": 0.0, "brevity": 0.0}),
    ],
)
def test_the_answer_agent_is_judged_on_its_words_and_its_memories(completion: str, parts: dict[str, float]) -> None:
    """Right words, right memories, right form; words outside the language are worth the floor."""
    env = AnswerEnvironment([Questioned(Asked("Cat?", "Rex", ("t3",)), items())], ScriptedModel([]))
    [outcome] = env.score(0, [completion])
    assert {name: pytest.approx(outcome.breakdown.parts[name]) for name in parts} == parts


def test_an_unanswerable_question_rewards_silence() -> None:
    """Gold "" means that no memory answers: abstaining is worth everything, a guess with a citation little."""
    env = AnswerEnvironment([Questioned(Asked("Dog?", ""), items())], ScriptedModel([]))
    silent, guess = env.score(0, [" none", " 3 -> Bello"])
    assert silent.breakdown.total == sum(rewards.ANSWER_WEIGHTS.values()) and guess.breakdown.parts["token_f1"] == 0.0


def test_a_collapse_is_said_once_and_again_only_after_a_recovery() -> None:
    """95 of 100 decisions alike is a warning that says what to do; variety takes it back."""
    histogram = Histogram(["ADD", "NOOP"], window=100)
    shares = histogram.observe(["ADD", *["NOOP"] * 3])
    assert shares == {"operations/ADD": 0.25, "operations/NOOP": 0.75}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        histogram.observe(["NOOP"] * 90)
    with pytest.warns(CollapseWarning, match="99% of the last 100 decisions are NOOP"):
        histogram.observe(["NOOP"] * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        histogram.observe(["NOOP"] * 50)
        histogram.observe(["ADD"] * 50)
    with pytest.warns(CollapseWarning, match="ADD"):
        histogram.observe(["ADD"] * 50)


def test_a_digest_is_of_what_the_memories_say() -> None:
    """Order and scores do not count; a changed word, date or id does, and so do the questions."""
    a, b, c = items()
    assert digest([a, b, c]) == digest([c, b.with_score(0.5), a])
    assert len({digest([a, b]), digest([a, c]), digest([a, b], ["Where?"]), digest([])}) == 4


def test_episodes_of_the_serving_code_fit(tmp_path: Path) -> None:
    """What `episodes` builds from a conversation is what the environments take: no adapter in between."""
    from memr1_plugin.training.episodes import answer_episodes, manager_episodes
    from memr1_plugin.types import Turn

    texts = ["I have a cat called Rex.", "My cat Rex is ill.", "I live in Paris.", "My cat Rex is well again."]
    turns = tuple(
        Turn(text, "Ana", Scope(user="c1"), MONDAY + timedelta(days=n), f"t{n}", session="s1")
        for n, text in enumerate(texts)
    )
    asked = (
        Question("q1", "What is the cat called?", "Rex", evidence=("t0", "t1"), asked_at=MONDAY + timedelta(days=9)),
    )
    conversation = Conversation("c1", ("Ana",), turns, asked)
    engine = ScriptedModel(lambda p, r: "NOOP" if r is Role.MANAGER else knows(p, r), loras=TRAINED)
    turned = [e for e in manager_episodes(conversation, HashEmbedder(), keep_banks=True) if e.questions]
    managing = ManagerEnvironment(turned, engine, HashEmbedder())
    assert [e.id for e in turned] == ["c1/t1", "c1/t3"]  # it completes the evidence; it puts a memory of it at stake
    assert managing.rollout_greedily()[0].breakdown.parts["exact_match"] == 1.0
    assert parse("NOOP", turned[0].facts, turned[0].memories).rejections == ()
    answering = AnswerEnvironment(answer_episodes(conversation, HashEmbedder()), engine)
    assert answering.rollout_greedily()[0].breakdown.parts["exact_match"] == 1.0
