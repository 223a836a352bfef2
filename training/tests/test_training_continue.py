"""A run that was interrupted goes on as if nothing had been; on something else it does not."""

import itertools
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import CheckpointError, MissingExtraError
from nmsfree_training.data.examples import LoaderError, MicroBatches
from nmsfree_training.loop import checkpoints
from nmsfree_training.loop.probe import use_threads
from nmsfree_training.loop.run_config import Interrupted
from nmsfree_training.loop.state import LAST, PREVIOUS, Position, TrainState, load_state, save_state
from nmsfree_training.loop.validate import analyse_best
from nmsfree_training.monitor.callbacks import Callback, StepEvent
from nmsfree_training.weights.checkpoint import load_checkpoint, save_checkpoint

from .runs import Listener, Runs, assert_same_runs, records, same, tiny

RT = tiny("fcos_rt_nano", epochs=1)
LATE = {"o2o_start": 1 / 3, "o2m_weight_end": 0.2, "o2o_gradient": 0.3}


@pytest.mark.parametrize(
    ("name", "recipe", "cuts"),
    [
        ("fcos_e2e_nano", {}, [(1, 2, 0.0), (1, 2, 10.0)]),
        ("fcos_rt_nano", {"optimizer": "sgd", "learning_rate": 0.02}, [(1, 2, 0.0), (1, 2, 10.0)]),
        # While the o2o head waits, around its start, and after it.
        ("fcos_e2e_nano", LATE, [(0, 2, 0.0), (1, 1, 0.0), (1, 3, 0.0), (2, 2, 0.0)]),
    ],
)
def test_resume_equals_an_uninterrupted_run(
    name: str, recipe: dict[str, Any], cuts: list[tuple[int, int, float]], runs: Runs
) -> None:
    """Saved after every step, or after every epoch only."""
    chosen = tiny(name, epochs=3, ema=0.9, **recipe)
    whole = runs.train("whole", chosen).run.out
    for number, (epoch, step, save_minutes) in enumerate(cuts):
        out = runs.folder / str(number)
        with pytest.raises(KeyboardInterrupt):
            callback = Listener((epoch, step))
            runs.train(out, chosen, callback=callback, save_minutes=save_minutes)
        done = step - 1 if save_minutes == 0 else 0
        assert load_state(out)[0].position["iteration"] == 3 * epoch + done
        runs.train(out, chosen, resume=True)
        assert_same_runs(whole, out)


def test_a_request_to_stop_saves_within_the_epoch(runs: Runs) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped and saved at epoch 1, step 2"):
        runs.train("cut", stop=lambda: next(asked))
    runs.resume_and_compare(tiny())


class KillLoaders(Callback):
    """As the system does where memory runs out."""

    def on_step(self, event: StepEvent) -> None:
        if event.iteration == 2:
            for child in multiprocessing.active_children():
                child.kill()
                child.join()


def test_a_killed_loader_loses_no_work(runs: Runs) -> None:
    few = replace(runs, data=replace(runs.data, samples=runs.data.samples[:8]))
    chosen = tiny("fcos_rt_nano", batch_size=1, epochs=1)
    with pytest.raises(LoaderError, match=r"fewer --workers .* saved at epoch 1, step .* --resume"):
        few.train("cut", chosen, callback=KillLoaders(), workers=1)
    assert 2 <= load_state(runs.folder / "cut")[0].position["step"] < 8
    few.resume_and_compare(chosen)


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: Exception) -> None:
    """Loading the batch of this number (from 1) fails."""
    asked, make = itertools.count(1), MicroBatches.__getitem__

    def faulty(self: MicroBatches, index: int) -> Any:
        if next(asked) == number:
            raise error
        return make(self, index)

    monkeypatch.setattr(MicroBatches, "__getitem__", faulty)


@pytest.mark.parametrize("number", [1, 3])
def test_a_fault_while_loading_saves_what_is_done(
    number: int, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, number, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        runs.train(chosen=RT)
    if number == 1:  # nothing is done, so nothing is in the way of another start
        assert not runs.file("last.state.pt").exists()
    else:
        assert load_state(runs.folder / "run")[0].position["step"] == 2


def test_a_job_that_is_ended_with_its_loaders_is_stopped_not_failed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler sends SIGTERM to every process of a job."""
    fail_at(monkeypatch, 2, LoaderError("ended"))
    asked = iter([False, True])
    with pytest.raises(Interrupted, match="stopped and saved at epoch 1, step 1"):
        runs.train(chosen=RT, stop=lambda: next(asked))


def test_an_error_of_any_kind_says_where_the_run_was_saved(runs: Runs) -> None:
    trainer = runs.trainer()
    trainer.position.iteration = 1
    with pytest.raises(
        MissingExtraError, match=r"nmsfree\[pillow\].*; saved at epoch 1, step 0: go"
    ):
        trainer._give_up(MissingExtraError("reading pictures", "nmsfree[pillow]"))


def test_a_damaged_state_goes_on_from_the_one_before(runs: Runs) -> None:
    runs.train("whole")
    runs.train("cut")
    runs.file("last.state.pt", "cut").write_bytes(b"damaged")
    listener = Listener()
    runs.train("cut", callback=listener, resume=True)
    assert "last.state.pt: damaged" in listener.told[0]
    assert "going on from previous.state.pt" in listener.told[0]
    assert listener.told[1] == "going on at epoch 2, step 3 of 2 epochs"
    runs.resume_and_compare(tiny())


def test_what_replaces_a_damaged_state_is_not_lost_to_it(runs: Runs) -> None:
    """Resumed from the state before, and killed before anything is saved: still two good tries."""
    runs.train(chosen=RT)
    runs.file("last.state.pt").write_bytes(b"damaged")
    trainer = runs.trainer(chosen=RT, resume=True)
    position, messages = trainer.checkpoints.load()
    assert len(messages) == 1
    trainer.checkpoints.save(position)
    runs.file("last.state.pt").unlink()  # as between the two renames
    assert load_state(trainer.run.out)[0].position == vars(position)


class Killed(Exception):
    """SIGKILL at the worst moment."""


def test_killed_between_checkpoint_and_state(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_and_die(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "save_checkpoint", write_and_die)
        runs.train("cut")
    runs.resume_and_compare(tiny())


def test_killed_in_the_evaluation(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step of the epoch is left, and its record names the heads all the same."""
    chosen = tiny(o2o_start=1 / 3, epochs=3)

    def die(*_: object) -> None:
        raise Killed

    trainer = runs.trainer("cut", chosen)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.checkpoints, "write_epoch", die)
        trainer.fit()
    runs.resume_and_compare(chosen)
    found = [("o2m_cls" in line, "o2o_cls" in line) for line in records(runs.folder / "cut")]
    assert found == [(True, False), (True, True), (True, True)]


def test_an_interrupt_at_the_very_end_leaves_the_state_alone(
    runs: Runs, val_set: DetectionDataset
) -> None:
    """The last analysis runs on the best weights; what is saved meanwhile are the last ones."""
    asked: list[bool] = []
    trainer = runs.train(
        chosen=tiny(ema=0.9), val=val_set, stop=lambda: bool(asked), evaluate_every=1
    )
    out = trainer.run.out
    before = load_state(out)[0]
    asked.append(True)
    with pytest.raises(Interrupted):
        analyse_best(trainer.validator, out)
    after = load_state(out)[0]
    assert same(before.network, after.network) and before.position == after.position
    asked.clear()
    analysis = analyse_best(trainer.validator, out)
    best = load_checkpoint(out / "best.safetensors")
    assert analysis is not None and best.thresholds == analysis.thresholds
    assert f"{analysis.metrics.ap:.4f}" == best.provenance["AP"]
    assert {"confusion_matrix.png", "pr_curve.png"} <= {p.name for p in out.iterdir()}


# Going on with something else


def test_a_finished_run_changes_only_with_more_epochs(runs: Runs) -> None:
    out = runs.train(chosen=RT).run.out
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    runs.train(chosen=RT, provenance={"command": "another"}, resume=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    listener = Listener()
    runs.train(chosen=tiny("fcos_rt_nano", epochs=2), callback=listener, resume=True)
    assert "was started for 1 epochs, now it is 2" in listener.told[0]
    assert [r["epoch"] for r in records(out)] == [1, 2]


def box_moved(data: DetectionDataset) -> DetectionDataset:
    first, *others = data.samples
    return replace(data, samples=(replace(first, boxes=first.boxes + 1), *others))


def class_changed(data: DetectionDataset) -> DetectionDataset:
    first, *others = data.samples
    labels = (first.labels + 1) % len(data.class_names)
    return replace(data, samples=(replace(first, labels=labels), *others))


def one_added(data: DetectionDataset) -> DetectionDataset:
    new = replace(data.samples[0], path=Path("new.png"))
    return replace(data, samples=(*data.samples, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (box_moved, r"annotations are not .*, the objects of 1 image \({first}\) differ"),
        (class_changed, r"annotations are not .*, the objects of 1 image \({first}\) differ"),
        (
            lambda data: replace(data, samples=data.samples[1:]),
            r"images are not .*: 1 image \({first}\) gone: bring back",
        ),
        (one_added, r"images are not .*: 1 image \(new\.png\) new: bring back"),
        (
            lambda data: replace(data, samples=data.samples[::-1]),
            "images are not .*: in another order",
        ),
        (
            lambda data: replace(data, category_ids=tuple(i + 5 for i in data.category_ids)),
            r"was started with category_ids = \[1, 2",
        ),
    ],
)
def test_resuming_on_other_data_says_what_differs(
    runs: Runs, change: Callable[[DetectionDataset], DetectionDataset], message: str
) -> None:
    few = runs.few
    few.train(chosen=RT)
    expected = message.format(first=few.data.samples[0].path.name)
    with pytest.raises(CheckpointError, match=expected) as caught:
        replace(few, data=change(few.data)).train(chosen=RT, resume=True)
    assert not re.search("[0-9a-f]{8}", str(caught.value).removeprefix(str(runs.folder)))


def test_resume_needs_a_whole_and_fitting_run(runs: Runs) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        runs.train(resume=True)
    runs.few.train(chosen=RT)
    with pytest.raises(CheckpointError, match=r"name = fcos_rt_nano, this run has fcos_o2o_nano"):
        runs.few.train(chosen=tiny("fcos_o2o_nano", epochs=1), resume=True)
    with pytest.raises(CheckpointError, match="seed = 0, this run has 1: give the options"):
        runs.few.train(chosen=RT, seed=1, resume=True)


def messages(runs: Runs) -> list[str]:
    """What is said when a run goes on."""
    return runs.trainer(chosen=RT, resume=True).checkpoints.load()[1]


def test_resuming_on_other_pictures_is_told(runs: Runs) -> None:
    """Also where the file has its old length; one that is missing or came back is no other."""
    (runs.folder / "set").mkdir()
    samples = []
    for sample in runs.few.data.samples:
        path = runs.folder / "set" / sample.path.name
        path.write_bytes(sample.path.read_bytes())
        samples.append(replace(sample, path=path))
    runs = replace(runs, data=replace(runs.data, samples=tuple(samples)))
    runs.train(chosen=RT)
    assert messages(runs) == []
    path = samples[2].path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (told,) = messages(runs)
    assert f"other pictures than the run was started with: 1 image ({path.name})" in told
    path.unlink()
    assert messages(runs) == []


def test_other_threads_are_told_when_a_run_goes_on(runs: Runs) -> None:
    with use_threads(1):
        out = runs.few.train(chosen=RT).run.out
        assert messages(runs.few) == []
    with use_threads(2):
        (told,) = messages(runs.few)
    assert "threads = 1 is now 2" in told and "not be bit for bit" in told
    state = load_state(out)[0]
    older = {k: v for k, v in state.recipe.items() if not k.startswith("machine.")}
    save_state(replace(state, recipe=older), out)  # it does not know: nothing to say
    assert messages(runs.few) == []


# The file a run goes on from: atomic, checked, with one before it


def state(step: int) -> TrainState:
    position = Position(epoch=2, step=step, iteration=20 + step, best=0.5, sums={"loss": 1.25})
    network = {"weight": torch.arange(1000.0) * step}
    return TrainState({"seed": 0}, vars(position), network, {"state": {}}, {}, None)


def test_a_state_survives_the_file(tmp_path: Path) -> None:
    save_state(state(3), tmp_path)
    loaded, warning = load_state(tmp_path)
    assert warning is None
    assert Position(**loaded.position) == Position(2, 3, 23, 0.5, {"loss": 1.25})
    assert torch.equal(loaded.network["weight"], torch.arange(1000.0) * 3)
    assert loaded.recipe == {"seed": 0} and loaded.ema is None


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(state(step), tmp_path)
    (tmp_path / LAST).unlink()
    loaded, warning = load_state(tmp_path)
    assert loaded.position["step"] == 2
    assert warning is not None and PREVIOUS in warning and "no such file" in warning
    assert sorted(p.name for p in tmp_path.iterdir()) == [PREVIOUS]  # nothing half-written


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_a_damaged_file_falls_back(damage: str, tmp_path: Path) -> None:
    save_state(state(1), tmp_path)
    save_state(state(2), tmp_path)
    content = bytearray((tmp_path / LAST).read_bytes())
    match damage:
        case "cut":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "flipped":  # one bit in the middle of the weights
            content[len(content) // 2] ^= 1
        case "text":
            content = bytearray(b"not a state")
    (tmp_path / LAST).write_bytes(content)
    loaded, warning = load_state(tmp_path)
    assert loaded.position["step"] == 1
    assert warning is not None and LAST in warning and "going on from previous" in warning
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(tmp_path)


def test_any_flipped_bit_falls_back(tmp_path: Path) -> None:
    """A bit of the archive's table of contents once gave other weights without a word."""
    for step in (1, 2):
        save_state(state(step), tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    table = whole.index(b"PK\x01\x02")
    for at in range(table, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (tmp_path / LAST).write_bytes(damaged)
        loaded, warning = load_state(tmp_path)
        assert loaded.position["step"] == 1 and warning is not None, at
    (tmp_path / PREVIOUS).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"no state is left to go on from, .* --init"):
        load_state(tmp_path)


def test_something_else_than_a_state(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"damaged .* or of another version"):
        load_state(tmp_path)
    later = replace(state(1), position=vars(Position()) | {"unknown": 1})
    save_state(later, tmp_path)
    with pytest.raises(CheckpointError, match="not a training state of this version"):
        load_state(tmp_path)
    for wrong in ({"epoch": -1}, {"step": "1"}, {"best": float("nan")}, {"sums": {"a": None}}):
        save_state(replace(state(1), position=vars(Position()) | wrong), tmp_path)
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            load_state(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_state(tmp_path / "nothing")
