"""The certificate's count of convolutions by precision, and which of them were kept in float."""

from collections.abc import Collection

from onnx import ModelProto

from nmsfree.errors import GateError
from nmsfree_export.layers import read_layers
from nmsfree_export.precision import conv_precisions


def check_precision(
    model: ModelProto, precision: str, in_float: Collection[str] = ()
) -> tuple[str, str]:
    """All convolutions compute in one precision, but for those that are named.

    Args:
        precision: "fp32", "fp16" or "int8".
        in_float: names of the convolutions in float32, see `layers.py`: exactly these.

    Returns:
        (check, what was found).

    Raises:
        GateError: another precision, or others in float; says which.
    """
    found = conv_precisions(model)
    expected = {precision, "fp32"} if in_float else {precision}
    if not found.keys() <= expected or not found[precision]:
        raise GateError(
            f"certificate: convolutions in {', '.join(f'{k} ({n})' for k, n in found.items())}, "
            f"expected all in {precision}"
            + (f" but {', '.join(sorted(in_float))}" if in_float else "")
        )
    if not in_float:
        return "precision", f"{found[precision]} convolutions in {precision}"
    _check_names(model, in_float)
    return "precision", f"{found[precision]} convolutions in {precision}, {found['fp32']} in fp32"


def _check_names(model: ModelProto, expected: Collection[str]) -> None:
    found = {layer.name for layer in read_layers(model) if layer.precision == "fp32"}
    if found != set(expected):
        raise GateError(
            f"certificate: convolutions in fp32 are {', '.join(sorted(found)) or 'none'}, expected"
            f" {', '.join(sorted(expected))}"
        )


def about_kept(kept: Collection[str]) -> tuple[str, str]:
    """The line that names what --auto-mixed kept in float."""
    return "kept in float by --auto-mixed", ", ".join(kept)
