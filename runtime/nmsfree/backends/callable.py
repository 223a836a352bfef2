"""A plain function as a backend, for tests and for applications with an engine of their own."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.spec import ModelSpec


class CallableBackend:
    """Run `function(images uint8 [N, H, W, 3] BGR) -> RawDetections` as a model."""

    def __init__(
        self,
        function: Callable[[NDArray[np.uint8]], RawDetections],
        spec: ModelSpec,
        description: str = "callable",
    ) -> None:
        self.spec = spec
        self.description = description
        self._function = function

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        return self._function(images)

    def close(self) -> None:
        """Nothing to free."""
