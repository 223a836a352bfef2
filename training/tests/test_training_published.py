"""Published `.pth` files: they load as they are, run nothing, and bad ones get one clear line."""

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nmsfree.datasets.rows import COCO_CATEGORY_IDS, COCO_NAMES
from nmsfree.errors import CheckpointError, NmsfreeError
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import load_checkpoint
from nmsfree_training.weights.published import to_published_keys
from nmsfree_training.weights.torch_file import read_torch_file

State = dict[str, Tensor]
ThinState = Callable[..., State]
FILES = {
    "fcos_rt_r18_3x": "fcos_rt_r18_3x_coco.pth",
    "fcos_o2o_r18_3x": "fcos_rt_r18_3x_top1_coco.pth",
    "fcos_e2e_r18_3x": "fcos_e2e_r18_3x_coco.pth",
}


def published_content(state: State) -> dict[str, Any]:
    """What the authors' training script saves, optimizer and all."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.01, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [24, 33])
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "mAP": np.float64(0.3583),
        "epoch": 35,
        "args": argparse.Namespace(model="fcos", lr=0.01, pretrained=True, root=None),
    }


@pytest.fixture
def pth(tmp_path: Path, thin_state: ThinState) -> Callable[..., Path]:
    """Return a function writing a small file with the layout of a published one."""

    def write(name: str = "fcos_rt_r18_3x", num_classes: int = 80, **changes: Any) -> Path:
        state = thin_state(name, num_classes) | changes
        path = tmp_path / FILES[name]
        torch.save(published_content({k: v for k, v in state.items() if v is not None}), path)
        return path

    return write


@pytest.fixture(params=[False, True], ids=["zip", "old format"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that saves as one of the two formats of torch.save."""

    def write(content: Any) -> Path:
        path = tmp_path / "model.pth"
        torch.save(content, path, _use_new_zipfile_serialization=not request.param)
        assert zipfile.is_zipfile(path) != request.param
        return path

    return write


def refusal(path: Path, **arguments: Any) -> str:
    """Load a bad file and return the message, which must be one line and name the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_full_file_loads_as_it_is(
    name: str, random_network: Callable[[str], Fcos], tmp_path: Path
) -> None:
    network = random_network(name.replace("o2o", "rt"))  # of the same layout
    state = to_published_keys(network.config.heads, network.state_dict())
    path = tmp_path / FILES[name]
    torch.save(published_content(state), path)
    loaded = load_checkpoint(path)
    assert loaded.model == preset(name).model
    assert loaded.input_size == (512, 736)
    assert (loaded.class_names, loaded.category_ids) == (COCO_NAMES, COCO_CATEGORY_IDS)
    assert loaded.provenance == {"source": path.name, "mAP": "0.3583", "epoch": "35.0"}
    built = loaded.build()
    assert not built.training
    found = to_published_keys(loaded.model.heads, built.state_dict())
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


def test_both_formats_of_torch_save(thin_state: ThinState, save: Callable[[Any], Path]) -> None:
    assert load_checkpoint(save(published_content(thin_state()))).model.name == "fcos_rt_r18_3x"
    bare = save(thin_state("fcos_e2e_r18_3x"))  # the state dict alone
    assert load_checkpoint(bare).model.name == "fcos_e2e_r18_3x"


def rewrite_pickle(path: Path, old: bytes, new: bytes) -> int:
    """Replace bytes of the pickle inside a checkpoint; returns how often they were there."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    count = members[name].count(old)
    members[name] = members[name].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return count


def test_files_written_with_numpy_1(pth: Callable[..., Path]) -> None:
    path = pth()
    # The pickle names modules by lines of text, so the older name is a plain replacement.
    assert rewrite_pickle(path, b"numpy._core.multiarray", b"numpy.core.multiarray") == 1
    assert load_checkpoint(path).provenance["mAP"] == "0.3583"


def test_other_class_counts(pth: Callable[..., Path]) -> None:
    path = pth("fcos_e2e_r18_3x", 3)
    loaded = load_checkpoint(path)
    assert loaded.model.num_classes == 3
    assert loaded.class_names == ("class 0", "class 1", "class 2")
    message = refusal(path, num_classes=80)
    assert "trained for 3 classes, expected 80" in message


def test_the_model_can_be_named(pth: Callable[..., Path]) -> None:
    path = pth("fcos_rt_r18_3x")
    assert load_checkpoint(path, "fcos_o2o_r18_3x").model.heads == ("o2o",)
    for wrong in ("fcos_e2e_r18_3x", "fcos_rt_nano"):
        assert "choose the right --model" in refusal(path, model=wrong)
    assert "choose the right --model" in refusal(pth("fcos_e2e_r18_3x"), model="fcos_rt_r18_3x")
    with pytest.raises(NmsfreeError, match="'nonsense' is unknown"):
        load_checkpoint(path, "nonsense")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "rt",
            {"fpn.input_projs.0.bias": None},
            "1 keys missing (first: fpn.input_projs.0.bias), 0 too many",
        ),
        (
            "rt",
            {"fpn.extra.weight": torch.zeros(3)},
            "0 keys missing, 1 too many (first: fpn.extra.weight)",
        ),
        (
            "rt",
            {"backbone.body.conv1.weight": torch.zeros(64, 3, 3, 3)},
            "backbone.conv1.weight has shape (64, 3, 3, 3), expected (64, 3, 7, 7)",
        ),
        ("rt", {"head.cls_pred.weight": None}, "class counts [] in 'cls_pred', expected one"),
        (
            "e2e",
            {"detection_head_o2m.cls_pred.weight": torch.zeros(3, 256, 3, 3)},
            "class counts [3, 80]",
        ),
        (
            "rt",
            {"head.cls_pred.bias": torch.full((80,), float("nan"))},
            "cls_pred.bias holds values that are not finite",
        ),
    ],
)
def test_wrong_tensors(
    name: str, changes: dict[str, Any], message: str, pth: Callable[..., Path]
) -> None:
    assert message in refusal(pth(f"fcos_{name}_r18_3x", **changes))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1, 2], "holds a list, expected a dict"),
        ({"model": 3}, "no 'model' entry with tensors"),
        ({"model": {1: torch.zeros(1)}}, "no 'model' entry with tensors"),
        ({"epoch": 3}, "no 'model' entry with tensors, found ['epoch']"),
        ({"model": {"layer.weight": torch.zeros(1)}}, "expected a published FCOS checkpoint"),
        ({"model": {}}, "keys such as 'none'"),
        ({"model": torch.zeros(80)}, "no 'model' entry"),
    ],
)
def test_other_contents(content: Any, complaint: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    assert complaint in refusal(tmp_path / "other.pth")


def test_odd_figures_are_left_out(tmp_path: Path, thin_state: ThinState) -> None:
    torch.save({"model": thin_state(), "mAP": None, "epoch": [1]}, tmp_path / "odd.pth")
    assert load_checkpoint(tmp_path / "odd.pth").provenance == {"source": "odd.pth"}


class MakeFolder:
    """Unpickled, it would make a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.victim),))


class Harmless:
    """Some class of the user's own."""


def test_nothing_that_is_pickled_runs(
    thin_state: ThinState, tmp_path: Path, save: Callable[[Any], Path]
) -> None:
    victim = tmp_path / "made"
    for place in ("model", "args", "optimizer"):
        path = save(published_content(thin_state()) | {place: MakeFolder(victim)})
        message = refusal(path)
        assert f"holds the Python object {os.name}.mkdir" in message
        assert "refused" in message and "weights_only" not in message
    path.write_bytes(pickle.dumps(MakeFolder(victim), protocol=2))
    refusal(path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(MakeFolder(victim)))
    assert victim.exists()  # it would have


def test_other_classes_are_refused(thin_state: ThinState, tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save(published_content(thin_state()) | {"args": Harmless()}, path)
    assert "Harmless, expected dense tensors and plain values" in refusal(path)
    torch.save(published_content(thin_state()) | {"mAP": np.arange(3)}, path)
    assert "holds the Python object numpy" in refusal(path)


def test_the_allowance_ends_with_the_call(pth: Callable[..., Path]) -> None:
    path = pth()
    load_checkpoint(path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace|numpy"):
        read_torch_file(path)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    """The rest is as for our own files."""
    path = tmp_path / "model.pth"
    path.write_text("<!DOCTYPE html>\n<html><body>Not Found</body></html>")
    assert "an HTML page, probably an error page" in refusal(path)
    path.write_bytes(b"\x00\x01garbage" * 50)
    assert "450 bytes that cannot be read" in refusal(path)


def odd_tensors() -> dict[str, Any]:
    dense = torch.ones(4, 4)
    return {
        "sparse": dense.to_sparse(),
        "sparse rows": dense.to_sparse_csr(),
        "meta": torch.empty(10**6, 10**4, device="meta"),
        "quantised": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "complex": torch.ones(3, dtype=torch.complex64),
        "float 8": torch.ones(3).to(torch.float8_e4m3fn),
        "bytes": bytearray(10),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", odd_tensors())
def test_only_dense_tensors_are_made(
    thin_state: ThinState, kind: str, save: Callable[[Any], Path]
) -> None:
    path = save(thin_state() | {"head.cls_pred.bias": odd_tensors()[kind]})
    assert "expected dense tensors" in refusal(path)


class Sized:
    """A tensor made of a number, as the safe loader of PyTorch would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (torch.FloatTensor, (10**9,))


def test_a_small_file_makes_no_large_tensor(thin_state: ThinState, tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save({"model": thin_state(), "optimizer": Sized()}, path)
    assert "torch.FloatTensor, expected dense" in refusal(path)
    state = thin_state() | {"head.cls_pred.weight": torch.zeros(1).expand(10**9, 256, 3, 3)}
    torch.save(state, path)
    assert "class counts [1000000000] in 'cls_pred', expected one, from 1 to" in refusal(path)
    torch.save({"model": thin_state()}, path, pickle_protocol=4)
    assert "behind STACK_GLOBAL" in refusal(path)


def test_what_unpacks_to_more_than_the_limit_is_refused(
    thin_state: ThinState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, packed = tmp_path / "large.pth", tmp_path / "packed.pth"
    torch.save({"model": thin_state(), "more": torch.zeros(3 << 18)}, path)
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as two:
        for name in one.namelist():
            two.writestr(name, one.read(name))
    assert packed.stat().st_size < 1 << 18
    assert load_checkpoint(packed).model.name == "fcos_rt_r18_3x"
    monkeypatch.setenv("NMSFREE_MAX_FILE_MB", "2")
    message = refusal(packed)
    assert "unpacked" in message
    assert "set NMSFREE_MAX_FILE_MB=4" in message


def test_truncated_files(thin_state: ThinState, save: Callable[[Any], Path]) -> None:
    path = save(published_content(thin_state()))
    data = path.read_bytes()
    for length in [1, 10, *range(100, len(data) - 8, len(data) // 40)]:
        path.write_bytes(data[:length])
        message = refusal(path)
        # A cut inside the name of a class leaves another name, which is not admitted.
        assert "truncated or another format" in message or "refused" in message


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_load_or_are_refused(
    thin_state: ThinState, save: Callable[[Any], Path]
) -> None:
    """Whatever PyTorch raises on overwritten bytes, the user sees our error."""
    path = save(published_content(thin_state()))
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(0, min(len(data), 15_000), 3):
            data[position] = random.integers(256)
        path.write_bytes(data)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 30
