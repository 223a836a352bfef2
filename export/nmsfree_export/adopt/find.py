"""Which preprocessing was a file trained for? All are tried on labelled pictures, by their AP.

A wrong one fools the comparison with the original, which is fed as wrongly; labels it does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, get_args

import numpy as np

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.errors import GateError, InputError
from nmsfree.evaluation.evaluate import category_ids_of, check_size, coco_results
from nmsfree.evaluation.jackknife import FoldScorer, gap_bounds
from nmsfree.evaluation.scores import Result
from nmsfree.images import read_image
from nmsfree_export.adopt.foreign import (
    RESIZES,
    AdoptOptions,
    Background,
    Boxes,
    File,
    Normalization,
)
from nmsfree_export.adopt.recognize import make_adopted_spec, recognize
from nmsfree_export.adopt.reference import Original

FIRST, FINALISTS = 16, 8  # pictures on which all are tried, and how many of the best go on
MOST = 120  # pictures on which these are compared
LEAST_AP = 0.02
FOUND = ("resize", "normalize", "order", "boxes", "background")  # options

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One way to feed and read a file.

    Attributes:
        ap: 0 … 1, on `images` labelled pictures.
        behind: 95 % interval of how far it is behind the best; None with fewer than 40 pictures.
    """

    options: AdoptOptions
    images: int
    ap: float
    behind: tuple[float, float] | None = None

    @property
    def as_good(self) -> bool:
        """Whether the pictures cannot tell it from the best."""
        return self.behind is not None and self.behind[0] <= 0

    def to_json(self) -> dict[str, Any]:
        told = {name: getattr(self.options, name) for name in FOUND}
        return told | {"ap": self.ap, "images": self.images, "behind": self.behind}


def find_preprocessing(
    file: File,
    original: Original,
    options: AdoptOptions,
    dataset: DetectionDataset,
    progress: Progress = lambda _: None,
) -> list[Trial]:
    """Try resize, normalisation, channel order, box format and background that are not told.

    Returns:
        The best ones, best first; among those that the pictures cannot tell apart that one is the
        first which is recognised without labels.

    Raises:
        InputError: the file is of no known family, or a picture cannot be read.
        DataError: the dataset has other classes than the file.
        GateError: none finds the objects.
    """
    few = spread(dataset, FIRST)
    trials = score(file, original, variants(file, options), few, progress)
    if trials[0].ap < LEAST_AP:
        raise GateError(
            f"{file.path}: AP {100 * trials[0].ap:.1f} at best on {len(few)} pictures: they are not"
            " what it was made for, or its class names are in another order: give --names"
        )
    finalists = [trial.options for trial in trials[:FINALISTS]]
    trials = score(file, original, finalists, spread(dataset, MOST), progress)

    def usual(trial: Trial) -> int:
        """How much of it is what is concluded without labels."""
        concluded = replace(options, background=trial.options.background, names=trial.options.names)
        try:
            own = recognize(file, concluded)
        except InputError:  # nothing is concluded of a file of no known project
            return 0
        tried = recognize(file, trial.options)
        fields = ("resize", "normalize", "output", "bgr")
        return sum(getattr(own, name) == getattr(tried, name) for name in fields)

    equal = [trial for trial in trials if trial.as_good]
    return sorted(equal, key=usual, reverse=True) + [t for t in trials if not t.as_good]


def variants(file: File, options: AdoptOptions) -> list[AdoptOptions]:
    """All ways to feed and read a file that the told options and its shapes leave.

    InputError: there is none: what recognition says of the last one.
    """
    slots: list[Background | None] = [options.background]
    if options.background is None:
        slots += ["first", "last"]
    kinds, refusal = {}, None
    some = replace(  # files of no known project want all of them told
        options,
        resize=options.resize or "stretch",
        normalize=options.normalize or "unit",
        boxes=options.boxes or "cxcywh-share",
    )
    for slot in slots:
        try:
            kinds[slot] = recognize(file, replace(some, background=slot)).output.kind
        except InputError as error:
            refusal = error
    if refusal is not None and not kinds:
        raise refusal
    forms: tuple[Boxes | None, ...] = get_args(Boxes)
    if options.boxes or "sorted" in kinds.values():  # these are known
        forms = (options.boxes,)
    ways = product(
        (options.resize,) if options.resize else RESIZES,
        (options.normalize,) if options.normalize else get_args(Normalization),
        (options.order,) if options.order else ("rgb", "bgr"),
        forms,
        kinds,
    )
    return [replace(options, **dict(zip(FOUND, way, strict=True))) for way in ways]


def spread(dataset: DetectionDataset, count: int) -> DetectionDataset:
    """At most so many samples with objects, from all over the dataset."""
    samples = [sample for sample in dataset.samples if (~sample.iscrowd).any()]
    step = max(1, len(samples) // count)
    return replace(dataset, samples=tuple(samples[::step][:count]))


def score(
    file: File,
    original: Original,
    ways: Sequence[AdoptOptions],
    dataset: DetectionDataset,
    progress: Progress,
) -> list[Trial]:
    """The AP of each way on a dataset, best first."""
    foreigns = [original.complete(recognize(file, way)) for way in ways]
    specs = [make_adopted_spec(file, *both) for both in zip(foreigns, ways, strict=True)]
    ids = category_ids_of(specs[0].class_names, dataset)
    results: list[list[Result]] = [[] for _ in ways]
    for number, sample in enumerate(dataset.samples, start=1):
        progress(f"trying {len(ways)} ways: picture {number} of {len(dataset)}")
        image = read_image(sample.path)
        check_size(sample, *image.shape[:2])
        outputs: dict[Any, dict[str, Any]] = {}
        for foreign, spec, found in zip(foreigns, specs, results, strict=True):
            fed = (foreign.resize, foreign.normalize, foreign.bgr)
            rows = original.answer(foreign, image, spec, partial(_once, original, outputs, fed))
            counted = rows.scores > spec.score_floor
            found += coco_results(
                sample.image_id,
                rows.boxes[counted].astype(np.float32),
                [ids[label] for label in rows.classes[counted].tolist()],
                rows.scores[counted].astype(np.float32),
            )
    scorer = FoldScorer(dataset)
    scored = sorted(
        (
            (*scorer.ap(found), number) if found else (0.0, [], number)
            for number, found in enumerate(results)
        ),
        key=lambda entry: -entry[0],
    )
    best, best_without, _ = scored[0]
    return [
        Trial(ways[number], len(dataset), ap, gap_bounds(best, ap, best_without, without))
        for ap, without, number in scored
    ]


def _once(
    original: Original, outputs: dict[Any, dict[str, Any]], key: Any, feed: dict[str, Any]
) -> dict[str, Any]:
    """What a file answers; ways that only read it differently share a run."""
    if key not in outputs:
        outputs[key] = original.run(feed)
    return outputs[key]
