"""The Answer Agent's supervised runs: python training/runs/smollm2_sft.py runs/answer-sft --longmemeval FILE

On the nf4 base, from an earlier LoRA: questions about what real people said (chitchat-dataset), synthetic
conversations, LongMemEval's evidence, plain statements to a bot, each beside what retrieval brings. A LoCoMo
conversation is only scored on. Started again with the same folder, it goes on. On two cores a process on each takes a
little over half of the time; make the data first:

    python training/runs/smollm2_sft.py runs/answer-sft --longmemeval FILE --prepare
    torchrun --nproc-per-node 2 training/runs/smollm2_sft.py runs/answer-sft --validation locomo_dev.json

The runs before the fifth packed several questions about one list of memories (training/LOG.md).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from peft import PeftModel

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.loading import load_tokenizer
from memr1_plugin.agents.models import find_loras, resolve
from memr1_plugin.agents.setup import prepare
from memr1_plugin.embedding import Embedder, as_embedder
from memr1_plugin.evaluation.datasets import load
from memr1_plugin.training import episodes, examples, lora, sft, sources
from memr1_plugin.training.base import load_trainable
from memr1_plugin.training.examples import of_answers
from memr1_plugin.training.sft import Example
from memr1_plugin.training.shared import POLICY, SharedBase
from memr1_plugin.training.validation import score_answers

CONVERSATIONS = Path(__file__).parent.parent / "conversations"


@dataclass(frozen=True)
class Mix:
    """What a run learns from."""

    seed: int
    chats: tuple[sources.Amount, ...]
    """Real small talk."""
    synthetic: tuple[tuple[sources.Amount, int], ...]
    """Each with its topics of reasons and opinions."""
    questions: int
    """About synthetic conversations, at most."""
    plain: sources.Amount
    statements: int = 0
    """Questions about plain statements, at most; 0: all."""
    abstaining: int = examples.UNANSWERABLE
    """For so many of these, one that nothing answers."""
    longmemeval: int = 0
    """Questions of LongMemEval, at most; 0: all."""
    lists: sources.Amount | None = None
    """Several things named in one breath."""
    enumerated: int = 0
    """Questions about them, at most; 0: all."""
    asked: sources.Amount | None = None
    """Real small talk in which people ask each other and reply."""
    written: tuple[str, ...] = ()
    """Files of `CONVERSATIONS`: months of talk and questions about it, written for this project."""


def _mostly(written: str, seed: int, *, plain: int = 30, statements: int = 100) -> Mix:
    """Conversations written for this project, and a little of all the rest, so that it is not forgotten."""
    return Mix(
        seed,
        (sources.Amount(seed + 900, 10),),
        ((sources.Amount(seed, 3), 4),),
        40,
        sources.Amount(seed, plain),
        statements,
        abstaining=6,
        longmemeval=40,
        lists=sources.Amount(seed, 6),
        enumerated=40,
        written=(written,),
    )


MIXES = {
    "first": Mix(
        8400,
        (sources.Amount(7300, 110), sources.Amount(9300, 110)),
        ((sources.Amount(7300, 30), 3), (sources.Amount(8400, 40), 12)),
        1_200,
        sources.Amount(8400, 35),
    ),
    "last": Mix(
        12400,
        (sources.Amount(11300, 130), sources.Amount(13300, 130)),
        ((sources.Amount(12400, 14), 4),),
        350,
        sources.Amount(12400, 20),
        70,
    ),
    "more": Mix(
        16400,
        (sources.Amount(15300, 130), sources.Amount(17300, 110)),
        ((sources.Amount(16400, 14), 4),),
        300,
        sources.Amount(16400, 120),
        320,
        abstaining=6,
    ),
    "lists": Mix(
        20400,
        (sources.Amount(21300, 24),),
        ((sources.Amount(20400, 5), 4),),
        60,
        sources.Amount(20400, 30),
        70,
        abstaining=6,
        longmemeval=60,
        lists=sources.Amount(20400, 40),
        enumerated=320,
    ),
    "replies": Mix(
        24400,
        (),
        ((sources.Amount(24400, 8), 4),),
        120,
        sources.Amount(24400, 50),
        130,
        abstaining=6,
        longmemeval=70,
        lists=sources.Amount(24400, 12),
        enumerated=70,
        asked=sources.Amount(25300, 165),
    ),
    "written": Mix(
        28400,
        (sources.Amount(29300, 16),),
        ((sources.Amount(28400, 4), 4),),
        50,
        sources.Amount(28400, 40),
        130,
        abstaining=6,
        longmemeval=60,
        lists=sources.Amount(28400, 8),
        enumerated=50,
        written=("asked_otherwise",),
    ),
    "plainly": _mostly("asked_plainly", 32400),
    "several": _mostly("asked_for_several", 36400),
    "long": _mostly("long", 40400, plain=80, statements=260),
}
"""What taught the prompt with the question first; a last stretch from there, mostly on real talk; another one, with
more plain statements, of which that had cost what was known before; one in which nothing named is left out; and one of
questions that people asked each other, which did harm; and four of conversations written for this project
(training/LOG.md)."""


def data(mix: Mix, embedder: Embedder, longmemeval: str) -> tuple[list[Example], dict[str, str]]:
    """The examples, mixed, and what they are."""
    lines, rng = sources.chatter(), random.Random(mix.seed)
    chats = [sources.chat_episodes(amount, embedder) for amount in mix.chats]
    chats += [sources.chat_episodes(mix.asked, embedder, most=6, replied=True)] if mix.asked else []
    told = (sources.synthetic_episodes(amount, embedder, lines, talking=topics) for amount, topics in mix.synthetic)
    real = sources.longmemeval_episodes(longmemeval, embedder, lines, rounds=1, seed=mix.seed)
    plain = sources.statement_episodes(mix.plain, embedder)
    parts = {
        "questions about chitchat-dataset dialogues (MIT)": of_answers(list(chain.from_iterable(chain(*chats))), rng),
        "synthetic conversations": of_answers(
            list(chain.from_iterable(chain(*told))), rng, invented=True, most=mix.questions
        ),
        "LongMemEval evidence (MIT) with chitchat-dataset turns": of_answers(
            list(chain.from_iterable(real)), rng, invented=True, most=mix.longmemeval
        ),
        "plain statements to a bot": of_answers(
            list(chain.from_iterable(plain)),
            rng,
            invented=True,
            most=mix.statements,
            unanswerable=mix.abstaining,
        ),
    }
    if mix.lists:
        named = sources.list_episodes(mix.lists, embedder, lines)
        parts["several things named in one breath"] = of_answers(
            list(chain.from_iterable(named)), rng, invented=True, most=mix.enumerated
        )
    if mix.written:
        written = (one for name in mix.written for one in load(CONVERSATIONS / f"{name}.jsonl"))
        asked = [episode for one in written for episode in episodes.answer_episodes(one, embedder)]
        parts["conversations written for this project"] = of_answers(asked, rng)
    found = [example for made in parts.values() for example in made]
    rng.shuffle(found)
    return found, {name: f"{len(made):,} examples" for name, made in parts.items()}


def main() -> None:
    """Parse the command line, build the data once, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--longmemeval", help="LongMemEval's evidence turns; needed to make the data")
    parser.add_argument("--mix", choices=MIXES, default="last")
    parser.add_argument("--prepare", action="store_true", help="make the data and stop")
    parser.add_argument("--validation", default="", help="a file of conversations with questions")
    parser.add_argument("--only", default="conv-30")
    parser.add_argument(
        "--go-on-from", dest="start", default="", help="folder of the LoRA to go on from; default: the shipped one"
    )
    parser.add_argument("--rate", type=float, default=2e-4)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    weights = prepare(resolve(None))
    embedder = as_embedder(None)
    cache, counted = given.folder / "examples.jsonl", given.folder / "counts.json"
    if not cache.exists():
        if not given.longmemeval:
            parser.error(f"{cache} is not there yet; name LongMemEval's evidence turns with --longmemeval to make it.")
        found, counts = data(MIXES[given.mix], embedder, given.longmemeval)
        counted.write_text(json.dumps(counts, indent=2))
        examples.save(found, cache)
    if given.prepare:
        print(cache, counted.read_text())
        return
    found, counts = examples.load(cache), json.loads(counted.read_text())
    first, processes = int(os.environ.get("RANK", "0")) == 0, int(os.environ.get("WORLD_SIZE", "1"))
    held = [c for c in load(given.validation) if c.id == given.only] if given.validation else []
    asked = [e for c in held for e in episodes.answer_episodes(c, embedder) if e.question.answer][::2]
    tokenizer = load_tokenizer(weights.path)
    start = given.start or find_loras(weights.name)[Role.ANSWER]
    model = PeftModel.from_pretrained(load_trainable(weights.path), str(start), is_trainable=True)
    engine = SharedBase(model, tokenizer, {Role.ANSWER: POLICY}, batch_size=8)
    trainer = sft.train(
        model,
        tokenizer,
        found,
        sft.config(
            given.folder,
            seed=0,
            learning_rate=given.rate,
            warmup_steps=10,
            gradient_accumulation_steps=max(1, 4 // processes),
        ),
        max_tokens=600,  # one example: two processes share a step of four
        save_minutes=6.0,
        score=(lambda step: score_answers(engine, asked) if first else {}) if asked else None,
        score_steps=150,
    )
    if not first:
        return
    run = lora.TrainingRun.of(
        Role.ANSWER,
        resolve(None),
        sft.data_hash(found),
        0,
        data=counts,
        metrics={"steps": trainer.state.global_step, **(score_answers(engine, asked) if asked else {})},
        settings={"learning rate": given.rate, "examples": len(found)},
    )
    lora.save(model, given.folder / "final", run)
    print(given.folder / "final", list(itertools.islice(run.metrics.items(), 6)))


if __name__ == "__main__":
    main()
