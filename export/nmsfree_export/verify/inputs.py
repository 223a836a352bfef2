"""A file that takes whole pictures, or planar floats, beside the file that it was made of.

Two checks of a file with input `any`: the pixels that it makes of noise are those that
`nmsfree.preprocess` makes; and on pictures of many sizes its detections are those of the other.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from nmsfree.backends import Backend
from nmsfree.backends.onnxruntime.session import make_session
from nmsfree.backends.rows import Rows, match
from nmsfree.detector import Detector
from nmsfree.errors import GateError, InputError
from nmsfree.preprocess import resize_into
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import made_of
from nmsfree_export.graph.inputs import PIXELS, with_input
from nmsfree_export.options import STRICT, InputOptions, Tolerance
from nmsfree_export.verify.canary import with_canary
from nmsfree_export.verify.certificate import Certificate, Line, check_graph
from nmsfree_export.verify.parity import (
    FAR,
    Parity,
    Pictures,
    bundled_pictures,
    compare,
    differences,
    medians,
    on_processor,
)

# Height, width: from one pixel to 4K, long ones, smaller than an input and as large as usual ones.
SIZES = (
    *((1, 1), (2, 3), (1, 40), (50, 1), (16, 16), (31, 33), (64, 48), (97, 130), (150, 90)),
    *((240, 320), (256, 256), (333, 1000), (480, 640), (512, 736), (720, 405), (640, 640)),
    *((1024, 735), (1080, 1920), (1500, 97), (2160, 3840)),
)
WHOLE = Tolerance(5e-3, 0.5)  # scores; corners in pixels of the picture
SURE = 0.02  # above the floor: a row of such a score needs a partner
LEVELS = 1  # of grey that a pixel may differ by
Log = Callable[[str], None]


class Resizing(NamedTuple):
    """How the pixels that a graph makes differ from those of `nmsfree.preprocess`."""

    pictures: int
    largest: int  # difference, in grey levels
    share: float  # of the values that differ

    def __str__(self) -> str:
        return (
            f"noise of {self.pictures} sizes resized to within {self.largest} grey levels,"
            f" {1e6 * self.share:.3g} of a million values differ"
        )


@dataclass(frozen=True)
class InputCheck:
    """What a file with another input has shown."""

    lines: tuple[Line, ...]  # of the new graph's certificate
    parity: Parity  # beside the file that takes resized pictures
    resizing: Resizing | None = None  # None: it resizes nothing

    def __str__(self) -> str:
        return f"{self.parity}" + (f"; {self.resizing}" if self.resizing else "")

    def certified(self, before: Certificate) -> Certificate:
        """The certificate of the file that it was made of, as one of the new file."""
        return replace(before, lines=tuple((dict(before.lines) | dict(self.lines)).items()))

    def to_json(self) -> dict[str, object]:
        resizing = self.resizing and self.resizing._asdict()
        return {"parity": self.parity.to_json(), "resizing": resizing}


def finish(
    model: ModelProto,
    spec: ModelSpec,
    host: InputOptions,
    folder: Path,
    pictures: Pictures,
    progress: Log = lambda _: None,
) -> tuple[ModelProto, ModelSpec, InputCheck | None]:
    """Give a verified model the input that is asked for; its graph, description and what it showed.

    Args:
        model, spec: of a file that takes resized pictures, with its canary.
        folder: for temporary files.
        pictures: that it is compared on, in many sizes.

    Raises:
        InputError: the file has no such input.
        GateError: the new file does not say what the other says.
    """
    if host.input == "model":
        return model, spec, None
    if spec.input != "model":
        raise InputError(
            f"the file's input is {spec.input} already: give the one that it was made from"
        )
    if host.input == "any" and (spec.batch or 1) > 1:
        raise InputError(f"--input any takes one picture at a time, the file {spec.batch}")
    batch = 1 if host.input == "any" else spec.batch
    wanted = replace(
        spec, input=host.input, source=host.source, batch=batch, size_step=None, canary=None
    )
    made = with_input(model, wanted)
    lines = tuple(check_graph(made, wanted))
    progress("comparing the file's input")
    with (
        closing(on_processor(model, spec, folder)) as usual,
        closing(on_processor(made, wanted, folder)) as whole,
    ):
        if host.input == "any":
            found = compare_pictures(usual, whole, many_sizes((wanted,), pictures))
            check = InputCheck(lines, found, check_resizing(made, wanted))
        else:
            check = InputCheck(lines, compare(usual, whole, pictures, STRICT))
        check.parity.enforce()
        return made, with_canary(wanted, whole), check


def many_sizes(specs: Iterable[ModelSpec], base: Pictures | None = None) -> Pictures:
    """Pictures of `SIZES`, or of the one that a file takes, made of `base` in turns."""
    base = bundled_pictures() if base is None else base
    fixed = [spec.source for spec in specs if spec.source is not None]
    found = []
    for i, (height, width) in enumerate(fixed[:1] * len(base) or SIZES):
        name, picture = base[i % len(base)]
        new = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        found.append((f"{name} at {height} × {width}", np.asarray(new, np.uint8)))
    return found


def compare_pictures(
    a: Backend,
    b: Backend,
    pictures: Pictures,
    tolerance: Tolerance = WHOLE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run two models through `Detector`, and compare the rows in pixels of the pictures.

    Every row that scores `SURE` above the floor, and above the last of a full list, needs a
    partner, and counts.
    """
    detectors = Detector(a), Detector(b)
    rows = unmatched = confident = 0
    score, box, worst = 0.0, 0.0, "–"
    apart = []
    for done, (name, picture) in enumerate(pictures, 1):
        ours, theirs = (_rows(detector, picture) for detector in detectors)
        far = FAR * max(picture.shape[:2]) + tolerance.box
        mine, other = match(ours, theirs, FAR, far)
        lonely = ours.alone(mine, theirs, 0) + theirs.alone(other, ours, 0)
        # Of a row that either list may have cut, another one may have become the partner.
        sure = (ours.scores[mine] > theirs.cut) & (theirs.scores[other] > ours.cut)
        apart.append(differences(ours, theirs, mine[sure], other[sure]))
        rows, unmatched = rows + len(apart[-1]) + lonely, unmatched + lonely
        confident += int((ours.scores > FAR).sum())
        score = max(score, float(apart[-1][:, 0].max(initial=0)))
        if (farthest := float(apart[-1][:, 1:].max(initial=0))) >= box:
            box, worst = farthest, name
        progress(done, len(pictures))
    seen = len(pictures), rows, unmatched, score, box, worst, tolerance, None, confident
    return Parity(*seen, *medians(apart))


def _rows(detector: Detector, picture: NDArray[np.uint8]) -> Rows:
    spec = detector.spec
    found = detector(picture, threshold=spec.score_floor)
    full = len(found) == spec.top_k
    cut = spec.score_floor + SURE
    if full:
        cut = max(cut, float(found.confidence[-1]) + WHOLE.score)
    return Rows(found.xyxy, found.confidence, found.class_id, cut)


def check_resizing(model: ModelProto, spec: ModelSpec) -> Resizing:
    """Resize noise of many sizes in the graph and in `nmsfree.preprocess`; GateError: differs."""
    sizes = SIZES if spec.source is None else (spec.source,)
    largest = differing = count = 0
    for made, wanted in _both_resized(model, spec, sizes):
        apart = np.abs(made - wanted)
        largest = max(largest, int(apart.max()))
        differing, count = differing + int((apart > 0).sum()), count + apart.size
    found = Resizing(len(sizes), largest, differing / count)
    if largest > LEVELS:
        raise GateError(f"input: {found}; expected {LEVELS} grey level at most")
    return found


def _both_resized(
    model: ModelProto, spec: ModelSpec, sizes: Iterable[tuple[int, int]]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    nodes, needed = made_of(model.graph.node, [PIXELS])
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    outputs = [ValueInfoProto(name=PIXELS)]
    graph = helper.make_graph(nodes, "resize", model.graph.input, outputs, tensors)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = make_session(part.SerializeToString())
    for seed, (height, width) in enumerate(sizes):
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        wanted = np.empty((spec.height, spec.width, 3), np.uint8)
        resize_into(noise, wanted, spec.resize)
        yield session.run([PIXELS], {"images": noise[None]})[0][0], wanted
