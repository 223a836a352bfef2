"""Compiled kernels kept beside an engine, so that the next start does not compile them again.

`model.engine.cache` is the vendor's own bytes behind a checksum over them and the engine's hash: a
file that was cut, damaged or made for another engine never reaches the vendor's code. The bytes are
native code, and whoever can write the file can compute its checksum: it is as trusted as its
folder, and an engine that the application names by its hash does without. A lost cache costs
seconds at the next start and nothing else.
"""

import hashlib
import logging
from pathlib import Path

from nmsfree.decode import read_bytes
from nmsfree.errors import InputError
from nmsfree.files import write_atomic

_logger = logging.getLogger(__name__)
MAGIC = b"nmsfree kernels 2\n"
MAX_CACHE = 1 << 30  # bytes
_HEAD = len(MAGIC) + hashlib.sha256().digest_size


def cache_path(engine: Path) -> Path:
    """`model.engine` → `model.engine.cache`."""
    return engine.with_name(engine.name + ".cache")


def read_cache(engine: Path, engine_sha256: str) -> bytes | None:
    """Return the vendor's bytes; None where there are none for this engine."""
    path = cache_path(engine)
    if not path.exists():
        return None
    try:
        content = read_bytes(path, limit=MAX_CACHE)
    except InputError as error:
        _logger.warning("%s: kernels are compiled again", error)
        return None
    payload = content[_HEAD:]
    if content[:_HEAD] != _head(engine_sha256, payload) or not payload:
        _logger.warning("%s: damaged or of another engine, kernels are compiled again", path)
        return None
    return payload


def write_cache(engine: Path, engine_sha256: str, payload: bytes) -> None:
    """Keep the vendor's bytes; a folder that cannot be written to costs a warning only."""
    try:
        write_atomic(cache_path(engine), _head(engine_sha256, payload) + payload)
    except InputError as error:
        _logger.warning("kernels will be compiled again at the next start: %s", error)


def _head(engine_sha256: str, payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(bytes.fromhex(engine_sha256) + payload).digest()
