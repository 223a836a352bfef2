"""Claims about GPUs: their logic, on engines that run here; on a GPU, `nmsfree bench gpu-check`."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from nmsfree.backends import CallableBackend, OnnxRuntimeBackend, OpenVinoBackend, RawDetections
from nmsfree.errors import EngineError, GateError, InputError, MissingExtraError
from nmsfree.machine import Gpu, find_gpus
from nmsfree_benchmarks.cli import app
from nmsfree_benchmarks.gpu_check import check as gpu_check
from nmsfree_benchmarks.gpu_check import claim_list as gpu_claim_list
from nmsfree_benchmarks.gpu_check import claims as gpu_claims
from nmsfree_benchmarks.gpu_check.check import Finding, outcome_of, prepare, try_claim
from nmsfree_benchmarks.gpu_check.checks import (
    closing_frees,
    memory_is_flat,
    replays_graph,
    same_answers,
    same_bytes,
    scenes,
    threads_agree,
)
from nmsfree_benchmarks.gpu_check.claims import CannotTry, Claim
from nmsfree_benchmarks.gpu_check.cli import choose, summary

WEIGHTS = Path(__file__).parents[2] / "weights"
NO_GPU = pytest.mark.skipif(not find_gpus().problem, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "work"
    prepare(WEIGHTS, folder)
    return folder


@pytest.fixture
def backend(folder: Path) -> Iterator[OnnxRuntimeBackend]:
    opened = OnnxRuntimeBackend(folder / "fcos_e2e_nano.onnx", threads=1)
    yield opened
    opened.close()


def changed(
    backend: OnnxRuntimeBackend, change: Callable[[RawDetections], RawDetections]
) -> CallableBackend:
    def run(images: NDArray[np.uint8]) -> RawDetections:
        return change(backend.run(images))

    return CallableBackend(run, backend.spec)


def lower(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_scores=raw.detection_scores * np.float32(0.999))


def test_the_files_are_made(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "fcos_e2e_nano.onnx",
        "fcos_e2e_nano.fp16.onnx",
        "fcos_rt_nano.onnx",
        "fcos_e2e_nano.safetensors",
    }


def test_an_engine_that_agrees_passes(folder: Path) -> None:
    for name in ("fcos_e2e_nano", "fcos_rt_nano"):
        file = folder / f"{name}.onnx"
        text = same_answers(file, OpenVinoBackend(file, threads=1))
        assert text.startswith("OpenVINO") and " 0 unmatched" in text


def test_an_engine_that_errs_fails(folder: Path, backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(GateError, match=r"largest difference: score .* \(allowed 1e-04\)"):
        same_answers(folder / "fcos_e2e_nano.onnx", changed(backend, lower))


def test_threads_that_agree_pass(backend: OnnxRuntimeBackend) -> None:
    assert threads_agree(backend, 3, 4) == "3 threads × 4 pictures, bit for bit the same"


def test_threads_that_disturb_each_other_fail(backend: OnnxRuntimeBackend) -> None:
    calls = count()
    drifting = changed(backend, lambda raw: lower(raw) if next(calls) > 5 else raw)
    with pytest.raises(GateError, match=r"^10 of 12 results differ from those of one thread$"):
        threads_agree(drifting, 3, 4)
    stuck = backend.run(scenes(backend, 1)[0])
    with pytest.raises(GateError, match="all pictures gave one answer"):
        threads_agree(changed(backend, lambda raw: stuck), 2, 3)


def test_memory_that_grows_fails(backend: OnnxRuntimeBackend) -> None:
    assert memory_is_flat(backend, lambda: 100.0, runs=3) == "+0.0 MiB after 3 runs"
    steps = count(100.0, 8.5)
    with pytest.raises(
        GateError, match=r"^memory grew by 8\.5 MiB in 3 runs, 3 times, at most 8 allowed$"
    ):
        memory_is_flat(backend, lambda: next(steps), runs=3)
    others = iter([100.0, 300.0, 300.0, 301.0])  # another program started meanwhile
    assert memory_is_flat(backend, lambda: next(others), runs=3) == "+1.0 MiB after 3 runs"
    with pytest.raises(CannotTry, match="the driver does not tell"):
        memory_is_flat(backend, lambda: None, runs=3)


def test_memory_that_stays_after_closing_fails(folder: Path) -> None:
    def opened() -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(folder / "fcos_e2e_nano.onnx", threads=1)

    seen = "+0.0 MiB after 2 engines were opened, run and closed"
    assert closing_frees(opened, lambda: 100.0, times=2) == seen
    steps = count(100.0, 8.5)
    with pytest.raises(GateError, match=r"^8\.5 MiB are left after 2 engines were closed, 3"):
        closing_frees(opened, lambda: next(steps), times=2)
    others = iter([100.0, 300.0, 300.0, 301.0])  # another program started meanwhile
    assert closing_frees(opened, lambda: next(others), times=2).startswith("+1.0 MiB")
    with pytest.raises(CannotTry, match="the driver does not tell"):
        closing_frees(opened, lambda: None, times=2)


def test_a_graph_that_was_not_captured_or_errs_fails(backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(GateError, match=r"^no CUDA graph was captured: ONNX Runtime"):
        replays_graph(backend)
    captured = changed(backend, lambda raw: raw)
    captured.description = "engine on a GPU, CUDA graph"
    assert replays_graph(captured).endswith("4 pictures, replays bit for bit the same")
    runs = count()
    drifting = changed(backend, lambda raw: raw if next(runs) < 4 else lower(raw))
    drifting.description = "engine on a GPU, CUDA graph"
    with pytest.raises(GateError, match="a replay by the first run: detection_scores differs"):
        replays_graph(drifting)


def test_bytes_are_compared_by_name(backend: OnnxRuntimeBackend) -> None:
    raw = backend.run(scenes(backend, 1)[0])
    assert same_bytes(raw, raw, "a by b") == "a by b: bit for bit the same"
    with pytest.raises(GateError, match=r"^a by b: detection_scores differs$"):
        same_bytes(raw, lower(raw), "a by b")


def claim(check: Callable[[Path], str]) -> Claim:
    return Claim("own", "something", check)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CannotTry("not here"), "skip"),
        (MissingExtraError("it", "nmsfree[x]"), "skip"),
        (GateError("wrong"), "fail"),
        (EngineError("broken"), "fail"),
        (InputError("bad"), "fail"),
    ],
)
def test_errors_become_outcomes(error: Exception, outcome: str) -> None:
    def check(folder: Path) -> str:
        raise error

    assert outcome_of(claim(check), Path()) == (outcome, str(error))
    assert outcome_of(claim(lambda folder: "seen"), Path()) == ("pass", "seen")


@NO_GPU
def test_every_claim_says_why_it_fails_without_a_gpu(folder: Path) -> None:
    for own in gpu_claim_list.CLAIMS:
        outcome, detail = outcome_of(own, folder)
        assert outcome in ("fail", "skip"), own.key
        assert detail and "\n" not in detail
        assert "driver" in detail or "pip install" in detail, (own.key, detail)


def test_an_onnxruntime_for_processors_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_claim_list, "the_gpu", lambda: "GPU of a test")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    for key in ("onnxruntime-cuda", "onnxruntime-cuda-fp16", "onnxruntime-cuda-nms"):
        outcome, detail = outcome_of(gpu_claim_list.BY_KEY[key], folder)
        assert outcome == "skip" and 'pip install "nmsfree[cuda]"' in detail


def test_the_plugin_is_tried_with_tf32_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr(gpu_claim_list, "the_gpu", lambda: "GPU of a test")
    seen = []

    def on(device: str, file: Path) -> Any:
        seen.append(os.environ.get("NVIDIA_TF32_OVERRIDE"))
        raise CannotTry("far enough")

    monkeypatch.setattr(gpu_claim_list, "on", on)
    assert outcome_of(gpu_claim_list.BY_KEY["onnxruntime-tensorrt-rtx"], folder)[0] == "skip"
    assert seen == ["0"]


@NO_GPU
@pytest.mark.parametrize(("capability", "outcome"), [((9, 0), "skip"), ((8, 9), "fail")])
def test_the_library_itself_is_asked_about_the_gpu(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    outcome: str,
) -> None:
    """It objects to every engine where there is no driver; its words are the answer.

    Of a GPU that it does not build for nothing is claimed.
    """
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(gpu_claim_list, "the_gpu", lambda: Gpu("GPU of a test", capability, 0))
    found, detail = outcome_of(gpu_claim_list.BY_KEY["accepted"], folder)
    if detail.startswith("tensorrt-rtx") and "refuses" not in detail:
        assert found == "fail"  # a library that does not start at all is a failure
    else:
        assert (found, "refuses its engines on GPU of a test" in detail) == (outcome, True)
    assert (folder / "everywhere.engine").stat().st_size > 1e6


def test_a_claim_is_tried_in_a_process_of_its_own(folder: Path) -> None:
    found = try_claim(gpu_claim_list.BY_KEY["driver"], folder)
    assert found.outcome == "fail" and found.detail.startswith("no NVIDIA driver was found")
    assert found.seconds > 0


def test_a_crash_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(module: str, *arguments: str) -> list[str]:
        return ["/bin/sh", "-c", "kill -SEGV $$"]

    monkeypatch.setattr(gpu_check, "module_command", command)
    found = try_claim(claim(lambda folder: ""), tmp_path)
    assert (found.outcome, found.detail) == ("fail", "crashed (SIGSEGV)")


@NO_GPU
def test_without_a_gpu_the_command_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["gpu-check", "--work", str(tmp_path)])
    assert isinstance(result.exception, EngineError) and result.exception.exit_status == 3
    assert str(result.exception).startswith("no NVIDIA driver was found")
    assert not list(tmp_path.iterdir())


def run(monkeypatch: pytest.MonkeyPatch, work: Path, *outcomes: str) -> Any:
    """Run the command as on a machine with a GPU, whose claims end as told."""
    ends = iter(outcomes)

    def try_one(own: Claim, folder: Path, limit: float = 0) -> Finding:
        return Finding(own.key, own.text, next(ends), "seen [so]", 1.25)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_claims, "the_gpu", lambda: "GPU of a test")
    monkeypatch.setattr(gpu_check, "prepare", lambda weights, folder: folder.mkdir())
    monkeypatch.setattr(gpu_check, "try_claim", try_one)
    words = ["gpu-check", "--work", str(work), "--only", "engine", "--only", "driver"]
    return CliRunner().invoke(app, words)


def test_a_line_for_each_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, tmp_path / "work", "pass", "skip")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "PASS driver: there is an NVIDIA GPU with a driver that answers" in lines
    assert any(line.startswith("SKIP engine: a TensorRT engine built for") for line in lines)
    assert "     seen [so] (1.2 s)" in lines and lines[-1] == "1 passed, 0 failed, 1 skipped"
    report = json.loads((tmp_path / "work" / "gpu-check.json").read_text(encoding="utf-8"))
    assert [f["outcome"] for f in report["findings"]] == ["pass", "skip"]
    assert [set(report), *map(set, report["findings"])] == [
        {"gpu", "findings"},
        *[{"key", "text", "outcome", "detail", "seconds"}] * 2,
    ]


def test_a_failure_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, tmp_path / "work", "pass", "fail")
    assert isinstance(result.exception, GateError) and result.exception.exit_status == 1
    assert str(result.exception) == "1 of 2 claims failed: engine"
    assert (tmp_path / "work" / "gpu-check.json").is_file()


def test_unknown_claims_are_named() -> None:
    with pytest.raises(
        InputError, match=r"^claim 'cuda' is unknown, expected one of: driver, onnx"
    ):
        choose(["cuda"])
    assert [c.key for c in choose(["threads", "driver"])] == ["driver", "threads"]
    assert len(choose(None)) == len({c.key for c in gpu_claim_list.CLAIMS}) == 19


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no fcos_e2e_nano\.safetensors in it: give the folder"):
        prepare(tmp_path, tmp_path / "work")


def test_outcomes_are_counted() -> None:
    one = Finding("a", "b", "pass", "", 0.0)
    assert summary([one, replace(one, outcome="skip"), one]) == "2 passed, 0 failed, 1 skipped"
