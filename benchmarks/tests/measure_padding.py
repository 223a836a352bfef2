"""AP when a host pads with another colour than the one a network was trained with; five minutes.

    python benchmarks/tests/measure_padding.py

`fcos_e2e_nano` of a file with `--input nchw-float`, 256 × 352 and 256 × 512, on the square pictures
of digits val: a quarter and half of the input is padding, at the right or at both sides.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.preprocess import PAD_BGR
from nmsfree_export.graph.contract import content_of, read_description

WEIGHTS = Path(__file__).parents[2] / "weights/fcos_e2e_nano.safetensors"
COLOURS = {"mean": PAD_BGR, "black": (0,) * 3, "114": (114,) * 3, "white": (255,) * 3}
WIDTHS = 352, 512
PICTURES = 300
KEYS = ("AP", "AP50", "F1")


def nmsfree(*arguments: object) -> None:
    command = [sys.executable, "-m", "nmsfree", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Print the figures, a line each."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        data, made, report = folder / "data", folder / "model.onnx", folder / "report.json"
        write_digits(data, train=0, val=PICTURES, overlap=0)
        for width in WIDTHS:
            options = ("--input", "nchw-float", "--size", 256, width)
            nmsfree("export", WEIGHTS, "-o", made, *options)
            model = onnx.load(made)
            spec = read_description(made, model)
            for place in ("top-left", "center"):
                for colour, pad in COLOURS.items():
                    # What stands in the description is what `Detector`, here the host, pads with.
                    other = replace(spec, resize=replace(spec.resize, place=place, pad=pad))
                    padded = folder / "padded.onnx"
                    padded.write_bytes(content_of(model, other))
                    options = ("--no-plots", "--threads", 1, "--json", report)
                    nmsfree("eval", padded, "--data", data, *options)
                    found = json.loads(report.read_text(encoding="utf-8"))
                    figures = " ".join(f"{key} {found[key]:.4f}" for key in KEYS)
                    sys.stdout.write(f"256 × {width}, {place}, {colour}: {figures}\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
