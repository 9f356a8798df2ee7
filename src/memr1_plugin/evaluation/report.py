"""The tables of a run: means with their intervals, links of the chain, costs; as text, Markdown, JSON and pictures.

It asks nobody and scores nothing (`run`, `scores`): rows in, figures out. Figures over answers are of the questions
that have one; what a system does with a question that nothing answers stands apart, as abstention.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table as RichTable

from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.evaluation import metrics
from memr1_plugin.evaluation.banks import BankRow, added_up
from memr1_plugin.evaluation.datasets import Conversation, correct, wrong_golds
from memr1_plugin.evaluation.judge import Verdicts
from memr1_plugin.evaluation.run import Run
from memr1_plugin.evaluation.scores import RECALL_AT, Row, score_all

CATEGORY_NAMES = {
    "1": ("multi-hop", "Single Hop"),
    "2": ("temporal", "Temporal"),
    "3": ("open-domain", "Multi-Hop"),
    "4": ("single-hop", "Open Domain"),
    "5": ("adversarial", "not scored"),
}
"""LoCoMo's categories: the data set's own name, and the column of the paper's Table 1 (mem0's naming)."""


@dataclass(frozen=True)
class Table:
    """A table to be printed in one form or another."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As Markdown, under its title."""
        lines = [f"| {' | '.join(cells)} |" for cells in (self.heads, ("---",) * len(self.heads), *self.rows)]
        return "\n".join([f"### {self.title}", "", *lines])

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for n, head in enumerate(self.heads):
            table.add_column(head, justify="right" if n else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def check() -> None:
    """Raise `MissingExtraError` for what `write` needs: better before an hour of answers than after it."""
    for module in ("nltk", "matplotlib"):
        if find_spec(module) is None:
            raise MissingExtraError.of(module, "train")


def write(
    run: Run,
    conversations: Sequence[Conversation],
    folder: str | Path,
    *,
    baseline: str | None = None,
    errata: str | Path | None = None,
    verdicts: Verdicts | None = None,
) -> dict[str, Any]:
    """Write ``scores.jsonl``, ``summary.json``, ``table.md`` and ``f1.png`` into a run's folder; return the summary."""
    place = Path(folder)
    rows = score_all(run.replies, conversations)
    summary = summarise(
        rows,
        baseline=baseline,
        banks=run.banks,
        corrected=score_all(run.replies, correct(conversations, errata)) if errata is not None else (),
        wrong=wrong_golds(errata) if errata is not None else (),
        verdicts=verdicts,
    )
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    (place / "scores.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (place / "summary.json").write_text(json.dumps(summary, ensure_ascii=False, indent=2), encoding="utf-8")
    (place / "table.md").write_text(markdown(summary), encoding="utf-8")
    plot(summary, place / "f1.png")
    return summary


def summarise(
    rows: Sequence[Row],
    *,
    baseline: str | None = None,
    banks: Mapping[str, Sequence[BankRow]] | None = None,
    corrected: Sequence[Row] = (),
    wrong: Collection[str] = (),
    verdicts: Verdicts | None = None,
) -> dict[str, Any]:
    """Return all figures of a run, as JSON.

    Args:
        rows: the scored answers.
        baseline: a system that the others are compared with in the tables; every pair is in the JSON.
        banks: by system, what it remembered and at which cost.
        corrected: the same answers scored by corrected golds.
        wrong: ids of questions whose gold is known to be wrong; a second figure leaves them out.
        verdicts: what judges said.

    Raises:
        InputError: there are no rows, or none of `baseline`.
    """
    systems = list(dict.fromkeys(row.system for row in rows))
    if not rows:
        raise InputError("there are no answers to summarise. Check --category and --only.")
    if baseline is not None and baseline not in systems:
        raise InputError(f"there are no answers of the baseline {baseline!r}; there are some of {', '.join(systems)}.")
    by_system = {name: [row for row in rows if row.system == name] for name in systems}
    return {
        "baseline": baseline,
        "systems": [
            _summary(mine)
            | ({"bank": added_up(banks[name])} if banks and banks.get(name) else {})
            | ({"errata": _errata(mine, [r for r in corrected if r.system == name], wrong)} if corrected else {})
            | ({"judge": _judged(mine, verdicts)} if verdicts else {})
            for name, mine in by_system.items()
        ],
        "paired": [
            {"system": a, "minus": b, "f1": _difference(by_system[a], by_system[b])}
            for a, b in _pairs(systems, baseline)
        ],
    }


def _pairs(systems: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Every pair once, the later system minus the earlier; the baseline is always what is taken away."""
    return [(a, b) if a != baseline else (b, a) for b, a in combinations(systems, 2)]


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    known = [row for row in rows if not row.unanswerable]
    return {
        "system": rows[0].system,
        **_means(known),
        "categories": {name: _means(part) for name, part in _groups(rows, lambda row: row.category).items()},
        "conversations": {name: _means(part) for name, part in _groups(known, lambda row: row.conversation).items()},
        "recall": _mean(row.recall for row in known),
        "recall_at": {str(k): _mean(row.recall_at[k] for row in known if row.recall_at) for k in RECALL_AT},
        "named_recall": _mean(row.named_recall for row in known),
        "named_precision": _mean(row.named_precision for row in known),
        "abstained": {
            "of_unanswerable": _mean(float(row.abstained) for row in rows if row.unanswerable),
            "of_answerable": _mean(float(row.abstained) for row in known),
            "n_unanswerable": len(rows) - len(known),
        },
        **{name: _mean(getattr(row, name) for row in rows) for name in ("prompt_tokens", "output_tokens")},
        **{name: _mean(getattr(row, name) for row in rows) for name in ("seconds", "cpu_seconds")},
    }


def _groups(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=key):
        found.setdefault(key(row), []).append(row)
    return found


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    """The scores of some rows: F1 and BLEU-1 with their intervals."""
    if not rows:
        return {"n": 0, "f1": None, "bleu1": None, "em": None, "em_raw": None, "locomo_f1": None}
    return {
        "n": len(rows),
        "f1": _interval(metrics.bootstrap([row.f1 for row in rows])),
        "bleu1": _interval(metrics.bootstrap([row.bleu1 for row in rows])),
        **{name: fmean(getattr(row, name) for row in rows) for name in ("em", "em_raw", "locomo_f1")},
    }


def _interval(interval: metrics.Interval) -> dict[str, Any]:
    return asdict(interval)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _difference(rows: Sequence[Row], base: Sequence[Row]) -> dict[str, Any] | None:
    """Mean F1 difference over the questions that both answered; None if there are none."""
    other = {(row.conversation, row.question): row for row in base if not row.unanswerable}
    both = [(row, other[key]) for row in rows if (key := (row.conversation, row.question)) in other]
    if not both:
        return None
    return _interval(metrics.paired_difference([a.f1 for a, _ in both], [b.f1 for _, b in both]))


def _errata(rows: Sequence[Row], corrected: Sequence[Row], wrong: Collection[str]) -> dict[str, Any]:
    right = [row for row in rows if row.question not in wrong and not row.unanswerable]
    return {"left_out": _means(right), "corrected": _means([row for row in corrected if not row.unanswerable])}


def _judged(rows: Sequence[Row], verdicts: Verdicts) -> dict[str, Any]:
    found = {}
    for kind, said in verdicts.items():
        keys = [(row.system, row.conversation, row.question) for row in rows if not row.unanswerable]
        scores = [float(said[key]) for key in keys if key in said]
        found[kind] = _interval(metrics.bootstrap(scores)) if scores else None
    return found


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a summary: the answers, by category, the links of the chain and the costs."""
    return [_answers(summary), _by_category(summary), _links(summary), _costs(summary)]


def markdown(summary: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    return "\n\n".join(table.markdown() for table in tables(summary)) + "\n"


def _answers(summary: Mapping[str, Any]) -> Table:
    """F1, BLEU-1 and EM with their company."""
    systems, baseline = summary["systems"], summary["baseline"]
    judges = sorted({kind for s in systems for kind in s.get("judge", {})})
    errata = any("errata" in s for s in systems)
    against = {p["system"]: p["f1"] for p in summary["paired"] if p["minus"] == baseline}
    heads = ["system", "n", "F1 [95 %]", "BLEU-1", "EM", "EM raw", *(f"judge, {kind}" for kind in judges)]
    heads += ["F1, wrong golds left out"] * errata + [f"F1 minus {baseline} [95 %]"] * bool(baseline)
    rows = []
    for s in systems:
        cells = [s["system"], str(s["n"]), _span(s["f1"]), *map(_pct, (_of(s["bleu1"]), s["em"], s["em_raw"]))]
        cells += [_span(s["judge"].get(kind)) for kind in judges]
        if errata:
            cells.append(_span(s["errata"]["left_out"]["f1"]) if "errata" in s else "-")
        rows.append((*cells, *([_span(against.get(s["system"]), signed=True)] if baseline else [])))
    return Table("Answers, percent", tuple(heads), tuple(rows))


def _by_category(summary: Mapping[str, Any]) -> Table:
    """F1 by category, under the data set's name and the paper's."""
    systems = summary["systems"]
    categories = sorted({name for s in systems for name in s["categories"]})
    heads = ["system"]
    for name in categories:
        n = max(s["categories"][name]["n"] for s in systems if name in s["categories"])
        own, paper = CATEGORY_NAMES.get(name, (name or "all", ""))
        heads.append(f"{name}: {own} (paper: {paper}), n={n}" if paper else f"{own}, n={n}")
    rows = [
        (s["system"], *(_span(s["categories"].get(name, {}).get("f1")) for name in categories)) for s in systems
    ]  # fmt: skip
    return Table("F1 by category, percent [95 %]", tuple(heads), tuple(rows))


def _links(summary: Mapping[str, Any]) -> Table:
    """Is the evidence retrieved, shown, named; does the system know what it does not know?"""
    heads = ["system", *(f"@{k}" for k in RECALL_AT), "shown", "named", "precision", "abstains, rightly", "wrongly"]
    rows = []
    for s in summary["systems"]:
        cells = [_pct(s["recall_at"][str(k)]) for k in RECALL_AT]
        cells += [_pct(s[name]) for name in ("recall", "named_recall", "named_precision")]
        cells += [_pct(s["abstained"]["of_unanswerable"]), _pct(s["abstained"]["of_answerable"])]
        rows.append((s["system"], *cells))
    title = (
        "Evidence, percent: recall at k of the ranking, in the prompt, among the memories named, and their precision"
    )
    return Table(title, tuple(heads), tuple(rows))


def _costs(summary: Mapping[str, Any]) -> Table:
    """What the bank holds, what a turn and a question took."""
    heads = ("system", "bank", "items", "operations", "s/turn", "prompt tokens", "output tokens", "s/question", "CPU s")
    rows = []
    for s in summary["systems"]:
        bank = s.get("bank")
        changes = ", ".join(f"{n} {kind}" for kind, n in bank["changes"].items()) if bank else "-"
        held = [bank["name"], str(bank["items"]), changes, _number(bank["seconds_per_turn"])] if bank else ["-"] * 4
        numbers = [_number(s[name]) for name in ("prompt_tokens", "output_tokens", "seconds", "cpu_seconds")]
        rows.append((s["system"], *held, *numbers))
    return Table("Costs, of the bank and of a question", heads, tuple(rows))


def _of(interval: Mapping[str, float] | None) -> float | None:
    return None if interval is None else interval["mean"]


def _pct(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _span(interval: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if signed else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────


def plot(summary: Mapping[str, Any], path: str | Path) -> None:
    """Draw F1 with its interval, of all questions and by category, as PNG. Needs the extra ``train`` (matplotlib)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "train") from error
    systems = summary["systems"]
    categories = sorted({name for s in systems for name in s["categories"]})
    groups = {"all": [s["f1"] for s in systems]}
    for name in categories:
        own = f"{name}: {CATEGORY_NAMES[name][0]}" if name in CATEGORY_NAMES else name or "uncategorised"
        groups[own] = [s["categories"].get(name, {}).get("f1") for s in systems]
    figure = Figure(figsize=(1.5 + len(groups) * (0.5 + 0.28 * len(systems)), 4.2), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(systems)
    for n, system in enumerate(systems):
        found = [(place + n * width, group[n]) for place, group in enumerate(groups.values()) if group[n] is not None]
        means = [100 * interval["mean"] for _, interval in found]
        low = [100 * (interval["mean"] - interval["low"]) for _, interval in found]
        high = [100 * (interval["high"] - interval["mean"]) for _, interval in found]
        axes.bar([x for x, _ in found], means, width, yerr=[low, high], capsize=2, label=system["system"])
    axes.set_xticks([place + width * (len(systems) - 1) / 2 for place in range(len(groups))], list(groups))
    axes.set_ylabel("F1, percent (95 % interval)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
