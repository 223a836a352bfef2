"""Claims about GPUs: their logic, on engines that run here; on a GPU, `nmsfree bench gpu-check`."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
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
from nmsfree_benchmarks.questions.gpu_check import claims as gpu_claims
from nmsfree_benchmarks.questions.gpu_check import question as gpu_check
from nmsfree_benchmarks.questions.gpu_check.claims import (
    BY_KEY,
    CannotTry,
    Claim,
    closing_frees,
    memory_is_flat,
    replays_graph,
    run_marked_tests,
    same_answers,
    same_bytes,
    scenes,
    threads_agree,
)
from nmsfree_benchmarks.questions.gpu_check.question import (
    Finding,
    choose,
    outcome_of,
    prepare,
    try_claim,
)
from nmsfree_export.export import ExportOptions
from nmsfree_training.weights.checkpoint import Checkpoint

WEIGHTS = Path(__file__).parents[2] / "weights"
NO_GPU = pytest.mark.skipif(not find_gpus().problem, reason="this machine has a GPU")
HEAD = "import pytest\n"
PASSES = "@pytest.mark.gpu\ndef test_fine(): assert True\n"
SKIPS = "@pytest.mark.gpu\ndef test_left_out(): pytest.skip('no builder for SM 9.0')\n"
FAILS = "@pytest.mark.gpu\ndef test_broken(): assert 1 == 2\n"
BREAKS = "@pytest.fixture\ndef gone(): 1 / 0\n@pytest.mark.gpu\ndef test_gone(gone): pass\n"
OTHER = "def test_not_for_gpus(): assert 1 == 2\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, exported: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "work"

    def export(checkpoint: Checkpoint, out: Path, options: ExportOptions) -> None:
        """Take the same file, if another test has exported it."""
        weights = WEIGHTS / f"{checkpoint.model.name}.safetensors"
        shutil.copy(exported(weights, precision=options.precision), out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmsfree_export.export.export_onnx", export)
        prepare(WEIGHTS, folder)
    return folder


@pytest.fixture
def backend(folder: Path) -> Iterator[OnnxRuntimeBackend]:
    opened = OnnxRuntimeBackend(folder / "fcos_e2e_nano.onnx")
    yield opened
    opened.close()


def changed(
    backend: OnnxRuntimeBackend,
    change: Callable[[RawDetections], RawDetections],
    description: str = "",
) -> CallableBackend:
    def run(images: NDArray[np.uint8]) -> RawDetections:
        return change(backend.run(images))

    return CallableBackend(run, backend.spec, description or "callable")


def lower(raw: RawDetections) -> RawDetections:
    return raw._replace(detection_scores=raw.detection_scores * np.float32(0.999))


@pytest.mark.slow
def test_an_engine_that_agrees_passes_one_that_errs_fails(
    folder: Path, backend: OnnxRuntimeBackend
) -> None:
    for name in ("fcos_e2e_nano", "fcos_e2e_nano.fp16", "fcos_rt_nano"):
        file = folder / f"{name}.onnx"
        text = same_answers(file, OpenVinoBackend(file))
        assert text.startswith("OpenVINO") and " 0 unmatched" in text
    with pytest.raises(GateError, match=r"largest difference: score .* \(allowed 1e-04\)"):
        same_answers(folder / "fcos_e2e_nano.onnx", changed(backend, lower))


def test_threads_that_disturb_each_other_fail(backend: OnnxRuntimeBackend) -> None:
    assert threads_agree(backend, 3, 4) == "3 threads × 4 pictures, bit for bit the same"
    calls = count()
    drifting = changed(backend, lambda raw: lower(raw) if next(calls) > 5 else raw)
    with pytest.raises(GateError, match=r"^10 of 12 results differ from those of one thread$"):
        threads_agree(drifting, 3, 4)
    stuck = backend.run(scenes(backend, 1)[0])
    with pytest.raises(GateError, match="all pictures gave one answer"):
        threads_agree(changed(backend, lambda raw: stuck), 2, 3)


@pytest.mark.parametrize("closes", [False, True])
def test_memory_that_goes_on_growing_fails(backend: OnnxRuntimeBackend, closes: bool) -> None:
    def grown(used: Iterator[float | None]) -> str:
        if closes:
            own = changed(backend, lambda raw: raw)
            return closing_frees(lambda: own, lambda: next(used), times=3)
        return memory_is_flat(backend, lambda: next(used), runs=3)

    what = "3 engines were opened, run and closed" if closes else "3 runs"
    assert grown(iter([100.0, 100.0])) == f"+0.0 MiB after {what}"
    others = iter([100.0, 300.0, 300.0, 301.0])  # another program started meanwhile
    assert grown(others) == f"+1.0 MiB after {what}"
    with pytest.raises(GateError, match=rf"^\+8\.5 MiB after {what}, 3 times, at most 8 allowed$"):
        grown(count(100.0, 8.5))
    with pytest.raises(CannotTry, match="the driver does not tell"):
        grown(iter([None]))


def test_a_graph_that_was_not_captured_or_errs_fails(backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(GateError, match=r"^no CUDA graph was captured: ONNX Runtime"):
        replays_graph(backend)
    captured = changed(backend, lambda raw: raw, "engine on a GPU, CUDA graph")
    assert replays_graph(captured).endswith("4 pictures, replays bit for bit the same")
    runs = count()
    drifting = changed(
        backend, lambda raw: raw if next(runs) < 4 else lower(raw), "a GPU, CUDA graph"
    )
    with pytest.raises(GateError, match=r"^a replay by the first run: detection_scores differs$"):
        replays_graph(drifting)
    raw = backend.run(scenes(backend, 1)[0])
    assert same_bytes(raw, raw, "a by b") == "a by b: bit for bit the same"


def marked_tests(folder: Path, *tests: str) -> str:
    (folder / "t").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    (folder / "t" / "test_it.py").write_text(HEAD + OTHER + "".join(tests))
    return run_marked_tests(folder, folder / "record.xml", ("t", "absent"))


def test_marked_tests_are_counted_and_what_was_skipped_is_told(tmp_path: Path) -> None:
    told = "1 passed, 1 skipped (no builder for SM 9.0)"
    assert marked_tests(tmp_path, PASSES, SKIPS) == told


@pytest.mark.parametrize(
    ("tests", "error", "text"),
    [
        ([SKIPS], CannotTry, r"^none of 1 tests ran \(no builder for SM 9.0\)$"),
        ([], CannotTry, r"^none of 0 tests ran$"),
        ([PASSES, FAILS, BREAKS], GateError, r"^2 of 3 failed: test_broken, test_gone$"),
        (["this is not Python\n"], GateError, r"1 of 1 failed: t.test_it|did not get as far"),
    ],
)
def test_marked_tests_without_success(
    tmp_path: Path, tests: list[str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        marked_tests(tmp_path, *tests)


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

    assert outcome_of(Claim("own", "something", check), Path()) == (outcome, str(error))
    assert outcome_of(Claim("own", "something", lambda _: "seen"), Path()) == ("pass", "seen")


@NO_GPU
def test_every_claim_says_why_it_fails_without_a_gpu(folder: Path) -> None:
    for own in gpu_claims.CLAIMS:
        outcome, detail = outcome_of(own, folder)
        assert outcome in ("fail", "skip"), own.key
        assert detail and "\n" not in detail
        assert "driver" in detail or "pip install" in detail, (own.key, detail)


def test_an_onnxruntime_for_processors_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_claims, "the_gpu", lambda: "GPU of a test")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    for key in ("onnxruntime-cuda", "onnxruntime-cuda-fp16", "onnxruntime-cuda-nms"):
        outcome, detail = outcome_of(BY_KEY[key], folder)
        assert outcome == "skip" and 'pip install "nmsfree[cuda]"' in detail


def test_the_plugin_is_tried_with_tf32_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr(gpu_claims, "the_gpu", lambda: "GPU of a test")
    seen = []

    def open_backend(file: Path, device: str) -> Any:
        seen.append((device, os.environ.get("NVIDIA_TF32_OVERRIDE")))
        raise CannotTry("far enough")

    monkeypatch.setattr(gpu_claims, "open_backend", open_backend)
    assert outcome_of(BY_KEY["onnxruntime-tensorrt-rtx"], folder)[0] == "skip"
    assert seen == [("tensorrt-rtx", "0")]


@pytest.mark.slow
@NO_GPU
@pytest.mark.parametrize(("capability", "outcome"), [((9, 0), "skip"), ((8, 9), "fail")])
def test_the_library_itself_is_asked_about_the_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], outcome: str
) -> None:
    """It objects to every engine where there is no driver; its words are the answer.

    Of a GPU that it does not build for nothing is claimed.
    """
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(gpu_claims, "the_gpu", lambda: Gpu("GPU of a test", capability, 0))
    found, detail = outcome_of(BY_KEY["accepted"], folder)
    if detail.startswith("tensorrt-rtx") and "refuses" not in detail:
        assert found == "fail"  # a library that does not start at all is a failure
    else:
        assert (found, "refuses its engines on GPU of a test" in detail) == (outcome, True)
    assert (folder / "everywhere.engine").stat().st_size > 1e6


def test_a_claim_is_tried_in_a_process_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = try_claim(BY_KEY["driver"], folder)
    assert found.seconds > 0
    if find_gpus().problem:
        assert found.outcome == "fail" and found.detail.startswith("no NVIDIA driver was found")
    crashing = ["/bin/sh", "-c", "kill -SEGV $$"]
    monkeypatch.setattr(gpu_check, "module_command", lambda module, *arguments: crashing)
    found = try_claim(BY_KEY["driver"], folder)
    assert (found.outcome, found.detail) == ("fail", "crashed (SIGSEGV)")


@NO_GPU
def test_without_a_gpu_the_command_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["gpu-check", "--work", str(tmp_path)])
    assert isinstance(result.exception, EngineError) and result.exception.exit_status == 3
    assert str(result.exception).startswith("no NVIDIA driver was found")
    assert not list(tmp_path.iterdir())


def run(monkeypatch: pytest.MonkeyPatch, work: Path, *words: str, outcomes: list[str]) -> Any:
    """Run the command as on a machine with a GPU, whose claims end as told."""
    ends = iter(outcomes)

    def try_one(own: Claim, folder: Path) -> Finding:
        return Finding(own.key, own.text, next(ends), "seen [so]", 1.25)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_check, "the_gpu", lambda: "GPU of a test")
    monkeypatch.setattr(gpu_check, "prepare", lambda weights, folder: folder.mkdir())
    monkeypatch.setattr(gpu_check, "try_claim", try_one)
    only = ["--only", "engine", "--only", "driver"]
    return CliRunner().invoke(app, ["gpu-check", "--work", str(work), *only, *words])


def test_a_line_for_each_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work = tmp_path / "work"
    result = run(monkeypatch, work, "--json", "-", outcomes=["pass", "skip"])
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert "PASS driver: there is an NVIDIA GPU with a driver that answers" in lines
    assert any(line.startswith("SKIP engine: a TensorRT engine built for") for line in lines)
    assert "     seen [so] (1.2 s)" in lines and lines[-1] == "1 passed, 0 failed, 1 skipped"
    report = json.loads((work / "gpu-check.json").read_text(encoding="utf-8"))
    assert report == json.loads(result.stdout)
    assert [f["outcome"] for f in report["findings"]] == ["pass", "skip"]
    assert [set(report), *map(set, report["findings"])] == [
        {"gpu", "findings"},
        *[{"key", "text", "outcome", "detail", "seconds"}] * 2,
    ]


def test_a_failure_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, tmp_path / "work", outcomes=["pass", "fail"])
    assert isinstance(result.exception, GateError) and result.exception.exit_status == 1
    assert str(result.exception) == "1 of 2 claims failed: engine"
    assert (tmp_path / "work" / "gpu-check.json").is_file()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^claim 'cuda' is unknown, expected one of: driver, onnx"
    ):
        choose(["cuda"])
    assert [c.key for c in choose(["threads", "driver"])] == ["driver", "threads"]
    assert len(choose(())) == len(BY_KEY) == 19
    with pytest.raises(InputError, match=r"no fcos_e2e_nano\.safetensors in it: give the folder"):
        prepare(tmp_path, tmp_path / "work")
