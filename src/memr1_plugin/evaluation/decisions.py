"""What a Memory Manager decides, against what is right: on synthetic conversations, whose gold operations are known.

Two measures. *Decisions*: each turn's facts beside the memories of a bank that has followed the gold so far, so that
one mistake does not make the next; a confusion matrix, and how often operation and target are both right. *Banks*: the
Manager keeps the whole conversation by itself; how many of the facts that were contradicted are still there (stale),
and how many of those that still hold are lost. Seeds are the caller's: take one that no LoRA was trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memr1_plugin.agents.belief import certain
from memr1_plugin.agents.engine import Engine
from memr1_plugin.agents.manager import Decision, Manager, union
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.evaluation import metrics
from memr1_plugin.evaluation.banks import AlwaysAdd, Banks, Kept, Progress, added_up
from memr1_plugin.evaluation.report import Table
from memr1_plugin.evaluation.systems import System
from memr1_plugin.evaluation.vectors import KeptEmbedder
from memr1_plugin.extraction import VerbatimExtractor
from memr1_plugin.operations import parse
from memr1_plugin.settings import Settings
from memr1_plugin.training.episodes import Replay, gold_operations
from memr1_plugin.training.synthetic import Synthetic
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Turn

KINDS = tuple(kind.value for kind in OperationKind)
REFUSED = "nothing"
"""What stands for a decision that could not be read, and changed nothing."""
AT_ONCE = 8
"""Decisions asked for at the same time, so that an engine can compute them together."""


@dataclass(frozen=True)
class Case:
    """One turn to decide on."""

    id: str
    facts: tuple[Fact, ...]
    related: tuple[tuple[MemoryItem, ...], ...]
    """For each fact, most related first."""
    gold: tuple[Operation, ...]
    """One for each fact. What should change a memory that retrieval did not find counts as an ADD."""
    unfound: bool
    """True when the memory that the turn is about was not among the related ones: retrieval's miss."""


def cases(synthetic: Iterable[Synthetic], embedder: Embedder, settings: Settings | None = None) -> Iterator[Case]:
    """Replay the conversations by their gold, and yield each turn that has facts, before it is applied."""
    for one in synthetic:
        replay = Replay(embedder, settings=settings)
        with replay.bank:
            for turn in one.conversation.turns:
                facts, gold = replay.facts(turn), one.gold[turn.id]
                related = tuple(tuple(replay.retriever.related(fact, turn.scope)) for fact in facts)
                shown = union(related)
                if facts:
                    unfound = bool(gold.target) and not any(gold.target in m.turn_ids for m in shown)
                    right = tuple(gold_operations(gold, facts, shown))
                    yield Case(f"{one.conversation.id}/{turn.id}", tuple(facts), related, right, unfound)
                replay.bank.apply(
                    turn.scope, gold_operations(gold, facts, replay.bank.items(turn.scope)), turns=[turn]
                )  # fmt: skip


@dataclass(frozen=True)
class Decided:
    """What one system decided about one fact: a line of ``decisions.jsonl``."""

    system: str
    case: str
    place: int
    """The fact's place in its turn."""
    fact: str
    gold: str
    said: str
    """The kind of operation that the model said, or `REFUSED`; that of the rule where no model was asked."""
    followed: str
    """The kind that was followed: what the memories do not bear out becomes an ADD (`agents.belief.restrain`)."""
    said_right: bool
    """The right operation, and of an UPDATE or DELETE the right memory."""
    followed_right: bool
    by_rule: bool
    unfound: bool


def decide(system: System, manager: Manager, case: Case) -> list[Decided]:
    """Ask a Manager about one turn."""
    decision = manager.decide(case.facts, case.related)
    said = _said(manager, case, decision)
    found = []
    for place, (fact, gold) in enumerate(zip(case.facts, case.gold, strict=True)):
        followed = [op for op in decision.operations if op.fact is fact]
        spoken = followed if said is None or place not in said else said[place]
        found.append(
            Decided(
                system=system.name,
                case=case.id,
                place=place,
                fact=fact.text,
                gold=gold.kind.value,
                said=_meaning(spoken)[0],
                followed=_meaning(followed)[0],
                said_right=_meaning(spoken) == (gold.kind.value, gold.target),
                followed_right=_meaning(followed) == (gold.kind.value, gold.target),
                by_rule=said is None or place not in said,
                unfound=case.unfound,
            )
        )
    return found


def _said(manager: Manager, case: Case, decision: Decision) -> dict[int, list[Operation]] | None:
    """What the model said of each fact that it was asked about, by place; None where it was not asked."""
    if decision.completion is None:
        return None
    pairs = list(enumerate(zip(case.facts, case.related, strict=True)))
    asked = [(n, f, r) for n, (f, r) in pairs if not (manager.settings.certain and certain(f, r))]
    parsed = parse(decision.completion.text, [f for _, f, _ in asked], union([r for _, _, r in asked]))
    return {n: [op for op in parsed.operations if op.fact is fact] for n, fact, _ in asked}


def _meaning(operations: Sequence[Operation]) -> tuple[str, int | None]:
    """What the operations on one fact come to: a kind, and the memory that is replaced or taken away.

    "DELETE 2; ADD" replaces memory 2 as an UPDATE does.
    """
    if not operations:
        return REFUSED, None
    last, deleted = operations[-1], [op.target for op in operations if op.kind is OperationKind.DELETE]
    if last.kind is OperationKind.ADD and deleted:
        return OperationKind.UPDATE.value, deleted[0]
    if last.kind is OperationKind.NOOP and deleted:
        return OperationKind.DELETE.value, deleted[0]
    return last.kind.value, last.target if last.kind is not OperationKind.NOOP else None


@dataclass(frozen=True)
class Contradicted:
    """A fact that a later turn replaced or withdrew."""

    old: str
    new: str
    """What contradicts it; "" where the turn left no fact."""
    kind: str
    """UPDATE (something else is true now) or DELETE (it is true no longer)."""
    asked: str
    """The question that the later turn answers, where there is one; else its own words."""
    by_question: bool
    stands: bool
    """True when `new` itself holds to the end: what was replaced again is rightly gone."""


def contradicted(one: Synthetic) -> list[Contradicted]:
    """Return the facts of a conversation that do not hold to its end."""
    texts, gone = first_facts(one), _gone(one)
    found = []
    for turn_id, gold in one.gold.items():
        if gold.kind in (OperationKind.UPDATE, OperationKind.DELETE) and gold.target in texts:
            asked = [q.text for q in one.conversation.questions if turn_id in q.evidence]
            said = next(turn.text for turn in one.conversation.turns if turn.id == turn_id)
            new = texts.get(turn_id, "")
            question = (asked or [new or said])[0]
            stands = turn_id not in gone
            found.append(Contradicted(texts[gold.target], new, gold.kind.value, question, bool(asked), stands))
    return found


def standing(one: Synthetic) -> list[str]:
    """Return the facts worth keeping that nothing contradicts."""
    gone = _gone(one)
    kept = (OperationKind.ADD, OperationKind.UPDATE)
    return [text for turn, text in first_facts(one).items() if one.gold[turn].kind in kept and turn not in gone]


def _gone(one: Synthetic) -> set[str | None]:
    """Ids of the turns whose facts a later turn replaced or withdrew."""
    return {g.target for g in one.gold.values() if g.kind in (OperationKind.UPDATE, OperationKind.DELETE)}


def first_facts(one: Synthetic) -> dict[str, str]:
    """Return by turn id the first fact that serving extracts, which is the one that gold operations are about."""
    found: dict[str, str] = {}
    before: dict[str, Turn] = {}
    for turn in one.conversation.turns:
        if facts := VerbatimExtractor().extract(turn, before.get(turn.session)):
            found[turn.id] = facts[0].text
        before[turn.session] = turn
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a conversation's facts in a bank that a system kept."""

    conversation: str
    stale_retrieved: tuple[bool, ...]
    """For each contradicted fact: is it among the memories shown for its question?"""
    stale_kept: tuple[bool, ...]
    """The same: is it in the bank at all?"""
    current_retrieved: tuple[bool, ...]
    """For each replaced fact whose replacement holds to the end: is that among the memories shown?"""
    lost: tuple[bool, ...]
    """For each fact that holds: is it in the bank no longer?"""
    items: int


def outcome(one: Synthetic, kept: Kept) -> Outcome:
    """Look for a conversation's facts in a bank. A memory that quotes a fact holds it."""
    held = [item.text for item in kept.bank.items(kept.scope)]
    found = contradicted(one)
    shown = [[item.text for item in kept.search(c.asked, kept.settings.candidates)] for c in found]
    return Outcome(
        one.conversation.id,
        tuple(_in(c.old, texts) for c, texts in zip(found, shown, strict=True)),
        tuple(_in(c.old, held) for c in found),
        tuple(
            _in(c.new, texts)
            for c, texts in zip(found, shown, strict=True)
            if c.kind == "UPDATE" and c.new and c.stands
        ),
        tuple(not _in(fact, held) for fact in standing(one)),
        len(held),
    )


def _in(fact: str, texts: Iterable[str]) -> bool:
    return any(fact in text for text in texts)


def evaluate(
    synthetic: Sequence[Synthetic],
    systems: Sequence[System],
    out: str | Path,
    *,
    engine_for: Callable[[System], Engine],
    embedder: Embedder,
    settings: Settings | None = None,
    progress: Progress = lambda what, done, of: None,
) -> dict[str, Any]:
    """Measure the Managers of some systems; returns the summary that ``summary.json`` holds, and writes ``table.md``.

    Decisions and banks are written as they come; the same call goes on where a stopped one was.

    Args:
        synthetic: held-out conversations with gold operations.
        systems: each with a Manager of its own ("managed").
        out: folder of the run.
        engine_for: gives the engine that serves a system's LoRAs.
    """
    if raw := [system.name for system in systems if system.reads != "managed"]:
        raise InputError(f"{', '.join(raw)}: no Manager to measure; expected systems that keep a managed bank.")
    folder, settings = Path(out), settings or Settings()
    folder.mkdir(parents=True, exist_ok=True)
    _same_run(folder, synthetic, systems, settings)
    kept_embedder = KeptEmbedder(embedder, folder / "vectors.db")
    try:
        all_cases = list(cases(synthetic, kept_embedder, settings))
        banks = Banks(folder / "banks", kept_embedder, settings)
        rows = []
        for system in systems:
            decided = _decide_all(system, all_cases, folder, engine_for, settings, progress)

            def engine(system: System = system) -> Engine:
                return engine_for(system)

            with banks.open(system, [one.conversation for one in synthetic], engine, progress) as kept:
                outcomes = [outcome(one, kept[one.conversation.id]) for one in synthetic]
                rows.append(_summary(system, decided, outcomes) | {"bank": added_up(banks.rows(system, kept))})
    finally:
        kept_embedder.close()
    changed = [c for one in synthetic for c in contradicted(one)]
    summary = {
        "conversations": len(synthetic),
        "turns": sum(len(one.conversation.turns) for one in synthetic),
        "contradicted": {"n": len(changed), "with_a_question": sum(c.by_question for c in changed)},
        "systems": rows,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    (folder / "table.md").write_text("\n\n".join(t.markdown() for t in tables(summary)) + "\n", encoding="utf-8")
    return summary


def _decide_all(
    system: System,
    all_cases: Sequence[Case],
    folder: Path,
    engine_for: Callable[[System], Engine],
    settings: Settings,
    progress: Progress,
) -> list[Decided]:
    place = folder / "decisions.jsonl"
    found = [one for one in _read(place) if one.system == system.name]
    known = {one.case for one in found}
    todo = [case for case in all_cases if case.id not in known]
    if not todo:
        return found
    manager = (AlwaysAdd if system.always_add else Manager)(engine_for(system), settings)
    with ThreadPoolExecutor(AT_ONCE) as threads, place.open("a", encoding="utf-8") as file:
        for start in range(0, len(todo), AT_ONCE):
            part = todo[start : start + AT_ONCE]
            for decided in threads.map(lambda case: decide(system, manager, case), part):
                file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in decided)
                found += decided
            file.flush()
            progress(f"{system.name}, decisions", start + len(part), len(todo))
    return found


def _read(place: Path) -> list[Decided]:
    """Return the decisions written so far. A turn that a killed run wrote half of is decided again."""
    if not place.exists():
        return []
    lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines) and whole:
        last = json.loads(whole[-1])
        whole = [line for line in whole if (json.loads(line)["system"], json.loads(line)["case"])
                 != (last["system"], last["case"])]  # fmt: skip
    if len(whole) < len(lines):
        place.write_text("".join(whole), encoding="utf-8")
    return [Decided(**json.loads(line)) for line in whole]


def _same_run(folder: Path, synthetic: Sequence[Synthetic], systems: Sequence[System], settings: Settings) -> None:
    mine = {
        "conversations": [one.conversation.id for one in synthetic],
        "settings": asdict(settings),
        "systems": {system.name: system.bank for system in systems},
    }
    mine = json.loads(json.dumps(mine))
    place = folder / "run.json"
    if place.exists():
        theirs = json.loads(place.read_text(encoding="utf-8"))
        shared = {name: bank for name, bank in mine["systems"].items() if name in theirs["systems"]}
        if any(theirs[n] != mine[n] for n in ("conversations", "settings")) or any(
            theirs["systems"][name] != bank for name, bank in shared.items()
        ):
            raise DataError(
                f"{folder} holds a run of other conversations, settings or Managers; expected the same, because its "
                "decisions would be mixed with these. Give another --out."
            )
        mine["systems"] = theirs["systems"] | mine["systems"]
    place.write_text(json.dumps(mine, indent=2), encoding="utf-8")


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────


def _summary(system: System, decided: Sequence[Decided], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    by_gold = {kind: [d for d in decided if d.gold == kind] for kind in KINDS}
    right = {kind: _share([d.followed_right for d in rows]) for kind, rows in by_gold.items()}
    return {
        "system": system.name,
        "facts": len(decided),
        "right": _share([d.followed_right for d in decided]),
        "right_as_said": _share([d.said_right for d in decided]),
        "right_by_gold": right,
        "balanced": _mean([share["mean"] for share in right.values() if share is not None]),
        "by_rule": sum(d.by_rule for d in decided),
        "wrong_target": sum(d.followed == d.gold and not d.followed_right for d in decided),
        "confusion": _confusion((d.gold, d.followed) for d in decided),
        "confusion_as_said": _confusion((d.gold, d.said) for d in decided),
        "unfound": len({d.case for d in decided if d.unfound}),
        "stale_retrieved": _share([x for o in outcomes for x in o.stale_retrieved]),
        "stale_kept": _share([x for o in outcomes for x in o.stale_kept]),
        "current_retrieved": _share([x for o in outcomes for x in o.current_retrieved]),
        "lost": _share([x for o in outcomes for x in o.lost]),
    }


def _confusion(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts = Counter(pairs)
    return {gold: {kind: counts[gold, kind] for kind in (*KINDS, REFUSED)} for gold in KINDS}


def _share(flags: Sequence[bool]) -> dict[str, Any] | None:
    return asdict(metrics.bootstrap([float(flag) for flag in flags])) if flags else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def tables(summary: dict[str, Any]) -> list[Table]:
    """Return the summary's tables: the figures, and each system's confusion matrix."""
    heads = ("system", "facts", "right", "as said", "balanced", *(f"of {kind}" for kind in KINDS))
    rows = [
        (s["system"], str(s["facts"]), _pct(s["right"]), _pct(s["right_as_said"]), f"{100 * (s['balanced'] or 0):.1f}",
         *(_pct(s["right_by_gold"][kind]) for kind in KINDS))
        for s in summary["systems"]
    ]  # fmt: skip
    n = summary["contradicted"]
    stale = ("system", "stale, retrieved", "stale, in the bank", "new fact retrieved", "lost", "items", "operations")
    fates = [
        (s["system"], *(_pct(s[name]) for name in ("stale_retrieved", "stale_kept", "current_retrieved", "lost")),
         str(s["bank"]["items"]), ", ".join(f"{n} {kind}" for kind, n in s["bank"]["changes"].items()))
        for s in summary["systems"]
    ]  # fmt: skip
    return [
        Table("Decisions, percent right in operation and target [95 %]", heads, tuple(rows)),
        Table(f"Banks, percent [95 %]: {n['n']} contradicted facts, {n['with_a_question']} asked by a question", stale,
              tuple(fates)),
        *(_matrix(s, key) for s in summary["systems"] for key in _distinct(s)),
    ]  # fmt: skip


def _distinct(summary: dict[str, Any]) -> list[str]:
    """The confusion matrices worth printing: one, where all that was said was followed."""
    both = ["confusion_as_said", "confusion"]
    return both if summary[both[0]] != summary[both[1]] else both[1:]


def _matrix(summary: dict[str, Any], key: str) -> Table:
    columns = (*KINDS, REFUSED)
    rows = tuple((gold, *(str(summary[key][gold][kind]) for kind in columns)) for gold in KINDS)
    what = "what the model said" if key == "confusion_as_said" else "what was followed"
    return Table(f"{summary['system']}: gold in rows, {what} in columns", ("gold", *columns), rows)


def _pct(share: dict[str, Any] | None) -> str:
    if share is None:
        return "-"
    mean, low, high = (100 * share[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}] of {share['n']}"
