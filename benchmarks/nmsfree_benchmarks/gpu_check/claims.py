"""What this project says of GPUs, as claims that a user's own machine confirms or refutes.

Each is tried on real detectors: the bundled NMS-free one and the one that needs NMS. A claim's
function returns what it saw. It raises `CannotTry` or `MissingExtraError` where the claim is not
about this machine, and any other `NmsfreeError` where it does not hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nmsfree.backends import Backend, open_backend
from nmsfree.backends.options import Options
from nmsfree.errors import EngineError, NmsfreeError
from nmsfree.machine import Gpu, find_gpus


class CannotTry(NmsfreeError):
    """The claim is not about this machine."""


@dataclass(frozen=True)
class Claim:
    """Attributes:
    key: on the command line.
    text: what is claimed.
    check: tries it on the files of a folder, see `gpu_check.prepare`.
    """

    key: str
    text: str
    check: Callable[[Path], str]


def the_gpu() -> Gpu:
    """The first GPU.

    Raises:
        EngineError: there is none, or no driver.
    """
    gpus = find_gpus()
    if gpus.problem:
        raise EngineError(gpus.problem)
    return gpus.found[0]


def on(device: str, file: Path) -> Backend:
    """Open a file on a device; a processor in its place is an error."""
    return open_backend(file, device, Options())
