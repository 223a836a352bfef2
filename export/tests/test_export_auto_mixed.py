"""A fragile layer is found, named, and kept in float; nothing else is."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
import typer
from onnx import ModelProto
from typer.testing import CliRunner

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.errors import GateError, InputError
from nmsfree_export.acceptance import FragileError
from nmsfree_export.auto_mixed import search, worst
from nmsfree_export.candidate import KEPT, Workshop
from nmsfree_export.cli.export import export as export_command
from nmsfree_export.export import ExportOptions, Int8Options, export_onnx, make_export_spec
from nmsfree_export.graph.precision import conv_precisions
from nmsfree_export.graph.write import build_onnx, deploy_module
from nmsfree_export.verify.layer_errors import LayerError
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

WEIGHTS = Path(__file__).parents[2] / "weights" / "fcos_o2o_nano.safetensors"
BLOCK = "backbone.layer2.1."
BEFORE, FRAGILE = f"{BLOCK}conv1", f"{BLOCK}conv2"
State = dict[str, torch.Tensor]


def edited(edit: Callable[[State], None]) -> Checkpoint:
    """The trained nano detector with other weights."""
    checkpoint = load_checkpoint(WEIGHTS)
    state = {key: value.clone() for key, value in checkpoint.state.items()}
    edit(state)
    return dataclasses.replace(checkpoint, state=state)


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


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train=4, val=2, crowd=0)
    return folder


def options(precision: str, digits: Path) -> ExportOptions:
    int8 = None if precision == "fp16" else Int8Options(precision, digits)  # type: ignore[arg-type]
    kind = "int8" if int8 else "fp16"
    return ExportOptions(precision=kind, int8=int8, auto_mixed=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edit", "precision", "kept", "counts"),
    [
        (huge_weights, "fp16", [FRAGILE], {"fp16": 43, "fp32": 1}),
        (overflow, "fp16", [BEFORE, FRAGILE], {"fp16": 42, "fp32": 2}),
        (huge_weights, "cpu", [FRAGILE], {"int8": 37, "fp32": 7}),
        # The layer before rounds what it gives, so the first attempt is not enough.
        (outlier, "cpu", [FRAGILE, BEFORE], {"int8": 36, "fp32": 8}),
        # TensorRT rounds before a layer only.
        (outlier, "tensorrt", [FRAGILE], {"int8": 37, "fp32": 7}),
    ],
)
def test_fragile_layers_and_no_others_are_kept(
    digits: Path,
    tmp_path: Path,
    edit: Callable[[State], None],
    precision: str,
    kept: list[str],
    counts: dict[str, int],
) -> None:
    lines: list[str] = []
    out = tmp_path / "model.onnx"
    report = export_onnx(edited(edit), out, options(precision, digits), tell=lines.append)
    assert report.parity.passed and list(report.kept) == kept
    assert report.spec.provenance[KEPT] == ", ".join(kept)
    assert spec_of(out)["provenance"][KEPT] == ", ".join(kept)
    assert conv_precisions(onnx.load(out)) == counts
    proved = dict(report.certificate.lines)
    lower = next(iter(counts))
    assert proved["precision"] == (
        f"{counts[lower]} convolutions in {lower}, {counts['fp32']} in fp32"
    )
    assert proved["kept in float by --auto-mixed"] == ", ".join(kept)
    attempts = 2 if kept == [FRAGILE, BEFORE] else 1
    assert [a.kept for a in report.attempts] == [(), (FRAGILE,)][:attempts]
    assert len(lines) == attempts
    assert lines[0].startswith("attempt 1: parity: ") and "; next in float: " in lines[0]
    if attempts == 2:
        assert f"; next in float: {BEFORE} (rounds what {FRAGILE} reads, " in lines[1]
    assert report.to_json()["kept_in_float"] == kept
    assert len(report.to_json()["attempts"]) == attempts  # type: ignore[arg-type]


def spec_of(path: Path) -> dict[str, dict[str, str]]:
    """The description in a file, whatever engine it was made for."""
    text = next(e.value for e in onnx.load(path).metadata_props if e.key == "nmsfree")
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


def test_without_it_the_fragile_layer_is_named(digits: Path, tmp_path: Path) -> None:
    """On the command line: exit with the words, the table, and no file."""
    save_checkpoint(edited(huge_weights), tmp_path / "fragile.safetensors")
    app = typer.Typer()
    app.command()(export_command)
    out = tmp_path / "model.onnx"
    line = f"{tmp_path / 'fragile.safetensors'} -o {out} --precision int8 --for cpu"
    outcome = CliRunner().invoke(app, [*line.split(), "--calibrate", str(digits)])
    assert isinstance(outcome.exception, FragileError) and outcome.exception.exit_status == 1
    message = str(outcome.exception)
    words = (
        r"parity: 5 images, \d+ rows, \d+ unmatched \(.* px; most error comes from (\S+) "
        r"\((\d+) %\): --auto-mixed keeps such layers in float"
    )
    found = re.fullmatch(words, message)
    assert found is not None, message
    assert found[1] == FRAGILE and int(found[2]) > 100
    assert "layers in int8 beside FP32" in outcome.stderr
    first = next(row for row in outcome.stderr.splitlines() if "Conv" in row)
    assert first.split()[:4] == [FRAGILE, "Conv", "int8", found[2]]
    assert not out.exists()


def test_fp32_has_nothing_to_keep(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        export_onnx(load_checkpoint(WEIGHTS), tmp_path / "a.onnx", ExportOptions(auto_mixed=True))
    assert str(caught.value) == (
        "auto-mixed keeps layers of fp16 and int8 in float, but precision is fp32, where all are: "
        "leave --auto-mixed out"
    )


class Refusing:
    """Gates that nothing passes; every layer adds the same error."""

    def __init__(self, names: Sequence[str], full: str = "") -> None:
        self.names, self.full = names, full

    def prove(self, candidate: object) -> None:
        raise GateError("accuracy: 77.1 → 60.0 AP")

    def check_full(self) -> None:
        if self.full:
            raise GateError(self.full)

    def layers(self, candidate: object) -> list[LayerError]:
        return [LayerError(name, "Conv", "fp16", 0.01, 0.02, 0.1) for name in self.names]


class Shop:
    """A workshop that only remembers what was asked for."""

    def __init__(self, workshop: Workshop, full: ModelProto) -> None:
        self.full, self.movable = full, workshop.movable
        self.spec, self.asked = workshop.spec, []  # type: ignore[var-annotated]

    def make(self, kept: Sequence[str]) -> "Shop":
        self.asked.append(list(kept))
        return self


@pytest.fixture(scope="module")
def shop(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    spec = make_export_spec(checkpoint, ExportOptions(precision="fp16"))
    folder = tmp_path_factory.mktemp("shop")
    workshop = Workshop(checkpoint.build(), spec, None, folder, lambda _: None)
    return Shop(workshop, workshop.full)


def test_it_gives_up_before_everything_is_float(shop: Shop) -> None:
    names, lines = list(shop.movable()), []  # type: ignore[var-annotated]
    shop.asked.clear()
    with pytest.raises(FragileError) as caught:
        search(shop, Refusing(names), lines.append)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "accuracy: 77.1 → 60.0 AP; --auto-mixed found no file in fp16 that passes: it would leave "
        "no convolution in it; export with --precision fp32"
    )
    assert len(names) == 40
    assert [len(kept) for kept in shop.asked] == [0, 4, 12, 28]
    assert lines[0] == (
        "attempt 1: accuracy: 77.1 → 60.0 AP; next in float: backbone.conv1 (1 %), "
        "backbone.layer1.0.conv1 (1 %), backbone.layer1.0.conv2 (1 %), "
        "backbone.layer1.1.conv1 (1 %)"
    )


def test_it_stops_at_once_if_fp32_fails_too(shop: Shop) -> None:
    shop.asked.clear()
    with pytest.raises(GateError, match=r"^not the precision$"):
        search(shop, Refusing([], "not the precision"), print)  # type: ignore[arg-type]
    assert shop.asked == [[]]


def error(name: str, added: float) -> LayerError:
    return LayerError(name, "Conv", "int8", added, added, added)


def test_who_goes_next() -> None:
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


@pytest.mark.parametrize("variant", [{}, {"max_filter": "features"}, {"rival_iou": 0.8}])
def test_float_among_halves_with_every_kind_of_head(
    make_checkpoint: Callable[..., Checkpoint],
    checkpoint: Checkpoint,
    tmp_path: Path,
    variant: dict[str, object],
) -> None:
    """One level of a branch, one side of a sum, the first and the last convolutions."""
    made = make_checkpoint(
        dataclasses.replace(checkpoint.model, **variant),  # type: ignore[arg-type]
        (96, 128),
    )
    spec = make_export_spec(made, ExportOptions(precision="fp16"))
    kept = ["backbone.conv1", "backbone.layer2.0.downsample", "fpn.input_projs.1"]
    kept += ["heads.1.cls_heads.1.conv", "heads.2.cls_pred"]
    shop = Workshop(made.build(), spec, None, tmp_path, lambda _: None)
    candidate = shop.make(kept)
    path = tmp_path / "mixed.onnx"
    path.write_bytes(candidate.model.SerializeToString())
    backend = OnnxRuntimeBackend(path)
    images = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8).numpy()
    scores = backend.run(images).detection_scores
    full = tmp_path / "full.onnx"
    full.write_bytes(shop.full.SerializeToString())
    assert abs(scores - OnnxRuntimeBackend(full).run(images).detection_scores).max() < 0.01
    assert conv_precisions(candidate.model)["fp32"] == 7, "three levels share the last"
    assert tuple(
        check for check, _ in candidate.certificate.lines if "precision" in check or "kept" in check
    ) == ("precision", "kept in float by --auto-mixed")


def test_the_certificate_knows_which_layers_are_kept(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from nmsfree_export.verify.certificate import check_precision

    spec = make_export_spec(checkpoint, ExportOptions(precision="fp16"))
    model = build_onnx(deploy_module(checkpoint.build(), spec, [BEFORE]), spec)
    check_precision(model, "fp16", [BEFORE])
    with pytest.raises(GateError) as caught:
        check_precision(model, "fp16", [FRAGILE])
    assert str(caught.value) == (
        f"certificate: convolutions in fp32 are {BEFORE}, expected {FRAGILE}"
    )
    with pytest.raises(GateError) as caught:
        check_precision(model, "fp16")
    assert str(caught.value) == (
        "certificate: convolutions in fp16 (43), fp32 (1), expected all in fp16"
    )
