"""The Answer Agent's supervised runs: python training/runs/smollm2_sft.py runs/answer-sft --longmemeval FILE

On the nf4 base, from an earlier LoRA: questions about what real people said (chitchat-dataset), synthetic
conversations, LongMemEval's evidence, plain statements to a bot. A LoCoMo conversation is only scored on. Started again
with the same folder, it goes on. The third run had --chats 110 --chat-lists 4 --conversations 50 --lists 3 --plain 40
--talking 3 and seed 7300; the defaults are the fourth's.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from peft import PeftModel

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.loading import load_tokenizer
from memr1_plugin.agents.models import find_loras, resolve
from memr1_plugin.agents.setup import prepare
from memr1_plugin.embedding import Embedder, as_embedder
from memr1_plugin.evaluation.datasets import load
from memr1_plugin.training import episodes, lora, sft, sources, statements
from memr1_plugin.training.base import load_trainable
from memr1_plugin.training.shared import POLICY, SharedBase
from memr1_plugin.training.validation import score_answers

SEED = 8400


def data(embedder: Embedder, given: argparse.Namespace) -> tuple[list[Any], dict[str, str]]:
    """The groups, mixed, and what they are."""
    lines = sources.chatter()
    parts = {
        "questions about chitchat-dataset dialogues (MIT)": sources.chat_groups(
            sources.Amount(SEED, given.chats, given.chat_lists), embedder
        ),
        "synthetic conversations": sources.synthetic_groups(
            sources.Amount(SEED, given.conversations, given.lists), embedder, lines, talking=given.talking
        ),
        "LongMemEval evidence (MIT) with chitchat-dataset turns": sources.longmemeval_groups(
            given.longmemeval, embedder, lines, rounds=1, seed=SEED
        ),
        "plain statements to a bot": statements.questions(SEED, given.plain),
    }  # fmt: skip
    found: list[Any] = []
    counts = {}
    for name, groups in parts.items():
        made = list(groups)
        counts[name] = f"{sum(map(len, made)):,} examples in {len(made)} lists, seed {SEED}"
        print(name, counts[name], flush=True)
        found += made
    return sources.mixed(found, SEED), counts


def main() -> None:
    """Parse the command line, build the data once, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--longmemeval", required=True, help="LongMemEval's evidence turns")
    parser.add_argument("--validation", default="", help="a file of conversations with questions")
    parser.add_argument("--only", default="conv-30")
    parser.add_argument("--start", default="", help="folder of the LoRA to go on from; default: the shipped one")
    parser.add_argument("--chats", type=int, default=70, help="conversations of real small talk")
    parser.add_argument("--chat-lists", type=int, default=2, help="lists of memories from each")
    parser.add_argument("--conversations", type=int, default=60, help="synthetic ones")
    parser.add_argument("--lists", type=int, default=7, help="lists of memories from each")
    parser.add_argument("--talking", type=int, default=12, help="topics of reasons and opinions to eight others")
    parser.add_argument("--plain", type=int, default=20, help="lists of plain statements")
    parser.add_argument("--rate", type=float, default=3e-4)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    weights = prepare(resolve(None))
    embedder = as_embedder(None)
    cache, counted = given.folder / "examples.jsonl", given.folder / "counts.txt"
    if cache.exists():
        groups, counts = episodes.load(cache), dict(line.split("\t") for line in counted.read_text().splitlines())
    else:
        groups, counts = data(embedder, given)
        counted.write_text("\n".join("\t".join(row) for row in counts.items()))
        episodes.save(groups, cache)
    held = [c for c in load(given.validation) if c.id == given.only] if given.validation else []
    asked = [e for c in held for e in episodes.answer_episodes(c, embedder) if e.question.answer][::2]
    tokenizer = load_tokenizer(weights.path)
    start = given.start or find_loras(weights.name)[Role.ANSWER]
    model = PeftModel.from_pretrained(load_trainable(weights.path), str(start), is_trainable=True)
    engine = SharedBase(model, tokenizer, {Role.ANSWER: POLICY}, batch_size=8)
    trainer = sft.train(
        model,
        tokenizer,
        groups,
        sft.config(given.folder, seed=0, learning_rate=given.rate, warmup_steps=10),
        max_tokens=1100,
        save_minutes=6.0,
        score=(lambda step: score_answers(engine, asked)) if asked else None,
        score_steps=40,
    )
    run = lora.TrainingRun.of(
        Role.ANSWER,
        resolve(None),
        sft.data_hash(groups),
        0,
        data=counts,
        metrics={"steps": trainer.state.global_step, **(score_answers(engine, asked) if asked else {})},
        settings={"learning rate": given.rate, "rows": len(groups)},
    )
    lora.save(model, given.folder / "final", run)
    print(given.folder / "final", list(itertools.islice(run.metrics.items(), 6)))


if __name__ == "__main__":
    main()
