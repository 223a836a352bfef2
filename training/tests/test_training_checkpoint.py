"""Own checkpoints: round trip, readable header, refusals, and writes that are whole or absent."""

import json
import multiprocessing
import os
import struct
import time
from dataclasses import replace
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

NAMES = ("café", "日", "b")


def make_checkpoint(name: str = "fcos_e2e_nano") -> Checkpoint:
    chosen = preset(name, len(NAMES))
    network = Fcos(chosen.model)
    return Checkpoint(
        chosen.model, (96, 64), NAMES, (1, 5, 90), network.state_dict(), {"seed": "3", "AP": "0.5"}
    )


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file and the bytes after it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


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
    old = Path(__file__).parents[2] / "weights" / "fcos_e2e_nano.safetensors"
    assert b'"rival_iou": 0.78' in old.read_bytes()[:20000].replace(b"\\", b"")
    read = load_checkpoint(old)
    assert (read.model.dedup_iou, read.model.deployed_dedup_iou) == (0.78, 0.76)
    save_checkpoint(read, tmp_path / "new.safetensors")
    again = load_checkpoint(tmp_path / "new.safetensors")
    assert again.model == read.model and again.state.keys() == read.state.keys()


def test_channels_last_weights_are_written_as_they_are(tmp_path: Path) -> None:
    made = make_checkpoint()
    state = {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v
        for k, v in made.state.items()
    }
    save_checkpoint(replace(made, state=state), tmp_path / "a.safetensors")
    save_checkpoint(made, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_header_is_readable_without_this_project(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(), tmp_path / "model.safetensors")
    header, _ = read_header(tmp_path / "model.safetensors")
    described = json.loads(header["__metadata__"][HEADER_KEY])
    assert described["format_version"] == FORMAT_VERSION
    assert described["model"]["name"] == "fcos_e2e_nano"
    assert described["model"]["heads"] == ["o2m", "o2o"]
    assert described["input_size"] == [96, 64]
    assert described["class_names"] == list(NAMES)
    assert described["category_ids"] == [1, 5, 90]
    assert described["provenance"] == {"seed": "3", "AP": "0.5"}


def test_thresholds_travel_along(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    measured = Thresholds(
        best_f1=0.4,
        best_f1_per_class=(0.3, None),
        at_precision=0.6,
        at_precision_per_class=(0.7, None),
        recall_at_precision=0.8,
        recall_at_precision_per_class=(0.9, None),
        measured_on="two images",
    )
    save_checkpoint(replace(make_checkpoint(), thresholds=measured), path)
    assert load_checkpoint(path).thresholds == measured
    save_checkpoint(make_checkpoint(), path)
    assert load_checkpoint(path).thresholds is None
    rewrite(path, format_version="1.0", thresholds={"best_f1": 2})
    assert "thresholds" in refusal(path)


def test_versions(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(make_checkpoint(), path)
    rewrite(path, format_version="1.9", added_later=[1, 2])
    loaded = load_checkpoint(path)
    header, _ = read_header(path)
    model = json.loads(header["__metadata__"][HEADER_KEY])["model"]
    rewrite(path, model=model | {"added_later": True})
    assert load_checkpoint(path).model == loaded.model
    rewrite(path, format_version="2.0")
    message = refusal(path)
    assert "format 2.0, this version reads 1.x: update nmsfree" in message


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
def test_damaged_description(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(make_checkpoint(), path)
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
    field: str, value: object, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(make_checkpoint(), path)
    header, _ = read_header(path)
    model = json.loads(header["__metadata__"][HEADER_KEY])["model"]
    rewrite(path, model=model | {field: value})
    assert field in refusal(path)


def test_channels_that_group_norm_cannot_divide(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(make_checkpoint(), path)
    header, _ = read_header(path)
    model = json.loads(header["__metadata__"][HEADER_KEY])["model"]
    rewrite(path, model=model | {"head_norm": "group", "channels": 33})
    assert "expected a multiple of 32" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    path, made = tmp_path / "model.safetensors", make_checkpoint()
    state = {k: v.clone() for k, v in made.state.items()}
    state["backbone.conv1.weight"][0, 0, 0, 0] = value
    save_checkpoint(replace(made, state=state), path)
    assert "backbone.conv1.weight holds values that are not finite" in refusal(path)
    state["backbone.conv1.weight"] = torch.zeros(16, 3, 7, 7, dtype=torch.int64)
    save_checkpoint(replace(made, state=state), path)
    assert "backbone.conv1.weight holds torch.int64, expected torch.float32" in refusal(path)


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


def test_keys_and_shapes_are_checked(tmp_path: Path) -> None:
    path, made = tmp_path / "model.safetensors", make_checkpoint()
    state = dict(made.state)
    removed = state.pop("fpn.input_projs.0.bias")
    save_checkpoint(replace(made, state=state), path)
    assert "1 keys missing (first: fpn.input_projs.0.bias)" in refusal(path)
    save_checkpoint(replace(made, state={**made.state, "extra": removed.clone()}), path)
    assert "1 too many (first: extra)" in refusal(path)
    wrong = {**made.state, "fpn.input_projs.0.bias": torch.zeros(3)}
    save_checkpoint(replace(made, state=wrong), path)
    assert "has shape (3,), expected (64,)" in refusal(path)
    other = replace(made.model, num_classes=4)
    four = replace(made, model=other, class_names=(*NAMES, "d"), category_ids=(1, 5, 90, 91))
    save_checkpoint(four, path)
    assert "cls_pred.weight has shape (3, 64, 3, 3), expected (4, 64, 3, 3)" in refusal(path)


def test_other_class_count_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(make_checkpoint(), path)
    assert load_checkpoint(path, num_classes=3).class_names == NAMES
    with pytest.raises(CheckpointError, match="trained for 3 classes, expected 80"):
        load_checkpoint(path, num_classes=80)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert "no such file" in refusal(path)
    assert "is a folder" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "empty file" in refusal(path)
    path.write_text("<html>not found</html>")
    assert "an HTML page" in refusal(path)
    save_checkpoint(make_checkpoint(), path)
    data = path.read_bytes()
    for length in (1, 7, 8, 100, 5000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert "truncated or another format" in refusal(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """The disk refuses the second write half-way: a limit on file sizes acts as a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.safetensors"
    save_checkpoint(make_checkpoint(), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            save_checkpoint(make_checkpoint(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _write_for_ever(path: Path) -> None:
    made, number = make_checkpoint(), 0
    while True:
        number += 1
        save_checkpoint(replace(made, provenance={"number": str(number)}), path)


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
