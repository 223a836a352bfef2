"""A checkpoint as a backend of `nmsfree.Detector`: eager PyTorch, published post-processing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsfree.backends.base import RawDetections
from nmsfree.errors import CheckpointError, EngineError, InputError
from nmsfree.nms import suppress
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree.text import one_of
from nmsfree_training.config import HeadName
from nmsfree_training.model.detector import Fcos, Prediction, place
from nmsfree_training.model.norms import normalize
from nmsfree_training.weights.checkpoint import Checkpoint, deployed_like, load_checkpoint

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class PostprocessConfig:
    """How predictions become detections."""

    per_level: int  # best (cell, class) pairs kept of each level
    score_floor: float = 0.05  # lower scores are dropped
    nms_iou: float | None = None  # IoU above which NMS removes a box; None = no NMS
    class_aware: bool = True  # NMS within a class only
    # As published, a level keeps no more pairs than it has cells; without the cap the best
    # `per_level` of each level contain the exact best of all levels.
    cap_at_cells: bool = True
    most: int | None = None  # best of all levels that enter NMS; None: all


EVALUATE_O2M = PostprocessConfig(per_level=1000, nms_iou=0.6)
EVALUATE_O2O = PostprocessConfig(per_level=100)


def select_levels(
    prediction: Prediction, config: PostprocessConfig
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per image the candidates of all levels: boxes [n, 4], scores [n], labels int64 [n].

    Each level keeps min(per_level, its cells) of all its (cell, class) scores by a full sort,
    then those above the floor.
    """
    scores = prediction.logits.sigmoid()
    sizes = [h * w for h, w in prediction.shapes]
    results = []
    for image_scores, image_boxes in zip(scores, prediction.boxes, strict=True):
        levels = zip(image_scores.split(sizes), image_boxes.split(sizes), strict=True)
        parts = [_select_level(*level, config) for level in levels]
        boxes, kept, labels = map(torch.cat, zip(*parts, strict=True))
        results.append((boxes, kept, labels))
    return results


def _select_level(
    scores: Tensor, boxes: Tensor, config: PostprocessConfig
) -> tuple[Tensor, Tensor, Tensor]:
    cells, num_classes = scores.shape
    ordered, index = scores.flatten().sort(descending=True)
    keep = min(config.per_level, cells) if config.cap_at_cells else config.per_level
    ordered, index = ordered[:keep], index[:keep]
    above = ordered > config.score_floor
    ordered, index = ordered[above], index[above]
    return boxes[index // num_classes], ordered, index % num_classes


# Boxes float32 [n, 4], scores float32 [n], labels int64 [n] of one image.
Found = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def postprocess(prediction: Prediction, config: PostprocessConfig) -> list[Found]:
    """Per image boxes float32 [n, 4] (xyxy, input pixels, not clipped), scores [n], labels [n].

    With NMS sorted by score; without, level by level as the published code leaves them.
    """
    results = []
    for boxes, scores, labels in select_levels(prediction, config):
        b, s, c = boxes.numpy(force=True), scores.numpy(force=True), labels.numpy(force=True)
        if config.nms_iou is not None:
            best = np.argsort(-s, kind="stable")[: config.most]
            b, s, c = b[best], s[best], c[best]
            keep = suppress(b, s, c, config.nms_iou, config.class_aware)
            b, s, c = b[keep], s[keep], c[keep]
        results.append((b, s, c))
    return results


TOP_K = 100


def make_spec(
    checkpoint: Checkpoint,
    head: HeadName,
    *,
    input_size: tuple[int, int] | None = None,
    batch: int | None = None,
    top_k: int = TOP_K,
    score_floor: float = 0.05,
) -> ModelSpec:
    """Describe one head of a checkpoint as a deployed model."""
    height, width = input_size or checkpoint.input_size
    measured: dict[str, Any] = {}
    # Of its usual head; scores of the other one mean something else.
    if checkpoint.thresholds is not None and head == checkpoint.model.deployed_head:
        best = max(checkpoint.thresholds.best_f1, score_floor)
        measured = {"thresholds": checkpoint.thresholds, "threshold": best}
    return ModelSpec(
        name=checkpoint.model.name,
        head=head,
        height=height,
        width=width,
        batch=batch,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        top_k=top_k,
        score_floor=score_floor,
        nms=NmsSpec() if head == "o2m" else None,
        provenance=dict(checkpoint.provenance),
        **measured,
    )


class TorchBackend:
    """Runs one head of a network, on its device, eagerly with the published post-processing.

    Floor, top-k and NMS are those of the spec.
    """

    def __init__(self, network: Fcos, spec: ModelSpec) -> None:
        self.spec = spec
        self._network = network
        self._device = next(network.parameters()).device

    def describe(self) -> str:
        return f"PyTorch {torch.__version__} {self._device.type}, eager"

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        nms = self.spec.nms
        if nms is None:  # no floor: rows below it are part of the output contract
            config = PostprocessConfig(self.spec.top_k, score_floor=-1.0, cap_at_cells=False)
        else:
            config = PostprocessConfig(
                nms.candidates_per_level,
                self.spec.score_floor,
                nms.iou,
                nms.class_aware,
                most=nms.candidates,
            )
        return self._pack(postprocess(self.predict(images), config), len(images))

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8]) -> Prediction:
        """Run the network on uint8 [N, H, W, 3] BGR and return the head's `Prediction`."""
        assert self.spec.head != "queries"
        head: HeadName = self.spec.head
        inputs = normalize(torch.from_numpy(images).to(self._device))
        predictions: dict[str, Prediction] = self._network(inputs, heads=(head,))
        return predictions[head]

    def _pack(self, found: list[Found], count: int) -> RawDetections:
        k = self.spec.top_k
        limit = np.array([self.spec.width, self.spec.height] * 2, np.float32)
        raw = RawDetections(
            np.zeros((count, 1), np.int32),
            np.zeros((count, k, 4), np.float32),
            np.zeros((count, k), np.float32),
            np.zeros((count, k), np.int32),
        )
        for i, (boxes, scores, labels) in enumerate(found):
            order = np.argsort(-scores, kind="stable")[:k]
            raw.num_detections[i] = np.count_nonzero(scores[order] > self.spec.score_floor)
            raw.detection_boxes[i, : len(order)] = np.clip(boxes[order], 0, limit)
            raw.detection_scores[i, : len(order)] = scores[order]
            raw.detection_classes[i, : len(order)] = labels[order]
        return raw

    def close(self) -> None:
        """Nothing to free."""


def torch_device(name: str) -> torch.device:
    """Return the device, or say clearly that it is not there.

    Raises:
        InputError: an unknown device.
        EngineError: a GPU that PyTorch does not see.
    """
    if name not in DEVICES:
        raise InputError(f"device is {name!r}, a checkpoint runs on {one_of(DEVICES, name)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise EngineError("device is 'cuda', but PyTorch sees no GPU: use --device cpu")
    return torch.device(name)


def open_network(checkpoint: Checkpoint, device: str) -> Fcos:
    """Build the network on its device; on a GPU with the layout of its inputs, and without TF32.

    Raises:
        InputError: an unknown device.
        EngineError: a GPU that PyTorch does not see.
    """
    network, chosen = checkpoint.build(), torch_device(device)
    if chosen.type == "cpu":
        return network
    # PyTorch's own choice for convolutions is 10 bits of mantissa; FP32 is FP32 here.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return place(network, chosen)


def open_checkpoint(
    path: Path, *, device: str = "cpu", threads: int | None = None, like: ModelSpec | None = None
) -> TorchBackend:
    """Open a checkpoint as a backend.

    Args:
        like: run it as this deployed model (head, input size, floor, NMS, duplicate IoU)
            for a comparison; None takes the deployed head and the checkpoint's own input size.

    Raises:
        CheckpointError: it cannot be read, or has not the head that is asked for.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path)
    if like is not None:
        checkpoint = deployed_like(checkpoint, like)
    network = open_network(checkpoint, device)
    if like is None:
        return TorchBackend(network, make_spec(checkpoint, network.config.deployed_head))
    if like.head not in checkpoint.model.heads:
        raise CheckpointError(
            f"{path}: has the heads {', '.join(checkpoint.model.heads)}, expected {like.head}"
        )
    spec = replace(
        like, class_names=checkpoint.class_names, category_ids=checkpoint.category_ids, batch=None
    )
    return TorchBackend(network, spec)
