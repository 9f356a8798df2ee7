"""This memory layer beside mem0, PowerMem and LangMem: the same model, server, embeddings, turns and questions.

    python benchmarks/peers.py install                                  # each peer into its own environment
    python benchmarks/peers.py run --conversation locomo_dev.json       # all systems; goes on where it stopped
    python benchmarks/peers.py run --only mem0 --minutes 7              # one system, a piece at a time
    python benchmarks/peers.py count --only mem0                        # prompts counted, nothing computed
    python benchmarks/peers.py answer                                   # the same answerer on what each one found
    python benchmarks/peers.py table --plot docs/peers.png

Counted at the server (`peer_systems.server`); every system runs in a process of its own (`peer_systems.worker`),
with its telemetry off and its defaults otherwise. Each turn and question is a line of a file under --folder, written
as it comes. docs/benchmarks.md says what is compared and what is not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peer_systems.server import MODEL_NAMES, WINDOW, Call, CountingServer

from memr1_plugin.agents.answerer import Answerer
from memr1_plugin.agents.engine import LoraInfo, Role
from memr1_plugin.agents.models import trained_prompt_hash
from memr1_plugin.embedding import as_embedder
from memr1_plugin.evaluation import metrics
from memr1_plugin.evaluation.datasets import Conversation, Question, load
from memr1_plugin.types import MemoryItem, Scope, Turn

PACKAGES = {
    "memr1-local": (),
    "memr1": (),
    "langmem": ("langmem==0.0.30", "langchain-openai"),
    "powermem": ("powermem==1.1.7",),
    "mem0": ("mem0ai==2.2.1",),
}
"""What is installed for each system; nothing: it runs in this environment."""
WINDOWS = {"mem0": 2 * WINDOW}
"""mem0's instructions alone are 8,530 tokens, more than this model was trained on: it is stretched to twice that."""


@dataclass(frozen=True)
class Plan:
    """What every system is told and asked."""

    turns: list[Turn]
    questions: list[Question]

    @staticmethod
    def of(conversation: Conversation, n_turns: int, n_questions: int) -> Plan:
        """The first turns, and the first questions whose evidence lies in them."""
        turns = list(conversation.turns[:n_turns])
        told = {turn.id for turn in turns}
        asked = [q for q in conversation.questions if q.evidence and set(q.evidence) <= told and not q.unanswerable]
        return Plan(turns, asked[:n_questions])


class Rows:
    """A file with one JSON object a line, appended to as results come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict[str, Any]]:
        """Return the rows so far; a last line that was cut short is dropped."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; what is left of one that was cut short goes."""
        if self.path.exists() and not (text := self.path.read_bytes()).endswith(b"\n"):
            self.path.write_bytes(text[: text.rfind(b"\n") + 1])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Worker:
    """One system in its own process."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        python = python_of(name, folder) if PACKAGES[name] else Path(sys.executable)
        script = Path(__file__).parent / "peer_systems" / "worker.py"
        self._log = (folder / name / "log.txt").open("a", encoding="utf-8")
        environment = {**os.environ, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": url, "NO_PROXY": "127.0.0.1"}
        self._process = subprocess.Popen(
            [str(python), str(script), name, str(folder / name / "state"), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            cwd=folder / name,  # PowerMem writes logs where it runs
        )
        self._reply()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request; return its reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the system ended; its last words are in {self._log.name}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process as its input ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()


def python_of(name: str, folder: Path) -> Path:
    """Return the Python of a peer's environment."""
    return folder / "venvs" / name / "bin" / "python"


def install(names: Sequence[str], folder: Path) -> None:
    """Make each peer's environment."""
    for name in names:
        if not PACKAGES[name]:
            continue
        python = python_of(name, folder)
        if not python.exists():
            venv.create(python.parents[1], with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
        print(f"{name}: {', '.join(PACKAGES[name])} in {python.parents[1]}", flush=True)


@contextmanager
def opened(name: str, folder: Path, threads: int, compute: bool = True) -> Iterator[tuple[CountingServer, Worker]]:
    """Start the server that a system needs, and the system."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    # The LoRAs that ship are trained on the nf4 base; the peers get the weights unrounded.
    kind = "Q8_0" if PACKAGES[name] else "nf4+Q8_0"
    embedder = as_embedder(None)
    embedder.embed(["loaded before the clock starts"])
    window = WINDOWS.get(name, WINDOW)
    with CountingServer(embedder, kind=kind, context_tokens=window, threads=threads, compute=compute) as server:
        worker = Worker(name, folder, server.url)
        server.take()
        try:
            yield server, worker
        finally:
            worker.close()


def run(name: str, plan: Plan, folder: Path, *, until: float, threads: int) -> bool:
    """Tell a system the turns that it has not heard, then ask; returns whether all is done."""
    turns, questions = Rows(folder / name / "turns.jsonl"), Rows(folder / name / "questions.jsonl")
    to_tell = plan.turns[len(turns.read()) :]
    to_ask = plan.questions[len(questions.read()) :]
    if not to_tell and not to_ask:
        return True
    with opened(name, folder, threads) as (server, worker):
        held: dict[str, str] = {}
        slowest = 0.0
        for row in turns.read():
            held, slowest = _after(held, row), max(slowest, row["seconds"])
        for turn in to_tell:
            if time.monotonic() + slowest > until:
                return False
            row = _measured(server, worker, {"turn": _told(turn)}) | {"turn": turn.id}
            now = row.pop("held")
            row["changed"] = {k: v for k, v in now.items() if held.get(k) != v}
            row["gone"] = [k for k in held if k not in now]
            turns.add(row)
            held, slowest = now, max(slowest, row["seconds"])
            print(f"{name} {turn.id}: {row['seconds']:.1f} s, {len(row['calls'])} requests {row['error']}", flush=True)
        for question in to_ask:
            row = _measured(server, worker, {"search": question.text}) | {"question": question.id}
            row["found"] = {i: row["held"].get(i, "") for i in row.get("found", [])}
            del row["held"]
            questions.add(row)
    return True


def count(name: str, plan: Plan, folder: Path) -> None:
    """Count the prompts that a system sends for each turn while nothing is remembered: each is refused."""
    rows = Rows(folder / name / "counted.jsonl")
    rows.path.unlink(missing_ok=True)
    with opened(name, folder, threads=1, compute=False) as (server, worker):
        for turn in plan.turns:
            row = _measured(server, worker, {"turn": _told(turn)}) | {"turn": turn.id}
            rows.add(row)
    prompts = [c["prompt_tokens"] for row in rows.read() for c in row["calls"] if "embeddings" not in c["path"]]
    n = len(plan.turns)
    print(f"{name}: {len(prompts) / n:.2f} model calls and {sum(prompts) / n:,.0f} prompt tokens a turn, {n} turns")


def _told(turn: Turn) -> dict[str, Any]:
    day = f"{turn.at:%H:%M on} {turn.at.day} {turn.at:%B %Y}"
    return {"id": turn.id, "speaker": turn.speaker, "text": turn.text, "at": turn.at.isoformat(), "day": day}


def _after(held: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, str]:
    return {k: v for k, v in {**held, **row["changed"]}.items() if k not in row["gone"]}


def _measured(server: CountingServer, worker: Worker, request: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a system, and add what the server saw. Processor seconds: its own, the model's and the embedder's."""
    worked = time.process_time()
    reply = worker.ask(request)
    calls = server.take()
    reply["processor seconds"] += time.process_time() - worked
    return {**reply, "calls": [call.to_json() for call in calls]}


# -- the same answerer on what each system found --------------------------------------------------------


def sources(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return for each memory the turns during which it appeared or was rewritten: what it can rest on."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        for memory in row["changed"]:
            found[memory].append(row["turn"])
    return dict(found)


def within(server: CountingServer, found: Mapping[str, str], budget: int) -> list[str]:
    """Return the first memories whose texts together are at most `budget` tokens; the first one always."""
    kept: list[str] = []
    spent = 0
    for memory, text in found.items():
        spent += server.tokens(text)
        if kept and spent > budget:
            break
        kept.append(memory)
    return kept


def answer(names: Sequence[str], plan: Plan, folder: Path, *, budget: int, threads: int) -> None:
    """Answer each question from what each system found for it, with this project's Answer Agent."""
    from memr1_plugin.agents.remote import RemoteEngine

    when = {turn.id: turn for turn in plan.turns}
    loras = {role: LoraInfo(role.value, trained_prompt_hash(role)) for role in (Role.MANAGER, Role.ANSWER)}
    with CountingServer(as_embedder(None), kind="nf4+Q8_0", threads=threads) as server:
        answerer = Answerer(RemoteEngine(server.url, MODEL_NAMES, loras=loras))
        for name in names:
            rows = Rows(folder / name / "answers.jsonl")
            rows.path.unlink(missing_ok=True)
            made = sources(Rows(folder / name / "turns.jsonl").read())
            asked = {q.id: q for q in plan.questions}
            for row in Rows(folder / name / "questions.jsonl").read():
                question = asked[row["question"]]
                kept = within(server, row["found"], budget)
                items = [_item(n, row["found"][m], made.get(m, []), when) for n, m in enumerate(kept, 1)]
                server.take()
                start = time.perf_counter()
                said = answerer.answer(question.text, items, question.asked_at)
                seconds = time.perf_counter() - start
                evidence = {turn for memory in kept for turn in made.get(memory, [])}
                rows.add(
                    {
                        "question": question.id,
                        "said": "" if said.abstained else said.text,
                        "seconds": seconds,
                        "memories": len(kept),
                        "evidence recall": metrics.evidence_recall(evidence, question.evidence),
                        "gold words": _gold_words(question.answer, [row["found"][m] for m in kept]),
                        "f1": metrics.f1("" if said.abstained else said.text, question.answer),
                        "calls": [call.to_json() for call in server.take()],
                    }
                )
            print(f"{name}: answered", flush=True)


def _item(number: int, text: str, made_in: Sequence[str], when: Mapping[str, Turn]) -> MemoryItem:
    """A peer's memory as the Answer Agent reads it, with the date of the newest turn that it comes from."""
    turn = when[made_in[-1]] if made_in else next(iter(when.values()))
    own = text.startswith(f"{turn.speaker}:")
    speaker = turn.speaker if own else ""
    return MemoryItem(number, Scope(), text, speaker, turn.at, created_at=turn.at, updated_at=turn.at)


def _gold_words(gold: str, texts: Sequence[str]) -> float:
    """Return the share of the gold answer's words that the memories hold."""
    wanted = metrics.word_set(gold)
    return len(wanted & metrics.word_set(" ".join(texts))) / max(1, len(wanted))


# -- tables -------------------------------------------------------------------------------------------------


def summary(name: str, folder: Path) -> dict[str, Any]:
    """Return one system's row of the table."""
    turns = Rows(folder / name / "turns.jsonl").read()
    questions = Rows(folder / name / "questions.jsonl").read()
    answers = Rows(folder / name / "answers.jsonl").read()
    held: dict[str, str] = {}
    for row in turns:
        held = _after(held, row)
    spent = _spent(turns)
    n = max(1, len(turns))
    calls = [Call(**c) for row in turns for c in row["calls"]]
    seconds = [row["seconds"] for row in turns]
    asking = [q["seconds"] + a["seconds"] for q, a in zip(questions, answers, strict=False)]
    return {
        "system": name,
        "turns": len(turns),
        **{f"{key} a turn": value / n for key, value in spent.items()},
        "s a turn p50": _quantile(seconds, 0.5),
        "s a turn p95": _quantile(seconds, 0.95),
        "processor s a turn": statistics.fmean(row["processor seconds"] for row in turns) if turns else None,
        "failed": sum(bool(row["error"]) for row in turns) + sum(c.status != 200 for c in calls),
        "unparseable": sum(c.unparseable for c in calls) + _rejected(turns),
        "cut": sum(c.cut for c in calls),
        "memories": len(held),
        "questions": len(answers),
        "s a question p50": _quantile(asking, 0.5),
        "s a question p95": _quantile(asking, 0.95),
        "evidence recall": _mean(answers, "evidence recall"),
        "gold words in context": _mean(answers, "gold words"),
        "F1": 100 * _mean(answers, "f1") if answers else None,
    }


def _spent(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return calls and tokens of the model: as the server counted, or as the system did that computes by itself."""
    names = {
        "model calls": "model_calls",
        "prompt tokens": "prompt_tokens",
        "cached": "cached_tokens",
        "output tokens": "output_tokens",
    }
    calls = [Call(**c) for row in turns for c in row["calls"]]
    asked = [c for c in calls if c.model]
    if asked or not turns or "counts" not in turns[0]:
        return {
            "model calls": len(asked),
            "prompt tokens": sum(c.prompt_tokens for c in asked),
            "cached": sum(c.cached_tokens for c in asked),
            "output tokens": sum(c.output_tokens for c in asked),
        }
    totals = _totals(turns)
    return {shown: float(totals[counted]) for shown, counted in names.items()}


def _totals(turns: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Sum a system's own counters, which begin at nothing whenever its process does."""
    total: Counter[str] = Counter()
    before: Mapping[str, int] = {}
    for row in turns:
        now = row.get("counts", {})
        again = now.get("turns", 0) <= before.get("turns", 0)
        total.update({k: v - (0 if again else before.get(k, 0)) for k, v in now.items()})
        before = now
    return total


def _rejected(turns: Sequence[Mapping[str, Any]]) -> int:
    """Count this project's own completions that were no operation; one that was read and not followed is none."""
    refused = {k: n for k, n in _totals(turns).items() if k.startswith("rejected:") and k != "rejected:unsupported"}
    return sum(refused.values())


def _quantile(values: Sequence[float], q: float) -> float | None:
    return float(np.quantile(values, q)) if values else None


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows) if rows else 0.0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the systems as the columns of a Markdown table."""
    lines = ["| | " + " | ".join(str(row["system"]) for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for key in list(rows[0])[1:]:
        lines.append(f"| {key} | " + " | ".join(_shown(row[key]) for row in rows) + " |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw prompt tokens and processor seconds a turn, and evidence recall, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
    panels = (("prompt tokens a turn", True), ("processor s a turn", True), ("evidence recall", False))
    for axis, (key, log_scale) in zip(axes, panels, strict=True):
        bars = axis.barh([row["system"] for row in rows], [row[key] or 0 for row in rows], color="#4477aa")
        axis.bar_label(bars, fmt=lambda value: _shown(float(value)), padding=2, fontsize=8)
        if log_scale:
            axis.set_xscale("log")
        axis.margins(x=0.25)
        if not log_scale:
            axis.set_xlim(0, 1.25)
        axis.invert_yaxis()
        axis.set_title(key, fontsize=9)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, and do what is asked."""
    default = Path(os.environ.get("MEMR1_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("install", "run", "count", "answer", "table"))
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="environments, states and results")
    parser.add_argument("--only", action="append", choices=list(PACKAGES), help="a system; may be given several times")
    parser.add_argument("--conversation", type=Path, default=default / "locomo" / "locomo_dev.json")
    parser.add_argument("--id", default="conv-30", help="of the conversation in that file")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--budget", type=int, default=256, help="tokens of memories that the answerer sees")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop between two turns before so many have passed")
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    names, folder = args.only or list(PACKAGES), args.folder.resolve()
    if args.what == "install":
        return install(names, folder)
    if args.what == "table":
        rows = [summary(name, folder) for name in names if (folder / name / "turns.jsonl").exists()]
        print(json.dumps(rows, indent=1) if args.json else table(rows))
        return plot(rows, args.plot) if args.plot else None
    [conversation] = [c for c in load(args.conversation) if c.id == args.id]
    plan = Plan.of(conversation, args.turns, args.questions)
    if args.what == "answer":
        return answer(names, plan, folder, budget=args.budget, threads=args.threads)
    if args.what == "count":
        for name in names:
            count(name, plan, folder)
        return None
    until = time.monotonic() + 60 * args.minutes
    for name in names:
        done = run(name, plan, folder, until=until, threads=args.threads)
        print(f"{name}: {'done' if done else 'stopped; run again to go on'}", flush=True)


if __name__ == "__main__":
    main()
