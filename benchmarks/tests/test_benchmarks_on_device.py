"""The questions on another device than the processor: what is said of it, and what is refused.

OpenVINO really runs. No machine of these tests has a GPU: a native engine is the runtime's own
backend over its fakes, which compute in ONNX Runtime.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks_sample import check_written, results_of
from typer.testing import CliRunner

from nmsfree.backends import Backend, OnnxRuntimeBackend
from nmsfree.backends.onnxruntime.gpu import TF32_VARIABLE
from nmsfree.backends.options import Options as EngineOptions
from nmsfree.backends.tensorrt.backend import TensorRtBackend
from nmsfree.errors import EngineError, InputError, NmsfreeError
from nmsfree.machine import Gpu, Gpus, find_gpus, sha256
from nmsfree.testing.cuda import FakeCuda
from nmsfree.testing.tensorrt import fake_vendor, write_fake_engine
from nmsfree_benchmarks.cli import app, find_question
from nmsfree_benchmarks.harness import engines
from nmsfree_benchmarks.harness.engines import Engine, ran_in, use_device
from nmsfree_benchmarks.harness.plots import titled
from nmsfree_benchmarks.harness.records import Results
from nmsfree_benchmarks.harness.run import ask as ask_question
from nmsfree_benchmarks.harness.run import lines
from nmsfree_benchmarks.harness.timer import Plan
from nmsfree_benchmarks.questions import jitter as JITTER
from nmsfree_benchmarks.questions.jitter import Options as JitterOptions
from nmsfree_benchmarks.questions.nms import question as QUESTION
from nmsfree_benchmarks.questions.nms.question import Options, Range
from nmsfree_benchmarks.report.compare import compare_runs as compare

WEIGHTS = Path(__file__).parents[2] / "weights"
QUESTIONS = ("jitter", "nms", "overhead", "throughput")
NO_GPU = pytest.mark.skipif(not find_gpus().problem, reason="this machine has a GPU")
PLAN = Plan(seconds=0, min_rounds=6, pause=0)
TINY = Range((0, 20), (0.05, 0.001), (0.6,), (1,), scenes=2, alone=PLAN, call=PLAN)


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for a GPU switches TF32 off for the whole process; it is what it was afterwards."""
    monkeypatch.setenv(TF32_VARIABLE, "0")


def refused(question: str, folder: Path, *options: str) -> NmsfreeError:
    """What a question is refused with; it has made nothing by then."""
    paths = [f"--{name}={folder / name}" for name in ("weights", "work", "out")]
    with pytest.raises(NmsfreeError) as error:
        CliRunner().invoke(app, [question, *paths, *options], catch_exceptions=False)
    assert not list(folder.iterdir())
    return error.value


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_unknown_device_is_told(question: str, tmp_path: Path) -> None:
    error = refused(question, tmp_path, "--device=tensrt")
    assert isinstance(error, InputError)
    assert str(error) == (
        "device is 'tensrt', this benchmark runs on: cpu, openvino, cuda, tensorrt-rtx; cuda:1 is "
        "the second GPU; did you mean tensorrt-rtx?"
    )


@NO_GPU
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("device", ["cuda", "tensorrt-rtx:1"])
def test_without_a_gpu_nothing_is_begun(question: str, device: str, tmp_path: Path) -> None:
    error = refused(question, tmp_path, f"--device={device}")
    assert isinstance(error, EngineError)
    assert str(error) == find_gpus().problem


def test_a_device_has_one_name() -> None:
    assert [use_device(text) for text in ("cpu", "openvino", "openvino:CPU")] == [
        "cpu",
        "openvino",
        "openvino",
    ]
    for text in ("openvino:GPU", "tensorrt", "cpu:0"):
        with pytest.raises(InputError, match="this benchmark runs on"):
            use_device(text)


def test_a_gpu_that_is_not_there_or_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TF32_VARIABLE)
    old = Gpus((Gpu("Pascal", (6, 1), 8 << 30),), "13.1", "")
    monkeypatch.setattr(engines, "find_gpus", lambda: old)
    with pytest.raises(EngineError) as error:
        use_device("cuda:1")
    assert str(error.value) == (
        "device is 'cuda:1', but the NVIDIA GPUs here are: 0 = Pascal (compute capability 6.1)"
    )
    assert os.environ[TF32_VARIABLE] == "0"
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(InputError, match=r"^target is SM 6\.1, the builder can do "):
        use_device("tensorrt-rtx")


@pytest.fixture
def asked(ask: Callable[..., dict[str, Any]], options: list[str]) -> Callable[..., Results]:
    """Return a function that asks a question on tiny networks, and reads what it leaves."""
    return lambda question, *more: Results.from_json(ask(question, *options, *more))


def said_of(results: Results) -> list[str]:
    return list(find_question(results.kind).conclusions(results))


def says_openvino(results: Results) -> None:
    """Every place that tells where a run was made, tells OpenVINO."""
    assert "--device openvino" in results.command
    assert results.environment["device"] == "openvino"
    subjects = [record.subject for record in results.records if record.subject is not None]
    assert subjects and {subject.engine for subject in subjects} == {"openvino"}
    for subject in subjects:
        assert subject.provider.startswith("OpenVINO ") and subject.precision == "fp32"
        assert (subject.tf32, subject.cuda_graph, subject.transfers) == (None, None, "none")
    said = [*said_of(results), *find_question(results.kind).notes(results)]
    assert any(line.startswith("Run in OpenVINO ") for line in said)
    assert not any("ONNX Runtime" in line for line in said)


def test_overhead_on_openvino_is_that_of_its_own_call(asked: Callable[..., Results]) -> None:
    found = asked("overhead", "--device=openvino")
    says_openvino(found)
    assert found.settings["device"] == "openvino"
    assert [r.to for r in found.ratios] == [f"{r.of} bare" for r in found.ratios]
    # What was promised of ONNX Runtime is not asked of others.
    assert [target["unit"] for target in found.facts["targets"]] == ["ms"]
    said = said_of(found)
    assert said[0].startswith("fcos_e2e_nano, 640×480, OpenVINO: Detector(image) takes ")
    settings = {name: value for name, value in found.settings.items() if name != "device"}
    usual = replace(found, settings=settings, environment=found.environment | {"device": "cpu"})
    for by_ratios in (False, True):  # ratios carry over between machines, not between engines
        with pytest.raises(InputError, match=r"device is .* before and 'openvino' after"):
            compare(usual, found, by_ratios=by_ratios)
    compare(found, found)


def test_throughput_on_openvino_has_a_file_for_every_batch(
    asked: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmsfree_benchmarks.questions.throughput.QUICK_BATCHES", (1, 2))
    found = asked("throughput", "--device=openvino:CPU", "--threads=2")
    says_openvino(found)
    loads = [(r.parameters["batch"], r.parameters["streams"]) for r in found.records]
    assert sorted(loads) == sorted([(1, 1), (2, 1), (1, 2), (1, 4)] * 2)
    assert {r.parameters["threads"] for r in found.records} == {1, 2}
    files = {(r.parameters["batch"], r.subject.sha256) for r in found.records if r.subject}
    assert sorted(batch for batch, _ in files) == [1, 2]


def nms_on(device: str, work: Path) -> Results:
    options = Options(weights=WEIGHTS, work=work, threads=1, range=TINY, tiles=1, device=device)
    return ask_question(QUESTION, options)


@pytest.fixture(scope="module")
def openvino(work: Path) -> Results:
    return nms_on("openvino", work)


def test_nms_on_openvino_is_whole_calls(openvino: Results) -> None:
    says_openvino(openvino)
    what = [r.parameters["what"] for r in openvino.records]
    assert sorted(what) == sorted(["NMS-free", "NMS-free, filter taken out"] * 2 + ["with NMS"] * 4)
    assert list(openvino.skipped) == ["NMS alone", "the graph without its NMS, and its NMS alone"]
    assert "OpenVINO runs whole files" in openvino.skipped.values()
    for record in openvino.records:
        assert len(record.times) == PLAN.min_rounds and record.subject is not None
        assert record.subject.batch == 1 and record.subject.size == (256, 256)
    # It finds what ONNX Runtime finds: the same candidates enter NMS.
    crowded = openvino.record("call with NMS, objects 20, floor 0.05").figures
    assert 14 <= crowded["found"] <= 30 and crowded["kept"] < crowded["candidates"]


def test_nothing_is_said_of_what_was_not_measured(openvino: Results) -> None:
    assert not [fact for fact in openvino.facts if "nms_share" in fact or "agree" in fact]
    said = " ".join(lines(QUESTION, openvino)[:-2])
    for absent in ("implementations", "tail", "timed by itself", "ONNX Runtime"):
        assert absent not in said
    assert "is not told apart here" in said
    (calls,) = QUESTION.tables(openvino)
    assert calls.header[4:6] == ("with NMS", "NMS-free")
    assert {len(row) for row in calls.rows} == {len(calls.header)}


def test_implementations_are_refused_elsewhere() -> None:
    options = Options(
        weights=WEIGHTS, work=Path("none"), threads=1, device="openvino", implementation=("onnx",)
    )
    with pytest.raises(InputError) as error:
        ask_question(QUESTION, options)
    assert str(error.value) == (
        "device is 'openvino', but the implementations of NMS run on the processor: leave "
        "--implementation or --device out"
    )


def test_jitter_on_openvino(work: Path) -> None:
    options = JitterOptions(
        weights=WEIGHTS, work=work, threads=1, passes=1, levels=(0, 20), tiles=1, side=256,
        device="openvino",
    )  # fmt: skip
    found = ask_question(JITTER, options)
    says_openvino(found)
    assert {r.subject.batch for r in found.records if r.subject} == {1}


def fake_engine(engine_: Engine, file: Path, threads: int) -> Backend:
    """Open a file as a native engine over the fakes, which computes in ONNX Runtime."""
    whole, cuda = OnnxRuntimeBackend(file, options=EngineOptions(threads=threads)), FakeCuda()
    engine, digest = file.with_suffix(".engine"), sha256(file)
    write_fake_engine(engine, whole.spec, batch=(1, 1, 1), onnx_sha256=digest)
    vendor = fake_vendor(cuda, lambda images: whole.run(images)._asdict())
    return TensorRtBackend(
        engine, engine_.device, EngineOptions(rebuild=False), cuda=cuda, vendor=vendor
    )


@pytest.fixture(scope="module")
def native(work: Path) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "open", fake_engine)
        return nms_on("tensorrt-rtx", work)


def test_a_native_engine_has_nms_in_plain_operators(native: Results) -> None:
    for record in native.records:
        subject = record.subject
        assert subject is not None and subject.engine == "tensorrt_rtx"
        assert (subject.tf32, subject.transfers) == (False, "in and out")
        steps = None if subject.nms is None else subject.nms["steps"]
        assert steps == (20 if record.parameters["what"] == "with NMS" else None)
    record = native.record("call with NMS, objects 20, floor 0.001")
    assert record.parts == ("preprocess", "network", "postprocess")
    assert record.figures["found"] > 13


def test_a_native_engine_is_put_into_words_and_pictures(
    native: Results, openvino: Results, tmp_path: Path
) -> None:
    assert any(line.startswith("Run in tensorrt-rtx ") for line in lines(QUESTION, native))
    assert native.skipped["the graph without its NMS, and its NMS alone"] == (
        "TensorRT-RTX runs whole files"
    )
    (calls,) = QUESTION.tables(native)
    assert calls.header[4:6] == ("with NMS", "NMS-free")
    assert {len(row) for row in calls.rows} == {len(calls.header)}
    for results in (native, openvino):
        check_written(QUESTION, results, tmp_path / results.environment["device"])
    with pytest.raises(InputError, match="device is 'openvino' before and 'tensorrt-rtx' after"):
        compare(openvino, native)


def test_titles_name_what_is_not_usual() -> None:
    usual = results_of()
    assert titled("Speed", usual) == "Speed" and ran_in(usual) == []
    gpu = results_of(environment={**usual.environment, "device": "cuda:1", "gpu": "GeForce"})
    assert titled("Speed", gpu) == "Speed, ONNX Runtime CUDA on GeForce"
    assert ran_in(gpu) == ["Run in ONNX Runtime 1.31.0 CPU, threads 2."]  # what the records tell
