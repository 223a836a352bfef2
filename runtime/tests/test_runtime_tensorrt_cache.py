"""Compiled kernels beside an engine: cached, used, and never trusted blindly."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmsfree.backends.tensorrt.engine import MAGIC, cache_path, read_cache, write_cache
from nmsfree.backends.tensorrt.sidecar import read_sidecar

IMAGES = np.zeros((1, 64, 96, 3), np.uint8)


def hash_of(engine: Path) -> str:
    return read_sidecar(engine).engine_sha256


@pytest.fixture
def engine(make_rig: Any) -> Path:
    return Path(make_rig(batch=(1, 1, 1)).path)


@pytest.fixture
def run(make_rig: Any) -> Any:
    """Return a function: open, run once, close; it returns how often kernels were compiled."""

    def run_once(path: Path, kernels: bytes = b"kernels") -> int:
        rig = make_rig(batch=(1, 1, 1))  # the same file again
        assert rig.path == path
        rig.module.kernels = kernels
        backend = rig.open()
        backend.run(IMAGES)
        backend.close()
        return int(rig.module.compiled)

    return run_once


def test_kernels_are_compiled_once(engine: Path, run: Any) -> None:
    assert [run(engine) for _ in range(3)] == [1, 0, 0]
    assert engine.with_name("model.engine.cache").read_bytes().startswith(MAGIC)


def test_kernels_of_another_release_are_compiled_again_and_replaced(
    engine: Path, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run(engine)
    caplog.set_level(logging.INFO)
    assert run(engine, b"other kernels") == 1
    cache = engine.with_name("model.engine.cache")
    assert caplog.messages == [
        f"{cache}: of another GPU, driver or release, kernels are compiled again"
    ]
    assert read_cache(engine, hash_of(engine)) == b"other kernels|engine"


def test_kernels_of_a_batch_size_are_cached_when_it_first_comes(
    make_rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in `close` alone: a server that is killed would compile them at each start."""
    rig = make_rig()
    backend = rig.open()
    for count in (1, 3, 3):
        backend.run(np.zeros((count, 64, 96, 3), np.uint8))
    assert rig.module.compiled == 4  # the engine's, and of 4 (the warm-up), 1 and 3 images
    assert not backend.uses_cached_kernels
    cached = read_cache(rig.path, hash_of(rig.path))
    assert cached == b"kernels|engine,batch of 4,batch of 1,batch of 3"
    again = make_rig()  # another process
    backend = again.open()
    assert backend.uses_cached_kernels
    for count in (1, 3, 4):
        backend.run(np.zeros((count, 64, 96, 3), np.uint8))
    assert again.module.compiled == 0
    assert caplog.messages == []


def test_a_library_that_takes_no_cache_runs_without(
    make_rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nmsfree.backends")
    path = make_rig().path
    write_cache(path, hash_of(path), b"kernels|engine")
    rig = make_rig()
    rig.module.fail.add("set_runtime_cache")
    backend = rig.open()
    backend.run(IMAGES)
    assert not backend.uses_cached_kernels
    backend.close()
    assert caplog.messages == [
        "tensorrt-rtx 1.7.1.116 takes no cache: kernels are compiled again at each start"
    ]
    cached = read_cache(rig.path, hash_of(rig.path))
    assert cached == b"kernels|engine"  # for a library that takes it


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "foreign"])
def test_a_damaged_file_costs_a_warning_only(
    engine: Path, run: Any, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    run(engine)
    cache = engine.with_name("model.engine.cache")
    content = cache.read_bytes()
    changed = content[:-1] + b"!"
    damaged = {"cut": content[:-1], "changed": changed, "empty": b"", "foreign": b"kernels"}
    cache.write_bytes(damaged[damage])
    assert run(engine) == 1
    assert caplog.messages == [f"{cache}: damaged or of another engine, kernels are compiled again"]
    assert run(engine) == 0


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    engine: Path, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine.with_name("model.engine.cache").mkdir()
    assert run(engine) == 1
    assert "kernels are compiled again" in caplog.messages[0]
    assert caplog.messages[1].startswith("kernels will be compiled again at the next start: ")


def test_kernels_that_the_library_does_not_give_cost_a_warning_only(
    engine: Path, run: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any) -> bytes:
        raise RuntimeError("no memory")

    monkeypatch.setattr("nmsfree.testing.tensorrt._Cache.serialize", broken)
    assert run(engine) == 1
    # An engine that an earlier test never closed may say the same of itself just now.
    assert (
        f"kernels will be compiled again at the next start: {engine}: tensorrt-rtx 1.7.1.116 "
        "cannot give its compiled kernels (no memory): build the engine again with `nmsfree build`"
    ) in caplog.messages


def test_kernels_of_another_engine_never_reach_the_library(
    engine: Path, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine put under this name, with the cache of the former one beside it."""
    write_cache(engine, "0" * 64, b"kernels|engine")
    assert read_cache(engine, hash_of(engine)) is None
    assert run(engine) == 1
    assert "damaged or of another engine" in caplog.messages[0]


def test_an_engine_that_the_application_names_by_its_hash_keeps_no_kernels(make_rig: Any) -> None:
    """Nor takes any: whoever can put an engine there can put kernels there."""
    rig = make_rig()
    write_cache(rig.path, hash_of(rig.path), b"kernels|engine")
    before = cache_path(rig.path).read_bytes()
    backend = rig.open(sha256=hash_of(rig.path))
    backend.run(IMAGES)
    assert not backend.uses_cached_kernels and rig.module.compiled > 0
    backend.close()
    assert cache_path(rig.path).read_bytes() == before
