"""Certificate and parity: they pass what is right and refuse what is wrong."""

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

from nmsfree.backends import CallableBackend, OnnxRuntimeBackend, RawDetections
from nmsfree.errors import GateError, InputError, ModelError
from nmsfree.nms import greedy_nms
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree_export import export as export_module
from nmsfree_export.convert import Report
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.graph.contract import read_description
from nmsfree_export.graph.write import build_onnx
from nmsfree_export.options import Tolerance
from nmsfree_export.quantize import placed
from nmsfree_export.verify import parity as parity_module
from nmsfree_export.verify.allowed import ADOPTED
from nmsfree_export.verify.compare import Side, open_pair
from nmsfree_export.verify.inputs import compare_pictures
from nmsfree_export.verify.parity import (
    compare,
    load_images,
    run_any_batch,
    seeded_images,
    tolerance_for,
)
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec


@pytest.mark.parametrize(("head", "size"), [("o2o", None), ("o2m", (128, 192))])
def test_published_checkpoint_exports_within_tolerance(
    published: Checkpoint, tmp_path: Path, head: str, size: tuple[int, int] | None
) -> None:
    """512 × 736 as deployed: score within 1e-4 and box within 0.05 px of the network's own code."""
    out, weights = tmp_path / f"{head}.onnx", tmp_path / "weights.safetensors"
    report = export_onnx(published, out, ExportOptions(head=head, input_size=size))
    assert (report.spec.height, report.spec.width) == (size or (512, 736))
    assert report.parity.rows == 500 and report.parity.unmatched == 0
    assert report.parity.score_difference < 1e-4
    assert report.parity.box_difference < 0.05
    assert report.certificate.weight_bytes["backbone"] > 40e6
    assert report.spec.class_names[0] == "person" and report.spec.category_ids[-1] == 90
    save_checkpoint(published, weights)
    with open_pair(Side(weights), Side(out)) as pair:  # what `nmsfree verify` does
        assert compare(*pair, load_images(None)[3:4]).passed


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: Any) -> Callable[..., Report]:
    """Return what exports a head for a batch size, once."""

    @cache
    def make(head: str, batch: int | None) -> Report:
        out = tmp_path_factory.mktemp("exported") / "model.onnx"
        return export_onnx(checkpoint, out, ExportOptions(head=head, batch=batch))

    return make


HEADS = pytest.mark.parametrize("head", ["o2o", "o2m"])
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 96, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("head", "batch"), [("o2o", 1), ("o2o", 2), ("o2o", None), ("o2m", 1), ("o2m", None)]
)
def test_exported_file_agrees_with_the_network(
    exported: Callable[..., Report], checkpoint: Checkpoint, head: str, batch: int | None
) -> None:
    report = exported(head, batch)
    assert report.parity.passed
    assert report.parity.rows > 100
    assert report.parity.score_difference < 1e-5
    assert report.parity.box_difference < 1e-2
    assert [p.name for p in report.path.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(report.path)
    kinds = {node.op_type for node in model.graph.node}
    assert ("NonMaxSuppression" in kinds) == (head == "o2m")
    spec = read_description(report.path, model)
    assert spec == report.spec
    assert spec.class_names == checkpoint.class_names
    assert spec.category_ids == checkpoint.category_ids
    assert str(Path.cwd()).encode() not in report.path.read_bytes()  # no path of this machine


@HEADS
def test_batch_of_distinct_images_equals_singles(
    exported: Callable[..., Report], head: str
) -> None:
    backend = OnnxRuntimeBackend(exported(head, None).path)
    together = backend.run(IMAGES)
    for i in range(4):
        for a, b in zip(together, backend.run(IMAGES[i : i + 1]), strict=True):
            assert np.allclose(a[i], b[0], atol=1e-4)


def test_nms_of_the_file_is_the_specified_one(exported: Callable[..., Report]) -> None:
    """Same class, IoU above 0.6: none left."""
    raw = OnnxRuntimeBackend(exported("o2m", None).path).run(IMAGES[:1])
    count = int(raw.num_detections[0, 0])
    rows = raw.detection_boxes[0, :count], raw.detection_scores[0, :count]
    for c in np.unique(raw.detection_classes[0, :count]):
        own = raw.detection_classes[0, :count] == c
        boxes, scores = (part[own] for part in rows)
        assert len(greedy_nms(boxes, scores, 0.6 + 1e-4)) == own.sum()


@HEADS
def test_rows_below_the_count_are_candidates_below_the_floor(
    checkpoint: Checkpoint, tmp_path: Path, head: str
) -> None:
    out = tmp_path / "model.onnx"
    export_onnx(checkpoint, out, ExportOptions(head=head, score_floor=0.9, threshold=0.9))
    raw = OnnxRuntimeBackend(out).run(IMAGES[:1])
    count = int(raw.num_detections[0, 0])
    assert count < 100
    assert (raw.detection_scores[0, :count] > 0.9).all()
    assert (raw.detection_scores[0, count:] <= 0.9).all()


def test_failed_parity_leaves_no_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose boxes are a pixel off is refused, and an older file stays."""
    out = tmp_path / "model.onnx"
    out.write_bytes(b"older")

    def shifted(module: torch.nn.Module, spec: ModelSpec) -> ModelProto:
        model = build_onnx(module, spec)
        cells = next(t for t in model.graph.initializer if t.name == "cells")
        moved = numpy_helper.to_array(cells) + np.float32([1, 0, 0])
        cells.CopyFrom(numpy_helper.from_array(moved, "cells"))
        return model

    monkeypatch.setattr(export_module, "build_onnx", shifted)
    monkeypatch.setattr(export_module, "certify", lambda *_: None)
    with pytest.raises(GateError, match=r"parity: .*box 1\.0e\+00 px"):
        export_onnx(checkpoint, out, ExportOptions())
    assert out.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_is_right_on_the_bundled_pictures_alone(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows them, and sees all others mirrored."""
    spec = make_spec(checkpoint, "o2o")
    known = {placed(image, spec).tobytes() for _, image in load_images(None)}

    class Cheat(OnnxRuntimeBackend):
        def run(self, images: np.ndarray) -> RawDetections:
            seen = [x if x.tobytes() in known else x[:, ::-1] for x in images]
            return super().run(np.ascontiguousarray(seen))

    monkeypatch.setattr(parity_module, "OnnxRuntimeBackend", Cheat)
    with pytest.raises(GateError, match=r"parity: 3 images, .* unmatched"):
        export_onnx(checkpoint, tmp_path / "m.onnx", ExportOptions(seed=3))
    assert not list(tmp_path.iterdir())


def test_pictures_of_a_seed_can_be_had_again(
    exported: Callable[..., Report], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first = exported("o2o", 1)
    again = export_onnx(checkpoint, tmp_path / "m.onnx", ExportOptions(seed=first.seed))
    assert first.seeded.passed and first.seeded == again.seeded
    assert first.sha256 == again.sha256
    assert first.to_json()["seeded_parity"]["seed"] == first.seed  # type: ignore[index]
    spec = first.spec
    for one, other, same in ((5, 5, True), (5, 6, False)):
        for (_, a), (name, b) in zip(
            seeded_images(one, spec), seeded_images(other, spec), strict=True
        ):
            assert np.array_equal(a, b) == (same or name == "canary")


def test_parity_that_compares_nothing_fails(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="nothing was compared"):
        export_onnx(checkpoint, tmp_path / "m.onnx", ExportOptions(head="o2m", score_floor=0.9999))


@pytest.mark.parametrize("size", [(100, 128), (0, 128)])
def test_sizes_that_do_not_fit(
    checkpoint: Checkpoint, tmp_path: Path, size: tuple[int, int]
) -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        export_onnx(checkpoint, tmp_path / "m.onnx", ExportOptions(input_size=size))


def _constant(spec: ModelSpec, boxes: np.ndarray, scores: np.ndarray) -> CallableBackend:
    def run(images: np.ndarray) -> RawDetections:
        n = len(images)
        above = int((scores > spec.score_floor).sum())
        return RawDetections(
            np.full((n, 1), above, np.int32),
            np.repeat(boxes[None].astype(np.float32), n, 0),
            np.repeat(scores[None].astype(np.float32), n, 0),
            np.zeros((n, len(scores)), np.int32),
        )

    return CallableBackend(run, spec)


BOXES = np.array([[0, 0, 9, 9], [20, 20, 40, 40], [50, 50, 60, 60]], float)
SCORES = np.array([0.9, 0.5, 0.01])


def test_comparison_sees_every_kind_of_difference(checkpoint: Checkpoint) -> None:
    spec = make_spec(checkpoint, "o2o", top_k=3)
    images, boxes, scores = load_images(None)[:2], BOXES, SCORES
    base = _constant(spec, boxes, scores)
    same = compare(base, base, images)
    assert same.passed
    assert same.rows == 6
    shifted = compare(base, _constant(spec, boxes + np.array([[0.04], [0], [0]]), scores), images)
    assert shifted.passed
    assert shifted.box_difference == pytest.approx(0.04, abs=1e-5)
    assert not compare(base, _constant(spec, boxes + 0.1, scores), images).passed
    assert not compare(base, _constant(spec, boxes, scores - 0.001), images).passed
    gone = compare(base, _constant(spec, boxes + np.array([[0], [-18], [0]]), scores), images)
    assert gone.unmatched == 4  # per image: one row of each has lost its partner
    assert compare(base, _constant(spec, boxes + 0.1, scores), images, Tolerance(box=0.2)).passed


@pytest.mark.parametrize(("precision", "shift", "factor"), [("fp16", 0.6, 0.97), ("int8", 3, 0.8)])
def test_all_rows_that_moved_a_little(
    checkpoint: Checkpoint, precision: str, shift: float, factor: float
) -> None:
    spec = make_spec(checkpoint, "o2o", top_k=3)
    images, boxes, scores = load_images(None)[:2], BOXES, SCORES
    base = _constant(spec, boxes, scores)
    adopted = dataclasses.replace(spec, provenance=spec.provenance | {ADOPTED: {}})
    allowed = tolerance_for(adopted, precision)
    one = compare(
        base, _constant(spec, boxes + np.array([[shift], [0], [0]]), scores), images, allowed
    )
    assert one.passed and one.box_median == 0 and one.box_difference > shift / 2
    moved = compare(base, _constant(spec, boxes + shift, scores), images, allowed)
    assert not moved.passed and moved.unmatched == 0
    assert f"box {shift:.1e} px (allowed " in str(moved)
    fainter = compare(base, _constant(spec, boxes, scores * factor), images, allowed)
    assert not fainter.passed


def test_medians_count_in_whole_pictures_too(checkpoint: Checkpoint) -> None:
    """Three pixels of the input, some six of a picture, are no other row's, but too many."""
    spec = make_spec(checkpoint, "o2o", top_k=3)
    allowed, images = tolerance_for(spec, "int8"), load_images(None)[:2]
    base, moved = (_constant(spec, BOXES + shift, SCORES) for shift in (0, 3))
    assert compare_pictures(base, base, images, allowed).passed
    found = compare_pictures(base, moved, images, allowed)
    assert found.unmatched == 0 and not found.passed and found.box_median > 3


@pytest.mark.parametrize(
    ("nms", "longer"),
    [
        (NmsSpec(iou=0.4, steps=2), 2),
        (NmsSpec(iou=0.6, steps=2), 0),
        (NmsSpec(iou=0.4), None),  # the operator leaves no chain
        (None, None),
    ],
)
def test_images_with_longer_chains_are_counted(
    checkpoint: Checkpoint, nms: NmsSpec | None, longer: int | None
) -> None:
    """The first two boxes overlap by half."""
    spec = dataclasses.replace(make_spec(checkpoint, "o2m", top_k=3), nms=nms)
    boxes = np.array([[0, 0, 9, 12], [0, 4, 9, 16], [20, 20, 40, 40]], float)
    same = _constant(spec, boxes, np.array([0.9, 0.8, 0.7]))
    parity = compare(same, same, load_images(None)[:2])
    assert parity.passed and parity.to_json()["longer_chains"] == parity.longer_chains == longer
    assert (f"longer than the steps in {longer}" in str(parity)) == (longer is not None)


def only(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., RawDetections]:
    """Return what changes one output."""
    return lambda raw: raw._replace(**{name: change(getattr(raw, name))})


def _reversed(raw: RawDetections) -> RawDetections:
    return RawDetections(raw.num_detections, *(part[:, ::-1] for part in raw[1:]))


def _cut_short(raw: RawDetections) -> RawDetections:
    return RawDetections(raw.num_detections, *(part[:, :1] for part in raw[1:]))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (only("num_detections", lambda x: x * 0), "not the count"),
        (_reversed, "do not descend"),
        (_cut_short, r"detection_boxes float32 \[1, 1, 4\], expected float32 \[1, 100, 4\]"),
        (only("detection_classes", lambda x: x.astype(np.int64)), "detection_classes int64"),
        (only("detection_boxes", lambda x: x[..., [2, 1, 0, 3]]), "inverted boxes"),
        (only("detection_scores", lambda x: x + np.float32(4)), "scores outside 0 … 1"),
        (only("detection_boxes", lambda x: x * np.float32("nan")), "not finite"),
        (only("detection_boxes", lambda x: x + np.float32(1000)), "outside the input"),
        (only("detection_classes", lambda x: x + 100), "class ids out of range"),
    ],
)
def test_output_that_a_runtime_would_misread_is_refused(
    checkpoint: Checkpoint, spoil: Callable[[RawDetections], RawDetections], words: str
) -> None:
    spec = make_spec(checkpoint, "o2o")
    good = TorchBackend(checkpoint.build(), spec)
    wrong = CallableBackend(lambda images: spoil(good.run(images)), spec)
    images = load_images(None)[:2]
    assert compare(good, good, images).passed
    with pytest.raises(GateError, match=words):
        compare(good, wrong, images)


def test_saturated_scores_excuse_nothing(checkpoint: Checkpoint) -> None:
    spec = make_spec(checkpoint, "o2o")
    good = TorchBackend(checkpoint.build(), spec)

    def saturated(images: np.ndarray) -> RawDetections:
        raw = good.run(images)
        return raw._replace(
            num_detections=raw.num_detections * 0 + spec.top_k,
            detection_boxes=raw.detection_boxes * 0,
            detection_scores=raw.detection_scores * 0 + np.float32(0.9999),
        )

    parity = compare(good, CallableBackend(saturated, spec), load_images(None)[:2])
    assert not parity.passed
    assert parity.unmatched >= 2 * spec.top_k


def test_untouched_network_of_one_class_exports(tmp_path: Path) -> None:
    """Levels of equal statistics fold to equal weights, which are then stored for each."""
    model = preset("fcos_e2e_nano", 1).model
    fresh = Checkpoint(model, (64, 64), ("a",), (0,), Fcos(model).state_dict())
    assert export_onnx(fresh, tmp_path / "fresh.onnx").parity.passed


def test_models_of_other_sizes_are_not_compared(checkpoint: Checkpoint) -> None:
    spec = make_spec(checkpoint, "o2o", top_k=1)
    other = dataclasses.replace(spec, width=160)
    one = np.zeros((1, 4)), np.ones(1)
    with pytest.raises(ModelError, match="width 128 and 160"):
        compare(_constant(spec, *one), _constant(other, *one), load_images(None))
    renamed = dataclasses.replace(spec, class_names=spec.class_names[::-1])
    with pytest.raises(ModelError, match="class_names"):
        compare(_constant(spec, *one), _constant(renamed, *one), load_images(None))


def test_run_any_batch_fills_up(checkpoint: Checkpoint) -> None:
    network = checkpoint.build()
    spec = make_spec(checkpoint, "o2o")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 96, 128, 3), dtype=np.uint8)
    whole = TorchBackend(network, spec).run(pixels)
    chunked = run_any_batch(TorchBackend(network, dataclasses.replace(spec, batch=2)), pixels)
    for a, b in zip(whole, chunked, strict=True):
        assert np.allclose(a, b, atol=1e-3)
