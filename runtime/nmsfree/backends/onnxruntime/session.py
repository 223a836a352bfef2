"""Sessions of ONNX Runtime: how one is made, read, and asked where it really runs."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.backends.contract import Port, one_line, read_spec
from nmsfree.errors import EngineError, ModelError, import_extra
from nmsfree.files import plain_name
from nmsfree.spec import METADATA_KEY, ModelSpec

CPU = "CPUExecutionProvider"
# Microseconds for which threads that have nothing to do stay awake, which bridges the gaps within a
# run. By itself ONNX Runtime's spin on, and take the processor from whatever else wants it.
AWAKE = 50
FATAL = 4  # log severity: errors are raised, and told in our own words
OUTPUTS = list(RawDetections._fields)
# What shapes are computed with, which belongs on the processor. Of the picture's values these
# compute little.
SHAPES = frozenset(
    [
        *("Shape", "Size", "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Reshape", "Cast"),
        *("Add", "Sub", "Mul", "Div", "Min", "Max", "ReduceProd", "Range", "Equal", "Where"),
        *("ConstantOfShape", "Expand", "Identity"),
    ]
)
# Images uint8 [N, H, W, 3] → the four outputs; raises vendor errors.
Run = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]


class Opened(NamedTuple):
    """A model that is ready."""

    run: Run
    description: str  # where it runs, in words
    gpu: str = ""  # the device's name where that is a GPU
    close: Callable[[], object] = lambda: None


def vendor_errors() -> tuple[type[Exception], ...]:
    """Exceptions of ONNX Runtime: they share no base class, and versions differ in their set."""
    state = import_extra(
        "onnxruntime.capi.onnxruntime_pybind11_state", "running an ONNX file", "nmsfree[cpu]"
    )
    found = vars(state).values()
    own = (v for v in found if isinstance(v, type) and issubclass(v, Exception))
    return UnicodeDecodeError, *own  # names and messages are bytes of the file to it


def make_session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    provider: str = CPU,
    settings: Mapping[str, str] | None = None,
    plugin: Any = None,
    optimize: bool = True,
    profile: Path | None = None,
) -> Any:
    """Make an `InferenceSession` that runs where it was asked to or fails; raises vendor errors.

    Args:
        model: a file, or its content.
        threads: of the processor; None leaves it to ONNX Runtime.
        provider, settings: one that is built into ONNX Runtime, and its own options.
        plugin: an `OrtEpDevice` in the provider's place.
        optimize: False leaves the graph as it is.
        profile: how the file of each node's times begins; `end_profiling()` returns its name.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(AWAKE))
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if plugin is not None:
        options.add_provider_for_devices([plugin], dict(settings or {}))
    chosen = {} if plugin is not None else {"providers": [(provider, dict(settings or {}))]}
    with nullcontext(model) if isinstance(model, bytes) else plain_name(model) as given:
        # With its fallback, ONNX Runtime prints an error and goes on with the processor.
        session = ort.InferenceSession(given, options, enable_fallback=0, **chosen)
    session.disable_fallback()  # the same while running
    return session


def open_file(path: Path, threads: int | None, optimize: bool = True) -> tuple[Any, ModelSpec]:
    """Open a file on the processor and read what it says of itself."""
    try:
        session = make_session(path, threads=threads, optimize=optimize)
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        inputs = [Port(i.name, i.type, i.shape) for i in session.get_inputs()]
        outputs = [Port(o.name, o.type, o.shape) for o in session.get_outputs()]
    except vendor_errors() as error:
        raise ModelError(
            f"{path}: not an ONNX model that can be loaded ({one_line(error)})"
        ) from None
    return session, read_spec(path, text, inputs, outputs)


def check_placement(session: Any, provider: str, device: str, allow_cpu: bool = False) -> str:
    """Say how many nodes that compute do not run where they should, if this version tells.

    EngineError: there are some, and `allow_cpu` is off; or the network itself is on the processor.
    """
    providers = session.get_providers()
    nodes: Counter[tuple[str, str]] = Counter()  # by provider and operator
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            nodes.update((part.ep_name, node.op_type) for node in part.get_nodes())
    ours = sum(count for (owner, _), count in nodes.items() if owner == provider)
    left = {kind: n for (owner, kind), n in nodes.items() if owner == CPU and kind not in SHAPES}
    advice = "see `nmsfree doctor`, or allow the processor (allow_cpu=True, --allow-cpu)"
    if provider not in providers or (nodes and not ours) or any("Conv" in kind for kind in left):
        raise EngineError(
            f"device is {device!r}, but ONNX Runtime put the network on {providers[-1]}: {advice}"
        )
    which = ", ".join(f"{n} {kind}" for kind, n in sorted(left.items()))
    found = f"{sum(left.values())} of {nodes.total()} ({which})" if left else "0"
    if left and not allow_cpu:
        raise EngineError(
            f"device is {device!r}, but ONNX Runtime has {found} nodes run on the processor:"
            f" take another release of it; {advice}"
        )
    return f", compute nodes left on the processor: {found}" if nodes else ""
