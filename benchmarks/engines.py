"""The same prompts through several engines, in one process: seconds a call, tokens a second, and do they agree?

Prompts are those of serving: turns of LoCoMo with the memories related to them, and its questions with ten
candidates. What is not measured here: retrieval, the bank, many callers (`scale.py`). Run:

    python benchmarks/engines.py --prompts 200 --threads 1 --save engines.json
    python benchmarks/engines.py --engines dense:float32,llama.cpp --prompts 200 --untimed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memr1_plugin.agents import answerer, llamacpp, manager
from memr1_plugin.agents.engine import Completion, Engine, Prompt, Role
from memr1_plugin.dates import resolve
from memr1_plugin.evaluation.datasets import Conversation, load
from memr1_plugin.operations import parse
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Fact, MemoryItem, Scope, Turn

RELATED, CANDIDATES = 4, 10
FREE_TOKENS = 24
"""Written without a grammar to time the decoder alone."""


@dataclass(frozen=True)
class Call:
    """One prompt, and how its completion is read: two completions agree when they mean the same."""

    role: Role
    prompt: Prompt
    meaning: Callable[[str], Any]


def item(number: int, turn: Turn) -> MemoryItem:
    """Return a turn as the memory that serving would make of it."""
    text = resolve(turn.text, turn.at)
    return MemoryItem(number, Scope(), text, turn.speaker, turn.at, created_at=turn.at, updated_at=turn.at)


class Bank:
    """The turns of one conversation, ranked by shared words: near enough to serving for timing and agreement."""

    def __init__(self, conversation: Conversation) -> None:
        self.items = [item(n, turn) for n, turn in enumerate(conversation.turns, 1)]
        self._embedder = HashEmbedder(256)
        self._vectors = self._embedder.embed([i.text for i in self.items])

    def nearest(self, text: str, k: int, before: int | None = None) -> list[MemoryItem]:
        """Return the `k` memories most like `text`, of those said before number `before`."""
        scores = (self._vectors @ self._embedder.embed([text])[0])[:before]
        return [self.items[n] for n in np.argsort(-scores, kind="stable")[:k]]


def calls(conversations: Sequence[Conversation], n: int, trained: dict[Role, bool]) -> list[Call]:
    """Return `n` calls, half of each agent, spread over the conversations."""
    found: list[Call] = []
    share = n // 2 // len(conversations)
    for conversation in conversations:
        bank = Bank(conversation)
        turns = np.linspace(20, len(bank.items) - 1, share).astype(int)
        found += [_manage(bank, int(t), trained[Role.MANAGER]) for t in turns]
        asked = [q for q in conversation.questions if not q.unanswerable]
        for q in np.linspace(0, len(asked) - 1, share).astype(int):
            found.append(_answer(bank, asked[int(q)].text, trained[Role.ANSWER]))
    return found


def _manage(bank: Bank, place: int, trained: bool) -> Call:
    new = bank.items[place]
    facts = [Fact(new.text, new.speaker, new.at)]
    shown = manager.union([bank.nearest(new.text, RELATED, before=place)])
    prompt = manager.prompt(facts, shown, trained=trained)
    return Call(Role.MANAGER, prompt, lambda text: parse(text, facts, shown).operations)


def _answer(bank: Bank, question: str, trained: bool) -> Call:
    shown = bank.nearest(question, CANDIDATES)
    prompt = answerer.prompt(question, shown, bank.items[-1].at, trained=trained)
    return Call(Role.ANSWER, prompt, lambda text: answerer.parse(text, shown))


def open_engine(name: str, threads: int, loras: Path | None) -> Engine:
    """Open "nf4" (as packed), "unpacked", "dense" or "openvino", each with ":DTYPE", or "llama.cpp[:KIND]"."""
    kind, _, form = name.partition(":")
    if kind == "llama.cpp":
        options = {"kind": None if form == "shipped" else form} if form else {}
        return llamacpp.open_engine(loras=loras, threads=threads, **options)
    import torch

    from memr1_plugin.agents.local import LocalEngine, LocalOptions

    torch.set_num_threads(threads)
    dtype = form or None
    steps = ("dense", "nf4", "unpacked", "openvino").index(kind)  # each on top of the one before
    quantize, unpack, compiled = steps > 0, steps > 1, steps > 2
    options = LocalOptions(quantize=quantize, unpack=unpack, compile=compiled, dtype=dtype)
    return LocalEngine(None, loras, options=options)


def timed(engine: Engine, prompt: Prompt, role: Role) -> tuple[Completion, float, float]:
    """Complete one prompt alone; return it, the seconds that passed, and the seconds that the processor worked.

    The second tells engines apart on a machine that does other things beside, with one thread.
    """
    start, worked = time.perf_counter(), time.process_time()
    [completion] = engine.complete([prompt], role)
    return completion, time.perf_counter() - start, time.process_time() - worked


def speeds(engine: Engine, asked: Sequence[Call]) -> dict[str, float]:
    """Return tokens a second of processor time: prompts computed for one token, and text written without a grammar."""
    prefill, decode = [], []
    for call in asked[:: max(1, len(asked) // 4)][:4]:
        # A prompt that the engine has not seen: one line in front of it, and no fixed part to find again.
        bare = replace(call.prompt, fixed="", body=f"{time.time()}\n{call.prompt.body}", grammar=None, chat=False)
        first, _, seconds = timed(engine, replace(bare, max_tokens=1), call.role)
        prefill.append((first.prompt_tokens - first.cached_tokens) / seconds)
        free = replace(bare, body=f"{time.time()} Once upon a time", max_tokens=1)
        _, _, one = timed(engine, free, call.role)
        many, _, all_ = timed(
            engine, replace(free, body=f"{time.time()} Once upon a time", max_tokens=FREE_TOKENS), call.role
        )
        decode.append((many.output_tokens - 1) / max(all_ - one, 1e-9))
    return {"prefill tok/s": statistics.median(prefill), "decode tok/s": statistics.median(decode)}


def measure(engine: Engine, asked: Sequence[Call]) -> dict[str, Any]:
    """Run every call alone, in order, after one of each role has warmed the engine."""
    for role in (Role.MANAGER, Role.ANSWER):
        timed(engine, next(c.prompt for c in asked if c.role is role), role)
    done = [timed(engine, call.prompt, call.role) for call in asked]
    row: dict[str, Any] = {"engine": engine.id}
    for role, what in ((Role.MANAGER, "Manager call"), (Role.ANSWER, "answer")):
        of_role = [d for d, call in zip(done, asked, strict=True) if call.role is role]
        seconds = [s for _, s, _ in of_role]
        row[f"processor s/{what}"] = statistics.mean(s for _, _, s in of_role)
        row[f"s/{what}"] = statistics.mean(seconds)
        row[f"s/{what} p95"] = float(np.percentile(seconds, 95))
        row[f"prompt tokens/{what}"] = statistics.mean(c.prompt_tokens for c, _, _ in of_role)
        row[f"cached tokens/{what}"] = statistics.mean(c.cached_tokens for c, _, _ in of_role)
        row[f"output tokens/{what}"] = statistics.mean(c.output_tokens for c, _, _ in of_role)
    row.update(speeds(engine, asked))
    row["texts"] = [c.text for c, _, _ in done]
    return row


def texts_only(engine: Engine, asked: Sequence[Call]) -> dict[str, Any]:
    """Run every call as fast as the engine can, batches included, and time nothing."""
    done: dict[int, str] = {}
    for role in (Role.MANAGER, Role.ANSWER):
        places = [n for n, call in enumerate(asked) if call.role is role]
        completions = engine.complete([asked[n].prompt for n in places], role)
        done.update((n, c.text) for n, c in zip(places, completions, strict=True))
    return {"engine": engine.id, "texts": [done[n] for n in range(len(asked))]}


def agreement(row: dict[str, Any], reference: dict[str, Any], asked: Sequence[Call]) -> dict[str, float]:
    """Return the share of calls whose completions mean the same: operations, memories used and answer, each role."""
    found: dict[str, float] = {}
    triples = list(zip(asked, row["texts"], reference["texts"], strict=True))
    for role in (Role.MANAGER, Role.ANSWER):
        same = [call.meaning(a) == call.meaning(b) for call, a, b in triples if call.role is role]
        found[f"{role.value} agrees"] = statistics.mean(same)
    found["agrees"] = statistics.mean(call.meaning(a) == call.meaning(b) for call, a, b in triples)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    keys = [k for k in rows[-1] if k != "texts"]
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = (row.get(k, "") for k in keys)
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and write the JSON that it was made from."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEMR1_DATA", default)))
    parser.add_argument(
        "--engines", default="nf4,unpacked,openvino,llama.cpp", help="comma-separated; the first is the reference"
    )
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--part", default="1/1", help="2/10: the second tenth of the prompts, for short runs")
    parser.add_argument("--threads", type=int, default=llamacpp.default_threads())
    parser.add_argument("--loras", type=Path, help="folder with manager/ and answer/; default: those that ship")
    parser.add_argument("--untimed", action="store_true", help="only whether they agree: batches, no timing")
    parser.add_argument("--reference", type=Path, help="a file of --save: its first engine is the reference")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", type=Path, help="write the JSON, every completion included, to this file")
    args = parser.parse_args()
    conversations = load(args.data / "locomo" / "locomo_dev.json")
    rows: list[dict[str, Any]] = []
    if args.reference:
        rows.append(json.loads(args.reference.read_text(encoding="utf-8"))["engines"][0])
    asked: list[Call] = []
    part, parts = (int(n) for n in args.part.split("/"))
    for name in args.engines.split(","):
        engine = open_engine(name, args.threads, args.loras)
        trained = {role: engine.lora(role) is not None for role in Role}
        asked = asked or calls(conversations, args.prompts, trained)[part - 1 :: parts]
        row = {"name": name, **(texts_only if args.untimed else measure)(engine, asked)}
        engine.close()
        rows.append({**row, **agreement(row, rows[0] if rows else row, asked)})
        print(f"{name}: done", file=sys.stderr)
    for row in rows:
        for key in [k for k in row if k.startswith(("s/", "processor s/")) and "p95" not in k and k in rows[0]]:
            row[f"times faster, {key}"] = rows[0][key] / row[key]
    machine = {"processor": platform.processor(), "threads": args.threads, "load": os.getloadavg()}
    result = {"machine": machine, "prompts": len(asked), "engines": rows}
    if args.save:
        args.save.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for row in rows:
        del row["texts"]
    print(json.dumps(result, indent=1) if args.json else table(rows))


if __name__ == "__main__":
    main()
