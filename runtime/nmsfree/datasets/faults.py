"""What can be wrong with a dataset: every kind of fault, how bad it is, and what to do."""

from collections.abc import Callable
from enum import StrEnum
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


class Kind(StrEnum):
    """Names of the faults as they stand in the JSON report."""

    SPLIT_UNREADABLE = "split-unreadable"
    IMAGE_MISSING = "image-missing"
    IMAGE_UNREADABLE = "image-unreadable"
    IMAGE_TRUNCATED = "image-truncated"
    IMAGE_SIZE = "image-size"
    IMAGE_SIZE_MISSING = "image-size-missing"
    IMAGE_ENTRY = "image-entry"
    IMAGE_ID_TWICE = "image-id-twice"
    ANNOTATION_MALFORMED = "annotation-malformed"
    ANNOTATION_FILE_MISSING = "annotation-file-missing"
    ANNOTATION_ID_TWICE = "annotation-id-twice"
    DANGLING_IMAGE = "dangling-image"
    DANGLING_CATEGORY = "dangling-category"
    BOX_WITHOUT_AREA = "box-without-area"
    BOX_OUTSIDE = "box-outside"
    BOX_DUPLICATE = "box-duplicate"
    CLASS_NAME_TWICE = "class-name-twice"
    CLASSES_DIFFER = "classes-differ"
    LEAKAGE = "leakage"
    BOX_PARTLY_OUTSIDE = "box-partly-outside"
    BOX_AREA = "box-area"
    LINE_REPEATED = "line-repeated"
    IMAGE_FULL = "image-full"
    IMAGE_DUPLICATE = "image-duplicate"
    IMAGE_UNANNOTATED = "image-unannotated"
    LABEL_WITHOUT_IMAGE = "label-without-image"
    CLASS_EMPTY = "class-empty"
    LABEL_FILE_MISSING = "label-file-missing"
    IMAGE_WITHOUT_OBJECTS = "image-without-objects"
    BOX_SMALL = "box-small"
    CATEGORY_ID_GAP = "category-id-gap"
    SPLIT_UNION = "split-union"


class Description(NamedTuple):
    """What a report says about a kind.

    Attributes:
        level: how bad it is.
        title: what is counted.
        advice: what it does, or what to do about it.
        fix: what `--fix` does with it; empty if nothing.
    """

    level: Level
    title: str
    advice: str
    fix: str = ""


_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO
_OUT = "left out"
_SKIPPED = "training takes others instead and names them at its end; evaluation stops there"
DESCRIPTIONS: dict[Kind, Description] = {
    Kind.SPLIT_UNREADABLE: Description(_E, "splits that cannot be read", "mend the file named"),
    Kind.IMAGE_MISSING: Description(_E, "missing images", f"{_SKIPPED}: restore the files", _OUT),
    Kind.IMAGE_UNREADABLE: Description(
        _E, "unreadable images", f"{_SKIPPED}: get the files again", _OUT
    ),
    Kind.IMAGE_TRUNCATED: Description(
        _E, "truncated or damaged images", f"{_SKIPPED}: get the files again", _OUT
    ),
    Kind.IMAGE_SIZE: Description(
        _E, "images of another size than annotated", "the boxes may not fit: annotate again", _OUT
    ),
    Kind.IMAGE_SIZE_MISSING: Description(
        _E, "images annotated without their size", "training stops there", "filled in"
    ),
    Kind.IMAGE_ENTRY: Description(_E, "malformed image entries", "mend the entries", _OUT),
    Kind.IMAGE_ID_TWICE: Description(
        _E, "image ids used twice", "nobody knows whose objects they are", _OUT
    ),
    Kind.ANNOTATION_MALFORMED: Description(_E, "malformed annotations", "mend the rows", _OUT),
    Kind.ANNOTATION_FILE_MISSING: Description(
        _E, "images without annotation file", "write one, also for an image without objects", _OUT
    ),
    Kind.ANNOTATION_ID_TWICE: Description(
        _E, "annotation ids used twice", "pycocotools and others lose objects", "renumbered"
    ),
    Kind.DANGLING_IMAGE: Description(
        _E, "annotations of undefined images", "define the image or delete them", _OUT
    ),
    Kind.DANGLING_CATEGORY: Description(
        _E, "annotations of undefined classes", "name the class or delete them", _OUT
    ),
    Kind.BOX_WITHOUT_AREA: Description(
        _E, "boxes without area (or not finite)", "the object is lost to training", _OUT
    ),
    Kind.BOX_OUTSIDE: Description(
        _E, "boxes fully outside their image", "there is nothing to learn", _OUT
    ),
    Kind.BOX_DUPLICATE: Description(
        _E,
        "duplicate boxes (same class, same corners within 1 pixel)",
        "they teach the network to answer twice",
        "kept once",
    ),
    Kind.CLASS_NAME_TWICE: Description(
        _E, "class names used twice", "names must tell classes apart", "made one class"
    ),
    Kind.CLASSES_DIFFER: Description(
        _E, "splits with other classes", "all splits need one list", "given one list"
    ),
    Kind.LEAKAGE: Description(
        _E,
        "images in two splits (same bytes)",
        "AP is measured on what was trained on",
        "left out of the split that trains",
    ),
    Kind.BOX_PARTLY_OUTSIDE: Description(
        _W, "boxes partly outside (by more than 1 pixel)", "training clips them", "clipped"
    ),
    Kind.BOX_AREA: Description(
        _W,
        "areas that are none, or larger than their box",
        "APs, APm and APl go by them",
        "made at most that of the box",
    ),
    Kind.LINE_REPEATED: Description(
        _W, "label lines that repeat another of their file", "each counts once", "kept once"
    ),
    Kind.IMAGE_FULL: Description(
        _W,
        "images with more than 100 objects",
        "a model's output has 100 rows: export with a larger --top-k; where one class has more "
        "than 100, AP takes all detections, COCO's own the best 100",
    ),
    Kind.IMAGE_DUPLICATE: Description(
        _W, "images twice in a split (same bytes)", "they count double"
    ),
    Kind.IMAGE_UNANNOTATED: Description(
        _W, "image files that no annotation names", "they are not used"
    ),
    Kind.LABEL_WITHOUT_IMAGE: Description(
        _W, "label files without image", "they are not used: is the image's name misspelt?"
    ),
    Kind.CLASS_EMPTY: Description(
        _W, "classes without objects", "they cannot be learned or measured"
    ),
    Kind.LABEL_FILE_MISSING: Description(
        _I, "images without label file", "read as images without objects"
    ),
    Kind.IMAGE_WITHOUT_OBJECTS: Description(_I, "images without objects", "used as background"),
    Kind.BOX_SMALL: Description(
        _I, "images with boxes below 8 pixels a side", "hard to find at any input size"
    ),
    Kind.CATEGORY_ID_GAP: Description(
        _I, "gaps in the category ids", "fine: the ids are kept as they are"
    ),
    Kind.SPLIT_UNION: Description(
        _I, "splits that join others", "do not train on one and evaluate on its part"
    ),
}


class Fault(NamedTuple):
    """One fault.

    Attributes:
        kind: what is wrong.
        source: file it stands in: annotations, label or image.
        detail: what was found, as the rest of a sentence that begins with the source.
        image: the image it concerns, if one.
        boxes: the boxes it concerns.
    """

    kind: Kind
    source: Path
    detail: str
    image: Path | None = None
    boxes: tuple[Xywh, ...] = ()


Report = Callable[[Fault], None]  # what a reader does with a fault; returning means: leave it out


def refuse(fault: Fault) -> None:
    """Stop at a fault: what loading a dataset for training or evaluation does.

    Raises:
        DataError: always.
    """
    found = shown(f"{fault.source}: {fault.detail}", 800)
    raise DataError(
        f"{found}: mend it, or see `nmsfree data check DIR`, whose --fix writes a set without it"
    )
