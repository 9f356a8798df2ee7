"""An evaluation asks every system the same questions, writes as it goes, shares work, and goes on where it stopped."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from talk import AT, QUESTIONS, SYSTEMS, TALK, conversation, run

from memr1_plugin.agents.engine import Completion, LoraInfo, Prompt, Role
from memr1_plugin.embedding import Vectors
from memr1_plugin.errors import DataError, InputError, ModelError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.replies import Reply, unselected
from memr1_plugin.evaluation.run import TOGETHER, chosen
from memr1_plugin.evaluation.systems import BASELINES, System
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder, ScriptedModel, by_words
from memr1_plugin.types import Scope, Turn

MANAGED, RAW = BASELINES["untrained"], BASELINES["untrained-raw"]


class Counting(HashEmbedder):
    """An embedder that keeps what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        return super().embed(texts)


def test_every_system_is_asked_the_same_questions(tmp_path: Path) -> None:
    """One answer a system and question; category 5 is left out unless asked for."""
    replies = run(tmp_path, SYSTEMS).replies
    assert {(r.system, r.question) for r in replies} == {(s.name, q) for s in SYSTEMS for q in ("q0", "q1")}
    assert all(r.prompt_tokens > 0 and r.seconds > 0 for r in replies)
    assert {r.system: r.ranked is None for r in replies} == {s.name: s.name == "no-memory" for s in SYSTEMS}


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Answers that are on the disk are not asked again; a torn last line is."""
    first, again = run(tmp_path, SYSTEMS), ScriptedModel.heuristic()
    assert run(tmp_path, SYSTEMS, engine=again) == first and again.prompts == []
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text()[:-20])
    mended = run(tmp_path, SYSTEMS)
    assert [(r.system, r.question, r.text) for r in mended.replies] == [
        (r.system, r.question, r.text) for r in first.replies
    ]


def test_a_manager_that_fails_half_way_loses_no_turn(tmp_path: Path) -> None:
    """The bank is filled on from the turn whose model call failed."""
    calls = iter(range(100))

    def failing(prompt: Prompt, role: Role) -> str:
        if role is Role.MANAGER and next(calls) == 1:
            raise ModelError("the model is away.")
        return by_words(prompt, role)

    always_ask = Settings(certain=False)
    with pytest.raises(ModelError, match="away"):
        run(tmp_path, [MANAGED], engine=ScriptedModel(failing), settings=always_ask)
    [bank] = run(tmp_path, [MANAGED], settings=always_ask).banks["untrained"]
    assert (bank.turns, bank.items, bank.changes) == (3, 3, {"ADD": 3})
    assert bank.model_calls == 3 and bank.seconds > 0


def test_systems_without_a_manager_share_one_bank(tmp_path: Path) -> None:
    """RAG and the Answer Agent over raw turns read the same file, whose texts are embedded once."""
    embedder = Counting()
    done = run(tmp_path, [BASELINES["rag"], RAW], embedder=embedder)
    assert sorted(p.name for p in (tmp_path / "banks").glob("*.db")) == ["raw-c1.db"]
    assert done.banks["rag"] == done.banks["untrained-raw"]
    assert len(embedder.texts) == len(set(embedder.texts))
    again = Counting()
    run(tmp_path, [BASELINES["rag"], RAW, MANAGED], embedder=again)
    assert set(again.texts).isdisjoint(embedder.texts)


def test_systems_with_the_same_manager_share_one_bank(tmp_path: Path) -> None:
    """Two Answer LoRAs on one Manager LoRA do not build its bank twice, whatever the Manager's folder is called."""
    folders = [tmp_path / name for name in ("manager", "copy", "other", "answer")]
    for folder, weights in zip(folders, (b"m", b"m", b"n", b"a"), strict=True):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(weights)
    manager, copied, other, answer = folders
    sft = System("sft", "managed", manager=manager, answer=answer)
    grpo = System("grpo", "managed", manager=copied)
    assert sft.bank == grpo.bank != System("x", "managed", manager=other).bank != MANAGED.bank
    model = ScriptedModel.heuristic()
    run(tmp_path / "run", [sft, grpo], engine=model, settings=Settings(certain=False))
    assert [call.role for call in model.calls].count(Role.MANAGER) == 3


def test_always_add_asks_no_manager(tmp_path: Path) -> None:
    """The Manager that only adds keeps every fact without a call; an exact duplicate is still a NOOP by rule."""
    twice = conversation()
    again = Turn(twice.turns[0].text, "Ana", Scope("c1"), AT, "t9")
    twice = Conversation("c1", ("Ana",), (*twice.turns, again), QUESTIONS)
    model = ScriptedModel.heuristic()
    system = System("always-add", "managed", always_add=True)
    [bank] = run(tmp_path, [system], talks=[twice], engine=model).banks["always-add"]
    assert bank.changes == {"ADD": 3, "NOOP": 1} and bank.model_calls == 0
    assert {call.role for call in model.calls} == {Role.ANSWER}


def test_gold_evidence_is_all_that_the_agent_reads(tmp_path: Path) -> None:
    """The oracle shows the memories of the evidence turns and no others, and is asked where there is evidence."""
    system = System("gold", "evidence")
    replies = run(tmp_path, [system], categories=()).replies
    assert [(r.question, r.shown) for r in replies] == [("q0", (("t0",),)), ("q1", (("t1",),))]
    assert [r.text for r in replies] == ["I live in Rome with my parents.", "My cat is called Rex."]


def test_unselected_answers_name_what_retrieval_ranked_first(tmp_path: Path) -> None:
    """Nobody selects: the best-ranked memories stand in the completion already, and the answer is all that is left."""
    model = ScriptedModel({"": " 1 2 3 -> Rome"}, loras={Role.ANSWER: LoraInfo("x", "y")})
    system = System("raw:unselected", "raw", selects=False)
    replies = run(tmp_path, [system], engine=model).replies
    assert {r.text for r in replies} == {"Rome"} and {r.named for r in replies} == {None}
    assert all(p.grammar and p.grammar.startswith('root ::= " 1 2 3 ->" text') for p in model.prompts)


def test_at_most_eight_memories_are_named_unselected() -> None:
    """Of ten candidates the eight most relevant are named: the first eight of the prompt."""
    from memr1_plugin.types import MemoryItem

    items = [
        MemoryItem(n, Scope(), f"fact {n}", "Ana", AT.replace(day=n), created_at=AT, updated_at=AT)
        for n in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)
    ]
    assert unselected(items).startswith('root ::= " 1 2 3 4 5 6 7 8 ->" text')


def test_answers_are_those_that_serving_gives(tmp_path: Path) -> None:
    """The evaluation once read completions by itself, and missed what serving makes of them (`resting_on`)."""
    wrong_number = ScriptedModel({"": " 1 -> Rex"})
    replies = {r.question: r for r in run(tmp_path, [RAW], engine=wrong_number).replies}
    assert replies["q1"].named == (("t1",),), "memory 1 says nothing of Rex; the one that does is meant"


def test_a_conversation_that_nothing_is_remembered_of_is_an_abstention(tmp_path: Path) -> None:
    """Without a memory the Answer Agent is not asked, whether it selects or not; it is not an error."""
    talk = conversation(questions=(Question("q0", "qwxz?", "Rome", "4"),))
    small = Conversation("c1", ("Ana",), (Turn("Hi!", "Ana", Scope("c1"), AT, "t0"),), talk.questions)
    for system in (RAW, System("unselected", "raw", selects=False)):
        [reply] = run(tmp_path, [system], talks=[small]).replies
        assert reply.abstained and reply.text == "" and reply.prompt_tokens == 0


class Batches(ScriptedModel):
    """A model that keeps how many prompts, and how long, came together."""

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        if prompts[0].max_tokens > 1:  # not the one that warms the model up
            self.sizes.append([len(p.body) for p in prompts])
        return super().complete(prompts, role)

    sizes: list[list[int]]


def test_questions_of_all_conversations_are_batched_by_length(tmp_path: Path) -> None:
    """Longest first, in batches of the size asked for; a reply says how large its batch was."""
    model = Batches(by_words)
    model.sizes = []
    talks = [conversation("c1"), conversation("c2"), conversation("c3")]
    replies = run(tmp_path, [RAW], talks=talks, engine=model, batch=4).replies
    assert [len(sizes) for sizes in model.sizes] == [4, 2]
    lengths = [length for sizes in model.sizes for length in sizes]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(r.batch for r in replies) == [2, 2, 4, 4, 4, 4]


def test_banks_of_several_conversations_are_filled_at_once(tmp_path: Path) -> None:
    """Managers of different conversations wait for each other's prompts, so that an engine can batch them."""
    together = threading.Barrier(2, timeout=10)

    class Meeting(ScriptedModel):
        def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
            if role is Role.MANAGER:
                together.wait()  # broken if only one conversation is being filled
            return super().complete(prompts, role)

    talks = [conversation("c1"), conversation("c2")]
    done = run(tmp_path, [MANAGED], talks=talks, engine=Meeting(by_words), settings=Settings(certain=False))
    assert [bank.items for bank in done.banks["untrained"]] == [3, 3]


def test_many_conversations_are_asked_about_some_at_a_time(tmp_path: Path) -> None:
    """LongMemEval has 500 conversations of one question; so many open banks would use up a process's files."""
    talks = [conversation(f"c{n}") for n in range(TOGETHER + 2)]
    model = Batches(by_words)
    model.sizes, seen = [], list[tuple[int, int]]()
    done = run(tmp_path, [RAW], talks=talks, engine=model, batch=999, progress=lambda _, n, of: seen.append((n, of)))
    assert [len(sizes) for sizes in model.sizes] == [2 * TOGETHER, 4]
    assert len(done.replies) == 2 * len(talks) and len(done.banks["untrained-raw"]) == len(talks)
    assert seen[-1] == (2 * len(talks), 2 * len(talks))


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    """Answers of two settings, base models or LoRAs under one name never stand in one table."""
    run(tmp_path, SYSTEMS[:1], model="a")
    with pytest.raises(DataError, match=r"other settings of settings: .*'candidates': 10.*expected .*3"):
        run(tmp_path, SYSTEMS[:1], settings=Settings(candidates=3), model="a")
    with pytest.raises(DataError, match="rag"):
        run(tmp_path, [System("rag", "managed")], model="a")
    with pytest.raises(DataError, match="of model"):
        run(tmp_path, SYSTEMS[:1], model="b")
    with pytest.raises(InputError, match="two systems are called rag"):
        run(tmp_path, [SYSTEMS[0], SYSTEMS[0]], model="a")


def test_weights_that_changed_under_a_name_are_refused(tmp_path: Path) -> None:
    """A LoRA trained on in the same folder is another system: its answers do not join the old ones."""
    folder = tmp_path / "answer"
    folder.mkdir()
    file = folder / "adapter_model.safetensors"
    file.write_bytes(b"1")
    system = System("sft", "raw", answer=folder)
    run(tmp_path / "run", [system])
    file.write_bytes(b"22")
    with pytest.raises(DataError, match="sft"):
        run(tmp_path / "run", [system])


def test_answers_of_another_version_say_so(tmp_path: Path) -> None:
    """A line with fields that nobody knows is named as what it is."""
    run(tmp_path, SYSTEMS[:1])
    row = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert Reply.from_json(row).to_json() == json.loads(json.dumps(row)) | {"shown": Reply.from_json(row).shown} | {
        "ranked": Reply.from_json(row).ranked
    }
    with pytest.raises(DataError, match="another version"):
        Reply.from_json(row | {"f1": 0.5})


def test_categories_of_other_data_are_all_asked() -> None:
    """LoCoMo's four categories are the default for LoCoMo alone; one's own questions are all asked."""
    own = conversation(questions=(Question("q", "Where?", "Rome", "places"), Question("r", "When?", "May")))
    assert [q.id for _, q in chosen([own])] == ["q", "r"]
    assert [q.id for _, q in chosen([own], ["places"])] == ["q"]
    assert [q.id for _, q in chosen([TALK], (), 1)] == ["q0"]
    with pytest.raises(InputError, match="no question is of the categories"):
        chosen([own], ["5"])
    with pytest.raises(DataError, match="'c9' has questions and no turns"):
        chosen([Conversation("c9", (), (), QUESTIONS)])
