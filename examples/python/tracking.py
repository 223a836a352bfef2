"""Objects of a video with numbers that stay, a line of JSON each: python tracking.py MODEL VIDEO

pip install "nmsfree[track]", then pip install --no-deps trackers: docs/streams.md says why.
"""

import json
import sys

from trackers import ByteTrackTracker

import nmsfree


def main(model: str, video: str) -> None:
    tracker = ByteTrackTracker(frame_rate=25)
    with nmsfree.Detector(model) as detector:
        for frame, found in nmsfree.stream(video, detector, threshold=0.1):
            tracked = tracker.update(found.to_supervision())
            columns = tracked.xyxy.tolist(), tracked["class_name"], tracked.tracker_id
            for box, name, number in zip(*columns, strict=True):
                row = {"id": int(number), "class": str(name), "box": box}
                print(json.dumps({"frame": frame.number, **row}))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
