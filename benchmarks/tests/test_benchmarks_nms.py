"""The price of NMS: scenes, implementations on real candidates, and a whole small run."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks_sample import check_written

from nmsfree.backends import OnnxRuntimeBackend, RawDetections
from nmsfree.errors import GateError, InputError
from nmsfree.nms import greedy_nms
from nmsfree_benchmarks.harness import plots
from nmsfree_benchmarks.harness.graphs import nms_tail, open_session, with_floor, without_nms
from nmsfree_benchmarks.harness.pictures import make_crowd
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.harness.run import ask
from nmsfree_benchmarks.harness.statistics import bootstrap, slope
from nmsfree_benchmarks.harness.timer import Plan
from nmsfree_benchmarks.questions.nms import calls
from nmsfree_benchmarks.questions.nms import question as QUESTION
from nmsfree_benchmarks.questions.nms.calls import (
    MAKERS,
    Candidates,
    Point,
    Setting,
    agreement,
    choose,
    expected_of,
    find_candidates,
    images_of,
    matrix_nms,
    nms_cases,
    points,
)
from nmsfree_benchmarks.questions.nms.prices import REFERENCE, nms_cost
from nmsfree_benchmarks.questions.nms.question import FULL, QUICK, Options, Range
from nmsfree_export.graph.nms import CANDIDATES

WEIGHTS = Path(__file__).parents[2] / "weights"
HERE = ["numpy", "matrix", "onnx", "plain", "opencv"]  # what needs no further package
PLAN = Plan(seconds=0, min_rounds=2, pause=0)
TINY = Range((0, 20), (0.05, 0.001), (0.6,), (1, 2), scenes=2, alone=PLAN, call=PLAN)
SETTINGS = [(0.05, 0.6), (0.001, 0.6), (0.3, 0.45), (0.05, 0.8)]  # floor, IoU


@pytest.fixture(scope="module")
def results(work: Path) -> Results:
    options = Options(weights=WEIGHTS, work=work, threads=1, quick=True, range=TINY, tiles=1)
    return ask(QUESTION, options)


@pytest.fixture(scope="module")
def file(results: Results, work: Path) -> Path:
    """The exported file with NMS, which the run has made."""
    whole = results.where(what="with NMS")[0].state
    made = work.glob(f"{whole.model}-fp32-256x256-batchN-*.onnx")
    return next(path for path in made if "floor" not in path.name)


@pytest.fixture(scope="module")
def found(file: Path) -> Candidates:
    """Candidates of two scenes of 20 digits."""
    cut = open_session(without_nms(file), 1)
    return find_candidates(cut, [make_crowd(20, index, tiles=1).image for index in range(2)])


@pytest.mark.parametrize("objects", [0, 1, 7, 40])
def test_scenes_hold_as_many_objects_as_asked_for(objects: int) -> None:
    crowd = make_crowd(objects, tiles=2)
    assert crowd.image.shape == (512, 512, 3)
    assert len(crowd.boxes) == len(crowd.labels) == objects
    assert (crowd.boxes >= 0).all() and (crowd.boxes <= 512).all()
    assert (crowd.boxes[:, 2:] - crowd.boxes[:, :2] >= 2).all()
    for x1, y1, x2, y2 in crowd.boxes.astype(int):  # ink stands out, the ground is smooth
        assert np.ptp(crowd.image[y1:y2, x1:x2].astype(int)) > 40


def test_scenes_depend_on_their_arguments_only() -> None:
    first, again, other = make_crowd(9, 3, 1), make_crowd(9, 3, 1), make_crowd(9, 4, 1)
    assert (first.image == again.image).all() and (first.boxes == again.boxes).all()
    assert (first.image != other.image).any()
    assert (make_crowd(9, 3, 1, seed=1).image != first.image).any()


def test_a_scene_without_room_is_refused() -> None:
    with pytest.raises(InputError) as error:
        make_crowd(129, tiles=2)
    assert str(error.value) == (
        "objects is 129, expected 0 … 128: 2 × 2 tiles have no room for more"
    )


@pytest.mark.parametrize(("floor", "iou"), SETTINGS)
def test_implementations_keep_the_same_real_boxes(
    file: Path, found: Candidates, floor: float, iou: float
) -> None:
    spec = OnnxRuntimeBackend(file).spec
    setting = Setting(spec, found.scores.shape[1], floor, iou, 1)
    kept = {name: MAKERS[name](setting)(found) for name in HERE}
    for rows in kept[REFERENCE]:
        assert 10 < len(rows) < found.above(floor)  # NMS had something to remove
    for name in HERE:
        expected = expected_of(name, kept[REFERENCE], found)
        assert agreement(kept[name], expected) >= 0.995, name
        assert [len(set(rows)) for rows in kept[name]] == [len(rows) for rows in kept[name]]


def test_a_lower_iou_keeps_fewer_and_a_lower_floor_more(file: Path, found: Candidates) -> None:
    spec = OnnxRuntimeBackend(file).spec

    def count(floor: float, iou: float) -> int:
        kept = MAKERS["onnx"](Setting(spec, found.scores.shape[1], floor, iou, 1))(found)
        return sum(map(len, kept))

    assert count(0.05, 0.45) < count(0.05, 0.6) < count(0.05, 0.8) < count(0.001, 0.8)


def test_an_implementation_that_keeps_other_boxes_is_refused(
    file: Path, found: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_all(setting: Setting) -> calls.Nms:
        return lambda own: [np.arange(len(scores)) for scores in own.scores]

    monkeypatch.setitem(MAKERS, "opencv", keep_all)
    spec = OnnxRuntimeBackend(file).spec
    setting = Setting(spec, found.scores.shape[1], 0.05, 0.6, 1)
    with pytest.raises(GateError) as error:
        list(nms_cases(Point(20, 0.05, 0.6, 1), ["numpy", "opencv"], found, setting, 2))
    text = str(error.value)
    assert text.startswith(
        "opencv objects 20, floor 0.05, IoU 0.6, batch 1: keeps other boxes than numpy, "
    )
    assert text.endswith("expected 99.5%: times of different results cannot be compared")


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 700])
def test_the_matrix_keeps_what_the_loop_keeps(count: int, iou: float) -> None:
    """Crowded boxes with ties, in the same order: bit for bit the same arithmetic."""
    random = np.random.default_rng(count)
    corner = random.integers(0, 40, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0, 60, (count, 2))], axis=1)
    boxes[count // 2 :: 7] = boxes[: len(boxes[count // 2 :: 7])]
    drawn = boxes.astype(np.float32), random.uniform(0, 1, count).round(2).astype(np.float32)
    expected, found = (nms(*drawn, iou) for nms in (greedy_nms, matrix_nms))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype == np.int64
    assert count < 700 or iou != 0.6 or 0 < len(found) < count


def test_agreement_is_a_share_of_all_rows() -> None:
    a, b = [np.array([0, 1, 2]), np.array([4])], [np.array([2, 1, 3]), np.array([4])]
    assert agreement(a, a) == 1 and agreement(a, b) == 3 / 5
    nothing = [np.zeros(0, np.int64)]
    assert agreement(nothing, nothing) == 1 and agreement(nothing, [np.array([1])]) == 0


def test_the_tail_alone_gives_what_the_whole_file_gives(file: Path, found: Candidates) -> None:
    """Cut graph and tail, one after the other, are the file; both floors, and as one batch."""
    pixels = np.stack([make_crowd(20, index, tiles=1).image for index in range(2)])
    for floor in (0.05, 0.3):
        backend = OnnxRuntimeBackend(with_floor(file, floor))
        assert backend.spec.score_floor == floor
        whole = backend.run(pixels)
        model = nms_tail(backend.spec, found.scores.shape[1], floor, 0.6)
        inputs = dict(zip([f"in_{name}" for name in CANDIDATES], found, strict=True))
        parts = open_session(model, 1).run(list(RawDetections._fields), inputs)
        tail = RawDetections(*parts)
        assert (tail.num_detections == whole.num_detections).all()
        n = int(whole.num_detections.min())
        assert n > 10
        np.testing.assert_allclose(
            tail.detection_boxes[:, :n], whole.detection_boxes[:, :n], atol=1e-3
        )
        np.testing.assert_allclose(
            tail.detection_scores[:, :n], whole.detection_scores[:, :n], atol=1e-5
        )


def test_points_vary_one_setting_at_a_time() -> None:
    base = Point(500, 0.05, 0.6, 1)
    found = points(base, {"objects": (0, 500), "iou": (0.6, 0.8), "batch": (1, 4)})
    assert found == [base, replace(base, objects=0), replace(base, iou=0.8), replace(base, batch=4)]
    for chosen in (FULL, QUICK):
        assert chosen.points[0] == base
        assert len(chosen.points) == len(set(chosen.points))
        differ = [sum(a != b for a, b in zip(vars(p).values(), vars(base).values(), strict=True))
                  for p in chosen.points]  # fmt: skip
        assert differ == [0] + [1] * (len(differ) - 2) + [2]
    assert FULL.objects == (0, 10, 50, 100, 200, 500) and set(FULL.floors) == {0.3, 0.05, 0.001}
    assert images_of(1, batch=3, scenes=4) == [3, 0, 1]


def test_a_run_measures_every_implementation_and_call(results: Results) -> None:
    alone = [r for r in results.records if r.parameters["measured"] == "alone"]
    assert {r.parameters["implementation"] for r in alone} >= {*HERE, "NMS-free head"}
    assert sum(r.parameters["implementation"] in HERE for r in alone) == len(HERE) * len(
        TINY.points
    )
    what = [r.parameters["what"] for r in results.records if r.parameters["measured"] == "call"]
    assert sorted(what) == sorted(
        ["without its NMS", "NMS-free", "NMS-free, filter taken out"] * 2
        + ["with NMS", "NMS tail alone"] * 4
    )
    for record in results.records:
        assert len(record.times) == 2 and (record.times >= 0).all()
    for record in alone:
        if record.parameters["implementation"] in HERE:
            assert record.figures["same_as_reference"] >= 0.995
            kept, candidates = (record.figures[name] for name in ("kept", "candidates"))
            assert kept < candidates if record.parameters["objects"] else kept <= candidates
    with_nms = next(r for r in results.records if r.parameters.get("what") == "with NMS")
    assert with_nms.subject is not None and with_nms.subject.size == (256, 256)
    assert with_nms.subject.nms == {"iou": 0.6, "class_aware": True, "candidates_per_level": 1000}


def test_a_run_finds_the_objects_and_nothing_in_empty_scenes(results: Results) -> None:
    found = {n: results.facts[f"found_nms_free_{n}"] for n in (0, 20)}
    assert found[0] <= 2 and 14 <= found[20] <= 30
    assert results.facts["candidates_20_0.05"] > 3 * results.facts["candidates_0_0.05"]
    assert results.facts["candidates_20_0.001"] >= results.facts["candidates_20_0.05"]


def test_the_share_of_nms_is_with_minus_without(results: Results) -> None:
    def median(name: str) -> float:
        return float(np.median(results.record(name).times[:, 1])) / 1e6

    whole = "call with NMS, objects 20, floor 0.001"
    cost = median(whole) - median("call without its NMS, objects 20")
    assert results.facts["nms_ms_20_0.001"]["value"] == pytest.approx(cost, abs=1e-4)
    share = cost / results.record(whole).summary.p50
    assert results.facts["nms_share_of_call_20_0.001"]["value"] == pytest.approx(share, abs=1e-4)
    tail = results.record("call NMS tail alone, objects 20, floor 0.001").summary.p50
    assert results.facts["nms_tail_ms_20_0.001"] == pytest.approx(tail, abs=1e-4)
    assert 0 < results.facts["nms_tail_share_of_call_20_0.001"]["value"] < 1


def test_the_share_of_the_filter_is_with_minus_without(results: Results) -> None:
    def median(what: str) -> float:
        return float(np.median(results.record(f"call {what}").times[:, 1])) / 1e6

    free = "NMS-free, objects 20, floor 0.001"
    bare = "NMS-free, filter taken out, objects 20, floor 0.001"
    cost = median(free) - median(bare)
    assert results.facts["filter_ms_20"]["value"] == pytest.approx(cost, abs=1e-4)
    share = cost / results.record(f"call {free}").summary.p50
    assert results.facts["filter_share_of_call_20"]["value"] == pytest.approx(share, abs=1e-4)
    assert "The filter that does its work" in " ".join(QUESTION.conclusions(results))
    found = [results.record(f"call {what}").figures["found"] for what in (free, bare)]
    assert found[1] > found[0]  # without it objects are found more than once


def test_a_run_leaves_a_file_a_picture_and_tables(results: Results, tmp_path: Path) -> None:
    assert "| 20 | 0.001 |" in check_written(QUESTION, results, tmp_path)


def undisturbed(results: Results, **milliseconds: float) -> Results:
    """The same run with steady times: of each record 1 ms, or what is said of its kind."""
    records = []
    for record in results.records:
        kind = str(record.parameters.get("what") or record.parameters.get("implementation"))
        ns = int(1e6 * milliseconds.get(kind.replace(" ", "_").replace("-", "_"), 1))
        records.append(replace(record, times=np.full((10, len(record.parts)), ns)))
    return replace(results, records=tuple(records), other_load=0.0)


def test_what_the_intervals_tell_is_said(results: Results) -> None:
    steady = undisturbed(results, onnx=0.5)
    steady = replace(steady, ratios=tuple(QUESTION.ratios(steady)))
    said = " ".join(QUESTION.conclusions(steady))
    assert "Fastest NMS with 20 objects" in said
    assert "ONNX NonMaxSuppression, 0.50 ms." in said
    assert "NMS in plain operators takes 1.00 ms there, 2.000 " in said
    assert ", not told apart from " in " ".join(QUESTION.conclusions(undisturbed(results)))


def timed(name: str, *columns: Sequence[float]) -> Record:
    """A record with these milliseconds in its parts."""
    parts = tuple("abc"[: len(columns)])
    return Record(name, {}, (np.array(columns).T * 1e6).astype(np.int64), parts)


def test_cost_and_slope_of_known_times() -> None:
    whole = timed("whole", [1, 1, 1, 1], [10, 12, 10, 12], [1, 1, 1, 1])
    cost, share = nms_cost(whole, timed("cut", [1, 1, 1, 1], [8, 8, 8, 8]), burst=2)
    assert cost.value == 3 and not cost.known  # of two rounds
    assert share.value == pytest.approx(3 / 13)
    objects = [0, 100, 500] * 10
    rising = slope(np.array([5 + 0.02 * n for n in objects]), objects, burst=3)
    assert rising.value == pytest.approx(2) and rising.low == pytest.approx(rising.high)
    assert slope(np.full(30, 7.0), objects, burst=3).value == pytest.approx(0)
    with pytest.raises(ValueError, match="no times"):
        bootstrap(lambda rows: rows.mean(axis=-1), 0)


def test_labels_do_not_cover_each_other() -> None:
    figure = plots.new_figure(4, 4)
    axes = figure.subplots()
    axes.set_ylim(0, 10)
    points = [(0.5, y, f"{y:g}", "k") for y in (9.9, 1.0, 1.1, 10.0)]
    plots.label_points(axes, points, right=True)
    scale = 72 / figure.dpi
    at = {}
    for text in axes.texts:
        x, y = text.xy  # type: ignore[attr-defined]
        at[text.get_text()] = axes.transData.transform((x, y))[1] * scale + text.get_position()[1]
    places = [at[name] for name in ("1", "1.1", "9.9", "10")]
    assert all(b - a >= plots.SMALL for a, b in itertools.pairwise(places))


def test_what_is_not_installed_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "find_spec", lambda name: None)
    names, skipped = choose(None)
    assert names == HERE
    assert skipped == {
        "torchvision": "torchvision is not installed, and nothing of this project needs it",
    }
    assert choose(["opencv"]) == (["numpy", "opencv"], {})
