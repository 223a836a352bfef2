"""The eager PyTorch baselines.

The network is the trained one, nothing folded, as the published code runs it. Around it are the
published post-processing in both of its settings, and this project's top-k for comparison.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.nms import suppress
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree_benchmarks.harness.timer import Stopwatch
from nmsfree_benchmarks.harness.weights import Weights
from nmsfree_export.graph.deploy import top_pairs
from nmsfree_training.config import HeadName
from nmsfree_training.model.detector import Fcos, Prediction
from nmsfree_training.model.norms import normalize
from nmsfree_training.weights.checkpoint import Checkpoint
from nmsfree_training.weights.predict import (
    EVALUATE_O2M,
    EVALUATE_O2O,
    PostprocessConfig,
    TorchBackend,
    make_spec,
    open_network,
    postprocess,
    select_levels,
)

Found = list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]]


@dataclass(frozen=True)
class Setting:
    """One way to post-process eagerly."""

    key: str  # name in the results
    o2m: PostprocessConfig  # ends in NMS on the host
    o2o: PostprocessConfig
    select: Callable[[Prediction, PostprocessConfig], Found]  # boxes, scores, labels of each image


def two_stage(prediction: Prediction, config: PostprocessConfig) -> Found:
    """Post-process with the exact two-stage top-k of the exported graphs.

    With NMS the best of each level, as the published code; without, the best over all levels.
    """
    sizes = [h * w for h, w in prediction.shapes]
    levels = sizes if config.nms_iou is not None else [sum(sizes)]
    start, parts = 0, []
    for size, logits in zip(
        levels, torch.split(prediction.logits.transpose(1, 2), levels, dim=2), strict=True
    ):
        best, cells, labels = top_pairs(logits, min(config.per_level, size))
        parts.append((best.sigmoid(), cells + start, labels))
        start += size
    scores, cells, labels = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))  # [N, T]
    return [
        _finish(boxes[c], s, label, config)
        for boxes, s, c, label in zip(prediction.boxes, scores, cells, labels, strict=True)
    ]


def _finish(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, config: PostprocessConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    above = scores > config.score_floor
    b, s, c = (t[above].numpy(force=True) for t in (boxes, scores, labels))
    if config.nms_iou is not None:
        keep = suppress(b, s, c, config.nms_iou, config.class_aware)
        b, s, c = b[keep], s[keep], c[keep]
    return b, s, c


SETTINGS = (
    Setting(
        "eager_timing",
        PostprocessConfig(per_level=100, score_floor=0.3, nms_iou=0.45),
        PostprocessConfig(per_level=100, score_floor=0.3),
        postprocess,
    ),
    Setting("eager_evaluation", EVALUATE_O2M, EVALUATE_O2O, postprocess),
    Setting("eager_two_stage", EVALUATE_O2M, EVALUATE_O2O, two_stage),
)


class EagerBackend(TorchBackend):
    """A network with one of the `SETTINGS`, for `nmsfree.Detector`."""

    def __init__(self, network: Fcos, checkpoint: Checkpoint, setting: Setting) -> None:
        head = network.config.deployed_head
        self.config = setting.o2m if head == "o2m" else setting.o2o
        self._select = setting.select
        super().__init__(network, _spec(checkpoint, head, self.config))

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        return self._pack(self._select(self.predict(images), self.config), len(images))


def _spec(checkpoint: Checkpoint, head: HeadName, config: PostprocessConfig) -> ModelSpec:
    """Describe the head with the floor and NMS of this post-processing."""
    spec = make_spec(checkpoint, head, batch=1, score_floor=config.score_floor)
    if config.nms_iou is None:
        return spec
    return replace(spec, nms=NmsSpec(config.nms_iou, config.class_aware, config.per_level))


def eager_backends(
    weights: Weights, watch: Stopwatch, device: str = "cpu"
) -> dict[str, EagerBackend]:
    """Build one network and, around it, a backend for each of the `SETTINGS`, by key.

    The stopwatch is marked when the normalised tensor enters the network and when the head returns
    its raw maps: flattening and decoding belong to the post-processing. On a GPU each mark waits
    for what was started before it.
    """
    network = open_network(weights.checkpoint, device)
    mark = _mark(watch, device)
    network.register_forward_pre_hook(lambda *_: mark())
    network.heads[network.config.deployed_head].register_forward_hook(lambda *_: mark())
    return {s.key: EagerBackend(network, weights.checkpoint, s) for s in SETTINGS}


def _mark(watch: Stopwatch, device: str) -> Callable[[], None]:
    if device == "cpu":
        return watch.mark

    def wait_and_mark() -> None:
        torch.cuda.synchronize()
        watch.mark()

    return wait_and_mark


class CompiledBackend(EagerBackend):
    """The network under `torch.compile`; decoding is part of it, so it counts as network."""

    def __init__(
        self, weights: Weights, watch: Stopwatch, device: str, compiler: str = "inductor"
    ) -> None:
        network = open_network(weights.checkpoint, device)
        super().__init__(network, weights.checkpoint, SETTINGS[-1])
        self._mark = _mark(watch, device)
        self._compiled = torch.compile(network, backend=compiler)
        self._compiler = compiler

    def describe(self) -> str:
        return f"PyTorch {torch.__version__} {self._device.type}, torch.compile ({self._compiler})"

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8]) -> Prediction:
        assert self.spec.head != "queries"
        head: HeadName = self.spec.head
        inputs = normalize(torch.from_numpy(images).to(self._device))
        self._mark()
        found: dict[str, Prediction] = self._compiled(inputs, heads=(head,))
        self._mark()
        return found[head]


def nms_load(
    backends: Mapping[str, EagerBackend], inputs: list[NDArray[np.uint8]]
) -> dict[str, float]:
    """How many (cell, class) pairs above the floor enter NMS, mean over the images.

    `backends` are around one network, `inputs` letterboxed, uint8 [1, H, W, 3].
    """
    counts: dict[str, list[int]] = {key: [] for key in backends}
    for pixels in inputs:
        prediction = next(iter(backends.values())).predict(pixels)
        for key, backend in backends.items():
            counts[key].append(len(select_levels(prediction, backend.config)[0][1]))
    return {key: float(np.mean(found)) for key, found in counts.items()}
