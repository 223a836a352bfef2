"""How right a model is on your own labelled pictures: python own_dataset.py MODEL DATA [SPLIT]

DATA is a folder of a COCO, YOLO or Pascal VOC dataset. Prints AP and F1, and the three pictures
whose number of objects is most wrong.
"""

import json
import sys

from nmsfree import Detector
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.evaluation.analysis import analyse
from nmsfree.evaluation.evaluate import predict


def main(model: str, data: str, split: str = "val") -> None:
    dataset = load_dataset(data, split)
    with Detector(model) as detector:
        measured = analyse(dataset, predict(detector, dataset), detector.spec)
        wrong = {s.path.name: abs(len(detector(s.path)) - len(s.boxes)) for s in dataset.samples}
    worst = sorted(wrong, key=lambda name: wrong[name], reverse=True)[:3]
    found = {"AP": measured.metrics.ap, "F1": measured.best.f1}
    print(json.dumps(found | {"worst": {name: wrong[name] for name in worst}}))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
