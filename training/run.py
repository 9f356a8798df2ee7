"""Run a supervised recipe to a LoRA: python training/run.py training/recipes/tiny-cpu.toml runs/answer

Started again with the same folder it goes on from its newest checkpoint. The finished LoRA is in FOLDER/final; with
--export it is also packed into adapters/<base>/<role>/. The longmemeval path of a recipe can be given as --longmemeval.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from memr1_plugin.agents.models import resolve
from memr1_plugin.embedding import as_embedder
from memr1_plugin.training import recipe
from memr1_plugin.training.export import export


def main() -> None:
    """Parse the command line, print the plan, train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--longmemeval", help="path of LongMemEval's evidence turns")
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--export", action="store_true")
    given = parser.parse_args()
    loaded = recipe.load(given.recipe)
    if given.longmemeval:
        loaded = dataclasses.replace(loaded, data=dataclasses.replace(loaded.data, longmemeval=given.longmemeval))
    print(recipe.plan(loaded))
    done = recipe.run_sft(loaded, given.folder, as_embedder(), max_steps=given.max_steps)
    print(done)
    if given.export:
        print(export(done, loaded.role, resolve(loaded.model or None), Path(__file__).parents[1] / "adapters"))


if __name__ == "__main__":
    main()
