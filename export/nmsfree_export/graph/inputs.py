"""What a file takes in place of resized pictures: a picture of any size, or planar floats.

The graph of the model stays as it is, between nodes that make its input (`input/`) and nodes that
map its boxes back (`output/`). All shapes but those of the picture are constants: pixels of the
model's input are gathered from the picture wherever they lie in it, and those of the padding are
replaced. So an engine sees no shape that it would have to compute.

OpenCV's linear interpolation is a sum of two pixels with weights of 11 bits, in a row and then in a
column: here in float32, whose 24 bits hold that all but for a product in the column, which has 26.
Pillow's bilinear filter is two products with matrices of weights of 22 bits, rounded to pixels
after each. Their upper and lower 11 bits are matrices of their own: so every sum is an integer that
float32 holds, TF32 its factors, and nothing is rounded but by Pillow's rule.
"""

from typing import NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator

from nmsfree.errors import InputError
from nmsfree.spec import ModelSpec, Resize
from nmsfree_export.graph.contract import images_of, outputs_of, set_inputs, set_outputs
from nmsfree_export.graph.nodes import Nodes

PIXELS = "input/pixels"  # [N, H, W, 3], BGR, 0 … 255, that the model reads
SIDES = ("input/height", "input/width")  # of the picture, int64 [1]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
HALF_WEIGHT = 1 << 11  # Pillow's weights have twice as many bits


def with_input(model: ModelProto, spec: ModelSpec) -> ModelProto:
    """Return a model of resized pictures as one that takes what `spec.input` says.

    The one that is given stays as it is; the new one has no description.

    InputError: pictures of any size cannot be resized as the description says.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph, opset = result.graph, max(entry.version for entry in model.opset_import)
    before, behind = Nodes("input/", opset), Nodes("output/", opset)
    boxes = "output/boxes"  # in the model's pixels
    mapped = spec.input == "any"
    for node in graph.node:
        node.input[:] = [PIXELS if name == "images" else name for name in node.input]
        if mapped:
            node.output[:] = [boxes if n == "detection_boxes" else n for n in node.output]
            node.input[:] = [boxes if n == "detection_boxes" else n for n in node.input]
    if mapped:
        place = _place(before, spec)
        _pixels(before, place, spec)
        source = behind("Div", behind("Sub", boxes, place.offset), place.scale)
        source = behind("Max", source, behind.of(0, np.float32))
        behind("Min", source, place.limit, name="detection_boxes")
    else:
        # [N, 3, H, W], RGB, 0 … 1
        planes = before("Gather", "images", before.of([2, 1, 0]), axis=1)
        pixels = before("Transpose", planes, perm=[0, 2, 3, 1])
        before("Mul", pixels, before.of(255, np.float32), name=PIXELS)
    own = list(graph.node)
    del graph.node[:], graph.value_info[:], result.metadata_props[:]
    graph.node.extend([*before.nodes, *own, *behind.nodes])
    graph.initializer.extend([*before.constants, *behind.constants])
    n = spec.batch or "batch"
    set_inputs(result, images_of(spec, n))
    set_outputs(result, outputs_of(spec, n))
    return result


class Place(NamedTuple):
    """Where a picture's pixels go: names of values, float32 unless said; H × W is of the input.

    With an antialiased resize `rows` [2 · H, h] and `columns` [2 · W, w] are the filters, upper
    bits above lower ones, and the indices and weights are not used.
    """

    top: str  # int64 [H]: row of the picture above each row of the input
    bottom: str  # int64 [H]: below
    row_weight: str  # [H, 1]: of the lower one, 0 … 2048
    left: str  # int64 [W]
    right: str  # int64 [W]
    column_weight: str  # [W · 3]: of the right one
    rows: str
    columns: str
    inside: str  # bool [H, W · 3]: no padding
    offset: str  # [4]: input pixels before the picture, x, y, x, y
    scale: str  # [4]: input pixels per pixel of the picture
    limit: str  # [4]: the picture's width, height, width, height


def _place(add: Nodes, spec: ModelSpec) -> Place:
    """Compute the place from the picture's shape; of a fixed shape it becomes constants."""
    plan = Nodes("input/plan/", add.opset)
    names = _plan(plan, spec)
    if spec.source is None:
        for axis, name in enumerate(SIDES, 1):
            add("Shape", "images", name=name, start=axis, end=axis + 1)
        add.nodes += plan.nodes
        add.constants += plan.constants
        return names
    wanted = [name for name in names if name]
    plan_graph = helper.make_graph(
        plan.nodes,
        "plan",
        [helper.make_tensor_value_info(name, INT64, [1]) for name in SIDES],
        [ValueInfoProto(name=name) for name in wanted],
        plan.constants,
    )
    opset = helper.make_opsetid("", add.opset)
    evaluator = ReferenceEvaluator(helper.make_model(plan_graph, opset_imports=[opset]))
    sides = {n: np.array([s]) for n, s in zip(SIDES, spec.source, strict=True)}
    values = dict(zip(wanted, evaluator.run(None, sides), strict=True))
    return Place(*(add.of(values[n], values[n].dtype) if n else "" for n in names))


def _plan(add: Nodes, spec: ModelSpec) -> Place:
    resize, lengths = spec.resize, (spec.height, spec.width)
    letterbox = resize.kind == "letterbox"
    sizes = _sizes(add, resize, lengths)
    axes = []
    for side, size, length in zip(SIDES, sizes, lengths, strict=True):
        if resize.place == "center":
            start = add("Div", add("Sub", add.of([length]), size), add.of([2]))
        else:
            start = add.of([0])
        # in the resized picture; of padding it is outside
        position = add("Sub", add.of(range(length)), start)
        if resize.antialias:
            parts = ("", "", "", _filter(add, side, size, position))
        else:
            parts = (*_pixel_pair(add, side, size, position), "")
        axes.append((start, position, parts))
    (top, row, rows), (left, column, columns) = axes
    # Values of a column, for each of its three colours: a broadcast over so few is slow.
    colours = add.of(np.repeat(np.arange(spec.width), 3)) if columns[2] or letterbox else ""
    inside = ""
    if letterbox:
        in_row, in_column = (
            add("And", add("GreaterOrEqual", at, add.of([0])), add("Less", at, size))
            for at, size in zip((row, add("Gather", column, colours)), sizes, strict=True)
        )
        inside = add("And", add("Unsqueeze", in_row, add.of([1])), in_column)

    def corners(x: str, y: str) -> str:
        return add("Cast", add("Concat", x, y, x, y, axis=0), to=FLOAT)

    limit = corners(SIDES[1], SIDES[0])
    scale = add("Div", corners(sizes[1], sizes[0]), limit)
    row_weight = rows[2] and add("Reshape", rows[2], add.of([-1, 1]))
    column_weight = columns[2] and add("Gather", columns[2], colours)
    return Place(
        *(*rows[:2], row_weight, *columns[:2], column_weight, rows[3], columns[3]),
        *(inside, corners(left, top), scale, limit),
    )


def _sizes(add: Nodes, resize: Resize, lengths: tuple[int, int]) -> tuple[str, str]:
    """Height and width of the resized picture, int64 [1], as `nmsfree.preprocess.fit` has them."""
    wanted = [add.of([length]) for length in lengths]
    if resize.kind == "stretch":
        return wanted[0], wanted[1]
    one = add.of([1])
    sizes = []
    for own, other in ((0, 1), (1, 0)):
        # The nearest whole number of own · wanted / other, of two the even one; at most what is
        # wanted, which is also what the side has that decides.
        over = add("Mul", add.of([lengths[other]]), SIDES[own])
        whole = add("Div", over, SIDES[other])
        odd = add("Sub", whole, add("Mul", add("Div", whole, add.of([2])), add.of([2])))
        half = add("Div", add("Add", add("Sub", SIDES[other], one), odd), add.of([2]))
        nearest = add("Div", add("Add", over, half), SIDES[other])
        sizes.append(add("Min", add("Max", nearest, one), wanted[own]))
    if not resize.enlarge:
        area, given = add("Mul", *sizes), add("Mul", *SIDES)
        larger = add("Greater", area, given)
        sizes = [add("Where", larger, *pair) for pair in zip(SIDES, sizes, strict=True)]
    return sizes[0], sizes[1]


def _pixel_pair(add: Nodes, side: str, size: str, position: str) -> tuple[str, str, str]:
    """Two pixels of the picture for each of the input, int64, and 2048 times the second's share.

    The place is ((2 · position + 1) · side − size) / (2 · size), rounded to a float as OpenCV does.
    """
    doubled = add("Add", add("Mul", position, add.of([2])), add.of([1]))
    over = add("Sub", add("Mul", doubled, side), size)
    place = add(
        "Div",
        add("Cast", over, to=FLOAT),
        add("Cast", add("Mul", size, add.of([2])), to=FLOAT),
    )
    low = add("Floor", place)
    weight = add("Round", add("Mul", add("Sub", place, low), add.of(2048, np.float32)))
    last = add("Cast", add("Sub", side, add.of([1])), to=FLOAT)
    pair = []
    for value in (low, add("Add", low, add.of(1, np.float32))):
        clipped = add("Min", add("Max", value, add.of(0, np.float32)), last)
        pair.append(add("Cast", clipped, to=INT64))
    return pair[0], pair[1], weight


def _filter(add: Nodes, side: str, size: str, position: str) -> str:
    """Pillow's bilinear filter, [2 · length, side]: a triangle over the pixel, normalised.

    It is as wide as a pixel of the input, or of the picture where that is larger. Upper bits of the
    weights, then lower ones.
    """
    zero, one, two, half = (add.of(v) for v in (0, 1, 2, HALF_WEIGHT))
    pixels = add("Range", zero, add("Squeeze", side), one)

    def centres(places: str, unit: str, axis: int) -> str:
        middle = add("Mul", add("Add", add("Mul", places, two), one), unit)
        return add("Unsqueeze", middle, add.of([axis]))

    apart = add("Abs", add("Sub", centres(position, side, 1), centres(pixels, size, 0)))
    reach = add("Mul", add("Max", side, size), two)
    share = add("Max", add("Sub", reach, apart), zero)
    total = add("ReduceSum", share, add.of([1]), keepdims=1)
    total = add("Max", total, one)  # of padding it may be 0
    # The nearest whole number of 2^22 · share / total.
    doubled = add("Add", add("Mul", share, add.of(2 * HALF_WEIGHT**2)), total)
    weight = add("Div", doubled, add("Mul", total, two))
    upper = add("Div", weight, half)
    lower = add("Sub", weight, add("Mul", upper, half))
    return add("Cast", add("Concat", upper, lower, axis=0), to=FLOAT)


def _pixels(add: Nodes, place: Place, spec: ModelSpec) -> None:
    """The picture as the model's input, `PIXELS`."""
    resize = spec.resize
    # Cast first: TensorRT-RTX gathers no uint8.
    picture = add("Cast", "images", to=FLOAT)
    if resize.antialias:
        pixels = _filtered(add, picture, place, spec)
    elif resize.interpolation == "linear":
        pixels = _interpolated(add, picture, place, spec)
    else:
        raise InputError(
            f"a file that takes pictures of any size resizes them by linear interpolation, this"
            f" model's are resized by {resize.interpolation}: leave out --input any"
        )
    if place.inside:
        padding = add.of(resize.pad * spec.width, np.float32)
        pixels = add("Where", place.inside, pixels, padding)
    add("Reshape", pixels, add.of([1, spec.height, spec.width, 3]), name=PIXELS)


def _interpolated(add: Nodes, picture: str, place: Place, spec: ModelSpec) -> str:
    """As OpenCV computes it, with all that it cuts off, but for a product that is rounded.

    [1, H, W · 3].
    """

    def number(value: float) -> str:
        return add.of(value, np.float32)

    height = spec.height
    rows = add("Gather", picture, add("Concat", place.top, place.bottom, axis=0), axis=1)
    flat = add.of([1, 2 * height, 3 * spec.width])
    left, right = (
        add("Reshape", add("Gather", rows, index, axis=2), flat)
        for index in (place.left, place.right)
    )
    weight = add("Mul", place.column_weight, number(1 / 16))
    other = add("Sub", number(2048 / 16), weight)
    sums = add("Floor", add("Add", add("Mul", left, other), add("Mul", right, weight)))
    upper, lower = (
        add("Slice", sums, add.of([a]), add.of([b]), add.of([1]))
        for a, b in ((0, height), (height, 2 * height))
    )
    weight = add("Mul", place.row_weight, number(2**-16))
    other = add("Sub", number(2048 * 2**-16), weight)
    parts = (add("Floor", add("Mul", *pair)) for pair in ((upper, other), (lower, weight)))
    quarters = add("Mul", add("Add", *parts), number(0.25))
    return add("Floor", add("Add", quarters, number(0.5)))


def _filtered(add: Nodes, picture: str, place: Place, spec: ModelSpec) -> str:
    """[1, H, W · 3]."""
    pixels = add("Transpose", picture, perm=[0, 3, 1, 2])
    columns = add("Transpose", place.columns, perm=[1, 0])
    pixels = _summed(add, add("MatMul", pixels, columns), 3, spec.width)
    pixels = _summed(add, add("MatMul", place.rows, pixels), 2, spec.height)
    pixels = add("Transpose", pixels, perm=[0, 2, 3, 1])
    return add("Reshape", pixels, add.of([1, spec.height, 3 * spec.width]))


def _summed(add: Nodes, sums: str, axis: int, length: int) -> str:
    """Pixels of sums with the upper and, behind them, the lower bits of the weights."""
    upper, lower = (
        add("Slice", sums, add.of([a]), add.of([a + length]), add.of([axis])) for a in (0, length)
    )
    share = add.of(1 / HALF_WEIGHT, np.float32)
    carried = add("Add", upper, add("Floor", add("Mul", lower, share)))
    rounded = add("Add", carried, add.of(HALF_WEIGHT / 2, np.float32))
    return add("Floor", add("Mul", rounded, share))
