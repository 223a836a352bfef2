"""A fragile layer is found, named, and left in float; nothing else is."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.errors import GateError
from nmsfree_export.auto_mixed import search, worst
from nmsfree_export.candidate import FLOAT_LAYERS, Builder, FragileError
from nmsfree_export.export import ExportOptions, export_onnx, make_export_spec, trace
from nmsfree_export.graph.contract import content_of
from nmsfree_export.graph.half import to_half
from nmsfree_export.graph.layers import count_precisions
from nmsfree_export.verify.certificate import check_precision
from nmsfree_export.verify.layer_errors import LayerError
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

BLOCK = "backbone.layer2.1."
BEFORE, FRAGILE = f"{BLOCK}conv1", f"{BLOCK}conv2"
State = dict[str, torch.Tensor]
Edited = Callable[[Callable[[State], None]], Checkpoint]


@pytest.fixture
def edited(weights: Path) -> Edited:
    """Return what gives the trained nano detector with other weights."""

    def make(edit: Callable[[State], None]) -> Checkpoint:
        checkpoint = load_checkpoint(weights / "fcos_o2o_nano.safetensors")
        state = {key: value.clone() for key, value in checkpoint.state.items()}
        edit(state)
        return dataclasses.replace(checkpoint, state=state)

    return make


def huge_weights(state: State) -> None:
    """Two equal channels, and weights for them that cancel: a layer whose weights do not round.

    In half their last bit is 1 or 2, where all others are below 0.5; in INT8 they take the whole
    range of their channel. The values before and after are as they were.
    """
    norm = [f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    for name in ("conv1.weight", *norm):
        state[BLOCK + name][1] = state[BLOCK + name][0]
    state[f"{FRAGILE}.weight"][:, 0, 1, 1] += 2000
    state[f"{FRAGILE}.weight"][:, 1, 1, 1] -= 2000


def scaled(factor: float, channels: slice) -> Callable[[State], None]:
    """Values that are larger by a factor, and weights for them that are smaller by it."""

    def edit(state: State) -> None:
        for name in ("bn1.weight", "bn1.bias"):
            state[BLOCK + name][channels] *= factor
        state[f"{FRAGILE}.weight"][:, channels] /= factor

    return edit


overflow = scaled(1e6, slice(None))  # beyond 65504, the largest half
outlier = scaled(1000, slice(0, 1))  # one channel takes the range of all


@pytest.mark.parametrize(
    ("edit", "target", "names", "counts"),
    [
        (huge_weights, None, [FRAGILE], {"fp16": 43, "fp32": 1}),
        (overflow, None, [BEFORE, FRAGILE], {"fp16": 42, "fp32": 2}),
        # The layer before rounds what it gives, so the first attempt is not enough.
        (outlier, "cpu", [FRAGILE, BEFORE], {"int8": 36, "fp32": 8}),
        # TensorRT rounds before a layer only.
        (outlier, "tensorrt", [FRAGILE], {"int8": 37, "fp32": 7}),
    ],
)
def test_fragile_layers_and_no_others_stay_in_float(
    edited: Edited,
    digits: Path,
    tmp_path: Path,
    edit: Callable[[State], None],
    target: str | None,
    names: list[str],
    counts: dict[str, int],
) -> None:
    int8: Any = {"target": target, "calibrate": digits, "calibration_images": 4} if target else {}
    lower = "int8" if target else "fp16"
    options = ExportOptions(precision=lower, auto_mixed=True, **int8)
    lines: list[str] = []
    out = tmp_path / "model.onnx"
    report = export_onnx(edited(edit), out, options, log=lines.append)
    assert report.parity.passed and list(report.float_layers) == names
    model = onnx.load(out)
    assert report.spec.to_json() == model.metadata_props[0].value
    assert json.loads(report.spec.to_json())["provenance"][FLOAT_LAYERS] == ", ".join(names)
    assert count_precisions(model) == counts
    shown = dict(report.certificate.lines)
    assert shown["precision"] == (
        f"{counts[lower]} convolutions in {lower}, {counts['fp32']} in fp32"
    )
    assert shown["float layers of --auto-mixed"] == ", ".join(names)
    attempts = 2 if names == [FRAGILE, BEFORE] else 1
    assert [a.float_layers for a in report.attempts] == [(), (FRAGILE,)][:attempts]
    assert len(lines) == attempts
    assert lines[0].startswith("attempt 1: parity: ") and "; next in float: " in lines[0]
    if attempts == 2:
        assert f"; next in float: {BEFORE} (rounds what {FRAGILE} reads, " in lines[1]
    written: Any = report.to_json()
    assert written["float_layers"] == names
    assert [a.keys() for a in written["attempts"]] == [{"kept", "failure"}] * attempts


def test_without_it_the_fragile_layer_is_named(
    edited: Edited, run: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    """On the command line: exit with the words, the table, and no file."""
    weights, out = tmp_path / "fragile.safetensors", tmp_path / "model.onnx"
    save_checkpoint(edited(huge_weights), weights)
    int8 = ["--precision", "int8", "--for", "cpu", "--calibrate", digits]
    outcome = run("export", weights, "-o", out, *int8)
    assert isinstance(outcome.exception, FragileError) and outcome.exception.exit_status == 1
    words = (
        r"parity: 5 images, \d+ rows, \d+ unmatched \(.*\); most error comes from (\S+) "
        r"\((\d+) %\): --auto-mixed keeps such layers in float"
    )
    found = re.fullmatch(words, str(outcome.exception))
    assert found is not None, str(outcome.exception)
    assert found[1] == FRAGILE and int(found[2]) > 100
    assert "layers in int8 beside FP32" in outcome.stderr
    row = next(row for row in outcome.stderr.splitlines() if "Conv" in row)
    assert row.split()[:4] == [FRAGILE, "Conv", "int8", found[2]]
    assert not out.exists()


class Refusing:
    """A verifier that nothing passes; every layer adds the same error."""

    def __init__(self, names: Sequence[str], full: str = "") -> None:
        self.names, self.full = names, full

    def verify(self, candidate: object) -> None:
        raise GateError("accuracy: 77.1 → 60.0 AP")

    def check_full(self) -> None:
        if self.full:
            raise GateError(self.full)

    def layers(self, candidate: object) -> list[LayerError]:
        return [LayerError(name, "Conv", "fp16", 0.01, 0.02, 0.1) for name in self.names]


def test_it_gives_up_before_everything_is_float(checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = make_export_spec(checkpoint, ExportOptions(precision="fp16"))
    real = Builder(trace(checkpoint, spec), spec, None, tmp_path)
    asked: list[int] = []

    def build(names: Sequence[str]) -> Any:
        asked.append(len(names))
        return SimpleNamespace(spec=spec)

    builder: Any = SimpleNamespace(original=real.original, movable=real.movable, build=build)
    names, lines = list(real.movable()), []  # type: ignore[var-annotated]
    verifier: Any = Refusing(names)
    with pytest.raises(FragileError) as caught:
        search(builder, verifier, lines.append)
    assert str(caught.value) == (
        "accuracy: 77.1 → 60.0 AP; --auto-mixed found no file in fp16 that passes: it would leave "
        "no layer in it; keep fp32"
    )
    assert len(names) == 40 and asked == [0, 4, 12, 28]
    assert lines[0] == (
        "attempt 1: accuracy: 77.1 → 60.0 AP; next in float: backbone.conv1 (1 %), "
        "backbone.layer1.0.conv1 (1 %), backbone.layer1.0.conv2 (1 %), "
        "backbone.layer1.1.conv1 (1 %)"
    )
    asked.clear()
    verifier = Refusing([], "not the precision")  # FP32 fails, too: it stops at once
    with pytest.raises(GateError, match=r"^not the precision$"):
        search(builder, verifier, print)
    assert asked == [0]


def test_who_goes_next() -> None:
    def error(name: str, added: float) -> LayerError:
        return LayerError(name, "Conv", "int8", added, added, added)

    errors = [error("a", 0.8), error("b", 0.5), error("c", 0.39), error("d", 0.01)]
    nobody: dict[str, list[str]] = {e.name: [] for e in errors}

    def next_ones(sources: dict[str, list[str]], free: str, limit: int = 4) -> dict[str, str]:
        return {name: e.name for name, e in worst(errors, sources, free, limit).items()}

    assert next_ones(nobody, "abcd") == {"a": "a", "b": "b"}, "at least half as bad as the worst"
    assert next_ones(nobody, "abcd", limit=1) == {"a": "a"}
    assert next_ones(nobody, "bcd") == {"b": "b", "c": "c"}, "a is in float already"
    rounding = nobody | {"a": ["d", "x"]}
    assert next_ones(rounding, "bcd") == {"d": "a", "b": "b"}, "d rounds what a reads"
    assert next_ones(nobody, "") == {}
    errors[:2] = [error("a", math.inf), error("b", math.inf)]
    assert next_ones(nobody, "abcd") == {"a": "a", "b": "b"}


def test_float_among_halves_with_filters(
    make_checkpoint: Callable[..., Checkpoint], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """One level of a branch, one side of a sum, the first and the last convolutions."""
    filters: Any = {"max_filter": "features", "dedup_iou": 0.8}
    made = make_checkpoint(dataclasses.replace(checkpoint.model, **filters), (96, 128))
    spec = make_export_spec(made, ExportOptions(precision="fp16"))
    names = ["backbone.conv1", "backbone.layer2.0.downsample", "fpn.input_projs.1"]
    names += ["heads.1.cls_heads.1.conv", "heads.2.cls_pred"]
    builder = Builder(trace(made, spec), spec, None, tmp_path)
    candidate = builder.build(names)
    images = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8).numpy()

    def scores(model: ModelProto) -> Any:
        path = tmp_path / "model.onnx"
        path.write_bytes(content_of(model, spec))
        return OnnxRuntimeBackend(path).run(images).detection_scores

    assert abs(scores(candidate.model) - scores(builder.original.model)).max() < 0.01
    assert count_precisions(candidate.model)["fp32"] == 7, "three levels share the last"
    checks = [check for check, _ in candidate.certificate.lines]
    assert checks[-3:-1] == ["precision", "float layers of --auto-mixed"]


def test_the_certificate_knows_which_layers_are_in_float(checkpoint: Checkpoint) -> None:
    spec = make_export_spec(checkpoint, ExportOptions(precision="fp16"))
    model = to_half(trace(checkpoint, spec).model, [BEFORE])
    check_precision(model, "fp16", [BEFORE])
    for names, words in (
        ([FRAGILE], f"convolutions in fp32 are {BEFORE}, expected {FRAGILE}"),
        ([], "convolutions in fp16 (43), fp32 (1), expected all in fp16"),
    ):
        with pytest.raises(GateError, match=re.escape(f"certificate: {words}")):
            check_precision(model, "fp16", names)
