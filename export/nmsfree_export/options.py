"""Options of `nmsfree export`, `verify` and `build`: what may be said, and what fits together."""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from nmsfree.errors import InputError
from nmsfree.options import Option, check_bounds
from nmsfree.spec import NmsSpec, Target

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
UNMATCHED = 0.1  # share of rows that may have no partner where something computes in eight bits
HALF_UNMATCHED = 0.02  # the same of an adopted file in half precision
MAX_DROP = 1.0  # AP points, of 100

JsonOption = Annotated[
    str | None, Option("Write the report; - for stdout.", flags=("--json",), metavar="FILE")
]


@dataclass(frozen=True)
class Tolerance:
    """How far the rows of two models may differ.

    With `unmatched`, a share, so many rows may have no partner, and of the others the medians
    count, where they are given; without, every row needs one and its difference counts.
    """

    score: float = 1e-4  # largest difference of matched rows' scores, 0-1
    box: float = 0.05  # the same of corners, in pixels
    unmatched: float | None = None
    median_score: float | None = None
    median_box: float | None = None


STRICT = Tolerance()


_NMS = partial(Option, panel="NMS baseline")
_LOWERED = partial(Option, panel="FP16 and INT8")
_GIVES = partial(Option, panel="What the file gives")


@dataclass(frozen=True)
class NmsOptions:
    """Non-maximum suppression in a file that needs it; None takes what the help says.

    InputError: options of plain operators for the operator, or an odd number of steps.
    """

    nms: Annotated[
        Literal["operator", "plain"] | None,
        _NMS("NMS by the operator, or by plain operators, which every engine builds."),
    ] = None
    nms_iou: Annotated[
        float | None, _NMS("Boxes that overlap a better one by more are removed.", min=0, max=1)
    ] = None
    nms_steps: Annotated[
        int | None,
        _NMS(
            "Of plain, even: exact while no chain of overlaps is longer; 20.",
            min=2,
            max=1000,
        ),
    ] = None
    nms_candidates: Annotated[
        int | None, _NMS("Of plain: best boxes that enter; 1000.", min=1, max=10_000)
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.nms != "plain" and (self.nms_steps, self.nms_candidates) != (None, None):
            raise InputError("--nms-steps and --nms-candidates are of --nms plain: give it, too")
        if (self.nms_steps or 0) % 2:
            raise InputError(f"nms steps is {self.nms_steps}, expected an even number")

    @property
    def given(self) -> bool:
        return self != NO_NMS

    def spec(self, usual: NmsSpec) -> NmsSpec:
        """Describe the NMS that is asked for."""
        plain = self.nms == "plain"
        return replace(
            usual,
            iou=usual.iou if self.nms_iou is None else self.nms_iou,
            steps=(self.nms_steps or 20) if plain else None,
            candidates=(self.nms_candidates or 1000) if plain else None,
        )


NO_NMS = NmsOptions()


@dataclass(frozen=True)
class InputOptions:
    """What the file takes.

    InputError: a size of pictures without `any`.
    """

    input: Annotated[
        Literal["model", "any", "nchw-float"],
        Option(
            "What the file takes. model: pictures resized and padded, uint8 [N, H, W, 3], BGR. any:"
            " one picture of any size, uint8 [1, h, w, 3], BGR; boxes are in its pixels."
            " nchw-float: as model, but float32 [N, 3, H, W], RGB, 0 … 1.",
            panel="Input",
        ),
    ] = "model"
    source: Annotated[
        tuple[int, int] | None,
        Option(
            "Of any: pictures of this size only, as engines want.",
            metavar="H W",
            min=1,
            max=16384,
            panel="Input",
        ),
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.source is not None and self.input != "any":
            raise InputError("--source is of --input any: give it, too")


USUAL_INPUT = InputOptions()


@dataclass(frozen=True)
class PrecisionOptions:
    """How a float32 file is lowered, and what it must still show; None takes what the help says.

    InputError: options that do not fit each other, or would be ignored.
    """

    precision: Annotated[
        Precision,
        Option("fp32; fp16: half-precision convolutions, for GPUs; int8: 8-bit convolutions."),
    ] = "fp32"
    target: Annotated[
        Target | None,
        Option("INT8 for cpu or tensorrt; no file is both.", flags=("--for",), metavar="ENGINE"),
    ] = None
    calibrate: Annotated[
        Path | None, Option("INT8: dataset, or folder of pictures, that calibrates.", metavar="DIR")
    ] = None
    calibrate_split: Annotated[str | None, _LOWERED("Its training split; train if not given.")] = (
        None
    )
    calibration_images: Annotated[
        int | None, _LOWERED("At most this many, 128 if not given.", min=1, max=1_000_000)
    ] = None
    max_unmatched: Annotated[
        float | None,
        _LOWERED(
            "FP16, INT8: share of rows that may have no partner; INT8 0.1, FP16 of adopted files"
            " 0.02, of own ones none, and those that have one differ little."
        ),
    ] = None
    check_data: Annotated[
        Path | None, Option("FP16, INT8: labelled dataset to compare AP with FP32.", metavar="DIR")
    ] = None
    check_split: Annotated[str | None, _LOWERED("Split to compare on; val if not given.")] = None
    max_ap_drop: Annotated[
        float | None, _LOWERED("AP points that may be lost, 1.0 if not given.", min=0, max=100)
    ] = None
    auto_mixed: Annotated[
        bool,
        _LOWERED(
            "FP16, INT8: keep the layers that add most error in float until the file passes.",
            flags=("--auto-mixed",),
        ),
    ] = False
    images: Annotated[
        Path | None, Option("Folder of pictures for the comparison; else bundled ones.")
    ] = None
    host: InputOptions = USUAL_INPUT
    tolerance: Tolerance | None = None  # of parity; None takes that of the precision
    seed: int | None = None  # of the pictures nobody chose; None takes a fresh one

    def __post_init__(self) -> None:
        check_bounds(self)
        self._check_int8()
        self._check_accuracy()

    def _check_int8(self) -> None:
        details = self.calibrate_split, self.calibration_images
        needed = self.target, self.calibrate
        asked = any(value is not None for value in (*needed, *details))
        if (asked or self.precision == "int8") and None in needed:
            raise InputError(
                "int8 needs the engine it is for, as no one file serves both, and training"
                " pictures: give --for cpu or --for tensorrt, and --calibrate DIR"
            )
        if asked and self.precision != "int8":
            raise InputError(
                f"calibration is for int8, but precision is {self.precision}: --precision int8"
            )
        if self.max_unmatched is not None and self.precision == "fp32":
            raise InputError(
                "a share of unmatched rows is for fp16 and int8, but precision is fp32"
            )
        if self.max_unmatched is not None and not 0 <= self.max_unmatched < 1:
            raise InputError(
                f"max unmatched is {self.max_unmatched}, expected 0 or more and below 1"
            )

    def _check_accuracy(self) -> None:
        details = self.check_split, self.max_ap_drop
        if self.check_data is None and details != (None, None):
            raise InputError("checking AP needs a labelled dataset: give --check-data DIR")
        if self.precision != "fp32":
            return
        if self.check_data is not None:
            raise InputError(
                "checking AP is for fp16 and int8, but precision is fp32: measure with"
                " `nmsfree eval`"
            )
        if self.auto_mixed:
            raise InputError(
                "auto-mixed keeps layers of fp16 and int8 in float, but precision is fp32, where"
                " all are: leave --auto-mixed out"
            )


@dataclass(frozen=True)
class ExportOptions(PrecisionOptions):
    """How a checkpoint is exported; None takes what the help says.

    InputError: options that do not fit each other, or would be ignored.
    """

    head: Annotated[
        Literal["o2m", "o2o"] | None, Option("o2o (NMS-free) or o2m (the NMS baseline).")
    ] = None
    input_size: Annotated[
        tuple[int, int] | None, Option("Input size in pixels.", flags=("--size",), metavar="H W")
    ] = None
    batch: int | None = 1  # fixed, or None for any
    top_k: Annotated[int, _GIVES("Rows of the output.", min=1, max=1_000_000)] = 100
    score_floor: Annotated[float, _GIVES("Lowest score that is counted.")] = 0.05
    threshold: Annotated[
        float | None, Option("Score that is shown unless asked otherwise; best F1, or 0.3.")
    ] = None
    thresholds: Annotated[
        Path | None,
        _GIVES(
            "Recommended thresholds from `nmsfree eval --json`; else the checkpoint's own.",
            metavar="FILE",
        ),
    ] = None
    interpolation: Annotated[Literal["linear", "area"], _GIVES("linear, or area (slower).")] = (
        "linear"
    )
    dedup_iou: Annotated[
        float | None,
        _GIVES(
            "IoU from which a duplicate filter takes two boxes for one object, the checkpoint's"
            " if not given. Lower: fewer duplicates, and fewer close pairs.",
            was="rival_iou",
        ),
    ] = None
    nms: NmsOptions = NO_NMS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.score_floor < 1:
            raise InputError(f"score floor is {self.score_floor}, expected 0 … 1")
        if self.threshold is not None and not self.score_floor <= self.threshold <= 1:
            raise InputError(
                f"threshold is {self.threshold}, expected the score floor ({self.score_floor}) … 1"
            )
        if self.host.input == "any" and self.batch != 1:
            raise InputError("--input any takes one picture at a time: leave --batch out")
        if self.dedup_iou is not None and self.head == "o2m":
            raise InputError("dedup IoU is for the one-to-one head, but head is o2m: leave it out")


EXPORT_DEFAULTS = ExportOptions()


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Which two models are compared, where each runs, and how far they may differ.

    InputError: options that exclude one another, or would be ignored.
    """

    a: Annotated[Path, Option("A checkpoint, an ONNX file or an engine.", argument=True)]
    b: Annotated[
        Path | None, Option("Another one of the same detector, or the same file.", argument=True)
    ] = None
    matrix: Annotated[
        bool,
        Option("One ONNX file on every engine here, and in FP16 and INT8.", flags=("--matrix",)),
    ] = False
    device: Annotated[
        str | None, Option("Where both run: cpu, cuda, tensorrt-rtx or openvino.", metavar="NAME")
    ] = None
    device_a: Annotated[str | None, Option("Where A runs.", metavar="NAME")] = None
    device_b: Annotated[str | None, Option("Where B runs.", metavar="NAME")] = None
    precision_a: Annotated[
        str | None, Option("OpenVINO's arithmetic for A.", metavar="f32|bf16")
    ] = None
    precision_b: Annotated[
        str | None, Option("OpenVINO's arithmetic for B.", metavar="f32|bf16")
    ] = None
    images: Annotated[
        Path | None, Option("Folder of pictures to compare on; else bundled ones.")
    ] = None
    score_tolerance: Annotated[
        float | None, Option("Largest score difference; 1e-4, with FP16 0.01.", min=0)
    ] = None
    box_tolerance: Annotated[
        float | None, Option("Largest box difference in pixels; 0.05, with FP16 0.5.", min=0)
    ] = None
    max_unmatched: Annotated[
        float | None,
        Option("Share of rows that may have no partner; with INT8 and bf16 0.1.", min=0, max=1),
    ] = None
    data: Annotated[
        Path | None, Option("Labelled dataset to compare AP on, too.", metavar="DIR")
    ] = None
    split: Annotated[str | None, Option("Its split; val if not given.")] = None
    max_ap_drop: Annotated[
        float | None, Option("AP points that B may lose, 1.0 if not given.", min=0, max=100)
    ] = None
    layers: Annotated[
        bool, Option("Show the worst layers even if the models agree.", flags=("--layers",))
    ] = False
    json_out: Annotated[
        str | None, Option("Write the outcome; - for stdout.", flags=("--json",), metavar="FILE")
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.b is None) != self.matrix:
            raise InputError("give two models to compare, or one and --matrix")
        own = {"a", "matrix", "images", "json_out"}
        if self.matrix and any(
            getattr(self, f.name) != f.default for f in fields(self) if f.name not in own
        ):
            raise InputError("--matrix takes --images and --json, no other option")
        if self.data is None and (self.split, self.max_ap_drop) != (None, None):
            raise InputError("checking AP needs a labelled dataset: give --data DIR")
        differences = self.score_tolerance, self.box_tolerance
        if differences != (None, None) and self.max_unmatched is not None:
            raise InputError(
                "--max-unmatched judges by the share of rows without a partner, --score-tolerance"
                " and --box-tolerance by differences: give one or the other"
            )


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built."""

    gpus: Annotated[
        tuple[str, ...] | None,
        Option(
            "GPU that shall run it, such as rtx3060; may be repeated. [rtx4060]", flags=("--gpu",)
        ),
    ] = None
    sms: Annotated[
        tuple[int, ...] | None,
        Option(
            "The same by compute capability, 89 for 8.9; may be repeated.",
            flags=("--sm",),
            min=10,
            max=999,
        ),
    ] = None
    batch: Annotated[
        tuple[int, int, int] | None,
        Option("Images at once, for a file of dynamic batch.", metavar="MIN OPT MAX"),
    ] = None
    builder: Annotated[
        str, Option("tensorrt-rtx, or tensorrt.", flags=("--with",), metavar="NAME")
    ] = "tensorrt-rtx"
    tf32: Annotated[bool, Option("Faster float32 with 10 bits of mantissa.", flags=("--tf32",))] = (
        False
    )
    layers: Annotated[bool, Option("Show every layer with its precision.", flags=("--layers",))] = (
        False
    )


BUILD_DEFAULTS = BuildOptions()
