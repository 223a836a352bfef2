"""Malformed inputs, many of them: every command must answer in one line and the right status.

    python benchmarks/tests/fuzz.py --inputs 10000 --seed 0
    python benchmarks/tests/fuzz.py --seed 0 --only options/17 --keep DIR     # one input again

Valid small files are damaged with a seed (bytes, fields, sizes, names) and given to the commands.
A run fails if it ends by a signal or with another status than 0, 1, 2 or 3, prints a traceback or
an endless line, takes more than 20 s, or holds more than 2 GB.

Each run is a forked child in a folder of its own, with limits on memory, time and file size; its
temporary folder lies there, too. Started by root, everything happens in a mount namespace in which
all but one temporary folder is read-only.
"""

import argparse
import base64
import gc
import importlib
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import typer.main

SECONDS = 20.0
MEMORY = 2 << 30  # bytes of resident memory
LONGEST_LINE = 2500  # characters of an error line
FILE_SIZE = 200 << 20
CANNOT = 77  # exit status where it cannot be run safely

Arguments = list[str]
Case = Callable[[random.Random, Path, Path], Arguments]  # (random, base files, run's folder)


# What stands in for a value: JSON text, most of it valid.
BIG = [str(2**31), str(2**53), str(2**63), str(2**64), str(-(2**63)), "1" + "0" * 20, "9" * 5000]
JSON_VALUES = [
    *"null true -1 0 1 3.7 -0.0 1e400 -1e400 NaN Infinity 1e-320 [] {} [[]] [1] [NaN,1,2]".split(),
    *r'"" "²" "\u0000" "\ud800" "\u001b[31m" "[/red]" "$x$" "../../x" "/" "猫" "a\nb"'.split(),
    *BIG,
    '" "',
    '{"a": 1}',
    "[" * 2000 + "]" * 2000,
    '{"x": ' * 30 + "1" + "}" * 30,
    '"' + "x" * 100_000 + '"',
]
# The same for YAML, XML, list files and the command line.
WORDS = [
    *"-1 0 1 3.7 1e400 nan inf -inf 1e-320 1e9 true null ² ٣ 1_0 0x10 +1 - -- .. / ~".split(),
    *"../../x [/red] [bold $x$ %s {0} 猫 &amp; <a> \x1b[31m http://127.0.0.1:9/x no/such".split(),
    *BIG,
    "",
    " ",
    "a" * 300,
    "a\x00b",
    "a\nb",
    "\udce9",
]


@dataclass
class Outcome:
    """How one run ended, and what is wrong with that ("" if nothing)."""

    name: str
    wrong: str
    status: int
    seconds: float
    processor: float  # seconds
    memory: int


@dataclass
class Kind:
    """One kind of input: its share of all inputs, and what makes one."""

    share: int
    make: Case
    may_go_on: bool = False  # an odd option can ask for long work; that is no hang
    seconds: float = SECONDS


# ---------------------------------------------------------------- damage


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or overwrite, one to four times."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(content) + 1), rng.randint(1, 16)
        what = rng.randrange(6)
        if what == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del content[at:]
        elif what == 2:
            content[at:at] = rng.randbytes(size)
        elif what == 3:
            content[at : at + size] = b""
        elif what == 4:
            content[at : at + size] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * size
        else:
            content[at:at] = content[at : at + 64] * rng.randint(1, 50)
    return bytes(content)


def damage_json(content: Any, rng: random.Random) -> str:
    """Replace, drop or add one to three values of a document; sometimes damage its text, too."""
    content = json.loads(json.dumps(content))
    texts: dict[str, str] = {}
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            break
        parent, key = rng.choice(places)
        what = rng.randrange(5)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, dict):
            parent[rng.choice(("x", "", "id", "\ud800"))] = parent.pop(key)
        elif what == 1:
            parent.append(parent[key])
        else:
            texts[mark := f"@{len(texts)}@"] = rng.choice(JSON_VALUES)
            parent[key] = mark
    text = json.dumps(content)
    for mark, value in texts.items():
        text = text.replace(f'"{mark}"', value)
    if rng.random() < 0.1:
        text = damage_bytes(text.encode(), rng).decode("latin-1")
    return text if rng.random() > 0.05 else "\ufeff" + text


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = range(len(content)) if isinstance(content, list) else list(content)
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def damage_text(text: str, rng: random.Random, extras: tuple[str, ...] = ()) -> bytes:
    """Replace one to three words of a text, or put a hostile one in its place."""
    if extras and rng.random() < 0.2:
        return rng.choice(extras).encode("utf-8", "surrogateescape")
    words = re.split(r"(\w+)", text)
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    data = "".join(words).encode("utf-8", "surrogateescape")
    return damage_bytes(data, rng) if rng.random() < 0.2 else data


# ---------------------------------------------------------------- kinds of input


def models(rng: random.Random, base: Path, here: Path) -> Arguments:
    """An ONNX file: bytes, a field of a message, or its description."""
    import onnx

    data = (base / "m.onnx").read_bytes()
    what = rng.random()
    if what < 0.3:
        data = damage_bytes(data, rng)
    else:
        model = onnx.load_from_string(data)
        if what < 0.65:
            entry = model.metadata_props[0]
            text = damage_json(json.loads(entry.value), rng)
            entry.value = text.encode("utf-8", "replace").decode()
        else:
            for _ in range(rng.randint(1, 3)):
                _damage_message(model, rng)
        data = model.SerializeToString()
    (here / "m.onnx").write_bytes(data)
    device = rng.choice(("cpu", "cpu", "cpu", "openvino"))
    if rng.random() < 0.1:
        return ["verify", "m.onnx", str(base / "m.onnx"), "--device", device]
    return ["detect", str(base / "a.png"), "--model", "m.onnx", "--no-save", "--device", device]


def _damage_message(message: Any, rng: random.Random) -> None:
    """Go down a random way into a protobuf message and change one field there."""
    while True:
        name, below = rng.choice([(f.name, f) for f in message.DESCRIPTOR.fields])
        value = getattr(message, name)
        repeated = hasattr(value, "append") or hasattr(value, "add")
        if below.message_type is not None:
            if repeated and not value:
                value.add()
                return
            if repeated and rng.random() < 0.15:
                del value[rng.randrange(len(value))]
                return
            message = rng.choice(value) if repeated else value
            continue
        odd: dict[type, tuple[Any, ...]] = {
            int: (-1, 0, 1, 2, 7, 2**31 - 1),
            float: (float("nan"), float("inf"), -1.0, 1e30),
            str: ("", "x", "a\x00b", "../../x", "x" * 5000, "Loop", "images"),
            bytes: (b"", b"\xff" * 9, b"x" * 100),
            bool: (True, False),
        }
        try:
            if repeated:
                kind = type(value[0]) if value else int
                value.append(rng.choice(odd[kind]))
            else:
                setattr(message, name, rng.choice(odd[type(value)]))
        except (TypeError, ValueError):
            continue  # another type or an enum without that number
        return


def adoptions(rng: random.Random, base: Path, here: Path) -> Arguments:
    """A file of another project: bytes, a field of a message, or what it says of itself."""
    import onnx

    source = rng.choice(sorted((base / "theirs").iterdir()))
    data, what = source.read_bytes(), rng.random()
    if what < 0.25:
        data = damage_bytes(data, rng)
    else:
        model = onnx.load_from_string(data)
        if what < 0.55 and model.metadata_props:
            for entry in rng.choices(model.metadata_props, k=rng.randint(1, 3)):
                odd = rng.choice(JSON_VALUES + WORDS) if rng.random() < 0.5 else entry.value
                entry.value = damage_text(odd or "x", rng).decode("utf-8", "replace")
        else:
            for _ in range(rng.randint(1, 3)):
                _damage_message(model, rng)
        data = model.SerializeToString()
    (here / "theirs.onnx").write_bytes(data)
    told = rng.choice(
        ((), (), ("--names", "a,b,c,d,e"), ("--nms", "plain"), ("--top-k", "7"), ("--classes", "x"))
    )
    return ["adopt", "theirs.onnx", "-o", "ours.onnx", *told]


def canaries(rng: random.Random, base: Path, here: Path) -> Arguments:
    """A description with a damaged canary: its fields, or the numbers of its rows."""
    import onnx

    model = onnx.load(base / "canary.onnx")
    entry = model.metadata_props[0]
    content = json.loads(entry.value)
    canary = content.pop("canary")
    if rng.random() < 0.4:
        finite = rng.random() < 0.7
        rows = bytearray(base64.b64decode(canary["rows"]))
        for _ in range(rng.randint(1, 20)):
            odd = rng.choice(
                (-1.0, 0.0, 0.5, 1e30, -3e38) if finite else (float("nan"), float("inf"))
            )
            struct.pack_into("<f", rows, 4 * rng.randrange(len(rows) // 4), odd)
        canary["rows"] = base64.b64encode(rows).decode()
        text = json.dumps({"canary": canary})
    else:
        text = damage_json({"canary": canary}, rng)
    text = json.dumps(content)[:-1] + ", " + text.removeprefix("\ufeff")[1:]
    entry.value = text.encode("utf-8", "replace").decode()
    onnx.save(model, here / "m.onnx")
    if rng.random() < 0.2:
        return ["detect", str(base / "a.png"), "--model", "m.onnx", "--no-save"]
    return ["doctor", "m.onnx", "--threads", "1", "--device", rng.choice(("cpu", "openvino"))]


def checkpoints(rng: random.Random, base: Path, here: Path) -> Arguments:
    """A `.safetensors` file (bytes, header, description) or a published `.pth`."""
    if rng.random() < 0.2:
        (here / "c.pth").write_bytes(damage_bytes((base / "c.pth").read_bytes(), rng))
        return ["eval", "c.pth", "--data", str(base / "coco"), "--no-plots", "--threads", "1"]
    data = (base / "c.safetensors").read_bytes()
    if rng.random() < 0.25:
        data = damage_bytes(data, rng)
    else:
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        if rng.random() < 0.7:
            header["__metadata__"]["nmsfree"] = damage_json(
                json.loads(header["__metadata__"]["nmsfree"]), rng
            )
            text = json.dumps(header)
        else:
            text = damage_json(header, rng)
        packed = text.encode("utf-8", "replace")
        data = struct.pack("<Q", len(packed)) + packed + data[8 + size :]
    (here / "c.safetensors").write_bytes(data)
    return ["eval", "c.safetensors", "--data", str(base / "coco"), "--no-plots", "--threads", "1"]


YAMLS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n"
        for p, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "names: *i\ntrain: images/train\nval: images/val\n",
    "train: !!python/object/apply:os.system [id]\nval: images/val\nnames: [a]\n",
    "train: images/train\nval: images/val\nnames: " + "[" * 3000,
    "train: ../..\nval: ..\nnames: {0: a, 0: b}\n",
    "- 1\n- 2\n",
    "train: [" + "images/train," * 5000 + "]\nval: images/val\nnames: [a]\n",
)
XMLS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {n} "{f"&{p};" * 10}">' for p, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><annotation><filename>&i;</filename></annotation>",
    '<?xml version="1.0" encoding="no-such"?><annotation/>',
    "<annotation>" + "<object>" * 20000,
    '<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation>&a;</annotation>',
)


def annotations(rng: random.Random, base: Path, here: Path) -> Arguments:
    """A dataset of one of three formats, one of its files damaged."""
    kind = rng.choice(("coco", "coco", "yolo", "yolo", "voc"))
    shutil.copytree(base / kind, here / "set")
    if kind == "coco":
        file = here / "set/annotations/instances_val.json"
        text = damage_json(json.loads(file.read_text()), rng)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif kind == "yolo":
        file = rng.choice(
            sorted((here / "set").rglob("*.yaml")) + sorted((here / "set").rglob("*.txt"))
        )
        file.write_bytes(
            damage_text(file.read_text(), rng, YAMLS if file.suffix == ".yaml" else ())
        )
    else:
        file = rng.choice(
            sorted((here / "set").rglob("*.xml")) + sorted((here / "set").rglob("*.txt"))
        )
        file.write_bytes(damage_text(file.read_text(), rng, XMLS if file.suffix == ".xml" else ()))
    if rng.random() < 0.5:
        return ["data", "check", "set", "--out", "check", *rng.choice(((), ("--fix",)))]
    return ["eval", str(base / "m.onnx"), "--data", "set", "--no-plots", "--json", "eval.json"]


def images(rng: random.Random, base: Path, here: Path) -> Arguments:
    """A folder of three pictures: damaged, of impossible size, or nothing of the kind."""
    folder = here / "in"
    folder.mkdir()
    shutil.copy(base / "a.png", folder / "good.png")
    for number in range(2):
        source = rng.choice(sorted((base / "pictures").iterdir()))
        data = source.read_bytes()
        data = _claim_size(data, rng) if rng.random() < 0.4 else damage_bytes(data, rng)
        suffix = rng.choice((source.suffix, source.suffix, ".png", ".jpg"))
        name = rng.choice(
            (b"x", b"caf\xe9", "猫".encode(), b"a\x1b[31m", b"[b]", b"$x$", b" ", b"-")
        )
        (folder / os.fsdecode(name + str(number).encode() + suffix.encode())).write_bytes(data)
    odd = rng.randrange(8)
    if odd == 0:
        os.mkfifo(folder / "pipe.png")
    elif odd == 1:
        (folder / "again").symlink_to(folder)
    elif odd == 2:
        (folder / "gone.png").symlink_to("nothing")
    elif odd == 3:
        (folder / "folder.png").mkdir()
    return ["detect", "in", "--model", str(base / "m.onnx"), "--save-dir", "out"]


def _claim_size(data: bytes, rng: random.Random) -> bytes:
    """Write another size into the header of a PNG, JPEG or BMP."""
    height, width = (rng.choice((0, 1, 7, 16_000, 30_000, 65_535, 2**31 - 1)) for _ in range(2))
    if data.startswith(b"\x89PNG"):
        head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    if data.startswith(b"\xff\xd8"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        size = struct.pack(">HH", min(height, 65_535), min(width, 65_535))
        return data[: at + 5] + size + data[at + 9 :]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<ii", width, -height) + data[26:]
    return damage_bytes(data, rng)


def results(rng: random.Random, base: Path, here: Path) -> Arguments:
    """Files that commands wrote: benchmark and study results, thresholds, manifests."""
    what = rng.randrange(5)
    if what in (0, 1):
        text = damage_json(json.loads((base / "bench.json").read_text()), rng)
        (here / "b.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        if what == 0:
            return ["bench", "compare", str(base / "bench.json"), "b.json", "--ratios"]
        return ["bench", "report", "b.json", "--out", "page.html", "--markdown", "page.md"]
    if what == 2:
        (here / "study").mkdir()
        text = damage_json(json.loads((base / "study.json").read_text()), rng)
        (here / "study/o2m_e16_s0.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        return ["study", "table", "--results", "study", "--json", "t.json"]
    if what == 3:
        text = damage_json(json.loads((base / "eval.json").read_text()), rng)
        (here / "t.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        # An input size that is refused ends the command before the long part.
        return ["export", str(base / "c.safetensors"), "-o", "m.onnx", "--thresholds", "t.json",
                "--size", "1", "1"]  # fmt: skip
    (here / "w").mkdir()
    text = (base / "manifest.toml").read_text()
    (here / "w/manifest.toml").write_bytes(damage_text(text, rng))
    return ["weights", "list", "--manifest", "w/manifest.toml"]


def options(rng: random.Random, base: Path, here: Path) -> Arguments:
    """A command with one or two odd values of its options."""
    verb, arguments, takes = rng.choice(_commands(base))
    for _ in range(rng.randint(1, 2)):
        name, values, is_flag = rng.choice(takes)
        word = [rng.choice(WORDS).replace("\x00", "\x01") for _ in range(values)]
        arguments = [*arguments, name, *([] if is_flag else word)]
    return [*verb, *arguments]


LONG = ("--install-completion", "--show-completion", "--help", "--version")


def _commands(base: Path) -> list[tuple[list[str], Arguments, list[tuple[str, int, bool]]]]:
    """Every command: its words, arguments with which it does something small, its options."""
    from nmsfree.cli.main import COMMANDS, load_command

    model, data, nano = str(base / "m.onnx"), str(base / "coco"), str(base / "c.safetensors")
    bench = ["--quick", "--seconds", "0", "--threads", "1", "--data", data]
    arguments: dict[str, Arguments] = {
        "detect": [str(base / "a.png"), "--model", model],
        "eval": [model, "--data", data, "--no-plots"],
        "data check": [data, "--out", "check"],
        "data digits": [
            "--out",
            "digits",
            *"--train 2 --val 1 --overlap 1".split(),
            *"--test 1 --test-overlap 0".split(),
        ],
        "export": [nano, "-o", "x.onnx", "--size", "1", "1"],
        "build": [model, "-o", "x.engine"],
        "verify": [model, model],
        "adopt": [str(base / "theirs/yolo_rows.onnx"), "-o", "x.onnx"],
        "train": ["--data", data, "--val", "", "--epochs", "1", "--no-probe", "--workers", "0"],
        "weights list": ["--manifest", str(base / "manifest.toml")],
        "weights card": [nano, "--data", data],
        "study table": ["--results", str(base / "study")],
        "study plot": ["--results", str(base / "study"), "--out", "p.png"],
        "bench compare": [str(base / "bench.json"), str(base / "bench.json")],
        "bench report": [str(base / "bench.json"), "--out", "p.html"],
    }
    found = []

    def walk(command: Any, path: list[str]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, [*path, name])
        takes = [
            (max(p.opts, key=len), max(p.nargs, 1), bool(getattr(p, "is_flag", False)))
            for p in command.params
            if p.opts[0].startswith("-") and not set(p.opts) & set(LONG)
        ]
        words = " ".join(path)
        if path and takes and words not in ("weights download", "data trees", "study run"):
            given = arguments.get(words, bench if path[0] == "bench" else [])
            weight = 1 if path[0] in ("bench", "doctor", "study") else 6  # the rest is quick
            found.extend([(path, given, takes)] * weight)

    for name in COMMANDS:
        walk(load_command(name), [name])
    return found


KINDS = {
    "models": Kind(30, models),
    "adoptions": Kind(12, adoptions),
    "canaries": Kind(6, canaries),
    "checkpoints": Kind(12, checkpoints),
    "annotations": Kind(20, annotations),
    "images": Kind(15, images),
    "results": Kind(12, results),
    "options": Kind(11, options, may_go_on=True, seconds=8.0),
}


# ---------------------------------------------------------------- valid files to begin with


def write_base(base: Path) -> None:
    """Write the valid files that are damaged."""
    import torch
    from PIL import Image

    from nmsfree.doctor.model import picture, write_model
    from nmsfree_training.config import ModelConfig
    from nmsfree_training.model.detector import Fcos
    from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint

    write_model(base).rename(base / "m.onnx")
    scene = cv2.resize(picture()[0], (96, 64), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(base / "a.png"), scene)
    (base / "pictures").mkdir()
    for suffix in ("png", "jpg", "bmp", "webp", "tiff", "gif"):
        Image.fromarray(scene[:, :, ::-1]).save(base / "pictures" / f"p.{suffix}")
    Image.fromarray(scene[:, :, 0]).convert("I;16").save(base / "pictures" / "deep.png")
    _write_sets(base, scene)
    config = ModelConfig(
        "fcos_e2e_nano", 3, ("o2m", "o2o"), width=8, channels=8, head_convs=1, head_norm="batch"
    )
    torch.manual_seed(0)
    network = Fcos(config)
    names, ids = ("blue", "green", "red"), (0, 1, 2)
    save_checkpoint(
        Checkpoint(config, (64, 64), names, ids, network.state_dict()), base / "c.safetensors"
    )
    torch.save({"model": dict(list(network.state_dict().items())[:9])}, base / "c.pth")
    root = Path(__file__).parents[2]
    (base / "study").mkdir()
    shutil.copy(root / "docs/study/o2m_e16_s0.json", base / "study")
    shutil.copy(root / "docs/study/o2m_e16_s0.json", base / "study.json")
    shutil.copy(root / "benchmarks/baseline.json", base / "bench.json")
    shutil.copy(root / "weights/manifest.toml", base / "manifest.toml")
    for folder in ("theirs", "adopt"):
        (base / folder).mkdir()
    sys.path.append(str(root / "export/tests"))
    import export_foreign

    for make in ("yolo_rows", "rtdetr_dense", "sorted_triple", "logits", "libreyolo_logits"):
        export_foreign.save(getattr(export_foreign, make)(), base / f"theirs/{make}.onnx")
    adopt = ["adopt", str(base / "theirs/yolo_rows.onnx"), "-o", str(base / "canary.onnx")]
    wait(start("base/1", adopt, base / "adopt", SECONDS))
    arguments = ["eval", str(base / "m.onnx"), "--data", str(base / "coco"), "--no-plots"]
    wait(start("base/0", [*arguments, "--json", str(base / "eval.json")], base, SECONDS))


def _write_sets(base: Path, scene: Any) -> None:
    """The same two pictures of three boxes as COCO, YOLO and VOC."""
    boxes = [(0, 24, 0, 8, 16), (1, 48, 16, 20, 16), (2, 0, 32, 24, 20)]  # class, x, y, w, h
    height, width = scene.shape[:2]
    names = ("blue", "green", "red")
    for split in ("train", "val"):
        for folder in (f"coco/{split}", f"yolo/images/{split}", f"yolo/labels/{split}"):
            (base / folder).mkdir(parents=True)
        for folder in (
            "coco/annotations",
            "voc/JPEGImages",
            "voc/Annotations",
            "voc/ImageSets/Main",
        ):
            (base / folder).mkdir(parents=True, exist_ok=True)
        content: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        }
        for number in range(2):
            name = f"{split}{number}"
            for place in (f"coco/{split}/{name}.png", f"yolo/images/{split}/{name}.png"):
                cv2.imwrite(str(base / place), scene)
            cv2.imwrite(str(base / f"voc/JPEGImages/{name}.jpg"), scene)
            content["images"].append(
                {"id": number, "file_name": f"{name}.png", "width": width, "height": height}
            )
            rows, objects = [], []
            for kind, x, y, w, h in boxes:
                content["annotations"].append(
                    {"id": len(content["annotations"]), "image_id": number, "category_id": kind,
                     "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                )  # fmt: skip
                rows.append(
                    f"{kind} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}"
                )
                objects.append(
                    f"<object><name>{names[kind]}</name><difficult>0</difficult><bndbox>"
                    f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
                    f"<ymax>{y + h}</ymax></bndbox></object>"
                )
            (base / f"yolo/labels/{split}/{name}.txt").write_text("\n".join(rows) + "\n")
            (base / f"voc/Annotations/{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename><size><width>{width}</width>"
                f"<height>{height}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
            )
        (base / f"coco/annotations/instances_{split}.json").write_text(json.dumps(content))
        (base / f"voc/ImageSets/Main/{split}.txt").write_text(f"{split}0\n{split}1\n")
    (base / "yolo/data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: [blue, green, red]\n"
    )


# ---------------------------------------------------------------- running


@dataclass
class Child:
    """A run that is under way."""

    name: str
    pid: int
    folder: Path
    arguments: Arguments
    ends: float  # by the monotonic clock
    began: float = field(default_factory=time.monotonic)
    stopped: bool = False


def start(name: str, arguments: Arguments, folder: Path, seconds: float) -> Child:
    """Fork a run of the command line in `folder`."""
    (folder / "tmp").mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            _become_limited(folder)
            status = _call(arguments)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            status = 99
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
        os._exit(status)
    return Child(name, pid, folder, arguments, time.monotonic() + seconds)


def _become_limited(folder: Path) -> None:
    os.setsid()
    os.chdir(folder)
    out = os.open("stdout", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666)
    err = os.open("stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _call(arguments: Arguments) -> int:
    from nmsfree.cli.main import main

    sys.argv = ["nmsfree", *arguments]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def wait(child: Child) -> Outcome:
    """Wait for the end of a run, or end it when its time is over."""
    while (outcome := poll(child)) is None:
        time.sleep(0.005)
    return outcome


def poll(child: Child) -> Outcome | None:
    pid, raw, usage = os.wait4(child.pid, os.WNOHANG)
    if pid == 0:
        if time.monotonic() > child.ends and not child.stopped:
            child.stopped = True
            os.killpg(child.pid, signal.SIGKILL)
        return None
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # what it left running
    seconds = time.monotonic() - child.began
    status = os.waitstatus_to_exitcode(raw)
    said = (child.folder / "stderr").read_text("utf-8", "replace")
    memory = usage.ru_maxrss * 1024
    wrong = _judge(status, said, memory, child)
    return Outcome(child.name, wrong, status, seconds, usage.ru_utime + usage.ru_stime, memory)


def _judge(status: int, said: str, memory: int, child: Child) -> str:
    lines = said.splitlines()
    last = lines[-1] if lines else ""
    if "Traceback (most recent call last)" in said or "internal error" in said:
        return f"traceback: {last[:200]}"
    if memory > MEMORY:
        return f"{memory / 2**30:.1f} GB"
    if child.stopped:
        return "no end"
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    if status not in (0, 1, 2, 3):
        return f"status {status}: {last[:200]}"
    if any(len(line) > LONGEST_LINE for line in lines):
        return f"a line of {max(map(len, lines))} characters"
    if status >= 2 and "rror" not in said:
        return f"status {status} without an error line: {last[:200]}"
    if "\x1b" in said:
        return "an escape sequence reaches the terminal"
    json_file = child.folder / "eval.json"
    if json_file.exists():
        try:
            json.loads(json_file.read_text(), parse_constant=_refuse)
        except ValueError as error:
            return f"no JSON: {error}"
    return ""


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} in it")


def names_of(inputs: int, seed: int) -> list[str]:
    """Names of the inputs, kinds mixed: kind/number."""
    total = sum(kind.share for kind in KINDS.values())
    names = [
        f"{name}/{number}"
        for name, kind in KINDS.items()
        for number in range(max(1, inputs * kind.share // total))
    ]
    random.Random(seed).shuffle(names)
    return names


def run_all(names: list[str], seed: int, jobs: int, work: Path) -> Iterator[Outcome]:
    """Run the inputs of these names, `jobs` at once; folders of failed ones stay in `work`."""
    base = work / "base"
    base.mkdir()
    write_base(base)
    running: list[Child] = []
    waiting = list(reversed(names))
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            folder = work / name.replace("/", "-") / "x/y"  # what goes up stays within
            folder.mkdir(parents=True)
            kind = KINDS[name.split("/")[0]]
            arguments = kind.make(random.Random(f"{seed}/{name}"), base, folder)
            running.append(start(name, arguments, folder, kind.seconds))
        ended = [(child, outcome) for child in running if (outcome := poll(child))]
        for child, outcome in ended:
            running.remove(child)
            if outcome.wrong == "no end" and KINDS[child.name.split("/")[0]].may_go_on:
                outcome.wrong = ""
            if outcome.wrong:
                command = " ".join(map(repr, child.arguments))
                (child.folder / "command").write_text(command, "utf-8", "surrogateescape")
            else:
                shutil.rmtree(child.folder.parents[1])
            yield outcome
        if not ended:
            time.sleep(0.003)


def prepare(work: Path) -> None:
    """Import what the commands import, so that a forked child starts at once."""
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        os.environ[name] = str(work)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    for name in ("http_proxy", "https_proxy"):
        os.environ[name] = "http://127.0.0.1:9"  # nobody answers there
    import matplotlib.pyplot  # noqa: F401
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401
    import torch

    for name in ("nmsfree", "nmsfree_training", "nmsfree_export", "nmsfree_benchmarks"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, name + "."):
            if not module.name.endswith(("__main__", "_child", "pycuda")):
                importlib.import_module(module.name)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    from nmsfree.cli import main as cli

    command = typer.main.get_command(cli.build_app())
    cli.build_app = lambda: command  # type: ignore[assignment,return-value]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        _call(["weights", "list"])  # typer imports the rest of itself at its first use
    gc.freeze()


ENCLOSE = """
mount --bind "$0" "$0" && mount -t tmpfs tmpfs /dev/shm && mount -o remount,bind,ro / &&
mount -o remount,bind,ro /dev && exec "$@"
"""


def enclose(work: Path) -> None:
    """Start again in a namespace where root can write to `work` alone."""
    if os.getuid() != 0 or "NMSFREE_FUZZ" in os.environ:
        return
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENCLOSE, str(work)]
    if subprocess.run([*command, "true"], check=False).returncode:
        print("root may make no mount namespace here: run it as an ordinary user", file=sys.stderr)
        sys.exit(CANNOT)
    os.environ["NMSFREE_FUZZ"] = str(work)
    os.execvp(command[0], [*command, sys.executable, *sys.argv, "--keep", str(work)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="a kind, or one input: kind/number")
    parser.add_argument("--keep", type=Path, help="empty folder for what failed")
    chosen = parser.parse_args()
    names = names_of(chosen.inputs, chosen.seed)
    if chosen.only:
        exact = "/" in chosen.only
        names = [chosen.only] if exact else [n for n in names if n.startswith(chosen.only + "/")]
    work = (chosen.keep or Path(tempfile.mkdtemp(prefix="nmsfree-fuzz-"))).resolve()
    work.mkdir(exist_ok=True)
    enclose(work)
    prepare(work)
    done: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    failed: list[Outcome] = []
    slowest, largest = 0.0, 0
    for outcome in run_all(names, chosen.seed, chosen.jobs, work):
        done[outcome.name.split("/")[0]] += 1
        statuses[outcome.status] += 1
        slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory)
        if outcome.wrong:
            failed.append(outcome)
            print(f"{outcome.name}: {outcome.wrong}", flush=True)
        if sum(done.values()) % 500 == 0:
            print(f"{sum(done.values())} of {len(names)}, {len(failed)} failed", flush=True)
    print(f"{sum(done.values())} inputs ({', '.join(f'{k} {n}' for k, n in done.items())})")
    print(f"statuses {dict(sorted(statuses.items()))}; slowest {slowest:.1f} s, "
          f"largest {largest / 2**20:.0f} MB; {len(failed)} failed")  # fmt: skip
    shutil.rmtree(work / "base")
    if failed:
        print(f"failed inputs with their commands: {work}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
