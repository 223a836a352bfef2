"""Starting from another checkpoint or ImageNet weights: what is taken, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nmsfree.errors import CheckpointError
from nmsfree_training.config import PRESETS, HeadName, Matching, MaxFilter, Preset, preset
from nmsfree_training.loop.start import fine_tune, load_imagenet, retrofit
from nmsfree_training.model.backbones.resnet import ResNet
from nmsfree_training.model.detector import Fcos, fresh_network
from nmsfree_training.model.filters import GAIN
from nmsfree_training.model.norms import freeze_statistics

from .runs import State, save_network, weights

NAMES = ("ant", "bee", "cat")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def checkpoint(path: Path, name: str = "fcos_rt_nano") -> State:
    network = Fcos(preset(name, len(NAMES)).model)
    return weights(save_network(network, path, NAMES))


def test_same_classes_and_heads_load_whole(path: Path) -> None:
    source = checkpoint(path)
    network = Fcos(preset("fcos_rt_nano", 3).model)
    loaded = fine_tune(network, path, NAMES)
    assert loaded.taken == loaded.total and loaded.fresh == () == loaded.rows
    assert all(torch.equal(source[k], v) for k, v in network.state_dict().items())


def test_other_classes_keep_what_they_share(path: Path) -> None:
    source = checkpoint(path)
    network = Fcos(preset("fcos_rt_nano", 5).model)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    names = ("dog", "cat", "ant", "elk", "fly")
    loaded = fine_tune(network, path, names)
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


def test_a_missing_head_starts_as_a_copy(path: Path) -> None:
    source = checkpoint(path)
    network = Fcos(preset("fcos_e2e_nano", 3).model)
    loaded = fine_tune(network, path, NAMES)
    check_copied(network, source)
    assert loaded.taken == loaded.total - len(loaded.fresh)
    assert loaded.fresh and all(".duplicate_filter." in key for key in loaded.fresh)


def check_copied(network: Fcos, source: State) -> None:
    """Both heads are the source's o2m head; filters, which it does not have, are at zero."""
    for key, value in network.state_dict().items():
        if "_filter." in key:
            assert not value.any(), key
        else:
            assert torch.equal(value, source[key.replace(".o2o.", ".o2m.")]), key


def test_another_architecture_is_refused(path: Path) -> None:
    checkpoint(path)
    network = Fcos(replace(preset("fcos_rt_nano", 3).model, width=24))
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight has shape \(16, 3, 7, 7\)"):
        fine_tune(network, path, NAMES)


def test_retrofit_adds_a_copy_of_the_head_and_trains_it_alone(path: Path) -> None:
    source = checkpoint(path)
    made = retrofit(path, NAMES, unfreeze=False)
    assert made.preset.model.name == "fcos_e2e_nano" and made.heads == ("o2o",)
    assert made.preset.train.epochs < preset("fcos_e2e_nano").train.epochs
    assert made.preset.train.o2o_gradient == preset("fcos_e2e_nano").train.o2o_gradient
    check_copied(made.network, source)
    for name, parameter in made.network.named_parameters():
        assert parameter.requires_grad == name.startswith("heads.o2o."), name


def test_frozen_parts_keep_their_statistics(path: Path) -> None:
    checkpoint(path)
    network = retrofit(path, NAMES, unfreeze=False).network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()
    freeze_statistics(network)
    network(torch.randn(2, 3, 64, 64), heads=("o2m", "o2o"))
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and all(k.startswith("heads.o2o.") for k in changed)


def test_unfrozen_retrofit_lets_the_gradient_through(path: Path) -> None:
    checkpoint(path)
    made = retrofit(path, NAMES, unfreeze=True, frozen_stages=2)
    assert made.heads == ("o2m", "o2o") and made.preset.train.o2o_gradient == 1
    made.network(torch.randn(1, 3, 64, 64), heads=("o2o",))["o2o"].logits.sum().backward()
    assert made.preset.model.frozen_stages == made.network.config.frozen_stages == 2
    assert made.network.backbone.layer1[0].conv1.weight.grad is None
    assert made.network.backbone.layer2[0].conv1.weight.grad is not None


KINDS = pytest.mark.parametrize("kind", ["logits", "features"])


@pytest.fixture
def with_filter(monkeypatch: pytest.MonkeyPatch) -> Callable[[MaxFilter], None]:
    """Return a function that gives the preset fcos_e2e_nano a filter and other settings."""
    family, heads = PRESETS["fcos_e2e_nano"]

    def change(kind: MaxFilter) -> None:
        def changed(name: str, heads: tuple[HeadName, ...], num_classes: int) -> Preset:
            chosen = family(name, heads, num_classes)
            recipe = replace(
                chosen.train, o2o=Matching(1, (0.2, 0.8)), o2o_gradient=0.1, o2o_start=0.5
            )
            return replace(chosen, model=replace(chosen.model, max_filter=kind), train=recipe)

        monkeypatch.setitem(PRESETS, "fcos_e2e_nano", (changed, heads))

    return change


@pytest.mark.parametrize("unfreeze", [False, True])
@KINDS
def test_retrofit_takes_filter_and_matching_of_the_two_headed_preset(
    kind: MaxFilter, unfreeze: bool, path: Path, with_filter: Callable[[MaxFilter], None]
) -> None:
    source = checkpoint(path)
    with_filter(kind)
    made = retrofit(path, NAMES, unfreeze=unfreeze)
    assert made.preset.model.max_filter == made.network.config.max_filter == kind
    assert made.preset.train.o2o == Matching(1, (0.2, 0.8))
    assert made.preset.train.o2o_gradient == (1.0 if unfreeze else 0.1)
    assert made.preset.train.o2o_start == 0  # the o2m head is finished
    check_copied(made.network, source)
    assert all(p.requires_grad for k, p in made.network.named_parameters() if "_filter." in k)


def test_retrofit_of_a_two_headed_checkpoint_starts_the_filter_anew(
    path: Path, with_filter: Callable[[MaxFilter], None]
) -> None:
    with_filter("logits")
    chosen = preset("fcos_e2e_nano", 3)
    network = Fcos(chosen.model)
    with torch.no_grad():
        for parameter in network.heads["o2o"].logit_filter.parameters():
            parameter.fill_(1.0)
    save_network(network, path, NAMES)
    again = retrofit(path, NAMES, unfreeze=False)
    assert again.preset.model.max_filter == "logits"
    assert not any(p.any() for p in again.network.heads["o2o"].logit_filter.parameters())


def test_retrofit_of_a_network_without_a_preset_has_no_filter(
    path: Path, with_filter: Callable[[MaxFilter], None]
) -> None:
    with_filter("logits")
    model = replace(preset("fcos_rt_nano", 3).model, name="own")
    save_network(Fcos(model), path, NAMES)
    own = retrofit(path, NAMES, unfreeze=False)
    assert (own.preset.model.name, own.preset.model.max_filter) == ("own", "none")


@pytest.mark.parametrize("name", ["fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano"])
@KINDS
def test_a_new_filter_is_named_as_fresh(kind: MaxFilter, name: str, path: Path) -> None:
    source = checkpoint(path, name)
    network = Fcos(replace(preset("fcos_e2e_nano", 3).model, max_filter=kind))
    loaded = fine_tune(network, path, NAMES)
    new = [key for key in network.state_dict() if "_filter." in key and key not in source]
    assert new and loaded.fresh == tuple(new) and loaded.taken == loaded.total - len(new)
    named = ", ".join(new[:4]) + (", …" if len(new) > 4 else "")
    assert str(loaded).endswith(f"not in it: {named}")
    assert not any(network.state_dict()[key].any() for key in new)
    head = "o2m" if name == "fcos_rt_nano" else "o2o"
    found = network.state_dict()["heads.o2o.cls_pred.weight"]
    assert torch.equal(found, source[f"heads.{head}.cls_pred.weight"])


def test_fine_tuning_goes_on_with_a_trained_filter(path: Path) -> None:
    model = replace(preset("fcos_e2e_nano", 3).model, max_filter="logits")
    source = Fcos(model)
    with torch.no_grad():
        for parameter in source.heads["o2o"].logit_filter.parameters():
            parameter.fill_(0.5)
    save_network(source, path, NAMES)
    network = Fcos(model)
    assert fine_tune(network, path, NAMES).fresh == ()
    assert all((p == 0.5).all() for p in network.heads["o2o"].logit_filter.parameters())


def test_retrofit_refuses_what_it_cannot_use(path: Path) -> None:
    checkpoint(path, "fcos_o2o_nano")
    with pytest.raises(CheckpointError, match="no one-to-many head: it needs no NMS already"):
        retrofit(path, NAMES, unfreeze=False)
    checkpoint(path)
    with pytest.raises(CheckpointError, match=r"trained for 3 classes .* the dataset has 2"):
        retrofit(path, ("ant", "bee"), unfreeze=False)


# ImageNet weights with torchvision's names


def torchvision_state(depth: int = 18, width: int = 64) -> dict[str, Tensor]:
    """What torchvision's file of this ResNet holds: counters and a classifier come with it."""
    resnet = ResNet(depth, width, frozen_norm=False, frozen_stages=0)
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = resnet.state_dict()
    assert "bn1.num_batches_tracked" in state and "layer2.0.downsample.1.weight" in state
    features = resnet.channels[-1]
    return state | {"fc.weight": torch.zeros(1000, features), "fc.bias": torch.zeros(1000)}


def small(frozen_norm: bool) -> Fcos:
    name = "fcos_rt_r18_3x" if frozen_norm else "fcos_rt_nano"
    return Fcos(preset(name, 3).model)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("frozen_norm", [True, False])
def test_backbone_takes_the_weights(frozen_norm: bool, suffix: str, tmp_path: Path) -> None:
    network = small(frozen_norm)
    state = torchvision_state(width=network.config.width)
    path = tmp_path / f"resnet18{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    others = {k: v.clone() for k, v in network.state_dict().items() if "backbone" not in k}
    load_imagenet(network, path)
    for key, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    assert all(torch.equal(network.state_dict()[key], t) for key, t in others.items())


def test_files_without_counters(tmp_path: Path) -> None:
    """Old torchvision files have no num_batches_tracked."""
    state = {k: v for k, v in torchvision_state(width=16).items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    network = small(frozen_norm=False)
    load_imagenet(network, tmp_path / "old.pth")
    assert torch.equal(network.backbone.conv1.weight, state["conv1.weight"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    network, path = small(frozen_norm=False), tmp_path / "weights.pth"
    before = {k: v.clone() for k, v in network.state_dict().items()}

    def refusal(name: str = "weights.pth") -> str:
        with pytest.raises(CheckpointError) as caught:
            load_imagenet(network, tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in refusal()
    torch.save(torchvision_state(34, 16), path)
    assert "does not fit the ResNet-18 of width 16: 0 keys missing" in refusal()
    torch.save(torchvision_state(18, 64), path)
    assert "of another shape" in refusal()
    torch.save({"state_dict": torchvision_state(18, 16)}, path)
    assert "expected a state dict" in refusal()
    torch.save({3: torch.zeros(1)}, path)
    assert "expected a state dict" in refusal()
    odd = torchvision_state(18, 16)
    torch.save(odd | {"bn1.bias": torch.full((16,), float("inf"))}, path)
    assert "bn1.bias holds values that are not finite" in refusal()
    save_file({"a": torch.zeros(1)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 50)
    assert "truncated or another format" in refusal("cut.safetensors")
    torch.save([1], path)
    assert "holds list" in refusal()
    path.write_bytes(path.read_bytes()[:50])
    assert "truncated or another format" in refusal()
    (tmp_path / "weights.safetensors").write_bytes(b"123")
    assert "truncated or another format" in refusal("weights.safetensors")
    assert all(torch.equal(network.state_dict()[key], t) for key, t in before.items())


def test_the_filter_starts_as_asked() -> None:
    usual = preset("fcos_e2e_nano", 3)
    for strength in (0.0, 5.0):
        given = replace(usual, train=replace(usual.train, dedup_start=strength))
        weights = fresh_network(given, 0).heads["o2o"].duplicate_filter.weights
        assert all((own * GAIN == strength).all() for own in weights.values())
