"""Detections of a video's frames, a line of JSON each: python video.py MODEL VIDEO"""

import json
import sys

import cv2

from nmsfree import Detector


def main(model: str, path: str) -> None:
    video = cv2.VideoCapture(path)
    with Detector(model) as detector:
        number = 0
        while True:
            there, frame = video.read()
            if not there:
                break
            found = detector(frame)
            rows = [{"box": d.box, "score": d.confidence, "class": d.class_name} for d in found]
            print(json.dumps({"frame": number, "detections": rows}))
            number += 1
    video.release()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
