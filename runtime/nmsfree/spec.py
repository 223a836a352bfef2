"""ModelSpec: everything a runtime must know about a model, kept inside the model's file.

It travels as JSON under the metadata key ``nmsfree`` of an ONNX file. The JSON schema is
``model_spec.schema.json`` beside this module. A newer minor version of the format still loads
(unknown fields are ignored); a newer major version is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

from nmsfree.errors import ModelError
from nmsfree.thresholds import Thresholds

METADATA_KEY = "nmsfree"
FORMAT_VERSION = "1.2"  # 1.1: thresholds; 1.2: made_for

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

    iou: float = 0.6
    class_aware: bool = True
    candidates_per_level: int = 1000


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
    height: int
    width: int
    batch: int | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    top_k: int = 100
    score_floor: float = 0.05
    threshold: float = 0.3
    interpolation: Interpolation = "linear"
    nms: NmsSpec | None = None
    precision: str = "fp32"
    made_for: Target | None = None
    thresholds: Thresholds | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    format_version: str = FORMAT_VERSION

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
    def from_json(cls, text: str) -> "ModelSpec":
        """Read a description.

        Raises:
            ModelError: not JSON, a newer major version, or a field missing or of a wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelError(f"model description is not JSON ({error}): export it again") from None
        if not isinstance(values, dict):
            raise ModelError("model description is not a JSON object: export the model again")
        _check_version(values.get("format_version"))
        known = {f.name: f for f in fields(cls)}
        required = [n for n, f in known.items() if f.default is f.default_factory is MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise ModelError(
                f"model description lacks {', '.join(missing)}: export the model again"
            )
        try:
            return cls(**{k: _read(k, v) for k, v in values.items() if k in known})
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"model description is wrong ({error}): export it again") from None


def _check_version(version: Any) -> None:
    ours = FORMAT_VERSION.split(".")[0]
    found = str(version).split(".")[0]
    if found != ours:
        raise ModelError(
            f"model description has format {version}, this nmsfree reads {ours}.x: "
            + ("update nmsfree" if found.isdigit() and int(found) > int(ours) else "export again")
        )


def _read(key: str, value: Any) -> Any:
    """Turn one JSON value into the field's type."""
    match key:
        case "class_names" | "category_ids" if not isinstance(value, list | tuple):
            raise ValueError(f"{key} is {value!r}, expected a list")
        case "class_names":
            return tuple(str(v) for v in value)
        case "category_ids":
            return tuple(int(v) for v in value)
        case "nms":
            known = {f.name for f in fields(NmsSpec)}
            return value and NmsSpec(**{k: v for k, v in value.items() if k in known})
        case "thresholds":
            return None if value is None else Thresholds.from_json(value)
        case "provenance":
            return {str(k): str(v) for k, v in value.items()}
        case "head" if value not in ("o2o", "o2m"):
            raise ValueError(f"head is {value!r}, expected o2o or o2m")
        case "interpolation" if value not in ("linear", "area"):
            raise ValueError(f"interpolation is {value!r}, expected linear or area")
        case "made_for" if value not in (None, *TARGETS):
            raise ValueError(f"made_for is {value!r}, expected {' or '.join(TARGETS)}")
        case "batch" if value is None:
            return None
        case "height" | "width" | "top_k" | "batch" if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key} is {value!r}, expected a positive whole number")
        case "score_floor" | "threshold" if not 0 <= value <= 1:
            raise ValueError(f"{key} is {value!r}, expected a number from 0 to 1")
    return value
