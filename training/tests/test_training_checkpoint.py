"""Own checkpoints: round trip, readable header, refusals, and writes that are whole or absent."""

import json
import multiprocessing
import os
import struct
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nmsfree.errors import CheckpointError, InputError
from nmsfree.spec import Thresholds
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import (
    FORMAT_VERSION,
    HEADER_KEY,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)

from .runs import WEIGHTS

NAMES = ("café", "日", "b")


def make_checkpoint(name: str = "fcos_e2e_nano") -> Checkpoint:
    model = preset(name, len(NAMES)).model
    said = {"seed": "3", "AP": "0.5"}
    return Checkpoint(model, (96, 64), NAMES, (1, 5, 90), Fcos(model).state_dict(), said)


MADE = make_checkpoint()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint that can be read."""
    save_checkpoint(MADE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file and the bytes after it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def describe(path: Path) -> dict[str, Any]:
    """Our entry of the header."""
    described: dict[str, Any] = json.loads(read_header(path)[0]["__metadata__"][HEADER_KEY])
    return described


def rewrite(path: Path, **changes: Any) -> None:
    """Replace entries of our description; None removes one."""
    header, body = read_header(path)
    described = json.loads(header["__metadata__"][HEADER_KEY]) | changes
    described = {key: value for key, value in described.items() if value is not None}
    header["__metadata__"][HEADER_KEY] = json.dumps(described)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("name", ["fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano"])
def test_round_trip_is_identity(name: str, tmp_path: Path) -> None:
    made = make_checkpoint(name)
    path = tmp_path / "new" / "folder" / "model.safetensors"
    save_checkpoint(made, path)
    loaded = load_checkpoint(path)
    assert replace(loaded, state={}) == replace(made, state={})
    assert loaded.state.keys() == made.state.keys()
    for key, tensor in made.state.items():
        assert torch.equal(loaded.state[key], tensor) and loaded.state[key].dtype == tensor.dtype
    first = path.read_bytes()
    save_checkpoint(loaded, path)
    assert path.read_bytes() == first
    images = torch.randn(1, 3, 64, 64)
    built = loaded.build()
    with torch.inference_mode():
        again, before = built(images), made.build()(images)
    for head in loaded.model.heads:
        assert torch.equal(again[head].logits, before[head].logits)


def test_a_file_of_format_1_2_calls_the_duplicate_filter_a_rival_filter(tmp_path: Path) -> None:
    old = WEIGHTS / "fcos_e2e_nano.safetensors"
    assert b'"rival_iou": 0.78' in old.read_bytes()[:20000].replace(b"\\", b"")
    read = load_checkpoint(old)
    assert (read.model.dedup_iou, read.model.deployed_dedup_iou) == (0.78, 0.76)
    save_checkpoint(read, tmp_path / "new.safetensors")
    again = load_checkpoint(tmp_path / "new.safetensors")
    assert again.model == read.model and again.state.keys() == read.state.keys()


def test_channels_last_weights_are_written_as_they_are(path: Path) -> None:
    before = path.read_bytes()
    state = {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v
        for k, v in MADE.state.items()
    }
    save_checkpoint(replace(MADE, state=state), path)
    assert path.read_bytes() == before


def test_header_is_readable_without_this_project(path: Path) -> None:
    described = describe(path)
    assert described["format_version"] == FORMAT_VERSION
    assert described["model"]["name"] == "fcos_e2e_nano"
    assert described["model"]["heads"] == ["o2m", "o2o"]
    assert described["input_size"] == [96, 64]
    assert described["class_names"] == list(NAMES)
    assert described["category_ids"] == [1, 5, 90]
    assert described["provenance"] == {"seed": "3", "AP": "0.5"}


def test_thresholds_travel_along(path: Path) -> None:
    assert load_checkpoint(path).thresholds is None
    measured = Thresholds(
        best_f1=0.4,
        best_f1_per_class=(0.3, None),
        at_precision=0.6,
        at_precision_per_class=(0.7, None),
        recall_at_precision=0.8,
        recall_at_precision_per_class=(0.9, None),
        measured_on="two images",
    )
    save_checkpoint(replace(MADE, thresholds=measured), path)
    assert load_checkpoint(path).thresholds == measured
    rewrite(path, format_version="1.0", thresholds={"best_f1": 2})
    assert "thresholds" in refusal(path)


def test_versions(path: Path) -> None:
    model = describe(path)["model"]
    rewrite(path, format_version="1.9", added_later=[1, 2], model=model | {"added_later": True})
    assert load_checkpoint(path).model == MADE.model
    # Before there were filters, the header said whether the gradient of the o2o head stops.
    old = {k: v for k, v in model.items() if k != "max_filter"} | {"detach_o2o": True}
    rewrite(path, format_version="1.0", model=old)
    assert load_checkpoint(path).model == MADE.model and MADE.model.max_filter == "none"
    rewrite(path, format_version="2.0")
    assert "format 2.0, this version reads 1.x: update nmsfree" in refusal(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": None},
        {"model": None},
        {"model": {"name": "x"}},
        {"model": "nano"},
        {"input_size": [3]},
        {"class_names": 4},
        {"class_names": ["a"]},
        {"category_ids": [1, 5, 2**70]},
        {"category_ids": [1, 5, 2.5]},
        {"input_size": [10**9, 32]},
        {"thresholds": {"best_f1": 2}},
        {"provenance": {"seed": ["3"]}},
        {"provenance": None},
    ],
)
def test_damaged_description(changes: dict[str, Any], path: Path) -> None:
    rewrite(path, **changes)
    message = refusal(path)
    assert message.startswith(f"{path}: 'nmsfree' entry of the header: ")
    assert message.endswith(": train or copy the checkpoint again")
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_convs", 10**9),
        ("head_convs", -1),
        ("channels", 10**9),
        ("width", 0),
        ("num_classes", 10**9),
        ("num_classes", 3.0),
        ("depth", 19),
        ("heads", []),
        ("heads", ["o2o"] * 10**5),
        ("head_norm", "layer"),
        ("dedup_iou", 1.5),
        ("frozen_norm", "no"),
        ("name", 3),
    ],
)
def test_a_network_out_of_bounds_is_refused_before_it_is_built(
    field: str, value: object, path: Path
) -> None:
    rewrite(path, model=describe(path)["model"] | {field: value})
    assert field in refusal(path)


def test_channels_that_group_norm_cannot_divide(path: Path) -> None:
    rewrite(path, model=describe(path)["model"] | {"head_norm": "group", "channels": 33})
    assert "expected a multiple of 32" in refusal(path)


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 10**5, "9" * 5000, '{"model": NaN}'])
def test_description_that_is_no_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={HEADER_KEY: text})
    assert "'nmsfree' entry of the header: " in refusal(path)


def test_foreign_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert "was not written by nmsfree" in refusal(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"format": "pt"})
    assert "was not written by nmsfree" in refusal(path)


BIAS, STEM = "fpn.input_projs.0.bias", "backbone.conv1.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({BIAS: None}, f"1 keys missing (first: {BIAS})"),
        ({"extra": torch.zeros(3)}, "1 too many (first: extra)"),
        ({BIAS: torch.zeros(3)}, "has shape (3,), expected (64,)"),
        ({STEM: torch.full((16, 3, 7, 7), float("nan"))}, f"{STEM} holds values that are not fin"),
        ({STEM: torch.full((16, 3, 7, 7), float("inf"))}, f"{STEM} holds values that are not fin"),
        (
            {STEM: torch.zeros(16, 3, 7, 7, dtype=torch.int64)},
            f"{STEM} holds torch.int64, expected torch.float32",
        ),
    ],
)
def test_tensors_are_checked(changes: dict[str, Any], message: str, path: Path) -> None:
    state = {k: v for k, v in {**MADE.state, **changes}.items() if v is not None}
    save_checkpoint(replace(MADE, state=state), path)
    assert message in refusal(path)


def test_class_counts_are_checked(path: Path) -> None:
    assert load_checkpoint(path, num_classes=3).class_names == NAMES
    with pytest.raises(CheckpointError, match="trained for 3 classes, expected 80"):
        load_checkpoint(path, num_classes=80)
    four, names, ids = replace(MADE.model, num_classes=4), (*NAMES, "d"), (1, 5, 90, 91)
    save_checkpoint(replace(MADE, model=four, class_names=names, category_ids=ids), path)
    assert "cls_pred.weight has shape (3, 64, 3, 3), expected (4, 64, 3, 3)" in refusal(path)


def test_files_that_are_no_checkpoint(path: Path) -> None:
    data = path.read_bytes()
    for length in (1, 7, 8, 100, 5000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert "truncated or another format" in refusal(path)
    path.write_bytes(b"")
    assert "empty file" in refusal(path)
    path.write_text("<html>not found</html>")
    assert "an HTML page" in refusal(path)
    path.unlink()
    assert "no such file" in refusal(path)
    assert "is a folder" in refusal(path.parent)


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    """The disk refuses the second write half-way: a limit on file sizes acts as a full disk."""
    resource = pytest.importorskip("resource")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            save_checkpoint(MADE, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def _write_for_ever(path: Path) -> None:
    for number in count(1):
        save_checkpoint(replace(MADE, provenance={"number": str(number)}), path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_killed_write_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for delay in (0.0, 0.01, 0.03):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        writer.start()
        while not path.exists():
            time.sleep(0.005)
        time.sleep(delay)
        assert writer.pid is not None
        os.kill(writer.pid, 9)
        writer.join()
        assert int(load_checkpoint(path).provenance["number"]) >= 1
        path.unlink()
