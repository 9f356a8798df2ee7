"""Scores of replies, their means and intervals, and the tables in each form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from talk import QUESTIONS, SYSTEMS, TALK, conversation, run

pytest.importorskip("nltk", reason="the train extra is not installed")
pytest.importorskip("matplotlib", reason="the train extra is not installed")

from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.evaluation import report
from memr1_plugin.evaluation.banks import BankRow
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.replies import Reply
from memr1_plugin.evaluation.scores import Row, score, score_all

KNOWN, _, UNKNOWN = QUESTIONS


def reply(system: str = "s", question: str = "q0", text: str = "Rome", **fields: object) -> Reply:
    return Reply(system, "c1", question, "Where?", text, **fields)  # type: ignore[arg-type]


def test_a_right_abstention_scores_one_and_a_wrong_one_zero() -> None:
    """Saying "I don't know" is right exactly where nothing answers the question."""
    none, words = reply(text="", abstained=True), reply()
    assert score(none, UNKNOWN).f1 == score(none, UNKNOWN).em_raw == 1.0
    assert score(words, UNKNOWN).f1 == score(words, UNKNOWN).em_raw == 0.0
    assert score(none, KNOWN).f1 == score(none, KNOWN).em == score(none, KNOWN).em_raw == 0.0
    assert score(words, KNOWN).f1 == score(words, KNOWN).em_raw == score(words, KNOWN).locomo_f1 == 1.0


def test_evidence_is_counted_at_every_link() -> None:
    """Ranked, shown, named: recall of each by turn, and the precision of what was named by memory."""
    question = Question("q", "Where?", "Rome", "4", ("t0", "t1"))
    ranked = (("t7",), ("t0", "t8"), *(("t9",),) * 10, ("t1",))
    row = score(reply(shown=ranked[:3], ranked=ranked, named=(("t0", "t8"), ("t7",))), question)
    assert (row.recall, row.named_recall, row.named_precision) == (0.5, 0.5, 0.5)
    assert row.recall_at == {5: 0.5, 10: 0.5, 20: 1.0, 30: 1.0, 60: 1.0}


def test_what_a_system_does_not_do_is_not_scored() -> None:
    """A system that retrieves or names nothing has no recall, rather than one of 0; nor a question without evidence."""
    nothing = score(reply(), KNOWN)
    assert (nothing.recall, nothing.recall_at, nothing.named_recall, nothing.named_precision) == (None,) * 4
    found_none = score(reply(shown=(), ranked=(), named=()), KNOWN)
    assert (found_none.recall, found_none.named_recall, found_none.named_precision) == (0.0, 0.0, None)
    loose = score(reply(shown=(("t0",),), ranked=(("t0",),), named=(("t0",),)), Question("q", "?", "x", "4"))
    assert (loose.recall, loose.recall_at, loose.named_recall, loose.named_precision) == (None,) * 4


def rows(f1s: dict[str, list[float]], *, category: str = "4") -> list[Row]:
    """Rows with these F1 scores: a reply of the gold's first words, so many that F1 comes out."""
    questions = [Question(f"q{n}", "Where?", "Rome", category) for n in range(99)]
    talk = conversation(questions=tuple(questions))
    replies = [
        reply(system, f"q{n}", "Rome" if value else "Paris")
        for system, all_ in f1s.items()
        for n, value in enumerate(all_)
    ]
    return score_all(replies, [talk])


def test_a_summary_has_intervals_categories_and_every_pair(tmp_path: Path) -> None:
    """One summary a system, and every pair's difference once, the later minus the earlier."""
    summary = report.summarise(rows({"a": [0, 1, 0, 1], "b": [1, 1, 1, 1], "c": [0, 0, 0, 1]}), baseline="b")
    assert [s["f1"]["mean"] for s in summary["systems"]] == [0.5, 1.0, 0.25]
    assert all(s["f1"]["low"] <= s["f1"]["mean"] <= s["f1"]["high"] for s in summary["systems"])
    assert [(p["system"], p["minus"], p["f1"]["mean"]) for p in summary["paired"]] == [
        ("a", "b", -0.5),
        ("c", "a", -0.25),
        ("c", "b", -0.75),
    ]
    assert json.loads(json.dumps(summary)) == summary


def test_only_common_questions_are_paired() -> None:
    """A system that was asked fewer questions is compared on those; with none in common there is no difference."""
    [pair] = report.summarise(rows({"a": [0, 1, 1], "b": [1]}))["paired"]
    assert (pair["f1"]["mean"], pair["f1"]["n"]) == (1.0, 1)
    found = rows({"a": [1]}) + score_all([reply("b", "q7")], [conversation(questions=(Question("q7", "?", "Rome"),))])
    assert report.summarise(found)["paired"][0]["f1"] is None


def test_means_are_of_answerable_questions_and_abstention_stands_apart() -> None:
    """A system that always abstains has F1 0, and is right about every question that nothing answers."""
    replies = [reply(question=q.id, text="", abstained=True) for q in QUESTIONS]
    [summary] = report.summarise(score_all(replies, [TALK]))["systems"]
    assert (summary["n"], summary["f1"]["mean"]) == (2, 0.0)
    assert summary["abstained"] == {"of_unanswerable": 1.0, "of_answerable": 1.0, "n_unanswerable": 1}
    assert summary["categories"]["5"]["f1"]["mean"] == 1.0


def test_categories_have_the_names_of_the_data_set_and_of_the_paper() -> None:
    """LoCoMo's category 1 is multi-hop in its own paper and "Single Hop" in Memory-R1's table: both are printed."""
    text = report.markdown(report.summarise(rows({"a": [1, 1]}, category="1")))
    assert "1: multi-hop (paper: Single Hop), n=2" in text
    assert "places, n=1" in report.markdown(report.summarise(rows({"a": [1]}, category="places")))


def test_wrong_golds_are_a_second_figure(tmp_path: Path) -> None:
    """Published scores keep the wrong golds; beside them stand the score without those, and by the corrected ones."""
    errata = tmp_path / "errata.jsonl"
    errata.write_text(json.dumps({"id": "q1", "affects_score": True, "correct_answer": "Tom"}) + "\n")
    done = run(tmp_path, SYSTEMS[1:2])
    replies = [reply("s", "q0", "Rome"), reply("s", "q1", "Tom")]
    run_of_two = type(done)(replies, {})
    summary = report.write(run_of_two, [TALK], tmp_path, errata=errata)["systems"][0]
    assert summary["f1"]["mean"] == 0.5
    assert summary["errata"]["left_out"]["f1"]["mean"] == summary["errata"]["corrected"]["f1"]["mean"] == 1.0
    assert (summary["errata"]["left_out"]["n"], summary["errata"]["corrected"]["n"]) == (1, 2)
    assert "wrong golds left out" in (tmp_path / "table.md").read_text()


def test_a_run_writes_its_tables_scores_and_pictures(tmp_path: Path) -> None:
    """The folder of a run holds the same figures as text, JSON and a picture."""
    done = run(tmp_path, SYSTEMS, categories=())
    summary = report.write(done, [TALK], tmp_path, baseline="no-memory")
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    scored = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(scored) == len(SYSTEMS) * 3 and {row["asked"] for row in scored} == {q.text for q in QUESTIONS}
    assert (tmp_path / "f1.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=300, record=True, quiet=True)
    text = (tmp_path / "table.md").read_text()
    for table in report.tables(summary):
        console.print(table.rich())
        assert table.title in text and all(head in text for head in table.heads)
        assert all(len(row) == len(table.heads) for row in table.rows)
    assert summary["systems"][1]["bank"]["items"] == 3 and "bank" not in summary["systems"][3]


def test_banks_of_several_conversations_are_added_up() -> None:
    """Items, operations and costs are of all conversations together; seconds are per turn."""
    banks = [
        BankRow("m", "c1", 10, 4, {"ADD": 5, "DELETE": 1}, {}, 20.0, 3, 100, 10),
        BankRow("m", "c2", 30, 6, {"ADD": 6}, {"unknown_id": 2}, 60.0, 4, 200, 20),
    ]
    [summary] = report.summarise(rows({"a": [1]}), banks={"a": banks})["systems"]
    assert summary["bank"] == {
        "name": "m",
        "turns": 40,
        "items": 10,
        "changes": {"ADD": 11, "DELETE": 1},
        "rejections": 2,
        "seconds_per_turn": 2.0,
        "model_calls": 7,
        "prompt_tokens": 300,
        "output_tokens": 30,
    }


def test_what_the_tables_need_is_asked_for_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is said with its extra, not after an hour of answers."""
    report.check()
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"nltk is not installed.*memr1-plugin\[train\]"):
        report.check()


def test_nothing_to_summarise_is_an_error() -> None:
    """No answers, or none of the baseline, is said so."""
    with pytest.raises(InputError, match="nobody"):
        report.summarise(rows({"a": [1]}), baseline="nobody")
    with pytest.raises(InputError, match="no answers"):
        report.summarise([])


def test_replies_to_other_questions_are_left_out() -> None:
    """A folder that has answers about more conversations than are asked about is summarised for those."""
    assert score_all(
        [reply(), Reply("s", "c9", "q0", "?", "Rome")], [Conversation("c1", (), TALK.turns, (KNOWN,))]
    ) == [score(reply(), KNOWN)]
