"""`--auto-mixed`: the layers that make most error stay in float, more of them until the gates pass.

An attempt builds the file anew and runs all gates. If one refuses, the layers are measured beside
FP32, and the worst join those in float. The worst is the one that adds most error when it is fed
with exact values, see `layer_errors.py`: what a layer inherits is gone once the guilty one is in
float. Only layers at least half as bad as the worst join, so that one fragile layer does not drag
healthy ones along, and no more than 4, then 8, 16 …: a network that is bad all over ends soon.

A layer that adds error though it is in float already reads values that another one rounds. Then
that one is next: the layer that makes the values, or another one that reads the same.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass

from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec
from nmsfree_export.acceptance import FragileError, Gates, Proof
from nmsfree_export.candidate import Candidate, Workshop
from nmsfree_export.graph.layers import Layer, read_layers
from nmsfree_export.verify.layer_errors import LayerError, percent

FIRST = 4  # layers that may join after the first attempt; twice as many after every other
AS_BAD = 0.5  # share of the worst error from which on a layer joins
NAMED = 3  # layers in an error message


@dataclass(frozen=True)
class Attempt:
    """One file that was refused: the layers it had in float, and why."""

    kept: tuple[str, ...]
    failure: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def search(
    workshop: Workshop, gates: Gates, tell: Callable[[str], None]
) -> tuple[Candidate, Proof, tuple[Attempt, ...]]:
    """Return the first candidate that passes, its proof, and the attempts before it.

    Args:
        tell: told of every attempt, in one line.

    Raises:
        FragileError: none passes, short of a file in FP32.
        GateError: the certificate refused, or FP32 does not pass either.
    """
    movable, layers = workshop.movable(), read_layers(workshop.full)
    kept: list[str] = []
    attempts: list[Attempt] = []
    while True:
        candidate = workshop.make(kept)
        try:
            return candidate, gates.prove(candidate), tuple(attempts)
        except GateError as error:
            failure = str(error)
        if not attempts:
            gates.check_full()
        attempts.append(Attempt(tuple(kept), failure))
        errors = gates.layers(candidate)
        sources = {e.name: _sources(e.name, layers, candidate.spec) for e in errors}
        more = worst(errors, sources, movable.keys() - set(kept), FIRST << len(attempts) - 1)
        kept += more
        if not more or all(name in kept for name, op in movable.items() if op == "Conv"):
            raise FragileError(_gave_up(failure, candidate.spec), errors)
        reasons = ", ".join(_reason(name, error) for name, error in more.items())
        tell(f"attempt {len(attempts)}: {failure}; next in float: {reasons}")


def worst(
    errors: Sequence[LayerError],
    sources: dict[str, list[str]],
    free: Collection[str],
    limit: int,
) -> dict[str, LayerError]:
    """Return the names of the layers that go to float next, and the error that each answers for.

    Args:
        errors: of all layers, worst first.
        sources: for each layer, those that may round what it reads.
        free: layers that can go.
        limit: how many at most.
    """
    chosen: dict[str, LayerError] = {}
    least = 0.0
    for error in errors:
        guilty = [error.name] if error.name in free else sources[error.name]
        guilty = [name for name in guilty if name in free]
        if not guilty:
            continue
        least = least or AS_BAD * error.added
        if error.added < least or len(chosen) >= limit:
            break
        chosen.update({name: error for name in guilty if name not in chosen})
    return chosen


def _sources(name: str, layers: Sequence[Layer], spec: ModelSpec) -> list[str]:
    """Names of the layers that may round what the layers of a name read.

    Integers of a processor: who makes a value rounds it, and who reads it. Of TensorRT: who reads
    it. In half: who makes it; every reader rounds for itself.
    """
    feeds = {feed for layer in layers if layer.name == name for feed in layer.feeds}
    makers = [layer.name for layer in layers if layer.output in feeds]
    readers = [layer.name for layer in layers if feeds.intersection(layer.feeds)]
    if spec.precision == "fp16":
        return makers
    return readers if spec.made_for == "tensorrt" else [*makers, *readers]


def explain(failure: GateError, errors: Sequence[LayerError]) -> FragileError:
    """Add to a refusal which layers are to blame, and what helps."""
    if not errors:
        return FragileError(str(failure), errors)
    named = [e for e in errors if e.added >= AS_BAD * errors[0].added][:NAMED]
    return FragileError(
        f"{failure}; most error comes from {', '.join(_reason(e.name, e) for e in named)}:"
        " --auto-mixed keeps such layers in float",
        errors,
    )


def _reason(name: str, error: LayerError) -> str:
    """Name a layer and the error that it answers for, which may be another's."""
    role = "" if name == error.name else f"rounds what {error.name} reads, "
    return f"{name} ({role}{percent(error.added)})"


def _gave_up(failure: str, spec: ModelSpec) -> str:
    return (
        f"{failure}; --auto-mixed found no file in {spec.precision} that passes: it would leave no"
        " convolution in it; export with --precision fp32"
    )
