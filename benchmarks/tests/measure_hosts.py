"""What a file that takes whole pictures costs, and the example in C++ that runs it.

    nmsfree export weights/fcos_e2e_nano.safetensors -o model.onnx
    nmsfree convert model.onnx --input any -o any.onnx
    python benchmarks/tests/measure_hosts.py model.onnx any.onnx [--program build/detect]

`Detector` over the ordinary file (OpenCV resizes), over the other, and the program, in turns, with
one thread, by processor time: other programs take time by the clock from whoever runs. Decoding is
in none of them.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from nmsfree import Detector
from nmsfree.datasets.digits.scenes import make_scene

SIZES = ((256, 256), (480, 640), (1080, 1920), (2160, 3840))  # height, width


def measure_detector(detector: Detector, path: Path, runs: int) -> float:
    """Milliseconds of the processor for a picture: the median of the runs."""
    picture, spent = cv2.imread(str(path)), []
    detector(picture)
    for _ in range(runs):
        start = time.process_time()
        detector(picture)
        spent.append(1e3 * (time.process_time() - start))
    return float(np.median(spent))


def measure_program(program: Path, model: Path, path: Path, runs: int) -> float:
    """The same of the program."""
    command = [program, model, "--threads", "1", "--bench", str(runs), path]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return float(np.median(json.loads(done.stdout)["processor_ms"]))


def main() -> None:
    """Print a line for each size; ratios are those within a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("whole", type=Path, help="the same with --input any")
    parser.add_argument("--program", type=Path, help="runs OpenVINO, whatever --device says")
    parser.add_argument("--device", default="openvino")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=50, help="in a round")
    wanted = parser.parse_args()
    with TemporaryDirectory() as folder, ExitStack() as opened:
        subjects: dict[str, Callable[[Path, int], float]] = {}
        for name, model in (("ordinary", wanted.model), ("any", wanted.whole)):
            detector = opened.enter_context(Detector(model, device=wanted.device, threads=1))
            subjects[name] = partial(measure_detector, detector)
        if wanted.program:
            subjects["C++"] = partial(measure_program, wanted.program, wanted.whole)
        for number, (height, width) in enumerate(SIZES):
            path = Path(folder) / f"{number}.png"
            cv2.imwrite(str(path), cv2.resize(make_scene("val", number).image, (width, height)))
            rounds = np.array(
                [
                    [one(path, wanted.runs) for one in subjects.values()]
                    for _ in range(wanted.rounds)
                ]
            )
            parts = [
                f"{n} {ms:.2f} ms" for n, ms in zip(subjects, np.median(rounds, 0), strict=True)
            ]
            for (under, b), (over, a) in pairwise(enumerate(subjects)):
                ratios = rounds[:, over] / rounds[:, under]
                low, middle, high = np.quantile(ratios, [0, 0.5, 1])
                parts.append(f"{a} / {b} {middle:.3f} ({low:.3f} to {high:.3f})")
            sys.stdout.write(f"{height} × {width}: {', '.join(parts)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
