"""Every call on TensorRT, cuda-python and pycuda exists in the real modules, with such arguments.

No GPU runs these lines here, so they are read instead: the source is walked, every attribute whose
owner is a vendor object is looked up on the installed class, and the arguments are counted against
its signature. What a name holds is worked out from signatures and assignments, or told by `SEEDS`;
an owner that is neither ours nor known fails the test, so that no line goes unseen.

pycuda is a source package that cannot be installed without CUDA: its part is held against
`PycudaDocs`, written from the reference in its documentation (a copy that may be of an older
version).
"""

import ast
import builtins
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import nmsfree
from nmsfree.testing import tensorrt as tensorrt_fake

trt = pytest.importorskip("tensorrt_rtx")
driver = pytest.importorskip("cuda.bindings.driver")
ROOT = Path(nmsfree.__file__).parent


class PycudaDocs:
    """The names of `pycuda.driver` and their arguments, as documented."""

    class Error(Exception): ...

    class Device:
        def __init__(self, number: Any) -> None: ...
        @staticmethod
        def count() -> int: ...
        def name(self) -> str: ...
        def compute_capability(self) -> Any: ...
        def retain_primary_context(self) -> "PycudaDocs.Context": ...

    class Context:
        def push(self) -> None: ...
        @staticmethod
        def pop() -> None: ...
        @staticmethod
        def synchronize() -> None: ...

    class Stream:
        handle: int

        def __init__(self, flags: int = 0) -> None: ...
        def synchronize(self) -> None: ...

    class Event:
        def __init__(self, flags: int = 0) -> None: ...
        def record(self, stream: Any = None) -> Any: ...
        def time_since(self, event: Any) -> float: ...

    class DeviceAllocation:
        def free(self) -> None: ...

    class PagelockedHostAllocation:
        def free(self) -> None: ...

    @staticmethod
    def init(flags: int = 0) -> None: ...
    @staticmethod
    def mem_alloc(nbytes: int) -> "PycudaDocs.DeviceAllocation": ...
    @staticmethod
    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any: ...
    @staticmethod
    def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None: ...
    @staticmethod
    def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None: ...


@dataclass(frozen=True)
class Module:
    """A vendor module (or documented stand-in), or a class or value of one."""

    value: Any


@dataclass(frozen=True)
class Instance:
    """An object of a vendor class."""

    kind: type


@dataclass(frozen=True)
class Method:
    """A method or function of a vendor's; `bound` to an object."""

    function: Any
    bound: bool


class Ours:
    """Anything whose attributes are no vendor's; what its methods return may be."""


class Text(Ours):
    """Text or bytes, and what their methods return."""


class Unknown:
    """Nobody knows: its attributes may be a vendor's."""


OURS, TEXT, UNKNOWN = Ours(), Text(), Unknown()
Kind = Module | Instance | Method | Ours | Unknown

# (file, function or "*", expression) → what it holds.
SEEDS: dict[tuple[str, str, str], Kind] = {
    ("backends/tensorrt/vendor.py", "*", "self.module"): Module(trt),
    ("backends/tensorrt/vendor.py", "load_vendor", "module"): Module(trt),
    ("backends/tensorrt/vendor.py", "create_network", "builder"): Instance(trt.Builder),
    ("backends/tensorrt/vendor.py", "*", "config"): Instance(trt.IBuilderConfig),
    ("backends/tensorrt/vendor.py", "create_runtime_config", "config"): Instance(
        trt.IRuntimeConfig
    ),
    ("backends/tensorrt/vendor.py", "engine_problem", "runtime"): Instance(trt.Runtime),
    ("backends/tensorrt/vendor.py", "create_runtime_config", "engine"): Instance(trt.ICudaEngine),
    ("backends/tensorrt/vendor.py", "create_context", "engine"): Instance(trt.ICudaEngine),
    ("backends/tensorrt/vendor.py", "*", "runtime_config.config"): Instance(trt.IRuntimeConfig),
    ("backends/tensorrt/vendor.py", "*", "runtime_config.cache"): Instance(trt.IRuntimeCache),
    ("backends/tensorrt/log.py", "make_logger", "module"): Module(trt),
    ("backends/tensorrt/log.py", "__init__", "module"): Module(trt),
    ("backends/tensorrt/engine.py", "*", "self.vendor.module"): Module(trt),
    ("backends/tensorrt/engine.py", "*", "self._engine"): Instance(trt.ICudaEngine),
    ("backends/tensorrt/engine.py", "_deserialise", "runtime"): Instance(trt.Runtime),
    ("backends/tensorrt/context.py", "*", "self._context"): Instance(trt.IExecutionContext),
    ("cuda/cuda_python.py", "*", "self._driver"): Module(driver),
    ("cuda/pycuda.py", "*", "self._driver"): Module(PycudaDocs),
    ("cuda/pycuda.py", "*", "self._device"): Instance(PycudaDocs.Device),
    ("cuda/pycuda.py", "*", "self._context"): Instance(PycudaDocs.Context),
    ("cuda/pycuda.py", "*", "stream.native"): Instance(PycudaDocs.Stream),
    ("cuda/pycuda.py", "adopt_stream", "stream"): Instance(PycudaDocs.Stream),
    ("cuda/pycuda.py", "*", "event.native"): Instance(PycudaDocs.Event),
    ("cuda/pycuda.py", "*", "end.native"): Instance(PycudaDocs.Event),
    ("cuda/pycuda.py", "*", "memory.native"): Instance(PycudaDocs.DeviceAllocation),
    ("cuda/pycuda.py", "*", "self._pinned.pop(array.ctypes.data)"): Instance(
        PycudaDocs.PagelockedHostAllocation
    ),
}
FILES = sorted({file for file, _, _ in SEEDS})
# Expressions of our own of which the source does not say so by itself. A vendor's object, listed
# here by mistake, would go unseen.
LOCALS = {
    "backends/tensorrt/vendor.py": {"n[2:]", "kind"},
    "backends/tensorrt/log.py": {"collector", "message", "log"},
    "backends/tensorrt/engine.py": {
        *("binding", "scores", "shapes", "message"),
        *("path", "hashlib.sha256(bytes.fromhex(engine_sha256) + payload)"),
    },
    "backends/tensorrt/context.py": {
        *("memory", "b", "views", "view", "binding", "pinned", "pinned.view(binding.dtype)"),
        *("self._device[INPUT]", "self._device[binding.name]"),
    },
    "cuda/cuda_python.py": {"ctypes.c_uint8 * nbytes"},
    "cuda/pycuda.py": set[str](),
}


@dataclass
class Walk:
    """Reads one file; `used` are the vendor's names it uses, `problems` what is wrong."""

    file: str
    seeds: dict[tuple[str, str, str], Kind]
    used: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    top: set[str] = field(default_factory=set)

    def read(self, source: str) -> "Walk":
        tree = ast.parse(source)
        self.top = set(dir(builtins)) | _top_level_names(tree)
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        for function in functions:
            self._function(function)
        return self

    def _function(self, function: ast.FunctionDef) -> None:
        names: dict[str, Kind] = {}
        for argument in [*function.args.args, *function.args.kwonlyargs]:
            text = ast.unparse(argument.annotation) if argument.annotation else ""
            names[argument.arg] = {"Any": UNKNOWN, "str": TEXT}.get(text, OURS)
        for node in _in_order(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value, function.name, names)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = ast.unparse(node.annotation)
                names[node.target.id] = {"Any": UNKNOWN, "bytes": TEXT}.get(text, OURS)
            elif isinstance(node, ast.Attribute):
                self._kind(node, function.name, names)
            elif isinstance(node, ast.Call):
                self._call(node, function.name, names)

    def _assign(
        self, target: ast.expr, value: ast.expr | None, function: str, names: dict[str, Kind]
    ) -> None:
        """Remember what a name holds; of a tuple taken apart, nobody knows the parts."""
        if isinstance(target, ast.Name):
            names[target.id] = UNKNOWN if value is None else self._kind(value, function, names)
        elif isinstance(target, ast.Tuple):
            whole = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            parts = value.elts if isinstance(value, ast.Tuple) and whole else [None] * 99
            for part, part_value in zip(target.elts, parts, strict=False):
                self._assign(part, part_value, function, names)

    def _kind(self, node: ast.expr, function: str, names: dict[str, Kind]) -> Kind:
        """What an expression holds."""
        text = ast.unparse(node)
        for where in (function, "*"):
            if (self.file, where, text) in self.seeds:
                return self.seeds[self.file, where, text]
        if text in LOCALS[self.file]:
            return OURS
        if isinstance(node, ast.Name):
            ours = node.id in self.top or node.id == "self"
            return names.get(node.id, OURS if ours else UNKNOWN)
        if isinstance(node, ast.BoolOp):
            kinds = [self._kind(value, function, names) for value in node.values]
            return TEXT if any(isinstance(kind, Text) for kind in kinds) else UNKNOWN
        if isinstance(node, ast.Subscript):
            return TEXT if isinstance(self._kind(node.value, function, names), Text) else UNKNOWN
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self._kind(node.value, function, names))
        if isinstance(node, ast.Call):
            return self._result(node, self._kind(node.func, function, names))
        return TEXT if isinstance(node, ast.Constant | ast.JoinedStr) else UNKNOWN

    def _attribute(self, node: ast.Attribute, owner: Kind) -> Kind:
        if isinstance(owner, Ours | Method):
            return owner if isinstance(owner, Text) else OURS
        if isinstance(owner, Unknown):
            self._wrong(node, f"nobody knows what {ast.unparse(node.value)} is")
            return UNKNOWN
        holder = owner.value if isinstance(owner, Module) else owner.kind
        self.used.add(f"{getattr(holder, '__name__', holder)}.{node.attr}")
        missing = object()
        found = inspect.getattr_static(holder, node.attr, missing)
        annotated = node.attr in getattr(holder, "__annotations__", {})
        if found is missing and not annotated:
            self._wrong(node, f"{getattr(holder, '__name__', holder)} has no {node.attr}")
            return UNKNOWN
        if annotated:
            return OURS
        if isinstance(found, property):
            return _returned(found.fget.__doc__ or "")
        value = getattr(holder, node.attr)
        if isinstance(owner, Instance) and callable(value):
            return Method(value, not isinstance(found, staticmethod))
        return Method(value, False) if _is_function(value) else Module(value)

    def _call(self, node: ast.Call, function: str, names: dict[str, Kind]) -> None:
        """Count arguments; `self._call(f, a, b)` is f(a, b)."""
        called, arguments = node.func, list(node.args)
        if ast.unparse(called) == "self._call" and arguments:
            called, arguments = arguments[0], arguments[1:]
        kind = self._kind(called, function, names)
        target = kind.value if isinstance(kind, Module) else None
        if isinstance(kind, Method) or (isinstance(target, type) and target.__init__ is not None):
            if any(isinstance(a, ast.Starred) for a in arguments):
                return
            keywords = {k.arg for k in node.keywords if k.arg}
            value = kind.function if isinstance(kind, Method) else target
            bound = kind.bound if isinstance(kind, Method) else True
            if not accepts(value, bound, len(arguments), keywords):
                self._wrong(node, f"{ast.unparse(called)} does not take {len(arguments)} arguments")

    def _result(self, node: ast.Call, called: Kind) -> Kind:
        if isinstance(called, Method):
            return _returned(called.function.__doc__ or "", called.function)
        if isinstance(called, Module) and isinstance(called.value, type):
            return Instance(called.value)
        if isinstance(node.func, ast.Name) and node.func.id in dir(builtins):
            return TEXT if node.func.id == "str" else OURS
        return TEXT if isinstance(called, Text) else UNKNOWN

    def _wrong(self, node: ast.AST, text: str) -> None:
        self.problems.append(f"{self.file}:{getattr(node, 'lineno', 0)}: {text}")


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _top_level_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def _in_order(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function as they are written, without the functions within it."""
    nodes = list(ast.walk(function))
    inner = {id(n) for f in nodes[1:] if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    body = [n for n in nodes if id(n) not in inner and hasattr(n, "lineno")]
    return iter(sorted(body, key=lambda n: (n.lineno, not isinstance(n, ast.Assign))))


def _returned(doc: str, function: Any = None) -> Kind:
    """What a signature in a docstring says is returned: an object of TensorRT, or ours."""
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        return Instance(getattr(PycudaDocs, annotation.split(".")[-1]))
    found = re.search(r"->\s*([\w.:\[\]]+)", doc)
    name = re.split(r"[.:]+", found[1])[-1] if found else ""
    kind = getattr(trt, name, None)
    return Instance(kind) if isinstance(kind, type) else OURS


def accepts(function: Any, bound: bool, count: int, keywords: set[str]) -> bool:
    """Whether a function takes this many arguments by position, and these by name."""
    known = signatures(function, bound)
    return not known or any(_fits(parameters, bound, count, keywords) for parameters in known)


def signatures(function: Any, bound: bool) -> list[list[tuple[str, bool]]]:
    """Every signature as (name, whether it must be given); pybind11 writes them in docstrings."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            raise TypeError  # of an extension type that tells nothing
        whole = [(p.name, p.default is p.empty) for p in parameters]
        return [([("self", True), *whole] if isinstance(function, type) and bound else whole)]
    except (ValueError, TypeError):
        doc = (function.__init__ if isinstance(function, type) else function).__doc__ or ""
    lines = re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> ", doc, re.MULTILINE)
    return [_parameters(line) for line in lines if not line.startswith("*args")]


def _parameters(text: str) -> list[tuple[str, bool]]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [(p.split(":")[0].strip(), " = " not in p) for p in parts if p.strip()]


def _fits(parameters: list[tuple[str, bool]], bound: bool, count: int, keywords: set[str]) -> bool:
    rest = parameters[1:] if bound else parameters
    by_position, by_name = rest[:count], rest[count:]
    left = {name for name, needed in by_name if needed}
    return len(by_position) == count and left <= keywords <= {name for name, _ in by_name}


def read_file(file: str) -> Walk:
    return Walk(file, SEEDS).read((ROOT / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES)
def test_every_call_exists(file: str) -> None:
    walk = read_file(file)
    assert walk.problems == []
    assert walk.used


def test_no_file_is_left_out() -> None:
    """Whatever touches a vendor's module in these folders is walked."""
    touches = re.compile(r"(self|vendor)\.module\b|_driver\.|self\._context\.|import_module\(")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("backends", "backends/tensorrt", "cuda")
        for path in (ROOT / folder).glob("*.py")
        if touches.search(path.read_text(encoding="utf-8"))
    }
    assert found - {"backends/tensorrt/log.py"} == set(FILES) - {"backends/tensorrt/log.py"}


def test_what_is_looked_at_is_what_matters() -> None:
    """The list of what was seen holds the calls that everything hangs on."""
    used = {name for file in FILES for name in read_file(file).used}
    assert len(used) > 80
    expected = (
        "Runtime.deserialize_cuda_engine Runtime.get_engine_validity ICudaEngine.num_io_tensors "
        "ICudaEngine.get_tensor_profile_shape ICudaEngine.create_runtime_config "
        "ICudaEngine.create_execution_context IRuntimeConfig.set_runtime_cache "
        "IRuntimeConfig.cuda_graph_strategy IRuntimeCache.deserialize IRuntimeCache.serialize "
        "IExecutionContext.execute_async_v3 IExecutionContext.set_tensor_address "
        "IExecutionContext.set_input_shape IExecutionContext.is_stream_capturable "
        "IBuilderConfig.set_compute_capability cuda.bindings.driver.cuPointerGetAttributes "
        "cuda.bindings.driver.cuStreamBeginCapture cuda.bindings.driver.cuGraphLaunch "
        "cuda.bindings.driver.cuMemHostAlloc cuda.bindings.driver.cuDevicePrimaryCtxRetain "
        "Context.push PycudaDocs.pagelocked_empty"
    )
    assert set(expected.split()) <= used


BROKEN: list[tuple[str, Callable[[str], str], str]] = [
    (
        "backends/tensorrt/context.py",
        lambda s: s.replace("execute_async_v3", "execute_async_v4"),
        "IExecutionContext has no execute_async_v4",
    ),
    (
        "backends/tensorrt/context.py",
        lambda s: s.replace("set_tensor_address(name, memory.address)", "set_tensor_address(name)"),
        "self._context.set_tensor_address does not take 1 arguments",
    ),
    (
        "backends/tensorrt/engine.py",
        lambda s: s.replace("_engine.num_io_tensors", "_engine.num_bindings"),
        "ICudaEngine has no num_bindings",
    ),
    (
        "backends/tensorrt/vendor.py",
        lambda s: s.replace("WHOLE_GRAPH_CAPTURE", "WHOLE_GRAPH"),
        "CudaGraphStrategy has no WHOLE_GRAPH",
    ),
    (
        "backends/tensorrt/vendor.py",
        lambda s: s.replace("kernels.deserialize(", "kernels.load("),
        "IRuntimeCache has no load",
    ),
    (
        "cuda/cuda_python.py",
        lambda s: s.replace("cuMemHostAlloc", "cuMemAllocHostV2"),
        "cuda.bindings.driver has no cuMemAllocHostV2",
    ),
    (
        "cuda/cuda_python.py",
        lambda s: s.replace("cuGraphInstantiate, recorded, 0", "cuGraphInstantiate, recorded"),
        "self._driver.cuGraphInstantiate does not take 1 arguments",
    ),
    (
        "cuda/pycuda.py",
        lambda s: s.replace("time_since", "elapsed_since"),
        "Event has no elapsed_since",
    ),
    (
        "backends/tensorrt/context.py",
        lambda s: s + "\ndef more(thing: Any) -> None:\n    thing.enqueue()\n",
        "nobody knows what thing is",
    ),
]


@pytest.mark.parametrize(("file", "change", "problem"), BROKEN, ids=[b[2] for b in BROKEN])
def test_a_wrong_call_is_found(file: str, change: Callable[[str], str], problem: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    broken = change(source)
    assert broken != source
    assert any(problem in line for line in Walk(file, SEEDS).read(broken).problems)


FAKES = {
    tensorrt_fake._Runtime: trt.Runtime,
    tensorrt_fake._Engine: trt.ICudaEngine,
    tensorrt_fake._Config: trt.IRuntimeConfig,
    tensorrt_fake._Cache: trt.IRuntimeCache,
    tensorrt_fake._Context: trt.IExecutionContext,
    tensorrt_fake._Logger: trt.ILogger,
}


@pytest.mark.parametrize("fake", FAKES, ids=lambda kind: kind.__name__)
def test_the_fake_has_the_signatures_of_the_real_module(fake: type) -> None:
    """Otherwise tests with the fake would prove calls that the real module refuses."""
    methods = {
        n: f
        for n, f in vars(fake).items()
        if inspect.isfunction(f) and n[0] != "_" and n not in ("fails", "falls_back", "compile")
    }
    for name, function in methods.items():
        real = getattr(FAKES[fake], name)
        names = [p for p in inspect.signature(function).parameters if p != "self"]
        offered = [[n for n, _ in s if n != "self"] for s in signatures(real, True)]
        assert names in offered, f"{name}{names}, really one of {offered}"
