"""Training sees the base that serving computes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")
torch = pytest.importorskip("torch")

from memr1_plugin.agents.loading import load_base  # noqa: E402
from memr1_plugin.errors import ModelError  # noqa: E402
from memr1_plugin.testing import tiny_model  # noqa: E402
from memr1_plugin.training.base import load_trainable, round_to_nf4  # noqa: E402


def test_the_base_that_is_trained_on_a_cpu_computes_what_the_4_bit_base_computes(tmp_path: Path) -> None:
    """A LoRA trained on unrounded weights lost 9 F1 when served on rounded ones: it had learned another model."""
    folder = tiny_model(tmp_path)
    served = load_base(folder, dtype=torch.float32, device="cpu")
    trained = load_trainable(folder, device="cpu")
    dense = load_base(folder, quantize=False, dtype=torch.float32, device="cpu")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        logits = {name: model(ids).logits for name, model in (("4bit", served), ("trained", trained), ("dense", dense))}
    off = (logits["trained"] - logits["4bit"]).norm() / logits["4bit"].norm()
    off_dense = (logits["dense"] - logits["4bit"]).norm() / logits["4bit"].norm()
    assert off < 0.02 < off_dense


def test_a_model_without_matrices_to_round_is_an_error() -> None:
    """Nothing rounded would mean that training sees another model than serving."""

    class Empty(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ModelError, match="no matrix to round"):
        round_to_nf4(Empty())
