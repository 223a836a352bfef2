"""Which file, which processor."""

import platform
import sys
from pathlib import Path

import pytest

from nmsfree import machine as identity


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of the processor")
def test_the_processor_of_this_machine() -> None:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = identity.processor_name().split(" (family ")[0]
    assert name in text or name == platform.processor()
    if "avx512_bf16" in text:
        assert identity.computes_bf16()


@pytest.mark.parametrize(
    ("described", "name"),
    [
        ({"model name": "AMD EPYC", "cpu family": "25", "model": "1"}, "family 25, model 1"),
        ({"model name": "AMD Ryzen 9 7950X", "cpu family": "25", "model": "97"}, None),
        ({"model name": "Intel(R) Xeon(R) Processor"}, None),
    ],
)
def test_a_name_without_a_number_gets_one(
    described: dict[str, str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_cpuinfo", lambda entry: described.get(entry, ""))
    expected = described["model name"] + (f" ({name})" if name else "")
    assert identity.processor_name() == expected


@pytest.mark.parametrize(
    ("described", "has"),
    [
        ({"flags": "fpu avx2 avx512_bf16 amx_tile"}, True),
        ({"flags": "fpu avx2 fma"}, False),
        ({"Features": "fp asimd bf16"}, True),
        ({"Features": "fp asimd"}, False),
        ({}, None),
    ],
)
def test_bf16_arithmetic(
    described: dict[str, str], has: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_cpuinfo", lambda entry: described.get(entry, ""))
    assert identity.computes_bf16() is has
