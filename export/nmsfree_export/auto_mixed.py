"""`--auto-mixed`: the layers that make most error stay in float, more of them until a file passes.

An attempt builds the file anew and verifies it. If it is refused, the layers are measured beside
FP32, and the worst join those in float. The worst is the one that adds most error when it is fed
with exact values, see `layer_errors.py`: what a layer inherits is gone once the culprit is in
float. Only layers at least half as bad as the worst join, so that one fragile layer does not drag
healthy ones along, and no more than 4, then 8, 16 …: a network that is bad all over ends soon.

A layer that adds error though it is in float already reads values that another one rounds. Then
that one is next: the layer that makes the values, or another one that reads the same.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec
from nmsfree_export.candidate import Builder, Candidate, FragileError, Verification, Verifier
from nmsfree_export.graph.layers import Layer, read_layers
from nmsfree_export.graph.values import PRODUCTS
from nmsfree_export.verify.layer_errors import LayerError, percent

FIRST = 4  # layers that may join after the first attempt; twice as many after every other
AS_BAD = 0.5  # share of the worst error from which on a layer joins
NAMED = 3  # layers in an error message


@dataclass(frozen=True)
class Attempt:
    """One file that was refused: the layers it had in float, and why."""

    float_layers: tuple[str, ...]
    failure: str

    def to_json(self) -> dict[str, object]:
        return {"kept": list(self.float_layers), "failure": self.failure}


def search(
    builder: Builder, verifier: Verifier, log: Callable[[str], None]
) -> tuple[Candidate, Verification, tuple[Attempt, ...]]:
    """Return the first candidate that passes, what it showed, and the attempts before it.

    `log` is told of every attempt, in one line.

    Raises:
        FragileError: none passes, short of a file in FP32.
        GateError: the certificate refused, or FP32 does not pass either.
    """
    movable, layers = builder.movable(), read_layers(builder.original.model)
    chosen: list[str] = []
    attempts: list[Attempt] = []
    while True:
        candidate = builder.build(chosen)
        try:
            return candidate, verifier.verify(candidate), tuple(attempts)
        except GateError as error:
            failure = str(error)
        if not attempts:
            verifier.check_full()
        attempts.append(Attempt(tuple(chosen), failure))
        errors = verifier.layers(candidate)
        sources = {e.name: _sources(e.name, layers, candidate.spec) for e in errors}
        more = worst(errors, sources, movable.keys() - set(chosen), FIRST << len(attempts) - 1)
        chosen += more
        if not more or all(name in chosen for name, op in movable.items() if op in PRODUCTS):
            precision = candidate.spec.precision
            raise FragileError(
                f"{failure}; --auto-mixed found no file in {precision} that passes: it would"
                " leave no layer in it; keep fp32",
                errors,
            )
        reasons = ", ".join(_reason(name, error) for name, error in more.items())
        log(f"attempt {len(attempts)}: {failure}; next in float: {reasons}")


def worst(
    errors: Sequence[LayerError], sources: dict[str, list[str]], free: Collection[str], limit: int
) -> dict[str, LayerError]:
    """Return the names of the layers that go to float next, and the error that each answers for.

    Args:
        errors: of all layers, worst first.
        sources: for each layer, those that may round what it reads.
        free, limit: layers that can go, and how many at most.
    """
    chosen: dict[str, LayerError] = {}
    least = 0.0
    for error in errors:
        names = [error.name] if error.name in free else sources[error.name]
        culprits = [name for name in names if name in free]
        if not culprits:
            continue
        least = least or AS_BAD * error.added
        if error.added < least or len(chosen) >= limit:
            break
        chosen.update({name: error for name in culprits if name not in chosen})
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
    return readers if spec.int8_target == "tensorrt" else [*makers, *readers]


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
