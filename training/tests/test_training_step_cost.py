"""The measurement of a step: what it puts down to whom."""

import platform
import time

import pytest
import torch
from torch import Tensor

from nmsfree_benchmarks.questions.criterion.step import (
    Predictions,
    StepCost,
    criterion_memory,
    measure_step,
    random_predictions,
    random_targets,
    total_loss,
)
from nmsfree_training.config import Preset, preset
from nmsfree_training.criterion.assignment import Targets
from nmsfree_training.criterion.losses import detector_losses

SMALL = {"batch": 2, "size": (64, 96), "objects": 3}
PAUSE_S = 0.3


@pytest.fixture
def nano() -> Preset:
    return preset("fcos_e2e_nano", 10)


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


def test_time_of_the_criterion_is_its_own(nano: Preset) -> None:
    cost = measure_step(nano, **SMALL, rounds=2, threads=1, criterion=slow)  # type: ignore[arg-type]
    assert len(cost.criterion_s) == len(cost.network_s) == 2
    assert min(cost.criterion_s) >= PAUSE_S
    assert min(cost.network_s) < PAUSE_S  # the pause is not in it
    quick = measure_step(nano, **SMALL, rounds=2, threads=1)  # type: ignore[arg-type]
    assert min(quick.criterion_s) < PAUSE_S


def test_threads_are_as_before(nano: Preset) -> None:
    before = torch.get_num_threads()
    cost = measure_step(nano, **SMALL, rounds=1, threads=before + 1)  # type: ignore[arg-type]
    assert cost.threads == before + 1
    assert torch.get_num_threads() == before


def test_memory_of_the_criterion(nano: Preset) -> None:
    assert 190e6 < criterion_memory(nano, **SMALL, criterion=hungry) < 230e6  # type: ignore[arg-type]
    assert criterion_memory(nano, **SMALL) < 20e6  # type: ignore[arg-type]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others cannot be asked for it")
def test_memory_that_is_used_again_counts(nano: Preset) -> None:
    blocks = [torch.ones(20_000) for _ in range(5000)]
    del blocks[:-1]  # 400 MB, kept from the system by the last one
    assert 190e6 < criterion_memory(nano, **SMALL, criterion=hungry) < 230e6  # type: ignore[arg-type]


def test_report() -> None:
    cost = StepCost(
        "some", 16, (512, 736), 80, 50, 2, (10.0, 20.0, 30.0), (0.1, 0.1, 0.6), 5_000_000
    )
    report = cost.to_json()
    assert report["share"] == {
        "median": 0.01,
        "low": pytest.approx(0.005),
        "high": pytest.approx(0.02),
        "all": pytest.approx([0.01, 0.005, 0.02]),
    }
    assert (report["height"], report["width"], report["criterion_peak_mb"]) == (512, 736, 5.0)
    assert cost.summary().splitlines() == [
        "some, batch 16, 512 × 736, 80 classes, 50 objects an image, 2 threads",
        "network forward + backward 20.0 s (10.0–30.0), criterion 100 ms (100–600): "
        "1.00 % (0.50–2.00)",
        "peak memory of the criterion 5.0 MB",
    ]


def test_small_figures_keep_their_digits() -> None:
    network, criterion = (0.0512, 0.0612, 0.0712), (0.00123, 0.00234, 0.00345)
    text = StepCost("some", 1, (64, 64), 10, 1, 2, network, criterion, 48_300).summary()
    assert "backward 61.2 ms (51.2–71.2), criterion 2.34 ms (1.23–3.45): " in text
    assert text.endswith("criterion 48 kB")


def test_random_objects_are_inside_and_assigned() -> None:
    targets = random_targets(3, 40, (64, 96), 7)
    assert targets.valid.all() and targets.boxes.shape == (3, 40, 4)
    assert targets.boxes.min() >= 0
    assert (targets.boxes[..., 2:] <= torch.tensor([96.0, 64.0]) + 1e-4).all()
    assert targets.labels.min() >= 0 and targets.labels.max() < 7


def test_total_is_the_sum_of_both_heads(nano: Preset) -> None:
    made, targets = random_predictions(nano, 1, (64, 64)), random_targets(1, 2, (64, 64), 10)
    padding = torch.zeros(1, 64, 64, dtype=torch.bool)
    parts = detector_losses(made, targets, padding)
    assert list(parts) == ["o2m", "o2o"]
    total = total_loss(made, targets, padding).item()
    assert total == pytest.approx(sum(loss.total.item() for loss in parts.values()), rel=1e-6)
