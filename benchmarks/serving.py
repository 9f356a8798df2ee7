"""What a turn and a question cost on the local engine: prompt and output tokens, model calls, seconds by stage.

    python benchmarks/serving.py                                          # a synthetic conversation
    python benchmarks/serving.py --conversation locomo_dev.json --only conv-30 --turns 60 --questions 20 --json

First the whole memory, one turn after the other. Then its recorded prompts on the engine alone: with and
without the fixed part computed once, one prompt at a time and eight together. Quality is not measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memr1_plugin import Memory
from memr1_plugin.agents.engine import Completion, Prompt, Role
from memr1_plugin.agents.local import LocalEngine, LocalOptions
from memr1_plugin.embedding import as_embedder
from memr1_plugin.evaluation.datasets import Conversation, load
from memr1_plugin.settings import Settings

TARGETS = {
    "prompt tokens p50": ("Manager", 350),
    "output tokens per fact": ("Manager", 24),
    "import s": ("package", 0.3),
}


class Recorder:
    """An engine that passes prompts on and keeps them with what they cost."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self.id, self.lora, self.close = engine.id, engine.lora, engine.close
        self.calls: list[tuple[Role, Prompt, Completion, tuple[float, float]]] = []

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Complete on the real engine; a batch's seconds (the clock's, the processor's) are shared by its prompts."""
        start, start_cpu = time.perf_counter(), time.process_time()
        done = self._engine.complete(prompts, role)
        n = max(1, len(prompts))
        each = (time.perf_counter() - start) / n, (time.process_time() - start_cpu) / n
        self.calls += [(role, prompt, c, each) for prompt, c in zip(prompts, done, strict=True)]
        return done


def whole_memory(
    conversation: Conversation, n_turns: int, n_questions: int, engine: Recorder, certain: bool
) -> dict[str, dict[str, Any]]:
    """Observe turns and ask questions as a bot does; return what a turn and a question cost."""
    embedder = as_embedder()
    embedder.embed(["loaded before the clock starts"])
    turns = conversation.turns[:n_turns]
    told = {turn.id for turn in turns}
    # One whose evidence was not told yet costs as much; those that were come first.
    asked = sorted(conversation.questions, key=lambda q: not set(q.evidence) <= told)[:n_questions]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(certain=certain, remember_roles=("user", "assistant"))
        memory = Memory.open(Path(folder) / "bench.db", engine=engine, embedder=embedder, settings=settings)
        with memory:
            observing = [_timed(lambda t=turn: memory.observe(t)) for turn in turns]
            after_turns = memory.stats()
            answering = [_timed(lambda q=q: memory.answer(q.text, scope=conversation.scope)) for q in asked]
            after_all = memory.stats()
    return {
        "turn": _cost(observing, {}, after_turns.counts, {}, after_turns.seconds),
        "question": _cost(answering, after_turns.counts, after_all.counts, after_turns.seconds, after_all.seconds),
    }


def _timed(call: Any) -> tuple[float, float]:
    """Return (seconds, processor seconds of all threads): the second holds on a machine that others use too."""
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - start_cpu


def _cost(
    took: Sequence[tuple[float, float]], counts0: Any, counts1: Any, seconds0: Any, seconds1: Any
) -> dict[str, Any]:
    n = max(1, len(took))
    names = ("model_calls", "prompt_tokens", "cached_tokens", "output_tokens")
    counts = {name: round((counts1.get(name, 0) - counts0.get(name, 0)) / n, 2) for name in names}
    stages = {name: round((s - seconds0.get(name, 0.0)) / n, 4) for name, s in seconds1.items()}
    p50, p95 = _percentiles([s for s, _ in took])
    cpu, _ = _percentiles([s for _, s in took])
    stages = {name: s for name, s in stages.items() if s > 0}
    seconds = {"seconds p50": p50, "seconds p95": p95, "processor seconds p50": cpu}
    return {"n": len(took), **seconds, **counts, "seconds by stage": stages}


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return (round(sum(values), 3),) * 2
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return round(cuts[9], 3), round(cuts[18], 3)


def per_call(calls: Sequence[tuple[Role, Prompt, Completion, tuple[float, float]]], role: Role) -> dict[str, Any]:
    """Return tokens and seconds of one role's calls."""
    own = [(p, c, s) for r, p, c, s in calls if r is role]
    if not own:
        return {"calls": 0}
    facts = [max(1, sum(line.startswith("- [") for line in p.body.splitlines())) for p, _, _ in own]
    return {
        "calls": len(own),
        "prompt tokens p50": statistics.median(c.prompt_tokens for _, c, _ in own),
        "of them cached p50": statistics.median(c.cached_tokens for _, c, _ in own),
        "output tokens p50": statistics.median(c.output_tokens for _, c, _ in own),
        "output tokens per fact": round(sum(c.output_tokens for _, c, _ in own) / sum(facts), 2),
        "cut at max_tokens": sum(not c.finished for _, c, _ in own),
        "seconds p50": _percentiles([s for _, _, (s, _) in own])[0],
        "processor seconds p50": _percentiles([cpu for _, _, (_, cpu) in own])[0],
    }


def engine_alone(engine: LocalEngine, prompts: Sequence[tuple[Role, Prompt]], batch: int) -> dict[str, Any]:
    """Complete recorded prompts; return seconds a call and what was written."""
    for role, prompt in {role: prompt for role, prompt in prompts}.items():
        engine.complete([prompt], role)  # loads, compiles, and fills the prefix cache
    texts: dict[int, str] = {}
    start, start_cpu = time.perf_counter(), time.process_time()
    for role in dict.fromkeys(role for role, _ in prompts):
        own = [n for n, (r, _) in enumerate(prompts) if r is role]
        for at in range(0, len(own), batch):
            some = own[at : at + batch]
            done = engine.complete([prompts[n][1] for n in some], role)
            texts.update({n: c.text for n, c in zip(some, done, strict=True)})
    took, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "seconds a call": round(took / len(prompts), 3),
        "processor seconds a call": round(cpu / len(prompts), 3),
        "texts": [texts[n] for n in sorted(texts)],
    }


def import_seconds() -> float:
    """Return the best of five imports of the package in a fresh process."""
    code = "import time; t = time.perf_counter(); import memr1_plugin; print(time.perf_counter() - t)"
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return round(min(float(done.stdout) for done in run), 3)


def conversation_of(args: argparse.Namespace) -> Conversation:
    """Return the conversation to run: from a file, or synthetic."""
    if args.conversation is None:
        from memr1_plugin.training.synthetic import conversation

        return conversation(args.seed).conversation
    found = [c for c in load(args.conversation) if args.only in (None, c.id)]
    if not found:
        raise SystemExit(f"{args.conversation} holds no conversation {args.only!r}.")
    return found[0]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run both parts."""
    conversation = conversation_of(args)
    recorder = Recorder(LocalEngine(loras={} if args.no_loras else None))
    warm = Prompt("", "Hello", max_tokens=1)
    load_s, _ = _timed(lambda: recorder._engine.complete([warm], Role.BASE))
    result: dict[str, Any] = {"engine": recorder._engine.id, "load s": round(load_s, 2), "import s": import_seconds()}
    result["loras"] = {r.value: (i.name if (i := recorder.lora(r)) else None) for r in (Role.MANAGER, Role.ANSWER)}
    result["memory"] = whole_memory(conversation, args.turns, args.questions, recorder, not args.always_ask)
    result["calls"] = {
        "Manager": per_call(recorder.calls, Role.MANAGER),
        "Answer": per_call(recorder.calls, Role.ANSWER),
    }
    prompts = [(role, prompt) for role, prompt, _, _ in recorder.calls[len(recorder.calls) - args.prompts :]]
    engines = {
        True: recorder._engine,
        False: LocalEngine(loras={} if args.no_loras else None, options=LocalOptions(reuse_prefix=False)),
    }
    result["engine alone"] = {}
    base: list[str] = []
    for reuse, batch in ((False, 1), (True, 1), (False, 8), (True, 8)) if prompts else ():
        row = engine_alone(engines[reuse], prompts, batch)
        base = base or row["texts"]
        same = sum(a == b for a, b in zip(base, row.pop("texts"), strict=True))
        name = f"{'prefix once' if reuse else 'no reuse'}, batch {batch}"
        result["engine alone"][name] = {**row, "calls": len(prompts), "same text as the first row": same}
    for engine in engines.values():
        engine.close()
    return result


def show(result: dict[str, Any]) -> None:
    """Print the result as tables, with the targets."""
    console = Console()
    console.print(f"{result['engine']}, loaded in {result['load s']} s; LoRAs {result['loras']}")
    for title in ("memory", "calls", "engine alone"):
        rows = result[title]
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        table = Table(title=title)
        for name in ("", *columns):
            table.add_column(name, overflow="fold")
        for name, row in rows.items():
            table.add_row(name, *(str(row.get(column, "")) for column in columns))
        console.print(table)
    for name, (where, most) in TARGETS.items():
        found = result["import s"] if where == "package" else result["calls"][where].get(name)
        verdict = "not measured" if found is None else "met" if found <= most else "MISSED"
        console.print(f"target: {where} {name} <= {most}: {found} ({verdict})")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversation", type=Path, help="a conversation file; without it a synthetic one")
    parser.add_argument("--only", help="id of the conversation in the file")
    parser.add_argument("--seed", type=int, default=7, help="of the synthetic conversation")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=24, help="recorded prompts for the engine alone")
    parser.add_argument("--always-ask", action="store_true", help="ask the model in the certain cases too")
    parser.add_argument("--no-loras", action="store_true", help="zero-shot, with the instruction prompts")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    result = run(args)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
