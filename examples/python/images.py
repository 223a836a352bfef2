"""Detections of pictures, a line of JSON each: python images.py MODEL PICTURE…"""

import json
import sys

import cv2

from nmsfree import Detector


def main(model: str, *paths: str) -> None:
    with Detector(model) as detector:
        for path in paths:
            found = detector(cv2.imread(path))
            rows = [{"box": d.box, "score": d.confidence, "class": d.class_name} for d in found]
            print(json.dumps({"image": path, "detections": rows}))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
