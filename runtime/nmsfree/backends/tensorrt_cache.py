"""Compiled kernels kept beside an engine, so that the next start does not compile them again.

`model.engine.cache` is the vendor's own bytes behind a checksum: a file that was cut or damaged
never reaches the vendor's code. A lost cache costs seconds at the next start and nothing else.
"""

import hashlib
import logging
from pathlib import Path

from nmsfree.decode import read_bytes
from nmsfree.errors import InputError
from nmsfree.files import write_atomic

_logger = logging.getLogger(__name__)
MAGIC = b"nmsfree kernels 1\n"
MAX_CACHE = 1 << 30  # bytes
_DIGEST = hashlib.sha256().digest_size


def cache_path(engine: Path) -> Path:
    """`model.engine` → `model.engine.cache`."""
    return engine.with_name(engine.name + ".cache")


def read_cache(engine: Path) -> bytes | None:
    """Return the vendor's bytes; None where there are none, or the file is damaged."""
    path = cache_path(engine)
    if not path.exists():
        return None
    try:
        content = read_bytes(path, limit=MAX_CACHE)
    except InputError as error:
        _logger.warning("%s: kernels are compiled again", error)
        return None
    head = len(MAGIC) + _DIGEST
    payload = content[head:]
    if content[:head] != MAGIC + hashlib.sha256(payload).digest() or not payload:
        _logger.warning("%s: damaged or of another version, kernels are compiled again", path)
        return None
    return payload


def write_cache(engine: Path, payload: bytes) -> None:
    """Keep the vendor's bytes; a folder that cannot be written to costs a warning only."""
    try:
        write_atomic(cache_path(engine), MAGIC + hashlib.sha256(payload).digest() + payload)
    except InputError as error:
        _logger.warning("kernels will be compiled again at the next start: %s", error)
