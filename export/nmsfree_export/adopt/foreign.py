"""What another project's file takes and gives, as it was recognised or told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from onnx import ModelProto, ValueInfoProto

from nmsfree.datasets.rows import COCO_CATEGORY_IDS, COCO_NAMES
from nmsfree.decode import read_text
from nmsfree.errors import InputError
from nmsfree.options import Option, check_bounds
from nmsfree.spec import Head, NmsSpec, Resize
from nmsfree.text import shown
from nmsfree_export.options import NO_NMS, NmsOptions

Normalization = Literal["none", "unit", "imagenet"]
Background = Literal["none", "first", "last"]
Sizes = tuple[int | str, ...]


@dataclass(frozen=True)
class AdoptOptions:
    """What is told of a file; None where it is recognised or has its usual value."""

    names: Annotated[str | None, Option("Class names: a file with one a line, coco, or a,b,c.")] = (
        None
    )
    size: Annotated[
        tuple[int, int] | None, Option("Input size of a file of dynamic size.", metavar="H W")
    ] = None
    normalize: Annotated[
        Normalization | None,
        Option("Pixels as they are (none), ÷ 255 (unit), or by ImageNet's mean and deviation."),
    ] = None
    resize: Annotated[
        Literal["letterbox", "stretch"] | None, Option("How pictures are fitted.")
    ] = None
    boxes: Annotated[
        Literal["xyxy", "cxcywh", "xyxy-share", "cxcywh-share"] | None,
        Option("Corners or centre and size, in input pixels or (share) 0 … 1 of the input."),
    ] = None
    background: Annotated[
        Background | None, Option("Where the class axis has a background column.")
    ] = None
    order: Annotated[
        Literal["rgb", "bgr"] | None, Option("Channel order of the file's input, usually rgb.")
    ] = None
    top_k: Annotated[int | None, Option("Rows of the output.", min=1, max=1_000_000)] = None
    classes: Annotated[str | None, Option("Keep these classes only: a,b,c.")] = None
    rename: Annotated[
        tuple[str, ...] | None,
        Option("Another name for a class, may be repeated.", metavar="OLD=NEW"),
    ] = None
    nms: NmsOptions = NO_NMS
    score_floor: Annotated[float, Option("Lowest score that is counted.", min=0, max=1)] = 0.05
    threshold: Annotated[
        float | None, Option("Score that is shown unless asked otherwise.", min=0, max=1)
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)


ADOPT_DEFAULTS = AdoptOptions()


@dataclass(frozen=True)
class Output:
    """Where detections are in a file's outputs.

    Attributes:
        kind: "rows": one output [N, K, 6] of box, score, class. "dense": boxes [N, Q, 4] and a
            score for every class [N, Q, C]. "sorted": labels, boxes, scores [N, K], best first,
            boxes times an input `orig_target_sizes`.
        names: of the outputs: (rows,), (boxes, scores) or both joined as (4 + C,), or (labels,
            boxes, scores).
        boxes: see `AdoptOptions.boxes`.
        logits: scores are raw; else they are 0 … 1.
        columns_first: of the joined dense output: [N, 4 + C, Q] instead of [N, Q, 4 + C].
    """

    kind: Literal["rows", "dense", "sorted"]
    names: tuple[str, ...]
    boxes: str = "xyxy"
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
        columns: places of the classes on the class axis of a dense output, or their numbers.
        queries: boxes of a dense output; None where they are not known.
        rows: of the output, unless told.
        head: of the description, see `ModelSpec`.
        nms: that the adopted file has; None where it needs none.
    """

    family: str
    concluded: tuple[tuple[str, str], ...]
    images: str
    size: tuple[int, int]
    resize: Resize
    normalize: Normalization
    output: Output
    class_names: tuple[str, ...]
    columns: tuple[int, ...]
    category_ids: tuple[int, ...]
    rows: int
    threshold: float
    queries: int | None = None
    head: Head = "o2o"
    nms: NmsSpec | None = None
    bgr: bool = False
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """An ONNX file's outside: what recognition looks at.

    Attributes:
        inputs, outputs: sizes by name; a dimension of no fixed size is its name.
        metadata: the file's own entries.
    """

    path: Path
    model: ModelProto
    inputs: Mapping[str, Sizes]
    outputs: Mapping[str, Sizes]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, path: Path, model: ModelProto) -> "File":
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        return cls(
            path,
            model,
            {value.name: sizes_of(value) for value in inputs},
            {value.name: sizes_of(value) for value in model.graph.output},
            {entry.key: entry.value for entry in model.metadata_props},
        )

    def has(self, *operators: str) -> bool:
        """Whether the graph has a node of one of these operators."""
        return any(node.op_type in operators for node in self.model.graph.node)

    def input_size(self, options: AdoptOptions, usual: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the input; of a dynamic one those that are told, or the usual.

        Raises:
            InputError: another size is told than the file has, or none is known.
        """
        name, sizes = next(iter(self.inputs.items()))
        fixed = tuple(s if isinstance(s, int) and s > 0 else None for s in sizes[2:4])
        wanted = options.size or usual
        if None in fixed and wanted is None:
            raise InputError(f"{self.path}: input '{name}' has no fixed size: give --size H W")
        size = tuple(own or told for own, told in zip(fixed, wanted or fixed, strict=True))
        if options.size and size != options.size:
            raise InputError(
                f"{self.path}: input '{name}' is {size[0]} × {size[1]}, --size says"
                f" {options.size[0]} × {options.size[1]}: leave it out"
            )
        return size  # type: ignore[return-value]


def known(size: int | str) -> int | None:
    """A size that the file says; None for an open one."""
    return size if isinstance(size, int) and size > 0 else None


def count_of(file: File, output: str, axis: int) -> int:
    """A size of an output that must be fixed.

    Raises:
        InputError: it is open, or the output has no such axis.
    """
    sizes = file.outputs[output]
    found = known(sizes[axis]) if axis < len(sizes) else None
    if found is None:
        raise InputError(
            f"{file.path}: output '{output}' is {list(sizes)}, expected a fixed size at {axis}"
        )
    return found


def sizes_of(value: ValueInfoProto) -> Sizes:
    """The sizes of an input or output."""
    return tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim)


def classes_of(
    file: File, options: AdoptOptions, count: int, own: tuple[str, ...] | None
) -> dict[str, Any]:
    """Names, columns and dataset ids of the classes that are kept, as fields of `Foreign`.

    Args:
        count: of the columns that are classes.
        own: names that the file carries.

    Raises:
        InputError: names are missing, are not as many, or an option names none of them.
    """
    names = own if options.names is None else read_names(options.names)
    if names is None:
        raise InputError(
            f"{file.path}: has {count} classes and carries no names: give --names FILE, or"
            " --names coco if they are COCO's 80"
        )
    if len(names) != count:
        raise InputError(f"{file.path}: has {count} classes, found {len(names)} names")
    ids = COCO_CATEGORY_IDS if names == COCO_NAMES else tuple(range(count))
    columns = list(range(count))
    if options.classes is not None:
        wanted = [name.strip() for name in options.classes.split(",")]
        _check_known(wanted, names, "--classes")
        columns = [names.index(name) for name in wanted]
    pairs = [entry.partition("=")[::2] for entry in options.rename or ()]
    _check_known([old for old, _ in pairs], names, "--rename")
    renamed = dict(pairs)
    return {
        "class_names": tuple(renamed.get(names[i], names[i]) for i in columns),
        "columns": tuple(columns),
        "category_ids": tuple(ids[i] for i in columns),
    }


def _check_known(wanted: list[str], names: tuple[str, ...], option: str) -> None:
    for name in wanted:
        if name not in names:
            known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise InputError(f"{option}: no class {shown(name)!r}, the file has: {known}")


def needed_names(file: File, options: AdoptOptions) -> tuple[str, ...]:
    """The class names of a file that carries none.

    Raises:
        InputError: they are not told.
    """
    if options.names is None:
        raise InputError(f"{file.path}: carries no class names: give --names FILE, or --names coco")
    return read_names(options.names)


def read_names(given: str) -> tuple[str, ...]:
    """Class names as `--names` gives them.

    Raises:
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
