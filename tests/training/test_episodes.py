"""Episodes: what serving shows, and the gold beside it."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from memr1_plugin.agents import answerer
from memr1_plugin.errors import InputError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.operations import parse
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.training import episodes
from memr1_plugin.training.episodes import AnswerEpisode, CachedEmbedder
from memr1_plugin.training.synthetic import Gold
from memr1_plugin.types import OperationKind, Scope, Turn

EMBEDDER = HashEmbedder(64)


@pytest.fixture
def told(monday: datetime) -> Conversation:
    """Ana on her cities and her pottery, with questions of each kind."""
    said = [
        "My sister and I live in Rome near the old harbour.",
        "I started a pottery class last week with my brother Leo.",
        "My new hobby is painting watercolours of old boats.",
        "We moved, my sister and I live in Oslo near the harbour now.",
    ]
    scope = Scope(user="c")
    turns = tuple(
        Turn(s, "Ana", scope, monday + timedelta(days=n), f"t{n}", session=str(n)) for n, s in enumerate(said)
    )
    asked = (
        Question("q0", "When did Ana start a pottery class?", "The week before 9 May 2023", "2", ("t1",)),
        Question("q1", "What hobbies does Ana have?", "pottery, painting", "1", ("t1", "t2")),
        Question("q2", "Where does Ana live?", "Oslo", "4", ("t3",)),
        Question("q3", "What is the name of Ana's dog?", "", "5", (), unanswerable=True),
        Question("q4", "Who is Leo?", "her brother", "4"),
    )
    return Conversation("c", ("Ana",), turns, asked)


def _by_id(told: Conversation) -> dict[str, AnswerEpisode]:
    return {e.id: e for e in episodes.answer_episodes(told, EMBEDDER)}


def test_an_answer_episode_is_read_back_as_its_gold(told: Conversation) -> None:
    """The gold completion parses to the gold answer and the items of the gold turns."""
    episode = _by_id(told)["q0"]
    completion = episode.completion()
    assert completion is not None
    used, text = answerer.parse(completion, episode.items)
    assert text == "The week before 9 May 2023"
    assert [t for i in episode.items if i.id in used for t in i.turn_ids] == ["t1"]
    assert episode.prompt() == answerer.prompt(
        "When did Ana start a pottery class?", episode.items, episode.question.asked_at, trained=True
    )


def test_an_unanswerable_question_has_no_gold_memory(told: Conversation) -> None:
    """Its completion is the abstention."""
    assert _by_id(told)["q3"].completion() == " none"


def test_half_of_a_list_is_answered_by_half(told: Conversation) -> None:
    """A lost memory takes its part of the answer along; what is not said must not be answered."""
    whole = _by_id(told)["q1"]
    half = AnswerEpisode("q1", whole.question, tuple(i for i in whole.items if i.turn_ids != ("t1",)))
    assert (half.completion() or "").endswith("-> painting")


def test_a_question_without_evidence_is_linked_by_retrieval(told: Conversation) -> None:
    """The link is marked as a guess, and found."""
    linked = _by_id(told)["q4"].question
    assert linked.by_retrieval
    assert "t1" in linked.evidence


def test_the_bank_follows_the_gold_operations(told: Conversation) -> None:
    """After the move, the gold is to replace the memory of the first city, and the episode's bank is the one before."""
    gold = {f"t{n}": Gold(OperationKind.ADD) for n in range(3)} | {"t3": Gold(OperationKind.UPDATE, "t0")}
    found = list(episodes.manager_episodes(told, EMBEDDER, gold=gold, keep_banks=True))
    last = found[-1]
    assert last.id == "c/t3"
    example = last.example()
    assert example is not None
    [operation] = parse(example.completion, last.facts, last.memories).operations
    assert (operation.kind, operation.target) == (OperationKind.UPDATE, 1)
    assert {q.id for q in last.questions} == {"q2"}
    with last.open_bank() as bank:
        assert len(bank.items(last.scope)) == 3


def test_the_window_hides_older_turns(told: Conversation) -> None:
    """With a window of one turn, the first city is out of sight."""
    found = list(episodes.manager_episodes(told, EMBEDDER, window=1))
    assert all("t0" not in m.turn_ids for e in found if e.id == "c/t3" for m in e.memories)


def test_gold_that_cannot_be_named_becomes_an_add(told: Conversation) -> None:
    """An UPDATE whose target was not retrieved is an ADD: the model is never asked to invent a number."""
    episode = list(episodes.manager_episodes(told, EMBEDDER))[-1]
    [operation] = episodes.gold_operations(Gold(OperationKind.UPDATE, "t99"), episode.facts, episode.memories)
    assert operation.kind is OperationKind.ADD


def test_a_text_is_embedded_once() -> None:
    """The cache asks its embedder for new texts only, and gives the same vectors."""
    asked: list[str] = []

    class Counting(HashEmbedder):
        def embed(self, texts):  # type: ignore[no-untyped-def]
            asked.extend(texts)
            return super().embed(texts)

    cached = CachedEmbedder(Counting(16))
    first = cached.embed(["a b", "c"])
    second = cached.embed(["c", "a b", "c"])
    assert asked == ["a b", "c"]
    assert (second[0] == first[1]).all()
    assert (second[1] == first[0]).all()


def test_an_episode_without_its_bank_says_so(told: Conversation) -> None:
    """Banks are kept on request."""
    found = list(episodes.manager_episodes(told, EMBEDDER))
    with pytest.raises(InputError, match="keep_banks"):
        found[-1].open_bank()
