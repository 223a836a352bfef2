"""Checkpoint + ModelSpec → ONNX bytes."""

import logging
import warnings
from functools import partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_ir import Model
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules
from torch import nn

from nmsfree.backends.base import RawDetections
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import CANDIDATES, describe
from nmsfree_export.graph.deploy import CandidatesModule, NmsFreeModule
from nmsfree_export.graph.nms import append_nms
from nmsfree_training.model.detector import Fcos

OPSET = 18  # ONNX Runtime's CUDA provider lacks Resize-19 and ReduceMax-20 in many releases
MAX_DYNAMIC_BATCH = 64
# Of the exporter's rules those that fit: + 0, biases of zeros, and shapes of a batch of any size.
RULES = (
    rules.add_0_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.squeeze_reshape_1d_rule,
    rules.materialize_reshape_shape_rule,
)


def deploy_module(network: Fcos, spec: ModelSpec) -> nn.Module:
    """The module whose graph is exported for this head."""
    return (NmsFreeModule if spec.head == "o2o" else CandidatesModule)(network, spec).eval()


def deployed_tensors(module: nn.Module) -> dict[str, NDArray[np.floating]]:
    """Weights and tables of a deploy module by key; what several levels share comes once."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    return {key: np.ascontiguousarray(t.numpy(force=True)) for key, t in tensors}


def build_onnx(module: nn.Module, spec: ModelSpec) -> ModelProto:
    """Export a module of `deploy_module` as a model that carries its description."""
    model = traced(module, spec)
    if spec.head == "o2m":
        append_nms(model, spec)
    describe(model, spec)
    model.producer_name = "nmsfree"
    return model


def traced(module: nn.Module, spec: ModelSpec) -> ModelProto:
    """The graph of a module of `deploy_module`, as it is."""
    # An example batch of 1 would be taken for a constant.
    example = torch.zeros(spec.batch or 2, spec.height, spec.width, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=MAX_DYNAMIC_BATCH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about exporter internals; parity judges the result
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(RawDetections._fields if spec.head == "o2o" else CANDIDATES),
            dynamic_shapes=({0: batch},) if spec.batch is None else None,
            verbose=False,
            optimize=False,
        )
    assert program is not None
    _fold(program.model)
    model: ModelProto = program.model_proto
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    for message in [model, graph, *graph.node, *values, *graph.initializer]:
        message.ClearField("metadata_props")  # what the exporter notes about source files
        message.ClearField("doc_string")
    model.ClearField("producer_version")
    return model


def _fold(model: Model) -> None:
    """Compute what is constant, and store and compute what is equal once, in place.

    The exporter's own optimizer tries 60 rules on every node, for a quarter of the time.
    """
    passes.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True)
    RewritePass(RULES)(model)
    fold_constants(model, onnx_shape_inference=True)
    for kind in (
        passes.RemoveUnusedNodesPass,
        passes.RemoveUnusedFunctionsPass,
        passes.RemoveUnusedOpsetsPass,
        partial(passes.LiftConstantsToInitializersPass, lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass,
        passes.CommonSubexpressionEliminationPass,
        passes.NameFixPass,
    ):
        kind()(model)
