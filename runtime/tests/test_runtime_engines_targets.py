"""GPU names and compute capabilities."""

import pytest
from runtime_helpers import refused

from nmsfree import InputError
from nmsfree.backends.tensorrt.targets import SM_OF_GPU, normalise, resolve_targets, sm_of, sms_text

BUILDABLE = (75, 80, 86, 89, 120, 121)


@pytest.mark.parametrize(
    ("name", "sm"),
    [
        ("rtx4060", 89),
        ("RTX 4060", 89),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 89),
        ("rtx4070-ti-super", 89),
        ("RTX 2080 with Max-Q Design", 75),
        ("GeForce RTX 2050", 86),  # a laptop GPU of the generation after its name
        ("rtx3060", 86),
        ("rtx5090", 120),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 120),
        ("NVIDIA RTX 6000 Ada Generation", 89),
        ("NVIDIA RTX A2000 12GB", 86),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("NVIDIA H100 80GB HBM3", 90),
        ("Tesla T4", 75),
        ("Jetson Orin Nano", 87),
    ],
)
def test_names(name: str, sm: int) -> None:
    assert sm_of(name) == sm


def test_an_unknown_name() -> None:
    assert refused(lambda: sm_of("rtx9090"), InputError) == (
        "GPU is 'rtx9090', which is not known here: give its compute capability, for example "
        "--sm 89 for 8.9, or a name such as rtx3060, rtx4060, rtx5090"
    )


def test_targets_are_sorted_and_come_once() -> None:
    assert resolve_targets(["rtx5090", "rtx4090"], [86, 89], BUILDABLE) == (86, 89, 120)
    assert resolve_targets([], [], BUILDABLE) == (89,)
    assert sms_text((86, 89, 120)) == "SM 8.6, 8.9 and 12.0"
    assert all(normalise(name) == name for name in SM_OF_GPU)


@pytest.mark.parametrize(
    ("gpus", "sms", "shown"),
    [
        (["h100"], [], "h100 (SM 9.0)"),
        (["rtx4060", "jetson-orin"], [], "jetson-orin (SM 8.7)"),
        ([], [61], "SM 6.1"),
    ],
)
def test_what_the_builder_lacks_is_refused(gpus: list[str], sms: list[int], shown: str) -> None:
    assert refused(lambda: resolve_targets(gpus, sms, BUILDABLE), InputError) == (
        f"target is {shown}, the builder can do SM 7.5, 8.0, 8.6, 8.9, 12.0, 12.1: choose one of "
        "these, or run the ONNX file itself with --device cuda"
    )
