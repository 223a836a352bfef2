"""What is kept of a run: results.png, the reading of metrics.jsonl, TensorBoard's event files."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nmsfree.errors import InputError
from nmsfree.images import read_image
from nmsfree_training.monitor.callbacks import EpochEvent, StepEvent
from nmsfree_training.monitor.curves import Record, read_metrics, write_curves
from nmsfree_training.monitor.tensorboard import TensorBoardCallback


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


@pytest.mark.slow
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


@pytest.mark.slow
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


# Event files, read back with TensorBoard's own reader


STEPS = 25  # of an epoch


def step_event(iteration: int, **other: object) -> StepEvent:
    """Step `iteration` (from 1) of a run whose loss is the iteration's number."""
    epoch, step = divmod(iteration - 1, STEPS)
    values: dict[str, object] = {
        "losses": {"loss": float(iteration), "o2o_cls": 0.5 * iteration},
        "learning_rate": 1.0 / iteration,
        "images": 8,
        "wait": 0.1,
        "seconds": 0.4,
        "grad_norm": 2.0,
    }
    return StepEvent(epoch, 4, step + 1, STEPS, iteration, **(values | other))  # type: ignore[arg-type]


def epoch_event(
    epoch: int, picture: NDArray[np.uint8] | None = None, **metrics: float
) -> EpochEvent:
    pictures = () if picture is None else (("cat", picture),)
    record = {"epoch": epoch, "loss": 1.0, "o2o_cls": 0.5, "lr": 0.1, "seconds": 3.0}
    return EpochEvent({**record, "wait_share": 0.2, **metrics}, pictures, True)


def write(folder: Path, first: int, last: int, iteration: int = 0) -> None:
    callback = TensorBoardCallback(folder, iteration)
    for i in range(first, last + 1):
        callback.on_step(step_event(i))
        if i % STEPS == 0:
            callback.on_epoch(epoch_event(i // STEPS, AP=i / 1000, AP50=i / 500))
    callback.close()


def read(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return reader.Reload()


def curve(reader: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in reader.Scalars(tag)}


def test_curves_are_means_over_ten_steps(tmp_path: Path) -> None:
    write(tmp_path, 1, 50)
    reader = read(tmp_path)
    # Steps 10 and 20, the end of the epoch, then 30 (five steps), 40 and the next end.
    expected = {10: 5.5, 20: 15.5, 25: 23.0, 30: 28.0, 40: 35.5, 50: 45.5}
    assert curve(reader, "train/loss") == pytest.approx(expected)
    assert curve(reader, "train/o2o_cls") == pytest.approx({k: v / 2 for k, v in expected.items()})
    assert curve(reader, "train/lr")[40] == pytest.approx(1 / 40)
    assert curve(reader, "train/epoch") == pytest.approx({k: k / STEPS for k in expected})
    assert set(curve(reader, "train/images_per_second").values()) == {20.0}
    assert curve(reader, "train/wait_share")[10] == pytest.approx(0.25)
    assert set(curve(reader, "train/grad_norm").values()) == {2.0}


def test_the_first_steps_on_a_gpu_have_no_losses_yet(tmp_path: Path) -> None:
    callback = TensorBoardCallback(tmp_path, 0)
    for i in range(1, 11):
        late = {"losses": {}, "grad_norm": None} if i in (1, 2, 10) else {}
        callback.on_step(step_event(i, **late))
    callback.close()
    reader = read(tmp_path)
    assert curve(reader, "train/loss") == {10: 6.0}  # of 3 … 9
    assert curve(reader, "train/lr") == {10: pytest.approx(0.1)}


def test_metrics_stand_at_the_step_of_their_evaluation(tmp_path: Path) -> None:
    write(tmp_path, 1, 50)
    reader = read(tmp_path)
    assert curve(reader, "val/AP") == pytest.approx({25: 0.025, 50: 0.05})
    assert curve(reader, "val/AP50") == pytest.approx({25: 0.05, 50: 0.1})
    tags = reader.Tags()["scalars"]
    assert {tag for tag in tags if tag.startswith("val/")} == {"val/AP", "val/AP50"}


def test_pictures_keep_their_colours(tmp_path: Path) -> None:
    blue = np.zeros((32, 48, 3), dtype=np.uint8)
    blue[..., 0] = 255  # BGR
    callback = TensorBoardCallback(tmp_path)
    callback.on_step(step_event(25))
    callback.on_epoch(epoch_event(1, blue, AP=0.1))
    callback.close()
    (image,) = read(tmp_path).Images("predictions/cat")
    assert (image.step, image.width, image.height) == (25, 48, 32)
    stored = np.frombuffer(image.encoded_image_string, dtype=np.uint8)
    shown = cv2.imdecode(stored, cv2.IMREAD_COLOR_RGB)
    assert shown is not None
    assert np.abs(shown.astype(int) - (0, 0, 255)).max() <= 3


def test_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1, 48)  # killed after step 48; the checkpoint is from step 25
    write(tmp_path, 26, 60, iteration=25)
    resumed, whole = read(tmp_path), tmp_path / "whole"
    write(whole, 1, 60)
    for tag in ("train/loss", "val/AP"):
        assert curve(resumed, tag) == curve(read(whole), tag)
    assert len(resumed.Scalars("train/loss")) == len(curve(resumed, "train/loss"))


def test_files_of_one_moment_are_read_in_their_order(tmp_path: Path) -> None:
    for last in range(26, 32):  # six sessions within a second, each going on at step 25
        write(tmp_path, 26, last, iteration=25)
    assert curve(read(tmp_path), "train/loss") == pytest.approx({30: 28.0, 31: 31.0})


def test_killed_run_has_written_all_its_points(tmp_path: Path) -> None:
    callback = TensorBoardCallback(tmp_path)
    for i in range(1, 21):
        callback.on_step(step_event(i))
    assert set(curve(read(tmp_path), "train/loss")) == {10, 20}  # not closed yet
    callback.on_step(step_event(21))
    callback.close()
    callback.close()
    assert set(curve(read(tmp_path), "train/loss")) == {10, 20, 21}


def test_overflow_of_one_step_does_not_hide_the_other_gradients(tmp_path: Path) -> None:
    callback = TensorBoardCallback(tmp_path, every=2)
    norms: list[float | None] = [float("inf"), 3.0, float("inf"), float("inf"), None, None]
    for i, norm in enumerate(norms, 1):
        callback.on_step(step_event(i, grad_norm=norm))
    callback.close()
    assert curve(read(tmp_path), "train/grad_norm") == {2: 3.0, 4: float("inf")}


def test_run_that_never_steps_leaves_no_file(tmp_path: Path) -> None:
    callback = TensorBoardCallback(tmp_path / "tb")
    callback.on_evaluate(1, 2)
    callback.log("hello")
    callback.on_epoch(epoch_event(1))  # no metrics, no pictures
    callback.close()
    assert not (tmp_path / "tb").exists()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("a file")
    callback = TensorBoardCallback(tmp_path / "tb")
    with pytest.raises(InputError, match="cannot be written"):
        callback.on_step(step_event(10))


def test_neither_tensorflow_nor_early_tensorboard(tmp_path: Path) -> None:
    """An installed TensorFlow stays untouched, and TensorBoard is not needed before a step."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("print('tensorflow was imported')")
    code = (
        "import sys; from pathlib import Path\n"
        "from nmsfree_training.monitor.tensorboard import TensorBoardCallback, StepEvent\n"
        f"callback = TensorBoardCallback(Path({str(tmp_path / 'tb')!r}))\n"
        "assert not any(name.startswith('tensorboard') for name in sys.modules)\n"
        "callback.on_step(StepEvent(0, 1, 1, 1, 1, {'loss': 1.0}, 0.1, 1, 0.0, 1.0, None))\n"
        "callback.close()\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(curve(read(tmp_path / "tb"), "train/loss")) == [1]
