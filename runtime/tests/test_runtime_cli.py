"""The command line as a whole: help, numbers, signals, and how errors end."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import nmsfree
from nmsfree.cli import main as cli
from nmsfree.cli.main import COMMANDS, build_app, load_command

Run = Callable[..., subprocess.CompletedProcess[str]]
HERE = [  # commands of the distributions that are installed
    name for name, (owner, _) in COMMANDS.items() if find_spec(owner.replace("-", "_"))
]


def test_the_roots_help_names_every_command_and_imports_none(run_python: Run) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from nmsfree.cli.main import main; main()"
    )
    done = run_python(code, "--help")
    assert done.returncode == 0 and all(f" {name} " in done.stdout for name in COMMANDS)
    imported = set(done.stderr.split())
    assert "typer" in imported
    assert not imported & {"numpy", "cv2", "torch", "importlib.metadata", "nmsfree.cli.detect"}


def test_completion_knows_commands_and_passes_over_others(
    monkeypatch: pytest.MonkeyPatch, run_python: Run
) -> None:
    monkeypatch.setenv("_NMSFREE_COMPLETE", "complete_bash")
    for words, found in (("nmsfree det", "detect"), ("nmsfree nothing --", "--version")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        done = run_python(
            "import sys; sys.argv = ['nmsfree']; from nmsfree.cli.main import main; main()"
        )
        assert done.stdout.split()[0] == found
        assert "error" not in done.stderr


def test_versions_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(build_app(), ["--version"])
    assert done.exit_code == 0 and f"nmsfree {nmsfree.__version__}\n" in done.stdout

    def version(name: str) -> str:
        if name == "nmsfree":
            return "1.2.3"
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    done = CliRunner().invoke(build_app(), ["--version"])
    assert done.stdout.splitlines()[:2] == ["nmsfree 1.2.3", "nmsfree-export –"]


@pytest.mark.parametrize("name", HERE)
def test_every_command_has_help(name: str) -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(build_app(), [name, "--help"])
    assert done.exit_code == 0, done.output
    assert f"Usage: nmsfree {name} " in done.stdout.replace("Usage: root", "Usage: nmsfree")
    lines = done.stdout.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 80 and "<" not in done.stdout  # a screen
    command = load_command(name)
    assert command.help.split("\n\n")[0].replace("\n", " ") == COMMANDS[name][1]
    shown = [x.opts[0] for x in command.params if not getattr(x, "hidden", False)]
    assert all(x in done.stdout for x in shown if x[0] == "-" and "-completion" not in x)


def test_all_options_are_described_where_help_only_names_them() -> None:
    short, whole = (
        CliRunner(env={"COLUMNS": "80"}).invoke(build_app(), ["detect", asked]).stdout
        for asked in ("--help", "--help-all")
    )
    assert "Engine: --threads, --allow-cpu," in short
    for only in ("per-class: the best-F1", "Engine:\n  --threads N  ", "native code."):
        assert only in whole and only not in short


def names_of(command: Any, name: str) -> Iterator[str]:
    """The name of a command and of those below it."""
    yield name
    for below, child in getattr(command, "commands", {}).items():
        yield from names_of(child, f"{name} {below}")


def test_every_command_has_the_whole_help() -> None:
    names = [each for name in HERE for each in names_of(load_command(name), name)]
    assert len(names) > len(HERE)  # groups have commands below them
    for name in names:
        whole, short = (
            CliRunner().invoke(build_app(), [*name.split(), asked])
            for asked in ("--help-all", "--help")
        )
        assert whole.exit_code == 0 and f"{name} " in whole.stdout, name
        assert "described by --help-all" not in whole.stdout
        grouped = "described by --help-all" in short.stdout
        assert grouped or whole.stdout == short.stdout, name


def number_options(command: Any) -> Iterator[tuple[Any, Any, bool]]:
    """Options for numbers of a command and those below it; and whether they are whole ones."""
    for child in getattr(command, "commands", {}).values():
        yield from number_options(child)
    for option in command.params:
        described = getattr(option, "type_descriptor", None)
        kind = str(option.type if described is None else described.annotation).lower()
        if ("int" in kind or "float" in kind) and option.opts[0].startswith("-"):
            yield command, option, "float" not in kind


def test_every_number_of_every_option_is_bounded() -> None:
    options = [each for name in HERE for each in number_options(load_command(name))]
    names = {option.opts[0] for _, option, _ in options}
    assert names >= {"--threads", "--tile", "--max-detections"}
    for command, option, whole in options:
        for number in ("nan", "inf", "-1e400", "1" + "0" * 20, "9" * 5000, "²"):
            if number.isascii() and number.isdigit() and not whole:
                continue  # a finite number; what it means is for the command to judge
            with pytest.raises(typer.BadParameter) as wrong:
                command.make_context("x", [option.opts[0], *[number] * max(option.nargs, 1)])
            assert wrong.value.param is option, (command.name, option, number)


@pytest.mark.skipif("train" not in HERE, reason="needs nmsfree-training")
@pytest.mark.parametrize(
    ("option", "number"),
    [
        ("--threads", "1000000000"),
        ("--workers", "1000000000"),
        ("--epochs", "1000000000"),
        ("--batch-size", "1000000000"),
        ("--long-side", "1000000000"),
        ("--keep-every", "-1"),
        ("--save-minutes", "-1"),
    ],
)
def test_counts_that_no_machine_has_are_refused(option: str, number: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(build_app(), ["train", option, number])
    assert done.exit_code == 2
    said = f"error: {option} is some, expected a whole number\n"
    wrong = CliRunner().invoke(build_app(), ["train", option, "some"]).stderr
    assert wrong == (said.replace("whole ", "") if option == "--save-minutes" else said)
    bound = r"0(\.0)? or more" if number == "-1" else r"\d+ or less"
    assert re.fullmatch(f"error: {option} is {number}, expected {bound}\n", done.stderr)


@pytest.mark.skipif("export" not in HERE, reason="needs nmsfree-export")
def test_a_choice_that_is_not_there_names_the_one_that_was_meant() -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    done = runner.invoke(build_app(), ["export", "x", "--precision", "fp61"])
    said = "'fp61' is not one of 'fp32', 'fp16', 'int8'; did you mean fp16?"
    assert (done.exit_code, done.stderr) == (2, f"error: --precision: {said}\n")


def test_a_command_that_is_not_installed_names_its_distribution(run_python: Run) -> None:
    """Whatever follows: options it would know are none of its business."""
    code = (
        "import importlib.metadata as metadata, nmsfree.cli.main as cli\n"
        "metadata.entry_points = lambda **_: []\n"
        "cli.main()"
    )
    done = run_python(code, "bench", "--quick", "a.onnx")
    assert done.returncode == 2
    assert "in your copy of the repository: make setup" in done.stderr
    assert "Traceback" not in done.stderr
    assert "make setup" in run_python(code, "bench", "--help").stdout


def command_that(work: str) -> str:
    """A program: the command line with one command, which does `work`."""
    return (
        "import sys, time, typer, nmsfree.cli.main as cli\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def work() -> None:\n"
        f"    {work}\n"
        "cli.build_app = lambda: app\n"
        "cli.main()"
    )


def test_an_interrupt_within_a_command_is_said(run_python: Run) -> None:
    done = run_python(command_that("raise KeyboardInterrupt"))
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")


def signalled(*command: str, number: int, times: int = 1) -> tuple[int, str]:
    """Start a command, wait for its first line, send a signal; its status and standard error.

    In a process where signals are as a terminal has them, whatever started the tests.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout
    for _ in range(times):
        assert process.stdout.readline()
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_has_its_status(number: int) -> None:
    code = (
        "import sys, nmsfree_start\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'nmsfree.cli.main':\n"
        "            print('importing', flush=True)\n"
        "            import time; time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "nmsfree_start.main()"
    )
    assert signalled(sys.executable, "-c", code, number=number) == (128 + number, "")


@pytest.mark.parametrize(
    ("number", "swallowed"),
    [
        (signal.SIGINT, "raise ImportError('numpy cannot be imported')"),
        (signal.SIGTERM, "raise cli.NmsfreeError('no')"),
    ],
)
def test_a_signal_that_a_library_makes_an_error_is_a_signal(number: int, swallowed: str) -> None:
    work = f"""
    try:
        print('working', flush=True)
        time.sleep(60)
    except BaseException:
        {swallowed}
"""
    status, said = signalled(sys.executable, "-c", command_that(work), number=number)
    assert status == 128 + number and "Traceback" not in said
    assert "interrupted" in said or number == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number: int) -> None:
    work = """
    try:
        print('working', flush=True)
        time.sleep(60)
    finally:
        print('tidying up', flush=True)
        time.sleep(60)
"""
    assert signalled(sys.executable, "-c", command_that(work), number=number, times=2) == (
        128 + number,
        "",
    )


def test_an_ignored_interrupt_stays_ignored(run_python: Run) -> None:
    code = command_that("import os; os.kill(os.getpid(), 2); print('done')")
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = run_python(ignoring + code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        (
            "raise TypeError('no\\x1bsuch thing')",
            4,
            "internal error: TypeError: no\\x1bsuch thing: ",
        ),
        ("raise OSError('not from the system')", 4, "internal error: OSError: "),
        ("open('/nonexistent/file')", 2, "error: [Errno 2] No such file or directory: "),
        ("raise cli.MissingExtraError('a', 'b')", 2, "error: a needs a package that is not"),
        ("raise RecursionError", 4, "internal error: RecursionError"),
    ],
)
def test_whatever_goes_wrong_is_a_line_and_a_status(
    work: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(cli, "build_app", cli.build_app)  # the program replaces it
    for debug in "01":
        monkeypatch.setenv("NMSFREE_DEBUG", debug)
        monkeypatch.setattr(sys, "argv", ["nmsfree"])
        with pytest.raises(SystemExit) as ended:
            exec(command_that(work), {})
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == status and lines[-1].startswith(said)
        assert ("Traceback" in "".join(lines)) == (len(lines) > 1) == (debug == "1")
