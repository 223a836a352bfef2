"""Certificate and parity gate: they pass what is right and refuse what is wrong."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from nmsfree.backends import CallableBackend, OnnxRuntimeBackend, RawDetections
from nmsfree.errors import GateError, InputError, ModelError
from nmsfree.preprocess import letterbox
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree_export import acceptance as prove_module
from nmsfree_export import candidate as candidate_module
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.graph.write import build_onnx
from nmsfree_export.verify.parity import (
    Tolerance,
    compare,
    load_images,
    run_any_batch,
    seeded_images,
)
from nmsfree_training.config import fcos_e2e_nano
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import Checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec


@pytest.mark.parametrize("head", ["o2o", "o2m"])
@pytest.mark.parametrize("batch", [1, 3, None])
def test_exported_file_agrees_with_the_network(
    checkpoint: Checkpoint, tmp_path: Path, head: str, batch: int | None
) -> None:
    out = tmp_path / "model.onnx"
    report = export_onnx(checkpoint, out, ExportOptions(head=head, batch=batch))
    assert report.parity.passed
    assert report.parity.rows > 100
    assert report.parity.score_difference < 1e-5
    assert report.parity.box_difference < 1e-2
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(out)
    kinds = {node.op_type for node in model.graph.node}
    assert ("NonMaxSuppression" in kinds) == (head == "o2m")
    text = next(p.value for p in model.metadata_props if p.key == METADATA_KEY)
    spec = ModelSpec.from_json(text)
    assert spec == report.spec
    assert (spec.class_names, spec.category_ids) == (
        checkpoint.class_names,
        checkpoint.category_ids,
    )
    assert str(Path.cwd()).encode() not in out.read_bytes()  # no path of this machine


def test_batch_of_distinct_images_equals_singles(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for head in ("o2o", "o2m"):
        out = tmp_path / f"{head}.onnx"
        export_onnx(checkpoint, out, ExportOptions(head=head, batch=None))
        backend = OnnxRuntimeBackend(out)
        images = np.random.default_rng(0).integers(0, 256, (4, 96, 128, 3), dtype=np.uint8)
        together = backend.run(images)
        for i in range(4):
            alone = backend.run(images[i : i + 1])
            for a, b in zip(together, alone, strict=True):
                assert np.allclose(a[i], b[0], atol=1e-4)


def test_rows_below_the_count_are_candidates_below_the_floor(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    for head in ("o2o", "o2m"):
        out = tmp_path / f"{head}.onnx"
        options = ExportOptions(head=head, score_floor=0.9, threshold=0.9)
        try:
            export_onnx(checkpoint, out, options)
        except GateError:
            pytest.fail("nothing above the floor: the fixture no longer fits")
        raw = OnnxRuntimeBackend(out).run(images)
        count = int(raw.num_detections[0, 0])
        assert count < 100
        assert (raw.detection_scores[0, :count] > 0.9).all()
        assert (raw.detection_scores[0, count:] <= 0.9).all()


def test_nms_of_the_file_is_the_specified_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Same class, IoU above 0.6: none left; and without NMS there were some."""
    from nmsfree.nms import greedy_nms

    out = tmp_path / "o2m.onnx"
    export_onnx(checkpoint, out, ExportOptions(head="o2m"))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    raw = OnnxRuntimeBackend(out).run(pixels)
    count = int(raw.num_detections[0, 0])
    boxes, classes = raw.detection_boxes[0, :count], raw.detection_classes[0, :count]
    for c in np.unique(classes):
        own = classes == c
        kept = greedy_nms(boxes[own], raw.detection_scores[0, :count][own], 0.6 + 1e-4)
        assert len(kept) == own.sum()


def test_failed_parity_leaves_no_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose boxes are a pixel off is refused, and an older file stays."""
    out = tmp_path / "model.onnx"
    out.write_bytes(b"older")

    def shifted(module: torch.nn.Module, spec: ModelSpec) -> ModelProto:
        state = {k: v.clone() for k, v in module.state_dict().items()}
        module.cells[:, 0] += 1.0
        model = build_onnx(module, spec)
        module.load_state_dict(state)
        return model

    monkeypatch.setattr(candidate_module, "build_onnx", shifted)
    monkeypatch.setattr(candidate_module, "certify", lambda *_: None)
    with pytest.raises(GateError, match=r"parity: .*box 1\.0e\+00 px"):
        export_onnx(checkpoint, out, ExportOptions())
    assert out.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_is_right_on_the_bundled_pictures_alone(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows them, and sees all others mirrored."""
    size = checkpoint.input_size
    known = {letterboxed(image, size).tobytes() for _, image in load_images(None)}

    class Cheat(OnnxRuntimeBackend):
        def run(self, images: np.ndarray) -> RawDetections:
            seen = [x if x.tobytes() in known else x[:, ::-1] for x in images]
            return super().run(np.ascontiguousarray(seen))

    monkeypatch.setattr(prove_module, "OnnxRuntimeBackend", Cheat)
    with pytest.raises(GateError, match=r"parity: 3 images, .* unmatched"):
        export_onnx(checkpoint, tmp_path / "m.onnx", ExportOptions(seed=3))
    assert not list(tmp_path.iterdir())


def letterboxed(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    out = np.zeros((*size, 3), np.uint8)
    letterbox(image, out)
    return out


def test_pictures_of_a_seed_can_be_had_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = export_onnx(checkpoint, tmp_path / "m.onnx")
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_size": (100, 128)}, "multiples of 32"),
        ({"input_size": (0, 128)}, "multiples of 32"),
        ({"score_floor": 1.0}, "score floor"),
        ({"threshold": 2.0}, "threshold is 2.0"),
        ({"threshold": 0.01}, "threshold is 0.01"),
    ],
)
def test_options_that_do_not_fit(
    checkpoint: Checkpoint, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        export_onnx(checkpoint, tmp_path / "m.onnx", ExportOptions(**options))


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


def test_comparison_sees_every_kind_of_difference(checkpoint: Checkpoint) -> None:
    spec = make_spec(checkpoint, "o2o", top_k=3)
    images = load_images(None)[:2]
    boxes = np.array([[0, 0, 9, 9], [20, 20, 40, 40], [50, 50, 60, 60]], float)
    scores = np.array([0.9, 0.5, 0.01])
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


def _without_count(raw: RawDetections) -> RawDetections:
    return raw._replace(num_detections=raw.num_detections * 0)


def _reversed(raw: RawDetections) -> RawDetections:
    return raw._replace(
        detection_boxes=raw.detection_boxes[:, ::-1],
        detection_scores=raw.detection_scores[:, ::-1],
        detection_classes=raw.detection_classes[:, ::-1],
    )


def _cut_short(raw: RawDetections) -> RawDetections:
    return RawDetections(raw.num_detections, *(np.asarray(output)[:, :1] for output in raw[1:]))


def _other_dtype(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_classes=raw.detection_classes.astype(np.int64))


def _inverted(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_boxes=raw.detection_boxes[..., [2, 1, 0, 3]])


def _high(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_scores=raw.detection_scores + np.float32(4))


def _not_a_number(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_boxes=raw.detection_boxes * np.float32("nan"))


def _outside(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_boxes=raw.detection_boxes + np.float32(1000))


def _other_class(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_classes=raw.detection_classes + 100)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_count, "not the count"),
        (_reversed, "do not descend"),
        (_cut_short, r"detection_boxes float32 \[1, 1, 4\], expected float32 \[1, 100, 4\]"),
        (_other_dtype, "detection_classes int64"),
        (_inverted, "inverted boxes"),
        (_high, "scores outside 0 … 1"),
        (_not_a_number, "not finite"),
        (_outside, "outside the input"),
        (_other_class, "class ids out of range"),
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


@pytest.mark.parametrize("classes", [1, 10])
def test_untouched_network_exports(tmp_path: Path, classes: int) -> None:
    """Levels of equal statistics fold to equal weights, which are then stored for each."""
    preset = fcos_e2e_nano(classes)
    names, ids = tuple(map(str, range(classes))), tuple(range(classes))
    network = Fcos(preset.model)
    fresh = Checkpoint(preset.model, (64, 64), names, ids, network.state_dict())
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
