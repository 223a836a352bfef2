"""Every block of code and every command in README and docs does what it says.

Python runs, page by page, in a folder of real files; command lines are held against the parsers
that would take them; those that README starts with run. CONTRIBUTING tells how to mark a block that
cannot run.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import pytest
import typer
import typer.main
from onnx.numpy_helper import to_array
from results import PAGES, ROOT
from typer.testing import CliRunner

from nmsfree.cli.main import build_app
from nmsfree.datasets.digits.scenes import make_scene, write_digits

FOLDERS = {"nmsfree": "runtime"} | {
    f"nmsfree-{name}": name for name in ("training", "export", "benchmarks")
}
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        *PAGES,
        ROOT / "CONTRIBUTING.md",
        *(ROOT / folder / "README.md" for folder in FOLDERS.values()),
    ]
}
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]+) -->\n\n?)?```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
REASONS = ("a GPU", "a download", "time", "a server")
SHELL, DATA = ("console", "bash"), ("json", "yaml", "mermaid")
# What belongs to others, or was built or written by a line above.
OTHERS = {"apt-get", "cmake", "curl", "node", "npm", "optimum-cli", "source", "tritonserver"}
OTHERS |= {"build/detect", "models/client.py", "ray"}
OPTIONS_OF_OTHERS = {"--preload", "--opt_in", "--shm-size", "--require-hashes", "--no-deps"}
# What a test has no time for is cut short; a download is left out.
SHORTER = {
    "train": "--epochs 1 --min-steps 1 --size 64 64 --threads 1 --workers 0 --no-probe",
    "data digits": "--train 4 --val 4 --overlap 4 --test 0 --test-overlap 0",
}
STARTED = {  # the commands that run
    "README.md": "data adopt detect data train eval export",
    "docs/get-started.md": "doctor data detect eval export",
}
LEFT_OUT = {"data trees"}


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    code: str
    why: str | None  # it does not run


def blocks() -> Iterator[Block]:
    for page, text in TEXTS.items():
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start("kind")) + 1
            yield Block(page, line, found["kind"], found["code"], found["why"])


BLOCKS = list(blocks())
RUN = [b for b in BLOCKS if b.kind == "python" and b.why is None]
COMMANDS = [
    (block, line)
    for block in BLOCKS
    if block.kind in SHELL
    for line in block.code.replace("\\\n", " ").splitlines()
    if shlex.split(line, comments=True)
]


def test_every_block_is_found_and_of_a_known_kind() -> None:
    for page, text in TEXTS.items():
        fences = text.count("```")
        assert fences == 2 * sum(b.page == page for b in BLOCKS), f"{page}: a fence is not closed"
    for block in BLOCKS:
        where = f"{block.page}:{block.line}"
        assert block.kind in ("python", *SHELL, *DATA), where
        assert block.why is None or block.why.startswith(REASONS), f"{where}: why is it not run?"
        assert block.why is None or block.kind == "python", f"{where}: only Python is marked"
        if block.kind == "python":
            compile(block.code, where, "exec")
    assert len(RUN) > 4 and len(COMMANDS) > 80


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, here: None) -> Path:
    """A folder of all that README and docs name: weights, pictures, videos, a dataset DIR."""
    import export_foreign

    folder = tmp_path_factory.mktemp("snippets")
    (folder / "weights").symlink_to(ROOT / "weights", target_is_directory=True)
    (folder / "holiday").mkdir()
    (folder / "data/digits/val").mkdir(parents=True)
    cv2.imwrite(str(folder / "data/digits/val/00001.png"), make_scene("val", 1).image)
    for i, name in enumerate(("street.jpg", "a.jpg", "b.jpg", "aerial.tif", "holiday/1.png")):
        cv2.imwrite(str(folder / name), make_scene("val", i).image)
    for name in ("street.mp4", "clip.mp4"):
        size = 320, 240
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"mp4v"), 25, size)
        for i in range(4):
            writer.write(cv2.resize(make_scene("val", i).image, size))
        writer.release()
    write_digits(folder / "DIR", train=8, val=8, overlap=0)
    export_foreign.save(export_foreign.yolo_rows(), folder / "yolo26n.onnx")
    return folder


@pytest.fixture(scope="session")
def model(files: Path) -> bytes:
    """The file that is called `model.onnx` in README and docs."""
    run(files, "nmsfree export weights/fcos_e2e_nano.safetensors -o model.onnx")
    return (files / "model.onnx").read_bytes()


def run(folder: Path, line: str) -> str:
    """Run a line of `nmsfree` in a folder, cut short where it would take long."""
    words = shlex.split(line, comments=True)[1:]
    for beginning, more in SHORTER.items():
        words += more.split() * " ".join(words).startswith(beginning)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(build_app(), words)
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    return done.output


@pytest.mark.slow
def test_the_exported_file_at_hand_is_that_of_its_checkpoint(model: bytes) -> None:
    """Values of folded constants may differ in their last bits, by processor."""
    kept, made = onnx.load(ROOT / "weights/fcos_e2e_nano.onnx"), onnx.load_from_string(model)
    spec, new = (json.loads(one.metadata_props[0].value) for one in (kept, made))
    assert spec.keys() == new.keys()
    assert [k for k in spec if spec[k] != new[k]] in ([], ["canary"])
    assert [*kept.graph.node] == [*made.graph.node]
    for a, b in zip(kept.graph.initializer, made.graph.initializer, strict=True):
        np.testing.assert_allclose(to_array(a), to_array(b), rtol=1e-5, atol=1e-6, err_msg=a.name)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_python_runs(
    page: str, files: Path, model: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(files)
    (files / "model.onnx").write_bytes(model)
    for block in RUN:
        if block.page == page:
            names: dict[str, Any] = {}  # a block stands for itself
            line = "\n" * block.line + block.code
            exec(compile(line, page, "exec"), names)
            assert capsys.readouterr().out or "print" not in block.code, f"{page}:{block.line}"


@pytest.mark.slow
@pytest.mark.parametrize("page", STARTED)
def test_the_commands_that_one_starts_with_run(page: str, files: Path, model: bytes) -> None:
    done = []
    for made in ("out", "data"):  # which commands make
        shutil.rmtree(files / made, ignore_errors=True)
    for block, line in COMMANDS:
        words = shlex.split(line, comments=True)
        if block.page == page and words[0] == "nmsfree" and " ".join(words[1:3]) not in LEFT_OUT:
            run(files, line)
            done.append(words[1])
    assert " ".join(done) == STARTED[page]
    assert [*(files / "out").rglob("*.png")], "no picture with boxes"


@pytest.mark.parametrize(
    ("block", "line"), COMMANDS, ids=[f"{b.page}:{b.line} {line[:60]}" for b, line in COMMANDS]
)
def test_a_command_is_one_that_its_parser_takes(block: Block, line: str, files: Path) -> None:
    words = shlex.split(line, comments=True)
    if block.kind == "bash" and re.match(r"\w+=", words[0]):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        check_line(words)


def check_line(words: list[str]) -> None:
    """Hold a command line against the parser that would take it; nothing runs."""
    match words:
        case ["make", *given]:
            check_make(given)
        case ["pip", "install", *given] | ["python", "-m", "pip", "install", *given]:
            check_pip(given)
        case ["nmsfree" | "srun" | "torchrun", *_] if "nmsfree" in words[:-1]:
            name, *given = words[words.index("nmsfree") + 1 :]
            parse(given, *find_command(name))
        case ["python" | "python3", "-m", name, *_]:
            assert find_spec(name), name
        case ["python", path, *_] if path not in OTHERS:
            assert (ROOT / path).is_file(), path
        case [name, *rest]:
            assert name in OTHERS or rest[0] in OTHERS, f"{name} is neither ours nor in OTHERS"


def find_command(*path: str) -> tuple[Any, str]:
    """The command of these words below `nmsfree`, and how it is called."""
    command, name = typer.main.get_command(build_app()), "nmsfree"
    for word in path:
        context = command.make_context(name, [], resilient_parsing=True)
        command = command.resolve_command(context, [word])[1]
        name = f"{name} {word}"
    return command, name


def parse(words: list[str], command: Any, name: str) -> None:
    while hasattr(command, "list_commands") and words and not words[0].startswith("-"):
        context = command.make_context(name, [], resilient_parsing=True)
        if words[0] not in command.list_commands(context):
            break  # `bench` takes files in place of a question
        command, words = command.resolve_command(context, words)[1], words[1:]
    try:
        command.make_context(name, list(words))
    except typer.Exit:
        pass  # --help, --list: said and done
    except Exception as error:
        raise AssertionError(f"{name} {shlex.join(words)}: {error or error!r}") from error


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        pattern = rf"\$\({name}\)" if is_variable else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"make {word}"


def check_pip(words: list[str]) -> None:
    """Folders and their extras are there; other projects are those whose versions are pinned."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for before, word in zip(["", *words], words, strict=False):
        if before in ("-r", "-c"):
            assert (ROOT / word).is_file(), word
        elif not word.startswith("-") and not before.startswith("--no-binary"):
            found = re.fullmatch(r"(?:\./)?([\w-]+)(?:\[([\w,-]+)\])?(?:==.*)?", word)
            assert found, word
            folder = FOLDERS.get(found[1], found[1])
            if not (ROOT / folder / "pyproject.toml").is_file():
                assert re.search(rf"^{found[1]}==", pinned, re.MULTILINE), word
                continue
            project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8"))
            extras = project["project"]["optional-dependencies"]
            assert {*(found[2] or "").split(",")} - {""} <= {*extras}, word


@cache
def options(*path: str) -> set[str]:
    """The spellings of all options of a command and those below it."""
    found, left = {"--help", "-h"}, [find_command(*path)[0]]
    while left:
        command = left.pop()
        found |= {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        if hasattr(command, "list_commands"):
            context = command.make_context("x", [], resilient_parsing=True)
            left += [
                command.resolve_command(context, [name])[1]
                for name in command.list_commands(context)
            ]
    return found


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_options_within_sentences_are_there(page: str) -> None:
    """What they are given may be left out, or a placeholder."""
    text = BLOCK.sub("", TEXTS[page])
    every = {
        flag for name in typer.main.get_command(build_app()).commands for flag in options(name)
    }
    for said in re.findall(r"`([^`\n]+)`", text):
        words = said.split()
        if words[0] == "nmsfree" and len(words) > 1 and not words[1].startswith("-"):
            known = options(words[1])
            for word in words[2:]:
                assert not re.match(r"--?[a-z]", word) or word in known, f"{page}: {said}"
        elif words[0] == "make":
            check_make(shlex.split(said)[1:])
        elif words[0] == "pip" and words[1:2] == ["install"]:
            check_pip(shlex.split(said)[2:])
        elif re.match(r"--[a-z]", said):
            assert words[0] in every | OPTIONS_OF_OTHERS, f"{page}: {said} is an option of nothing"


@pytest.mark.parametrize(
    "line",
    [
        "nmsfree detect a.jpg --model m.onnx --shine",
        "nmsfree train --data DIR --epochs many",
        "nmsfree bench nms --threads 0",
        "nmsfree polish",
        "srun torchrun -m nmsfree train --shine",
        "make polish",
        "make bench FAST=1",
        'pip install "./runtime[shine]"',
        "pip install shine",
        "python benchmarks/tests/shine.py",
        "shine a.jpg",
    ],
)
def test_what_no_parser_takes_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_line(shlex.split(line))


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "examples/python").glob("*.py")))
def test_an_example_without_arguments_says_how_it_is_called(name: str) -> None:
    program = [sys.executable, str(ROOT / "examples/python" / name)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"python {name} " in done.stderr and "Traceback" not in done.stderr
