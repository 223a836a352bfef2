"""What can be wrong with a dataset: every kind of fault, how bad it is, and what to do."""

from collections.abc import Callable
from enum import Enum, StrEnum
from pathlib import Path
from typing import NamedTuple

from nmsfree.errors import DataError
from nmsfree.text import shown

Xywh = tuple[float, float, float, float]  # left, top, width, height in source pixels


class Level(StrEnum):
    """Errors make a training fail or learn wrong things; warnings deserve a look."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO
_OUT = "left out"
_SKIPPED = "training takes others instead and names them at its end; evaluation stops there"


class Kind(Enum):
    """The kinds of faults, the worst first: how bad, what is counted, what it does or what to do
    about it, and what `--fix` does with it, if anything.
    """

    # fmt: off
    SPLIT_UNREADABLE = _E, "splits that cannot be read", "fix the file named"
    IMAGE_MISSING = _E, "missing images", f"{_SKIPPED}: restore the files", _OUT
    IMAGE_UNREADABLE = _E, "unreadable images", f"{_SKIPPED}: get the files again", _OUT
    IMAGE_TRUNCATED = _E, "truncated or damaged images", f"{_SKIPPED}: get the files again", _OUT
    IMAGE_SIZE = (
        _E, "images of another size than annotated", "the boxes may not fit: annotate again", _OUT,
    )
    IMAGE_SIZE_MISSING = (
        _E, "images annotated without their size", "training stops there", "filled in",
    )
    IMAGE_ENTRY = _E, "malformed image entries", "fix the entries", _OUT
    IMAGE_ID_TWICE = _E, "image ids used twice", "nobody knows whose objects they are", _OUT
    ANNOTATION_MALFORMED = _E, "malformed annotations", "fix the rows", _OUT
    ANNOTATION_FILE_MISSING = (
        _E, "images without annotation file", "write one, also for an image without objects", _OUT,
    )
    ANNOTATION_ID_TWICE = (
        _E, "annotation ids used twice", "pycocotools and others lose objects", "renumbered",
    )
    DANGLING_IMAGE = _E, "annotations of undefined images", "define the image or delete them", _OUT
    DANGLING_CATEGORY = (
        _E, "annotations of undefined classes", "name the class or delete them", _OUT,
    )
    BOX_WITHOUT_AREA = (
        _E, "boxes without area (or not finite)", "the object is lost to training", _OUT,
    )
    BOX_OUTSIDE = _E, "boxes fully outside their image", "there is nothing to learn", _OUT
    BOX_DUPLICATE = (
        _E, "duplicate boxes (same class, same corners within 1 pixel)",
        "they teach the network to answer twice", "kept once",
    )
    CLASS_NAME_TWICE = (
        _E, "class names used twice", "names must tell classes apart", "made one class",
    )
    CLASSES_DIFFER = _E, "splits with other classes", "all splits need one list", "given one list"
    LEAKAGE = (
        _E, "images in two splits (same bytes)", "AP is measured on what was trained on",
        "left out of the split that trains",
    )
    BOX_PARTLY_OUTSIDE = (
        _W, "boxes partly outside (by more than 1 pixel)", "training clips them", "clipped",
    )
    BOX_AREA = (
        _W, "areas that are none, or larger than their box", "APs, APm and APl go by them",
        "made at most that of the box",
    )
    LINE_REPEATED = (
        _W, "label lines that repeat another of their file", "each counts once", "kept once",
    )
    IMAGE_FULL = (
        _W, "images with more than 100 objects",
        "a model's output has 100 rows: export with a larger --top-k; where one class has more "
        "than 100, AP takes all detections, COCO's own the best 100",
    )
    IMAGE_DUPLICATE = _W, "images twice in a split (same bytes)", "they count double"
    IMAGE_UNANNOTATED = _W, "image files that no annotation names", "they are not used"
    LABEL_WITHOUT_IMAGE = (
        _W, "label files without image", "they are not used: is the image's name misspelt?",
    )
    CLASS_EMPTY = _W, "classes without objects", "they cannot be learned or measured"
    LABEL_FILE_MISSING = _I, "images without label file", "read as images without objects"
    IMAGE_WITHOUT_OBJECTS = _I, "images without objects", "used as background"
    BOX_SMALL = _I, "images with boxes below 8 pixels a side", "hard to find at any input size"
    CATEGORY_ID_GAP = _I, "gaps in the category ids", "fine: the ids are kept as they are"
    SPLIT_UNION = _I, "splits that join others", "do not train on one and evaluate on its part"
    # fmt: on

    def __init__(self, level: Level, title: str, advice: str, fix: str = "") -> None:
        self.level, self.title, self.advice, self.fix = level, title, advice, fix

    @property
    def code(self) -> str:
        """Its name in the JSON report."""
        return self.name.lower().replace("_", "-")


class Fault(NamedTuple):
    """One fault."""

    kind: Kind  # what is wrong
    source: Path  # file it stands in: annotations, label or image
    detail: str  # what was found, as the rest of a sentence that begins with the source
    image: Path | None = None  # the image it concerns, if one
    boxes: tuple[Xywh, ...] = ()  # the boxes it concerns


Report = Callable[[Fault], None]  # what a reader does with a fault; returning means: leave it out


def refuse(fault: Fault) -> None:
    """Stop at a fault, by a DataError: what loading a dataset for training or evaluation does."""
    found = shown(f"{fault.source}: {fault.detail}", 800)
    raise DataError(
        f"{found}: fix it, or see `nmsfree data check DIR`, whose --fix writes a set without it"
    )
