"""AP of tiled detection beside that of the whole picture at the same scale; half an hour at most.

    python benchmarks/tests/measure_tiles.py

Pictures of 4 × 4 scenes of the digits' test split, 1024 × 1024 pixels: `fcos_e2e_nano` exported for
all of it, and for tiles of 256 × 256 that share a quarter, and as much as the largest digit.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nmsfree.datasets.digits.layout import SIDE
from nmsfree.datasets.digits.scenes import DIGITS, make_scene
from nmsfree.datasets.made import Labelled

SCENES = 4  # along a side
PICTURES = 18
WEIGHTS = Path(__file__).parents[2] / "weights/fcos_e2e_nano.safetensors"
KEYS = ("AP", "AP50", "F1", "duplicates_per_image_iou50", "nested_pairs_per_image", "seconds")


def mosaic(split: str, index: int) -> Labelled:
    """Scenes side by side, row by row."""
    scenes = [make_scene(split, index * SCENES**2 + k) for k in range(SCENES**2)]
    rows = [np.hstack([s.image for s in scenes[k : k + SCENES]]) for k in range(0, 16, SCENES)]
    boxes = [s.boxes + SIDE * np.array([k % SCENES, k // SCENES] * 2) for k, s in enumerate(scenes)]
    labels = np.concatenate([s.labels for s in scenes]).tolist()
    return Labelled(np.vstack(rows), np.concatenate(boxes).tolist(), labels, [0] * len(labels))


def nmsfree(*arguments: object) -> None:
    command = [sys.executable, "-m", "nmsfree", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Print the figures, a line each."""
    with TemporaryDirectory() as folder:
        data, report = Path(folder) / "data", Path(folder) / "report.json"
        DIGITS.write(data, {"test": PICTURES}, mosaic, None)
        for side in (SCENES * SIDE, SIDE):
            model = Path(folder) / f"{side}.onnx"
            rows = ("--size", side, side, "--top-k", 1000)
            nmsfree("export", WEIGHTS, "-o", model, *(rows if side > SIDE else ()))
            for overlap in (64, 112) if side == SIDE else (0,):
                tiles = ("--tile", SIDE, "--overlap", overlap) if overlap else ()
                options = ("--split", "test", "--no-plots", "--threads", 1, "--json", report)
                nmsfree("eval", model, "--data", data, *options, *tiles)
                found = json.loads(report.read_text(encoding="utf-8"))
                figures = " ".join(f"{key} {found[key]:.4f}" for key in KEYS)
                sys.stdout.write(f"model of {side}, overlap {overlap}: {figures}\n")


if __name__ == "__main__":
    main()
