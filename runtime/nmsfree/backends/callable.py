"""A plain function as a backend, for tests and for applications with an engine of their own."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.errors import InputError
from nmsfree.spec import ModelSpec


class CallableBackend:
    """Run `function(images uint8 [N, H, W, 3] BGR) -> RawDetections` as a model.

    Raises:
        InputError: `function` cannot be called, or `spec` is not a ModelSpec.
    """

    def __init__(
        self,
        function: Callable[[NDArray[np.uint8]], RawDetections],
        spec: ModelSpec,
        description: str = "callable",
    ) -> None:
        if not callable(function) or not isinstance(spec, ModelSpec):
            raise InputError(
                f"a callable backend takes a function and a ModelSpec, found"
                f" {type(function).__name__} and {type(spec).__name__}"
            )
        self.spec = spec
        self.description = description
        self._function = function

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        return self._function(images)

    def close(self) -> None:
        """Nothing to free."""
