"""A study's figures are those of eval; untouched splits; pictures of what NMS deletes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import load_coco
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.detector import Detector
from nmsfree.errors import InputError
from nmsfree.evaluation.analysis import analyse
from nmsfree.evaluation.boxes import to_results
from nmsfree.evaluation.evaluate import coco_results, evaluate, predict
from nmsfree.evaluation.scores import CocoScorer
from nmsfree.spec import NmsSpec
from nmsfree_training.cli.study import app
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.study import scenes, untouched
from nmsfree_training.study.measure import measure
from nmsfree_training.study.results import NMS_GRID, grid_key
from nmsfree_training.study.untouched import TAUS, Interval, Output, intervals, outputs
from nmsfree_training.weights.checkpoint import load_checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec

from .runs import WEIGHTS, save_network

NMS, FREE = (WEIGHTS / f"fcos_{kind}_nano.safetensors" for kind in ("rt", "e2e"))


@pytest.fixture(scope="module")
def measured(digits: Path) -> dict[str, Any]:
    return measure(FREE, digits)


def test_both_heads_have_the_figures_of_eval(measured: dict[str, Any], digits: Path) -> None:
    checkpoint = load_checkpoint(FREE)
    assert list(measured) == ["val", "overlap"]
    for split, found in measured.items():
        dataset = load_coco(digits, split)
        assert found["images"] == len(dataset)
        for head in ("o2m", "o2o"):
            spec = make_spec(checkpoint, head)
            with Detector(TorchBackend(checkpoint.build(), spec)) as detector:
                expected = analyse(dataset, predict(detector, dataset), spec)
            own = found[head]
            assert found["objects"] == expected.objects
            assert own["AP"] == pytest.approx(expected.metrics.ap, abs=1e-6)
            at_06 = expected.metrics.ap if head == "o2m" else expected.ap_with_nms
            assert own["nms"]["0.60"] == pytest.approx(at_06, abs=1e-6)
            names = ("F1", "F1_with_nms", "AP50", "duplicates_per_image_at_floor")
            names += ("duplicates_per_image", "wrong_duplicates_per_image")
            values = expected.to_json()
            assert {n: own[n] for n in names} == pytest.approx({n: values[n] for n in names})
            assert own["threshold"] == pytest.approx(expected.best.threshold, abs=1e-6)


def test_the_grid_is_what_eval_says_at_every_threshold(
    measured: dict[str, Any], digits: Path
) -> None:
    checkpoint, dataset = load_checkpoint(FREE), load_coco(digits, "overlap")
    nms = measured["overlap"]["o2m"]["nms"]
    assert list(nms) == [grid_key(iou) for iou in NMS_GRID]
    assert len(set(nms.values())) > 3  # the threshold matters where objects overlap
    for iou in (0.5, 0.8):
        spec = replace(make_spec(checkpoint, "o2m"), nms=NmsSpec(iou=iou))
        with Detector(TorchBackend(checkpoint.build(), spec)) as detector:
            assert nms[grid_key(iou)] == pytest.approx(evaluate(detector, dataset).ap, abs=1e-6)


def test_a_network_of_one_head_that_finds_nothing(digits: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Fcos(preset("fcos_rt_nano", 10).model)
    path = save_network(network, tmp_path / "x.safetensors")
    found = measure(path, digits, ("val",))["val"]
    assert found.keys() == {"images", "objects", "o2m"}
    assert found["o2m"]["AP"] == 0.0 and set(found["o2m"]["nms"].values()) == {0.0}


# A split on which nothing was chosen


@pytest.fixture(scope="module")
def tested(digits: Path) -> dict[str, Output]:
    return outputs(FREE, digits, "val", "overlap")


def test_what_is_chosen_on_val_is_measured_elsewhere(
    tested: dict[str, Output], measured: dict[str, Any]
) -> None:
    names = ["o2m, NMS 0.60", "o2m, best NMS", "o2m, NMS for F1", "o2o", "o2o, best NMS"]
    assert list(tested) == [*names, "o2o, τ for F1"]
    val, overlap = measured["val"], measured["overlap"]
    for name, output in tested.items():
        grid, own = val[output.head]["nms"], overlap[output.head]
        figures = output.figures()
        if "best" in name:
            assert output.nms is not None and grid[grid_key(output.nms)] == max(grid.values())
        elif "F1" not in name:
            assert output.threshold == pytest.approx(val[output.head]["threshold"], abs=1e-6)
            assert figures["F1_best_here"] == pytest.approx(own["F1"], abs=1e-6)
            assert figures["AP50"] == pytest.approx(own["AP50"], abs=1e-5)
        assert 0 < figures["F1"] <= figures["F1_best_here"]
        if output.tau is not None:
            assert output.tau in TAUS
            continue
        ap = own["AP"] if output.nms is None else own["nms"][grid_key(output.nms)]
        assert figures["AP"] == pytest.approx(ap, abs=1e-5)


def test_the_filter_is_chosen_too(
    tested: dict[str, Output], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untouched, "TAUS", (0.3,))
    found = outputs(FREE, digits, "val", "overlap")
    assert found["o2o, τ for F1"].tau == 0.3
    assert len(found["o2o, τ for F1"].seen.found) < len(found["o2o"].seen.found)
    assert found["o2o"].figures() == tested["o2o"].figures()


def test_weights_of_pictures(tested: dict[str, Output], digits: Path) -> None:
    dataset, seen = load_coco(digits, "overlap"), tested["o2o"].seen
    rows = to_results(seen.found, dataset.image_ids, dataset.category_ids)
    weights = np.ones(len(dataset))
    weights[0] = 0
    left = replace(dataset, samples=dataset.samples[1:])
    wanted = CocoScorer(left).ap(r for r in rows if r["image_id"] != dataset.image_ids[0])
    assert seen.ap()(weights)[0] == pytest.approx(wanted, abs=1e-6)
    assert seen.ap()(3 * weights) == pytest.approx(seen.ap()(weights))


def test_a_network_is_no_better_than_itself(tested: dict[str, Output]) -> None:
    free, nms = tested["o2o"], tested["o2m, NMS 0.60"]
    assert set(intervals([free], [free]).values()) == {Interval(0.0, 0.0, 0.0)}
    alone, less = intervals([free])["AP"], intervals([free, free], [nms, nms])["AP"]
    assert alone.low < alone.mean < alone.high
    difference = free.figures()["AP"] - nms.figures()["AP"]
    assert less.mean == pytest.approx(difference, abs=2e-6) and less.low <= less.mean <= less.high


def test_unlike_networks_are_no_group(tmp_path: Path) -> None:
    """Told before anything is computed: there is no dataset here."""
    pair = [WEIGHTS / f"fcos_{name}_nano.safetensors" for name in ("e2e", "rt")]
    with pytest.raises(InputError, match="have other heads or filters: compare them as two groups"):
        untouched.compare(pair, [], [tmp_path], "val", "test")
    with pytest.raises(InputError, match="3 weights for 2 folds: give those of all folds"):
        untouched.compare([*pair, pair[0]], [], [tmp_path] * 2, "val", "test")


def test_folds_have_their_own_pictures(tested: dict[str, Output], digits: Path) -> None:
    """Two splits, which differ in length: the mean of both."""
    other = outputs(FREE, digits, "overlap", "val")
    pair = [tested["o2o"], other["o2o"]]
    both = intervals(pair, folds=2)
    for name, found in both.items():
        mean = np.mean([output.figures()[name] for output in pair])
        assert found.mean == pytest.approx(mean, abs=2e-6) and found.low < mean < found.high
    assert intervals(pair, pair, folds=2)["AP"] == Interval(0.0, 0.0, 0.0)
    assert intervals(pair * 2, folds=2)["AP"].mean == both["AP"].mean


def test_folds_are_drawn_once_for_both_groups(
    tested: dict[str, Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks of one fold are alike here, and folds are not: what differs by nothing, shows it."""
    aps = {0.0: 0.08, 0.1: 0.12, 0.2: 0.16, 0.3: 0.20}  # by threshold, which tells the fold
    monkeypatch.setattr(untouched, "_aps", lambda one, drawn: [aps[one.threshold]] * len(drawn))
    one_seed = [replace(tested["o2o"], threshold=fold) for fold in aps]
    for ours, theirs in ((2, 1), (1, 2), (3, 2), (1, 1)):
        found = intervals(one_seed * ours, one_seed * theirs, folds=4)["AP"]
        assert vars(found) == pytest.approx({"mean": 0, "low": 0, "high": 0})
    alone = intervals(one_seed * 2, folds=4)["AP"]
    assert alone.low < alone.mean - 0.02 and alone.mean == pytest.approx(0.14)
    better = [replace(one, threshold=0.3) for one in one_seed]  # by 12, 8, 4 and 0
    found = intervals(better, one_seed * 2, folds=4)["AP"]
    assert 0 < found.low < found.mean - 0.02 and found.mean == pytest.approx(0.06)
    # Where folds are alike and seeds are not, the seeds are drawn.
    seeds = [replace(tested["o2o"], threshold=seed) for seed in aps for _ in range(2)]
    assert intervals(seeds, folds=2)["AP"].low < 0.12


def test_weights_of_each_fold_meet_its_data(
    monkeypatch: pytest.MonkeyPatch, tested: dict[str, Output], tmp_path: Path
) -> None:
    met = list[tuple[str, str]]()

    def outputs_of(path: Path, data: Path, choose: str, split: str) -> dict[str, Output]:
        met.append((path.parent.name, data.name))
        return tested

    monkeypatch.setattr(untouched, "outputs", outputs_of)
    paths = [tmp_path / name / FREE.name for name in ("a0", "b0", "a1", "b1")]
    for path in paths:
        path.parent.mkdir()
        path.symlink_to(FREE)
    found = untouched.compare(paths, paths[:2], [tmp_path / "a", tmp_path / "b"], "val", "overlap")
    assert met == [(name, name[0]) for name in ("a0", "b0", "a1", "b1", "a0", "b0")]
    assert found["data"] == "a, b" and len(found["networks"]["ours"]["o2o"]["nms"]) == 4


def test_the_comparison_is_shown_and_written(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "test.json"
    words = [str(FREE), "--against", str(NMS), "--data", str(digits), "--split", "overlap"]
    shown = CliRunner().invoke(app, ["test", *words, "--json", str(out)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    found = json.loads(out.read_text())
    others = ("o2m, NMS 0.60", "o2m, best NMS", "o2m, NMS for F1")
    assert list(found["differences"]) == [
        f"{own} less {other}" for own in ("o2o", "o2o, τ for F1") for other in others
    ]
    own, other = found["networks"]["ours"]["o2o"], found["networks"]["theirs"]["o2m, best NMS"]
    gap = found["differences"]["o2o less o2m, best NMS"]["AP"]["mean"]
    assert gap == pytest.approx(own["AP"]["mean"] - other["AP"]["mean"], abs=2e-6)
    assert f"{100 * own['AP']['mean']:.1f} (" in shown.stdout


# Pictures of what NMS deletes: which scenes are chosen, and what is counted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "digits"
    write_digits(folder, train=1, val=1, overlap=4)
    return folder


def test_real_detectors(data: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "scenes.png", list[tuple[int, int]]()
    outcome = scenes.write_scenes(
        NMS, FREE, data, "overlap", out, 2, lambda done, total: seen.append((done, total))
    )
    objects = sum(len(s.boxes) for s in load_dataset(data, "overlap").samples)
    assert outcome.objects == objects and seen[-1] == (8, 8)
    # What is missed by both is missed by each.
    both = outcome.lost_with_nms - outcome.only_with_nms
    assert both == outcome.lost_without - outcome.only_without >= 0
    assert outcome.only_with_nms > outcome.only_without  # pairs are what the split is made of
    picture = cv2.imread(str(out))
    assert picture is not None and len(outcome.scenes) == 2
    assert picture.shape[1] > 1.4 * picture.shape[0]  # three columns, two rows


def found_by(
    monkeypatch: pytest.MonkeyPatch, data: Path, left_out: dict[str, dict[int, int]]
) -> None:
    """Make detectors find all objects but the first n of an image, by head."""
    samples = load_dataset(data, "overlap").samples

    def predict(detector: Any, dataset: Any, progress: Any) -> list[dict[str, Any]]:
        progress(len(samples), len(samples))
        rows = []
        for number, sample in enumerate(samples):
            skip = left_out[detector.spec.head].get(number, 0)
            ids = np.array(dataset.category_ids)[sample.labels[skip:]]
            scores = np.full(len(ids), 0.9, np.float32)
            rows += coco_results(sample.image_id, sample.boxes[skip:], ids, scores)
        return rows

    monkeypatch.setattr(scenes, "predict", predict)


def test_the_scenes_where_nms_costs_most_come_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_by(monkeypatch, data, {"o2m": {0: 1, 2: 2, 3: 1}, "o2o": {3: 1, 1: 1}})
    outcome = scenes.write_scenes(NMS, FREE, data, "overlap", tmp_path / "a.jpg", 3)
    names = [s.path.name for s in load_dataset(data, "overlap").samples]
    assert outcome.scenes == (names[2], names[0])  # in the third both miss the same object
    assert (outcome.lost_with_nms, outcome.lost_without) == (4, 2)
    assert (outcome.only_with_nms, outcome.only_without) == (3, 1)
    assert (tmp_path / "a.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_nothing_to_show(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_by(monkeypatch, data, {"o2m": {}, "o2o": {1: 1}})
    with pytest.raises(InputError, match="no object of overlap is found without NMS only"):
        scenes.write_scenes(NMS, FREE, data, "overlap", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_the_order_of_the_detectors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        scenes.write_scenes(FREE, NMS, data, "overlap", tmp_path / "a.png")
    assert str(caught.value) == (
        f"{FREE}: fcos_e2e_nano needs no NMS, expected one that needs it: give the other file"
    )
    with pytest.raises(InputError, match="fcos_rt_nano needs NMS, expected one that needs none"):
        scenes.write_scenes(NMS, NMS, data, "overlap", tmp_path / "a.png")


def test_command(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scenes.png"
    words = ["scenes", str(NMS), str(FREE), "--data", str(data), "--count", "1"]
    shown = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    objects = len(
        json.loads((data / "annotations/instances_overlap.json").read_text())["annotations"]
    )
    assert f"of {objects} objects of overlap NMS misses" in " ".join(shown.stderr.split())
    assert out.is_file()
    wrong = CliRunner().invoke(app, [*words, "--out", "scenes.gif"])
    assert str(wrong.exception) == "--out is scenes.gif, expected a name that ends in .png or .jpg"
