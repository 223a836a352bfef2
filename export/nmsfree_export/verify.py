"""Open two artifacts so that they can be compared."""

from pathlib import Path

from nmsfree.backends import CHECKPOINT_SUFFIXES, Backend, open_backend
from nmsfree.errors import MissingExtraError
from nmsfree.spec import ModelSpec


def open_pair(a: Path, b: Path) -> tuple[Backend, Backend]:
    """Open two models; a checkpoint runs as the exported file it is compared with.

    That is: the same head, input size, floor and NMS.
    """
    if _is_checkpoint(a) and not _is_checkpoint(b):
        second = open_backend(b)
        return _open_like(a, second.spec), second
    first = open_backend(a)
    return first, _open_like(b, first.spec) if _is_checkpoint(b) else open_backend(b)


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in CHECKPOINT_SUFFIXES


def _open_like(path: Path, spec: ModelSpec) -> Backend:
    try:
        from nmsfree_training.predict import open_checkpoint
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "nmsfree_training"):
            raise
        raise MissingExtraError("reading a checkpoint", "nmsfree-export[torch]") from None
    return open_checkpoint(path, like=spec)
