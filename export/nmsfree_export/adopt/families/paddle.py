"""RT-DETR as PaddleDetection exports it: rows of class, score and box, and how many there are."""

from nmsfree.errors import InputError
from nmsfree_export.adopt.foreign import (
    RESIZES,
    AdoptOptions,
    File,
    Foreign,
    Output,
    axis_of,
    classes_of,
    known,
)

ROWS = 300  # of one picture, where the file does not say it


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    InputError: it holds NMS, as PP-YOLOE's, or class names must be told.
    """
    if not {"im_shape", "scale_factor"} <= file.inputs.keys():
        return None
    if file.has("NonMaxSuppression"):
        raise InputError(f"{file.path}: holds NonMaxSuppression, expected an RT-DETR of Paddle")
    rows = next((name for name, sizes in file.outputs.items() if sizes[1:] == (6,)), None)
    if rows is None:
        raise InputError(
            f"{file.path}: outputs {dict(file.outputs)}, expected one of [rows, 6]: export it with"
            " its post-processing"
        )
    batch = known(file.inputs[file.image][0])
    count = known(axis_of(file, rows, 0))
    return Foreign(
        family="PaddleDetection RT-DETR",
        concluded=(
            ("project", "PaddleDetection, by the inputs im_shape and scale_factor"),
            ("output", f"'{rows}': rows of class, score and box in pixels"),
            ("resize", "stretch-cubic, as its configuration has it"),
        ),
        images=file.image,
        size=file.input_size(options),
        resize=RESIZES["stretch-cubic"],
        normalize="unit",
        output=Output("paddle", (rows,)),
        **classes_of(file, options),
        rows=count // batch if count and batch else ROWS,
        threshold=0.5,
        head="queries",
    )
