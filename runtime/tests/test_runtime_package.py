"""The package as a whole: public names, imports without torch, what the distributions say."""

import pickle
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import nmsfree
from nmsfree import backends, errors
from nmsfree.spec import Thresholds

Run = Callable[..., subprocess.CompletedProcess[str]]

# Blocks packages the runtime may not need, then imports all of it: prints the modules.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
from importlib.util import find_spec

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
    if module.name.startswith("nmsfree.cluster.") and not find_spec("pyarrow"):
        continue  # it comes with the extra `ray`
    importlib.import_module(module.name)
    print(module.name)
"""


OURS = ["nmsfree_training", "nmsfree_export", "nmsfree_benchmarks"]


ENGINES = ["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "pycuda"]


OPTIONAL = [*ENGINES, "onnx", "PIL", "matplotlib", "faster_coco_eval", "torchvision"]


def test_every_module_imports_without_torch(run_python: Run) -> None:
    done = run_python(IMPORT_EVERYTHING, "torch", *OURS, *OPTIONAL)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    assert {"nmsfree.detector", "nmsfree.cli.main", "nmsfree.cli.detect", "nmsfree.cli.eval"} <= {
        *modules
    }
    assert "nmsfree.backends.onnxruntime.backend" in modules


def test_a_missing_engine_is_named_with_its_extra(run_python: Run) -> None:
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
        for name, value in ((name, getattr(nmsfree, name)) for name in dir(nmsfree))
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
    from nmsfree.backends.tensorrt.backend import TensorRtBackend

    own = (backends.CallableBackend, backends.OnnxRuntimeBackend, backends.OpenVinoBackend)
    for backend in (*own, TensorRtBackend):
        assert callable(backend.run)
        assert callable(backend.close)


def test_a_dependency_that_cannot_be_loaded_is_not_called_missing(
    tmp_path: Path, run_python: Run
) -> None:
    (tmp_path / "broken_one.py").write_text("import nowhere_to_be_found")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from nmsfree.errors import import_extra\n"
        "try: import_extra(sys.argv[2], 'this', 'nmsfree[x]')\n"
        "except Exception as error: print(error)"
    )
    assert "cannot be loaded (No module named 'nowhere_to_be_found')" in (
        run_python(code, tmp_path, "broken_one").stdout
    )
    assert "is not installed: pip install" in run_python(code, tmp_path, "no_such_one").stdout


def test_errors_survive_pickling() -> None:
    for kind in (getattr(nmsfree, name) for name in nmsfree.__all__ if name.endswith("Error")):
        error = kind("a", "b") if kind is errors.MissingExtraError else kind("a")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error)


def test_four_distributions_carry_one_version_and_what_an_index_shows() -> None:
    root = Path(__file__).parents[2]
    for folder in ("runtime", "training", "export", "benchmarks"):
        content = tomllib.loads((root / folder / "pyproject.toml").read_text(encoding="utf-8"))
        project = content["project"]
        assert project["dynamic"] == ["version"] and project["urls"] and project["classifiers"]
        source = root / folder / content["tool"]["hatch"]["version"]["path"]
        assert source.samefile(root / "runtime/nmsfree/__init__.py")
        wanted = [*project["dependencies"]]
        for extra in project.get("optional-dependencies", {}).values():
            wanted += extra
        for requirement in wanted:
            if requirement.startswith("nmsfree"):
                assert requirement.endswith(f"~={nmsfree.__version__}"), (folder, requirement)
        # Which ONNX Runtime is there is the user's choice: two exclude one another.
        assert not any("cpu" in requirement for requirement in project["dependencies"])
        assert (root / folder / project["readme"]).is_file()
        licence = project["license-files"][0]
        assert (root / folder / licence).read_bytes() == (root / "LICENSE").read_bytes()
        assert next((root / folder).glob("nmsfree*/py.typed")).is_file()
