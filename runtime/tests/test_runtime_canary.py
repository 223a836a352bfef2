"""The canary: its picture, what a file says of it, and engines that answer it as before or not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_helpers as helpers
from numpy.typing import NDArray
from runtime_helpers import ENGINES, EXACT, rows_in_base64

from nmsfree import Detector, ModelError, ModelSpec, NmsSpec, RawDetections
from nmsfree.canary import canary_picture
from nmsfree.spec import Tolerance

refused = helpers.refusing(ModelError)
ROUGH = Tolerance(0.1, 1, 0.3)


@pytest.fixture(scope="session")
def checked(with_canary: Any, altered: Any) -> Callable[..., Any]:
    """Return a function that checks the tiny model behind something that spoils images or rows."""
    return lambda images=None, rows=None, **fields: altered(
        rows, images, with_canary(**fields)
    ).self_check()


def test_the_picture_is_what_its_formula_says() -> None:
    """In whole numbers of Python, cut to 32 bits."""
    low = 2**32 - 1
    for seed in (0, 7, 12):
        picture = canary_picture(70, 100, seed)
        for y, x, c in ((0, 0, 0), (69, 99, 2), (31, 32, 1), (8, 7, 0)):
            parts = []
            for side in (32, 8):
                i = (seed + side + 3 * (x // side) + 3 * 4096 * (y // side) + c) * 2654435761 & low
                parts.append((((i ^ (i >> 15)) * 2246822519) & low) >> 24)
            value = (3 * parts[0] + parts[1]) // 4
            assert picture[y, x, c] == (value // 2 + 64 if seed % 2 else value)
    assert len(np.unique(canary_picture(256, 256))) > 200


@pytest.mark.parametrize("batch", [None, 3])
def test_a_file_answers_its_canary_on_every_engine(
    with_canary: Any, make_onnx: Any, make_rig: Any, tmp_path: Path, batch: int | None
) -> None:
    spec = with_canary(batch=batch)
    path = make_onnx(tmp_path / "tiny.onnx", spec)
    rig = make_rig(spec=spec, batch=(batch,) * 3 if batch else (1, 2, 4))
    backends = [path, Detector(path, device="openvino").backend, rig.open()]
    for backend, engine in zip(backends, ENGINES, strict=True):
        with Detector(backend) as detector:
            found = detector.self_check()
        assert (found.ok, found.problem, found.missing) == (True, "", 0), engine
        assert found.rows == 24 * (batch or 1)
        assert (found.score_difference, found.box_difference) == pytest.approx((0, 0), abs=1e-5)
        assert detector.backend.arithmetic == engine
        assert "answers as the file did (" in str(found)


def test_lowered_arithmetic_is_known_by_its_name(make_rig: Any, with_canary: Any) -> None:
    """Of an engine that rounds factors to TF32 the tolerance is another one, or not known."""
    backend = make_rig(spec=with_canary(), tf32=True).open()
    assert backend.arithmetic == "tf32"
    message = refused(Detector(backend).self_check)
    backend.close()
    assert "does not say what may differ on" in message


def test_rows_are_a_set(checked: Any) -> None:
    def shuffled(raw: RawDetections) -> dict[str, Any]:
        order = np.random.default_rng(0).permutation(raw.detection_scores.shape[1])
        return {name: getattr(raw, name)[:, order] for name in RawDetections._fields[1:]}

    found = checked(rows=shuffled)
    assert (found.ok, found.missing, found.box_difference) == (True, 0, 0)


def moved(by: float) -> Callable[[RawDetections], dict[str, Any]]:
    return lambda raw: {"detection_boxes": raw.detection_boxes + np.float32(by)}


def scaled(by: float) -> Callable[[RawDetections], dict[str, Any]]:
    return lambda raw: {"detection_scores": raw.detection_scores * np.float32(by)}


FAULTS: dict[str, dict[str, Any]] = {
    "channels swapped": {"images": lambda pixels: pixels[..., ::-1]},
    "upside down": {"images": lambda pixels: pixels[:, ::-1]},
    "boxes of another cell": {"rows": moved(8)},
    "boxes 2 pixels off": {"rows": moved(2)},
    "classes shifted": {"rows": lambda raw: {"detection_classes": (raw.detection_classes + 1) % 3}},
    "scores halved": {"rows": scaled(0.5)},
    "as many rows, all alike": {
        "rows": lambda raw: {"detection_boxes": np.repeat(raw.detection_boxes[:, :1], 24, axis=1)}
    },
}


@pytest.mark.parametrize("tolerance", [EXACT, ROUGH])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_it(checked: Any, fault: str, tolerance: Tolerance) -> None:
    found = checked(tolerance=tolerance, **FAULTS[fault])
    assert not found.ok
    assert found.missing > tolerance.missing * found.rows
    assert found.problem
    assert found.problem in str(found)


@pytest.mark.parametrize(
    "difference", [{"rows": moved(0.5)}, {"rows": scaled(0.97)}, {"rows": moved(-0.9)}]
)
def test_the_tolerance_decides(checked: Any, difference: dict[str, Any]) -> None:
    assert not checked(**difference).ok
    found = checked(tolerance=ROUGH, **difference)
    assert found.ok
    assert found.score_difference + found.box_difference > 0.02


def test_every_image_of_a_fixed_batch_counts(checked: Any) -> None:
    def second(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels = pixels.copy()
        pixels[1] = 0
        return pixels

    found = checked(images=second, batch=3)
    assert (found.ok, found.rows) == (False, 72)
    assert 20 <= found.missing <= 24


def spoiled(name: str, value: float) -> Callable[[RawDetections], dict[str, Any]]:
    def spoil(raw: RawDetections) -> dict[str, Any]:
        changed = getattr(raw, name).copy()
        changed[0, 3:] = value
        return {name: changed}

    return spoil


@pytest.mark.parametrize("name", ["detection_scores", "detection_boxes"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_numbers_have_their_own_words(checked: Any, name: str, value: float) -> None:
    found = checked(rows=spoiled(name, value))
    assert (found.ok, found.missing) == (False, 24)
    assert found.problem == "answers NaN or infinity, in 21 of 24 rows"


def test_a_count_that_hides_the_rows(checked: Any) -> None:
    found = checked(rows=lambda raw: {"num_detections": raw.num_detections * 0})
    assert found.problem.startswith("counts [0] detections where [")


def test_of_nms_only_the_rows_that_it_left(checked: Any, with_canary: Any) -> None:
    fields = {"head": "o2m", "nms": NmsSpec(), "top_k": 96, "score_floor": 0.55}
    kept = len(with_canary(**fields).canary.values())
    assert 10 <= kept < 96
    found = checked(**fields)
    assert (found.ok, found.rows) == (True, kept)
    assert checked(
        **fields, rows=lambda raw: {"detection_boxes": raw.detection_boxes * 0.9}
    ).missing


def test_a_file_without_one_says_how_to_add_it(tiny: Path, make_spec: Any, make_onnx: Any) -> None:
    message = refused(Detector(tiny).self_check)
    assert message.startswith(f"{tiny}: has no canary")
    assert "`nmsfree export`" in message
    make_onnx(tiny, make_spec(provenance={"adopted": "a YOLO"}))
    assert "`nmsfree adopt`" in refused(Detector(tiny).self_check)
    make_onnx(tiny, make_spec(top_k=9))
    assert "with --top-k 10 or more" in refused(Detector(tiny).self_check)


def damaged(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda canary: canary.update(fields)


LONG = np.full((24, 6), 0.25)
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no base64": (damaged(rows="Ä" * 9), "rows cannot be read"),
    "half a row": (damaged(rows=rows_in_base64(LONG[:23, :5])), "rows cannot be read"),
    "no number": (damaged(rows=rows_in_base64(LONG * np.nan)), "of finite numbers"),
    "none": (damaged(rows=""), "0 rows, expected 10 or more"),
    "nine": (damaged(rows=rows_in_base64(LONG[:9])), "9 rows, expected 10 or more"),
    "fewer": (damaged(rows=rows_in_base64(LONG[:23])), "23 rows, the file 24"),
    "text": (damaged(rows=7), "canary.rows: expected str"),
    "negative seed": (damaged(seed=-1), "canary.seed"),
    "hash": (damaged(sha256="0"), "canary.sha256"),
    "tolerance": (
        damaged(tolerances={"cpu": {"score": 0, "box": 1, "missing": 0}}),
        "canary.tolerances[...].score",
    ),
    "field": (lambda canary: canary.pop("rows"), "rows"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_one_is_refused(with_canary: Any, what: str) -> None:
    damage, expected = DAMAGES[what]
    content = json.loads(with_canary().to_json())
    damage(content["canary"])
    assert expected in refused(lambda: ModelSpec.from_json(json.dumps(content)))


def test_another_picture_is_refused(with_canary: Any, altered: Any) -> None:
    spec = with_canary()
    detector = altered(spec=replace(spec, canary=replace(spec.canary, seed=2)))
    assert "another picture than seed 2 makes" in refused(detector.self_check)


@pytest.mark.parametrize(
    ("options", "status"),
    [([], 0), (["--device", "openvino"], 0), (["--rows"], 1), (["--none"], 2), (["--engine"], 2)],
)
def test_the_command(
    options: list[str],
    status: int,
    with_canary: Any,
    make_spec: Any,
    make_onnx: Any,
    tmp_path: Path,
    nmsfree_command: Any,
) -> None:
    """`nmsfree doctor MODEL`: a line, a report, and 1 where the file answers otherwise."""
    spec = with_canary()
    if options == ["--rows"]:  # those of another file
        values = spec.canary.values() + np.array([3, 3, 3, 3, 0, 0])
        spec = replace(spec, canary=replace(spec.canary, rows=rows_in_base64(values)))
    if options == ["--none"]:
        spec = replace(spec, canary=None)
    path = make_onnx(tmp_path / "tiny.onnx", spec)
    words = [str(path), *(options if options[:1] == ["--device"] else [])]
    if options == ["--engine"]:
        words = ["--device", "cpu"]
    report = tmp_path / "report.json"
    ended, out, err = nmsfree_command("doctor", *words, "--json", report)
    assert ended == status
    assert (out + err).count("\n") == 1
    if status == 2:
        assert ("no canary" if options == ["--none"] else "for a MODEL") in err
        return
    content = json.loads(report.read_text("utf-8"))
    assert (content["ok"], content["file"], content["rows"]) == (status == 0, str(path), 24)
    assert ("answers as the file did" in out) == (status == 0)
    assert ("answers otherwise" in err) == (status == 1)
