"""What another project's file takes and gives, as it was recognised or told."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from onnx import ModelProto, ValueInfoProto

from nmsfree.datasets.rows import COCO_CATEGORY_IDS, COCO_NAMES
from nmsfree.errors import InputError
from nmsfree.options import Option, check_bounds
from nmsfree.parsing import read_text, whole_number
from nmsfree.spec import Head, ModelSpec, NmsSpec, Resize
from nmsfree.text import shown
from nmsfree_export.options import NO_NMS, USUAL_INPUT, InputOptions, NmsOptions

Normalization = Literal["none", "unit", "imagenet"]
Background = Literal["none", "first", "last"]
Boxes = Literal["xyxy", "cxcywh", "xyxy-share", "cxcywh-share"]
Sizes = tuple[int | str, ...]

MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, of values in 0 … 1
GREY = (114, 114, 114)
SIZE_STEP = 32  # pixels: the largest stride of these networks
OTHER_INPUTS = {"orig_target_sizes", "im_shape", "scale_factor", "pixel_mask"}
SPARSE_COCO = 91  # columns: COCO's own ids, eleven of which no category has
# Each as `--resize` has it; all with OpenCV's linear interpolation but the antialiased one.
RESIZES = {
    "letterbox": Resize(place="center", pad=GREY),
    "letterbox-top-left": Resize(pad=GREY),
    "stretch": Resize("stretch"),
    "stretch-cubic": Resize("stretch", interpolation="cubic"),
    "stretch-antialiased": Resize("stretch", antialias=True),
}


_TOLD = partial(Option, panel="How the file is fed and read (what it does not say itself)")
_KEPT = partial(Option, panel="What the adopted file gives")


@dataclass(frozen=True)
class AdoptOptions:
    """What is told of a file; None where it is recognised or has its usual value."""

    names: Annotated[str | None, _TOLD("Class names: a file with one a line, coco, or a,b,c.")] = (
        None
    )
    size: Annotated[
        tuple[int, int] | None,
        _TOLD("Pins the size of a file of dynamic size.", metavar="H W", min=1, max=16384),
    ] = None
    normalize: Annotated[
        Normalization | None,
        _TOLD("Pixels as they are (none), ÷ 255 (unit), or by ImageNet's mean and deviation."),
    ] = None
    resize: Annotated[
        Literal[
            "letterbox", "letterbox-top-left", "stretch", "stretch-cubic", "stretch-antialiased"
        ]
        | None,
        _TOLD("How pictures are fitted; a letterbox is in the centre and grey."),
    ] = None
    boxes: Annotated[
        Boxes | None,
        _TOLD("Corners or centre and size, in input pixels or (share) 0 … 1 of the input."),
    ] = None
    background: Annotated[
        Background | None, _TOLD("Where the class axis has a background column.")
    ] = None
    order: Annotated[
        Literal["rgb", "bgr"] | None, _TOLD("Channel order of the file's input, usually rgb.")
    ] = None
    top_k: Annotated[int | None, _KEPT("Rows of the output.", min=1, max=1_000_000)] = None
    classes: Annotated[str | None, _KEPT("Keep these classes only: a,b,c.")] = None
    rename: Annotated[
        tuple[str, ...] | None,
        _KEPT("Another name for a class, may be repeated.", metavar="OLD=NEW"),
    ] = None
    nms: NmsOptions = NO_NMS
    host: InputOptions = USUAL_INPUT
    score_floor: Annotated[
        float,
        _KEPT("Lowest score that is counted; --threshold is as high or higher.", min=0, max=1),
    ] = 0.05
    threshold: Annotated[
        float | None, _KEPT("Score that is shown unless asked otherwise.", min=0, max=1)
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.threshold is not None and self.threshold < self.score_floor:
            raise InputError(
                f"--threshold is {self.threshold:g}, expected --score-floor"
                f" ({self.score_floor:g}) or more: lower that, too"
            )


ADOPT_DEFAULTS = AdoptOptions()


@dataclass(frozen=True)
class Output:
    """Where detections are in a file's outputs.

    Attributes:
        kind: "rows": one output [N, K, 6] of box, score, class; "paddle": [N · K, 6] of class,
            score, box. "dense": boxes [N, Q, 4] and a score for every class [N, Q, C]. "sorted":
            labels, boxes, scores [N, K], best first, boxes times an input `orig_target_sizes`.
        names: of the outputs: (rows,), (boxes, scores) or both joined as (4 + C,), or (labels,
            boxes, scores).
        boxes: see `AdoptOptions.boxes`.
        logits: scores are raw; else they are 0 … 1.
        columns_first: of the joined dense output: [N, 4 + C, Q] instead of [N, Q, 4 + C].
    """

    kind: Literal["rows", "paddle", "dense", "sorted"]
    names: tuple[str, ...]
    boxes: Boxes = "xyxy"
    logits: bool = False
    columns_first: bool = False


@dataclass(frozen=True)
class Foreign:
    """Another project's file.

    Attributes:
        family: project and architecture, for people.
        concluded: what was concluded, and from what.
        images: the input that takes pictures, [N, 3, H, W], RGB unless `bgr`.
        size: (height, width) in pixels.
        classes: that the file has, kept or not.
        columns: places of the classes on the class axis of a dense output, or their numbers.
        queries: boxes of a dense output; None where they are not known.
        rows: of the output, unless told; families leave it 0 where it follows from `queries`.
        head: of the description, see `ModelSpec`.
        nms: that the adopted file has; None where it needs none.
        own_nms: the graph has it already.
        batch: pictures in a run; None where any number runs.
        size_step: see `ModelSpec`.
    """

    family: str
    concluded: tuple[tuple[str, str], ...]
    images: str
    size: tuple[int, int]
    resize: Resize
    normalize: Normalization
    output: Output
    class_names: tuple[str, ...]
    classes: int
    columns: tuple[int, ...]
    category_ids: tuple[int, ...]
    threshold: float
    rows: int = 0
    queries: int | None = None
    head: Head = "o2o"
    nms: NmsSpec | None = None
    own_nms: bool = False
    bgr: bool = False
    batch: int | None = None
    size_step: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)


def candidates_of(foreign: Foreign, spec: ModelSpec) -> int:
    """How many rows are chosen from the file's outputs: those of the result, or what enters NMS."""
    if spec.nms is None or foreign.own_nms:
        return spec.top_k
    most = foreign.rows
    if foreign.output.kind == "dense" and foreign.queries is not None:
        most = foreign.queries * len(foreign.columns)
    return min(most, spec.nms.candidates or spec.nms.candidates_per_level)


def as_options(foreign: Foreign) -> str:
    """How a file is fed and read, as the options that say it."""
    resize = next((name for name, kind in RESIZES.items() if kind == foreign.resize), "?")
    return (
        f"--resize {resize} --normalize {foreign.normalize}"
        f" --order {'bgr' if foreign.bgr else 'rgb'} --boxes {foreign.output.boxes}"
    )


@dataclass(frozen=True)
class File:
    """An ONNX file's outside: what recognition looks at.

    Attributes:
        inputs, outputs: sizes by name; a dimension of no fixed size is its name.
        metadata: the file's own entries.
        usual_names: of classes, where neither the file nor an option says them.
    """

    path: Path
    model: ModelProto
    inputs: Mapping[str, Sizes]
    outputs: Mapping[str, Sizes]
    metadata: Mapping[str, str]
    usual_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, path: Path, model: ModelProto, names: tuple[str, ...] | None = None) -> "File":
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        return cls(
            path,
            model,
            {value.name: sizes_of(value) for value in inputs},
            {value.name: sizes_of(value) for value in model.graph.output},
            {entry.key: entry.value for entry in model.metadata_props},
            names,
        )

    def said(self, *keys: str, **renamed: str) -> dict[str, str]:
        """Entries of the metadata for the provenance, some under other names."""
        wanted = dict(zip(keys, keys, strict=True)) | renamed
        found = {key: self.metadata.get(entry) for key, entry in wanted.items()}
        return {key: shown(text, 400) for key, text in found.items() if text is not None}

    def has(self, *operators: str) -> bool:
        """Whether the graph has a node of one of these operators."""
        return any(node.op_type in operators for node in self.model.graph.node)

    @cached_property
    def image(self) -> str:
        """Name of the input that takes pictures, [N, 3, H, W].

        InputError: there is none.
        """
        for name, sizes in self.inputs.items():
            if len(sizes) == 4 and known(sizes[1]) in (3, None):
                return name
        found = ", ".join(f"{name} {list(sizes)}" for name, sizes in self.inputs.items())
        raise InputError(f"{self.path}: inputs {found or 'none'}, expected one of [N, 3, H, W]")

    def input_size(
        self, options: AdoptOptions, usual: tuple[int | None, ...] = (None, None)
    ) -> tuple[int, int]:
        """Height and width of the input; of a dynamic one those that are told, or the usual.

        InputError: another size is told than the file has, or none is known.
        """
        name = self.image
        fixed = tuple(known(size) for size in self.inputs[name][2:4])
        wanted = options.size or usual
        if None in fixed and None in wanted:
            raise InputError(f"{self.path}: input '{name}' has no fixed size: give --size H W")
        size = tuple(own or told for own, told in zip(fixed, wanted, strict=True))
        if options.size and size != options.size:
            raise InputError(
                f"{self.path}: input '{name}' is {size[0]} × {size[1]}, --size says"
                f" {options.size[0]} × {options.size[1]}: leave it out"
            )
        return size  # type: ignore[return-value]


def known(size: int | str) -> int | None:
    """A size that the file says; None for an open one."""
    return size if isinstance(size, int) and size > 0 else None


def axis_of(file: File, output: str, axis: int) -> int | str:
    """A size of an output, a number or the name of an open one.

    InputError: the output has no such axis.
    """
    sizes = file.outputs[output]
    if axis >= len(sizes):
        raise InputError(
            f"{file.path}: output '{output}' has the sizes {list(sizes)}, expected {axis + 1} or"
            " more"
        )
    return sizes[axis]


def count_of(file: File, output: str, axis: int) -> int:
    """A size of an output that must be fixed.

    InputError: it is open, or the output has no such axis.
    """
    found = known(axis_of(file, output, axis))
    if found is None:
        raise InputError(
            f"{file.path}: output '{output}' is {list(file.outputs[output])}, expected a fixed size"
            f" at {axis}"
        )
    return found


def vision_transformer(file: File) -> bool:
    """Whether the picture is cut into patches: DINOv3 and its like want ImageNet's mean."""
    weights = {tensor.name: tensor.dims for tensor in file.model.graph.initializer}
    for node in file.model.graph.node:
        if node.op_type == "Conv" and file.image in node.input:
            side = weights.get(node.input[1], [])[2:]
            return len(side) == 2 and min(side) >= 8
    return False


def sizes_of(value: ValueInfoProto) -> Sizes:
    """The sizes of an input or output."""
    return tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim)


def classes_of(
    file: File,
    options: AdoptOptions,
    own: tuple[str, ...] | None = None,
    width: int | None = None,
) -> dict[str, Any]:
    """Names, columns and dataset ids of the classes that are kept, as fields of `Foreign`.

    Args:
        own: names that the file carries.
        width: columns of the class axis; None where the file gives numbers of classes.

    InputError: names are missing, are not as many, or an option names none of them; or the
    place of the background must be told.
    """
    names = own or file.usual_names if options.names is None else read_names(options.names)
    if names is None and width == SPARSE_COCO and options.background is None:
        names = COCO_NAMES
    if names is None:
        columns = f" and has {width} columns" if width else ""
        raise InputError(
            f"{file.path}: carries no class names{columns}: give --names FILE, or --names coco"
        )
    if width is not None:
        places = _places(file, width, names, options)
    elif options.background is not None:
        raise InputError("--background: this file gives class numbers, not a column for each class")
    else:
        places = tuple(range(len(names if own is None else own)))
    if len(names) != len(places):
        raise InputError(f"{file.path}: has {len(places)} classes, found {len(names)} names")
    ids = COCO_CATEGORY_IDS if names == COCO_NAMES else tuple(range(len(names)))
    numbers = list(range(len(names)))
    if options.classes is not None:
        wanted = [name.strip() for name in options.classes.split(",")]
        _check_known(wanted, names, "--classes")
        numbers = [names.index(name) for name in wanted]
    if unclear := [entry for entry in options.rename or () if not entry.partition("=")[2]]:
        raise InputError(f"--rename is {shown(unclear[0])!r}, expected OLD=NEW")
    pairs = [entry.partition("=")[::2] for entry in options.rename or ()]
    _check_known([old for old, _ in pairs], names, "--rename")
    renamed = dict(pairs)
    return {
        "classes": len(names),
        "class_names": tuple(renamed.get(names[i], names[i]) for i in numbers),
        "columns": tuple(places[i] for i in numbers),
        "category_ids": tuple(ids[i] for i in numbers),
    }


def of_queries(
    file: File,
    options: AdoptOptions,
    boxes: str,
    logits: str,
    names: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Output, classes and queries of a detection transformer that gives raw logits.

    InputError: see `classes_of`; the class axis is open.
    """
    return {
        "output": Output("dense", (boxes, logits), "cxcywh-share", logits=True),
        **classes_of(file, options, names, count_of(file, logits, 2)),
        "queries": known(axis_of(file, boxes, 1)),
        "head": "queries",
    }


def normalization_of(
    mean: Sequence[float], deviation: Sequence[float], where: str
) -> Normalization:
    """How pixels are normalised after ÷ 255.

    InputError: by other numbers than ImageNet's.
    """
    usual: dict[Normalization, Any] = {
        "imagenet": (MEAN_RGB, STD_RGB),
        "unit": ((0, 0, 0), (1, 1, 1)),
    }
    for kind, numbers in usual.items():
        same = np.shape(mean) == np.shape(deviation) == (3,)
        if same and np.allclose((mean, deviation), numbers, atol=1e-3):
            return kind
    raise InputError(
        f"{where}: mean {list(mean)} and deviation {list(deviation)}, expected ImageNet's, or 0"
        " and 1"
    )


def _places(
    file: File, width: int, names: tuple[str, ...], options: AdoptOptions
) -> tuple[int, ...]:
    """The columns that are classes."""
    if width == SPARSE_COCO and names == COCO_NAMES and options.background is None:
        return COCO_CATEGORY_IDS
    if options.background is None and width == len(names) + 1:
        raise InputError(
            f"{file.path}: {width} columns for {len(names)} names, so one is the background: give"
            " --background last (as RF-DETR 1.11 has it) or first"
        )
    hidden = {"first": 0, "last": width - 1}.get(options.background or "none")
    return tuple(i for i in range(width) if i != hidden)


def in_order(names: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Class names by the numbers in their keys: "0", "1" … or "class_0" …

    InputError: the numbers are not 0, 1, 2 …
    """
    numbered = {whole_number(re.sub("[^0-9]", "", key)): name for key, name in names.items()}
    if numbered.keys() != set(range(len(names))):
        raise InputError(
            f"{where}: keys {shown(', '.join(names), 60)}, expected 0 to {len(names) - 1}:"
            " give --names"
        )
    return tuple(numbered[number] for number in range(len(names)))


def _check_known(wanted: list[str], names: tuple[str, ...], option: str) -> None:
    for name in wanted:
        if name not in names:
            known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise InputError(f"{option}: no class {shown(name)!r}, the file has: {known}")


def read_names(given: str) -> tuple[str, ...]:
    """Class names as `--names` gives them.

    InputError: a file that cannot be read, or holds none.
    """
    if given == "coco":
        return COCO_NAMES
    if Path(given).is_file():
        names = tuple(line.strip() for line in read_text(given).splitlines() if line.strip())
    else:
        names = tuple(name.strip() for name in given.split(","))
        if len(names) == 1:
            raise InputError(f"--names: no file {shown(given)!r}: give a file, coco, or a,b,c")
    return names
