"""The Memory Manager's supervised run: python training/runs/smollm2_manager.py runs/manager --longmemeval FILE

On the nf4 base, from an earlier LoRA: synthetic conversations full of changes, plain statements to a bot, and
LongMemEval's evidence, all of it to be added; each fact beside what serving would show with it. Started again with the
same folder, it goes on. The first run with today's prompt (no dates, no headings, no name of whoever speaks) went on
from the LoRA of the prompt before, whose prompt hash was replaced by hand (training/LOG.md).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from peft import PeftModel

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.loading import load_tokenizer
from memr1_plugin.agents.models import find_loras, resolve
from memr1_plugin.agents.setup import prepare
from memr1_plugin.embedding import Embedder, as_embedder
from memr1_plugin.training import examples, lora, sft, sources
from memr1_plugin.training.base import load_trainable
from memr1_plugin.training.sft import Example
from memr1_plugin.training.shared import POLICY, SharedBase
from memr1_plugin.training.sources import Amount

HELD = (Amount(53300, 8), 60)
"""Synthetic conversations and plain statements that are only scored on."""
STATEMENTS = 320


def made(folder: Path, name: str, amount: Amount, plain: int, embedder: Embedder, longmemeval: str) -> list[Example]:
    """Return examples, made once a folder."""
    cache = folder / f"{name}.jsonl"
    if not cache.exists():
        examples.save(sources.operation_examples(amount, embedder, longmemeval=longmemeval, plain=plain), cache)
    return examples.load(cache)


def right(engine: SharedBase, held: list[Example]) -> dict[str, float]:
    """Return the share of examples whose greedy completion is the gold one, operation by operation."""
    done = engine.complete([e.prompt for e in held], Role.MANAGER)
    found: dict[str, list[bool]] = {}
    for example, completion in zip(held, done, strict=True):
        found.setdefault(example.completion.split()[0], []).append(
            completion.text.strip() == example.completion.strip()
        )
    shares = {f"right of {len(hits)} {kind}": sum(hits) / len(hits) for kind, hits in sorted(found.items())}
    return {**shares, "right": sum(map(sum, found.values())) / len(held)}


def main() -> None:
    """Parse the command line, build the data once, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--longmemeval", default="", help="LongMemEval's evidence turns; without, none")
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=43300)
    parser.add_argument("--go-on-from", dest="start", default="", help="folder of a LoRA; default: the shipped one")
    parser.add_argument("--rate", type=float, default=2e-4)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    weights, embedder = prepare(resolve(None)), as_embedder(None)
    amount = Amount(given.seed, given.conversations)
    found = made(given.folder, "examples", amount, STATEMENTS, embedder, given.longmemeval)
    held = made(given.folder, "held", *HELD, embedder, "")
    held = random.Random(0).sample(held, min(160, len(held)))
    tokenizer = load_tokenizer(weights.path)
    start = given.start or find_loras(weights.name)[Role.MANAGER]
    model = PeftModel.from_pretrained(load_trainable(weights.path), str(start), is_trainable=True)
    engine = SharedBase(model, tokenizer, {Role.MANAGER: POLICY}, batch_size=8)
    trainer = sft.train(
        model,
        tokenizer,
        found,
        sft.config(given.folder, seed=0, learning_rate=given.rate, warmup_steps=5),
        save_minutes=6.0,
        score=lambda step: right(engine, held),
        score_steps=20,
    )
    run = lora.TrainingRun.of(
        Role.MANAGER,
        resolve(None),
        sft.data_hash(found),
        0,
        data={"examples": f"{len(found):,}: {given.conversations} synthetic conversations of seed {given.seed}"},
        metrics={"steps": trainer.state.global_step, **right(engine, held)},
        settings={"learning rate": given.rate},
    )
    lora.save(model, given.folder / "final", run)
    print(given.folder / "final", run.metrics)


if __name__ == "__main__":
    main()
