"""What tests of the runtime share beside the fixtures of `conftest`."""

from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree import NmsfreeError, RawDetections
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import DataError
from nmsfree.evaluation.scores import Result
from nmsfree.spec import Tolerance

Noise = Callable[..., NDArray[np.uint8]]  # the fixture `noise`
Make = Callable[..., DetectionDataset]  # the fixture `make_dataset`
A = [10.0, 10.0, 100.0, 100.0]  # two boxes far apart, xywh
B = [150.0, 120.0, 100.0, 100.0]
ENGINES = ("cpu", "openvino", "tensorrt-rtx")  # that a canary of the tests names
EXACT = Tolerance(1e-3, 0.05, 0)


def result(box: list[float], score: float, category: int = 7, image: int = 0) -> Result:
    """A COCO result for what `make_dataset` makes."""
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def rows_in_base64(values: NDArray[np.floating[Any]]) -> str:
    """Rows float32 [n, 6] as a canary holds them."""
    return b64encode(values.astype("<f4").tobytes()).decode()


def listed(action: Callable[..., Iterable[object]], *arguments: object) -> list[object]:
    """All that an action gives; for a process of its own, which cannot hand on a generator."""
    return list(action(*arguments))


def refused(action: Callable[[], object], kind: type[NmsfreeError]) -> str:
    """The line with which an action fails; its error is of this very class."""
    with pytest.raises(kind) as info:
        action()
    assert type(info.value) is kind
    assert "\n" not in str(info.value)
    return str(info.value)


def not_loaded(message: str, root: Path, split: str = "train") -> str:
    """Loading a dataset ends in one short line; return it."""
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(root, split)
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1000
    return said


def assert_equal(found: RawDetections, expected: RawDetections) -> None:
    for name, value in expected._asdict().items():
        assert getattr(found, name).dtype == value.dtype, name
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def refusing(usual: type[NmsfreeError]) -> Callable[..., str]:
    """`refused` for a file of tests of which most expect one kind of error."""
    return lambda action, kind=usual: refused(action, kind)
