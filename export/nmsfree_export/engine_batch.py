"""How many images an engine takes at once."""

from pathlib import Path
from typing import Any

from nmsfree.errors import InputError
from nmsfree.spec import ModelSpec

Batch = tuple[int, int, int]  # smallest, best, largest


def resolve_batch(onnx: Path, spec: ModelSpec, asked: Batch | None) -> Batch:
    """Return the smallest, best and largest batch of an engine.

    Raises:
        InputError: a range for a file of fixed batch, none for one of dynamic batch, or no range.
    """
    if spec.batch is not None:
        if asked not in (None, (spec.batch,) * 3):
            raise InputError(
                f"{onnx}: takes batches of {spec.batch} only: leave out --batch, or export it "
                "again with `nmsfree export --batch dynamic`"
            )
        return (spec.batch,) * 3
    if asked is None:
        raise InputError(
            f"{onnx}: takes batches of any size, an engine needs a range: give --batch MIN OPT "
            "MAX, for example --batch 1 4 8"
        )
    if not 1 <= asked[0] <= asked[1] <= asked[2]:
        shown = " ".join(map(str, asked))
        raise InputError(f"batch is {shown}, expected three numbers from 1 up, ascending")
    return asked


def add_profile(builder: Any, config: Any, spec: ModelSpec, batch: Batch) -> None:
    """Tell the builder the range; a fixed batch needs no telling."""
    if spec.batch is not None:
        return
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((n, spec.height, spec.width, 3) for n in batch))
    config.add_optimization_profile(profile)
