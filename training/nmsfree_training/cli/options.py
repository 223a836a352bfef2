"""Options of `nmsfree train`: of the run, and those that replace a preset's values."""

import sys
from dataclasses import dataclass, field, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from nmsfree.errors import InputError
from nmsfree.options import Option, options_of
from nmsfree.parsing import whole_number
from nmsfree_training.cli.presets import asked_preset, value_text
from nmsfree_training.config import (
    DEFAULT_MODEL,
    HEADS,
    MAX_SIDE,
    Matching,
    ModelConfig,
    Preset,
    TrainConfig,
)
from nmsfree_training.loop.run_config import MACHINE, RunConfig

_powers = partial(HEADS, min=0, max=20, metavar="A B")


@dataclass(frozen=True)
class MatchingOptions:
    """What can be chosen of the heads' `Matching`; powers 0 0 stand for the published cost."""

    o2o_matching: Annotated[str, HEADS("argmin or hungarian.")]
    o2o_quality: Annotated[
        tuple[float, float], _powers("Match by score^A · IoU^B; 0 0 = the published cost.")
    ]
    o2m_quality: Annotated[tuple[float, float], _powers("The same for the one-to-many head.")]


KINDS = (TrainConfig, ModelConfig, MatchingOptions)
NAMES = {kind: [f.name for f, _, option in options_of(kind) if option] for kind in KINDS}
MATCHINGS = ("argmin", "hungarian")
TWO_HEADED = ("o2o_gradient", "o2m_weight_end", "o2o_start")
FILTERS = ("max_filter", "dedup_iou", "deployed_dedup_iou", "dedup_start")


def apply(given: "RecipeOptions", preset: Preset) -> Preset:
    """Return the preset with the values that are given; None leaves the preset's.

    Raises:
        InputError: a value that makes no sense.
    """
    values = {name: value for name, value in vars(given).items() if value is not None}
    _check_heads(values, preset)
    train, model, matching = (
        {name: values[name] for name in NAMES[kind] if name in values} for kind in KINDS
    )
    if "dedup_iou" in model:  # the preset's belongs to another
        model.setdefault("deployed_dedup_iou", 0.0)
    for name in ("milestones", "short_sides"):
        if name in train:
            train[name] = whole_numbers(name, train[name])
    # 0 switches off what None switches off in a recipe.
    train |= {name: None for name in ("clip_norm", "crop", "ema") if train.get(name) == 0}
    if "short_sides" in train and not preset.train.long_side:
        train.setdefault("long_side", 2 * max(train["short_sides"]))
    if train.get("schedule") == "step" and not preset.train.milestones:
        epochs = train.get("epochs", preset.train.epochs)
        train.setdefault("milestones", (epochs * 2 // 3, epochs * 11 // 12))  # as in "3x"
    for option, value in matching.items():
        head, _, what = option.partition("_")
        own: Matching = train.get(head, getattr(preset.train, head))
        if what == "quality":
            train[head] = replace(own, quality=value if any(value) else None)
        elif value in MATCHINGS:
            train[head] = replace(own, hungarian=value == "hungarian")
        else:
            raise InputError(f"o2o matching is {value!r}, expected {', '.join(MATCHINGS)}")
    return replace(
        preset, model=replace(preset.model, **model), train=replace(preset.train, **train)
    )


def _check_heads(given: dict[str, Any], preset: Preset) -> None:
    """Refuse what would have no effect on the heads of this model."""
    heads, name = preset.model.heads, preset.model.name
    for option in given:
        spelling = "--" + option.replace("_", "-")
        if option in TWO_HEADED and len(heads) < 2:
            raise InputError(
                f"{spelling} is given, but {name} has one head: choose a two-headed model "
                "(fcos_e2e_…)"
            )
        head = "o2m" if option == "o2m_quality" else "o2o"
        if option in (*NAMES[MatchingOptions], *FILTERS) and head not in heads:
            raise InputError(f"{spelling} is given, but {name} has no {head} head")


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Read "24,33".

    Raises:
        InputError: something else than whole numbers between commas.
    """
    numbers = [whole_number(part.strip()) for part in text.split(",")]
    if None in numbers:
        raise InputError(f"{name} is {text!r}, expected whole numbers as in 24,33")
    return tuple(number for number in numbers if number is not None)


def _on_command_line(hint: Any) -> Any:
    """What typer is told: choices are checked by the settings, lists come as "24,33"."""
    if get_origin(hint) is Literal or (get_origin(hint) is tuple and ... in get_args(hint)):
        return str
    return hint


_ASKED = asked_preset(sys.argv[1:])


def _shown(name: str, option: Option) -> Option:
    """With the value of the preset that the command line names, for the help."""
    train, model = _ASKED.train, _ASKED.model
    values = vars(train) | vars(model) | {"o2o_quality": train.o2o.quality or (0.0, 0.0)}
    values |= {"o2m_quality": train.o2m.quality or (0.0, 0.0)}
    values |= {"o2o_matching": MATCHINGS[train.o2o.hungarian]}
    panel = (option.panel or "").replace("the preset's", f"{model.name}'s")
    return replace(option, help=f"{option.help} ({value_text(values[name])})", panel=panel)


if TYPE_CHECKING:
    RecipeOptions = Any
else:
    RecipeOptions = make_dataclass(
        "RecipeOptions",
        [
            (own.name, Annotated[_on_command_line(hint) | None, _shown(own.name, option)], None)
            for kind in KINDS
            for own, hint, option in options_of(kind)
            if option
        ],
        frozen=True,
        namespace={"__doc__": "Values given by the user, by the names of the settings."},
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is trained on what, and how."""

    data: Annotated[Path | None, Option("Dataset folder: COCO, YOLO or Pascal VOC  [required]")] = (
        None
    )
    out: Annotated[Path | None, Option("Run folder; runs/train/MODEL if not given.")] = None
    split: Annotated[str, Option("Split to train on.")] = "train"
    val: Annotated[str, Option("Split for AP; '' = none.")] = "val"
    preview: Annotated[
        Path | None, Option("Only write a picture of what the network would see.")
    ] = None
    model: Annotated[str | None, Option(f"Preset; {DEFAULT_MODEL} if not given.")] = None
    list_presets: Annotated[
        bool, Option("Show all presets and what they cost.", flags=("--list",))
    ] = False
    imagenet: Annotated[
        Path | None,
        Option(
            "Backbone: resnet18, resnet34, resnet50, lite0 or a file. Names are downloaded once."
            " A file has their names.",
            metavar="NAME",
        ),
    ] = None
    init: Annotated[
        Path | None,
        Option(
            "Fine-tune a checkpoint, or bundled weights by name. Its classes may differ.",
            flags=("--init", "--from"),
        ),
    ] = None
    retrofit: Annotated[
        Path | None,
        Option("Checkpoint with an o2m head: train only a new o2o head. It then needs no NMS."),
    ] = None
    unfreeze: Annotated[
        bool, Option("With --retrofit: train everything.", flags=("--unfreeze",))
    ] = False
    size: Annotated[
        tuple[int, int] | None,
        Option(
            "Input height and width of training, AP and export. The preset's or FILE's if not "
            "given.",
            min=32,
            max=MAX_SIDE,
            metavar="H W",
        ),
    ] = None
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    run: RunConfig = field(default_factory=RunConfig)
    # threads, workers, precision: None = the fastest, see `loop/probe.py`.
    threads: Annotated[
        int | None, MACHINE("Processor threads; tried if not given.", min=1, max=1024)
    ] = None
    workers: Annotated[
        int | None, MACHINE("Processes that load images; tried if not given.", min=0, max=128)
    ] = None
    precision: Annotated[
        str | None,
        MACHINE("fp32, or bf16 or fp16 for the network; the faster of the first two if not given."),
    ] = None
    no_probe: Annotated[
        bool, MACHINE("Do not try what is fastest: fp32 and 2 workers.", flags=("--no-probe",))
    ] = False
