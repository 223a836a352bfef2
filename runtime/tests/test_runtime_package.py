"""The package as a whole: public names, imports without torch, every command's help."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from typing import get_args, get_type_hints

import pytest
from typer.testing import CliRunner

import nmsfree
from nmsfree import backends, errors
from nmsfree.cli import COMMANDS, build_app
from nmsfree.thresholds import Thresholds

# Blocks packages the runtime may not need, then imports all of it: prints the modules.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

BLOCKED = set(sys.argv[1:])
sys.meta_path.insert(0, Blocked())
for blocked in BLOCKED:
    try:
        importlib.import_module(blocked)
    except ImportError:
        continue
    sys.exit(f"{blocked} is not blocked")
import nmsfree
for module in pkgutil.walk_packages(nmsfree.__path__, "nmsfree."):
    importlib.import_module(module.name)
    print(module.name)
"""
OURS = ["nmsfree_training", "nmsfree_export", "nmsfree_benchmarks"]
ENGINES = ["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "pycuda"]
OPTIONAL = [*ENGINES, "onnx", "PIL", "matplotlib", "faster_coco_eval", "torchvision"]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


def test_every_module_imports_without_torch() -> None:
    done = run_python(IMPORT_EVERYTHING, "torch", *OURS, *OPTIONAL)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    assert {"nmsfree.detector", "nmsfree.cli", "nmsfree.detect_cli", "nmsfree.eval_cli"} <= {
        *modules
    }
    assert "nmsfree.backends.onnxruntime" in modules


def test_a_missing_engine_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import nmsfree, pathlib, tempfile\n"
        "path = pathlib.Path(tempfile.mkdtemp(), 'm.onnx'); path.touch()\n"
        "try: nmsfree.Detector(path)\n"
        "except nmsfree.MissingExtraError as error: print(error)"
    )
    done = run_python(code)
    assert 'pip install "nmsfree[cpu]"' in done.stdout, done.stderr


def test_public_names_equal_all() -> None:
    public = {
        name
        for name, value in vars(nmsfree).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("nmsfree")
    }
    assert public == set(nmsfree.__all__)
    assert nmsfree.__all__ == sorted(nmsfree.__all__)


def test_what_a_model_description_holds_is_public() -> None:
    assert nmsfree.Thresholds is Thresholds
    for kind in (nmsfree.ModelSpec, nmsfree.NmsSpec):
        for hint in get_type_hints(kind).values():
            for part in (hint, *get_args(hint)):
                if getattr(part, "__module__", "").startswith("nmsfree"):
                    assert part.__name__ in nmsfree.__all__


def test_every_error_is_public_and_drawn() -> None:
    kinds = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == "nmsfree.errors"
    }
    assert all(issubclass(kind, errors.NmsfreeError) for kind in kinds.values())
    assert set(kinds) <= set(nmsfree.__all__)
    for name, kind in kinds.items():
        line = next(line for line in (errors.__doc__ or "").splitlines() if name in line)
        status = int(line.split("status")[1]) if "status" in line else 2
        assert status == kind.exit_status, name


def test_every_backend_has_the_protocol() -> None:
    from nmsfree.backends.tensorrt import TensorRtBackend

    own = (backends.CallableBackend, backends.OnnxRuntimeBackend, backends.OpenVinoBackend)
    for backend in (*own, TensorRtBackend):
        assert callable(backend.run)
        assert callable(backend.close)


def test_help_names_every_command() -> None:
    done = run_python("from nmsfree.cli import main; main()", "--help")
    assert done.returncode == 0, done.stderr
    assert all(f" {name} " in done.stdout for name in COMMANDS)


def test_versions_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(build_app(), ["--version"])
    assert done.exit_code == 0 and f"nmsfree {nmsfree.__version__}\n" in done.stdout

    def version(name: str) -> str:
        if name == "nmsfree":
            return "1.2.3"
        raise PackageNotFoundError(name)

    monkeypatch.setattr("nmsfree.cli.version", version)
    done = CliRunner().invoke(build_app(), ["--version"])
    assert done.stdout.splitlines()[:2] == ["nmsfree 1.2.3", "nmsfree-export –"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = CliRunner().invoke(build_app(), [name, "--help"])
    assert done.exit_code == 0, done.output
    assert name in done.stdout


def test_a_command_that_is_not_installed_names_its_distribution() -> None:
    """Whatever follows: options it would know are none of its business."""
    code = "import nmsfree.cli as cli\ncli.entry_points = lambda group: []\ncli.main()"
    done = run_python(code, "bench", "--quick", "a.onnx")
    assert done.returncode == 2
    assert 'pip install "nmsfree-benchmarks"' in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_within_a_command_is_said() -> None:
    code = (
        "import typer, nmsfree.cli as cli\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def work() -> None:\n"
        "    raise KeyboardInterrupt\n"
        "cli.build_app = lambda: app\n"
        "cli.main()"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")
