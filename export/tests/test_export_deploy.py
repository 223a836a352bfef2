"""The deployed graph against the network's own code."""

import numpy as np
import pytest
import torch

from nmsfree_export.graph.deploy import top_pairs
from nmsfree_export.graph.write import deploy_module
from nmsfree_training.weights.checkpoint import Checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec


@pytest.mark.parametrize(("classes", "cells", "k"), [(1, 50, 20), (80, 300, 100), (7, 20, 20)])
def test_two_stage_top_k_is_the_full_sort(classes: int, cells: int, k: int) -> None:
    logits = torch.randn(3, classes, cells, generator=torch.Generator().manual_seed(classes))
    best, cell, label = top_pairs(logits, k)
    expected = logits.flatten(1).sort(descending=True).values[:, :k]
    assert torch.equal(best, expected)
    for n in range(3):
        assert torch.equal(logits[n, label[n], cell[n]], best[n])
        assert len(set(zip(cell[n].tolist(), label[n].tolist(), strict=True))) == k


def test_nms_free_module_gives_what_the_network_gives(checkpoint: Checkpoint) -> None:
    network = checkpoint.build()
    spec = make_spec(checkpoint, "o2o", top_k=50)
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8)
    expected = TorchBackend(network, spec).run(images)
    with torch.no_grad():
        count, boxes, scores, classes = deploy_module(network, spec)(torch.from_numpy(images))
    assert np.array_equal(count.numpy(), expected.num_detections)
    assert np.allclose(scores.numpy(), expected.detection_scores, atol=1e-5)
    assert np.allclose(boxes.numpy(), expected.detection_boxes, atol=1e-2)
    assert np.array_equal(classes.numpy(), expected.detection_classes)
    assert 0 < expected.num_detections.min() <= 50


def test_boxes_are_clipped_and_scores_descend(checkpoint: Checkpoint) -> None:
    spec = make_spec(checkpoint, "o2o")
    images = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        _, boxes, scores, classes = deploy_module(checkpoint.build(), spec)(images)
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([128, 96, 128, 96])).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert classes.dtype == torch.int32
