"""What a picture costs the example in C++, beside `Detector` over the same file in OpenVINO.

    nmsfree export weights/fcos_e2e_nano.safetensors --input any -o any.onnx
    python benchmarks/tests/measure_cpp.py build/detect any.onnx

Rounds of the one and of the other in turns, with one thread, by processor time: other programs take
time by the clock from whoever runs. Decoding is in neither.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree import Detector
from nmsfree.datasets.digits.scenes import make_scene

SIZES = ((256, 256), (480, 640), (1080, 1920), (2160, 3840))  # height, width


def measure_program(program: Path, model: Path, picture: Path, runs: int) -> float:
    """Milliseconds of the processor for a picture: the median of the runs."""
    command = [program, model, "--threads", "1", "--bench", str(runs), picture]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return float(np.median(json.loads(done.stdout)["processor_ms"]))


def measure_detector(detector: Detector, picture: NDArray[np.uint8], runs: int) -> float:
    """The same of `Detector`."""
    spent = []
    for _ in range(runs):
        start = time.process_time()
        detector(picture)
        spent.append(1e3 * (time.process_time() - start))
    return float(np.median(spent))


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=50, help="in a round")
    wanted = parser.parse_args()
    with TemporaryDirectory() as folder, Detector(wanted.model, device="openvino", threads=1) as it:
        for number, (height, width) in enumerate(SIZES):
            path = Path(folder) / f"{number}.png"
            scene = cv2.resize(make_scene("val", number).image, (width, height))
            picture = np.asarray(scene, np.uint8)
            cv2.imwrite(str(path), picture)
            measure_detector(it, picture, 5)
            rounds = [
                (
                    measure_program(wanted.program, wanted.model, path, wanted.runs),
                    measure_detector(it, picture, wanted.runs),
                )
                for _ in range(wanted.rounds)
            ]
            ours, theirs = np.median(rounds, axis=0)
            ratios = sorted(a / b for a, b in rounds)
            sys.stdout.write(
                f"{height} × {width}: C++ {ours:.2f} ms, Python {theirs:.2f} ms, ratio"
                f" {np.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})\n"
            )


if __name__ == "__main__":
    main()
