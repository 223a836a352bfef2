"""Sessions of ONNX Runtime: how one is made, read, and asked where it really runs."""

from collections import Counter
from collections.abc import Callable
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
FATAL = 4  # log severity: errors are raised, and told in our own words
OUTPUTS = list(RawDetections._fields)

Run = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]


class Opened(NamedTuple):
    """A model that is ready.

    Attributes:
        run: raises vendor errors.
        close: frees it.
        description: where it runs, in words.
        gpu: the device's name where that is a GPU; "" on the processor.
    """

    run: Run
    close: Callable[[], None]
    description: str
    gpu: str = ""


def vendor_errors() -> tuple[type[Exception], ...]:
    """Exceptions of ONNX Runtime: they share no base class, and versions differ in their set.

    Raises:
        MissingExtraError: onnxruntime is not installed, or cannot be loaded.
    """
    state = import_extra(
        "onnxruntime.capi.onnxruntime_pybind11_state", "running an ONNX file", "nmsfree[cpu]"
    )
    found = vars(state).values()
    own = (v for v in found if isinstance(v, type) and issubclass(v, Exception))
    return UnicodeDecodeError, *own  # names and messages are bytes of the file to it


def open_cpu(path: Path, threads: int | None) -> tuple[ModelSpec, Opened]:
    """Open a file on the processor.

    Raises:
        ModelError: it cannot be loaded, or is not one of ours.
    """
    import onnxruntime as ort

    session, spec = _load(path, _options(threads))
    text = f"ONNX Runtime {ort.__version__} CPU, threads {threads or 'automatic'}"
    return spec, Opened(run_plainly(session), lambda: None, text)


def read_file(path: Path) -> ModelSpec:
    """Read the description of a file, without work on the graph.

    Raises:
        ModelError: it cannot be loaded, or is not one of ours.
    """
    import onnxruntime as ort

    options = _options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _load(path, options)[1]


def create(path: Path, threads: int | None, provider: str, settings: dict[str, str]) -> Any:
    """Make a session on a provider that is built into ONNX Runtime; raises vendor errors."""
    import onnxruntime as ort

    providers = [(provider, settings)]
    # Without this, ONNX Runtime prints an error and goes on with the processor.
    with plain_name(path) as place:
        session = ort.InferenceSession(
            place, _options(threads), providers=providers, enable_fallback=0
        )
    session.disable_fallback()  # the same while running
    return session


def create_on(path: Path, threads: int | None, device: Any, settings: dict[str, str]) -> Any:
    """Make a session on an `OrtEpDevice` of a plugin; raises vendor errors."""
    import onnxruntime as ort

    options = _options(threads)
    options.add_provider_for_devices([device], settings)
    with plain_name(path) as place:
        session = ort.InferenceSession(place, options, enable_fallback=0)
    session.disable_fallback()
    return session


def run_plainly(session: Any) -> Run:
    """Return what runs a session on arrays of the host."""

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(OUTPUTS, {"images": images})
        return outputs

    return run


def check_placement(session: Any, provider: str, device: str) -> str:
    """Make sure that a session runs where it was asked to, and say what does not.

    Returns:
        "" or, for a description, ", 3 of 200 nodes on the processor".

    Raises:
        EngineError: ONNX Runtime put the network on the processor.
    """
    providers = session.get_providers()
    nodes = _placement(session)
    ours = sum(count for (owner, _), count in nodes.items() if owner == provider)
    left = {kind: count for (owner, kind), count in nodes.items() if owner == CPU}
    # Some operators are at home on the processor; convolutions are what the GPU is for.
    network_left = any("Conv" in kind for kind in left)
    if provider not in providers or (nodes and not ours) or network_left:
        raise EngineError(
            f"device is {device!r}, but ONNX Runtime put the network on {providers[-1]}:"
            " see `nmsfree doctor`, or allow the processor (allow_cpu=True, --allow-cpu)"
        )
    total = sum(nodes.values())
    return f", {sum(left.values())} of {total} nodes on the processor" if left else ""


def _placement(session: Any) -> "Counter[tuple[str, str]]":
    """Count the nodes by (provider, operator); empty where this version does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return Counter()
    parts = session.get_provider_graph_assignment_info()
    return Counter((part.ep_name, node.op_type) for part in parts for node in part.get_nodes())


def _options(threads: int | None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _load(path: Path, options: Any) -> tuple[Any, ModelSpec]:
    """Open a file on the processor and read what it says of itself."""
    import onnxruntime as ort

    try:
        with plain_name(path) as place:
            session = ort.InferenceSession(place, options, providers=[CPU], enable_fallback=0)
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        inputs = [Port(i.name, i.type, i.shape) for i in session.get_inputs()]
        outputs = [Port(o.name, o.type, o.shape) for o in session.get_outputs()]
    except vendor_errors() as error:
        raise ModelError(
            f"{path}: not an ONNX model that can be loaded ({one_line(error)})"
        ) from None
    return session, read_spec(path, text, inputs, outputs)
