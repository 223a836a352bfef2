"""Which family a file is of, and the description of what is made of it."""

from dataclasses import replace

from nmsfree.errors import InputError
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree.text import shown
from nmsfree_export.adopt.families import FAMILIES
from nmsfree_export.adopt.foreign import (
    OTHER_INPUTS,
    RESIZES,
    SIZE_STEP,
    AdoptOptions,
    File,
    Foreign,
    known,
)
from nmsfree_export.verify.allowed import ADOPTED

MOST_ROWS = 300  # unless told


def recognize(file: File, options: AdoptOptions, source: str = "as told") -> Foreign:
    """Conclude what a file takes and gives; options that are told win.

    `source`: where the options come from, in words.

    InputError: no family knows it.
    """
    answers = (family(file, options) for family in FAMILIES)
    found = next((answer for answer in answers if answer is not None), None)
    if found is None:
        outputs = ", ".join(f"{name} {list(sizes)}" for name, sizes in file.outputs.items())
        raise InputError(
            f"{file.path}: outputs {outputs} are of no known NMS-free detector: see"
            " docs/adopting.md for those that are"
        )
    extra = file.inputs.keys() - {found.images} - OTHER_INPUTS
    if extra:
        raise InputError(
            f"{file.path}: takes {shown(', '.join(sorted(extra)))} beside pictures, expected at"
            f" most {', '.join(sorted(OTHER_INPUTS))}"
        )
    told = {
        name: value
        for name in ("resize", "normalize", "boxes", "order")
        if (value := getattr(options, name)) is not None
    }
    concluded = {**dict(found.concluded), **{k: f"{v}, {source}" for k, v in told.items()}}
    # Inputs beside the picture are of its size, and become constants.
    sides = [known(side) for side in file.inputs[found.images][2:4]]
    any_size = options.size is None and sides == [None, None] and len(file.inputs) == 1
    if options.nms.nms is None and options.nms.nms_iou is not None:
        raise InputError("--nms-iou says nothing without NMS: give --nms plain or operator, too")
    nms = options.nms.spec(NmsSpec(iou=0.7)) if options.nms.given else None
    own_nms = found.nms is not None
    return replace(
        found,
        rows=found.rows or min(MOST_ROWS, found.queries or MOST_ROWS),
        nms=found.nms if own_nms else nms,
        own_nms=own_nms,
        size_step=SIZE_STEP if any_size else None,
        concluded=tuple(concluded.items()),
        resize=RESIZES[told["resize"]] if "resize" in told else found.resize,
        normalize=told.get("normalize", found.normalize),
        output=replace(found.output, boxes=told.get("boxes", found.output.boxes)),
        bgr=told.get("order") == "bgr",
    )


def make_adopted_spec(
    file: File, foreign: Foreign, options: AdoptOptions, digest: str = ""
) -> ModelSpec:
    """Describe the adopted file.

    InputError: more rows are wanted than there are.
    """
    most = foreign.rows
    if foreign.output.kind == "dense" and foreign.queries is not None:
        most = foreign.queries * len(foreign.columns)
    if foreign.nms is not None and foreign.nms.candidates is not None:
        most = min(most, foreign.nms.candidates)
    top_k = options.top_k or min(foreign.rows, most)
    if top_k > most:
        raise InputError(f"--top-k is {top_k}, but the file has {most} rows at most")
    height, width = foreign.size
    floor = options.score_floor
    return ModelSpec(
        name=file.path.stem,
        head=foreign.head,
        height=height,
        width=width,
        batch=foreign.batch,
        size_step=foreign.size_step,
        class_names=foreign.class_names,
        category_ids=foreign.category_ids,
        top_k=top_k,
        score_floor=floor,
        threshold=max(floor, foreign.threshold if options.threshold is None else options.threshold),
        resize=foreign.resize,
        nms=foreign.nms,
        provenance={
            ADOPTED: foreign.family,
            "source": file.path.name,
            "source sha256": digest,
            **foreign.provenance,
        },
    )
