"""ModelSpec: everything a runtime must know about a model, kept inside the model's file.

It travels as JSON under the metadata key ``nmsfree`` of an ONNX file. The JSON schema is
``model_spec.schema.json`` beside this module. A newer minor version of the format still loads
(unknown fields are ignored); a newer major version is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from nmsfree.decode import Positive, Share, Side, check_format, decode_json
from nmsfree.errors import ModelError
from nmsfree.thresholds import Thresholds

METADATA_KEY = "nmsfree"
FORMAT_VERSION = "1.2"  # 1.1: thresholds; 1.2: made_for

AGAIN = "export the model again"

Head = Literal["o2o", "o2m"]
Interpolation = Literal["linear", "area"]
Target = Literal["cpu", "tensorrt"]
TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")


@dataclass(frozen=True)
class NmsSpec:
    """Non-maximum suppression that a file of the o2m head carries in its graph.

    Attributes:
        iou: boxes of one class overlapping a better one by more than this are removed.
        class_aware: suppress within a class only.
        candidates_per_level: best (cell, class) pairs of a pyramid level that enter NMS.
    """

    iou: Share = 0.6
    class_aware: bool = True
    candidates_per_level: Positive = 1000


@dataclass(frozen=True)
class ModelSpec:
    """What a model takes and gives.

    Attributes:
        name: preset or user's name of the model.
        head: "o2o" (one-to-one head, needs no NMS) or "o2m" (one-to-many head + NMS).
        height, width: size of the model's input in pixels.
        batch: fixed batch size, or None where any batch size runs.
        class_names: one name per class, index = class id.
        category_ids: the dataset's own id of each class (COCO's are sparse).
        top_k: rows of the output; never more than the number of cells.
        score_floor: `num_detections` counts the scores above this.
        threshold: score below which a detection is not shown unless asked for.
        interpolation: "linear" (fast) or "area" (antialiased when shrinking, about 10 × slower).
        nms: the NMS in the graph; None for the NMS-free head.
        precision: arithmetic of the file, for example "fp32".
        made_for: kind of engine that the file was made for, "cpu" or "tensorrt"; None runs on any.
            An INT8 file has one, see `made_for.check_made_for`.
        thresholds: recommended scores, measured by `nmsfree eval`; None where they are not known.
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
    interpolation: Interpolation = "linear"
    nms: NmsSpec | None = None
    precision: str = "fp32"
    made_for: Target | None = None
    thresholds: Thresholds | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    format_version: Annotated[str, Meta(pattern=r"^1(\.|$)")] = FORMAT_VERSION

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
        if len(set(self.class_names)) != len(self.class_names):
            twice = next(n for n in self.class_names if self.class_names.count(n) > 1)
            raise ModelError(f"class name {twice!r} occurs twice: give every class its own name")

    def to_json(self) -> str:
        """Return the description as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: object = "model description") -> "ModelSpec":
        """Read a description.

        Args:
            where: what the text is; begins the message.

        Raises:
            ModelError: not JSON, another major version, or a field missing, of another type or
                out of its bounds.
        """
        check_format(text, FORMAT_VERSION, where, ModelError, AGAIN)
        return decode_json(text, cls, where, ModelError, AGAIN)
