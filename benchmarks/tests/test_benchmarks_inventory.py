"""What a user can type and what programs read: every option, every key of every JSON report.

A change that is meant is written with `python benchmarks/tests/test_benchmarks_inventory.py
--write` and named in the CHANGELOG.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
import typer.main
from typer.testing import CliRunner

from nmsfree.cli.main import build_app
from nmsfree.files import write_atomic

HERE = Path(__file__).parent
INVENTORY = HERE / "inventory.json"
RESULTS, STUDY = HERE.parent / "results", HERE.parents[1] / "docs/study"
WEIGHTS = HERE.parents[1] / "weights"
WRITE = "NMSFREE_WRITE_INVENTORY"  # the file that is written in place of the committed one

EXPORT = f"export {WEIGHTS}/fcos_o2o_nano.safetensors --size 64 64"
BENCH = "--data data --work made --threads 1 --quick --seconds 0"
# Commands that run in a folder with weights/, data/ and faulty/; the files they leave are read.
RUNS = {
    "models": {
        f"{EXPORT} -o free.onnx --json export.json": ("export.json", "free.onnx"),
        "detect data/val -m free.onnx --threshold 0.05 --save-dir . --no-pictures": (
            "detections.jsonl",
        ),
        "eval free.onnx --data data --plots plots --json eval.json": (
            "eval.json",
            "plots/summary.json",
        ),
        f"{EXPORT} -o int8.onnx --precision int8 --for cpu --calibrate data --check-data data"
        " --max-unmatched 0.9 --max-ap-drop 100 --thresholds eval.json --json export_int8.json": (
            "export_int8.json",
            "int8.onnx",
        ),
        "verify free.onnx int8.onnx --data data --max-unmatched 1 --max-ap-drop 100 --layers"
        " --json verify.json": ("verify.json",),
        "doctor free.onnx --json doctor_model.json": ("doctor_model.json",),
        "build free.onnx -o free.engine --layers --json build.json": (
            "build.json",
            "free.engine.json",
        ),
    },
    "training": {
        "data check faulty --fix --out-fixed fixed --out sheets --json check.json": ("check.json",),
        "train --data data --out train --epochs 1 --batch-size 1 --threads 1 --workers 0": (
            "train/metrics.jsonl",
            "train/best.safetensors",
            "train/last.safetensors",
        ),
        f"study table --results {STUDY} --epochs 16 --json study_table.json": ("study_table.json",),
        f"weights list --manifest {WEIGHTS}/manifest.toml --json weights.json": ("weights.json",),
        "doctor --json doctor.json": ("doctor.json",),
        "bench training --data data --seconds 0.1 --json bench_training.json": (
            "bench_training.json",
        ),
        "bench criterion --batch 1 --size 64 64 --rounds 1 --json criterion.json": (
            "criterion.json",
        ),
    },
    "benchmarks": {
        f"bench overhead {BENCH} --out out --json overhead.json": ("overhead.json",),
        "bench compare overhead.json overhead.json --json compare.json": ("compare.json",),
    },
}
# Keys that are data, such as names of models, sizes and numbers, and what has only such keys.
DATA = re.compile(r"fcos_|^[\d.]+$|^\d+x\d+$")
OF_DATA = {"tolerances", "versions", "skipped", "splits", "images", "peaks", "beyond_limit_ms"}
NUMBERS = re.compile(r"(_\d+(\.\d+)?)+$")


def commands() -> dict[str, dict[str, str]]:
    """Every command, with its options by their spellings."""
    return dict(_commands(typer.main.get_command(build_app()), "nmsfree"))


def _commands(command: Any, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    spelled = {
        f"argument {arguments.index(p) + 1}"
        if p in arguments
        else " ".join([*sorted(p.opts), *sorted(p.secondary_opts)]): _described(p)
        for p in command.params
    }
    yield name, spelled
    if hasattr(command, "list_commands"):
        context = command.make_context(name, [], resilient_parsing=True)
        for child in command.list_commands(context):
            found = command.resolve_command(context, [child])[1]  # imports it
            yield from _commands(found, f"{name} {child}")


def _described(parameter: Any) -> str:
    """Return one line: kind, bounds, default, whether it is needed, may repeat or is hidden."""
    annotation = parameter.type_descriptor.annotation
    words = ["flag" if getattr(parameter, "is_flag", False) else _kind(annotation)]
    if (parameter.min, parameter.max) != (None, None):
        low, high = parameter.min, parameter.max
        words.append(f"{'-∞' if low is None else low} … {'∞' if high is None else high}")
    if parameter.default not in (None, False):
        words.append(f"default {_plain(parameter.default)}")
    words += ["required"] * parameter.required
    words += ["many"] * (parameter.multiple or parameter.nargs == -1)
    words += ["hidden"] * parameter.hidden
    return ", ".join(words)


def _kind(annotation: Any) -> str:
    """Return the name of a type; the parts of a tuple; the choices of a Literal or an Enum."""
    if parts := get_args(annotation):
        return " ".join(_kind(part) if isinstance(part, type) else str(part) for part in parts)
    if choices := getattr(annotation, "__members__", None):
        return " ".join(str(choice.value) for choice in choices.values())
    return {"Path": "path", "str": "text"}.get(annotation.__name__, annotation.__name__)


def _plain(default: Any) -> str:
    return default.as_posix() if isinstance(default, Path) else str(default)


def keys(content: Any, path: str = "", parent: str = "") -> set[str]:
    """Return the paths of all keys, `a.b[].c`; a star stands for keys that are data."""
    if isinstance(content, str) and content.startswith("{"):  # JSON within metadata
        with suppress(ValueError):
            content = json.loads(content)
    if isinstance(content, list):
        return set[str]().union(*(keys(value, f"{path}[]") for value in content))
    found = set()
    for key, value in content.items() if isinstance(content, dict) else ():
        data = parent in OF_DATA or DATA.search(key)  # not listed: it may be there or not
        name = f"{path}.{'*' if data else NUMBERS.sub('_*', key)}".removeprefix(".")
        found |= keys(value, name, key) | (set() if data else {name})
    return found


def read(path: Path) -> Any:
    """Return what a report, or the header of a model, says."""
    if path.suffix == ".onnx":
        return {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(size))["__metadata__"]
    text = path.read_text(encoding="utf-8")
    return (
        [json.loads(t) for t in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    )


def committed() -> dict[str, Any]:
    """The committed result of each question, and those of the study."""
    results = {f"results of bench {path.stem}": read(path) for path in RESULTS.glob("*.json")}
    return results | {"results of study": [read(path) for path in sorted(STUDY.glob("*_s0.json"))]}


def check(part: str, found: dict[str, Any]) -> None:
    """Compare entries of a part of the inventory, or write them when that is asked for."""
    file = Path(os.environ.get(WRITE, INVENTORY))
    known = json.loads(file.read_text(encoding="utf-8"))
    if WRITE in os.environ:
        known[part] |= found
        text = json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False)
        write_atomic(file, f"{text}\n".encode())
    mine = known[part]
    names = known[part] if part == "commands" else found
    before, after = _lines({name: mine[name] for name in names if name in mine}), _lines(found)
    changes = [f"- {line}" for line in before - after] + [f"+ {line}" for line in after - before]
    assert not changes, (
        "what users see has changed (if it is meant, name it in the CHANGELOG and run `python"
        f" benchmarks/tests/{Path(__file__).name} --write`):\n"
        + "\n".join(sorted(changes, key=lambda c: c[2:]))
    )


def _lines(entries: dict[str, Any]) -> set[str]:
    return {
        f"{name}: {line} {entry[line] if isinstance(entry, dict) else ''}".rstrip()
        for name, entry in entries.items()
        for line in entry
    }


def test_commands_and_options() -> None:
    check("commands", commands())


def test_committed_results() -> None:
    check("reports", {name: sorted(keys(content)) for name, content in committed().items()})


@pytest.mark.slow
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="a GPU adds keys")
@pytest.mark.parametrize("group", RUNS)
def test_reports(
    group: str, tiny: Path, here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("weights", "data"):
        shutil.copytree(tiny / name, tmp_path / name)
    _spoil(shutil.copytree(tiny / "data", tmp_path / "faulty"))
    monkeypatch.chdir(tmp_path)
    found = {}
    for line, files in RUNS[group].items():
        if line.startswith("build") and find_spec("tensorrt_rtx") is None:
            continue
        done = CliRunner().invoke(build_app(), line.split())
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
        found |= {name: sorted(keys(read(Path(name)))) for name in files}
    check("reports", found)


def _spoil(data: Path) -> None:
    """Make one box that `data check --fix` fixes."""
    path = data / "annotations/instances_val.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["bbox"][0] = -5
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: python {sys.argv[0]} --write")
    new = INVENTORY.with_suffix(".new")
    new.write_text('{"commands": {}, "reports": {}}', encoding="utf-8")
    os.environ[WRITE] = str(new)
    status = pytest.main([__file__, "-q", "--show-capture=no", "-p", "no:xdist"])
    if not status:  # else what is committed stays as it is
        new.replace(INVENTORY)
    new.unlink(missing_ok=True)
    sys.exit(status)
