"""`nmsfree doctor`: what really runs, what is missing and the line that brings it, no crash."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from nmsfree import EngineError
from nmsfree.cli import doctor as doctor_cli
from nmsfree.cli import main as cli
from nmsfree.cli.doctor import print_report
from nmsfree.doctor import probe as doctor_probe
from nmsfree.doctor import report as doctor
from nmsfree.doctor import system as doctor_system
from nmsfree.doctor.probe import PROBES, Outcome, ask_child, look, module_command
from nmsfree.doctor.report import ENGINES, Check, Engine, Report, check_engine, find_conflicts
from nmsfree.doctor.system import System
from nmsfree.machine import Gpu, Gpus

NO_DRIVER = Gpus((), None, "no NVIDIA driver was found (libcuda.so.1)")
BY_PROBE = {engine.probe: engine for engine in ENGINES}


def child(code: str, limit: float = 60) -> tuple[Any, str]:
    return ask_child([sys.executable, "-c", code], limit)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import sys; sys.exit(3)", "crashed (status 3)"),
        ("print('[1]')", "crashed (status 0)"),
        ("import sys; sys.exit('a\\nno symbol\\n')", "crashed (status 1): no symbol"),
        ("print('{}'); raise SystemExit(9)", "crashed (status 9)"),
    ],
)  # fmt: skip
def test_a_child_that_fails(code: str, problem: str) -> None:
    assert child(code) == (None, problem)
    assert child("print('noise'); print('{\"a\": 1}')") == ({"a": 1}, ""), "its last line"


@pytest.mark.skipif(os.name != "posix", reason="ends a process by a signal")
def test_a_child_that_crashes() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    value, problem = child(code)
    # With PYTHONFAULTHANDLER set, the place follows.
    assert value is None and problem is not None and problem.startswith("crashed (SIGSEGV)")


def test_a_child_that_hangs() -> None:
    assert child("import time; time.sleep(60)", 0.5) == (None, "gave no answer within 0.5 seconds")


def test_the_processor_really_runs() -> None:
    """The real child process with the real engine."""
    text = f"ONNX Runtime {ort.__version__} CPU, threads automatic"
    assert look("onnxruntime-cpu") == Outcome(True, text)


def test_every_engine_can_be_tried() -> None:
    assert set(BY_PROBE) == set(PROBES)
    assert len(ENGINES) == len(PROBES)


def test_a_vendor_that_crashes_does_not_take_doctor_down(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = [sys.executable, "-c", "import os; os.abort()"]
    monkeypatch.setattr(doctor_probe, "module_command", lambda *_: crash)
    outcome = look("onnxruntime-cpu")
    assert not outcome.runs
    assert outcome.detail.startswith("crashed (")
    gpus = doctor_system.look_at_gpus(crash)
    assert gpus.found == ()
    assert gpus.problem.startswith("the NVIDIA driver's library crashed (")


def test_gpus_come_through_the_child() -> None:
    found = Gpus((Gpu("NVIDIA GeForce RTX 4060", (8, 9), 8 << 30),), "13.2", "")
    code = (
        "import json, dataclasses\nfrom nmsfree.machine import Gpu, Gpus\n"
        f"print(json.dumps(dataclasses.asdict({found!r})))"
    )
    assert doctor_system.look_at_gpus([sys.executable, "-c", code]) == found
    real = doctor_system.look_at_gpus(module_command("nmsfree.doctor.system"))
    assert bool(real.found) != bool(real.problem)


def probe(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Outcome:
    """Do in this process what the child does."""
    monkeypatch.setattr(sys, "argv", ["doctor_probe", name])
    capsys.readouterr()
    doctor_probe.main()
    return Outcome(**json.loads(capsys.readouterr().out.splitlines()[-1]))


@pytest.mark.parametrize(
    "name", ["onnxruntime-cuda", "onnxruntime-tensorrt-rtx", "cuda-python", "pycuda"]
)
def test_without_an_nvidia_gpu(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor_probe, "find_gpus", lambda: NO_DRIVER)
    expected = Outcome(False, NO_DRIVER.problem, absent=True)
    assert probe(name, monkeypatch, capsys) == expected


def test_tensorrt_rtx_builds_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Really: the tiny model becomes an engine, with nothing but TensorRT installed."""
    pytest.importorskip("tensorrt_rtx")
    for absent in ("onnxruntime", "onnx", "nmsfree_export"):
        monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.setattr(doctor_probe, "find_gpus", lambda: NO_DRIVER)
    assert probe("tensorrt-rtx", monkeypatch, capsys) == Outcome(
        False, "builds engines; no NVIDIA driver was found (libcuda.so.1)", absent=True
    )


def test_openvino(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    openvino = pytest.importorskip("openvino")
    outcome = probe("openvino-cpu", monkeypatch, capsys)
    assert outcome.runs
    assert outcome.detail.startswith("OpenVINO ")
    fake = type("Core", (), {"available_devices": ["CPU"]})
    monkeypatch.setattr(openvino, "Core", fake)
    assert probe("openvino-gpu", monkeypatch, capsys) == Outcome(
        False, "no Intel GPU was found (it needs its OpenCL driver)", absent=True
    )


def test_checkpoints(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("nmsfree_training.weights.predict")
    outcome = probe("torch", monkeypatch, capsys)
    assert outcome.runs
    assert outcome.detail.startswith("PyTorch ")
    monkeypatch.setattr(doctor_probe, "entry_points", lambda **_: [])
    assert probe("torch", monkeypatch, capsys) == Outcome(
        False,
        "running a checkpoint needs a package that is not installed:"
        " in your copy of the repository: make setup",
    )


def test_errors_become_the_reason(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def ours() -> Outcome:
        raise EngineError("it does not start (why): do this, `nmsfree doctor` tells more")

    def theirs() -> Outcome:
        raise ImportError("libfoo.so:\n cannot open")

    monkeypatch.setattr(doctor_probe, "PROBES", {"ours": ours, "theirs": theirs})
    assert probe("ours", monkeypatch, capsys).detail == "it does not start (why): do this"
    assert probe("theirs", monkeypatch, capsys).detail == "ImportError: libfoo.so: cannot open"


def test_a_wrong_answer_is_no_running_engine(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor_probe.doctor_model, "difference", lambda _: "the answer is wrong: 1")
    assert probe("onnxruntime-cpu", monkeypatch, capsys) == Outcome(False, "the answer is wrong: 1")


ABSENT = Engine("Nothing", "onnxruntime-cpu", ("nmsfree-not-there",), "nmsfree[none]", nvidia=False)


def test_states() -> None:
    engine = BY_PROBE["onnxruntime-cpu"]
    version = ort.__version__
    outcomes = {
        "runs": Outcome(True, "here"),
        "fails": Outcome(False, "crashed"),
        "no device": Outcome(False, "no GPU", absent=True),
    }
    for state, outcome in outcomes.items():
        check = check_engine(engine, "", lambda name, o=outcome: o)
        assert check == Check(engine.name, version, state, outcome.detail, (), True)  # type: ignore[arg-type]


def test_what_is_missing_names_its_line() -> None:
    def never(name: str) -> Outcome:
        raise AssertionError("nothing is tried that is not installed")

    assert check_engine(ABSENT, "", never) == Check(
        "Nothing", None, "missing", "not installed", ('pip install "nmsfree[none]"',), True
    )


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise doctor.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)


@pytest.mark.parametrize(
    ("there", "probe_name", "lines"),
    [
        ((), "onnxruntime-cpu", ['pip install "nmsfree[cpu]"']),
        (
            ("onnxruntime",),
            "onnxruntime-cuda",
            ['pip uninstall -y onnxruntime && pip install "nmsfree[cuda]"'],
        ),
        ((), "tensorrt-rtx", ['pip install "nmsfree[tensorrt-rtx]"']),
        ((), "tensorrt", ['pip install "nmsfree[tensorrt]"']),
        ((), "torch", ["in your copy of the repository: make setup"]),
    ],
)
def test_the_lines_to_install(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], probe_name: str, lines: list[str]
) -> None:
    installed(monkeypatch, *there)
    assert list(check_engine(BY_PROBE[probe_name], "").install) == lines


@pytest.mark.parametrize("name", [e.probe for e in ENGINES if e.nvidia])
def test_without_a_driver_nothing_of_nvidia_is_to_be_installed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Followed, the line for CUDA would remove the engine that runs."""
    installed(monkeypatch, "onnxruntime")
    check = check_engine(BY_PROBE[name], NO_DRIVER.problem)
    assert (check.state, check.install) == ("no device", ())
    assert "no NVIDIA driver" in check.detail


def test_extras_that_are_advised_exist() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    for engine in ENGINES:
        if "[" in engine.install:
            assert f"\n{engine.install.removeprefix('nmsfree[').removesuffix(']')} = [" in text


def test_conflicts_are_named() -> None:
    modules = {
        "onnxruntime": ["onnxruntime", "onnxruntime_gpu", "onnxruntime"],
        "cv2": ["opencv-python-headless"],
        "yaml": ["PyYAML", "other"],
    }
    assert find_conflicts(modules) == [
        "onnxruntime and onnxruntime-gpu overwrite one another's files: pip uninstall -y"
        " onnxruntime onnxruntime-gpu, then pip install one of them again"
        " (nmsfree[cpu] or nmsfree[cuda])"
    ]
    assert find_conflicts({"cv2": ["opencv-python", "opencv-python-headless"]}) == [
        "opencv-python and opencv-python-headless overwrite one another's files: pip uninstall -y"
        " opencv-python opencv-python-headless, then pip install one of them again"
        " (opencv-python-headless)"
    ]
    assert find_conflicts({}) == []


SYSTEM = System("Linux 6, x86_64", "3.11.7", "0.1.0", "Z80", 2, False, 8 << 30, None, NO_DRIVER)
RUNS = Check("ONNX Runtime, processor", "1.0", "runs", "ONNX Runtime 1.0 CPU", (), True)
FAILS = Check("OpenVINO, processor", "2.0", "fails", "crashed (SIGSEGV): " + "x" * 150, (), True)
MISSING = Check(
    "ONNX Runtime, CUDA", None, "missing", "not installed",
    ('pip uninstall -y onnxruntime && pip install "nmsfree[cuda]"',), True,
)  # fmt: skip
LAYER = Check("cuda-python", "13.4", "runs", "cuda-python", (), False)


def test_the_print_can_be_redirected(capsys: pytest.CaptureFixture[str]) -> None:
    """No colours, no box around what is to be copied, no line of it wrapped."""
    print_report(Report(SYSTEM, (RUNS, FAILS, MISSING, LAYER), ("a and b conflict",)))
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines()]
    assert "\x1b" not in out
    assert err == ""
    assert "processor  Z80, 2 threads, no bf16" in lines
    assert "memory     8.0 GiB" in lines
    assert "GPU        no NVIDIA driver was found (libcuda.so.1)" in lines
    assert f"OpenVINO, processor: {FAILS.detail}" in lines
    assert f"ONNX Runtime, CUDA: {MISSING.install[0]}" in lines
    assert "conflict: a and b conflict" in lines
    assert lines[-1] == "1 of 3 engines run"


def test_gpus_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    gpus = Gpus((Gpu("NVIDIA GeForce RTX 4060", (8, 9), 8 << 30),), "13.2", "")
    system = System("Linux", "3.11", "0.1.0", "Z80", 2, None, None, "590.1", gpus)
    print_report(Report(system, (LAYER,), ()))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "GPU        NVIDIA GeForce RTX 4060 (compute capability 8.9), 8.0 GiB" in lines
    assert "           driver 590.1, up to CUDA 13.2" in lines
    assert "memory     unknown" in lines
    assert lines[-1] == "no engine runs"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, nmsfree_command: Any) -> Any:
    """Run the command on a few engines: exit status, stdout, stderr."""

    def run(*arguments: str, engines: tuple[Engine, ...]) -> Any:
        monkeypatch.setattr(doctor, "ENGINES", engines)
        app = cli.typer.Typer()
        app.command("doctor")(doctor_cli.doctor)
        app.callback()(lambda: None)
        monkeypatch.setattr(cli, "build_app", lambda: app)
        return nmsfree_command("doctor", *arguments)

    return run


@pytest.mark.slow
def test_the_command(run: Any, tmp_path: Path) -> None:
    engines, file = (BY_PROBE["onnxruntime-cpu"], ABSENT), tmp_path / "a.json"
    status, out, err = run("--json", str(file), engines=engines)
    assert status == 0
    assert "1 of 2 engines run" in out
    assert 'Nothing: pip install "nmsfree[none]"' in out
    assert "Traceback" not in err
    report = json.loads(file.read_text("utf-8"))
    assert report["healthy"] is True
    assert [check["state"] for check in report["checks"]] == ["runs", "missing"]
    assert report["checks"][1]["install"] == ['pip install "nmsfree[none]"']
    assert report["system"]["memory"] > 1 << 30
    status, out, _ = run("--json", "-", engines=(ABSENT,))
    assert (status, json.loads(out)["healthy"]) == (1, False)
    assert not Report(SYSTEM, (LAYER, FAILS, MISSING), ()).healthy
    assert Report(SYSTEM, (LAYER, RUNS), ()).healthy


@pytest.mark.gpu
@pytest.mark.skipif(
    not doctor_system.find_gpus().found, reason=doctor_system.find_gpus().problem or "GPU found"
)
@pytest.mark.parametrize("name", ["tensorrt-rtx", "cuda-python", "pycuda", "onnxruntime-cuda"])
def test_on_a_gpu(name: str) -> None:
    """What is installed is tried for real; a GPU that TensorRT-RTX refuses is told in one line."""
    check = check_engine(BY_PROBE[name], "")
    if check.state == "missing":
        pytest.skip(f"{name} is not installed")
    assert check.state in (("runs", "fails") if name == "tensorrt-rtx" else ("runs",)), check.detail
    assert "\n" not in check.detail
