"""Detector on a callable backend: batches, filters, and boxes in the pixels of the source."""

import collections
import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import runtime_helpers as helpers
from numpy.typing import NDArray
from PIL import Image
from runtime_helpers import Noise

from nmsfree import (
    CallableBackend,
    Detections,
    Detector,
    InputError,
    ModelError,
    ModelSpec,
    RawDetections,
    read_image,
)
from nmsfree.detector import IMAGES_PER_RUN
from nmsfree.spec import Thresholds

refused = helpers.refusing(InputError)
SIZES = [(64, 96), (480, 640), (333, 21), (1, 1), (60, 400)]


class Recorder:
    """Runs the tiny model in numpy and remembers how large the batches were."""

    def __init__(self, run: Callable[..., RawDetections], spec: ModelSpec) -> None:
        self.batches: list[int] = []
        self.last: NDArray[np.uint8] | None = None
        self._run, self._spec = run, spec

    def __call__(self, images: NDArray[np.uint8]) -> RawDetections:
        self.batches.append(len(images))
        self.last = images
        return self._run(images, self._spec)


@pytest.fixture
def open_tiny(make_spec: Callable[..., ModelSpec], bright_cells: Callable[..., RawDetections]):
    def make(**fields: object) -> tuple[Detector, Recorder]:
        spec = make_spec(**fields)
        recorder = Recorder(bright_cells, spec)
        return Detector(CallableBackend(recorder, spec)), recorder

    return make


@pytest.fixture
def pictures(noise: Noise) -> list[NDArray[np.uint8]]:
    return [noise(seed, *size) for seed, size in enumerate(SIZES)]


def assert_same(a: Detections, b: Detections) -> None:
    np.testing.assert_array_equal(a.xyxy, b.xyxy)
    np.testing.assert_array_equal(a.confidence, b.confidence)
    np.testing.assert_array_equal(a.class_id, b.class_id)


def test_batched_equals_single(open_tiny: Any, pictures: Any) -> None:
    detector, recorder = open_tiny()
    batched = detector.batch(pictures)
    assert recorder.batches == [len(pictures)]
    assert len({d.xyxy.tobytes() for d in batched}) == len(batched), "the pictures differ"
    for picture, found in zip(pictures, batched, strict=True):
        assert_same(detector(picture), found)


def test_a_fixed_batch_is_padded_and_changes_nothing(open_tiny: Any, pictures: Any) -> None:
    fixed, recorder = open_tiny(batch=3)
    free, _ = open_tiny()
    for a, b in zip(fixed.batch(pictures), free.batch(pictures), strict=True):
        assert_same(a, b)
    assert recorder.batches == [3, 3]
    assert not recorder.last[2].any(), "the row without a picture is zero"


def test_long_lists_are_run_in_parts(open_tiny: Any, noise: Noise) -> None:
    detector, recorder = open_tiny()
    found = detector.batch([noise(seed) for seed in range(IMAGES_PER_RUN + 3)])
    assert recorder.batches == [IMAGES_PER_RUN, 3]
    assert_same(found[-1], detector(noise(IMAGES_PER_RUN + 2)))
    recorder.batches.clear()
    assert (detector.batch([]), recorder.batches) == ([], [])


@pytest.mark.parametrize("size", [(64, 96), (640, 960), (320, 240), (1080, 1920), (32, 30)])
def test_boxes_are_in_source_pixels(open_tiny: Any, size: tuple[int, int]) -> None:
    """A red patch that fills cells of the input exactly is found exactly, in its own pixels."""
    detector, _ = open_tiny()
    height, width = size
    scale = min(64 / height, 96 / width)
    patch = np.array([8, 16, 16, 32]) / scale  # two cells of the input
    x1, y1, x2, y2 = np.round(patch).astype(int)
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = (0, 0, 255)
    found = detector(image)
    assert found.class_name == ("red", "red")
    union = np.concatenate([found.xyxy[:, :2].min(axis=0), found.xyxy[:, 2:].max(axis=0)])
    np.testing.assert_allclose(union, patch, atol=0.02 / scale)


def test_threshold_keeps_the_scores_above(open_tiny: Any, noise: Noise) -> None:
    detector, _ = open_tiny()
    everything = detector(noise(0), threshold=0.5)
    scores = everything.confidence
    assert (np.diff(scores) <= 0).all()
    assert len(np.unique(scores)) >= 3, "there is something to separate"
    middle = float(scores[len(scores) // 2])
    assert_same(detector(noise(0), threshold=middle), everything[scores > middle])
    measured, _ = open_tiny(thresholds=MEASURED)  # used where asked for only
    for own in (detector, measured):
        assert_same(own(noise(0)), everything[scores > 0.6])
    assert len(detector(noise(0), threshold=1)) == 0


@pytest.mark.parametrize("threshold", [-1, 0, 0.499, 1.01, float("nan")])
def test_thresholds_the_model_cannot_serve_are_refused(open_tiny: Any, threshold: float) -> None:
    detector, recorder = open_tiny()
    assert "0.5 … 1" in refused(lambda: detector.batch([], threshold=threshold))
    assert recorder.batches == []


MEASURED = Thresholds(
    best_f1=0.7,
    best_f1_per_class=(0.8, None, 0.1),
    at_precision=0.75,
    at_precision_per_class=(None, None, 0.9),
    recall_at_precision=0.5,
    recall_at_precision_per_class=(None, None, 0.1),
    measured_on="toys",
)


@pytest.mark.parametrize(
    ("kind", "lowest"),
    [
        ("per-class", (0.8, 0.7, 0.5)),  # green was not measured; red's lies below the floor
        ("precision", (1.0, 0.75, 0.9)),  # blue never reached the precision: not shown
    ],
)
def test_measured_thresholds_hold_for_their_class(
    open_tiny: Any, noise: Noise, kind: str, lowest: tuple[float, ...]
) -> None:
    detector, _ = open_tiny(thresholds=MEASURED, top_k=96)
    pictures = [noise(seed) for seed in range(4)]
    for everything, found in zip(
        detector.batch(pictures, threshold=0.5),
        detector.batch(pictures, threshold=kind),
        strict=True,
    ):
        above = everything.confidence > np.array(lowest, np.float32)[everything.class_id]
        assert_same(found, everything[above])
        assert 0 < len(found) < len(everything)
        assert set(everything.class_id) == {0, 1, 2}


def test_thresholds_that_were_not_measured_are_refused(open_tiny: Any) -> None:
    detector, recorder = open_tiny()
    for kind in ("per-class", "precision"):
        message = refused(lambda kind=kind: detector.batch([], threshold=kind))
        assert "holds no measured thresholds" in message
        assert "--thresholds" in message
    assert "'per-class' or 'precision'" in refused(lambda: detector.batch([], threshold="best"))
    assert recorder.batches == []


NONSENSE: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[Any]], str]] = {
    "negative count": ("num_detections", lambda v: v * 0 - 1, "-1 detections in 10 rows"),
    "count of more": ("num_detections", lambda v: v * 0 + 11, "11 detections in 10 rows"),
    "high scores": ("detection_scores", lambda v: v * 5.98, "scores from .*, expected 0 … 1"),
    "negative scores": ("detection_scores", lambda v: -v, "scores from -.*, expected 0 … 1"),
    "NaN scores": ("detection_scores", lambda v: v * np.float32("nan"), "that are not numbers"),
    "infinite scores": ("detection_scores", lambda v: v * np.float32("inf"), "scores from inf"),
    "inverted boxes": ("detection_boxes", lambda v: v[..., ::-1], "inverted or not finite"),
    "NaN boxes": ("detection_boxes", lambda v: v * np.float32("nan"), "inverted or not finite"),
    "infinite boxes": ("detection_boxes", lambda v: v + np.float32("inf"), "or not finite"),
    "one infinite corner": (
        "detection_boxes",
        lambda v: np.where(np.arange(4) == 3, np.float32("inf"), v),
        "inverted or not finite",
    ),
    "class of more": ("detection_classes", lambda v: v + 2, "class 3, its description names 3"),
    "negative class": ("detection_classes", lambda v: v * 0 - 1, "class -1, its"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_what_no_detector_answers_is_refused(altered: Any, noise: Noise, case: str) -> None:
    output, spoil, words = NONSENSE[case]
    detector = altered(lambda raw: {output: spoil(getattr(raw, output))})
    for answer in (lambda: detector(noise(0)), lambda: detector.batch([noise(0), noise(1)])):
        with pytest.raises(ModelError, match=f"the model answers .*{words}"):
            answer()


def test_a_count_chooses_the_rows_and_hides_no_nonsense(altered: Any, noise: Noise) -> None:
    """NaN is above nothing, so a broken model would find nothing, and its AP would be 0."""
    two = altered(lambda raw: {"num_detections": np.full_like(raw.num_detections, 2)})
    assert len(two(np.full((64, 96, 3), 255, np.uint8))) == 2
    hidden = {"num_detections": np.int32(0), "detection_scores": np.float32("nan")}
    detector = altered(lambda raw: {k: getattr(raw, k) * v for k, v in hidden.items()})
    with pytest.raises(ModelError, match="scores that are not numbers"):
        detector(noise(0))


def test_inverted_boxes_of_another_projects_network_are_put_in_order(
    altered: Any, noise: Noise
) -> None:
    def inverted(raw: RawDetections) -> dict[str, Any]:
        return {"detection_boxes": raw.detection_boxes[..., [2, 1, 0, 3]]}

    assert_same(altered(inverted, provenance={"adopted": "a YOLO"})(noise(0)), altered()(noise(0)))


def test_classes_by_name_and_id(open_tiny: Any, noise: Noise) -> None:
    detector, _ = open_tiny()
    everything = detector(noise(0))
    assert set(everything.class_name) == {"blue", "green", "red"}
    for wanted, ids in [
        ("red", [2]),
        (["red"], [2]),
        ([2], [2]),
        ([0, "green"], [0, 1]),
        (("blue", "green", "red"), [0, 1, 2]),
        ([np.int64(1)], [1]),
        ([], []),
    ]:
        expected = everything[np.isin(everything.class_id, ids)]
        assert_same(detector(noise(0), classes=wanted), expected)


@pytest.mark.parametrize("wanted", ["cat", ["red", "cat"], [3], [-1], ["2"]])
def test_unknown_classes_are_refused(open_tiny: Any, wanted: Any) -> None:
    detector, _ = open_tiny()
    message = refused(lambda: detector.batch([], classes=wanted))
    assert "blue, green, red" in message


def test_max_detections_keeps_the_best(open_tiny: Any, noise: Noise) -> None:
    detector, _ = open_tiny()
    everything = detector(noise(0))
    assert len(everything) > 4
    assert_same(detector(noise(0), max_detections=4), everything[np.arange(4)])
    assert_same(detector(noise(0), max_detections=1000), everything)
    greens = detector(noise(0), classes="green", max_detections=1)
    assert greens.class_name == ("green",), "other classes do not use up the places"
    assert "1 or more" in refused(lambda: detector(noise(0), max_detections=0))


def test_detections_are_rows_indexed_like_arrays(open_tiny: Any, noise: Noise) -> None:
    found = open_tiny()[0](noise(0), threshold=0.5)
    rows = list(found)
    assert len(rows) == len(found) > 0
    for row, (box, confidence, class_id, name) in enumerate(found):
        assert (box, confidence) == (tuple(found.xyxy[row]), found.confidence[row])
        assert class_id == found.class_id[row]
        assert name == found.names[class_id] == found.class_name[row]
    kinds = [array.dtype for array in (found.xyxy, found.confidence, found.class_id)]
    assert kinds == [np.float32, np.float32, np.int32]
    nothing = open_tiny()[0](np.zeros((50, 50, 3), np.uint8))
    assert (list(nothing), nothing.xyxy.shape, nothing.class_name) == ([], (0, 4), ())
    assert found[0] == rows[0] and found[-1] == rows[-1] and found[np.int64(2)] == rows[2]
    assert list(found[1:7:2]) == rows[1:7:2]
    assert list(found[[3, 0]]) == [rows[3], rows[0]]
    mask = found.class_id == found.class_id[0]
    assert list(found[mask]) == [row for row, keep in zip(rows, mask, strict=True) if keep]
    assert found[:2].names == found.names and found[:2].truncated == found.truncated
    with pytest.raises(IndexError):
        found[len(rows)]


def test_detections_become_what_others_read(open_tiny: Any, noise: Noise) -> None:
    found = open_tiny()[0](noise(0), threshold=0.5)
    said = json.loads(json.dumps(found.to_dict()))
    assert said["truncated"] is found.truncated is True
    assert [(row["class"], row["class_id"]) for row in said["detections"]] == [
        (row.class_name, row.class_id) for row in found
    ]
    np.testing.assert_allclose([row["box"] for row in said["detections"]], found.xyxy, atol=5e-4)
    rows = json.loads(json.dumps(found.to_coco(7, (1, 2, 4))))
    assert {row["image_id"] for row in rows} == {7}
    assert [row["category_id"] for row in rows] == [(1, 2, 4)[i] for i in found.class_id]
    boxes = np.array([row["bbox"] for row in rows])
    np.testing.assert_allclose(boxes[:, 2:] + boxes[:, :2], found.xyxy[:, 2:], rtol=1e-6)
    np.testing.assert_allclose([row["score"] for row in rows], found.confidence)
    assert found.to_coco(1)[0]["category_id"] == found.class_id[0]


def test_truncated_tells_where_objects_may_be_missing(open_tiny: Any, noise: Noise) -> None:
    """Held against the same model with rows for all that it finds."""
    detector, unlimited = (open_tiny(thresholds=MEASURED, top_k=k)[0] for k in (10, 96))
    told = set()
    for picture in [noise(0), noise(1), np.zeros((64, 96, 3), np.uint8)]:
        last = float(np.sort(unlimited(picture, threshold=0.5).confidence)[::-1][9:10].sum())
        for threshold in (0.5, 0.6, max(last, 0.5), 1.0, "per-class", "precision"):
            for classes in (None, "green", []):
                for most in (None, 1, 10):
                    given = {"threshold": threshold, "classes": classes, "max_detections": most}
                    found, everything = detector(picture, **given), unlimited(picture, **given)
                    assert not everything.truncated
                    assert found.truncated or len(found) == len(everything)
                    assert found[[]].truncated == found.truncated
                    told.add((threshold, found.truncated))
    assert told >= {(0.5, True), (0.5, False), ("per-class", True)}
    assert (1.0, True) not in told


def test_truncated_is_about_the_threshold_and_the_picture(open_tiny: Any, noise: Noise) -> None:
    detector, _ = open_tiny()
    picture, black = noise(0), np.zeros((64, 96, 3), np.uint8)
    everything = detector(picture, threshold=0.5)
    last = float(everything.confidence[-1])
    assert len(everything) == 10
    assert [d.truncated for d in detector.batch([black, picture, black])] == [False, True, False]
    assert detector(picture, threshold=np.nextafter(np.float32(last), np.float32(0))).truncated
    assert not detector(picture, threshold=last).truncated, "what is missing scores no more"
    assert not detector(picture, max_detections=9).truncated, "the best nine are known"
    assert not detector(picture, classes=[]).truncated


def test_every_kind_of_picture_gives_the_same(open_tiny: Any, noise: Noise, tmp_path: Path) -> None:
    detector, _ = open_tiny()
    bgr = noise(7, 100, 150)
    rgb = np.ascontiguousarray(bgr[:, :, ::-1])
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), bgr)
    before = bgr.copy()
    for array in (bgr, rgb):
        array.flags.writeable = False
    expected = detector(bgr)
    assert len(expected) > 3
    for found in (
        detector(path),
        detector(str(path)),
        detector(rgb, color="rgb"),
        detector(Image.fromarray(rgb), color="rgb"),
        detector.batch(np.stack([bgr, bgr]))[1],
    ):
        assert_same(found, expected)
    np.testing.assert_array_equal(bgr, before)
    swapped = detector(rgb)
    assert swapped.class_name != expected.class_name, "the order of the channels matters"


def test_more_pictures_than_a_fixed_batch_takes_are_refused(open_tiny: Any, noise: Noise) -> None:
    detector, _ = open_tiny(batch=2)
    inputs, geometries = detector.preprocess([noise(0)])
    assert inputs.shape[0] == 2 and len(geometries) == 1 and not inputs[1].any()
    said = refused(lambda: detector.preprocess([noise(seed) for seed in range(3)]))
    assert said.startswith("3 images found, but this model takes 2 in a run: ")


class Somewhere:
    """A path of a library's own."""

    def __init__(self, path: object) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


# What may be given in place of a model, an image, several images, and a value.
NO_MODELS = [
    *(None, 3, 2.5, True, b"m.onnx", io.BytesIO(b"m"), [Path("m.onnx")], {}, object(), Detector),
    *(np.zeros(3), Somewhere(b"m.onnx"), "https://example.org/m.onnx", "s3://bucket/m.onnx"),
]
NO_IMAGES = [
    *(None, 3, 2.5, True, b"a.png", io.BytesIO(b"a"), ["a.png"], {}, object(), Detections, ""),
    *(np.float32(1), "http://example.org/a.png", Path("https://example.org/a.png"), "a\0b"),
    *(Somewhere(b"a.png"), np.zeros((2, 2, 3), complex), np.array(["a.png"]), np.zeros(0, "V3")),
]
NO_LISTS = [
    *(None, 3, b"ab", "ab", Path("a"), {"a": 1}, {"a"}, frozenset(), object(), iter([]), True),
    *(np.zeros(3), np.array(0), {}.keys(), Somewhere("a"), memoryview(b"ab")),
    *(np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8), Image.new("RGB", (2, 2))),
]
NO_VALUES: list[tuple[str, Any]] = [
    *(("threshold", value) for value in ("high", True, b"1", [0.5], np.array([0.5]), 1j)),
    *(("threshold", value) for value in (np.complex64(1), float("nan"), float("inf"), 10**30)),
    *(("classes", value) for value in (3.0, b"red", object(), [None], [1.0], [[1]], ["RED"], True)),
    *(
        ("classes", value)
        for value in (np.int64(99), -1, 10**30, np.array([0.5]), [np.bool_(True)])
    ),
    *(("max_detections", value) for value in (0, -1, 1.0, True, "3", [3], np.float32(3), b"3")),
    *(("color", value) for value in (None, 3, "RGB", ["rgb"], np.array([1, 2]), b"rgb")),
]
NO_OPTIONS: list[tuple[str, Any]] = [
    *(("threads", value) for value in (0, -1, 1.5, "2", True, [1], b"1", np.float64(2), 10**9)),
    *(("max_contexts", value) for value in (0, -1, 1.5, True, 10**6)),
    *(("device", value) for value in (0, b"cpu", ["cpu"], "", "gpu", "cuda:-1", True, Path("cpu"))),
    *(("precision", value) for value in ("fp16", 32, b"f32", ["f32"])),
    *(("sha256", value) for value in ("abc", 3, b"0" * 64, "g" * 64)),
    *((name, value) for name in ("allow_cpu", "tf32", "rebuild", "trust") for value in (1, "no")),
]


def test_models_and_images_of_other_types_are_a_sentence(open_tiny: Any) -> None:
    for model in NO_MODELS:
        assert refused(lambda given=model: Detector(given)).startswith("model is ")
    detector, _ = open_tiny()
    for image in NO_IMAGES:
        refused(lambda given=image: detector(given))
        if not isinstance(image, np.ndarray):
            refused(lambda given=image: read_image(given))


def test_what_runs_is_a_backend_whatever_its_class(open_tiny: Any) -> None:
    inner = open_tiny()[0].backend
    alike = SimpleNamespace(spec=inner.spec, run=inner.run, close=inner.close)
    assert Detector(alike).backend is alike


def test_lists_of_other_types_are_a_sentence(open_tiny: Any) -> None:
    """`NO_LISTS` holds single images, too."""
    detector, _ = open_tiny()
    assert "open one in each process" in refused(lambda: pickle.dumps(detector))
    for function, spec in ((3, detector.spec), (None, detector.spec), (print, {}), (print, "spec")):
        refused(lambda f=function, s=spec: CallableBackend(f, s))
    for images in NO_LISTS:
        assert "batch takes a list of images" in refused(lambda given=images: detector.batch(given))
        refused(lambda given=images: detector.preprocess(given))


@pytest.mark.parametrize(("name", "value"), NO_VALUES)
def test_values_of_other_types_are_a_sentence(
    open_tiny: Any, noise: Noise, name: str, value: Any
) -> None:
    detector, _ = open_tiny()
    assert len(refused(lambda: detector(noise(0), **{name: value}))) < 400


@pytest.mark.parametrize(("name", "value"), NO_OPTIONS)
def test_options_of_other_types_are_a_sentence(tiny: Path, name: str, value: Any) -> None:
    assert refused(lambda: Detector(tiny, **{name: value})).startswith(f"{name} is ")


def test_paths_and_numbers_of_other_libraries_are_as_good(
    open_tiny: Any, noise: Noise, tmp_path: Path, make_spec: Any, make_onnx: Any
) -> None:
    picture, model = str(tmp_path / "a.png"), str(make_onnx(tmp_path / "m.onnx", make_spec()))
    cv2.imwrite(picture, noise(0))
    with Detector(Somewhere(model), threads=np.int32(1), tf32=np.bool_(False)) as detector:
        expected = detector(picture)
        assert_same(detector(Somewhere(picture)), expected)
        assert_same(detector.batch(collections.deque([picture]))[0], expected)
        np.testing.assert_array_equal(read_image(Somewhere(picture)), noise(0))
        by_name = detector(picture, classes="green", max_detections=2)
        for classes in (1, np.int64(1), np.array([1]), {1}, {1: "green"}, iter([np.uint8(1)])):
            found = detector(picture, classes=classes, max_detections=np.int16(2))
            assert_same(found, by_name)
        assert_same(detector(picture, threshold=np.float64(0.7)), detector(picture, threshold=0.7))


def test_a_pickled_detector_opens_its_file_again(
    noise: Noise, tmp_path: Path, make_spec: Any, make_onnx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_onnx(tmp_path / "m.onnx", make_spec())
    monkeypatch.chdir(tmp_path)
    detector = Detector("m.onnx", device="openvino", threads=1)
    monkeypatch.chdir("/")
    for again in (
        pickle.loads(pickle.dumps(detector)),
        copy.copy(detector),
        copy.deepcopy(detector),
    ):
        assert again.backend is not detector.backend
        assert again.backend.describe() == detector.backend.describe()
        assert_same(again(noise(0)), detector(noise(0)))
        assert_same(pickle.loads(pickle.dumps(again))(noise(0)), detector(noise(0)))
    detector.close()
    assert_same(again(noise(0)), pickle.loads(pickle.dumps(detector))(noise(0)))
