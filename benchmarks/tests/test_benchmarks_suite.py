"""The whole benchmark on tiny networks, and the exported file whole, bare and in parts."""

import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.errors import CheckpointError, EngineError, InputError, ModelError
from nmsfree.images import read_image
from nmsfree.machine import find_gpus
from nmsfree.preprocess import Geometry
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.cli import app
from nmsfree_benchmarks.harness import exports as exported_files
from nmsfree_benchmarks.harness.engines import ENGINES
from nmsfree_benchmarks.harness.exports import export_all, exporter, made_by
from nmsfree_benchmarks.harness.graphs import open_session, raw_maps, split_at_raw_maps
from nmsfree_benchmarks.harness.pictures import digits, full_hd
from nmsfree_benchmarks.harness.statistics import CALLS_FOR, FEWEST_ROUNDS, STAGES
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.timer import Plan
from nmsfree_benchmarks.harness.weights import open_weights, trained
from nmsfree_benchmarks.questions import frontier, overhead, roofline, throughput
from nmsfree_benchmarks.questions.models.question import PLANS, postprocess_call
from nmsfree_benchmarks.questions.models.summary import CPU_ENGINES, OTHERS
from nmsfree_benchmarks.questions.nms.question import FULL, LARGE_PLAN, QUICK
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.norms import normalize
from nmsfree_training.weights.checkpoint import load_checkpoint

Ask = Callable[..., dict[str, Any]]
Exported = Callable[..., Path]
WEIGHTS = Path(__file__).parents[2] / "weights"
MODELS = ("fcos_rt_nano", "fcos_e2e_nano")  # fcos_o2o_nano is left out: skipped with a reason
IMAGES = 4
PIXELS = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(pair: Path, ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of `nmsfree bench` on the small models leaves."""
    out = tmp_path_factory.mktemp("bench") / "out"
    options = [f"--{name}={pair / name}" for name in ("weights", "data", "work")]
    content = ask(*options, f"--out={out}", "--quick", "--size=nano", "--seconds=0", "--threads=1")
    (out.parent / "stdout").write_text(json.dumps(content), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder.parent / "stdout").read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module")
def rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in content["records"] if r["parameters"]["call"] == "detector"]


def test_every_engine_runs_every_model(content: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    found = [(row["subject"]["model"], row["subject"]["engine"]) for row in rows]
    assert found == [(model, engine) for model in MODELS for engine in CPU_ENGINES]
    assert {row["timed_calls"] for row in content["records"]} == {10}
    assert {tuple(row["subject"]["size"]) for row in rows} == {(64, 64)}
    assert list(content["skipped"]) == ["fcos_o2o_nano"]
    assert content["environment"]["threads"] == 1
    assert content["command"] == "nmsfree bench --quick --threads 1 --seconds 0 --size nano"
    assert content["settings"] == {"bursts": {"64x64": 1}}


def test_int8_and_memory_are_measured_beside_fp32(
    tiny: Path, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is not quick, of the trained NMS-free model: random weights bear no 8 bits."""
    monkeypatch.setattr("nmsfree_benchmarks.harness.exports.CALIBRATION_IMAGES", 3)
    plan = Plan(seconds=0, min_rounds=2, burst=2)
    monkeypatch.setitem(PLANS, ("nano", False), plan)
    monkeypatch.setitem(OTHERS, "cpu", (("onnxruntime", "int8"), ("openvino", "int8")))
    (tmp_path / "weights").mkdir()
    shutil.copy(WEIGHTS / "fcos_e2e_nano.safetensors", tmp_path / "weights")
    options = [f"--{name}={tmp_path / name}" for name in ("weights", "out")]
    options += [f"--{name}={tiny / name}" for name in ("data", "work")]
    content = ask(*options, "--size=nano", "--seconds=0", "--threads=1")
    rows = {
        record["subject"]["engine"]: record
        for record in content["records"]
        if record["parameters"]["call"] == "detector"
    }
    assert list(rows)[: len(CPU_ENGINES)] == list(CPU_ENGINES)
    for engine in ("onnxruntime_int8", "openvino_int8"):
        subject, plain = rows[engine]["subject"], rows["onnxruntime"]["subject"]
        assert (subject["precision"], plain["precision"]) == ("int8", "fp32")
        assert subject["file_bytes"] < 0.5 * plain["file_bytes"]
        assert f"fcos_e2e_nano {engine}" in content["facts"]["speed_beside_fp32"]
        assert rows[engine]["figures"]["engine_rss_mb"] != 0
    assert "engine_rss_mb" not in rows["eager_timing"]["figures"]
    assert all(rows[e]["figures"]["limit_ms"] > 0 for e in (*CPU_ENGINES, "openvino_int8"))


def test_plans_are_long_enough_for_what_is_said_of_them() -> None:
    """Ten rounds for an interval in each; a hundred calls for the p99 of a full run's table."""
    plans = [*PLANS.values(), *overhead.PLANS.values(), LARGE_PLAN]
    plans += [plan for suite in (frontier, throughput, roofline)
              for plan in (suite.PLAN, suite.QUICK_PLAN)]  # fmt: skip
    plans += [plan for chosen in (FULL, QUICK) for plan in (chosen.alone, chosen.call)]
    assert min(plan.min_rounds for plan in plans) >= FEWEST_ROUNDS
    for plan in (PLANS["nano", False], frontier.PLAN):
        assert plan.min_rounds * plan.burst >= CALLS_FOR[99]


def test_a_changed_network_or_exporter_is_never_measured_by_an_old_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Path(inspect.getfile(what)) for what in (Fcos, export_onnx, ModelSpec, Geometry)]
    for source in sources:
        assert any(source.is_relative_to(made_of) for made_of in exported_files.MADE_OF)
    package = sources[0].parent
    same, other = (tmp_path / kind / package.name for kind in ("same", "other"))
    for copy in (same, other):
        shutil.copytree(package, copy)
    head = other / sources[0].relative_to(package)
    head.write_text(head.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert made_by((package,)) == made_by((same,)) != made_by((other,))
    made: list[Path] = []

    def export(checkpoint: Path, model: str, out: Path, how: object) -> None:
        out.parent.mkdir(exist_ok=True)
        out.touch()
        made.append(out)

    monkeypatch.setattr(exported_files, "exporter", lambda: nullcontext(export))
    weights = open_weights(tiny / "weights" / "fcos_e2e_nano.safetensors", "none")
    subject = Subject(weights, ENGINES["onnxruntime"], 1)
    paths = []
    for copy in (same, same, other):
        monkeypatch.setattr(exported_files, "MADE_OF", (copy,))
        assert export_all([subject], tmp_path / "work", None, lambda done, total: None) == {}
        paths.append(subject.file)
    assert paths[0] == paths[1] != paths[2] and made == paths[1:]


def test_files_are_made_in_another_process_whose_errors_are_ours(tmp_path: Path) -> None:
    with exporter() as export, pytest.raises(CheckpointError, match=r"none\.safetensors"):
        export(tmp_path / "none.safetensors", "fcos_e2e_nano", tmp_path / "a", ExportOptions())


@pytest.mark.parametrize(
    "target", ["weights/fcos_e2e_nano.safetensors", "data/link", "", "weights"]
)
def test_what_is_measured_is_never_replaced(tiny: Path, tmp_path: Path, target: str) -> None:
    for name in ("weights", "data"):
        shutil.copytree(tiny / name, tmp_path / name)
    weights = tmp_path / "weights" / "fcos_e2e_nano.safetensors"
    before = weights.read_bytes()
    (tmp_path / "data" / "link").symlink_to(weights)
    output = tmp_path / target if target else ""
    options = [f"--{name}={tmp_path / name}" for name in ("weights", "work", "out")]
    for more in (
        ["jitter"],
        ["roofline", f"--data={tmp_path / 'data'}"],
        [f"--data={tmp_path / 'data'}"],
    ):
        arguments = [*more, *options, "--quick", f"--json={output}"]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, InputError), result.output
        assert not (tmp_path / "out").exists()
    assert weights.read_bytes() == before


def test_every_stage_takes_time(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        raw = {name: np.array(values) for name, values in row["raw_ns"].items()}
        assert all((values >= 0).all() for values in raw.values())
        assert min(row["figures"][f"{stage}_share"] for stage in STAGES) >= 0
        assert min(row["figures"][f"{stage}_share"] for stage in ("network", "postprocess")) > 0


def test_ap_is_that_of_the_same_weights_in_every_engine(rows: list[dict[str, Any]]) -> None:
    subjects = [row["subject"] for row in rows]
    for model in MODELS:
        ap = {s["engine"]: s["ap"] for s in subjects if s["model"] == model}
        assert ap["onnxruntime"] == pytest.approx(ap["eager_two_stage"], abs=1e-3)
    assert {subject["ap_images"] for subject in subjects} == {IMAGES}


def test_hashes_and_sizes_are_those_of_the_files(
    pair: Path, rows: list[dict[str, Any]], exported: Exported
) -> None:
    for subject in (row["subject"] for row in rows):
        checkpoint = pair / "weights" / f"{subject['model']}.safetensors"
        onnx_file = exported(checkpoint)
        path = onnx_file if subject["engine"] == "onnxruntime" else checkpoint
        assert hashlib.sha256(path.read_bytes()).hexdigest() == subject["sha256"]
        assert path.stat().st_size == subject["file_bytes"]


def test_the_provider_is_the_real_one_and_only_nms_models_have_a_load(
    rows: list[dict[str, Any]],
) -> None:
    for row in rows:
        subject = row["subject"]
        engine = "ONNX Runtime" if subject["engine"] == "onnxruntime" else "PyTorch"
        assert subject["provider"].startswith(engine)
        assert "cpu" in subject["provider"].lower()
        assert (subject["nms"] is None) == (subject["model"] == "fcos_e2e_nano")
        assert ("nms_candidates" in row["figures"]) == (subject["nms"] is not None)


def test_the_report_is_in_its_folder(folder: Path, content: dict[str, Any], left: Any) -> None:
    left(folder, content)


@pytest.mark.parametrize("model", MODELS)
def test_the_graph_is_split_at_the_networks_raw_maps(
    pair: Path, model: str, exported: Exported
) -> None:
    """And both parts together are the whole graph."""
    checkpoint = pair / "weights" / f"{model}.safetensors"
    first, rest = split_at_raw_maps(exported(checkpoint))
    kinds = {node.op_type for node in first.graph.node}
    assert not kinds & {"TopK", "NonMaxSuppression", "ReduceMax", "Sigmoid", "Concat"}
    assert not {node.op_type for node in rest.graph.node} & {"Conv", "Relu"}
    network = load_checkpoint(checkpoint).build()
    seen: list[torch.Tensor] = []
    head = network.heads[network.config.deployed_head]
    head.register_forward_hook(lambda *a: seen.extend(m for level in a[2] for m in level))
    with torch.inference_mode():
        network(normalize(torch.from_numpy(PIXELS)), heads=(network.config.deployed_head,))
    maps = open_session(first, 1).run(None, {"images": PIXELS})
    assert sorted(m.shape for m in maps) == sorted(tuple(m.shape) for m in seen)
    for expected in seen:
        same = [m for m in maps if m.shape == tuple(expected.shape)]
        assert any(np.allclose(m, expected.numpy(), atol=1e-3) for m in same)
    names = [output.name for output in first.graph.output]
    found = open_session(rest, 1).run(None, dict(zip(names, maps, strict=True)))
    whole = OnnxRuntimeBackend(exported(checkpoint)).run(PIXELS)
    assert whole.num_detections.item() > 0
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_last_convolutions_are_found() -> None:
    """a → conv → b → relu → c → conv → d → sigmoid; b → conv → e: the maps are d and e."""
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["d"]),
        helper.make_node("Conv", ["b", "w"], ["e"]),
        helper.make_node("Sigmoid", ["d"], ["f"]),
    ]
    info = helper.make_tensor_value_info
    values = [info(n, TensorProto.FLOAT, None) for n in ("a", "f", "e")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    assert raw_maps(helper.make_model(graph)) == ["d", "e"]
    del graph.node[:4]
    with pytest.raises(ModelError, match="no convolution"):
        raw_maps(helper.make_model(graph))


def test_bare_and_partial_calls_time_one_part(pair: Path, exported: Exported) -> None:
    weights = open_weights(pair / "weights" / "fcos_rt_nano.safetensors", "none")
    subject = Subject(weights, ENGINES["onnxruntime"], 1, file=exported(weights))
    picture = np.zeros((100, 80, 3), np.uint8)
    with ExitStack() as stack:
        subject.open(stack)
        for call in (subject.bare(), postprocess_call(subject, [picture])):
            (elapsed,) = call(picture)
            assert elapsed > 0
        assert len(subject.call()(picture)) == 3


def test_a_digits_set_is_used_and_never_written_to(pair: Path, tmp_path: Path) -> None:
    before = sorted((pair / "data").rglob("*"))
    assert digits(pair / "data", tmp_path / "work", "val", lambda *_: None) == pair / "data"
    assert sorted((pair / "data").rglob("*")) == before
    assert not (tmp_path / "work").exists()


def test_large_pictures_are_full_hd_and_distinct(pair: Path) -> None:
    scenes = [read_image(path) for path in sorted((pair / "data" / "val").glob("*.png"))]
    made = full_hd(scenes, 2)
    assert [picture.shape for picture in made] == [(1080, 1920, 3)] * 2
    assert (made[0] != made[1]).any()
    np.testing.assert_array_equal(full_hd(scenes, 2)[1], made[1])


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        trained(tmp_path / "none")
    sources, skipped = trained(tmp_path)
    assert not sources
    assert all(f"{name}.safetensors" in reason for name, reason in skipped.items())
    assert len(skipped) == 3


@pytest.mark.parametrize("question", ["jitter", "nms", "overhead"])
def test_missing_weights_are_told_by_a_question(question: str, ask: Ask, tmp_path: Path) -> None:
    said = "fcos_e2e_nano.safetensors is not in the folder of weights: train it with `nmsfree"
    with pytest.raises(InputError, match=f"^nothing to measure: .*{said}"):
        ask(question, f"--weights={tmp_path}", f"--work={tmp_path}")


@pytest.mark.parametrize("question", ["throughput", "frontier"])
def test_an_unknown_model_is_told(question: str, ask: Ask, options: list[str]) -> None:
    with pytest.raises(InputError) as error:
        ask(question, *options, "--model=fcos_none")
    assert str(error.value) == "model is 'fcos_none', the folder of weights has: fcos_e2e_nano"


def test_without_a_gpu_there_is_nothing_to_measure_on_it() -> None:
    problem = find_gpus().problem
    if not problem:
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="^" + re.escape(problem)):
        CliRunner().invoke(app, ["--device=cuda"], catch_exceptions=False)
