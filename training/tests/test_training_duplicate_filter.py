"""The duplicate filter: what it compares, what it leaves alone; nothing else notices it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmsfree_training.config import STRIDES, preset
from nmsfree_training.model.boxes import anchor_points, decode, iou
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.filters import GAIN, DuplicateFilter
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

KINDS = ("same", "finer", "coarser")
SIZES = pytest.mark.parametrize("size", [(16, 24), (13, 19), (7, 8), (1, 5), (2, 1)])
Maps = list[Tensor]


def make_maps(size: tuple[int, int], classes: int = 3) -> tuple[Maps, Maps]:
    """Logits and deltas of three levels on which most boxes of neighbours agree well."""
    sizes = [size]
    for _ in range(2):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    logits = [torch.randn(2, classes, *s) for s in sizes]
    deltas = [0.2 * torch.randn(2, 4, *s) for s in sizes]
    for level, own in enumerate(deltas):
        own[:, 2:] += math.log(96 / STRIDES[level])  # objects of about 96 pixels
    return logits, deltas


def make_filter(seed: int = 0) -> DuplicateFilter:
    torch.manual_seed(seed)
    own = DuplicateFilter(3, 0.8)
    for weight in own.weights.values():
        torch.nn.init.uniform_(weight, 0.1, 0.4)
    return own


def neighbours(shapes: list[tuple[int, int]], level: int, y: int, x: int) -> list[tuple[str, int]]:
    """Kind and row, among all cells, of the cells that are compared with one."""
    starts = [sum(h * w for h, w in shapes[:n]) for n in range(len(shapes))]
    found = []

    def add(kind: str, other: int, i: int, j: int) -> None:
        h, w = shapes[other] if 0 <= other < len(shapes) else (0, 0)
        if 0 <= i < h and 0 <= j < w:
            found.append((kind, starts[other] + i * w + j))

    for i in (y - 1, y, y + 1):
        for j in (x - 1, x, x + 1):
            if (i, j) != (y, x):
                add("same", level, i, j)
    for i in range(2 * y - 1, 2 * y + 3):
        for j in range(2 * x - 1, 2 * x + 3):
            add("finer", level - 1, i, j)
    for i in ((y - 1) // 2, (y + 1) // 2):  # the nearest two: its own, and the one it leans to
        for j in ((x - 1) // 2, (x + 1) // 2):
            add("coarser", level + 1, i, j)
    return found


@SIZES
def test_every_cell_is_lowered_as_the_formula_says(size: tuple[int, int]) -> None:
    """Against plain loops over decoded boxes in pixels."""
    logits, deltas = make_maps(size)
    own = make_filter()
    with torch.inference_mode():
        filtered = own(logits, deltas)
    shapes = [(x.shape[2], x.shape[3]) for x in logits]
    points, strides = anchor_points(shapes, STRIDES)
    flat = torch.cat([d.flatten(2).transpose(1, 2) for d in deltas], dim=1)
    boxes, best = (
        decode(flat, points, strides),
        torch.cat([x.amax(1).flatten(1) for x in logits], 1),
    )
    lowered, cell = 0, 0
    for level, (h, w) in enumerate(shapes):
        for y in range(h):
            for x in range(w):
                for image in range(2):
                    want = 0.0
                    others = dict.fromkeys(KINDS, 0.0)
                    for kind, other in neighbours(shapes, level, y, x):
                        better = max(0.0, float(best[image, other] - best[image, cell]))
                        overlap = float(iou(boxes[image, other], boxes[image, cell]))
                        rate = math.tanh(50 * better) / (1 + math.exp(-40 * (overlap - 0.8)))
                        others[kind] = max(others[kind], rate)
                    for kind, rate in others.items():
                        want += GAIN * own.weights[kind][level].item() * rate
                    found = logits[level][image, :, y, x] - filtered[level][image, :, y, x]
                    assert torch.allclose(found, torch.tensor(want), atol=2e-4), (level, y, x)
                    lowered += want > 0.1
                cell += 1
    assert lowered > cell / 4 or cell < 10  # otherwise next to nothing was tested


def one_row(scores: list[float], centres: list[float], side: float = 10.0) -> tuple[Maps, Maps]:
    """One level of one row: a score and a box's centre, in strides, for each cell."""
    logits = torch.tensor(scores).reshape(1, 1, 1, -1)
    shift = torch.tensor(centres) - torch.arange(len(centres))
    zero, size = torch.zeros(len(centres)), torch.full((len(centres),), math.log(side))
    deltas = torch.stack([shift, zero, size, size])[None, :, None]
    return [logits], [deltas]


def run(scores: list[float], centres: list[float], strength: float = 4.0) -> list[float]:
    own = DuplicateFilter(1, 0.8)
    torch.nn.init.constant_(own.weights["same"], strength / GAIN)
    with torch.inference_mode():
        (out,) = own(*one_row(scores, centres))
    return [round(value, 3) for value in out.flatten().tolist()]


def test_duplicates_fall_and_neighbours_stay() -> None:
    """Boxes 10 strides wide: 0.2 strides apart IoU is 0.96, three apart 0.54."""
    assert run([2.0, 1.0], [5.0, 5.2]) == pytest.approx([2.0, -3.0], abs=0.01)
    assert run([2.0, 1.0], [5.0, 8.0]) == pytest.approx([2.0, 1.0], abs=0.001)
    # Three of one object: the best stays. The last is lowered by the middle one, though that is
    # lowered itself: all are compared at once.
    assert run([3.0, 2.0, 1.0], [5.0, 5.1, 5.2]) == pytest.approx([3.0, -2.0, -3.0], abs=0.01)
    # Two cells away is no neighbour.
    assert run([2.0, -9.0, 1.0], [5.0, 50.0, 5.0]) == pytest.approx([2.0, -9.0, 1.0], abs=0.001)


def test_equal_scores_both_stay() -> None:
    assert run([1.0, 1.0], [5.0, 5.0]) == [1.0, 1.0]


def nano(dedup_iou: float) -> Fcos:
    torch.manual_seed(1)
    return Fcos(replace(preset("fcos_e2e_nano", 3).model, dedup_iou=dedup_iou))


def strengthen(network: Fcos, value: float) -> None:
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "duplicate_filter." in key:
                parameter.fill_(value)


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_a_new_filter_changes_nothing(size: tuple[int, int]) -> None:
    plain, filtered = nano(0).eval(), nano(0.8).eval()
    new = set(filtered.state_dict()) - set(plain.state_dict())
    assert new == {f"heads.o2o.duplicate_filter.weights.{kind}" for kind in KINDS}
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        for head, want in plain(images).items():
            found = filtered(images)[head]
            assert torch.equal(found.logits, want.logits) and torch.equal(found.boxes, want.boxes)


def test_it_acts_on_the_scores_of_the_o2o_head_only() -> None:
    network, images = nano(0.8).eval(), torch.randn(1, 3, 64, 96)
    for name, weight in network.heads["o2o"].named_parameters():
        if name.endswith("conv.weight") or name == "cls_pred.weight":
            torch.nn.init.kaiming_normal_(weight)  # a new head has nearly the same score everywhere
        if name == "reg_pred.bias":
            torch.nn.init.constant_(weight, 2.0)  # and boxes too small to agree
    with torch.inference_mode():
        before = network(images)
        strengthen(network, 0.5)
        after = network(images)
    change = after["o2o"].logits - before["o2o"].logits
    assert bool((change <= 0).all()) and bool((change < -1).any())
    assert torch.equal(before["o2o"].boxes, after["o2o"].boxes)
    assert torch.equal(before["o2m"].logits, after["o2m"].logits)


def test_gradient_reaches_strengths_and_logits_but_no_comparison() -> None:
    own = make_filter()
    logits, deltas = make_maps((13, 19))
    for x in (*logits, *deltas):
        x.requires_grad_(True)
    torch.cat([x.flatten() for x in own(logits, deltas)]).sum().backward()
    assert all(d.grad is None for d in deltas)
    for x in logits:  # the derivative of a sum by what is passed on
        assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))
    for kind, weight in own.weights.items():
        assert weight.grad is not None
        # The first level has no finer one, the last no coarser one.
        exists = [kind != "finer", True, kind != "coarser"]
        assert (weight.grad < 0).tolist() == exists, kind


def test_strengths_are_trained_from_zero() -> None:
    network = nano(0.8)
    network(torch.randn(2, 3, 64, 96))["o2o"].logits.square().sum().backward()
    weights = {k: p for k, p in network.named_parameters() if "duplicate_filter." in k}
    assert len(weights) == 3
    assert all(p.grad is not None and bool(p.grad.any()) for p in weights.values())


def test_half_precision_is_compared_in_float32() -> None:
    logits, deltas = make_maps((13, 19))
    halves = [[x.bfloat16() for x in maps] for maps in (logits, deltas)]
    own = make_filter()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = own(*halves)
    with torch.inference_mode():
        want = own(*([x.float() for x in maps] for maps in halves))
    for x, z in zip(found, want, strict=True):
        assert x.dtype == torch.float32 and torch.allclose(x, z, atol=1e-6)


def test_the_folded_copy_says_the_same() -> None:
    own, (logits, deltas) = make_filter(), make_maps((16, 24))
    copy = own.folded()
    with torch.inference_mode():
        for x, z in zip(own(logits, deltas), copy(logits, deltas), strict=True):
            assert torch.allclose(x, z, atol=1e-6)
    for kind, weight in copy.weights.items():
        assert torch.equal(weight, GAIN * own.weights[kind])


def test_the_deployed_agreement_counts_after_training(tmp_path: Path) -> None:
    """Training does not know of it; weights and gradients are the same with any."""
    image = torch.randn(1, 3, 64, 96)
    logits: dict[tuple[float, bool], Tensor] = {}
    for deployed in (0.0, 0.8, 0.2):
        torch.manual_seed(1)
        model = replace(preset("fcos_e2e_nano", 3).model, dedup_iou=0.8)
        network = Fcos(replace(model, deployed_dedup_iou=deployed))
        strengthen(network, 0.5)
        for training in (True, False):
            torch.manual_seed(2)
            with torch.no_grad():
                logits[deployed, training] = network.train(training)(image)["o2o"].logits
        made = Checkpoint(
            network.config, (64, 96), ("a", "b", "c"), (1, 2, 3), network.state_dict()
        )
        save_checkpoint(made, tmp_path / "a.safetensors")
        with torch.no_grad():
            again = load_checkpoint(tmp_path / "a.safetensors").build()(image)["o2o"].logits
        assert torch.equal(again, logits[deployed, False])
    assert torch.equal(logits[0.2, True], logits[0.8, True])
    assert torch.equal(logits[0.0, False], logits[0.8, False])
    assert (logits[0.2, False] <= logits[0.8, False]).all()  # more cells give way
    assert (logits[0.2, False] < logits[0.8, False]).any()


def test_copying_the_head_leaves_the_filter_alone() -> None:
    network = nano(0.8)
    strengthen(network, 0.5)
    network.copy_head()
    weights = [p for key, p in network.named_parameters() if "duplicate_filter." in key]
    assert weights and all(bool((p == 0.5).all()) for p in weights)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    network = nano(0.8)
    strengthen(network, 0.25)
    made = Checkpoint(network.config, (64, 96), ("a", "b", "c"), (1, 2, 3), network.state_dict())
    save_checkpoint(made, tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.model == network.config and loaded.model.dedup_iou == 0.8
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        want, found = network.eval()(images)["o2o"], loaded.build()(images)["o2o"]
    assert torch.equal(found.logits, want.logits)
