"""The file a run goes on from: atomic, checked, with one before it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nmsfree.errors import CheckpointError
from nmsfree_training.loop.state import (
    LAST,
    PREVIOUS,
    Position,
    TrainState,
    load_state,
    save_state,
)


def state(step: int) -> TrainState:
    position = Position(epoch=2, step=step, iteration=20 + step, best=0.5, sums={"loss": 1.25})
    network = {"weight": torch.arange(1000.0) * step}
    return TrainState({"seed": 0}, vars(position), network, {"state": {}}, {}, None)


def test_a_state_survives_the_file(tmp_path: Path) -> None:
    save_state(state(3), tmp_path)
    loaded, warning = load_state(tmp_path)
    assert warning is None
    assert Position(**loaded.position) == Position(2, 3, 23, 0.5, {"loss": 1.25})
    assert torch.equal(loaded.network["weight"], torch.arange(1000.0) * 3)
    assert loaded.recipe == {"seed": 0} and loaded.ema is None


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(state(step), tmp_path)
    (tmp_path / LAST).unlink()
    loaded, warning = load_state(tmp_path)
    assert loaded.position["step"] == 2
    assert warning is not None and PREVIOUS in warning and "no such file" in warning
    assert sorted(p.name for p in tmp_path.iterdir()) == [PREVIOUS]  # nothing half-written


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_a_damaged_file_falls_back(damage: str, tmp_path: Path) -> None:
    save_state(state(1), tmp_path)
    save_state(state(2), tmp_path)
    content = bytearray((tmp_path / LAST).read_bytes())
    match damage:
        case "cut":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "flipped":  # one bit in the middle of the weights
            content[len(content) // 2] ^= 1
        case "text":
            content = bytearray(b"not a state")
    (tmp_path / LAST).write_bytes(content)
    loaded, warning = load_state(tmp_path)
    assert loaded.position["step"] == 1
    assert warning is not None and LAST in warning and "going on from previous" in warning
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(tmp_path)


def test_any_flipped_bit_falls_back(tmp_path: Path) -> None:
    """A bit of the archive's table of contents once gave other weights without a word."""
    for step in (1, 2):
        save_state(state(step), tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    table = whole.index(b"PK\x01\x02")
    for at in range(table, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (tmp_path / LAST).write_bytes(damaged)
        loaded, warning = load_state(tmp_path)
        assert loaded.position["step"] == 1 and warning is not None, at
    (tmp_path / PREVIOUS).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"no state is left to go on from, .* --init"):
        load_state(tmp_path)


def test_something_else_than_a_state(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"damaged .* or of another version"):
        load_state(tmp_path)
    later = replace(state(1), position=vars(Position()) | {"unknown": 1})
    save_state(later, tmp_path)
    with pytest.raises(CheckpointError, match="not a training state of this version"):
        load_state(tmp_path)
    for wrong in ({"epoch": -1}, {"step": "1"}, {"best": float("nan")}, {"sums": {"a": None}}):
        save_state(replace(state(1), position=vars(Position()) | wrong), tmp_path)
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            load_state(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_state(tmp_path / "nothing")
