"""Speed of loading, of training and of a step's parts: what is timed, and what is concluded."""

import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.errors import DataError, InputError
from nmsfree_benchmarks.cli import app
from nmsfree_benchmarks.questions.criterion.step import (
    Predictions,
    Shape,
    cost_of,
    criterion_memory,
    measure_step,
    random_predictions,
    random_targets,
    summary,
    total_loss,
)
from nmsfree_benchmarks.questions.training import (
    STAGES,
    Clock,
    LoadingSpeed,
    TrainingBench,
    TrainingSpeed,
    batches,
    measure_loading,
    measure_training,
)
from nmsfree_training.config import Matching, preset
from nmsfree_training.criterion.assignment import Targets
from nmsfree_training.criterion.losses import head_losses

runner = CliRunner()
NANO = preset("fcos_e2e_nano", 10)
SMALLER = replace(
    NANO,
    model=replace(NANO.model, width=8, channels=32, head_convs=1),
    train=replace(NANO.train, batch_size=4),
    input_size=(128, 128),
)
CHOSEN = replace(NANO, train=replace(NANO.train, batch_size=4))


@pytest.fixture(scope="module")
def train_set(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("training") / "digits"
    write_digits(folder, train=12, val=0, overlap=0)
    return load_coco(folder, "train")


def test_stages_add_up_and_do_not_count_twice() -> None:
    clock = Clock()
    decode = clock.timed("decode", time.sleep)

    def mix() -> None:
        time.sleep(0.01)
        decode(0.03)
        time.sleep(0.01)

    start = time.perf_counter()
    clock.timed("mix", mix)()
    elapsed = (time.perf_counter() - start) * 1e3
    assert sum(clock.milliseconds.values()) == pytest.approx(elapsed, rel=0.2)
    assert clock.milliseconds["decode"] >= 30 and clock.milliseconds["mix"] >= 20
    assert clock.milliseconds["decode"] + 15 < elapsed


def test_loading_is_measured(train_set: DetectionDataset) -> None:
    threads = cv2.getNumThreads(), torch.get_num_threads()
    start = time.perf_counter()
    speed = measure_loading(train_set, CHOSEN, seconds=0.1)
    elapsed = time.perf_counter() - start
    assert (cv2.getNumThreads(), torch.get_num_threads()) == threads
    assert set(speed.stages) == set(STAGES)
    assert speed.stages["mix"] == 0
    assert all(ms > 0 for name, ms in speed.stages.items() if name != "mix")
    assert speed.images % 4 == 0
    timed = speed.images * sum(speed.stages.values()) / 1e3
    assert 0.1 * 0.3 < timed < elapsed  # the stages are nearly all there is
    low, high = speed.quartiles
    assert low <= speed.images_per_second_per_core <= high  # of single batches, not of their sum
    assert speed.images_per_second_per_core == pytest.approx(speed.images / timed, rel=0.5)
    assert speed.images_per_second_per_process > speed.images_per_second_per_core


def test_mosaics_are_a_stage_and_decode_more(train_set: DetectionDataset) -> None:
    mixed = replace(CHOSEN, train=replace(CHOSEN.train, mosaic=1.0, mixup=1.0))
    plain, made = (measure_loading(train_set, p, seconds=0.1) for p in (CHOSEN, mixed))
    assert made.stages["mix"] > 0
    assert made.stages["decode"] > 2 * plain.stages["decode"]


def test_training_is_measured(train_set: DetectionDataset) -> None:
    threads = torch.get_num_threads()
    for precision in ("fp32", "bf16"):
        speed = measure_training(train_set, SMALLER, seconds=0.01, precision=precision, threads=1)
        assert torch.get_num_threads() == threads
        assert (speed.batch_size, speed.height, speed.width) == (4, 112, 112)
        assert speed.steps >= 2 and speed.images == 4 * speed.steps
        assert speed.images_per_second == pytest.approx(speed.images / speed.seconds)
        assert f"{precision}, 1 thread)" in speed.summary()


def test_large_batches_are_cut_on_a_cpu(train_set: DetectionDataset) -> None:
    cpu = torch.device("cpu")
    assert len(batches(train_set, NANO, cpu)[0].images) == 12  # all there are
    large = replace(NANO, input_size=(1024, 512))
    assert len(batches(train_set, large, cpu)[0].images) == 2


def speeds(loaded: float, consumed: float) -> TrainingBench:
    stages = dict.fromkeys(STAGES, 0.0) | {"decode": 1e3 / loaded, "normalize": 0.5}
    return TrainingBench(
        "some_preset",
        LoadingSpeed(320, stages, 1e3 / sum(stages.values()), (loaded * 0.9, loaded * 1.1)),
        TrainingSpeed(160, 160 / consumed, 10, 16, 224.0, 224.0, "cpu", "fp32", 2),
    )


@pytest.mark.parametrize(
    ("loaded", "consumed", "processes"), [(100, 1, 1), (100, 99, 1), (100, 101, 2), (100, 950, 10)]
)
def test_as_many_processes_as_keep_up(loaded: float, consumed: float, processes: int) -> None:
    bench = speeds(loaded, consumed)
    assert bench.processes == processes
    assert bench.processes * bench.loading.images_per_second_per_process >= consumed
    assert bench.load == pytest.approx(consumed / loaded)


def test_the_summary_tells_stages_and_conclusion() -> None:
    text = speeds(100, 250).summary()
    assert "read and decode" in text and "mosaic" not in text  # stages that took no time
    assert "3 loader processes keep up: each is busy 83 % of the time" in text
    assert "250.0 images/s (10 steps of batch 16, 224 × 224 on average, cpu, fp32, 2 thr" in text
    assert "1 loader process keeps up: it is busy under 1 %" in speeds(100, 0.3).summary()


def test_the_whole_bench_is_json() -> None:
    bench = speeds(100, 99)
    content = json.loads(json.dumps(bench.to_json()))
    assert content["loader_processes"] == 1 and content["preset"] == "some_preset"
    assert content["training"]["images_per_second"] == pytest.approx(99)
    loading = content["loading"]
    assert loading["images_per_second_per_core"] == bench.loading.images_per_second_per_core


def test_what_cannot_be_measured_is_refused(train_set: DetectionDataset) -> None:
    with pytest.raises(InputError, match="expected fp32, bf16, fp16"):
        measure_training(train_set, CHOSEN, precision="int8")
    with pytest.raises(DataError, match="no images"):
        measure_loading(replace(train_set, samples=()), CHOSEN)


# The measurement of a step: what it puts down to whom


SMALL = Shape(2, 3, (64, 96))
PAUSE_S = 0.4


def touch(predictions: Predictions) -> Tensor:
    """A loss that reaches every input."""
    return torch.stack(
        [(p.logits.sum() + p.boxes.sum()) * 1e-6 for p in predictions.values()]
    ).sum()


def slow(predictions: Predictions, targets: Targets, padding: Tensor) -> Tensor:
    time.sleep(PAUSE_S)
    return touch(predictions)


def hungry(predictions: Predictions, targets: Targets, padding: Tensor) -> Tensor:
    held = [torch.ones(20_000) for _ in range(2500)]  # 200 MB
    assert len(held) == 2500
    return touch(predictions)


def test_time_of_the_criterion_is_its_own() -> None:
    cost = measure_step(SMALLER, SMALL, 2, 1, slow)
    assert len(cost["criterion_s"]["all"]) == len(cost["network_s"]["all"]) == 2
    assert cost["criterion_s"]["low"] >= PAUSE_S
    assert cost["network_s"]["low"] < PAUSE_S  # the pause is not in it
    assert measure_step(SMALLER, SMALL, 2, 1)["criterion_s"]["low"] < PAUSE_S


def test_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    assert measure_step(NANO, SMALL, 1, before + 1)["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_memory_of_the_criterion() -> None:
    assert 190e6 < criterion_memory(NANO, SMALL, hungry) < 230e6
    assert criterion_memory(NANO, SMALL) < 20e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others cannot be asked for it")
def test_memory_that_is_used_again_counts() -> None:
    blocks = [torch.ones(20_000) for _ in range(5000)]
    del blocks[:-1]  # 400 MB, kept from the system by the last one
    assert 190e6 < criterion_memory(NANO, SMALL, hungry) < 230e6


def test_report() -> None:
    shape, times = Shape(16, 50, (512, 736)), [(10.0, 0.1), (20.0, 0.1), (30.0, 0.6)]
    report = cost_of(NANO, shape, 2, times, 5_000_000)
    assert report["share"] == {
        "median": 0.01,
        "low": pytest.approx(0.005),
        "high": pytest.approx(0.02),
        "all": pytest.approx([0.01, 0.005, 0.02]),
    }
    assert (report["height"], report["width"], report["criterion_peak_mb"]) == (512, 736, 5.0)
    assert summary(report).splitlines() == [
        "fcos_e2e_nano, batch 16, 512 × 736, 10 classes, 50 objects an image, 2 threads",
        "network forward + backward 20.0 s (10.0–30.0), criterion 100 ms (100–600): "
        "1.00 % (0.50–2.00)",
        "peak memory of the criterion 5.0 MB",
    ]


def test_small_figures_keep_their_digits() -> None:
    times = [(0.0512, 0.00123), (0.0612, 0.00234), (0.0712, 0.00345)]
    text = summary(cost_of(NANO, Shape(1, 1, (64, 64)), 2, times, 48_300))
    assert "backward 61.2 ms (51.2–71.2), criterion 2.34 ms (1.23–3.45): " in text
    assert text.endswith("criterion 48 kB")


def test_random_objects_are_inside_and_assigned() -> None:
    targets = random_targets(3, 40, (64, 96), 7)
    assert targets.valid.all() and targets.boxes.shape == (3, 40, 4)
    assert targets.boxes.min() >= 0
    assert (targets.boxes[..., 2:] <= torch.tensor([96.0, 64.0]) + 1e-4).all()
    assert targets.labels.min() >= 0 and targets.labels.max() < 7


def test_total_is_the_sum_of_both_heads() -> None:
    made, targets = random_predictions(NANO, 1, (64, 64)), random_targets(1, 2, (64, 64), 10)
    padding = torch.zeros(1, 64, 64, dtype=torch.bool)
    cells = {"o2m": Matching(topk=13), "o2o": Matching(topk=1)}
    parts = [head_losses(made[h], targets, m, padding).total.item() for h, m in cells.items()]
    assert total_loss(made, targets, padding).item() == pytest.approx(sum(parts), rel=1e-6)


def test_loading_beside_training(train_set: DetectionDataset) -> None:
    data = train_set.samples[0].path.parents[1]
    options = ["--data", str(data), "--seconds", "0.1", "--json", "-"]
    result = runner.invoke(app, ["training", *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"] == "fcos_e2e_nano" and report["loader_processes"] >= 1
    assert report["loading"]["images_per_second_per_core"] > 0
    assert report["training"]["images_per_second"] > 0
    assert "keep" in result.stderr and "images/s" in result.stderr


def test_share_of_the_criterion(tmp_path: Path) -> None:
    options = ["--batch", "1", "--size", "64", "96", "--objects", "2", "--rounds", "1"]
    options += ["--json", str(tmp_path / "a.json")]
    result = runner.invoke(app, ["criterion", *options])
    assert result.exit_code == 0, result.output
    costs = json.loads((tmp_path / "a.json").read_text())["criterion"]
    assert [c["preset"] for c in costs] == ["fcos_rt_r18_3x", "fcos_e2e_r18_3x"]
    for cost in costs:
        measured = cost["criterion_s"]["median"] / cost["network_s"]["median"]
        assert cost["share"]["median"] == pytest.approx(measured, rel=1e-3)
        # So small a step may fit into memory that the process holds already: 0 is a right answer.
        assert 0 <= cost["criterion_peak_mb"] < 50


def test_a_dataset_that_is_missing(tmp_path: Path) -> None:
    result = runner.invoke(app, ["training", "--data", str(tmp_path / "none")])
    assert "is not a folder" in str(result.exception)
