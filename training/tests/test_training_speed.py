"""Speed of loading and training: what is timed, and what is concluded."""

import json
import time
from dataclasses import replace

import cv2
import pytest
import torch

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError, InputError
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
from nmsfree_training.config import Preset, preset


@pytest.fixture
def chosen() -> Preset:
    nano = preset("fcos_e2e_nano", 10)
    return replace(nano, train=replace(nano.train, batch_size=4))


def test_stages_add_up_and_do_not_count_twice() -> None:
    clock = Clock()
    start = time.perf_counter()
    with clock.stage("mix"):
        time.sleep(0.01)
        with clock.stage("decode"):
            time.sleep(0.03)
        time.sleep(0.01)
    elapsed = (time.perf_counter() - start) * 1e3
    assert sum(clock.milliseconds.values()) == pytest.approx(elapsed, rel=0.2)
    assert clock.milliseconds["decode"] >= 30 and clock.milliseconds["mix"] >= 20
    assert clock.milliseconds["decode"] + 15 < elapsed


def test_loading_is_measured(train_set: DetectionDataset, chosen: Preset) -> None:
    threads = cv2.getNumThreads(), torch.get_num_threads()
    start = time.perf_counter()
    speed = measure_loading(train_set, chosen, seconds=0.1)
    elapsed = time.perf_counter() - start
    assert (cv2.getNumThreads(), torch.get_num_threads()) == threads
    assert set(speed.stages) == set(STAGES)
    assert speed.stages["mix"] == 0
    assert all(ms > 0 for name, ms in speed.stages.items() if name != "mix")
    assert speed.images % 4 == 0
    timed = speed.images * sum(speed.stages.values()) / 1e3
    assert 0.1 * 0.3 < timed < elapsed  # the stages are nearly all there is
    low, high = speed.quartiles
    assert low <= speed.images_per_second <= high  # of single batches, not of their sum
    assert speed.images_per_second == pytest.approx(speed.images / timed, rel=0.5)
    assert speed.images_per_second_per_process > speed.images_per_second


def test_mosaics_are_a_stage_and_decode_more(train_set: DetectionDataset, chosen: Preset) -> None:
    mixed = replace(chosen, train=replace(chosen.train, mosaic=1.0, mixup=1.0))
    plain, made = (measure_loading(train_set, p, seconds=0.1) for p in (chosen, mixed))
    assert made.stages["mix"] > 0
    assert made.stages["decode"] > 2 * plain.stages["decode"]


def test_training_is_measured(train_set: DetectionDataset, chosen: Preset) -> None:
    threads = torch.get_num_threads()
    for precision in ("fp32", "bf16"):
        speed = measure_training(train_set, chosen, seconds=0.01, precision=precision, threads=1)
        assert torch.get_num_threads() == threads
        assert (speed.batch_size, speed.height, speed.width) == (4, 224, 224)
        assert speed.steps >= 2 and speed.images == 4 * speed.steps
        assert speed.images_per_second == pytest.approx(speed.images / speed.seconds)
        assert f"{precision}, 1 thread)" in speed.summary()


def test_large_batches_are_cut_on_a_cpu(train_set: DetectionDataset) -> None:
    nano = preset("fcos_e2e_nano", 10)
    cpu = torch.device("cpu")
    assert len(batches(train_set, nano, cpu)[0].images) == 12  # all there are
    large = replace(nano, input_size=(1024, 512))
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
    assert loading["images_per_second_per_core"] == bench.loading.images_per_second
    assert "images_per_second" not in loading  # one name for one figure


def test_what_cannot_be_measured_is_refused(train_set: DetectionDataset, chosen: Preset) -> None:
    with pytest.raises(InputError, match="expected fp32, bf16, fp16"):
        measure_training(train_set, chosen, precision="int8")
    with pytest.raises(DataError, match="no images"):
        measure_loading(replace(train_set, samples=()), chosen)
