"""Fewer calls: how many facts need no model at which `Settings.related_floor`, and what that loses.

    python benchmarks/certain.py --longmemeval longmemeval_oracle_evidence_turns.jsonl --conversations 12

A fact that by the look of it changes no related memory is an ADD by rule, an exact duplicate a NOOP (`agents.belief`);
the row marked "bearing" asks about whatever a fact could bear on, "floor alone" about everything related. The gold is
that of synthetic conversations, whose bank is kept as the gold operations say; and of LongMemEval's knowledge updates,
where a later turn replaces what an earlier one said, in a bank with the evidence of the questions before it. Real
dialogue (--dialogue, a LoCoMo conversation whose every turn is added) has no gold, and shows how often a model is
asked. No model is called: what is counted is what the rule decides and whether it could have been right, and whether
the memory to change is among those that the Manager would be shown.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1_plugin.agents.belief import bears_on, certain, in_question
from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import Embedder, as_embedder
from memr1_plugin.evaluation.datasets import Conversation, load
from memr1_plugin.extraction import VerbatimExtractor
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.training.synthetic import Synthetic, conversations
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Scope, Turn

FLOORS = (0.0, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
DEEP = 60
"""Memories ranked once, of which each floor then takes its own."""
ADD = OperationKind.ADD


@dataclass(frozen=True)
class Rule:
    """What is shown to the Manager: related memories, or those of them that the fact bears on."""

    floor: float
    k: int
    by: str = "as served"
    """Or "bearing": `belief.bears_on`, without the look of a change; or "floor alone": whatever is related."""


@dataclass(frozen=True)
class Case:
    """One fact as it comes in: what is related to it, and what should become of it."""

    fact: Fact
    ranked: list[MemoryItem]
    """Best first, each with its relevance as score."""
    kind: OperationKind
    targets: frozenset[int]
    """Memories that it changes, withdraws or repeats; empty for an ADD."""

    def shown(self, rule: Rule) -> list[MemoryItem]:
        """Return what the Manager would be shown."""
        near = [item for item in self.ranked if (item.score or 0.0) >= rule.floor][: rule.k]
        if rule.by == "as served":
            return in_question(self.fact, near, Settings())
        return [item for item in near if rule.by == "floor alone" or bears_on(self.fact, item, Settings())]


def synthetic_cases(one: Synthetic, embedder: Embedder) -> Iterator[Case]:
    """Walk a synthetic conversation, keeping the bank as its gold operations say."""
    place: dict[str, int] = {}
    with Bank.open(":memory:", embedder) as bank:
        retriever, extractor = Retriever(bank, embedder, Settings()), VerbatimExtractor()
        for turn in one.conversation.turns:
            bank.record([turn])
            gold = one.gold.get(turn.id)
            facts = extractor.extract(turn, bank.previous_turn(turn))
            if gold is None or not facts:
                continue
            target = place.get(gold.target or "")
            yield _case(retriever, facts[0], turn.scope, gold.kind, [] if target is None else [target])
            changes = bank.apply(turn.scope, _operations(gold.kind, facts[0], target), turns=[turn])
            for change in changes:
                if change.kind in (ADD, OperationKind.UPDATE) and change.item_id is not None:
                    place[turn.id] = change.item_id


def _operations(kind: OperationKind, fact: Fact, target: int | None) -> list[Operation]:
    if kind is ADD or target is None:
        return [Operation(ADD, fact)] if kind in (ADD, OperationKind.UPDATE) else []
    if kind is OperationKind.NOOP:
        return [Operation(kind, fact)]
    return [Operation(kind, fact, target=target)]


def _case(retriever: Retriever, fact: Fact, scope: Scope, kind: OperationKind, targets: Sequence[int]) -> Case:
    ranked = retriever.ranked(f"{fact.speaker}: {fact.text}", scope, DEEP, floor=0.0, told=True)
    return Case(fact, [item for item, _ in ranked], kind, frozenset(targets))


def update_cases(path: Path, embedder: Embedder, most: int) -> Iterator[list[Case]]:
    """Yield the facts of each turn that updates knowledge; the bank holds what was said before, of all questions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["question_type"] == "knowledge-update" and len(row["evidence_sessions"]) > 1]
    scope = Scope("longmemeval")
    with Bank.open(":memory:", embedder) as bank:
        retriever, extractor = Retriever(bank, embedder, Settings()), VerbatimExtractor()
        for row in rows[:most]:
            old: list[int] = []
            for n, session in enumerate(row["evidence_sessions"]):
                for k, said in enumerate(t["content"] for t in session["turns"] if t["role"] == "user"):
                    turn = Turn(said, "user", scope, id=f"{row['question_id']}-{n}-{k}")
                    bank.record([turn])
                    facts = extractor.extract(turn, None)
                    if old:
                        yield [_case(retriever, fact, scope, OperationKind.UPDATE, old) for fact in facts]
                    changes = bank.apply(scope, [Operation(ADD, fact) for fact in facts], turns=[turn])
                    old += [change.item_id for change in changes if change.item_id is not None]


def dialogue_cases(conversation: Conversation, embedder: Embedder) -> Iterator[Case]:
    """Walk a dialogue and add every fact."""
    with Bank.open(":memory:", embedder) as bank:
        retriever, extractor = Retriever(bank, embedder, Settings()), VerbatimExtractor()
        for turn in conversation.turns:
            bank.record([turn])
            facts = extractor.extract(turn, bank.previous_turn(turn))
            yield from [_case(retriever, fact, turn.scope, ADD, []) for fact in facts]
            bank.apply(turn.scope, [Operation(ADD, fact) for fact in facts], turns=[turn])


def row_of(
    rule: Rule, synthetic: Sequence[Case], updates: Sequence[Sequence[Case]], dialogue: Sequence[Case]
) -> dict[str, Any]:
    """Return one rule's row."""
    adds = [case for case in synthetic if case.kind is ADD]
    small = [case for case in synthetic if case.kind is OperationKind.NOOP and not case.targets]
    changes = [case for case in synthetic if case.targets]
    turns = [[case for case in turn if case.shown(rule)] for turn in updates]
    return {
        "floor": f"{rule.floor}" if rule.by == "as served" else f"{rule.floor}, {rule.by}",
        "facts without a call": _share(_by(c, rule) is not None for c in synthetic),
        "ADDs by rule": _share(_by(c, rule) is ADD for c in adds),
        "ADDs lost": _share(_by(c, rule) is OperationKind.NOOP for c in adds),
        "small talk kept": _share(_by(c, rule) is ADD for c in small),
        "changes missed": _share(_by(c, rule) is ADD for c in changes),
        "memory to change shown": _share(_sees(c, rule) for c in changes),
        "memories shown": sum(len(case.shown(rule)) for case in synthetic) / max(1, len(synthetic)),
        "updates that reach the Manager": _share(map(bool, turns)),
        "with the old fact shown": _share(any(_sees(c, rule) for c in turn) for turn in turns),
        "dialogue: facts without a call": _share(_by(c, rule) is not None for c in dialogue),
        "dialogue: memories shown": sum(len(c.shown(rule)) for c in dialogue) / max(1, len(dialogue)),
    }


def _share(found: Iterable[bool]) -> float:
    kept = list(found)
    return sum(kept) / max(1, len(kept))


def _by(case: Case, rule: Rule) -> OperationKind | None:
    operation = certain(case.fact, case.shown(rule))
    return None if operation is None else operation.kind


def _sees(case: Case, rule: Rule) -> bool:
    return bool(case.targets & {item.id for item in case.shown(rule)})


def main() -> None:
    """Collect the cases once, then try every floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longmemeval", type=Path, help="evidence turns, one question a line")
    parser.add_argument("--conversations", type=int, default=12, help="synthetic ones")
    parser.add_argument("--seed", type=int, default=8100, help="of the synthetic ones; training used others")
    parser.add_argument("--changing", type=float, default=0.5, help="share of tellings that change an earlier one")
    parser.add_argument("--updates", type=int, default=1_000, help="most knowledge updates")
    parser.add_argument("--dialogue", type=Path, help="LoCoMo's file")
    parser.add_argument("--id", default="conv-30", help="of the conversation in it")
    parser.add_argument("--related", type=int, default=Settings().related, help="memories shown to the Manager")
    args = parser.parse_args()
    embedder = as_embedder(None)
    made = conversations(args.seed, args.conversations, changing=args.changing)
    synthetic = [case for one in made for case in synthetic_cases(one, embedder)]
    updates = list(update_cases(args.longmemeval, embedder, args.updates)) if args.longmemeval else []
    real = [c for c in load(args.dialogue) if c.id == args.id] if args.dialogue else []
    dialogue = [case for one in real for case in dialogue_cases(one, embedder)]
    rules = [Rule(floor, args.related) for floor in FLOORS] + [
        Rule(Settings().related_floor, args.related, by) for by in ("bearing", "floor alone")
    ]
    rows = [row_of(rule, synthetic, updates, dialogue) for rule in rules]
    kinds = Counter(
        "small talk" if case.kind is OperationKind.NOOP and not case.targets else case.kind.value for case in synthetic
    )
    print(f"{len(synthetic)} synthetic facts ({dict(kinds)}), {len(dialogue)} of a dialogue")
    print(f"{len(updates)} turns that update knowledge")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(v if isinstance(v, str) else f"{v:.3g}" for v in row.values()) + " |")


if __name__ == "__main__":
    main()
