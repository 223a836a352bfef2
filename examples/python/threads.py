"""The same with four threads that share one detector: python threads.py MODEL PICTURE…

Each run has one thread of the processor, so that four pictures are looked at side by side.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2

from nmsfree import Detector


def main(model: str, *paths: str) -> None:
    with Detector(model, threads=1) as detector, ThreadPoolExecutor(4) as pool:

        def look(path: str) -> str:
            found = detector(cv2.imread(path))
            rows = [{"box": d.box, "score": d.confidence, "class": d.class_name} for d in found]
            return json.dumps({"image": path, "detections": rows})

        for line in pool.map(look, paths):
            print(line)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
