"""Detection transformers as Hugging Face's optimum and transformers.js have them (`pixel_values`).

The file itself says little: config.json and preprocessor_config.json, beside it or one folder up,
have the classes and the preprocessing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nmsfree.errors import InputError
from nmsfree.parsing import decode_json, read_bytes
from nmsfree.text import shown
from nmsfree_export.adopt.foreign import (
    MEAN_RGB,
    RESIZES,
    STD_RGB,
    AdoptOptions,
    File,
    Foreign,
    in_order,
    normalization_of,
    of_queries,
)

T = TypeVar("T")
# These share one softmax over the classes and "no object"; others have a sigmoid for each class.
BY_SOFTMAX = {"detr", "table-transformer", "yolos"}
BILINEAR = 2  # of Pillow, which antialiases


@dataclass(frozen=True)
class Config:
    """What is read of config.json."""

    id2label: dict[str, str]
    model_type: str = "?"


@dataclass(frozen=True)
class Processor:
    """What is read of preprocessor_config.json; the defaults are those of the library."""

    size: dict[str, int] = field(default_factory=dict)
    do_resize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    pad_size: dict[str, int] | None = None
    do_normalize: bool = True
    image_mean: tuple[float, ...] = MEAN_RGB
    image_std: tuple[float, ...] = STD_RGB
    resample: int = BILINEAR


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    InputError: its two files are not there or damaged, or they say what is not adopted.
    """
    if not ({"logits", "pred_boxes"} <= file.outputs.keys() and "pixel_values" in file.inputs):
        return None
    config = _beside(file.path, "config.json", Config)
    processor = _beside(file.path, "preprocessor_config.json", Processor)
    if config.model_type in BY_SOFTMAX:
        raise InputError(
            f"{file.path}: {shown(config.model_type)} has scores by softmax, expected a sigmoid for"
            " each class (RT-DETR, D-FINE, Deformable DETR …)"
        )
    stretched = processor.size.keys() == {"height", "width"} and processor.resample == BILINEAR
    if options.resize is None and not stretched:
        raise InputError(
            f"{file.path}: preprocessor_config.json says size {shown(processor.size)} and resample"
            f" {processor.resample}, expected height and width, and 2: give --size and --resize"
        )
    scaled = processor.do_rescale and abs(255 * processor.rescale_factor - 1) < 1e-3
    if not (scaled and processor.do_resize) or processor.pad_size is not None:
        raise InputError(
            f"{file.path}: preprocessor_config.json says do_resize {processor.do_resize},"
            f" do_rescale {processor.do_rescale}, rescale_factor {processor.rescale_factor:g},"
            f" pad_size {shown(processor.pad_size)}, expected a resize, 1/255 and no padding"
        )
    mean, deviation = processor.image_mean, processor.image_std
    if not processor.do_normalize:
        mean, deviation = (0, 0, 0), (1, 1, 1)
    where = f"{file.path}: preprocessor_config.json"
    normalize = normalization_of(mean, deviation, where)
    names = in_order(config.id2label, f"{file.path}: config.json, id2label")
    return Foreign(
        family=f"Hugging Face {shown(config.model_type)}",
        concluded=(
            ("project", "Hugging Face, by pixel_values and config.json"),
            ("normalize", f"{normalize}, as preprocessor_config.json says"),
            ("resize", "stretch-antialiased, by its size and resample"),
        ),
        images="pixel_values",
        size=file.input_size(options, (processor.size.get("height"), processor.size.get("width"))),
        resize=RESIZES["stretch-antialiased"],
        normalize=normalize,
        **of_queries(file, options, "pred_boxes", "logits", names),
        threshold=0.4,
    )


def _beside(path: Path, name: str, kind: type[T]) -> T:
    """Read a JSON file that lies in the folder of a model, or in the one above it."""
    places = [path.parent / name, path.parent.parent / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{path}: is of Hugging Face and has no {name} beside it: put it there")
    return decode_json(read_bytes(found), kind, found, InputError)
