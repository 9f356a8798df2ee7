"""The LoRA that questions are embedded with: python training/runs/minilm_questions.py runs/question

MiniLM was trained on short texts from everywhere. What answers a question here is one turn among hundreds by the same
two people about the same things, so it is trained further on months of talk written for this project
(`training/conversations`): a question's vector is drawn to the memories that answer it and away from the rest of its
conversation. Only questions are read with the LoRA, memories as ever: a bank's vectors stay as they are, and training
computes them once. The loss is dense passage retrieval's (Karpukhin et al., EMNLP 2020). Some ten minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from memr1_plugin.agents.models import MINILM, embedder_folder
from memr1_plugin.bank.embedded import Embedded
from memr1_plugin.embedding import Embedder
from memr1_plugin.evaluation.datasets import Conversation, load
from memr1_plugin.minilm import MAX_TOKENS, QUESTIONS, MiniLMEmbedder, mean_over_tokens
from memr1_plugin.ranking import named_in, without_names
from memr1_plugin.training.episodes import Replay, prepared
from memr1_plugin.training.lora import TrainingRun, save

CONVERSATIONS = Path(__file__).parent.parent / "conversations"
FILES = ["asked_otherwise", "asked_plainly", "asked_for_several"]
"""What the LoRA that ships was trained on."""
SHARPNESS = 20.0
"""The inverse temperature of the softmax over cosines."""
TOGETHER = 16
"""Questions of one conversation in a step."""


@dataclass(frozen=True)
class Asked:
    """A conversation's memories, as plain MiniLM reads both of their views, and its questions."""

    views: tuple[torch.Tensor, torch.Tensor]
    """(memories, 384) each."""
    questions: list[tuple[str, list[int]]]
    """Without the speakers' names, as retrieval embeds them; and the places of the memories that answer."""


def asked_of(conversation: Conversation, embedder: Embedder) -> Asked:
    """Tell a conversation to a bank that adds everything, and look up what its questions rest on."""
    cached = prepared(conversation, embedder)
    replay = Replay(cached)
    for turn in conversation.turns:
        replay.tell(turn)
    items = replay.bank.items(conversation.scope)
    texts = [Embedded.texts_of(item) for item in items]
    speakers = {item.speaker for item in items}
    found = []
    for question in conversation.questions:
        evidence = set(question.evidence)
        places = [n for n, item in enumerate(items) if evidence & set(item.turn_ids)]
        if places:
            found.append((without_names(question.text, named_in(question.text, speakers)), places))
    views = [torch.tensor(cached.embed([view[k] for view in texts])) for k in (0, -1)]
    replay.bank.close()
    return Asked((views[0], views[1]), found)


class Reader:
    """MiniLM with a fresh LoRA, for questions."""

    def __init__(self, rank: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(embedder_folder(), local_files_only=True)
        base = AutoModel.from_pretrained(embedder_folder(), local_files_only=True)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.05,
            target_modules=["query", "key", "value", "dense"],
            exclude_modules=["pooler.dense"],
        )
        self.model = get_peft_model(base, config)

    def __call__(self, questions: Sequence[str]) -> torch.Tensor:
        """Return (questions, 384) unit vectors."""
        given = self.tokenizer(
            list(questions), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return torch.nn.functional.normalize(mean_over_tokens(self.model, given), dim=-1)


def loss(reader: Reader, one: Asked, places: Sequence[int], rng: random.Random) -> torch.Tensor:
    """Minus the log of the share that the answering memories have in the softmax over all memories, in one view."""
    chosen = [one.questions[n] for n in places]
    scores = SHARPNESS * reader([text for text, _ in chosen]) @ rng.choice(one.views).T
    right = torch.stack([torch.logsumexp(row[found], 0) for row, (_, found) in zip(scores, chosen, strict=True)])
    return (torch.logsumexp(scores, 1) - right).mean()


@torch.inference_mode()
def found_first(reader: Reader, held: Sequence[Asked]) -> dict[str, float]:
    """Share of questions with a memory that answers among the first 1, 3 and 10, by the better cosine alone."""
    reader.model.eval()
    ranks = []
    for one in held:
        vectors = reader([text for text, _ in one.questions])
        order = torch.maximum(*(vectors @ view.T for view in one.views)).argsort(dim=1, descending=True).tolist()
        ranks += [min(row.index(n) for n in found) for row, (_, found) in zip(order, one.questions, strict=True)]
    return {f"evidence in the first {k}, %": round(100 * sum(r < k for r in ranks) / len(ranks), 1) for k in (1, 3, 10)}


def steps(asked: Sequence[Asked], epochs: int, rng: random.Random) -> Iterator[tuple[Asked, list[int]]]:
    """Every question once an epoch, those of one conversation together, in a random order."""
    for _ in range(epochs):
        batches = []
        for one in asked:
            places = rng.sample(range(len(one.questions)), len(one.questions))
            batches += [(one, places[at : at + TOGETHER]) for at in range(0, len(places), TOGETHER)]
        rng.shuffle(batches)
        yield from batches


@torch.no_grad()
def keep(reader: Reader, share: float) -> None:
    """Go only a share of the way from plain MiniLM (after WiSE-FT, Wortsman et al. 2022): deep ranks suffer less."""
    for name, weights in reader.model.named_parameters():
        if "lora_B" in name:
            weights.mul_(share)


def main() -> None:
    """Parse the command line, embed the memories, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", nargs="+", default=FILES, help="to train on")
    parser.add_argument("--held-out", default="held_out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    rng, embedder = random.Random(given.seed), MiniLMEmbedder()
    told = [one for name in given.files for one in load(CONVERSATIONS / f"{name}.jsonl")]
    asked = [asked_of(one, embedder) for one in told]
    held = [asked_of(one, embedder) for one in load(CONVERSATIONS / f"{given.held_out}.jsonl")]
    reader = Reader(given.rank)
    before = found_first(reader, held)
    trained: list[Any] = [p for p in reader.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given.rate, weight_decay=0.01)
    batches = list(steps(asked, given.epochs, rng))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, (n + 1) / 20) * (1 - n / len(batches)))
    for n, (one, places) in enumerate(batches):
        reader.model.train()
        optimizer.zero_grad()
        value = loss(reader, one, places, rng)
        value.backward()
        optimizer.step()
        schedule.step()
        if n % 100 == 99:
            print(n + 1, "of", len(batches), f"loss {value.item():.3f}", found_first(reader, held), flush=True)
    keep(reader, given.share)
    after = found_first(reader, held)
    questions = [text for one in asked for text, _ in one.questions]
    run = TrainingRun(
        QUESTIONS,
        MINILM.name,
        MINILM.revision,
        "",
        hashlib.sha256("\n".join(questions).encode()).hexdigest()[:16],
        given.seed,
        algorithm="contrastive",
        data={"conversations written for this project": f"{len(told)}, {len(questions):,} questions"},
        metrics={**{f"before: {k}": v for k, v in before.items()}, **after},
        settings={
            "learning rate": given.rate,
            "epochs": given.epochs,
            "rank": given.rank,
            "steps": len(batches),
            "share of it that is kept": given.share,
        },
    )
    save(reader.model, given.folder / "final", run)
    print(given.folder / "final", before, after)


if __name__ == "__main__":
    main()
