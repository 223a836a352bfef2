"""OpenVINO on processors and Intel GPUs."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections, forked, never_free, watched
from nmsfree.backends.contract import (
    Port,
    as_input,
    check_images,
    check_model_file,
    one_line,
    read_spec,
)
from nmsfree.backends.options import DEFAULTS, Options
from nmsfree.errors import EngineError, InputError, ModelError, import_extra
from nmsfree.files import plain_name
from nmsfree.machine import computes_bf16, processor_name
from nmsfree.spec import METADATA_KEY, ModelSpec, check_int8_target

TELEMETRY = "openvino_telemetry"  # package and file of consent
# OpenVINO raises RuntimeErrors, but for its readers' own, which have no base in common.
READERS_ERRORS = (
    "GeneralFailure",
    "InitializationFailure",
    "NotImplementedFailure",
    "OpConversionFailure",
    "OpValidationFailure",
)
VARINT, LENGTH = 0, 2  # wire types
OPSET_IMPORT, OPSET_VERSION = 8, 2  # fields of ModelProto and of OperatorSetIdProto
LAST_OPSET = 100  # 26 is today's
_worked_in: dict[str, int] = {}  # in which process OpenVINO started its threads
ONNX_TYPES = {"u8": "uint8", "f32": "float", "i32": "int32", "i64": "int64"}


def import_openvino() -> Any:
    """Import it, without the telemetry that it would start unless the user has agreed to that."""
    feature = "running a model in OpenVINO", "nmsfree[openvino]"
    if TELEMETRY in sys.modules or "openvino" in sys.modules or _agreed_to_telemetry():
        return import_extra("openvino", *feature)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # "not installed"
    try:
        return import_extra("openvino", *feature)
    finally:
        del sys.modules[TELEMETRY]  # others may need it


def _agreed_to_telemetry() -> bool:
    """Whether `opt_in_out --opt_in` of OpenVINO's package has been called by this user."""
    try:
        if os.name == "nt":
            folder = Path(os.environ["LOCALAPPDATA"], "Intel Corporation")
        else:
            folder = Path.home() / "intel"
        return (folder / TELEMETRY).read_bytes().strip() == b"1"
    except (OSError, KeyError, RuntimeError):  # no such file, or no home
        return False


def vendor_errors(openvino: Any) -> tuple[type[Exception], ...]:
    found = (getattr(openvino.frontend, name, None) for name in READERS_ERRORS)
    return RuntimeError, TypeError, UnicodeDecodeError, *(kind for kind in found if kind)


def read_model(openvino: Any, path: Path) -> tuple[Any, ModelSpec]:
    """Read an ONNX file: OpenVINO's model and our description."""
    place = ["framework", METADATA_KEY]  # where the reader puts what the file says of itself
    try:
        # Not `Core.read_model`, which has the readers of all other formats try their luck aloud.
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        with plain_name(path) as name:
            _check_opset(path)
            model = reader.convert(reader.load(name))
        text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
        inputs, outputs = _ports(model.inputs), _ports(model.outputs)
    except vendor_errors(openvino) as error:
        raise ModelError(
            f"{path}: not an ONNX model that can be loaded ({one_line(error)})"
        ) from None
    return model, read_spec(path, text, inputs, outputs)


def _check_opset(path: Path) -> None:
    """Refuse an opset that no ONNX has: OpenVINO would count up to it, for minutes.

    A file is read as Protocol Buffers are, field by field: (number << 3 | wire type), value.
    """
    with path.open("rb") as file:

        def varint() -> int:
            value = shift = 0
            while (byte := file.read(1)) and byte[0] >= 0x80 and shift < 64:
                value, shift = value | (byte[0] & 0x7F) << shift, shift + 7
            return value | byte[0] << shift if byte else -1

        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        while 0 <= file.tell() < end and (tag := varint()) >= 0:
            if tag & 7 == VARINT:
                number = varint()
                if tag >> 3 == OPSET_VERSION and number > LAST_OPSET:
                    raise ModelError(f"{path}: opset {number} found, at most {LAST_OPSET} expected")
            elif tag & 7 == LENGTH:
                length = varint()
                if not 0 <= length <= end:
                    return
                if tag >> 3 != OPSET_IMPORT:  # whose fields come next
                    file.seek(length, os.SEEK_CUR)
            else:
                return  # no field of ONNX: the reader will say so


def _ports(ports: Any) -> list[Port]:
    """Describe inputs or outputs as ONNX Runtime would."""
    described = []
    for port in ports:
        # The contract's name of it; merged layers leave others on it, too.
        names: set[str] = port.names
        name = min(names.intersection(("images", *RawDetections._fields)) or names, default="")
        kind = port.element_type.get_type_name()
        shape = [d.get_length() if d.is_static else "N" for d in port.partial_shape]
        described.append(Port(name, f"tensor({ONNX_TYPES.get(kind, kind)})", shape))
    return described


def compile_model(
    openvino: Any, model: Any, plugin: str, threads: int | None, precision: str
) -> tuple[Any, str]:
    """Compile a model for a device; read back where and how it runs, in words.

    EngineError: there is no such device, it does not take the model, OpenVINO took another device
    or precision, or has worked in this process before it was forked.
    """
    if _worked_in.setdefault("process", os.getpid()) != os.getpid():
        raise forked("OpenVINO")
    settings: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": precision,  # its own choice is bf16 where that is faster
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = _lasting(openvino.Core)
    found: list[str] = core.available_devices
    known = {*found, *(name.partition(".")[0] for name in found)}  # "GPU" is the first of several
    if plugin not in known:
        raise EngineError(
            f"device is 'openvino:{plugin}', but OpenVINO finds {', '.join(found)} here:"
            " an Intel GPU needs its OpenCL driver"
        )
    try:
        compiled = core.compile_model(model, plugin, settings)
    except vendor_errors(openvino) as error:
        raise EngineError(
            f"device is 'openvino:{plugin}', but OpenVINO cannot compile the model for it"
            f" ({one_line(error)})"
        ) from None
    devices: list[str] = compiled.get_property("EXECUTION_DEVICES")
    kind: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if kind != precision or any(device.partition(".")[0] != plugin[:3] for device in devices):
        raise EngineError(
            f"asked OpenVINO for {precision} on {plugin}, but it runs {kind} on"
            f" {', '.join(devices)}: ask for that, or for another device"
        )
    version = openvino.__version__.partition("-")[0]
    text = f"OpenVINO {version} {', '.join(devices)}, {kind}"
    return compiled, text + (f", threads {threads or 'automatic'}" if plugin == "CPU" else "")


@cache
def _lasting(core: Any) -> Any:
    """The one OpenVINO of this process, which is never freed.

    It gives the thread that loads it a stack for signal handlers, and unmaps that when it is freed.
    Of two, the first one freed first, or one freed by another thread, a stack that is gone stays in
    use: the next signal that Python handles, Ctrl-C, would end the process by SIGSEGV.
    """
    made = core()
    never_free(made)
    return made


class OpenVinoBackend:
    """Runs an ONNX file of this project in OpenVINO.

    Threads may share it: the compiled network is one, and every run has an infer request with
    buffers of its own, so results are those of one thread. No request belongs to a thread: one that
    is freed because its thread ends, in the moment in which another thread frees the model, can
    abort the process. Of processes, only the one that opened it may use it: OpenVINO does not
    survive a fork.

    Args:
        path: the ONNX file.
        plugin: OpenVINO's name of the device.
        options: `threads`, where None lets OpenVINO choose, `sha256`, and `precision`: "f32", or
            "bf16" where the device has it.

    Raises:
        InputError: the processor has no bf16, or an option cannot be used.
        MissingExtraError: openvino is not installed.
        ModelError: the file is missing, not ONNX, or not written by this project.
        EngineError: the device is not there, or runs something else than was asked for.
    """

    def __init__(
        self,
        path: Path,
        plugin: str = "CPU",
        options: Options = DEFAULTS,
    ) -> None:
        options.check("OpenVINO", "threads", "precision", "sha256")
        threads, precision = options.threads, options.precision or "f32"
        check_model_file(path, options.sha256)
        if threads is not None and plugin != "CPU":
            raise InputError(
                f"threads is {threads}, but does not apply to openvino:{plugin}: it is for"
                " processors, leave it out here"
            )
        if precision == "bf16" and plugin == "CPU" and computes_bf16() is False:
            raise InputError(
                f"precision is 'bf16', but this processor ({processor_name()}) has no bfloat16"
                " arithmetic: use precision='f32'"
            )
        openvino = import_openvino()
        model, self.spec = read_model(openvino, path)
        check_int8_target(path, self.spec, "openvino")
        compiled, self._description = compile_model(openvino, model, plugin, threads, precision)
        self.arithmetic = "bf16" if precision == "bf16" else "openvino"
        self._errors = vendor_errors(openvino)
        names = [port.names for port in compiled.outputs]  # in an order of its own
        self._indices = [
            next(i for i, known in enumerate(names) if name in known)
            for name in RawDetections._fields
        ]
        self._compiled: Any = compiled
        self._idle: list[Any] = []  # infer requests
        self._lock = threading.Lock()
        self._forked = False
        watched.add(self)

    def describe(self) -> str:
        return self._description

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR.

        Raises:
            ModelError: the detector is closed, or these are no images for the model.
            EngineError: OpenVINO fails, or was in use before this process was forked.
        """
        check_images(images, self.spec)
        # Read in place, so held until the end.
        shared = np.ascontiguousarray(as_input(images, self.spec))
        with self._request() as request:
            try:
                # Not `infer`, which works in this very thread and leaves there a stream that ends
                # with it: a model closed in that moment, by another thread, aborts the process.
                request.start_async([shared], share_inputs=True)
                request.wait()
            except self._errors as error:
                raise EngineError(f"OpenVINO failed while running ({one_line(error)})") from None
            outputs = [np.array(request.get_output_tensor(i).data) for i in self._indices]
        return RawDetections(*outputs)

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """An infer request for this thread alone; one that failed is not used again."""
        with self._lock:
            if self._forked:
                raise forked("OpenVINO")
            if self._compiled is None:
                raise ModelError("the detector is closed: open it again")
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        yield request
        with self._lock:
            if self._compiled is not None:
                self._idle.append(request)

    def after_fork(self) -> None:
        """In a forked child: OpenVINO's threads stayed in the parent, nothing may be freed."""
        never_free(self._compiled, *self._idle)
        self._idle, self._compiled, self._forked = [], None, True
        self._lock = threading.Lock()

    def close(self) -> None:
        """Free the model; runs that still go on finish first, and free theirs."""
        with self._lock:
            self._forked = False
            idle, self._idle, compiled, self._compiled = self._idle, [], self._compiled, None
        idle.clear()  # before the model
        del compiled
