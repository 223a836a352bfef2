"""Files of the user's own, here two of another project: one network without NMS, and with it."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from nmsfree.errors import InputError, ModelError
from nmsfree_benchmarks.cli import app
from nmsfree_benchmarks.harness.engines import ENGINES
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.run import ask as ask_question
from nmsfree_benchmarks.harness.subject import subjects_of
from nmsfree_benchmarks.harness.timer import Plan
from nmsfree_benchmarks.questions import jitter, overhead, throughput
from nmsfree_benchmarks.questions.nms import question as nms
from nmsfree_export.adopt.adopt import AdoptOptions, adopt_onnx
from nmsfree_export.options import NmsOptions

Ask = Callable[..., dict[str, Any]]
Left = Callable[[Path, dict[str, Any]], Any]
FOREIGN = Path(__file__).parents[2] / "export/tests/export_foreign.py"
NAMES = ["free", "with_nms"]


@pytest.fixture(scope="session")
def adopted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of free.onnx, with_nms.onnx, queries.onnx, and `data` of their classes."""
    folder = tmp_path_factory.mktemp("adopted")
    found = importlib.util.spec_from_file_location("export_foreign", FOREIGN)
    assert found is not None and found.loader is not None
    foreign = importlib.util.module_from_spec(found)
    found.loader.exec_module(foreign)
    theirs = foreign.save(foreign.yolo_rows(), folder / "theirs")
    adopt_onnx(theirs, folder / "free.onnx")
    adopt_onnx(foreign.save(foreign.rtdetr_rows(), folder / "other"), folder / "queries.onnx")
    nms = AdoptOptions(nms=NmsOptions("plain", nms_iou=0.7))
    adopt_onnx(theirs, folder / "with_nms.onnx", nms)
    shutil.copytree(tiny / "data", folder / "data")
    for path in (folder / "data/annotations").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["categories"] = [{"id": i, "name": f"thing {i}"} for i in range(5)]
        for box in content["annotations"]:
            box["category_id"] %= 5
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def words(adopted: Path, tmp_path: Path) -> list[str]:
    """The two files, and options that write to `tmp_path / "out"`."""
    options = {"data": adopted / "data", "work": tmp_path / "work", "out": tmp_path / "out"}
    said = [f"--{name}={path}" for name, path in options.items()]
    files = [str(adopted / f"{name}.onnx") for name in NAMES]
    return [*files, *said, "--quick", "--seconds=0", "--threads=1"]


def test_the_table_has_files_beside_the_first(
    ask: Ask, left: Left, words: list[str], tmp_path: Path
) -> None:
    results, text = left(tmp_path / "out", ask(*words))
    assert results.command == (
        "nmsfree bench --quick --threads 1 --seconds 0 free.onnx with_nms.onnx"
    )
    found = results.where(call="detector")
    assert [(r.state.model, r.state.engine, r.state.size) for r in found] == [
        (name, "onnxruntime", (64, 64)) for name in NAMES
    ]
    assert all(r.state.ap_images == 4 and r.state.ap is not None for r in found)
    assert {r.meaning for r in results.ratios} == {
        "Detector by bare call",
        "with NMS by without",
        "the first file by another in ONNX Runtime",
    }
    told = r"with_nms (has .+ the speed of|is not told apart from) free in ONNX Runtime"
    assert re.search(told, text)
    assert "eager" not in text and "network's share" in text


def test_classes_that_the_data_does_not_have_leave_no_ap(
    ask: Ask, words: list[str], adopted: Path, tiny: Path
) -> None:
    content = ask(str(adopted / "queries.onnx"), f"--data={tiny / 'data'}", *words[3:])
    assert list(content["skipped"]) == ["AP of queries onnxruntime"]
    subject = content["records"][0]["subject"]
    assert (subject["head"], subject["ap"]) == ("queries", None)


def test_the_frontier_has_files_beside_the_first(
    ask: Ask, left: Left, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {"onnxruntime": ENGINES["onnxruntime"]}
    monkeypatch.setattr("nmsfree_benchmarks.questions.frontier.ENGINES", engines)
    results, text = left(tmp_path / "out", ask("frontier", *words))
    assert [r.state.model for r in results.where(call="detector")] == NAMES
    (line,) = results.facts["advice"]["free"]
    assert line.startswith("with_nms in ONNX Runtime") and f"free: {line}" in text
    assert "beside free in ONNX Runtime" in text


def test_a_frontier_out_of_time_has_the_first_file_alone(
    ask: Ask, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {"onnxruntime": ENGINES["onnxruntime"]}
    monkeypatch.setattr("nmsfree_benchmarks.questions.frontier.ENGINES", engines)
    monkeypatch.setattr(Run, "hurries", lambda run, what: True)
    assert {r["subject"]["model"] for r in ask("frontier", *words)["records"]} == {"free"}


def test_jitter_has_a_network_without_nms_beside_it_with(adopted: Path, tmp_path: Path) -> None:
    files = tuple(adopted / f"{name}.onnx" for name in NAMES)
    options = jitter.Options(
        files=files, threads=1, work=tmp_path, levels=(0, 6), tiles=1, passes=1
    )
    before = sorted(adopted.iterdir())
    results = ask_question(jitter, options)
    assert sorted(adopted.iterdir()) == before
    assert [(r.state.model, r.parameters["floor"]) for r in results.where(order="ramp")] == [
        ("free", 0.05), ("with_nms", 0.05), ("with_nms", 0.001)
    ]  # fmt: skip
    assert results.settings["iou"] == 0.7 and results.settings["input"] == [64, 64]
    with pytest.raises(InputError, match="1 files, expected one with NMS and one without"):
        ask_question(jitter, replace(options, files=files[:1]))


def test_the_price_of_nms_of_a_network_without_it_and_with_it(
    adopted: Path, tmp_path: Path
) -> None:
    files = tuple(adopted / f"{name}.onnx" for name in NAMES)
    plan = Plan(seconds=0, min_rounds=2)
    few = nms.Range((0, 6), (0.05, 0.001), (0.7,), (1,), 1, plan, plan)
    options = nms.Options(files=files, threads=1, work=tmp_path, range=few, tiles=1)
    results = ask_question(nms, options)
    wholes, free = (results.where(what=what) for what in ("with NMS", "NMS-free"))
    assert [(r.state.model, r.parameters["floor"]) for r in wholes] == [
        ("with_nms", floor) for _ in few.objects for floor in few.floors
    ]
    assert {r.state.model for r in free} == {"free"}
    assert all(0 < r.figures["kept"] <= r.figures["candidates"] for r in wholes)
    assert results.facts["nms_tail_ms_6_0.001"] > 0 and "NMS alone" in results.skipped
    assert any("in the call, 6 objects" in line for line in nms.conclusions(results))


def test_overhead_has_files_beside_their_resize(
    ask: Ask, left: Left, words: list[str], tmp_path: Path
) -> None:
    results, text = left(tmp_path / "out", ask("overhead", *words))
    assert {r.state.model for r in results.where(call="detector")} == {*NAMES}
    for meaning in (overhead.OVERHEAD, overhead.OVER_RESIZE):
        found = [r for r in results.ratios if r.meaning == meaning]
        assert len(found) == len(NAMES) * len(overhead.QUICK_SIZES)
    assert not results.where(call="decode") and "Detector / (resize + bare)" in text


def test_throughput_has_files(ask: Ask, left: Left, words: list[str], tmp_path: Path) -> None:
    results, text = left(tmp_path / "out", ask("throughput", *words))
    loads = len(throughput.QUICK_BATCHES) + len(throughput.QUICK_STREAMS) - 1
    assert [r.state.model for r in results.records] == [n for n in NAMES for _ in range(loads)]
    assert "free at most: " in text


@pytest.fixture
def broken(adopted: Path, tmp_path: Path) -> Path:
    """A file that answers scores above 1."""
    model = onnx.load(adopted / "free.onnx")
    node = next(n for n in model.graph.node if n.output[0] == "detection_scores")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(9), "nine"))
    node.op_type = "Mul"
    node.input.append("nine")
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("question", ["", "overhead", "throughput"])
def test_a_file_that_answers_nonsense_is_a_line_and_ends_nothing(
    question: str, ask: Ask, words: list[str], broken: Path
) -> None:
    content = ask(*filter(None, [question]), str(broken), words[0], *words[2:])
    assert {r["subject"]["model"] for r in content["records"]} == {"free"}
    (reason,) = (why for name, why in content["skipped"].items() if name.startswith("broken"))
    assert "expected 0 … 1" in reason


def test_what_is_no_file_of_the_contract_is_told(adopted: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"theirs: no 'nmsfree' metadata"):
        subjects_of([adopted / "theirs"], ENGINES["onnxruntime"], 1, tmp_path)
    with pytest.raises(InputError, match="two files are called free"):
        subjects_of([adopted / "free.onnx"] * 2, ENGINES["onnxruntime"], 1, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jiter"], "jiter is neither a file nor a question, expected one of: compare"),
        ([str(FOREIGN), "--size", "nano"], "--size chooses among the bundled models"),
        (["frontier", str(FOREIGN), "--model", "fcos_e2e_nano"], "--model chooses among"),
        (["nms", str(FOREIGN), "--large"], "--large chooses among"),
        (["nms", "--implementation=magic"], "'magic', expected one of: numpy, matrix, onnx"),
        (["roofline", "--onnx=a.onnx", "--model=fcos_e2e_nano"], "--onnx and --model are given"),
        (["roofline", "--device=openvino"], "peaks are measured on: cpu, cuda"),
        (["--device=tpu"], "device is 'tpu', the benchmark runs on one of: cpu"),
        (["--size=huge"], "size is 'huge', expected one of: nano"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, words, catch_exceptions=False)
