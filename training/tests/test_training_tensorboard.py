"""Event files, read back with TensorBoard's own reader."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nmsfree.errors import InputError
from nmsfree_training.monitor.callbacks import EpochEvent, StepEvent
from nmsfree_training.monitor.tensorboard import TensorBoardCallback

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
