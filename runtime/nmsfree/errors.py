"""Every error a user can cause, as one tree.

    NmsfreeError                 exit status 2
    ├── InputError               an image, array or argument that cannot be used
    ├── ModelError               a file that is not one of our models, or does not fit the request
    ├── CheckpointError          a checkpoint that cannot be read or does not match the network
    ├── DataError                a dataset that is missing, malformed or does not fit the model
    ├── MissingExtraError        an optional dependency is missing; names the one to install
    ├── GateError                a check refused the result (parity, certificate): exit status 1
    └── EngineError              an engine that does not fit this machine: exit status 3

A message is one line: what was found, what was expected, what to do.
Vendor exceptions are translated into this tree at one place per backend.
"""

import importlib
from typing import Any


class NmsfreeError(Exception):
    """Base of all errors of this project; `exit_status` is what the command line ends with."""

    exit_status = 2


class InputError(NmsfreeError):
    """An image, array or argument cannot be used."""


class ModelError(NmsfreeError):
    """A file is not one of our models, or the model does not fit the request."""


class CheckpointError(NmsfreeError):
    """A checkpoint cannot be read or does not match the network."""


class DataError(NmsfreeError):
    """A dataset is missing, malformed, or does not fit the model."""


def how_to_install(requirement: str) -> str:
    """What brings a package; of the project, only the runtime's extras come from an index."""
    ours = requirement.startswith("nmsfree-")
    return "in your copy of the repository: make setup" if ours else f'pip install "{requirement}"'


class MissingExtraError(NmsfreeError):
    """An optional dependency is not installed, or cannot be loaded.

    Args:
        feature: what the user wanted to do.
        requirement: what to install, for example "nmsfree[cpu]".
        problem: what is wrong with the package.
    """

    def __init__(self, feature: str, requirement: str, problem: str = "is not installed") -> None:
        super().__init__(f"{feature} needs a package that {problem}: {how_to_install(requirement)}")
        self._made_of = feature, requirement, problem

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str, str]]:
        """An error that cannot be pickled hangs a pool of processes."""
        return MissingExtraError, self._made_of


def import_extra(module: str, feature: str, requirement: str) -> Any:
    """Import an optional dependency.

    Raises:
        MissingExtraError: it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise MissingExtraError(feature, requirement) from None
        line = " ".join(str(error).split())[:300]
        raise MissingExtraError(feature, requirement, f"cannot be loaded ({line})") from error


class GateError(NmsfreeError):
    """A check (parity, certificate) refused the result; nothing was left behind."""

    exit_status = 1


class EngineError(NmsfreeError):
    """An engine was built for something else and may not be rebuilt."""

    exit_status = 3
