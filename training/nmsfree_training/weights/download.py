"""Fetching one file over HTTP, going on where an earlier attempt stopped."""

import os
import re
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, cast
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from nmsfree.errors import CheckpointError
from nmsfree.text import shown
from nmsfree_training.weights.torch_file import MAX_BYTES

CHUNK = 1 << 18  # bytes between two calls of `progress`
TIMEOUT = 30.0  # seconds without a byte

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None: not told)


def fetch(
    url: str,
    target: Path,
    progress: Progress,
    check: Callable[[Path], None],
    *,
    size: int | None = None,
    allow_http: bool = False,
) -> None:
    """Download `url` into `target`, by way of a `.part` file beside it.

    What arrived stays there when the download fails, and is not asked for again. A server that
    ignores the Range header sends everything: the file then starts over.

    Args:
        check: looks at the whole part and refuses it with a CheckpointError.
        size: bytes that the file must have; None takes what the server sends, up to `MAX_BYTES`.
        allow_http: also without encryption, where anyone on the way can change the bytes.

    Raises:
        CheckpointError: no network, an error or a web page from the server, connection cut,
            another size, or the address or a redirect leads elsewhere than to https.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if not _transfer(url, part, progress, size, allow_http):
            part.unlink()
            _transfer(url, part, progress, size, allow_http)
    except HTTPError as error:
        raise CheckpointError(
            f"{shown(url)}: the server answered {error.code} ({shown(error.reason)}): try later, "
            "or fix the address in the manifest"
        ) from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that is none
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise CheckpointError(
            f"{shown(url)}: download failed ({shown(reason)}): check the network and run the same "
            "command again, it goes on where it stopped"
        ) from None
    try:
        check(part)
    except CheckpointError:
        part.unlink()  # going on from wrong bytes would give wrong bytes
        raise
    part.replace(target)


class _Redirects(HTTPRedirectHandler):
    """Follows a redirect to https only."""

    def __init__(self, allow_http: bool) -> None:
        self.allow_http = allow_http

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _check_scheme(newurl, self.allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, allow_http: bool) -> None:
    scheme = url.partition(":")[0].lower()
    if scheme != "https" and not (scheme == "http" and allow_http):
        hint = "allow http with --allow-http" if scheme == "http" else "expected https"
        raise URLError(f"{shown(url)} is not https, {hint}")


def _open(url: str, offset: int, allow_http: bool) -> HTTPResponse:
    _check_scheme(url, allow_http)
    headers = {"User-Agent": "nmsfree", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    opener = build_opener(_Redirects(allow_http))
    return cast(HTTPResponse, opener.open(Request(url, headers=headers), timeout=TIMEOUT))


def _transfer(url: str, part: Path, progress: Progress, size: int | None, allow_http: bool) -> bool:
    """Run one request; False if `part` cannot be continued because it is not of this file."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, have, allow_http)
    except HTTPError as error:
        if error.code != 416 or have == 0:
            raise
        # Nothing beyond the end: the file is whole if it has the length that the server names.
        return error.headers.get("Content-Range") == f"bytes */{have}"
    with response:
        kind = response.headers.get_content_type()
        if kind == "text/html":
            raise CheckpointError(
                f"{url}: the server sent a web page ({kind}), expected a weight file: log in to "
                "the network if it asks for that, or fix the address in the manifest"
            )
        start, total = _extent(response, have)
        if total is not None:
            _check_size(url, total, size)
        with part.open("r+b" if start else "wb") as file:
            done = file.seek(start)
            progress(done, total)
            while done <= (size or MAX_BYTES) and (chunk := response.read(CHUNK)):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise ConnectionError(f"connection cut after {done:,} of {total:,} bytes")
    try:
        _check_size(url, done, size)
    except CheckpointError:
        part.unlink()  # nothing to go on from
        raise
    return True


def _check_size(url: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{shown(url)}: the file has {found:,} bytes there, {expected:,} in the manifest: fix "
            "the manifest, or its address"
        )
    if found > MAX_BYTES:
        raise CheckpointError(
            f"{shown(url)}: {found:,} bytes or more, expected at most {MAX_BYTES:,}"
        )


def _extent(response: HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return where the body belongs in the file, and the length of the whole file."""
    length = response.headers.get("Content-Length")
    if response.status != 206:  # the server ignores the Range header
        if length and not re.fullmatch("[0-9]{1,18}", length):
            raise ConnectionError(f"the server tells a length of {length!r}")
        return 0, int(length) if length else None
    answered = response.headers.get("Content-Range", "")
    span = re.fullmatch("bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", answered)
    if span is None or int(span[1]) != have:
        raise ConnectionError(f"asked for the bytes from {have:,}, the server sent {answered!r}")
    return have, int(span[2])
