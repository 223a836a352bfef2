"""Which weights are measured, and where they come from."""

from collections.abc import Callable
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree_benchmarks.table.eager import Source, open_source, standin_source

NANO = ("fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano")
PUBLISHED = {  # the published experiment's models and files
    "fcos_rt_r18_3x": "fcos_rt_r18_3x_coco.pth",
    "fcos_o2o_r18_3x": "fcos_rt_r18_3x_top1_coco.pth",
    "fcos_e2e_r18_3x": "fcos_e2e_r18_3x_coco.pth",
}


def trained_sources(weights: Path) -> tuple[list[Source], dict[str, str]]:
    """Open the trained nano models; one whose file is missing is skipped, with the reason.

    Raises:
        InputError: the folder of weights does not exist.
    """
    if not weights.is_dir():
        raise InputError(f"{weights} is not a folder: give the one with the weights")
    files = {name: weights / f"{name}.safetensors" for name in NANO}
    skipped = {
        name: f"{path.name} is not in the folder of weights: train it with "
        f"`nmsfree train --data data/digits --model {name}`"
        for name, path in files.items()
        if not path.is_file()
    }
    found = [open_source(p, "digits") for name, p in files.items() if name not in skipped]
    return found, skipped


def published_sources(
    weights: Path, work: Path, progress: Callable[[int, int], None]
) -> list[Source]:
    """Open the published models, with stand-in weights where the published file is missing."""
    sources = []
    for done, (name, file) in enumerate(PUBLISHED.items(), start=1):
        path = weights / "published" / file
        sources.append(
            open_source(path, "published", name) if path.is_file() else standin_source(name, work)
        )
        progress(done, len(PUBLISHED))
    return sources
