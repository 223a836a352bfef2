"""The detectors that are run on crowded scenes: exported at the scenes' size, at several floors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree.machine import sha256
from nmsfree.spec import NmsSpec
from nmsfree_benchmarks.harness.engines import engine_of
from nmsfree_benchmarks.harness.options import CPU, RunOptions
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.weights import Weights, choose, open_weights

WITH_NMS, NMS_FREE = "fcos_rt_nano", "fcos_e2e_nano"
LOWEST_FLOOR = 0.001  # all files are exported with it; others are set in a copy
TOP_K = 1000  # rows of the output: 500 objects and what else is above a low floor
IOU = NmsSpec().iou
FOUND_ABOVE = 0.3  # a detection with this score counts as found

AtFloors = Callable[[Sequence[float]], list[Subject]]


def crowd_subjects(options: RunOptions, run: Run, side: int) -> tuple[AtFloors, Subject]:
    """The exported o2m detector at any floors, and the NMS-free one, for square pictures.

    Or two files of the user's own in their place, as they are. InputError: weights are missing, or
    the files are no such pair. GateError: a file differs from its checkpoint.
    """
    if options.files:
        return own_pair(run)
    found, missing = choose(options.weights, None, (WITH_NMS, NMS_FREE))
    if missing:
        raise InputError("; ".join(missing.values()))
    with_nms, free = (crowd_subject(weights, options, (side, side)) for weights in found)
    run.export_whole([with_nms, free])
    return lambda floors: at_floors(with_nms, floors), free


def crowd_subject(weights: Weights, options: RunOptions, size: tuple[int, int] | None) -> Subject:
    """A subject whose file takes any number of pictures on the processor, where NMS is measured at
    several batches, and one elsewhere: compilers and CUDA graphs want shapes that are fixed.
    """
    return Subject(
        weights,
        engine_of(options.device),
        options.cores,
        size=size,
        batch=None if options.device == CPU else 1,
        output={"score_floor": LOWEST_FLOOR} | ({} if size is None else {"top_k": TOP_K}),
    )


def at_floors(subject: Subject, floors: Sequence[float]) -> list[Subject]:
    """The same exported detector with NMS at each score floor."""
    from nmsfree_benchmarks.harness.graphs import with_floor

    return [replace(subject, file=with_floor(subject.file, floor)) for floor in floors]


def own_pair(run: Run) -> tuple[AtFloors, Subject]:
    """A file with NMS, at any floors, and one without."""
    from nmsfree_benchmarks.harness.graphs import load_model
    from nmsfree_export.graph.contract import read_description

    files = run.files()
    found = {
        read_description(own.model, load_model(own.file)).nms is not None: own for own in files
    }
    if len(files) != 2 or len(found) != 2:
        raise InputError(
            f"{len(files)} files, expected one with NMS and one without: `nmsfree adopt "
            "--nms plain` makes one with NMS of the same network"
        )
    return lambda floors: at_floors(found[True], floors), found[False]


def without_filter(subject: Subject, work: Path) -> Subject | None:
    """The same weights with the duplicate filter taken out; None if there is none.

    For timing: such a detector finds many objects more than once.
    """
    from nmsfree_training.weights.checkpoint import save_checkpoint

    weights = subject.weights
    if weights is None or not weights.checkpoint.model.dedup_iou:
        return None
    checkpoint = weights.checkpoint
    bare = work / f"{weights.name}-unfiltered-{sha256(weights.file)[:12]}.safetensors"
    if not bare.is_file():
        state = {k: v for k, v in checkpoint.state.items() if ".duplicate_filter." not in k}
        model = replace(checkpoint.model, dedup_iou=0.0)
        bare.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(replace(checkpoint, model=model, state=state), bare)
    return replace(subject, weights=open_weights(bare, weights.training))
