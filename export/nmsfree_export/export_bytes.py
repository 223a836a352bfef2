"""The bytes of a file, and of the FP32 version that it is measured beside."""

from dataclasses import replace

from onnx import ModelProto

from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree_export.write import build_onnx, deploy_module
from nmsfree_training.detector import Fcos


def full_spec(spec: ModelSpec) -> ModelSpec:
    """Describe the FP32 version of a file."""
    return replace(spec, precision="fp32", made_for=None)


def full_version(network: Fcos, spec: ModelSpec) -> ModelProto:
    """The FP32 version of a half-precision file."""
    return build_onnx(deploy_module(network, full_spec(spec)), full_spec(spec))


def content_of(model: ModelProto, spec: ModelSpec) -> bytes:
    """The bytes of a model with this description."""
    described = ModelProto()
    described.CopyFrom(model)
    del described.metadata_props[:]
    entry = described.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, spec.to_json()
    content: bytes = described.SerializeToString()
    return content
