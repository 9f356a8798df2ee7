"""The doubles compute: what they say follows from what they are given."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memr1_plugin.agents.answerer import Answerer
from memr1_plugin.agents.engine import Engine, LoraInfo, Prompt, Role
from memr1_plugin.agents.manager import Manager
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import InputError, ModelError
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder, ScriptedModel, tiny_model, words
from memr1_plugin.types import Fact, MemoryItem, OperationKind, Scope

AT = datetime(2023, 5, 8, tzinfo=timezone.utc)


def item(n: int, text: str, speaker: str = "Ana") -> MemoryItem:
    return MemoryItem(n, Scope(), text, speaker, AT, AT, AT)


def decide(text: str, *memories: str) -> tuple[str, int | None]:
    """What the heuristic model does with one fact of Ana's beside memories 11, 12, ..."""
    items = [item(n, memory) for n, memory in enumerate(memories, 11)]
    [op] = (
        Manager(ScriptedModel.heuristic(), Settings(certain=False)).decide([Fact(text, "Ana", AT)], [items]).operations
    )
    return op.kind.value, op.target


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5), st.integers(1, 100))
def test_hash_vectors_are_unit_float32_whatever_the_text(texts: list[str], dim: int) -> None:
    """Any text, the empty one too, has a vector of length 1."""
    vectors = HashEmbedder(dim).embed(texts)
    assert vectors.shape == (len(texts), dim) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_texts_that_share_words_are_nearer() -> None:
    """Inflection does not matter, stop words do not count."""
    moved, asked, dog = HashEmbedder().embed(["I moved to Berlin.", "Is Ana moving to Berlin?", "My dog barks."])
    assert moved @ asked > 0.6 > 0.4 > moved @ dog
    assert words("The") == ["the"] and words("She moves, moved, moving") == ["mov"] * 3


def test_vectors_are_the_same_in_another_process() -> None:
    """Python's own hash changes with every process; these vectors do not."""
    code = "from memr1_plugin.testing import HashEmbedder as H; print(H(8).embed(['a red fox'])[0].tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(HashEmbedder(8).embed(["a red fox"])[0].tolist())


def test_the_doubles_are_what_they_stand_for() -> None:
    """They satisfy the protocols of the real ones."""
    assert isinstance(HashEmbedder(), Embedder) and isinstance(ScriptedModel([]), Engine)
    with pytest.raises(InputError, match="at least 1"):
        HashEmbedder(0)


def test_a_script_is_a_function_a_mapping_or_a_sequence() -> None:
    """Each of the three replies; a script that has no reply is an error, not an empty answer."""
    prompt = Prompt("Decide.", "Where is Rex?")
    assert (
        ScriptedModel(lambda p, r: f"{r.value} {p.body}").complete([prompt], Role.BASE)[0].text == "base Where is Rex?"
    )
    assert ScriptedModel({"Tom": "no", "Rex": "here"}).complete([prompt], Role.BASE)[0].text == "here"
    in_order = ScriptedModel(["one", "two"])
    assert [c.text for c in in_order.complete([prompt, prompt], Role.BASE)] == ["one", "two"]
    with pytest.raises(ModelError, match="2 replies"):
        in_order.complete([prompt], Role.BASE)
    with pytest.raises(ModelError, match="no key"):
        ScriptedModel({"Tom": "no"}).complete([prompt], Role.BASE)


def test_calls_are_kept_and_words_counted() -> None:
    """A test can read what the model was asked; tokens are words; the fixed part is cached the second time."""
    model = ScriptedModel({"": "one two three four"}, loras={Role.ANSWER: LoraInfo("x", "h")})
    first, second = (model.complete([Prompt("a b", "c", max_tokens=3)], Role.ANSWER)[0] for _ in range(2))
    assert first.text == "one two three" and not first.finished
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens) == (3, 0, 3)
    assert second.cached_tokens == 2
    assert [call.role for call in model.calls] == [Role.ANSWER] * 2 and model.prompts[0].body == "c"
    assert model.lora(Role.ANSWER) == LoraInfo("x", "h") and model.lora(Role.MANAGER) is None
    model.close()
    with pytest.raises(ModelError, match="closed"):
        model.complete([], Role.BASE)


def test_the_heuristic_manager_adds_updates_deletes_and_ignores() -> None:
    """One value replaces another, an end deletes, a repetition is nothing, and the rest is new."""
    assert decide("I moved to Berlin.", "I like tea.", "I live in Paris.") == ("UPDATE", 12)
    assert decide("I no longer play golf.", "I play golf.") == ("DELETE", 11)
    assert decide("I like tea!", "I really like tea.") == ("NOOP", None)
    assert decide("I like jazz.", "I like tea.") == ("ADD", None)
    assert decide("My sister is called Eva.", "My cat is called Rex.") == ("ADD", None)


def test_the_heuristic_manager_decides_each_fact_of_a_turn_once() -> None:
    """Two facts never name the same memory."""
    facts = [Fact("I live in Rome now.", "Ana", AT), Fact("I live in Bern now.", "Ana", AT)]
    memories = [item(1, "I live in Paris.")]
    done = Manager(ScriptedModel.heuristic()).decide(facts, [memories, memories])
    assert [op.kind for op in done.operations] == [OperationKind.UPDATE, OperationKind.ADD] and not done.rejections


def test_the_heuristic_answerer_answers_selects_and_abstains() -> None:
    """It names the memory it took the answer from, or says that there is none."""
    answerer = Answerer(ScriptedModel.heuristic())
    items = [item(7, "I moved to Berlin last week [1-7 May 2023]."), item(8, "My dog is called Rex.")]
    home = answerer.answer("Where does Ana live?", items, AT)
    assert home.used == (7,) and "Berlin" in home.text
    assert answerer.answer("When did Ana move?", items, AT).text == "1-7 May 2023"
    assert answerer.answer("Who painted the ceiling?", items, AT).abstained
    selected, _ = answerer.select("What is the dog's name?", items, AT)
    assert [i.id for i in selected] == [8]


def test_the_heuristic_model_extracts_the_last_messages_statements() -> None:
    """Questions and single words are no facts."""
    body = "Now you\nBob: How are you?\nAna: Fine. I was in Rome with Eva. And you?\nFacts:\n"
    [done] = ScriptedModel.heuristic().complete([Prompt("", body)], Role.BASE)
    assert done.text == "- Ana: I was in Rome with Eva."


def test_a_tiny_model_is_a_whole_model_folder(tmp_path: Path) -> None:
    """Weights, tokenizer and chat template load with transformers; the same seed gives the same weights."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = tiny_model(tmp_path / "a")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Ana moved to Berlin ☃\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith(
        "<|im_start|>user"
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "b"))
    other = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "c", seed=1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert model.num_parameters() < 200_000
