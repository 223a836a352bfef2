"""ModelSpec: everything a runtime must know about a model, kept inside the model's file.

It travels as JSON under a metadata key of an ONNX file (`model_spec.schema.json` beside this
module). A newer minor version of the format loads, unknown fields ignored; a newer major does not,
since a model fed with wrongly resized pictures would answer all the same.
"""

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from nmsfree.errors import ModelError
from nmsfree.parsing import Byte, Positive, Sha256, Share, Side, decode_format

TARGET_PRECISION = 0.9


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Scores above which detections are worth showing, overall and for every class.

    A detection is kept if its score is above the threshold. Precision, recall and
    F1 = 2·precision·recall / (precision + recall) are those at IoU 0.5.

    Attributes:
        best_f1: threshold of the largest F1 over the detections of all classes together.
        target_precision: the precision that the next ones are about.
        at_precision: lowest threshold with at least that precision; None if there is none.
        recall_at_precision: recall at `at_precision`; None where that is None.
        …_per_class: the same for each class, index = class id; None where the split has no object
            of the class.
        measured_on: what they were measured on, "digits val, 300 images, IoU 0.5".
    """

    best_f1: Share
    best_f1_per_class: tuple[Share | None, ...]
    target_precision: Share = TARGET_PRECISION
    at_precision: Share | None
    at_precision_per_class: tuple[Share | None, ...]
    recall_at_precision: Share | None
    recall_at_precision_per_class: tuple[Share | None, ...]
    measured_on: str

    def __post_init__(self) -> None:
        counts = {len(v) for k, v in vars(self).items() if k.endswith("_per_class")}
        if len(counts) != 1:
            raise ModelError(
                f"thresholds of {sorted(counts)} classes, expected one number of classes: "
                "measure them again with `nmsfree eval`"
            )

    def for_best_f1(self) -> tuple[float, ...]:
        """Return the best-F1 threshold of every class; the overall one for those without."""
        return tuple(self.best_f1 if t is None else t for t in self.best_f1_per_class)

    def for_precision(self) -> tuple[float, ...]:
        """Return the threshold of every class that reaches `target_precision`.

        It is 1, which no score passes, for a class that never reaches it. Of a class that had no
        object nothing is known: it takes the overall threshold.
        """
        overall = 1.0 if self.at_precision is None else self.at_precision
        pairs = zip(self.at_precision_per_class, self.best_f1_per_class, strict=True)
        return tuple(
            (overall if best is None else 1.0) if precise is None else precise
            for precise, best in pairs
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for `json.dumps`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


METADATA_KEY = "nmsfree"
FORMAT_VERSION = "2.1"  # 2.0: resize, int8_target, canary; 2.1: input, source

AGAIN = "export the model again"
LEAST_ROWS = 10  # of a canary: fewer say too little

Head = Literal["o2o", "o2m", "queries"]
Target = Literal["cpu", "tensorrt"]
Input = Literal["model", "any", "nchw-float"]


@dataclass(frozen=True)
class Resize:
    """How a picture becomes the model's input, see `nmsfree.preprocess`.

    The defaults are those of this project's own networks.
    """

    kind: Literal["letterbox", "stretch"] = "letterbox"  # aspect kept and padded, or not kept
    place: Literal["top-left", "center"] = "top-left"  # of the picture in a letterbox
    pad: tuple[Byte, Byte, Byte] = (104, 116, 124)  # BGR, around the picture in a letterbox
    interpolation: Literal["linear", "area", "cubic"] = "linear"  # OpenCV's; area is 10 × slower
    antialias: bool = False  # Pillow's bilinear filter instead; needs the extra `pillow`
    enlarge: bool = True  # a picture smaller than the input is made larger


@dataclass(frozen=True)
class NmsSpec:
    """Non-maximum suppression that a file carries in its graph.

    With `steps` it is a fixed number of matrix products in plain operators, which every engine
    builds: equal to the greedy loop wherever no chain of overlaps is longer than that. The number
    is even, so that what such a chain leaves are boxes too many, which can be seen.
    """

    iou: Share = 0.6  # boxes that overlap a better one by more than this are removed
    class_aware: bool = True  # within a class only
    candidates_per_level: Positive = 1000  # best (cell, class) pairs of a level that enter NMS
    steps: Positive | None = None  # None: the operator NonMaxSuppression
    candidates: Positive | None = None  # best of all levels that enter the steps


@dataclass(frozen=True)
class Tolerance:
    """What may differ from the rows of a canary."""

    score: Annotated[float, Meta(gt=0)]  # of ln(score): about the relative difference of scores
    box: Annotated[float, Meta(gt=0)]  # of a corner, in input pixels
    missing: Share  # rows that may differ by more, of all


@dataclass(frozen=True)
class Canary:
    """What a file answered when it was written, to a picture that anybody can compute.

    Attributes:
        seed, sha256: of the picture, see `nmsfree.canary.canary_picture`; its bytes row by row.
        rows: all rows, also those below the floor (of NMS: those that it left); base64 of float32,
            little-endian [n, 6], x1, y1, x2, y2 in input pixels, score, class.
        tolerances: by what computes: "cpu", "cuda", "openvino", "tensorrt", "tensorrt-rtx" in the
            precision of the file, or "tf32" and "bf16" wherever an engine computes less exactly.
    """

    seed: Annotated[int, Meta(ge=0, lt=2**31)]
    sha256: Sha256
    rows: str
    tolerances: Mapping[str, Tolerance]

    def __post_init__(self) -> None:
        values = self.values()
        if not np.isfinite(values).all() or len(values) < LEAST_ROWS:
            raise ModelError(
                f"its canary has {len(values)} rows, expected {LEAST_ROWS} or more of finite"
                " numbers"
            )

    def values(self) -> NDArray[np.float32]:
        """The rows, float32 [n, 6]."""
        try:
            return np.frombuffer(b64decode(self.rows, validate=True), "<f4").reshape(-1, 6)
        except ValueError:
            raise ModelError("its canary's rows cannot be read") from None


@dataclass(frozen=True)
class ModelSpec:
    """What a model takes and gives.

    Attributes:
        name: preset or user's name of the model.
        head: "o2o" (one-to-one head, needs no NMS) or "o2m" (one-to-many head + NMS).
        height, width: size of the model's input in pixels; the usual one where `size_step` is set.
        batch: fixed batch size, or None where any batch size runs.
        class_names: one name per class, index = class id.
        category_ids: the dataset's own id of each class (COCO's are sparse).
        top_k: rows of the output; never more than the number of cells.
        score_floor: `num_detections` counts the scores above this.
        threshold: score below which a detection is not shown unless asked for.
        resize: how a picture becomes the input.
        input: what `images` is. "model": pictures that were resized so, uint8 [N, height, width,
            3], BGR; "any": a picture as it is, uint8 [1, h, w, 3], BGR, which the graph resizes,
            with boxes in its pixels; "nchw-float": as "model", but float32 [N, 3, height, width],
            RGB, 0 … 1.
        source: (height, width) of the pictures that "any" takes; None: any.
        nms: the NMS in the graph; None for the NMS-free head.
        precision: arithmetic of the file, for example "fp32".
        int8_target: kind of engine that an INT8 file was made for, "cpu" or "tensorrt"; None runs
            on any, see `check_int8_target`.
        thresholds: recommended scores, measured by `nmsfree eval`; None where they are not known.
        canary: what the file must answer to one picture; None in files that have none.
        size_step: the file takes any height and width that are multiples of this; None takes the
            one size.
        provenance: free text about where the weights come from.
        format_version: version of this description, "major.minor".
    """

    name: str
    head: Head
    height: Side
    width: Side
    batch: Positive | None
    class_names: Annotated[tuple[str, ...], Meta(min_length=1)]
    category_ids: tuple[int, ...]
    top_k: Positive = 100
    score_floor: Share = 0.05
    threshold: Share = 0.3
    resize: Resize = Resize()
    input: Input = "model"
    source: tuple[Side, Side] | None = None
    nms: NmsSpec | None = None
    precision: str = "fp32"
    int8_target: Target | None = None
    thresholds: Thresholds | None = None
    canary: Canary | None = None
    size_step: Positive | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    format_version: Annotated[str, Meta(pattern=r"^2(\.|$)")] = FORMAT_VERSION

    def __post_init__(self) -> None:
        if len(self.category_ids) != len(self.class_names):
            raise ModelError(
                f"{len(self.category_ids)} category ids for {len(self.class_names)} class names: "
                "give one id per name"
            )
        measured = self.thresholds and len(self.thresholds.best_f1_per_class)
        if measured is not None and measured != len(self.class_names):
            raise ModelError(
                f"thresholds of {measured} classes for {len(self.class_names)} class names: "
                "measure them again with `nmsfree eval`"
            )
        rows = self.canary and len(self.canary.values())
        if rows and (rows > self.top_k or (self.nms is None and rows < self.top_k)):
            raise ModelError(f"its canary has {rows} rows, the file {self.top_k}")
        if len(set(self.class_names)) != len(self.class_names):
            twice = next(n for n in self.class_names if self.class_names.count(n) > 1)
            raise ModelError(f"class name {twice!r} occurs twice: give every class its own name")

    @property
    def canary_size(self) -> tuple[int, int]:
        """(height, width) of the canary's picture."""
        return self.source or (self.height, self.width)

    def to_json(self) -> str:
        """Return the description as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: object = "model description") -> "ModelSpec":
        """Read a description; one of a newer minor version loads, fields it adds are ignored.

        Args:
            where: what the text is; begins the message.

        Raises:
            ModelError: not JSON, a newer major version, or a field missing, of another type or
                out of its bounds.
        """
        return decode_format(text, cls, FORMAT_VERSION, where, ModelError, AGAIN, from_format_1)


def from_format_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a description as format 2 has them: all were letterboxed to the top left then."""
    if not str(fields.get("format_version")).startswith("1."):
        return fields
    resize = {"interpolation": fields.get("interpolation", "linear")}
    return fields | {
        "resize": resize,
        "int8_target": fields.get("made_for"),
        "format_version": FORMAT_VERSION,
    }


# What runs a file → why a file made for the key does not fit it. What is not named here fits.
_REASONS = {
    "cpu": {
        "cuda": "ONNX Runtime's CUDA provider has no INT8 convolutions, so nothing is gained",
        "tensorrt-rtx": "TensorRT-RTX has no asymmetric zero points",
        "tensorrt": "TensorRT has no asymmetric zero points",
    },
    "tensorrt": {
        "cpu": "ONNX Runtime on processors runs signed activations with a bias in float at half"
        " the speed of a file made for cpu",
        "cuda": "ONNX Runtime's CUDA provider has no INT8 convolutions, so nothing is gained",
        "openvino": "its weights of 8 bits saturate in OpenVINO where the processor has no VNNI",
    },
}
_INSTEAD = {
    "cpu": "--precision int8 --for cpu",
    "cuda": "--precision fp16",
    "openvino": "--precision int8 --for cpu",
    "tensorrt-rtx": "--precision int8 --for tensorrt",
    "tensorrt": "--precision int8 --for tensorrt",
}


def check_int8_target(path: Path, spec: ModelSpec, device: str) -> None:
    """Refuse a file that was made for another kind of engine.

    `device` is its kind, or what builds an engine. The ModelError says what to export instead.
    """
    reason = _REASONS.get(spec.int8_target or "", {}).get(device)
    if reason is not None:
        raise ModelError(
            f"{path}: made for {spec.int8_target}, not for {device}: {reason};"
            f" export with {_INSTEAD[device]}"
        )
