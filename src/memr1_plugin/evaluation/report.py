"""One evaluation run: systems side by side on the same questions, written as it goes, and its tables.

Every answer is one line of ``answers.jsonl``; a run that is stopped goes on where it was. Who answers is
`systems`, what a score is `metrics`. Scores are the paper's (set F1, BLEU-1), with exact match, evidence
recall and cost beside them, and an interval for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from memr1_plugin.agents.engine import Engine
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError, InputError, MissingExtraError
from memr1_plugin.evaluation import metrics
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.systems import Progress, Reply, System, build, reply_all
from memr1_plugin.settings import Settings

CATEGORY_NAMES = {
    "1": ("multi-hop", "Single Hop"),
    "2": ("temporal", "Temporal"),
    "3": ("open-domain", "Multi-Hop"),
    "4": ("single-hop", "Open Domain"),
    "5": ("adversarial", "(not scored)"),
}
"""LoCoMo's categories: the data set's own name, and the column of the paper's Table 1 (mem0's naming)."""


@dataclass(frozen=True)
class Row:
    """One answer of one system, scored."""

    system: str
    conversation: str
    question: str
    category: str
    gold: str
    text: str
    f1: float
    bleu1: float
    em: float
    """Exact match after SQuAD normalisation; ``em_raw`` is mem0's, where a full stop is enough to fail."""
    em_raw: float
    recall: float | None
    """Share of the evidence turns among the memories shown; None where the question names no evidence."""
    selected: float | None
    """Share of the evidence turns among the memories named; None as for ``recall``."""
    abstained: bool
    unanswerable: bool
    prompt_tokens: int
    output_tokens: int
    seconds: float


def score(system: str, conversation: Conversation, question: Question, reply: Reply) -> Row:
    """Score one reply. A right abstention scores 1, a wrong one 0, whatever the words."""
    evidence = question.evidence
    text = "" if reply.abstained else reply.text
    right = 1.0 if question.unanswerable and reply.abstained else None
    gold = "" if question.unanswerable else question.answer
    return Row(
        system=system,
        conversation=conversation.id,
        question=question.id,
        category=question.category,
        gold=question.answer,
        text=reply.text,
        f1=right if right is not None else metrics.f1(text, gold),
        bleu1=right if right is not None else metrics.bleu1(text, gold),
        em=right if right is not None else (metrics.exact_match(text, gold) if text and gold else 0.0),
        em_raw=right if right is not None else (metrics.exact_match_raw(text, gold) if text and gold else 0.0),
        recall=metrics.evidence_recall(reply.shown, evidence) if evidence else None,
        selected=metrics.evidence_recall(reply.used, evidence) if evidence else None,
        abstained=reply.abstained,
        unanswerable=question.unanswerable,
        prompt_tokens=reply.prompt_tokens,
        output_tokens=reply.output_tokens,
        seconds=reply.seconds,
    )


def evaluate(
    conversations: Sequence[Conversation],
    systems: Sequence[System],
    out: str | Path,
    *,
    engine_for: Callable[[System], Engine],
    embedder: Embedder,
    settings: Settings | None = None,
    categories: Collection[str] = ("1", "2", "3", "4"),
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Ask every system every question, and return all rows of the run, earlier ones included.

    Args:
        out: folder of the run; answers that it already holds are not asked again.
        engine_for: gives the engine that serves a system's LoRAs.
        categories: which questions to ask; others (category 5 by default) are left out. Empty: all.
        limit: at most this many questions per conversation.

    Raises:
        DataError: `out` holds a run with other settings.
    """
    settings = settings or Settings()
    folder = Path(out)
    _same_run(folder, settings, systems)
    rows = read_rows(folder)
    done = {(row.system, row.conversation, row.question) for row in rows}
    with (folder / "answers.jsonl").open("a", encoding="utf-8") as file:
        for system in systems:
            for conversation in conversations:
                asked = [q for q in conversation.questions if not categories or q.category in categories][:limit]
                todo = [q for q in asked if (system.name, conversation.id, q.id) not in done]
                for row in _ask(system, conversation, todo, folder, engine_for, embedder, settings, progress):
                    rows.append(row)
                    file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
                    file.flush()
    return rows


def _ask(
    system: System,
    conversation: Conversation,
    questions: Sequence[Question],
    folder: Path,
    engine_for: Callable[[System], Engine],
    embedder: Embedder,
    settings: Settings,
    progress: Progress | None,
) -> Iterable[Row]:
    if not questions:
        return
    engine = engine_for(system)
    memory = None
    if system.reads in ("raw", "managed"):
        name = "raw" if system.reads == "raw" else system.name
        memory = build(
            system, conversation, folder / f"{name}-{conversation.id}.db", engine, embedder, settings, progress
        )
    try:
        replies = reply_all(system, conversation, questions, memory, engine, settings.candidates)
        for n, (question, reply) in enumerate(replies, 1):
            yield score(system.name, conversation, question, reply)
            if progress is not None:
                progress(f"{system.name}: {conversation.id} questions", n, len(questions))
    finally:
        if memory is not None:
            memory.close()


def _same_run(folder: Path, settings: Settings, systems: Sequence[System]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "run.json"
    mine = {"settings": asdict(settings), "systems": {s.name: asdict(s) | {"loras": str(s.loras)} for s in systems}}
    mine = json.loads(json.dumps(mine))
    if place.exists():
        theirs = json.loads(place.read_text(encoding="utf-8"))
        changed = [n for n, s in mine["systems"].items() if n in theirs["systems"] and theirs["systems"][n] != s]
        if theirs["settings"] != mine["settings"] or changed:
            raise DataError(
                f"{folder} holds a run with other settings{f' for {changed}' if changed else ''}; expected the same, "
                "because its answers would be mixed with these. Give another --out."
            )
        mine["systems"] = theirs["systems"] | mine["systems"]
    place.write_text(json.dumps(mine, indent=2), encoding="utf-8")


def read_rows(folder: Path) -> list[Row]:
    """Return the rows that a run has written so far; a torn last line (a killed run) is asked again."""
    place = folder / "answers.jsonl"
    if not place.exists():
        return []
    lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        place.write_text("".join(whole), encoding="utf-8")
    return [Row(**json.loads(line)) for line in whole]


def table(rows: Sequence[Row], *, baseline: str | None = None) -> list[dict[str, Any]]:
    """Summarise rows by system: F1 with its interval, BLEU-1, EM, by category, recall, abstention and cost.

    Args:
        baseline: a system that the others are compared with, question by question (``vs_<baseline>``).

    Raises:
        InputError: there are no rows, or none of `baseline`.
    """
    if not rows:
        raise InputError("there are no answers to summarise. Check --categories and --only.")
    by_system: dict[str, list[Row]] = {}
    for row in rows:
        by_system.setdefault(row.system, []).append(row)
    if baseline is not None and baseline not in by_system:
        raise InputError(f"no answers of {baseline!r} to compare with; the run has {', '.join(by_system)}.")
    return [
        _summary(name, mine, by_system[baseline] if baseline and baseline != name else None, baseline)
        for name, mine in by_system.items()
    ]


def _summary(name: str, rows: Sequence[Row], base: Sequence[Row] | None, baseline: str | None) -> dict[str, Any]:
    summary: dict[str, Any] = {"system": name, "n": len(rows)}
    interval = metrics.bootstrap([row.f1 for row in rows])
    summary["f1"], summary["f1_low"], summary["f1_high"] = interval.mean, interval.low, interval.high
    for field in ("bleu1", "em", "em_raw", "prompt_tokens", "output_tokens", "seconds"):
        summary[field] = fmean(getattr(row, field) for row in rows)
    for field in ("recall", "selected"):
        known = [getattr(row, field) for row in rows if getattr(row, field) is not None]
        summary[field] = fmean(known) if known else None
    summary["abstained"] = fmean(row.abstained for row in rows)
    for category in sorted({row.category for row in rows}):
        summary[f"f1_{category}"] = fmean(row.f1 for row in rows if row.category == category)
    if base is not None:
        paired = _pairs(rows, base)
        difference = metrics.paired_difference([a.f1 for a, _ in paired], [b.f1 for _, b in paired])
        summary[f"vs_{baseline}"] = {"mean": difference.mean, "low": difference.low, "high": difference.high}
    return summary


def _pairs(rows: Sequence[Row], base: Sequence[Row]) -> list[tuple[Row, Row]]:
    other: Mapping[tuple[str, str], Row] = {(row.conversation, row.question): row for row in base}
    return [(row, other[key]) for row in rows if (key := (row.conversation, row.question)) in other]


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Render `table`'s summaries as a Markdown table; scores in percent, LoCoMo categories by number and name."""
    categories = sorted({key[3:] for s in summaries for key in s if key.startswith("f1_") and key[3:].isdigit()})
    heads = ["system", "n", "F1 [95 %]", "B1", "EM", "recall", "named"]
    heads += [f"F1 cat {c} ({CATEGORY_NAMES[c][0]})" if c in CATEGORY_NAMES else f"F1 {c}" for c in categories]
    heads += ["abstains", "prompt tok", "out tok", "s/question"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for s in summaries:
        cells = [str(s["system"]), str(s["n"]), f"{_pct(s['f1'])} [{_pct(s['f1_low'])}, {_pct(s['f1_high'])}]"]
        cells += [_pct(s["bleu1"]), _pct(s["em"]), _pct(s["recall"]), _pct(s["selected"])]
        cells += [_pct(s.get(f"f1_{c}")) for c in categories]
        cells += [_pct(s["abstained"]), f"{s['prompt_tokens']:.0f}", f"{s['output_tokens']:.1f}", f"{s['seconds']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pct(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def plot(summaries: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw F1 with its interval by system, as PNG. Needs the extra ``train`` (matplotlib)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "train") from error
    figure = Figure(figsize=(1.2 + 1.1 * len(summaries), 3.6), layout="constrained")
    axes = figure.subplots()
    means = [100 * s["f1"] for s in summaries]
    low = [100 * (s["f1"] - s["f1_low"]) for s in summaries]
    high = [100 * (s["f1_high"] - s["f1"]) for s in summaries]
    axes.bar([s["system"] for s in summaries], means, yerr=[low, high], capsize=4, color="#4c72b0")
    axes.set_ylabel("F1, percent (95 % interval)")
    axes.tick_params(axis="x", rotation=30)
    figure.savefig(path, dpi=120)
