"""What the server allows."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from nmsfree.options import Option, check_bounds

_LIMIT = partial(Option, panel="Limits")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server allows, and how it shares its engines; InputError out of bounds."""

    workers: Annotated[
        int | None,
        _LIMIT(
            "Runs of a model at once; as many as processors divided by --threads if not given, 2"
            " on a GPU.",
            min=1,
            max=256,
        ),
    ] = None
    max_batch: Annotated[
        int, _LIMIT("Requests joined into one run, where the file takes a batch.", min=1, max=256)
    ] = 8
    max_wait_ms: Annotated[
        float, _LIMIT("How long the first of a batch waits for others.", min=0, max=1000)
    ] = 2.0
    max_queue: Annotated[
        int,
        _LIMIT(
            "Requests of a model that are in work or wait; one more is answered 503.",
            min=1,
            max=100_000,
        ),
    ] = 128
    timeout: Annotated[
        float,
        _LIMIT(
            "Seconds in which a request must have arrived, and again to its answer.",
            min=0.1,
            max=3600,
        ),
    ] = 30.0
    max_body_mb: Annotated[float, _LIMIT("Largest request in MB.", min=0.001, max=2000)] = 32.0
    max_pixels: Annotated[
        int, _LIMIT("Most pixels of a picture, width × height.", min=1, max=1 << 28)
    ] = 50_000_000
    canary_seconds: Annotated[
        float, _LIMIT("How often each engine must answer its file's canary.", min=0.1, max=3600)
    ] = 60.0

    def __post_init__(self) -> None:
        check_bounds(self)


ALLOWED = Limits()
