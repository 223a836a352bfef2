"""The package as a whole: public names, imports without torch, every command's help."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from typer.testing import CliRunner

import nmsfree
from nmsfree import backends, errors
from nmsfree.cli.main import COMMANDS, build_app, load_command
from nmsfree.images import write_picture
from nmsfree.spec import Thresholds

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


# Opens and runs a model, then counts what the process wanted to send, in a network without a way
# out; in the end it asks for a name itself, to see that this is counted.
ASK_NOBODY = """
import socket, sys, time
from nmsfree import Detector

def wanted():
    names, counts = (line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:"))
    counted = dict(zip(names, counts))
    return int(counted["OutRequests"]) + int(counted["OutNoRoutes"])

with Detector(sys.argv[1], device=sys.argv[2], threads=1) as detector:
    detector(sys.argv[3])
time.sleep(1)  # OpenVINO's package sends from a process of its own
if sys.argv[4] == "alone":
    asked = wanted()
    try:
        socket.getaddrinfo("example.org", 443)
    except OSError:
        pass
    assert wanted() > 0, "a look-up is not counted"
    sys.exit(f"{asked} packets" if asked else 0)
"""


def run_python(
    code: str, *arguments: object, under: tuple[str, ...] = (), **environment: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )


def no_network() -> tuple[str, ...]:
    """A command that starts another without a network; none where the system has no such thing."""
    command = ("unshare", "--map-root-user", "--net")
    if shutil.which("unshare") and not subprocess.run([*command, "true"], check=False).returncode:
        return command
    return ()


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_engines_ask_nobody_and_leave_nothing(
    tmp_path: Path, make_onnx: Any, make_spec: Any, device: str
) -> None:
    pytest.importorskip("openvino")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    model = make_onnx(work / "m.onnx", make_spec())
    picture = work / "p.png"
    write_picture(picture, np.zeros((64, 96, 3), np.uint8))
    folders = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "TMPDIR": home}
    alone = no_network()
    arguments = (model, device, picture, "alone" if alone else "")
    done = run_python(ASK_NOBODY, *arguments, under=alone, **folders)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


# A detector is opened and used, perhaps by a thread just now, then the process forks: how the child
# uses it, and whether it ends.
FORK = """
import os, sys, threading, time
from multiprocessing import get_context
import numpy as np
from nmsfree import Detector, NmsfreeError

_, model, device, threads, how = sys.argv
image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
detector = Detector(model, device=device, threads=int(threads))
expected = len(detector(image))
assert expected

def use(which):
    try:
        return "right" if len(which(image)) == expected else "wrong"
    except NmsfreeError as error:
        return str(error)

def use_ours(_):
    return use(detector)

def work():
    while True:
        detector(image)

if how == "pool":
    with get_context("fork").Pool(2) as pool:
        print(*{*pool.map(use_ours, range(4))})
    sys.exit()
if how == "busy":
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)
child = os.fork()
if not child:
    if how == "open":
        try:
            again = Detector(model, device=device, threads=int(threads))
        except NmsfreeError as error:
            print(error, flush=True)
        else:
            print(use(again), flush=True)
    elif how == "close":
        detector.close()
        print(use(detector), flush=True)
    elif how != "exit":
        print(use(detector), use(detector), sep="\\n", flush=True)
    sys.exit()
for _ in range(300):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        os._exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, 9)
print("the child hangs", flush=True)
os._exit(99)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("device", ["cpu", "openvino"])
@pytest.mark.parametrize("how", ["use", "busy", "exit", "close", "open", "pool"])
def test_a_forked_child_works_or_says_why_not_and_ends(
    tmp_path: Path, make_onnx: Any, make_spec: Any, device: str, how: str
) -> None:
    pytest.importorskip("openvino")
    model = make_onnx(tmp_path / "m.onnx", make_spec())
    done = run_python(FORK, model, device, 2, how)
    assert done.returncode == 0, (done.stdout, done.stderr)
    said = done.stdout.splitlines()
    if how == "exit":
        assert said == []
    elif how == "close":
        assert said == ["the detector is closed: open it again"]
    elif device == "cpu":
        assert {*said} == {"right"}
    else:
        assert said and all(
            "OpenVINO was started before this process was forked" in x for x in said
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_takes_no_file_that_has_changed(
    tmp_path: Path, make_onnx: Any, make_spec: Any
) -> None:
    """The parent's description, and the hash that it checked, are of the file before."""
    model = make_onnx(tmp_path / "m.onnx", make_spec())
    make_onnx(tmp_path / "other.onnx", make_spec())
    code = """
import os, sys, numpy as np
from nmsfree import Detector, ModelError
detector = Detector(sys.argv[1], threads=1)
os.replace(sys.argv[2], sys.argv[1])
if not (child := os.fork()):
    try:
        detector(np.zeros((20, 30, 3), np.uint8))
    except ModelError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
os._exit(0)
"""
    done = run_python(code, model, tmp_path / "other.onnx")
    assert "has changed since the detector was opened" in done.stdout, done.stderr


def test_a_spawned_pool_opens_the_pickled_detector(
    tmp_path: Path, make_onnx: Any, make_spec: Any
) -> None:
    program = tmp_path / "program.py"
    model = make_onnx(tmp_path / "m.onnx", make_spec())
    code = (
        "import multiprocessing, sys, numpy as np\n"
        "from nmsfree import Detector\n"
        "if __name__ == '__main__':\n"
        "    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)\n"
        "    detector = Detector(sys.argv[1], device=sys.argv[2], threads=1)\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        found = pool.map(detector, [image] * 4)\n"
        "    print({len(one) for one in found} == {len(detector(image))})\n"
    )
    program.write_text(code)
    for device in ("cpu", "openvino"):
        done = subprocess.run(
            [sys.executable, program, model, device], capture_output=True, text=True, timeout=120
        )
        assert done.stdout == "True\n", done.stderr


def test_the_users_own_word_on_telemetry_stands(tmp_path: Path) -> None:
    code = "import os, nmsfree; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run_python(code, ORT_DISABLE_TELEMETRY="0").stdout == "0\n"
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel/openvino_telemetry").write_text("1")
    code = "from nmsfree.backends.openvino import _agreed_to_telemetry as f; print(f())"
    assert run_python(code, HOME=tmp_path).stdout == "True\n"
    (tmp_path / "intel/openvino_telemetry").write_text("0")
    assert run_python(code, HOME=tmp_path).stdout == "False\n"


def test_every_module_imports_without_torch() -> None:
    done = run_python(IMPORT_EVERYTHING, "torch", *OURS, *OPTIONAL)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    assert {"nmsfree.detector", "nmsfree.cli.main", "nmsfree.cli.detect", "nmsfree.cli.eval"} <= {
        *modules
    }
    assert "nmsfree.backends.onnxruntime.backend" in modules


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


def test_help_names_every_command() -> None:
    done = run_python("from nmsfree.cli.main import main; main()", "--help")
    assert done.returncode == 0, done.stderr
    assert all(f" {name} " in done.stdout for name in COMMANDS)


def test_the_roots_help_imports_no_command() -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from nmsfree.cli.main import main; main()"
    )
    imported = set(run_python(code, "--help").stderr.split())
    assert "typer" in imported
    assert not imported & {"numpy", "cv2", "torch", "importlib.metadata", "nmsfree.cli.detect"}


def test_completion_knows_commands_and_passes_over_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("_NMSFREE_COMPLETE", "complete_bash")
    for words, found in (("nmsfree det", "detect"), ("nmsfree nothing --", "")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        done = run_python("from nmsfree.cli.main import main; main()")
        assert found in done.stdout.split() or not found
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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = CliRunner().invoke(build_app(), [name, "--help"])
    assert done.exit_code == 0, done.output
    assert name in done.stdout
    assert load_command(name).help.split("\n\n")[0].replace("\n", " ") == COMMANDS[name][1]


def number_options() -> list[tuple[str, str, int, bool]]:
    """Options for numbers: words of the command, option, how many it takes, only whole ones."""
    found = []

    def look(command: Any, words: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            look(child, f"{words} {name}")
        for option in command.params:
            described = getattr(option, "type_descriptor", None)
            kind = str(option.type if described is None else described.annotation).lower()
            if ("int" in kind or "float" in kind) and option.opts[0].startswith("-"):
                whole = "float" not in kind
                found.append((words, option.opts[0], max(option.nargs, 1), whole))

    for name in COMMANDS:
        look(load_command(name), name)
    return found


@pytest.mark.parametrize("number", ["nan", "inf", "-1e400", "1" + "0" * 20, "9" * 5000, "²"])
def test_every_number_of_every_option_is_bounded(number: str) -> None:
    app = build_app()
    options = number_options()
    assert {"--threads", "--size", "--learning-rate"} <= {option for _, option, _, _ in options}
    for words, option, count, whole in options:
        if number.isascii() and number.isdigit() and not whole:
            continue  # a finite number; what it means is for the command to judge
        done = CliRunner(env={"COLUMNS": "200"}).invoke(
            app, [*words.split(), option, *[number] * count]
        )
        assert done.exit_code == 2, (words, option)
        assert f"for '{option}'" in done.output or f"/ '{option}'" in done.output, done.output


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
    assert f"Invalid value for '{option}'" in done.output


def test_a_command_that_is_not_installed_names_its_distribution() -> None:
    """Whatever follows: options it would know are none of its business."""
    code = (
        "import importlib.metadata as metadata, nmsfree.cli.main as cli\n"
        "metadata.entry_points = lambda **_: []\n"
        "cli.main()"
    )
    done = run_python(code, "bench", "--quick", "a.onnx")
    assert done.returncode == 2
    assert 'pip install "nmsfree-benchmarks"' in done.stderr
    assert "Traceback" not in done.stderr


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


def test_an_interrupt_within_a_command_is_said() -> None:
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "swallowed", ["raise ImportError('numpy cannot be imported')", "raise cli.NmsfreeError('no')"]
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


def test_an_ignored_interrupt_stays_ignored() -> None:
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
def test_whatever_goes_wrong_is_a_line_and_a_status(work: str, status: int, said: str) -> None:
    done = run_python(command_that(work), NMSFREE_DEBUG="0")
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert done.stderr.startswith(said)
    debugged = run_python(command_that(work), NMSFREE_DEBUG="1")
    assert debugged.returncode == status
    assert "Traceback" in debugged.stderr and debugged.stderr.splitlines()[-1].startswith(said)


def test_a_dependency_that_cannot_be_loaded_is_not_called_missing(tmp_path: Path) -> None:
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
                assert requirement.endswith(f"=={nmsfree.__version__}"), (folder, requirement)
        # Which ONNX Runtime is there is the user's choice: two exclude one another.
        assert not any("cpu" in requirement for requirement in project["dependencies"])
        assert (root / folder / project["readme"]).is_file()
        (licence,) = project["license-files"]
        assert (root / folder / licence).read_bytes() == (root / "LICENSE").read_bytes()
        assert next((root / folder).glob("nmsfree*/py.typed")).is_file()
