"""What one worker does: reads pictures, looks at them, writes a result file."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.options import Options
from nmsfree.cluster.store import FORMAT_VERSION, LARGEST, SCHEMA, name_of, read, write_rows
from nmsfree.detector import Detector, Threshold
from nmsfree.errors import InputError, ModelError
from nmsfree.images import Reduce, Reduction, decode_image, quiet_opencv
from nmsfree.parsing import read_bytes
from nmsfree.preprocess import in_file, reduction_for

Row = dict[str, Any]  # of a result file, by the names of its columns
Seen = tuple[Row, NDArray[np.uint8], tuple[int, int]]  # picture, height and width of its file
AHEAD = 16  # pictures that are read before it is their turn
READERS = 8  # threads that read, as an object store answers slowly


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of every picture."""

    model: str  # path, the same on every machine
    sha256: str  # of the model's file
    device: str | None
    engine: Options
    threshold: Threshold | None
    classes: tuple[str | int, ...] | None
    max_detections: int | None
    reduced: bool  # JPEGs are decoded at a part of their size
    out: str  # folder or address
    folder: str  # from which paths of pictures lead

    @property
    def about(self) -> dict[str, Any]:
        """What a result file says of itself; files that say the same belong together."""
        classes = None if self.classes is None else list(self.classes)
        return {
            "format_version": FORMAT_VERSION,
            "model": self.sha256,
            "threshold": self.threshold,
            "classes": classes,
            "max_detections": self.max_detections,
            "reduced": self.reduced,
        }


class Worker:
    """A detector in a process of its own."""

    def __init__(self, task: Task, processors: int) -> None:
        with suppress(OSError):  # paths are as the user wrote them
            os.chdir(task.folder)
        cv2.setNumThreads(processors)
        quiet_opencv()
        self._task = task
        if not Path(task.model).is_file():
            raise ModelError(
                f"{task.model}: no such file on {gethostname()}, expected it under this path on"
                " every machine"
            )
        options = vars(task.engine) | {"sha256": task.sha256}
        self._detector = Detector(task.model, device=task.device, **options)
        spec = self._detector.spec
        self._reduction: Reduction | Reduce = reduction_for(spec) if task.reduced else 1

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Look at pictures, the `paths` below `root`, and write what was found.

        Returns the number of `images`, of those that `failed`, and the time when it `began`.
        """
        began = time.time()
        root, paths = part["root"], list(part["paths"])
        rows: list[Row] = []
        seen: list[Seen] = []
        # As many at once as `nmsfree detect` gives to the network, so that it answers the same.
        at_once = self._detector.spec.batch or 1
        for path, data in _read_ahead(root, paths):
            name = name_of(root, path)
            rows.append(dict.fromkeys(SCHEMA.names) | {"image": name, "model": self._task.sha256})
            try:
                seen.append((rows[-1], *decode_image(data.result(), name, self._reduction)))
            except InputError as error:
                rows[-1]["error"] = str(error)
            if len(seen) == at_once:
                self._look(seen)
                seen.clear()
        self._look(seen)
        write_rows(self._task.out, part["name"], rows, self._task.about)
        failed = sum(row["error"] is not None for row in rows)
        return {"images": len(rows), "failed": failed, "began": began}

    def _look(self, seen: list[Seen]) -> None:
        """Detect in pictures, and fill their rows."""
        answers = self._detector.batch(
            [image for _, image, _ in seen],
            threshold=self._task.threshold,
            classes=self._task.classes,
            max_detections=self._task.max_detections,
        )
        for (row, image, size), answer in zip(seen, answers, strict=True):
            found = in_file(answer, image, size)
            row["height"], row["width"] = size
            row["boxes"], row["scores"] = found.xyxy.tolist(), found.confidence.tolist()
            row["classes"], row["class_ids"] = list(found.class_name), found.class_id.tolist()
            row["truncated"] = found.truncated


def _read_ahead(root: str, paths: Sequence[str]) -> Iterator[tuple[str, Future[bytes]]]:
    """Read pictures in their order, some of them before it is their turn."""
    with ThreadPoolExecutor(READERS) as pool:
        reading: deque[tuple[str, Future[bytes]]] = deque()
        for path in paths:
            job = pool.submit(read, root, path) if root else pool.submit(read_bytes, path, LARGEST)
            reading.append((path, job))
            if len(reading) > AHEAD:
                yield reading.popleft()
        yield from reading
