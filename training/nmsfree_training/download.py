"""Fetching one file over HTTP into a `.part` file, going on where an earlier attempt stopped."""

import os
import re
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from nmsfree.errors import CheckpointError

CHUNK = 1 << 18  # bytes between two calls of `progress`
TIMEOUT = 30.0  # seconds without a byte

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None: not told)


def fetch(url: str, part: Path, progress: Progress) -> None:
    """Download `url` into `part`; bytes that are there already are not asked for again.

    A server that ignores the Range header sends everything: the file then starts over. What
    arrived stays in `part` when the download fails, so the next call goes on from there.

    Raises:
        CheckpointError: no network, an error or a web page from the server, connection cut.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not _transfer(url, part, progress):
            part.unlink()
            _transfer(url, part, progress)
    except HTTPError as error:
        raise CheckpointError(
            f"{url}: the server answered {error.code} ({error.reason}): try later, or mend the "
            "address in the manifest"
        ) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise CheckpointError(
            f"{url}: download failed ({reason}): check the network and run the same command "
            "again, it goes on where it stopped"
        ) from None


def _transfer(url: str, part: Path, progress: Progress) -> bool:
    """Run one request; False if `part` cannot be continued because it is not of this file."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, have)
    except HTTPError as error:
        if error.code != 416 or have == 0:
            raise
        # Nothing beyond the end: the file is whole if it has the length that the server names.
        return error.headers.get("Content-Range") == f"bytes */{have}"
    with response:
        _refuse_page(url, response)
        start, total = _extent(response, have)
        _write(response, part, start, total, progress)
    found = part.stat().st_size
    if total is not None and found != total:
        raise ConnectionError(f"connection cut after {found:,} of {total:,} bytes")
    return True


def _open(url: str, offset: int) -> HTTPResponse:
    headers = {"User-Agent": "nmsfree", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    return cast(HTTPResponse, urlopen(Request(url, headers=headers), timeout=TIMEOUT))


def _refuse_page(url: str, response: HTTPResponse) -> None:
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise CheckpointError(
            f"{url}: the server sent a web page ({kind}), expected a weight file: log in to the "
            "network if it asks for that, or mend the address in the manifest"
        )


def _extent(response: HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return where the body belongs in the file, and the length of the whole file."""
    length = response.headers.get("Content-Length")
    if response.status != 206:  # the server ignores the Range header
        return 0, int(length) if length else None
    answered = response.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answered)
    if span is None or int(span[1]) != have:
        raise ConnectionError(f"asked for the bytes from {have:,}, the server sent {answered!r}")
    return have, int(span[2])


def _write(
    response: HTTPResponse, part: Path, start: int, total: int | None, progress: Progress
) -> None:
    with part.open("r+b" if start else "wb") as file:
        done = file.seek(start)
        progress(done, total)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done, total)
        file.flush()
        os.fsync(file.fileno())
