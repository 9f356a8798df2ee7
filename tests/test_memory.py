"""A memory remembers across processes, keeps scopes apart, and loses nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from memr1_plugin import Memory, Scope, Settings, Turn
from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.errors import InputError, ModelError, UnknownItemError
from memr1_plugin.testing import HashEmbedder, ScriptedModel

ANA, BOB = Scope(user="ana"), Scope(user="bob")
AT = datetime(2023, 5, 8, 12, tzinfo=timezone.utc)


def open_memory(path: Path, **options: object) -> Memory:
    options.setdefault("engine", ScriptedModel.heuristic())
    return Memory.open(path, embedder=HashEmbedder(), **options)  # type: ignore[arg-type]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with open_memory(tmp_path / "bot.db") as opened:
        yield opened


class Switchable:
    """A model that fails while `down`, and counts."""

    def __init__(self) -> None:
        self.down = True
        self.asked = 0
        self._well = ScriptedModel.heuristic()

    def __call__(self, prompt: Prompt, role: Role) -> str:
        self.asked += 1
        if self.down:
            raise ModelError("the model is down")
        return self._well.complete([prompt], role)[0].text


EVERYTHING = Settings(certain=False)


def test_what_is_observed_is_found_and_answered_after_a_restart(tmp_path: Path) -> None:
    """The database file is the memory: another process with the same file knows it."""
    with open_memory(tmp_path / "bot.db") as first:
        [change] = first.observe("I moved to Berlin last week.", speaker="Ana", scope=ANA, at=AT)
        assert change.kind.value == "ADD" and change.after is not None
    with open_memory(tmp_path / "bot.db") as second:
        [item] = second.search("Where did Ana move?", scope=ANA)
        answer = second.answer("Where did Ana move?", scope=ANA)
    assert "Berlin" in item.text and item.turn_ids == (change.turn_id,)
    assert "Berlin" in answer.text and answer.used == (item.id,)


def test_a_scope_never_sees_another(memory: Memory) -> None:
    """Bob can neither find, answer from, read, change nor forget what Ana said."""
    [change] = memory.observe("My PIN is 4711.", speaker="Ana", scope=ANA)
    assert change.item_id is not None
    for scope in (BOB, Scope(), Scope(user="ana", session="s"), Scope(user="ANA"), Scope(agent="ana")):
        assert memory.search("What is the PIN?", scope=scope) == []
        assert memory.answer("What is the PIN?", scope=scope).abstained
        assert memory.turns(scope=scope) == []
        with pytest.raises(UnknownItemError):
            memory.correct(change.item_id, "My PIN is 1.", scope=scope)
        memory.forget(scope=scope)
    assert len(memory.search("What is the PIN?", scope=ANA)) == 1


def test_the_same_turn_delivered_twice_is_one_turn(memory: Memory) -> None:
    """A framework that retries does not teach the bot twice."""
    assert len(memory.observe("I have a dog.", scope=ANA, id="m1")) == 1
    assert memory.observe("I have a dog.", scope=ANA, id="m1") == []
    assert len(memory.turns(scope=ANA)) == 1


def test_the_bots_own_words_are_journaled_and_not_remembered(memory: Memory) -> None:
    """Only what people say becomes memories, unless the settings say otherwise."""
    assert memory.observe("I am a banana, ha ha.", speaker="bot", role="assistant", scope=ANA) == []
    assert memory.search("Who is a banana?", scope=ANA) == []
    assert [turn.role for turn in memory.turns(scope=ANA)] == ["assistant"]
    assert memory.bank.pending() == []


def test_only_what_may_become_a_memory_waits_to_be_managed(tmp_path: Path) -> None:
    """The bot's words are done with when they are on the disk: they once cost every exchange a commit of their own."""
    turns = [Turn("I moved to Oslo.", "Ana", ANA), Turn("How nice!", "bot", ANA, role="assistant")]
    with open_memory(tmp_path / "bot.db", engine=ScriptedModel(Switchable()), settings=EVERYTHING) as memory:
        with pytest.raises(ModelError):
            memory.observe_many(turns)
        assert memory.bank.pending() == turns[:1]
        assert memory.turns(scope=ANA) == turns


def test_metadata_of_a_turn_goes_along_and_what_begins_with_an_underscore_stays(memory: Memory) -> None:
    """A memory carries what its turn was tagged with, not the framework's whole message a second time."""
    tags = {"channel": "mail", "_langchain": {"type": "human"}}
    [change] = memory.observe("I moved to Oslo.", scope=ANA, metadata=tags)
    assert change.after is not None and change.after.metadata == {"channel": "mail"}
    assert memory.turns(scope=ANA)[0].metadata["_langchain"] == {"type": "human"}


def test_a_turn_is_durable_when_its_model_fails_and_is_managed_later(tmp_path: Path) -> None:
    """A dying engine raises; the turn stays pending and the next open manages it."""
    model = Switchable()
    with open_memory(tmp_path / "bot.db", engine=ScriptedModel(model), settings=EVERYTHING) as memory:
        with pytest.raises(ModelError, match="down"):
            memory.observe("I live in Rome.", speaker="Ana", scope=ANA, id="m1")
        assert [turn.id for turn in memory.bank.pending()] == ["m1"]
    model.down = False
    with open_memory(tmp_path / "bot.db", engine=ScriptedModel(model), settings=EVERYTHING) as memory:
        [item] = memory.search("Where does Ana live?", scope=ANA)
        assert item.turn_ids == ("m1",) and memory.bank.pending() == []


class Batches:
    """A LangChain-shaped embedding model that writes down what it is asked for at once."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(texts)
        return HashEmbedder(32).embed(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_the_texts_of_a_turn_are_embedded_in_one_batch(tmp_path: Path) -> None:
    """As a query, as a memory, and behind the turn before it: three calls of a model for one turn were one too slow."""
    model = Batches()
    with Memory.open(tmp_path / "m.db", embedder=model, engine=ScriptedModel.heuristic()) as memory:
        memory.observe(Turn("I moved to Berlin in May.", "Ana", ANA))
        del model.asked[:]
        memory.observe(Turn("My sister Rosa is a nurse.", "Ana", ANA))
    [texts] = model.asked
    assert texts == [
        ": My sister Rosa is a nurse.",
        "Ana: My sister Rosa is a nurse.",
        "Ana: I moved to Berlin in May. Ana: My sister Rosa is a nurse.",
    ]


def test_in_background_mode_observe_returns_at_once_and_flush_waits(tmp_path: Path) -> None:
    """The turn is in the journal before observe returns, and in the bank after flush."""
    hold = threading.Event()
    well = ScriptedModel.heuristic()

    def slow(prompt: Prompt, role: Role) -> str:
        hold.wait(10)
        return well.complete([prompt], role)[0].text

    options = {"engine": ScriptedModel(slow), "settings": EVERYTHING, "write": "background"}
    with open_memory(tmp_path / "bot.db", **options) as memory:
        assert memory.observe("I live in Rome.", speaker="Ana", scope=ANA) == []
        assert len(memory.turns(scope=ANA)) == 1 and memory.search("Where does Ana live?", scope=ANA) == []
        with pytest.raises(ModelError, match="1 turns are still pending"):
            memory.flush(timeout_s=0.05)
        hold.set()
        memory.flush(timeout_s=10)
        assert len(memory.search("Where does Ana live?", scope=ANA)) == 1


def test_whoever_writes_faster_than_the_model_reads_is_held_back(tmp_path: Path) -> None:
    """In background mode `observe` waits while more than `max_waiting` turns do; its own is durable meanwhile."""
    hold = threading.Event()
    well = ScriptedModel.heuristic()

    def slow(prompt: Prompt, role: Role) -> str:
        hold.wait(10)
        return well.complete([prompt], role)[0].text

    settings = replace(EVERYTHING, max_waiting=2)
    with open_memory(tmp_path / "b.db", engine=ScriptedModel(slow), settings=settings, write="background") as memory:
        for text in ("I live in Rome.", "I have a dog."):
            memory.observe(text, speaker="Ana", scope=ANA)
        third = threading.Thread(target=memory.observe, args=("I like tea.",), kwargs={"speaker": "Ana", "scope": ANA})
        third.start()
        third.join(0.3)
        assert third.is_alive() and len(memory.turns(scope=ANA)) == 3
        hold.set()
        third.join(20)
        assert not third.is_alive()
        memory.flush(timeout_s=10)
        assert memory.bank.waiting() == 0


def test_background_turns_survive_a_failing_model_and_a_close(tmp_path: Path) -> None:
    """flush says why it failed; the next process manages what was left."""
    model = Switchable()
    options = {"engine": ScriptedModel(model), "settings": EVERYTHING, "write": "background"}
    with open_memory(tmp_path / "bot.db", **options) as memory:
        memory.observe("I live in Rome.", speaker="Ana", scope=ANA)
        with pytest.raises(ModelError, match="down"):
            memory.flush(timeout_s=10)
        model.down = False
        memory.flush(timeout_s=10)
        assert len(memory.search("Where does Ana live?", scope=ANA)) == 1
        model.down = True
        memory.observe("I like jazz.", speaker="Ana", scope=ANA)
    model.down = False
    with open_memory(tmp_path / "bot.db", **options) as memory:
        memory.flush(timeout_s=10)
        assert len(memory.search("Does Ana like jazz?", scope=ANA)) >= 1


def test_many_threads_and_scopes_lose_nothing(tmp_path: Path) -> None:
    """Eight threads, four scopes, one memory: every turn is managed exactly once."""
    with open_memory(tmp_path / "bot.db", settings=EVERYTHING) as memory:

        def talk(n: int) -> None:
            for i in range(5):
                memory.observe(f"Word{n}x{i} is my number {n}-{i}.", scope=Scope(user=str(n % 4)), id=f"{n}-{i}")

        threads = [threading.Thread(target=talk, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert memory.bank.pending() == []
        for user in range(4):
            scope = Scope(user=str(user))
            managed = [change.turn_id for change in memory.history(scope=scope)]
            assert len(managed) == len(set(managed)) == len(memory.turns(scope=scope, limit=None)) == 10


async def test_the_async_twins_do_not_block_the_event_loop(tmp_path: Path) -> None:
    """While a slow model answers, the loop goes on ticking."""
    well = ScriptedModel.heuristic()

    def slow(prompt: Prompt, role: Role) -> str:
        time.sleep(0.5)
        return well.complete([prompt], role)[0].text

    with open_memory(tmp_path / "bot.db", engine=ScriptedModel(slow), settings=EVERYTHING) as memory:
        gaps: list[float] = []

        async def tick() -> None:
            last = time.monotonic()
            while True:
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

        ticking = asyncio.create_task(tick())
        await memory.aobserve("I live in Rome.", speaker="Ana", scope=ANA)
        answer = await memory.aanswer("Where does Ana live?", scope=ANA)
        ticking.cancel()
        assert "Rome" in answer.text
        assert len(gaps) > 20


def test_every_method_of_the_outside_has_an_async_twin() -> None:
    """The twin has the name with an "a" in front, and the same parameters and words."""
    for name in ("observe", "search", "answer", "history", "undo", "forget", "flush", "replay", "stats"):
        twin = getattr(Memory, f"a{name}")
        assert asyncio.iscoroutinefunction(twin) and twin.__doc__ == getattr(Memory, name).__doc__


def test_a_correction_can_be_undone_and_history_keeps_all_three(memory: Memory) -> None:
    """Nothing is destroyed silently: the user's change, and the way back, are in the history."""
    [added] = memory.observe("I live in Rome.", speaker="Ana", scope=ANA)
    assert added.item_id is not None
    corrected = memory.correct(added.item_id, "I live in Bern.", scope=ANA)
    assert memory.bank.get(ANA, added.item_id).text == "I live in Bern."
    memory.undo(corrected, scope=ANA)
    assert memory.bank.get(ANA, added.item_id).text.startswith("I live in Rome")
    assert len(memory.history(added.item_id, scope=ANA)) == 3


def test_a_removed_item_is_not_found_and_undo_brings_it_back(memory: Memory) -> None:
    """DELETE is a tombstone."""
    [added] = memory.observe("I live in Rome.", speaker="Ana", scope=ANA)
    assert added.item_id is not None
    removed = memory.remove(added.item_id, scope=ANA)
    assert memory.search("Where does Ana live?", scope=ANA) == []
    memory.undo(removed, scope=ANA)
    assert len(memory.search("Where does Ana live?", scope=ANA)) == 1


def test_replay_rebuilds_a_bank_from_the_journal(memory: Memory, tmp_path: Path) -> None:
    """Other agents can be given the same conversation again; the old bank is not touched."""
    for n, text in enumerate(("I live in Rome.", "My cat is called Rex.", "I play the violin.")):
        memory.observe(text, speaker="Ana", scope=ANA, at=AT.replace(day=8 + n))
    seen: list[tuple[int, int]] = []
    stats = memory.replay(into=tmp_path / "again.db", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)] and stats.counts["turns"] == 3
    with open_memory(tmp_path / "again.db") as again:
        assert [i.text for i in again.bank.items(ANA)] == [i.text for i in memory.bank.items(ANA)]
    with pytest.raises(InputError, match="exists already"):
        memory.replay(into=tmp_path / "again.db")


def test_export_and_import_move_a_memory_to_another_file(memory: Memory, tmp_path: Path) -> None:
    """What one file knows, another knows after import."""
    memory.observe("I live in Rome.", speaker="Ana", scope=ANA, at=AT)
    rows = list(memory.export())
    with open_memory(tmp_path / "other.db") as other:
        assert other.import_(rows) > 0
        assert other.import_(rows) == 0
        [item] = other.search("Where does Ana live?", scope=ANA)
        assert item.text == memory.search("Where does Ana live?", scope=ANA)[0].text


def test_feedback_keeps_the_question_and_the_right_answer(memory: Memory) -> None:
    """A corrected answer is a training record with the memories that were shown."""
    memory.observe("I live in Rome.", speaker="Ana", scope=ANA)
    answer = memory.answer("Where does Ana live?", scope=ANA)
    memory.feedback(answer, correct="Rome, Italy")
    [(kept, correct)] = memory.bank.feedback(ANA)
    assert (kept, correct) == (answer, "Rome, Italy")


def test_stats_count_operations_by_kind_and_by_who_decided(memory: Memory) -> None:
    """The first fact is a rule's ADD; nothing is counted as a model call that was none."""
    memory.observe("I live in Rome.", speaker="Ana", scope=ANA)
    stats = memory.stats()
    assert stats.counts["ADD:rule"] == 1 and "model_calls" not in stats.counts
    assert set(stats.seconds) >= {"journal", "retrieve", "apply"}


def test_one_process_shares_one_memory_per_file_and_options(tmp_path: Path) -> None:
    """However many bots ask for it, the bank is opened once; a closed one is opened anew."""
    engine, embedder = ScriptedModel.heuristic(), HashEmbedder()
    first = Memory.shared(tmp_path / "bot.db", engine=engine, embedder=embedder)
    assert Memory.shared(str(tmp_path / "x" / ".." / "bot.db"), engine=engine, embedder=embedder) is first
    first.close()
    second = Memory.shared(tmp_path / "bot.db", engine=engine, embedder=embedder)
    assert second is not first
    second.close()


def test_a_turn_that_cannot_be_stored_changes_nothing(memory: Memory) -> None:
    """Bad input is refused before anything is written."""
    for bad in ("", "a\x00b", "x" * 1_000_000, "\ud800"):
        with pytest.raises(InputError):
            memory.observe(bad, scope=ANA)
    assert memory.turns(scope=ANA) == []


def test_a_closed_memory_says_so(tmp_path: Path) -> None:
    """No obscure sqlite3 error, and closing twice is fine."""
    memory = open_memory(tmp_path / "bot.db")
    memory.close()
    memory.close()
    with pytest.raises(InputError, match="closed"):
        memory.search("x")


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """An engine brings its own model."""
    with pytest.raises(InputError, match="expected one"):
        Memory.open(tmp_path / "a.db", engine=ScriptedModel.heuristic(), model="x")
    with pytest.raises(InputError, match='expected "sync" or "background"'):
        open_memory(tmp_path / "b.db", write="later")
    with pytest.raises(InputError, match="margin is -1"):
        Settings(margin=-1)


def test_turns_given_as_values_keep_their_dialogue(memory: Memory) -> None:
    """`session` orders a dialogue and walls nothing off: memories are the scope's."""
    memory.observe(Turn("I live in Rome.", "Ana", ANA, AT, session="monday"))
    memory.observe(Turn("I play golf.", "Ana", ANA, AT, session="tuesday"))
    assert [turn.text for turn in memory.turns(scope=ANA, session="tuesday")] == ["I play golf."]
    assert len(memory.search("Where does Ana live?", scope=ANA)) >= 1
