"""The evaluation of the published experiment: every image at its own size, without padding.

Differs from the deployed protocol in the picture the network sees (short-side rule and Pillow's
antialiased resize, in place of one fixed input with padding) and in the lists that are scored:
all that passes the floor, not the best 100.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.evaluation.evaluate import Progress, category_ids_of, check_size, coco_results
from nmsfree.evaluation.scores import Result
from nmsfree.images import read_image
from nmsfree.spec import ModelSpec
from nmsfree_training.config import HeadName
from nmsfree_training.data.augment import resized_size
from nmsfree_training.model.detector import Fcos, Prediction
from nmsfree_training.model.norms import normalize
from nmsfree_training.weights.checkpoint import load_checkpoint
from nmsfree_training.weights.predict import (
    EVALUATE_O2M,
    EVALUATE_O2O,
    Found,
    PostprocessConfig,
    make_spec,
    open_network,
    postprocess,
)

SETTINGS: dict[HeadName, PostprocessConfig] = {"o2m": EVALUATE_O2M, "o2o": EVALUATE_O2O}


def predict_published(
    path: Path,
    dataset: DetectionDataset,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[ModelSpec, list[Result]]:
    """Run a checkpoint's deployed head over a dataset as its authors evaluated it.

    Short and long side of the resize are those of the checkpoint's input size: 512 and 736 for
    the published models.

    Returns:
        What the checkpoint is deployed as, and COCO results in source pixels.

    Raises:
        CheckpointError: the file cannot be read as a checkpoint.
        DataError: classes differ, or a picture is not what the annotations say.
        InputError: a picture cannot be read, or there is no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path)
    categories = category_ids_of(checkpoint.class_names, dataset)
    network = open_network(checkpoint, device)
    sides = min(checkpoint.input_size), max(checkpoint.input_size)
    results: list[Result] = []
    for done, sample in enumerate(dataset.samples, start=1):
        # Read as everywhere, for Pillow's antialiased resize.
        image = Image.fromarray(np.ascontiguousarray(read_image(sample.path)[:, :, ::-1]))
        check_size(sample, image.height, image.width)
        boxes, scores, labels = detect(network, prepare(image, sides))
        scale = np.array([sample.width, sample.height] * 2, np.float32)
        own = [categories[label] for label in labels.tolist()]
        results += coco_results(sample.image_id, boxes * scale, own, scores)
        if progress is not None:
            progress(done, len(dataset.samples))
    return make_spec(checkpoint, network.config.deployed_head), results


def prepare(image: Image.Image, sides: tuple[int, int]) -> Tensor:
    """RGB image → the network's input, float32 [1, 3, H, W]; for `sides` see `resized_size`."""
    height, width = resized_size(image.height, image.width, *sides)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, on bytes
    bgr = np.ascontiguousarray(np.asarray(resized)[None, :, :, ::-1])
    return normalize(torch.from_numpy(bgr))


def detect(network: Fcos, inputs: Tensor) -> Found:
    """Return what the deployed head finds in one prepared image, float32 [1, 3, H, W].

    The boxes are shares of its width and height.
    """
    height, width = inputs.shape[2:]
    head = network.config.deployed_head
    with torch.inference_mode():
        on_device = inputs.to(next(network.parameters()).device)
        predictions: dict[str, Prediction] = network(on_device, heads=(head,))
        ((boxes, scores, labels),) = postprocess(predictions[head], SETTINGS[head])
    return np.clip(boxes / np.array([width, height] * 2, np.float32), 0, 1), scores, labels
