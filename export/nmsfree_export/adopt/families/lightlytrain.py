"""LT-DETR as LightlyTrain exports it: raw logits, and metadata that say the rest."""

from nmsfree.errors import InputError
from nmsfree.parsing import decode_json
from nmsfree.text import shown
from nmsfree_export.adopt.foreign import (
    RESIZES,
    AdoptOptions,
    File,
    Foreign,
    Normalization,
    normalization_of,
    of_queries,
)


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    InputError: it is of another task, or its metadata are damaged.
    """
    entries = file.metadata
    if "lightly_train_version" not in entries:
        return None
    if not {"logits", "boxes"} <= file.outputs.keys():
        raise InputError(
            f"{file.path}: outputs {', '.join(file.outputs)} are not logits and boxes: this is no"
            " LT-DETR for detection"
        )
    where = f"{file.path}: metadata entry"
    names = decode_json(entries.get("classes", ""), dict[str, str], f"{where} classes", InputError)
    normalize: Normalization = "unit"
    if text := entries.get("image_normalize"):
        told = decode_json(text, dict[str, list[float]], f"{where} image_normalize", InputError)
        normalize = normalization_of(told.get("mean", []), told.get("std", []), where)
    return Foreign(
        family=f"LightlyTrain {shown(entries.get('model_name', 'LT-DETR'))}",
        concluded=(
            ("project", "LightlyTrain, by the entry lightly_train_version"),
            ("normalize", f"{normalize}, by the entry image_normalize"),
            ("resize", "stretch-antialiased, as its own prediction"),
        ),
        images=file.image,
        size=file.input_size(options),
        resize=RESIZES["stretch-antialiased"],
        normalize=normalize,
        **of_queries(file, options, "boxes", "logits", tuple(names.values())),
        threshold=0.6,
        provenance=file.said(version="lightly_train_version", license="license_info"),
    )
