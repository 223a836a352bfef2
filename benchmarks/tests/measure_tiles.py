"""AP of tiled detection beside that of the whole picture at the same scale; a few minutes.

    python benchmarks/tests/measure_tiles.py
    python benchmarks/tests/measure_tiles.py trees.onnx data/trees

The first: pictures of 4 × 4 scenes of the digits' test split, 1024 × 1024 pixels; `fcos_e2e_nano`
exported for all of it, and for tiles of 256 × 256 that share as much as by default, and a quarter.
The second: the uncut regions `test-whole` of the trees, resized; in tiles of 400 pixels, each of
which tells what lies in its core; and as `Detector.tiled` does, which matches at the seams first.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from measure_padding import WEIGHTS, nmsfree

from nmsfree import Detections, Detector
from nmsfree.datasets.digits.layout import SIDE
from nmsfree.datasets.digits.scenes import DIGITS, make_scene
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.made import Labelled
from nmsfree.evaluation.analysis import analyse
from nmsfree.evaluation.evaluate import predict
from nmsfree.tiles import WHOLE, Tiles, Tiling, _Rows

SCENES = 4  # along a side
PICTURES = 18
KEYS = ("AP", "AP50", "F1", "duplicates_per_image_iou50", "nested_pairs_per_image", "seconds")


def mosaic(split: str, index: int) -> Labelled:
    """Scenes side by side, row by row."""
    scenes = [make_scene(split, index * SCENES**2 + k) for k in range(SCENES**2)]
    rows = [np.hstack([s.image for s in scenes[k : k + SCENES]]) for k in range(0, 16, SCENES)]
    boxes = [s.boxes + SIDE * np.array([k % SCENES, k // SCENES] * 2) for k, s in enumerate(scenes)]
    labels = np.concatenate([s.labels for s in scenes]).tolist()
    return Labelled(np.vstack(rows), np.concatenate(boxes).tolist(), labels, [0] * len(labels))


def of_the_core(tiles: Tiles, found: Sequence[Detections]) -> Detections:
    """What tiles tell where nothing is matched: each what it owns."""
    rows = _Rows.of(found, tiles)
    kept = np.flatnonzero(rows.owned)
    kept = kept[np.argsort(-rows.scores[kept], kind="stable")]
    boxes = rows.boxes[kept].astype(np.float32)
    return Detections(boxes, rows.scores[kept], rows.labels[kept], found[0].names)


def trees(model: Path, data: Path) -> None:
    """Print the figures of the tree scenes, a line each.""" ""
    dataset, tiling = load_dataset(data, "test-whole"), Tiling(400)
    kinds = (("resized", WHOLE, Tiles.join), ("tiled", tiling, of_the_core))
    with Detector(model, threads=1) as detector:
        for name, cut, join in (*kinds, ("tiled and matched", tiling, Tiles.join)):
            with patch.object(Tiles, "join", join):
                started = time.process_time()
                results = predict(detector, dataset, tiling=cut)
                seconds = time.process_time() - started
            analysis = analyse(dataset, results, detector.spec, tiled=True)
            found = analysis.to_json() | {"seconds": seconds}
            sys.stdout.write(f"{name}: {' '.join(f'{key} {found[key]:.4f}' for key in KEYS)}\n")


def main() -> None:
    """Print the figures, a line each."""
    if sys.argv[1:]:
        trees(*map(Path, sys.argv[1:]))
        return
    with TemporaryDirectory() as folder:
        data, report = Path(folder) / "data", Path(folder) / "report.json"
        DIGITS.write(data, {"test": PICTURES}, mosaic, None)
        for side in (SCENES * SIDE, SIDE):
            model = Path(folder) / f"{side}.onnx"
            rows = ("--size", side, side, "--top-k", 1000)
            nmsfree("export", WEIGHTS, "-o", model, *(rows if side > SIDE else ()))
            for words in ((), ("--overlap", SIDE // 4)) if side == SIDE else ((),):
                tiles = ("--tile", SIDE, *words) if side == SIDE else ()
                options = ("--split", "test", "--no-plots", "--threads", 1, "--json", report)
                nmsfree("eval", model, "--data", data, *options, *tiles)
                found = json.loads(report.read_text(encoding="utf-8"))
                figures = " ".join(f"{key} {found[key]:.4f}" for key in KEYS)
                sys.stdout.write(f"model of {side} {' '.join(map(str, tiles))}: {figures}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
