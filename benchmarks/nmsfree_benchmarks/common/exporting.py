"""Export in a process of its own.

Tracing a network leaves the process's memory fragmented, and the engines that are opened in it
afterwards run about 3 % slower (measured); an application that embeds a model never traces one.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_training.weights.checkpoint import load_checkpoint


class Exporter:
    """Exports checkpoints, one after another, in one other process."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def export(self, checkpoint: Path, model: str, out: Path, options: ExportOptions) -> str:
        """Write the ONNX file of a checkpoint's deployed head; returns its SHA-256.

        Raises:
            GateError: the file differs from its checkpoint.
            InputError, DataError: an option, or the pictures of a calibration, cannot be used.
        """
        return self._pool.submit(_export, checkpoint, model, out, options).result()


@contextmanager
def exporter() -> Iterator[Exporter]:
    """Open the other process; it ends with the block."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        yield Exporter(pool)


def _export(checkpoint: Path, model: str, out: Path, options: ExportOptions) -> str:
    return export_onnx(load_checkpoint(checkpoint, model), out, options).sha256
