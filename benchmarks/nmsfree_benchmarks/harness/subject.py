"""The subject of a benchmark: a model in an engine, from the command line to its record."""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from nmsfree.backends import Backend, RawDetections
from nmsfree.backends.onnxruntime.session import OUTPUTS, make_session
from nmsfree.detector import Detector
from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.machine import sha256
from nmsfree.spec import ModelSpec, Target
from nmsfree.text import shown
from nmsfree_benchmarks.harness.engines import DEPLOYED, Engine
from nmsfree_benchmarks.harness.records import State
from nmsfree_benchmarks.harness.timer import Call, Image, Laps, Stopwatch, timed

if TYPE_CHECKING:
    from nmsfree.datasets.formats.coco import DetectionDataset
    from nmsfree.evaluation.scores import Result
    from nmsfree_benchmarks.harness.memory import MemoryMeter
    from nmsfree_benchmarks.harness.weights import Weights
    from nmsfree_export.options import NmsOptions, Precision

HASH_DIGITS = 12
STAGES_CACHED = 400


class TimedBackend:
    """A backend that marks a stopwatch before and after each run.

    What a native engine says of its own stages (copies, network) is kept, too.
    """

    def __init__(self, backend: Backend, watch: Stopwatch) -> None:
        self._backend = backend
        self._watch = watch
        self._timings = getattr(backend, "timings", None)
        self._stages: deque[Mapping[str, float]] = deque(maxlen=STAGES_CACHED)

    def stages(self) -> dict[str, float]:
        """Median ms of the stages in the latest runs, "h2d_ms" …; empty where it tells none."""
        if not self._stages:
            return {}
        return {f"{k}_ms": round(median(s[k] for s in self._stages), 4) for k in self._stages[0]}

    @property
    def spec(self) -> ModelSpec:
        return self._backend.spec

    def describe(self) -> str:
        return self._backend.describe()

    def run(self, images: NDArray[Any]) -> RawDetections:
        self._watch.mark()
        raw = self._backend.run(images)
        self._watch.mark()
        found = None if self._timings is None else self._timings()
        if found is not None:
            self._stages.append(vars(found))
        return raw

    def close(self) -> None:
        self._backend.close()


@dataclass(eq=False)
class Subject:
    weights: "Weights | None"  # None for a file of the user's own
    engine: Engine
    threads: int  # of the processor, for the engine
    precision: "Precision" = "fp32"  # precision, size, batch: of its file
    size: tuple[int, int] | None = None  # None: the checkpoint's
    batch: int | None = 1  # None: any
    output: Mapping[str, Any] = field(default_factory=dict)  # top_k, score_floor of the export
    file: Path = Path()  # set by the export; in PyTorch the checkpoint
    name: str = ""  # of a file of the user's own, where it is not told by its description
    watch: Stopwatch = field(default_factory=Stopwatch)  # marked by the backend of `detector`
    backend: Backend = field(init=False)  # once it is open; without marks
    detector: Detector = field(init=False)
    figures: dict[str, Any] = field(default_factory=dict)  # measured besides, for its record
    ap: dict[str, Any] = field(default_factory=dict)  # for its state

    @property
    def model(self) -> str:
        if self.weights is None:
            return self.name or self.detector.spec.name
        return self.weights.name

    @property
    def training(self) -> str:
        return "not stated" if self.weights is None else self.weights.training

    @property
    def target(self) -> Target | None:
        """Which kind of engine an INT8 file is for; no other file has one."""
        return self.engine.target if self.precision == "int8" else None

    @property
    def nms(self) -> "NmsOptions":
        """How its file does NMS, if it needs any: what is built has no operator for it."""
        from nmsfree_export.options import NO_NMS, NmsOptions

        assert self.weights is not None
        plain = self.engine.builds and self.weights.checkpoint.model.heads == ("o2m",)
        return NmsOptions(nms="plain") if plain else NO_NMS

    @property
    def input_size(self) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        assert self.weights is not None
        return self.weights.checkpoint.input_size

    @property
    def file_name(self) -> str:
        """Of subjects that share a file the same: "fcos_e2e_nano-int8-cpu-256x256-batch1"."""
        height, width = self.input_size
        kind = self.precision if self.target is None else f"{self.precision}-{self.target}"
        nms = f"-{self.nms.nms}" if self.nms.given else ""
        return f"{self.model}-{kind}{nms}-{height}x{width}-batch{self.batch or 'N'}"

    @property
    def floor(self) -> float:
        return self.detector.spec.score_floor

    def open(self, stack: ExitStack) -> "Subject":
        """Open the exported file until the stack unwinds.

        NmsfreeError: it does not run here; the text says why.
        """
        backend = self.engine.open(self.file, self.threads)
        return self.use(backend, Detector(TimedBackend(backend, self.watch)), stack)

    def use(self, backend: Backend, detector: Detector, stack: ExitStack) -> "Subject":
        self.backend, self.detector = backend, stack.enter_context(detector)
        return self

    def prepare(self, image: Image) -> NDArray[Any]:
        """One input of any picture, as the detector makes it."""
        return self.detector.preprocess([image])[0]

    def call(self) -> Call:
        """A call of the detector as its users make it, in parts: the backend marks its own."""

        def call(image: Image) -> Laps:
            self.watch.start()
            self.detector(image, threshold=self.floor)
            self.watch.mark()
            return self.watch.laps()

        return call

    def bare(self) -> Call:
        """The engine alone: `session.run` of ONNX Runtime on the processor; other engines are
        called through their backends, which know how, copies to their device included.
        """
        if self.engine.key != DEPLOYED:
            return timed(self.backend.run, self.prepare)
        session = make_session(self.file, threads=self.threads)
        return timed(lambda pixels: session.run(OUTPUTS, {"images": pixels}), self.prepare)

    def judge(self, dataset: "DetectionDataset") -> "list[Result]":
        """Measure AP with the very detector that is timed; returns what it found."""
        from nmsfree.evaluation.evaluate import coco_metrics, predict

        found = predict(self.detector, dataset)
        metrics = coco_metrics(dataset, found)
        ap, ap50 = round(metrics.ap, 5), round(metrics.ap50, 5)
        self.ap = {"ap": ap, "ap50": ap50, "ap_images": len(dataset)}
        return found

    def weigh(self, meter: "MemoryMeter") -> None:
        """Measure the memory that the engine takes with its file."""
        engine, file = self.engine, self.engine.ran(self.file)
        self.figures |= meter.measure(file, engine.device, self.threads, engine.arithmetic)

    def stages(self) -> dict[str, float]:
        """What a native engine says of its own stages in the runs just made."""
        backend = self.detector.backend
        return backend.stages() if isinstance(backend, TimedBackend) else {}

    def state(self, **known: Any) -> State:
        """How results describe it; `known` replaces what the subject says of itself."""
        spec, provider, ran = (
            self.detector.spec,
            self.backend.describe(),
            self.engine.ran(self.file),
        )
        if ran != self.file:
            provider += f"; engine {sha256(ran)[:HASH_DIGITS]} of {ran.stat().st_size:,} bytes"
        own: dict[str, Any] = {
            "model": self.model,
            "head": spec.head,
            "size": (spec.height, spec.width),
            "classes": len(spec.class_names),
            "precision": spec.precision,
            "batch": spec.batch or 1,
            "top_k": spec.top_k,
            "score_floor": spec.score_floor,
            "nms": spec.nms and {k: v for k, v in vars(spec.nms).items() if v is not None},
            "training": self.training,
            "sha256": sha256(self.file),
            "file_bytes": self.file.stat().st_size,
            "provider": provider,
            "threads": self.threads,
            **self.engine.state(self.backend, self.precision),
            **self.ap,
        }
        return State(**(own | known))


def subjects_of(files: Sequence[Path], engine: Engine, threads: int, work: Path) -> list[Subject]:
    """A subject of every file of the user's own, called as the file is.

    Their copies in `work` are measured, since engines and variants are written beside them.
    InputError: two have one name. ModelError: one is no ONNX file, or does not describe itself.
    """
    from nmsfree_benchmarks.harness.graphs import load_model
    from nmsfree_export.graph.contract import read_description

    names, made = [file.stem for file in files], []
    for file, name in zip(files, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"two files are called {shown(name)}: rename one, to tell their rows")
        spec = read_description(shown(file), load_model(file))
        copy = work / f"{name}-{sha256(file)[:HASH_DIGITS]}.onnx"
        write_atomic(copy, file.read_bytes())
        own = Subject(None, engine, threads, cast("Precision", spec.precision))
        size = spec.height, spec.width
        made.append(replace(own, size=size, batch=spec.batch, file=copy, name=name))
    return made
