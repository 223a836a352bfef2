"""NMS in plain operators equals the greedy loop, but where chains of overlaps are too long."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from nmsfree import ModelSpec, NmsSpec, RawDetections
from nmsfree.nms import overlapping, suppress
from nmsfree_export.graph.contract import CANDIDATES
from nmsfree_export.graph.nms import append_nms

COUNT, CLASSES, SIDE = 60, 3, 200  # no box leaves the picture
MANY = 290  # candidates whose matrix is made in parts of different size
Scenes = dict[str, NDArray[Any]]


def make_spec(top_k: int = COUNT, **nms: Any) -> ModelSpec:
    names, ids = tuple("abc"), (0, 1, 2)
    return ModelSpec("plain", "o2m", SIDE, SIDE, None, names, ids, top_k, 0.05, nms=NmsSpec(**nms))


def random_scenes(count: int, seed: int, candidates: int = COUNT) -> Scenes:
    """Clusters from loose to dense, rounded scores so that some are equal, empty and full ones."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.4 * SIDE, 0.6 * SIDE, (count, candidates // 10, 2))
    spread = rng.choice([0, 1, 3, 8], (count, 1, 1))
    centres = np.repeat(centres, 10, axis=1) + spread * rng.normal(0, 1, (count, candidates, 2))
    sides = rng.uniform(4, 12, (count, candidates, 2))
    boxes = np.concatenate([centres - sides, centres + sides], axis=2).astype(np.float32)
    boxes[:, ::7] = boxes[:, ::7, [2, 1, 0, 3]]  # inverted ones, as networks may answer
    boxes[:, ::11] = boxes[:, ::11, [2, 3, 0, 1]]
    scores = np.round(rng.uniform(0, 1, (count, candidates)) ** 2, 2).astype(np.float32)
    scores[::17] = 0.01  # nothing is above the floor
    labels = rng.integers(0, CLASSES, (count, candidates))
    labels[::5] = 1
    return dict(zip(CANDIDATES, (boxes, scores, labels), strict=True))


def run(spec: ModelSpec, scenes: Scenes) -> RawDetections:
    """The end of a file, alone."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    ports = [
        (name, kind, ["batch", *scenes[name].shape[1:]])
        for name, kind in zip(CANDIDATES, kinds, strict=True)
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [name]) for name in CANDIDATES],
        "candidates",
        [info(f"in_{name}", kind, shape) for name, kind, shape in ports],
        [info(*port) for port in ports],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    append_nms(model, spec)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {f"in_{name}": value for name, value in scenes.items()}
    return RawDetections(*session.run(list(RawDetections._fields), feed))


def expected(scenes: Scenes, i: int, spec: ModelSpec) -> list[tuple[float, int, list[float]]]:
    """What the greedy loop leaves of a scene, above the floor."""
    boxes, scores, labels = (scenes[name][i] for name in CANDIDATES)
    assert spec.nms is not None
    kept = suppress(boxes, scores, labels, spec.nms.iou, spec.nms.class_aware)
    kept = kept[scores[kept] > np.float32(spec.score_floor)]
    inside = np.clip(boxes[kept], 0, SIDE)
    return list(zip(scores[kept].tolist(), labels[kept].tolist(), inside.tolist(), strict=True))


def found(raw: RawDetections, i: int) -> list[tuple[float, int, list[float]]]:
    count = int(raw.num_detections[i, 0])
    columns = raw.detection_scores[i], raw.detection_classes[i], raw.detection_boxes[i]
    return list(zip(*(column[:count].tolist() for column in columns), strict=True))


@pytest.mark.parametrize("class_aware", [True, False])
@pytest.mark.parametrize(("steps", "candidates"), [(2, COUNT), (20, COUNT), (20, MANY)])
def test_it_equals_the_greedy_loop(steps: int, candidates: int, class_aware: bool) -> None:
    """And where it does not, the rows that are too many say so, and no others do."""
    count = 400 if candidates == COUNT else 60
    spec = make_spec(candidates, iou=0.5, class_aware=class_aware, steps=steps)
    scenes = random_scenes(count, steps, candidates)
    raw = run(spec, scenes)
    longer = 0
    for i in range(count):
        rows, want = found(raw, i), expected(scenes, i, spec)
        seen = overlapping(
            raw.detection_boxes[i, : len(rows)], raw.detection_classes[i], 0.5, class_aware
        )
        assert (sorted(rows) == sorted(want)) == (not seen)
        assert len(rows) >= len(want)
        longer += seen
    assert (longer > 0) == (steps == 2)
    assert raw.num_detections.min() == 0 < raw.num_detections.max() < candidates


def test_only_the_best_candidates_enter() -> None:
    scenes = random_scenes(50, seed=3)
    few = run(make_spec(steps=20, candidates=30), scenes)
    best = {name: np.empty_like(scenes[name][:, :30]) for name in CANDIDATES}
    for i in range(50):
        order = np.argsort(-scenes["candidate_scores"][i], kind="stable")[:30]
        for name in CANDIDATES:
            best[name][i] = scenes[name][i][order]
    whole = run(make_spec(steps=20), best)
    for i in range(50):
        assert found(few, i) == found(whole, i)


def test_it_equals_the_operator() -> None:
    scenes = random_scenes(100, seed=7)
    plain, operator = (run(make_spec(steps=steps), scenes) for steps in (30, None))
    for i in range(100):
        assert sorted(found(plain, i)) == sorted(found(operator, i))
