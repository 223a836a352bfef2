"""The wheels alone, built, and installed into environments that hold what they ask for.

Packages of others are linked from the environment of the tests, each only if a wheel asks for it:
what one forgets to ask for is missing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Sequence
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from results import ROOT

import nmsfree
from nmsfree.doctor.model import FILE

FOLDERS = ("runtime", "training", "export", "benchmarks")
BIN = "Scripts" if os.name == "nt" else "bin"
Environment = Callable[..., Path]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, made of its source archive as a package index would."""
    out = tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT / folder]
        check(words)
    assert len([*out.glob("*.tar.gz")]) == len(FOLDERS)
    return {path.name.split("-")[0].replace("_", "-"): path for path in out.glob("*.whl")}


def check(words: Sequence[object], folder: Path | None = None, status: int = 0) -> str:
    """Run a program without what this process has in its environment for Python."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env=clean,
    )
    assert done.returncode == status, done.stderr or done.stdout
    return done.stdout + done.stderr


def head(wheel: Path) -> Message:
    """The metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def asked(wanted: str, wheels: dict[str, Path]) -> dict[str, metadata.Distribution | Path]:
    """What a requirement brings: our wheels, and others' distributions of versions that fit."""
    found: dict[str, metadata.Distribution | Path] = {}
    seen, left = set(), [(Requirement(wanted), "")]
    while left:
        need, extra = left.pop()
        name = canonicalize_name(need.name)
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        if name in wheels:
            found[name], version = wheels[name], nmsfree.__version__
            requires = head(wheels[name]).get_all("Requires-Dist", [])
        else:
            there = metadata.distribution(name)
            found[name], version, requires = there, there.version, there.requires or []
        assert need.specifier.contains(version, prereleases=True), f"{need}: {version} is here"
        for extra in {"", *need.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            left += [(Requirement(text), extra) for text in requires]
    return found


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What makes an environment of a requirement alone; gives its folder of programs."""

    def make(wanted: str) -> Path:
        folder = tmp_path_factory.mktemp("env")
        venv.create(folder, symlinks=os.name != "nt")
        python = folder / BIN / "python"
        site = Path(
            check([python, "-c", "import sysconfig as s; print(s.get_path('purelib'))"]).strip()
        )
        found = asked(wanted, wheels)
        ours = [path for path in found.values() if isinstance(path, Path)]
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        check([*pip, "--no-deps", "--no-index", *ours])
        for there in found.values():
            if isinstance(there, Path):
                continue
            for top in {file.parts[0] for file in there.files or ()} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(there.locate_file(top))
        return folder / BIN

    return make


def test_a_wheel_says_what_an_index_shows_and_holds_its_licence(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"nmsfree", "nmsfree-training", "nmsfree-export", "nmsfree-benchmarks"}
    for name, wheel in wheels.items():
        about = head(wheel)
        assert about["Version"] == nmsfree.__version__
        assert str(about.get_payload()).startswith(f"# {name}\n")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            for licence in about.get_all("License-File", []):
                (place,) = [n for n in names if n.endswith(f".dist-info/licenses/{licence}")]
                assert len(archive.read(place)) > 500
            assert ("LICENSE" in about.get_all("License-File", [])) and about["License-Expression"]
        assert any(n.endswith("/py.typed") for n in names)
        assert not any("tests" in n.split("/") for n in names)
        package = name.replace("-", "_")
        assert {n.split("/")[0] for n in names if ".dist-info/" not in n} <= {
            package,
            "nmsfree_start.py",
        }


def test_the_runtime_alone_runs_its_snippet(environment: Environment, tmp_path: Path) -> None:
    programs = environment("nmsfree[cpu]")
    shutil.copyfile(FILE, tmp_path / "model.onnx")
    cells = np.zeros((32, 32, 3), np.uint8)
    cells[:16, :16] = 0, 0, 255
    cv2.imwrite(str(tmp_path / "street.jpg"), cells)
    readme = (ROOT / "runtime/README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    more = "import importlib.util as u\nprint([u.find_spec(n) for n in ('torch', 'typer', 'PIL')])"
    said = check([programs / "python", "-c", snippet + more], tmp_path)
    assert said.startswith("red ") and said.endswith("[None, None, None]\n")
    assert 'pip install "nmsfree[cli]"' in check([programs / "nmsfree"], status=2)


def test_everything_exports_and_detects(environment: Environment, tmp_path: Path) -> None:
    nmsfree_command = environment("nmsfree-benchmarks[cpu]") / "nmsfree"
    assert "Needs nmsfree" not in check([nmsfree_command, "--help"])
    weights = ROOT / "weights/fcos_e2e_nano.safetensors"
    check([nmsfree_command, "export", weights, "-o", "model.onnx"], tmp_path)
    cv2.imwrite(str(tmp_path / "street.png"), np.zeros((64, 96, 3), np.uint8))
    check(
        [nmsfree_command, "detect", "street.png", "-m", "model.onnx", "--save-dir", "out"], tmp_path
    )
    assert (tmp_path / "out/street.png").exists()


def test_the_extra_for_nvidia_gpus_resolves(wheels: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=os.name != "nt")
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / BIN / "python", "install"]
    words = [*pip, "--dry-run", "--report", tmp_path / "report", f"{wheels['nmsfree']}[cuda]"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if "Failed to establish a new connection" in done.stderr:
        pytest.skip("no package index")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report").read_text(encoding="utf-8"))
    names = {entry["metadata"]["name"] for entry in report["install"]}
    assert {"nmsfree", "onnxruntime-gpu", "nvidia-cudnn-cu13", "nvidia-cuda-runtime"} <= names
    assert not names & {"onnxruntime", "torch"}
