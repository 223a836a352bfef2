"""What the server allows."""

from dataclasses import dataclass
from typing import Annotated

from nmsfree.options import Option, check_bounds

PANEL = "Limits"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server allows, and how it shares its engines.

    Raises:
        InputError: a value is outside its bounds.
    """

    workers: Annotated[
        int | None,
        Option(
            "Runs of a model at once; as many as processors divided by --threads if not given, 2"
            " on a GPU.",
            min=1,
            max=256,
            panel=PANEL,
        ),
    ] = None
    max_batch: Annotated[
        int,
        Option(
            "Requests joined into one run, where the file takes a batch.",
            min=1,
            max=256,
            panel=PANEL,
        ),
    ] = 8
    max_wait_ms: Annotated[
        float,
        Option("How long the first of a batch waits for others.", min=0, max=1000, panel=PANEL),
    ] = 2.0
    max_queue: Annotated[
        int,
        Option(
            "Requests of a model that are in work or wait; one more is answered 503.",
            min=1,
            max=100_000,
            panel=PANEL,
        ),
    ] = 128
    timeout: Annotated[
        float,
        Option(
            "Seconds in which a request must have arrived, and again to its answer.",
            min=0.1,
            max=3600,
            panel=PANEL,
        ),
    ] = 30.0
    max_body_mb: Annotated[
        float, Option("Largest request in MB.", min=0.001, max=2000, panel=PANEL)
    ] = 32.0
    max_pixels: Annotated[
        int,
        Option("Most pixels of a picture, width × height.", min=1, max=1 << 28, panel=PANEL),
    ] = 50_000_000
    canary_seconds: Annotated[
        float,
        Option(
            "How often each engine must answer its file's canary.", min=0.1, max=3600, panel=PANEL
        ),
    ] = 60.0

    def __post_init__(self) -> None:
        check_bounds(self)


ALLOWED = Limits()
