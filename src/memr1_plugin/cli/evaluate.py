"""The verbs that measure: eval, eval-manager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from memr1_plugin.cli._shell import Json, Model, emit, err, out, plain
from memr1_plugin.errors import InputError

if TYPE_CHECKING:
    from memr1_plugin.evaluation.judge import Judge


_JUDGE = "Judge (off by default)"


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    app.command(name="eval")(evaluate)
    app.command(name="eval-manager")(evaluate_manager)


@contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage of a long run, as it comes to it; yields a function of (what, done, of)."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, disable=quiet) as bar:
        tasks: dict[str, object] = {}

        def tick(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(plain(what), total=of)
            bar.update(tasks[what], completed=done, total=of)  # type: ignore[arg-type]  # rich's own NewType of int

        yield tick


def evaluate(
    data: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Conversations with questions.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the run; it resumes what is there.")],
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="no-memory, full-context, rag, untrained, untrained-raw, shipped, NAME=FOLDER of LoRAs, or "
            "NAME=answer:FOLDER,manager:FOLDER (FOLDER may be shipped or none). Then options: :raw (no Manager), "
            ":always-add (a Manager that only adds), :gold (reads the gold evidence), :unselected (chooses no "
            "memories). May be given several times.",
            show_default="no-memory, rag, untrained, shipped",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Ids of the conversations to ask about. May be given several times.")
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(help="Categories to ask; all: every one.", show_default="1, 2, 3, 4 of LoCoMo; all of other data"),
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Memories shown per question.")] = 10,
    role: Annotated[
        list[str] | None, typer.Option(help="Roles whose turns become memories.", show_default="user")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per conversation.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions computed together.")] = 8,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16: what to compute in, so that runs on different machines compare.",
            show_default="what this machine computes fast",
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The system that the others are compared with.")] = None,
    errata: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Known wrong golds (locomo-audit's JSONL): a second figure."),
    ] = None,
    judge_url: Annotated[
        str, typer.Option(help="An OpenAI-compatible server whose model judges the answers.", rich_help_panel=_JUDGE)
    ] = "",
    judge_model: Annotated[str, typer.Option(help="The judge's model there.", rich_help_panel=_JUDGE)] = "",
    judge_key: Annotated[
        str, typer.Option(help="The environment variable that holds the key.", rich_help_panel=_JUDGE)
    ] = "OPENAI_API_KEY",
    judge: Annotated[
        list[str] | None,
        typer.Option(help="lenient (as published tables), strict.", show_default="both", rich_help_panel=_JUDGE),
    ] = None,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Ask several systems the same questions, side by side, and print their scores with intervals.

    Reads LoCoMo, LongMemEval and this project's JSONL (see docs/evaluation.md). Every answer is written as it comes;
    the same command goes on where a stopped run was. The folder gets table.md, summary.json, scores.jsonl and f1.png.
    Needs the extra `train`.
    """
    from memr1_plugin.agents import models
    from memr1_plugin.agents.hardware import dtype_name
    from memr1_plugin.embedding import as_embedder
    from memr1_plugin.evaluation import judge as judging
    from memr1_plugin.evaluation import report, run
    from memr1_plugin.evaluation.datasets import load
    from memr1_plugin.evaluation.systems import Engines, parse_system
    from memr1_plugin.settings import Settings

    if bool(judge_url) != bool(judge_model) or (judge and not judge_url):
        raise InputError("a judge needs --judge-url and --judge-model, both; leave all --judge options out for none.")
    report.check()
    everything = load(data)
    conversations = [one for one in everything if not only or one.id in only]
    if lost := sorted(set(only or []) - {one.id for one in conversations}):
        known = ", ".join(one.id for one in everything[:8])
        raise InputError(f"{data} has no conversation called {', '.join(lost)}; it has {known}.")
    weights = models.resolve(model or None)
    shipped = models.find_loras(weights.name)
    systems = [parse_system(word, shipped) for word in system or ["no-memory", "rag", "untrained", "shipped"]]
    dtype = dtype or dtype_name()
    engines = Engines(model or None, batch=batch, dtype=dtype)
    try:
        with stages(as_json) as tick:
            done = run.evaluate(
                conversations,
                systems,
                to,
                engine_for=engines,
                embedder=as_embedder(None),
                model=" ".join(filter(None, (weights.name, weights.revision, dtype))),
                settings=Settings(candidates=candidates, remember_roles=tuple(role or ["user"])),
                categories=() if category and "all" in category else tuple(category or run.LOCOMO_SCORED),
                limit=limit,
                batch=batch,
                progress=tick,
            )
            verdicts = None
            if judge_url:
                engines.close()  # the judge may want the room
                with _endpoint(judge_url, judge_model, judge_key) as asked:
                    kinds = [_kind(word) for word in judge or judging.KINDS]
                    verdicts = judging.judge_all(done.replies, conversations, asked, to, kinds=kinds, progress=tick)
    finally:
        engines.close()
    summary = report.write(done, conversations, to, baseline=baseline, errata=errata, verdicts=verdicts)
    emit(summary, as_json, lambda: out.print(*(table.rich() for table in report.tables(summary)), sep="\n"))


def evaluate_manager(
    to: Annotated[Path, typer.Option("--out", help="Folder of the run; it resumes what is there.")],
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose Manager: untrained, shipped, NAME=FOLDER, NAME=manager:FOLDER; with :always-add, the one that "
            "only adds. May be given several times.",
            show_default="untrained:always-add, untrained, shipped",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the conversations: one that no LoRA was trained on.")] = 9100,
    conversations: Annotated[int, typer.Option(min=1, help="How many.")] = 4,
    changing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tellings that replace or withdraw an earlier one.")
    ] = 0.45,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Measure what Memory Managers decide, on invented conversations whose right operations are known.

    Prints a confusion matrix, the share of contradicted facts that are still found for their question, and the share of
    true facts that are lost. The folder gets table.md, summary.json and decisions.jsonl. Needs the extra `train`.
    """
    from memr1_plugin.agents import models
    from memr1_plugin.embedding import as_embedder
    from memr1_plugin.evaluation import decisions
    from memr1_plugin.evaluation.systems import Engines, parse_system
    from memr1_plugin.training import synthetic

    shipped = models.find_loras(models.resolve(model or None).name)
    systems = [parse_system(word, shipped) for word in system or ["untrained:always-add", "untrained", "shipped"]]
    told = list(synthetic.conversations(seed, conversations, changing=changing))
    engines = Engines(model or None)
    try:
        with stages(as_json) as tick:
            summary = decisions.evaluate(
                told, systems, to, engine_for=engines, embedder=as_embedder(None), progress=tick
            )
    finally:
        engines.close()
    emit(summary, as_json, lambda: out.print(*(table.rich() for table in decisions.tables(summary)), sep="\n"))


@contextmanager
def _endpoint(url: str, model: str, key: str) -> Iterator[Judge]:
    from memr1_plugin.agents.remote import RemoteEngine
    from memr1_plugin.evaluation.judge import Judge

    engine = RemoteEngine(url, model, api_key_env=key, structured=None)
    try:
        yield Judge(engine, name=f"{model} at {url}")
    finally:
        engine.close()


def _kind(word: str) -> Literal["lenient", "strict"]:
    if word not in ("lenient", "strict"):
        raise InputError(f"--judge is {word!r}; expected lenient or strict.")
    return word  # type: ignore[return-value]  # mypy does not narrow by a tuple
