"""`results.png` and the reading of `metrics.jsonl`."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest

from nmsfree.errors import InputError
from nmsfree.images import read_image
from nmsfree_training.monitor.curves import Record, read_metrics, write_curves


def record(epoch: int, **other: float) -> Record:
    loss = 4.0 * epoch**-0.6
    parts = {"o2m_cls": 0.3, "o2m_box": 0.15, "o2o_cls": 0.35, "o2o_box": 0.2}
    line = {"epoch": epoch, "loss": loss, **{k: v * loss for k, v in parts.items()}}
    line |= {"lr": 0.002 * 0.99**epoch, "seconds": 46.8, "images_per_second": 41.0}
    return {**line, "wait_share": 0.12, **other}


def scored(epoch: int) -> Record:
    ap = 0.4 * (1 - math.exp(-epoch / 20))
    return record(epoch, AP=ap, AP50=1.4 * ap, AP75=1.1 * ap, AR100=ap)


def write_lines(path: Path, records: list[Record], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail, encoding="utf-8")
    return path


# Reading


def test_records_come_back_in_the_order_of_epochs(tmp_path: Path) -> None:
    records = [scored(epoch) for epoch in range(1, 6)]
    assert read_metrics(write_lines(tmp_path / "m.jsonl", records)) == records
    assert read_metrics(write_lines(tmp_path / "m.jsonl", records[::-1])) == records


def test_repeated_epoch_counts_once_as_last_written(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", [record(1), record(2, AP=0.1), record(2, AP=0.3)])
    assert [r.get("AP") for r in read_metrics(path)] == [None, 0.3]


@pytest.mark.parametrize("tail", ['{"epoch": 3, "lo', "[]\n", '{"loss": 1.0}\n', "\x00\x00", "3\n"])
def test_damaged_line_is_left_out_and_named(
    tmp_path: Path, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "m.jsonl", [record(1), record(2)], tail)
    with caplog.at_level(logging.WARNING):
        assert len(read_metrics(path)) == 2
    assert "line 3" in caplog.text


def test_line_damaged_before_a_resume_does_not_take_the_next_along(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", [record(1)], '{"epoch": 2, "l\n')
    path.write_text(path.read_text() + json.dumps(record(2)) + "\n\n")
    assert [r["epoch"] for r in read_metrics(path)] == [1, 2]


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"epoch": 1, "AP": null, "name": "x", "ok": true, "lr": 1}')
    assert read_metrics(tmp_path / "m.jsonl") == [{"epoch": 1.0, "lr": 1.0}]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="no finished epoch"):
        read_metrics(write_lines(tmp_path / "m.jsonl", [], '{"epoch": 1, "lo'))


# Drawing


@pytest.mark.parametrize(
    "records",
    [
        [scored(1)],
        [record(7)],
        [record(epoch) for epoch in range(1, 4)],
        [scored(e) if e % 5 == 0 else record(e) for e in range(1, 301)],
        [{"epoch": 1.0, "loss": math.nan, "lr": 0.1}, {"epoch": 2.0, "loss": math.inf}],
        [{"epoch": 1.0, "loss": 0.0, "AP": 0.0, "lr": 0.0, "images_per_second": 0.0}],
        [{"epoch": 1.0, "loss": 2.0, "seconds": 10.0}],  # written before the speed was
    ],
    ids=["one", "one without AP", "without AP", "long", "not finite", "zeros", "old"],
)
def test_any_run_is_drawn(tmp_path: Path, records: list[Record]) -> None:
    out = tmp_path / "pictures" / "results.png"
    write_curves(write_lines(tmp_path / "m.jsonl", records), out, "nano: digits")
    picture = read_image(out)
    assert picture.shape[1] >= 1000 and picture.std() > 5
    assert [p.name for p in out.parent.iterdir()] == ["results.png"]


def test_title_is_optional_and_shown(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "m.jsonl", [scored(e) for e in range(1, 4)])
    pictures = []
    for title in ("", "fcos_e2e_nano: digits"):
        write_curves(lines, tmp_path / "r.png", title)
        pictures.append(read_image(tmp_path / "r.png"))
    without, titled = pictures
    changed = np.any(without != titled, axis=(1, 2)).nonzero()[0]
    assert changed.size and changed.max() < 60  # only the line at the top


def test_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    out = tmp_path / "results.png"
    out.write_bytes(b"old")
    with pytest.raises(InputError):
        write_curves(tmp_path / "missing.jsonl", out)
    assert out.read_bytes() == b"old"
