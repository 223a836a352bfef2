"""What the fake TensorRT takes, the real one takes: methods, arguments, attributes, enumerations.

The fake has what the backend calls and nothing more, so that what runs on it runs on these names.
Builders, parsers and loggers are the real ones in other tests; cuda-python runs whole on a driver
made here (`test_runtime_cuda_stub.py`), and pycuda on a fake (`pycuda_driver.py`).
"""

import enum
import inspect
import re
from typing import Any

import pytest

from nmsfree.testing import tensorrt as tensorrt_fake
from nmsfree.testing.cuda import FakeCuda

trt = pytest.importorskip("tensorrt_rtx")

MODULE = tensorrt_fake.FakeTensorRt(FakeCuda(), lambda images: {})
FAKES = {
    tensorrt_fake._Runtime: trt.Runtime,
    tensorrt_fake._Engine: trt.ICudaEngine,
    tensorrt_fake._Config: trt.IRuntimeConfig,
    tensorrt_fake._Cache: trt.IRuntimeCache,
    tensorrt_fake._Context: trt.IExecutionContext,
    tensorrt_fake._Logger: trt.ILogger,
}
# Of the fake itself; what else is there, the backend may call or set.
OWN = "fails falls_back compile runtime module logger tensors profile parts cache engine"
OWN += " addresses rows"


def signatures(function: Any) -> list[list[str]]:
    """The arguments by name, a list for each signature; pybind11 writes them in docstrings."""
    lines = re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> ", function.__doc__ or "", re.MULTILINE)
    found = []
    for line in lines:
        parts, depth = [""], 0
        for character in line:
            depth += (character in "[(<") - (character in "])>")
            if character == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += character
        names = [part.split(":")[0].strip() for part in parts if part.strip()]
        found.append([name for name in names if name != "self"])
    return found


@pytest.mark.parametrize("fake", FAKES, ids=lambda kind: kind.__name__)
def test_methods_take_what_the_real_ones_take(fake: type) -> None:
    for name, function in vars(fake).items():
        if inspect.isfunction(function) and name[0] != "_" and name not in OWN.split():
            names = [p for p in inspect.signature(function).parameters if p != "self"]
            offered = signatures(getattr(FAKES[fake], name))
            assert names in offered, f"{name}{names}, really one of {offered}"


def test_attributes_exist() -> None:
    runtime = MODULE.Runtime(None)
    plan = {"tensors": {"images": ["uint8", [1, 8, 8, 3]]}, "batch": [1, 1, 1]}
    engine = tensorrt_fake._Engine(runtime, plan)
    for made in (runtime, engine, engine.create_runtime_config()):
        names = vars(made).keys() - set(OWN.split())
        assert names <= set(dir(FAKES[type(made)]))
    own = {"num_io_tensors", "device_memory_size_v2"}
    assert own == vars(engine).keys() - set(OWN.split())


def test_the_module_has_its_names_and_values() -> None:
    kinds = [name for name, value in vars(MODULE).items() if isinstance(value, type)]
    assert len(kinds) == 6
    for name in [*kinds, "Runtime", "nptype"]:
        assert hasattr(trt, name)
        if isinstance(kind := getattr(MODULE, name), enum.EnumType):
            assert {member.name for member in kind} <= set(dir(getattr(trt, name)))
    assert list(inspect.signature(trt.nptype).parameters) == ["trt_type"]
