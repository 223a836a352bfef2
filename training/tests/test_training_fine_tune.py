"""Starting from another checkpoint: what is taken, what is new, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nmsfree.errors import CheckpointError
from nmsfree_training.checkpoint import Checkpoint, save_checkpoint
from nmsfree_training.config import preset
from nmsfree_training.detector import Fcos
from nmsfree_training.fine_tune import fine_tune
from nmsfree_training.retrofit import freeze_statistics, retrofit

NAMES = ("ant", "bee", "cat")


def checkpoint(path: Path, name: str = "fcos_rt_nano", names: tuple[str, ...] = NAMES) -> Fcos:
    chosen = preset(name, len(names))
    network = Fcos(chosen.model)
    ids = tuple(range(1, len(names) + 1))
    save_checkpoint(
        Checkpoint(chosen.model, chosen.input_size, names, ids, network.state_dict()), path
    )
    return network


def test_same_classes_and_heads_load_whole(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a.safetensors")
    network = Fcos(preset("fcos_rt_nano", 3).model)
    loaded = fine_tune(network, tmp_path / "a.safetensors", NAMES)
    assert loaded.taken == loaded.total and loaded.fresh == () == loaded.rows
    assert all(torch.equal(source.state_dict()[k], v) for k, v in network.state_dict().items())


def test_other_classes_keep_what_they_share(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a.safetensors").state_dict()
    network = Fcos(preset("fcos_rt_nano", 5).model)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    names = ("dog", "cat", "ant", "elk", "fly")
    loaded = fine_tune(network, tmp_path / "a.safetensors", names)
    assert loaded.rows == ("ant", "cat")
    predictor = "heads.o2m.cls_pred."
    assert loaded.fresh == (predictor + "weight", predictor + "bias")
    assert str(loaded).startswith(f"{loaded.total - 2} of {loaded.total} tensors loaded, and the")
    assert str(loaded).endswith(
        "2 classes of the same name; new: the predictors of the other classes"
    )
    for kind in ("weight", "bias"):
        rows = network.state_dict()[predictor + kind]
        assert torch.equal(rows[1], source[predictor + kind][2])
        assert torch.equal(rows[2], source[predictor + kind][0])
        for new in (0, 3, 4):
            assert torch.equal(rows[new], start[predictor + kind][new])
    rest = [k for k in source if predictor not in k]
    assert all(torch.equal(network.state_dict()[k], source[k]) for k in rest)


def test_a_missing_head_starts_as_a_copy(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a.safetensors").state_dict()
    network = Fcos(preset("fcos_e2e_nano", 3).model)
    loaded = fine_tune(network, tmp_path / "a.safetensors", NAMES)
    assert loaded.taken == loaded.total
    for key, value in network.state_dict().items():
        assert torch.equal(value, source[key.replace(".o2o.", ".o2m.")]), key


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.safetensors")
    network = Fcos(replace(preset("fcos_rt_nano", 3).model, width=24))
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight has shape \(16, 3, 7, 7\)"):
        fine_tune(network, tmp_path / "a.safetensors", NAMES)


def test_retrofit_adds_a_copy_of_the_head_and_trains_it_alone(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a.safetensors").state_dict()
    made = retrofit(tmp_path / "a.safetensors", NAMES, unfreeze=False)
    assert made.preset.model.name == "fcos_e2e_nano" and made.heads == ("o2o",)
    assert made.preset.train.epochs < preset("fcos_e2e_nano").train.epochs
    for key, value in made.network.state_dict().items():
        assert torch.equal(value, source[key.replace(".o2o.", ".o2m.")]), key
    for name, parameter in made.network.named_parameters():
        assert parameter.requires_grad == name.startswith("heads.o2o."), name


def test_frozen_parts_keep_their_statistics(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.safetensors")
    network = retrofit(tmp_path / "a.safetensors", NAMES, unfreeze=False).network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()
    freeze_statistics(network)
    network(torch.randn(2, 3, 64, 64), heads=("o2m", "o2o"))
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and all(k.startswith("heads.o2o.") for k in changed)


def test_unfrozen_retrofit_lets_the_gradient_through(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.safetensors")
    made = retrofit(tmp_path / "a.safetensors", NAMES, unfreeze=True)
    assert made.heads == ("o2m", "o2o") and not made.preset.model.detach_o2o
    made.network(torch.randn(1, 3, 64, 64), heads=("o2o",))["o2o"].logits.sum().backward()
    assert made.network.backbone.conv1.weight.grad is not None


def test_retrofit_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o2o.safetensors", "fcos_o2o_nano")
    with pytest.raises(CheckpointError, match="no one-to-many head: it needs no NMS already"):
        retrofit(tmp_path / "o2o.safetensors", NAMES, unfreeze=False)
    checkpoint(tmp_path / "rt.safetensors")
    with pytest.raises(CheckpointError, match=r"trained for 3 classes .* the dataset has 2"):
        retrofit(tmp_path / "rt.safetensors", ("ant", "bee"), unfreeze=False)


def test_frozen_stages_of_a_retrofit_are_those_of_its_description(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.safetensors")
    made = retrofit(tmp_path / "a.safetensors", NAMES, unfreeze=True, frozen_stages=2)
    assert made.preset.model.frozen_stages == made.network.config.frozen_stages == 2
    assert not made.network.backbone.layer1[0].conv1.weight.requires_grad
    assert made.network.backbone.layer2[0].conv1.weight.requires_grad
