"""The files of a run: written as it goes, cut where a resumed run goes on, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from memr1_plugin.errors import DataError
from memr1_plugin.training.run_log import CURVES, METRICS, RunLog, append, draw_curves, keep_until, read


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    """JSON lines, any language, one a row; a file that is not there has none."""
    rows = [{"step": 1, "reward": 0.5}, {"step": 2, "text": "Zoë → 東京\u2028x"}]
    append(tmp_path / "a.jsonl", rows)
    assert read(tmp_path / "a.jsonl") == rows and read(tmp_path / "b.jsonl") == []


def test_a_line_cut_off_by_a_kill_is_left_out_and_another_bad_line_is_named(tmp_path: Path) -> None:
    """Only the last line may be half: anything else was not this library's doing."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "rew')
    assert read(path) == [{"step": 1}]
    path.write_text('{"step": 1}\noops\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read(path)


def test_a_resumed_run_cuts_what_it_will_do_again(tmp_path: Path) -> None:
    """Rows after the checkpoint's step go, so that the files equal those of a run that was never killed."""
    path = tmp_path / METRICS
    append(path, [{"step": n} for n in (1, 2, 2, 3, 4)])
    keep_until(path, 2)
    assert [row["step"] for row in read(path)] == [1, 2, 2]
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    RunLog(tmp_path).on_train_begin(None, state, None)  # type: ignore[arg-type]
    assert [row["step"] for row in read(path)] == [1]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    """On several GPUs the files hold each line once."""
    state = SimpleNamespace(is_world_process_zero=False, global_step=1)
    log = RunLog(tmp_path / "run")
    log.on_train_begin(None, state, None)  # type: ignore[arg-type]
    log.on_log(None, state, None, {"reward": 1.0})  # type: ignore[arg-type]
    log.on_save(None, state, None)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_curves_are_drawn_of_what_was_logged(tmp_path: Path) -> None:
    """Rewards, parts, operations and losses become a PNG; with nothing logged there is none; None values are gaps."""
    pytest.importorskip("matplotlib")
    assert draw_curves(tmp_path) is None
    rows = [
        {"step": n, "reward": n / 9, "rewards/token_f1/mean": 0.1, "operations/ADD": 1.0, "loss": 0.3, "kl": None}
        for n in range(9)
    ]
    append(tmp_path / METRICS, rows)
    path = draw_curves(tmp_path)
    assert path == tmp_path / CURVES and path.read_bytes().startswith(b"\x89PNG")
