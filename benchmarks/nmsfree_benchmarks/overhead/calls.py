"""Calls that need no network: decoding a file, and preprocessing alone."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import CallableBackend, RawDetections
from nmsfree.detector import Detector
from nmsfree.images import read_image
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.machine.measure import Call, Image
from nmsfree_benchmarks.overhead.rules import LARGE_INPUT
from nmsfree_benchmarks.overhead.sources import Scene


def from_scene(call: Call, bases: Sequence[Image], images: Sequence[Image]) -> Call:
    """Return a call that takes a scene and runs on its picture of another size.

    So that all sizes take turns on the same scenes.
    """
    picture = {id(base): image for base, image in zip(bases, images, strict=True)}
    return lambda base: call(picture[id(base)])


def decode_calls(name: str, bases: Sequence[Image], scenes: Sequence[Scene]) -> dict[str, Call]:
    """Reading and decoding the files of one size, by "decode NAME.SUFFIX"."""
    return {
        f"decode {name}{suffix}": _decode_call(
            {id(base): scene.files[suffix] for base, scene in zip(bases, scenes, strict=True)}
        )
        for suffix in scenes[0].files
    }


def _decode_call(files: dict[int, Path]) -> Call:
    def call(base: Image) -> Sequence[int]:
        path = files[id(base)]
        start = time.perf_counter_ns()
        read_image(path)
        return (time.perf_counter_ns() - start,)

    return call


def preprocess_call() -> Call:
    """Return a call that times what `Detector` does before a network of 512 × 736 pixels."""
    height, width = LARGE_INPUT
    spec = ModelSpec("preprocessing", "o2o", height, width, 1, ("none",), (0,))
    detector = Detector(CallableBackend(_no_network, spec))

    def call(image: Image) -> Sequence[int]:
        start = time.perf_counter_ns()
        detector.preprocess([image])
        return (time.perf_counter_ns() - start,)

    return call


def _no_network(images: NDArray[np.uint8]) -> RawDetections:
    raise NotImplementedError
