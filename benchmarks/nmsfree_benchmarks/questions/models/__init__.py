"""How fast is each detector, with NMS and without, and how right? Here its options alone."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree.text import one_of
from nmsfree_benchmarks.harness.options import CPU, Files, RunOptions

SIZES = ("nano", "large")
DEVICES = (CPU, "cuda")


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """A quick run has the large models only if asked, and of them what the ratios need."""

    files: Files = ()
    quick: Annotated[
        bool,
        Option("A minute, about two if busy: small models, fewer rounds.", flags=("--quick",)),
    ] = False
    seconds: Annotated[
        float | None, Option("Time for the rounds of each input size.", min=0, max=86400)
    ] = None
    size: Annotated[str | None, Option("Only nano (digits) or only large (512 × 736).")] = None
    device: Annotated[str, Option("Where the models run: cpu or cuda.")] = CPU

    quick_seconds: ClassVar[int] = 120
    tries_device: ClassVar[bool] = False  # an engine that is not there is skipped

    def check(self) -> None:
        super().check()
        if self.device not in DEVICES:
            known = one_of(DEVICES, self.device)
            raise InputError(f"device is {self.device!r}, the benchmark runs on {known}")
        if self.device == "cuda":
            from nmsfree_benchmarks.harness.engines import the_gpu

            the_gpu()  # without one, that is the reason to give
        if self.size not in (None, *SIZES):
            raise InputError(f"size is {self.size!r}, expected one of: {', '.join(SIZES)}")
