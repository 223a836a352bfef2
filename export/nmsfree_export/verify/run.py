"""What `nmsfree verify` does once its options are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nmsfree.backends import Backend
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.image_files import images_below
from nmsfree.errors import GateError, InputError
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.files import check_outputs, write_json
from nmsfree.text import shown
from nmsfree_export.verify.accuracy import Accuracy, measure
from nmsfree_export.verify.compare import (
    Gate,
    LayerComparison,
    Side,
    compare_layers,
    gate_for,
    open_pair,
)
from nmsfree_export.verify.layer_errors import print_layers
from nmsfree_export.verify.parity import Parity, Pictures, Tolerance, compare, load_images

Say = Callable[[str], None]


@dataclass(frozen=True)
class VerifyRequest:
    """The options of `nmsfree verify`, see there."""

    a: Side
    b: Side
    images: Path | None
    score_tolerance: float | None
    box_tolerance: float | None
    max_unmatched: float | None
    data: Path | None
    split: str | None
    max_ap_drop: float | None
    layers: bool
    json_out: str | None

    def check(self) -> None:
        """Refuse options that exclude one another, or would be ignored.

        Raises:
            InputError: says which.
        """
        if self.data is None and (self.split is not None or self.max_ap_drop is not None):
            raise InputError("checking AP needs a labelled dataset: give --data DIR")
        differences = self.score_tolerance is not None or self.box_tolerance is not None
        if differences and self.max_unmatched is not None:
            raise InputError(
                "--max-unmatched judges by the share of rows without a partner, --score-tolerance"
                " and --box-tolerance by differences: give one or the other"
            )

    def gate(self, first: Backend, second: Backend) -> Gate:
        """Return what may differ: what was asked for, else what the lower precision needs."""
        precisions = self.a.precision(first.spec), self.b.precision(second.spec)
        usual = gate_for(first.spec, *precisions, unmatched=self.max_unmatched)
        score, box = self.score_tolerance, self.box_tolerance
        if score is None and box is None:
            return usual
        return Gate(
            Tolerance(
                usual.tolerance.score if score is None else score,
                usual.tolerance.box if box is None else box,
            )
        )


@dataclass(frozen=True)
class Outcome:
    """What was found; None is what was not asked for, or could not be had.

    Attributes:
        failure: why the detections are not the same, None if they are.
    """

    sides: tuple[dict[str, object], dict[str, object]]
    parity: Parity | None
    failure: GateError | None
    accuracy: Accuracy | None
    layers: LayerComparison | None

    def to_json(self) -> dict[str, object]:
        refused = {"passed": False, "failure": str(self.failure)}
        return {
            "a": self.sides[0],
            "b": self.sides[1],
            "parity": refused if self.parity is None else self.parity.to_json(),
            "accuracy": self.accuracy and self.accuracy.to_json(),
            "layers": self.layers and self.layers.to_json(),
        }


def run_verify(request: VerifyRequest) -> None:
    """Compare, show and write the outcome.

    Raises:
        GateError: the detections differ too much, or too much AP is lost.
    """
    request.check()
    console = Console(stderr=True)
    pictures = load_images(request.images)
    dataset = None if request.data is None else load_dataset(request.data, request.split or "val")
    inputs = [request.a.path, request.b.path, *(dataset.files() if dataset else ())]
    inputs += images_below(request.images) if request.images else []
    check_outputs([request.json_out], inputs)
    with console.status("opening") as status:
        first, second = open_pair(request.a, request.b)
        try:
            for name, side, backend in (("a", request.a, first), ("b", request.b, second)):
                line = f"{name}  {side.describe(backend)}"
                console.print(shown(line), highlight=False, markup=False, soft_wrap=True)
            outcome = verify_pair(request, first, second, pictures, dataset, status.update)
        finally:
            first.close()
            second.close()
    try:
        _show(outcome, console)
    finally:  # also of models that differ
        write_json(request.json_out, outcome.to_json())


def verify_pair(
    request: VerifyRequest,
    first: Backend,
    second: Backend,
    pictures: Pictures,
    dataset: DetectionDataset | None,
    progress: Say,
) -> Outcome:
    """Compare detections, then AP if asked for, then layers if asked for or something failed."""
    if dataset is not None:
        category_ids_of(first.spec.class_names, dataset)  # other classes are told before the work
    gate = request.gate(first, second)
    parity, failure, accuracy, layers = None, None, None, None
    try:
        counted = _counting(progress, "image")
        parity = gate.judge(compare(first, second, pictures, gate.tolerance, counted))
        parity.enforce()
    except GateError as error:
        failure = error
    if dataset is not None and parity is not None:  # an output against the contract has no AP
        drop = 1.0 if request.max_ap_drop is None else request.max_ap_drop
        counted = _counting(progress, "measuring AP: image")
        accuracy = measure(first, second, dataset, drop / 100, counted)
    if request.layers or failure is not None or (accuracy is not None and not accuracy.passed):
        counted = _counting(progress, "comparing layers:")
        specs = first.spec, second.spec
        layers = compare_layers(request.a, request.b, specs, pictures, counted)
    sides = request.a.to_json(first), request.b.to_json(second)
    return Outcome(sides, parity, failure, accuracy, layers)


def _counting(progress: Say, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(f"{what} {done} of {total}")


def _show(outcome: Outcome, console: Console) -> None:
    layers, accuracy = outcome.layers, outcome.accuracy
    if layers is not None and layers.errors:
        title = f"layers of {layers.judged} beside {layers.exact}"
        print_layers(layers.errors, title, console)
    if layers is not None and layers.note:
        console.print(f"layers: {layers.note}", highlight=False, markup=False)
    if outcome.failure is None:
        console.print(f"same detections: {outcome.parity}", highlight=False, markup=False)
    elif accuracy is not None:
        verdict = "AP kept" if accuracy.passed else "AP lost"
        console.print(f"{verdict}: {shown(accuracy)}", highlight=False, markup=False)
    if outcome.failure is not None:
        raise outcome.failure
    if accuracy is not None:
        accuracy.enforce()
        console.print(f"AP kept: {shown(accuracy)}", highlight=False, markup=False)
