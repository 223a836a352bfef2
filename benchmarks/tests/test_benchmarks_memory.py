"""Memory of a process of its own: what it allocates is seen, what its parent holds is not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nmsfree.errors import EngineError
from nmsfree_benchmarks.harness import memory
from nmsfree_benchmarks.harness.memory import MemoryMeter, peak_of

MB_100 = 12_500_000  # float64


def test_a_hundred_megabytes_are_seen() -> None:
    held = np.ones(4 * MB_100)  # by this process, and no business of the other one
    without = peak_of("numpy:ones", 1)
    assert 10 < without < 300
    assert peak_of("numpy:ones", MB_100) - without == pytest.approx(100, abs=15)
    assert held[-1] == 1


def test_what_fails_in_the_other_process_is_told() -> None:
    with pytest.raises(EngineError) as error:
        peak_of("numpy:nothing")
    assert str(error.value) == (
        "memory of numpy:nothing: crashed (status 1): AttributeError: module 'numpy' has no "
        "attribute 'nothing'"
    )
    with pytest.raises(EngineError) as error:
        MemoryMeter().measure(Path("none.onnx"), "cpu", 1)
    assert str(error.value) == (
        "memory of nmsfree_benchmarks.harness.memory:run_model: none.onnx: no such file"
    )


def test_a_process_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LONGEST", 0.2)
    with pytest.raises(EngineError) as error:
        peak_of("time:sleep", 60)
    assert str(error.value) == "memory of time:sleep: gave no answer within 0.2 seconds"


def test_an_engine_takes_memory(tiny: Path, exported: Callable[..., Path]) -> None:
    file = exported(tiny / "weights" / "fcos_e2e_nano.safetensors")
    figures = MemoryMeter().measure(file, "cpu", 1)
    assert set(figures) == {"peak_rss_mb", "engine_rss_mb"}
    # the weights alone, and at most the whole process
    assert file.stat().st_size / 1e6 < figures["engine_rss_mb"] < figures["peak_rss_mb"]
