"""What is checked about an engine before it is deserialised, message by message."""

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runtime_helpers import refused

from nmsfree import EngineError, MissingExtraError, ModelError
from nmsfree.backends.options import Options
from nmsfree.backends.tensorrt import load
from nmsfree.backends.tensorrt.load import check_engine, load_plan
from nmsfree.backends.tensorrt.sidecar import (
    Sidecar,
    lock_path,
    sidecar_path,
    this_platform,
    write_engine,
    write_sidecar,
)
from nmsfree.backends.tensorrt.vendor import VendorApi
from nmsfree.files import locked

RTX = VendorApi("tensorrt-rtx", None, "1.7.1.116")
PLAN, ONNX = b"a plan", b"a graph"
AGAIN = "build the engine again with `nmsfree build`"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def engine(tmp_path: Path, make_sidecar: Any) -> Path:
    """An engine that fits, with its ONNX file and sidecar beside it."""
    engine = tmp_path / "model.engine"
    engine.write_bytes(PLAN)
    (tmp_path / "model.onnx").write_bytes(ONNX)
    write_sidecar(engine, make_sidecar(engine_sha256=digest(PLAN), onnx_sha256=digest(ONNX)))
    return engine


def alter(engine: Path, **fields: Any) -> None:
    """Change what the sidecar says."""
    sidecar = Sidecar.from_json(sidecar_path(engine).read_text("utf-8"))
    write_sidecar(engine, dataclasses.replace(sidecar, **fields))


class Rebuilder:
    """Stands for nmsfree-export's entry point: writes an engine that fits, unless told not to."""

    def __init__(self, engine: Path, **fields: Any) -> None:
        self.calls: list[tuple[str, int | None, tuple[int, ...]]] = []
        self.engine, self.fields = engine, fields

    def load(self) -> Callable[..., None]:
        return self.rebuild

    def rebuild(self, engine: Path, sidecar: Sidecar, *, builder: str, sm: int | None) -> None:
        assert lock_path(engine).exists()
        self.calls.append((builder, sm, sidecar.targets))
        engine.write_bytes(b"a new plan")
        values: dict[str, Any] = {
            "engine_sha256": digest(b"a new plan"),
            "onnx_sha256": digest(engine.with_name(sidecar.onnx).read_bytes()),
            "builder_version": RTX.version,
            "targets": (*sidecar.targets, sm),
            "platform": this_platform(),
        }
        write_sidecar(engine, dataclasses.replace(sidecar, **(values | self.fields)))


@pytest.fixture
def rebuilder(engine: Path, monkeypatch: pytest.MonkeyPatch) -> Rebuilder:
    found = Rebuilder(engine)
    monkeypatch.setattr(load, "entry_points", lambda group, name: [found])
    return found


def refusal(engine: Path, **options: Any) -> str:
    with pytest.raises(EngineError) as error:
        load_plan(engine, vendor=RTX, sm=options.pop("sm", 89), options=Options(**options))
    assert error.value.exit_status == 3
    return str(error.value)


def test_an_engine_that_fits_is_returned_as_it_is(engine: Path, rebuilder: Rebuilder) -> None:
    plan, sidecar = load_plan(engine, vendor=RTX, sm=86)
    assert (plan, sidecar.builder_version, rebuilder.calls) == (PLAN, "1.7.1.116", [])
    assert not lock_path(engine).exists()


def test_an_engine_may_be_shipped_without_its_onnx_file(engine: Path) -> None:
    engine.with_name("model.onnx").unlink()
    for sm in (89, None):  # of an unknown GPU nothing is checked
        assert load_plan(engine, vendor=RTX, sm=sm)[0] == PLAN


def test_no_engine(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    assert (
        refused(lambda: load_plan(path, vendor=RTX, sm=89), ModelError)
        == f"{path}: no such file, expected an engine made by `nmsfree build`"
    )


@pytest.mark.parametrize("trust", [False, True])
def test_no_sidecar_even_when_trusted(engine: Path, trust: bool) -> None:
    """What the engine takes and gives is in the sidecar, whoever vouches for the plan."""
    sidecar_path(engine).unlink()
    assert refusal(engine, trust=trust) == (
        f"{engine}: no model.engine.json beside it, so neither who built it nor what it takes and "
        "gives is known: build it with `nmsfree build`, or bring that file along"
    )


def test_bad_hash(engine: Path, rebuilder: Rebuilder) -> None:
    """Not even rebuilt: the user must learn that somebody changed the plan."""
    engine.write_bytes(b"another plan")
    assert refusal(engine) == (
        f"{engine}: its sha256 is {digest(b'another plan')[:12]}, model.engine.json says "
        f"{digest(PLAN)[:12]}, and an engine runs native code: {AGAIN}, or vouch for it with "
        "--trust"
    )
    assert rebuilder.calls == []


def test_trust(engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A trusted plan is not the described one: what it was built for is not known either."""
    engine.write_bytes(b"another plan")
    alter(engine, builder_version="1.6.0.1")
    plan, sidecar = load_plan(engine, vendor=RTX, sm=75, options=Options(trust=True))
    assert (plan, sidecar.spec.name) == (b"another plan", "tiny")
    assert caplog.messages == [
        f"{engine}: not the plan that model.engine.json describes, trusted as asked"
    ]
    alter(engine, engine_sha256=digest(b"another plan"), builder_version=RTX.version)
    said = refusal(engine, sm=75, trust=True, rebuild=False)  # it is the described one now
    assert "built for SM 8.6 and 8.9; found SM 7.5" in said


def test_the_hash_that_the_application_knows(engine: Path, rebuilder: Rebuilder) -> None:
    plan, _ = load_plan(engine, vendor=RTX, sm=89, options=Options(sha256=digest(PLAN)))
    assert plan == PLAN
    assert refused(
        lambda: load_plan(engine, vendor=RTX, sm=89, options=Options(sha256=digest(b"mine"))),
        ModelError,
    ) == (
        f"{engine}: its sha256 is {digest(PLAN)}, expected {digest(b'mine')}: this is another file"
        " than was meant"
    )
    alter(engine, targets=(86, 120))
    with pytest.raises(EngineError, match="none is built in place of the one with the sha256"):
        load_plan(engine, vendor=RTX, sm=89, options=Options(sha256=digest(PLAN)))
    assert rebuilder.calls == []


def retrain(engine: Path) -> None:
    engine.with_name("model.onnx").write_bytes(b"retrained")


# What is done to an engine that fits, or what its sidecar then says → what is said of it.
SPOILERS: list[tuple[Any, str]] = [
    ({"builder_version": "1.6.0.1"}, "tensorrt-rtx 1.6.0.1; found tensorrt-rtx 1.7.1.116"),
    (
        {"builder": "tensorrt", "builder_version": "11.4.0"},
        "tensorrt 11.4.0; found tensorrt-rtx 1.7.1.116",
    ),
    ({"targets": (86, 120)}, "SM 8.6 and 12.0; found SM 8.9"),
    ({"platform": "Linux riscv64"}, f"Linux riscv64; found {this_platform()}"),
    (retrain, f"model.onnx {digest(ONNX)[:12]}; found model.onnx {digest(b'retrained')[:12]}"),
    (
        {"builder_version": "1.6.0.1", "targets": (75,)},
        "tensorrt-rtx 1.6.0.1, SM 7.5; found tensorrt-rtx 1.7.1.116, SM 8.9",
    ),
]


@pytest.fixture(params=SPOILERS, ids=[f"{spoiler[1][:20]}" for spoiler in SPOILERS])
def problem(request: pytest.FixtureRequest, engine: Path) -> str:
    """What is said of an engine that does not fit."""
    spoil, said = request.param
    spoil(engine) if callable(spoil) else alter(engine, **spoil)
    return f"built for {said}"


def test_no_rebuild(engine: Path, rebuilder: Rebuilder, problem: str) -> None:
    assert refusal(engine, rebuild=False) == (
        f"{engine}: {problem}: {AGAIN}, or leave out --no-rebuild"
    )
    assert rebuilder.calls == []


def test_rebuild(
    engine: Path, rebuilder: Rebuilder, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    rebuilder.fields = {"builder": "tensorrt-rtx"}
    plan, sidecar = load_plan(engine, vendor=RTX, sm=89)
    assert plan == b"a new plan"
    assert sidecar.engine_sha256 == digest(plan)
    assert [(call[0], call[1]) for call in rebuilder.calls] == [("tensorrt-rtx", 89)]
    said = f"{engine}: {problem}; building it again from model.onnx"
    assert caplog.record_tuples == [("nmsfree.backends.tensorrt.load", logging.WARNING, said)]


def test_rebuild_without_the_onnx_file(engine: Path, rebuilder: Rebuilder) -> None:
    engine.with_name("model.onnx").unlink()
    assert refusal(engine, sm=120) == (
        f"{engine}: built for SM 8.6 and 8.9; found SM 12.0; model.onnx is not beside it: {AGAIN}"
    )
    assert rebuilder.calls == []


def test_rebuild_without_export(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "entry_points", lambda group, name: [])
    assert refused(lambda: load_plan(engine, vendor=RTX, sm=120), MissingExtraError) == (
        f"{engine}: built for SM 8.6 and 8.9; found SM 12.0; building it again needs a package "
        "that is not installed: in your copy of the repository: make setup"
    )


def test_a_rebuild_that_does_not_help(engine: Path, rebuilder: Rebuilder) -> None:
    rebuilder.fields = {"targets": (86, 89)}
    assert refusal(engine, sm=120) == (
        f"{engine}: was built again, and is still built for SM 8.6 and 8.9; found SM 12.0: {AGAIN}"
    )


def test_many_workers_build_once(engine: Path, rebuilder: Rebuilder) -> None:
    """Eight start at once after an update of the builder; seven wait for the first."""
    alter(engine, builder_version="1.6.0.1")
    plans: list[bytes] = []

    def work() -> None:
        plans.append(load_plan(engine, vendor=RTX, sm=89)[0])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plans == [b"a new plan"] * 8
    assert len(rebuilder.calls) == 1


def test_where_the_lock_cannot_be_had_the_engine_is_what_is_spoken_of(engine: Path) -> None:
    """A deployed folder may hold the lock's file of whoever built there, read-only."""
    engine.write_bytes(b"another plan")
    alone = refusal(engine)
    lock_path(engine).mkdir()
    assert refusal(engine) == alone


def test_a_plan_that_is_just_being_written_is_waited_for(engine: Path) -> None:
    """Between the plan and its sidecar their hashes differ."""
    written, plans = threading.Event(), []

    def load_meanwhile() -> None:
        written.set()
        plans.append(load_plan(engine, vendor=RTX, sm=89)[0])

    with locked(lock_path(engine)):
        engine.write_bytes(b"a new plan")
        thread = threading.Thread(target=load_meanwhile)
        thread.start()
        written.wait()
        thread.join(0.2)
        assert thread.is_alive()
        alter(engine, engine_sha256=digest(b"a new plan"))
    thread.join()
    assert plans == [b"a new plan"]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_build_that_is_cut_short_leaves_an_engine_that_fits(
    engine: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    old = Sidecar.from_json(sidecar_path(engine).read_text("utf-8"))
    new = dataclasses.replace(old, engine_sha256=digest(b"a new plan"), tf32=True)
    real, done = Path.replace, iter(range(9))

    def cut(part: Path, target: Path) -> Path:
        if next(done) == renames:
            raise KeyboardInterrupt
        return real(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            write_engine(engine, b"a new plan", new)
    assert load_plan(engine, vendor=RTX, sm=89) == (PLAN, old)
    write_engine(engine, b"a new plan", new)
    plan, sidecar = load_plan(engine, vendor=RTX, sm=89)
    assert (plan, sidecar.tf32, sidecar.previous) == (b"a new plan", True, old)
    write_engine(engine, b"a third", dataclasses.replace(new, engine_sha256=digest(b"a third")))
    plan, sidecar = load_plan(engine, vendor=RTX, sm=89)
    assert plan == b"a third" and sidecar.previous == new, "one older description, not a chain"
    engine.write_bytes(b"a stranger's plan")
    assert "an engine runs native code" in refusal(engine)


def test_check_engine_leaves_unchecked_what_is_not_known(engine: Path) -> None:
    alter(engine, builder_version="1.6.0.1", targets=(75,))
    assert check_engine(engine)[2] is None
    assert check_engine(engine, RTX)[2] == (
        "built for tensorrt-rtx 1.6.0.1; found tensorrt-rtx 1.7.1.116"
    )
