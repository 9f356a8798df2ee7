"""Fewer calls: how many facts need no model at which `Settings.related_floor`, and what that loses.

    python benchmarks/certain.py --longmemeval longmemeval_oracle_evidence_turns.jsonl --conversations 12

A fact with nothing related is an ADD by rule, an exact duplicate a NOOP (`agents.manager.certain`). The gold is
that of synthetic conversations, whose bank is kept as the gold operations say; and of LongMemEval's
knowledge updates, where a later turn replaces what an earlier one said, in a bank with the evidence of the questions
before it. No model is called: what is counted is what the rule decides and whether it could have been right, and
whether the memory to change is among those that the Manager would be shown.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1_plugin.agents.manager import certain
from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import Embedder, as_embedder
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
class Case:
    """One fact as it comes in: what is related to it, and what should become of it."""

    fact: Fact
    ranked: list[MemoryItem]
    """Best first, each with its relevance as score."""
    kind: OperationKind
    targets: frozenset[int]
    """Memories that it changes, withdraws or repeats; empty for an ADD."""

    def shown(self, floor: float, k: int) -> list[MemoryItem]:
        """Return what the Manager would be shown."""
        return [item for item in self.ranked if (item.score or 0.0) >= floor][:k]


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
    ranked = retriever.search(f"{fact.speaker}: {fact.text}", scope, DEEP, floor=0.0)
    return Case(fact, ranked, kind, frozenset(targets))


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


def row_of(floor: float, k: int, synthetic: Sequence[Case], updates: Sequence[Sequence[Case]]) -> dict[str, Any]:
    """Return one floor's row."""
    adds = [case for case in synthetic if case.kind is ADD]
    small = [case for case in synthetic if case.kind is OperationKind.NOOP and not case.targets]
    changes = [case for case in synthetic if case.targets]
    turns = [[case for case in turn if case.shown(floor, k)] for turn in updates]
    return {
        "floor": floor,
        "facts without a call": sum(_rule(c, floor, k) is not None for c in synthetic) / len(synthetic),
        "ADDs by rule": sum(_rule(c, floor, k) is ADD for c in adds) / max(1, len(adds)),
        "ADDs lost": sum(_rule(c, floor, k) is OperationKind.NOOP for c in adds) / max(1, len(adds)),
        "small talk kept": sum(_rule(c, floor, k) is ADD for c in small) / max(1, len(small)),
        "changes missed": sum(_rule(c, floor, k) is ADD for c in changes) / max(1, len(changes)),
        "memory to change shown": sum(_sees(c, floor, k) for c in changes) / max(1, len(changes)),
        "memories shown": sum(len(case.shown(floor, k)) for case in synthetic) / len(synthetic),
        "updates that reach the Manager": sum(map(bool, turns)) / max(1, len(turns)),
        "with the old fact shown": sum(any(_sees(c, floor, k) for c in turn) for turn in turns) / max(1, len(turns)),
    }


def _rule(case: Case, floor: float, k: int) -> OperationKind | None:
    operation = certain(case.fact, case.shown(floor, k))
    return None if operation is None else operation.kind


def _sees(case: Case, floor: float, k: int) -> bool:
    return bool(case.targets & {item.id for item in case.shown(floor, k)})


def main() -> None:
    """Collect the cases once, then try every floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longmemeval", type=Path, help="evidence turns, one question a line")
    parser.add_argument("--conversations", type=int, default=12, help="synthetic ones")
    parser.add_argument("--seed", type=int, default=8100, help="of the synthetic ones; training used others")
    parser.add_argument("--changing", type=float, default=0.5, help="share of tellings that change an earlier one")
    parser.add_argument("--updates", type=int, default=1_000, help="most knowledge updates")
    parser.add_argument("--related", type=int, default=Settings().related, help="memories shown to the Manager")
    args = parser.parse_args()
    embedder = as_embedder(None)
    made = conversations(args.seed, args.conversations, changing=args.changing)
    synthetic = [case for one in made for case in synthetic_cases(one, embedder)]
    updates = list(update_cases(args.longmemeval, embedder, args.updates)) if args.longmemeval else []
    rows = [row_of(floor, args.related, synthetic, updates) for floor in FLOORS]
    kinds = Counter(
        "small talk" if case.kind is OperationKind.NOOP and not case.targets else case.kind.value for case in synthetic
    )
    print(f"{len(synthetic)} synthetic facts ({dict(kinds)}), {len(updates)} turns that update knowledge")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
