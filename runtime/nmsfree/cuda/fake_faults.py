"""Faults on request, for `nmsfree.cuda.fake`."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from nmsfree.cuda.base import cuda_error

Class = TypeVar("Class", bound=type)


def may_fail(*methods: str) -> Callable[[Class], Class]:
    """Let methods of a class raise a failed CUDA call's EngineError, while its `fail` names them.

    They fail before they do anything: what they would have freed stays alive.
    """

    def prepare(kind: Class) -> Class:
        for name in methods:
            setattr(kind, name, _faulty(getattr(kind, name)))
        return kind

    return prepare


def _faulty(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def attempt(self: Any, *args: Any, **kwargs: Any) -> Any:
        if method.__name__ in self.fail:
            raise cuda_error(method.__name__, "", "as asked")
        return method(self, *args, **kwargs)

    return attempt
