"""The NMS baseline's graph without its NMS, for builders that have none."""

from onnx import ModelProto, TensorProto, helper

from nmsfree_export.nms_tail import CANDIDATES

_CLASSES = CANDIDATES[2]


def cut_nms(model: ModelProto) -> None:
    """Take off what `nms_tail.append_nms` added, in place: the outputs are `CANDIDATES` again.

    Classes become int32: TensorRT takes int64 outputs only into int64 buffers.
    """
    graph = model.graph
    _rename(model, _CLASSES, f"{_CLASSES}_int64")
    _keep_what_feeds(model, {*CANDIDATES[:2], f"{_CLASSES}_int64"})
    graph.node.append(
        helper.make_node("Cast", [f"{_CLASSES}_int64"], [_CLASSES], to=TensorProto.INT32)
    )
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    n = batch.dim_param or batch.dim_value
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    shapes = ([n, "candidates", 4], [n, "candidates"], [n, "candidates"])
    del graph.output[:]
    for name, kind, shape in zip(CANDIDATES, kinds, shapes, strict=True):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def _rename(model: ModelProto, old: str, new: str) -> None:
    """Give a value another name, where it is made and wherever it is used."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in model.graph.value_info:
        if value.name == old:
            value.name = new


def _keep_what_feeds(model: ModelProto, needed: set[str]) -> None:
    """Drop the nodes, initialisers and notes on types that these values do not need."""
    graph, kept = model.graph, []
    for node in reversed(graph.node):  # sorted topologically, by ONNX's rules
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    notes = [value for value in graph.value_info if value.name in needed]
    for field, values in (
        (graph.node, kept),
        (graph.initializer, weights),
        (graph.value_info, notes),
    ):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
