"""What a run says of the machine: the GPU's state, and what else it does."""

import ast
import inspect
from typing import Any, NamedTuple

import numpy as np
import pynvml
import pytest

from nmsfree.machine import Gpu, Gpus
from nmsfree_benchmarks.harness import gpu
from nmsfree_benchmarks.harness import machine as load
from nmsfree_benchmarks.harness.gpu import THROTTLES, GpuState, gpu_state, joules_per_image
from nmsfree_benchmarks.harness.machine import LoadMeter, hardware
from nmsfree_benchmarks.harness.timer import Image


def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert gpu_state() == GpuState()
    known = gpu_state().to_json()
    assert known.pop("throttled") == []
    assert set(known.values()) == {None}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's order is by speed, unless asked otherwise: the second on the bus may be the first."""
    names = (("0000:02:00.0", "RTX 4060"), ("0000:01:00.0", "T400"))
    found = Gpus(tuple(Gpu(name, (8, 9), 8 << 30, bus) for bus, name in names), "13.2", "")
    monkeypatch.setattr(gpu, "find_gpus", lambda: found)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_asked_for_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def handle(bus: str) -> str:
        if bus == "0000:01:00.0":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return bus

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: closed.append(True))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByPciBusId", handle)
    monkeypatch.setattr(gpu, "_read", lambda handle: GpuState(name=handle))
    assert gpu_state() == GpuState("0000:02:00.0")
    assert gpu_state(1) == GpuState()  # which NVML does not know
    assert gpu_state(7) == GpuState()
    assert closed == [True] * 3


class Memory:
    used = 3 * 2**20


def answers(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    for name, value in values.items():
        monkeypatch.setattr(pynvml, name, lambda *_, value=value: value)


@pytest.mark.usefixtures("two_gpus")
def test_what_a_gpu_tells_is_in_the_units_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    capped = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonHwSlowdown
    answers(
        monkeypatch,
        nvmlInit=None,
        nvmlShutdown=None,
        nvmlDeviceGetHandleByPciBusId=0,
        nvmlDeviceGetCurrentClocksThrottleReasons=capped,
        nvmlDeviceGetPowerUsage=115_500,
        nvmlDeviceGetMemoryInfo=Memory,
        nvmlDeviceGetName="A GPU",
        nvmlSystemGetDriverVersion="600.1",
        nvmlDeviceGetClockInfo=2400,
        nvmlDeviceGetMaxClockInfo=3000,
        nvmlDeviceGetTemperature=60,
    )
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", unsupported)
    state = gpu_state()
    assert state == GpuState(
        "A GPU", "600.1", 2400, 3000, 60, 115.5, None, 3.0, ("power cap", "hardware slowdown")
    )


def test_every_name_that_is_used_exists() -> None:
    """Tests run without a GPU, where a mistyped name would never be met."""
    tree = ast.parse(inspect.getsource(gpu))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "pynvml"
    }
    assert len(used) > 10
    assert {name for name in used if not hasattr(pynvml, name)} == set()
    assert all(flag and flag & (flag - 1) == 0 for flag in THROTTLES)  # one bit each


class Spent(NamedTuple):
    """Seconds of all processors; what guests take is in `user`."""

    user: float
    idle: float
    iowait: float = 1
    guest: float = 500


@pytest.mark.parametrize(
    ("before", "after", "own", "others"),
    [
        (Spent(3000, 1000), Spent(3300, 1100), 0.0, 3.0),
        (Spent(0, 0), Spent(100, 300), 0.5, 0.5),  # half of the busy core is this process
        (Spent(3, 1), Spent(3, 1), 0.0, None),  # no tick has passed
    ],
)
def test_other_work_is_counted_in_cores(
    before: Spent, after: Spent, own: float, others: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = iter([100.0, 101.0]), iter([before, after]), iter([10.0, 10.0 + own])
    monkeypatch.setattr("time.monotonic", lambda: next(clocks[0]))
    monkeypatch.setattr("psutil.cpu_times", lambda: next(clocks[1]))
    monkeypatch.setattr(load, "_own_seconds", lambda: next(clocks[2]))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with LoadMeter() as meter:
        assert meter.others is None
    assert meter.others == others


def test_energy_is_what_the_counter_says_by_the_pictures() -> None:
    shown: list[int] = []
    pictures = [np.full((1, 1, 3), i, np.uint8) for i in range(3)]

    def call(image: Image) -> tuple[int]:
        shown.append(int(image[0, 0, 0]))
        return (0,)

    def joules() -> float:
        return 100 + 0.25 * len(shown)

    assert joules_per_image(call, pictures, joules, seconds=0.01) == pytest.approx(0.25)
    assert len(shown) > 3 and shown[:4] == [0, 1, 2, 0]
    shown.clear()
    assert joules_per_image(call, pictures, joules, seconds=0) == 0.25  # at least one
    shown.clear()
    assert joules_per_image(call, pictures, lambda: None) is None and not shown  # no counter


def test_a_gpu_is_named_where_it_ran_the_models() -> None:
    here = {"processor": "EPYC", "device": "cpu", "gpu": "RTX 4060"}
    assert hardware(here) == "EPYC (cpu)"
    assert hardware(here | {"device": "cuda:1"}) == "RTX 4060 (cuda:1), EPYC"
    assert hardware(here | {"device": "openvino", "gpu": None}) == "EPYC (openvino)"
