"""Bad models: what they write changes nothing that is not valid, and when they die the turn waits."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest

from memr1_plugin import Memory, Scope, Settings
from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import InputError, MemoryR1Error, ModelError
from memr1_plugin.extraction import LLMExtractor
from memr1_plugin.operations import MAX_EXTRA, parse
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Fact, Turn

ANA, BOB = Scope(user="ana"), Scope(user="bob")
ASK_ALWAYS = Settings(certain=False, screen=False)


def opened(path: Path | str, reply: Callable[[Prompt, Role], str], **options: object) -> Memory:
    """A memory whose model replies as `reply` says, asked about every fact."""
    options.setdefault("settings", ASK_ALWAYS)
    return Memory.open(path, engine=ScriptedModel(reply), embedder=HashEmbedder(), **options)  # type: ignore[arg-type]


def test_fuzzed_completions_change_only_what_a_valid_line_names() -> None:
    """Parser and bank agree with a reader of its own on every completion; no exception, every rejection counted."""
    report = fuzz.run(1_500, seed=6)
    assert report.failures == ()
    assert {name for name, _ in report.numbers} >= {f"rejected: {reason}" for reason in fuzz.REASONS}


def test_a_memory_takes_in_turns_whatever_its_model_writes() -> None:
    """Through the whole flow, extraction by the model included: nothing is raised and nothing stays pending."""
    rng = random.Random(7)

    def reply(prompt: Prompt, role: Role) -> str:
        return fuzz.completion(rng, fuzz._ANSWERS if role is Role.ANSWER else fuzz._REAL)

    with opened(":memory:", reply, extractor="llm") as memory:
        for n in range(120):
            memory.observe(f"I bought a kayak number {n}.", speaker="Ana", scope=ANA)
            memory.answer("What did Ana buy?", scope=ANA)
        assert memory.bank.waiting() == 0 and memory.bank.check() == []


@pytest.mark.parametrize(
    "line", ["DELETE \u0661", "DELETE \uff11; ADD", "DELETE 01", "UPDATE 1: a\x00b", "UPDATE 1: \ud800"]
)
def test_a_line_that_only_looks_valid_destroys_nothing(line: str) -> None:
    """Fuzzing found that other scripts' digits named memories, and that a NUL in a text made the turn fail for ever."""
    with Bank.open(":memory:", HashEmbedder()) as bank:
        fact = Fact("I live in Rome.", "Ana", fuzz.MAY, turn_id="t1")
        item = bank.get(ANA, bank.apply(ANA, parse("ADD", [fact], []).operations)[0].item_id or 0)
        parsed = parse(line, [fact], [item])
        assert parsed.operations == () and [r.reason for r in parsed.rejections] == ["unparseable"]
        bank.apply(ANA, parsed.operations, rejections=parsed.rejections)
        assert bank.stats(ANA).rejections == {"unparseable": 1} and bank.items(ANA) == [item]


def test_a_model_that_never_stops_fills_no_bank() -> None:
    """A million lines too many are a handful of rejections, and a line of a megabyte is kept as its beginning."""
    with Bank.open(":memory:", HashEmbedder()) as bank:
        parsed = parse("ADD\n" * 1_000_000, [Fact("x", "Ana", fuzz.MAY)], [])
        assert len(parsed.rejections) == MAX_EXTRA and "999,980 lines more" in parsed.rejections[-1].line
        bank.apply(
            ANA, (), rejections=[*parsed.rejections, *parse("#" * 10**6, [Fact("x", "Ana", fuzz.MAY)], []).rejections]
        )
        assert bank.stats().bytes < 500_000 and bank.stats(ANA).rejections == {"extra": MAX_EXTRA, "unparseable": 1}


FAILURES = [TimeoutError("60 s"), MemoryError(), RuntimeError("CUDA error"), OSError("broken pipe"), ModelError("down")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("write", ["sync", "background"])
def test_a_turn_survives_an_engine_that_fails_in_whatever_way(tmp_path: Path, failure: Exception, write: str) -> None:
    """It comes out as ModelError, the turn stays pending, and it is managed by the same memory once the engine works.

    A background writer used to stop for good at anything that was no ModelError.
    """
    down = True

    def reply(prompt: Prompt, role: Role) -> str:
        if down:
            raise failure
        return "ADD"

    settings = Settings(certain=False, retry_s=0.01)
    with opened(tmp_path / "bot.db", reply, write=write, settings=settings) as memory:
        with pytest.raises(ModelError):
            memory.observe("I live in Rome.", speaker="Ana", scope=ANA)
            memory.flush(timeout_s=30)
        assert memory.bank.waiting() == 1 and memory.bank.history(ANA) == []
        down = False
        memory.flush(timeout_s=30)
        assert memory.bank.waiting() == 0 and [c.kind.value for c in memory.history(scope=ANA)] == ["ADD"]


def test_an_attempt_under_way_before_a_flush_does_not_fail_it(tmp_path: Path) -> None:
    """A model that failed on a turn while `flush` was called, and works since, used to make that flush fail."""
    asked, go_on, calls = threading.Event(), threading.Event(), []

    def reply(prompt: Prompt, role: Role) -> str:
        calls.append(role)
        if len(calls) == 1:
            asked.set()
            go_on.wait(30)
            raise TimeoutError("60 s")
        return "ADD"

    settings = Settings(certain=False, retry_s=30.0)
    with opened(tmp_path / "bot.db", reply, write="background", settings=settings) as memory:
        memory.observe("I live in Rome.", speaker="Ana", scope=ANA)
        assert asked.wait(30)
        threading.Timer(0.2, go_on.set).start()
        memory.flush(timeout_s=60)
        assert memory.bank.waiting() == 0 and len(calls) == 2


class Failing:
    """An extractor or embedder part that fails as it is told."""

    def extract(self, turn: Turn, previous: Turn | None) -> list[Fact]:
        raise ZeroDivisionError("a bug of somebody's own extractor")


class FailingEmbedder(HashEmbedder):
    """An embedder that fails while `down`."""

    down = False

    def embed(self, texts: object) -> object:  # type: ignore[override]
        if self.down:
            raise MemoryError
        return super().embed(texts)  # type: ignore[arg-type]


def test_extractors_and_embedders_that_fail_leave_the_turn_pending(tmp_path: Path) -> None:
    """Whatever they raise is a ModelError, as an engine's failure is."""
    with opened(tmp_path / "one.db", lambda prompt, role: "ADD", extractor=Failing()) as memory:
        with pytest.raises(ModelError, match="Failing raised ZeroDivisionError"):
            memory.observe("I live in Rome.", scope=ANA)
        assert memory.bank.waiting() == 1
    embedder = FailingEmbedder()
    engine = ScriptedModel(lambda prompt, role: "ADD")
    with Memory.open(tmp_path / "two.db", engine=engine, embedder=embedder, settings=ASK_ALWAYS) as memory:
        embedder.down = True
        with pytest.raises(ModelError, match=r"embedder hash-64 failed on \d+ texts .MemoryError"):
            memory.observe("I live in Rome.", scope=ANA)
        assert memory.bank.waiting() == 1
        embedder.down = False
        memory.flush()
        assert memory.bank.waiting() == 0


def test_one_scopes_bad_turn_holds_up_nobody_else(tmp_path: Path) -> None:
    """A turn that no model can read used to stop the background writer's round before everybody else's turns."""

    def reply(prompt: Prompt, role: Role) -> str:
        if "unreadable" in prompt.body:
            raise ModelError("the prompt is too long")
        return "ADD"

    settings = Settings(certain=False, retry_s=0.01)
    with opened(tmp_path / "bot.db", reply, write="background", settings=settings) as memory:
        for n in range(5):
            memory.observe("unreadable", scope=Scope(user=f"bad {n}"))
        memory.observe("I live in Rome.", scope=BOB)
        for _ in range(20):
            with pytest.raises(ModelError, match="too long"):
                memory.flush(timeout_s=30)
            if memory.history(scope=BOB):
                break
        assert [c.kind.value for c in memory.history(scope=BOB)] == ["ADD"] and memory.bank.waiting() == 5


def test_what_another_scope_left_pending_fails_no_call_of_mine(tmp_path: Path) -> None:
    """Catching up with an earlier process's turns used to raise its model's failure out of somebody's search."""

    def reply(prompt: Prompt, role: Role) -> str:
        if "unreadable" in prompt.body:
            raise ModelError("the prompt is too long")
        return "ADD"

    with opened(tmp_path / "bot.db", reply) as memory, pytest.raises(ModelError):
        memory.observe("unreadable", scope=ANA)
    with opened(tmp_path / "bot.db", reply) as memory:
        assert memory.search("Where is Bob?", scope=BOB) == []
    with opened(tmp_path / "bot.db", reply) as memory:
        assert len(memory.observe("I live in Rome.", scope=BOB)) == 1
        with pytest.raises(ModelError):
            memory.flush()


def test_a_user_who_corrects_while_the_model_thinks_is_not_overwritten(tmp_path: Path) -> None:
    """A decision made on what another process has changed since is made again, on what is there now."""
    seen: list[str] = []
    thinking = threading.Event()

    def reply(prompt: Prompt, role: Role) -> str:
        seen.append(prompt.body)
        if not thinking.is_set():
            thinking.set()
            with opened(tmp_path / "bot.db", lambda prompt, role: "ADD") as other:  # as another process does
                other.correct(1, "I have two cats: Tom and Kim.", scope=ANA)
        return "UPDATE 1: I have three cats: Tom, Kim and Lou." if "Kim" in prompt.body else "UPDATE 1: Tom and Lou."

    with opened(tmp_path / "bot.db", lambda prompt, role: "ADD") as memory:
        memory.observe("I have a cat called Tom.", speaker="Ana", scope=ANA)
    with opened(tmp_path / "bot.db", reply) as memory:
        [change] = memory.observe("I have another cat, Lou.", speaker="Ana", scope=ANA)
        assert change.before and change.before.text == "I have two cats: Tom and Kim."
        assert change.after and change.after.text == "I have three cats: Tom, Kim and Lou."
        assert len(seen) == 2 and memory.stats().counts["decided_again"] == 1


def test_a_models_facts_are_text_that_a_bank_can_hold() -> None:
    """A NUL or half of a surrogate pair in an extracted fact used to make the turn fail for ever."""

    class LLM:
        def invoke(self, prompt: str) -> str:
            return "- Ana lives in Ro\x00me \ud800.\n- Ana has a dog."

    facts = LLMExtractor(LLM()).extract(Turn("I live in Rome and have a dog.", "Ana"), None)
    assert [fact.text for fact in facts] == ["Ana lives in Ro\ufffdme \ufffd.", "Ana has a dog."]


def test_input_errors_are_still_the_callers(tmp_path: Path) -> None:
    """Attributing failures to models hides no mistake of a caller."""
    with opened(tmp_path / "bot.db", lambda prompt, role: "ADD") as memory:
        with pytest.raises(InputError):
            memory.observe("", scope=ANA)
        assert issubclass(ModelError, MemoryR1Error) and memory.bank.waiting() == 0
