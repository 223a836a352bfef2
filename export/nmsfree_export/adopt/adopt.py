"""Another project's ONNX file → one of the contract, written only if it says the same.

The adoption certificate: no NMS, and no operator whose output is as long as the data decide; and on
the same pictures the same rows from the original, read in NumPy as its project documents it, and
from the adopted file through `Detector`. A wrong option fools both alike: what tells that is AP on
labelled pictures (`nmsfree eval`).
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, version_converter

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.backends.contract import MAX_ONNX, one_line
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.errors import GateError, InputError, ModelError
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.files import temporary_folder, write_atomic
from nmsfree.parsing import read_bytes
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree_export.adopt.compare import Adoption, compare, enforce
from nmsfree_export.adopt.find import Trial, find_preprocessing
from nmsfree_export.adopt.foreign import (
    ADOPT_DEFAULTS,
    AdoptOptions,
    File,
    Foreign,
    as_options,
)
from nmsfree_export.adopt.recognize import make_adopted_spec, recognize
from nmsfree_export.adopt.reference import Original, larger
from nmsfree_export.adopt.rewrite import opset_of, rewrite
from nmsfree_export.graph.contract import describe
from nmsfree_export.verify.accuracy import NmsEffect, measure_nms
from nmsfree_export.verify.canary import with_canary
from nmsfree_export.verify.certificate import check_graph
from nmsfree_export.verify.inputs import InputCheck, finish
from nmsfree_export.verify.parity import Pictures, bundled_pictures, load_images

OLDEST_OPSET, NEWEST_OPSET = 16, 18  # as found; others are converted to the newest
READ_OPSET = 21  # up to which every engine reads a file that cannot be converted


@dataclass(frozen=True)
class AdoptReport:
    """What was written, what was concluded, and how it compares."""

    path: Path
    sha256: str
    size: int
    spec: ModelSpec
    foreign: Foreign
    adoption: Adoption
    trials: Sequence[Trial]  # best first; empty where no labelled pictures were given
    nms_effect: NmsEffect | None  # None where it was not asked for
    input: InputCheck | None = None  # None: the usual one

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "bytes": self.size,
            "family": self.foreign.family,
            "concluded": dict(self.foreign.concluded),
            "fed": as_options(self.foreign),
            "resize": asdict(self.spec.resize),
            "classes": len(self.spec.class_names),
            "top_k": self.spec.top_k,
            "threshold": self.spec.threshold,
            "batch": self.spec.batch,
            "size": [self.spec.height, self.spec.width],
            "size_step": self.spec.size_step,
            "canary_rows": self.spec.canary and len(self.spec.canary.values()),
            "provenance": dict(self.spec.provenance),
            "adoption": asdict(self.adoption),
            "input": {"takes": self.spec.input, "source": self.spec.source}
            | (self.input.to_json() if self.input else {}),
            "preprocessing": [trial.to_json() for trial in self.trials],
            "nms_effect": self.nms_effect and self.nms_effect.to_json(),
        }


def adopt_onnx(
    path: Path,
    out: Path,
    options: AdoptOptions = ADOPT_DEFAULTS,
    images: Path | None = None,
    labelled: DetectionDataset | None = None,
    progress: Callable[[str], None] = lambda _: None,
    check: DetectionDataset | None = None,
) -> AdoptReport:
    """Recognise, rewrite and compare a file; it appears under its name only if all passed.

    Args:
        images: folder of pictures to compare on; None takes bundled ones.
        labelled: how the file is fed and read is found on these, see `find_preprocessing`; its
            class names are taken for those of a file that carries none.
        check: what NMS does to AP and duplicates is measured on these.

    Raises:
        InputError: the file is not recognised, or an option is missing or does not fit.
        ModelError: it is no ONNX file.
        DataError: `check` has other classes than the file.
        GateError: the adopted file does not say what the original says; nothing is written.
    """
    data = read_bytes(path, MAX_ONNX, ModelError)
    model = load_model(path, data)
    original = Original(path, data)
    file = File.of(path, model, labelled.class_names if labelled else None)
    trials: list[Trial] = []
    if labelled:
        trials = find_preprocessing(file, original, options, labelled, progress)
        options = trials[0].options
    foreign = original.complete(recognize(file, options, "by AP" if labelled else "as told"))
    spec = make_adopted_spec(file, foreign, options, hashlib.sha256(data).hexdigest())
    half = original.dtypes[foreign.images] == np.float16
    spec = replace(spec, precision="fp16" if half else "fp32")
    if check is not None:
        _check_comparable(foreign, spec, check)
    pictures = [*load_images(images)] if images else bundled_pictures()
    effect = None
    with temporary_folder() as folder:
        part, without = folder / "adopted.part", folder / "without.part"
        forms = forms_of(path, model)
        form, adopted, adoption = _first_that_passes(
            forms, original, foreign, spec, pictures, part, progress
        )
        if check is not None:
            plain = rewrite(form.model, replace(foreign, nms=None), replace(spec, nms=None))
            without.write_bytes(plain.SerializeToString())
            effect = measure_nms(without, part, check, progress)
        with closing(OnnxRuntimeBackend(part)) as backend:
            spec = with_canary(spec, backend)
        adopted, spec, taken = finish(adopted, spec, options.host, folder, pictures, progress)
    describe(adopted, spec)
    content: bytes = adopted.SerializeToString()
    write_atomic(out, content)
    digest = hashlib.sha256(content).hexdigest()
    foreign = replace(foreign, concluded=(*foreign.concluded, *form.concluded))
    return AdoptReport(out, digest, len(content), spec, foreign, adoption, trials, effect, taken)


class Form(NamedTuple):
    """A file as it is, or with its operators of another version, and what is said of that."""

    model: ModelProto
    concluded: tuple[tuple[str, str], ...] = ()


def _first_that_passes(
    forms: Sequence[Form],
    original: Original,
    foreign: Foreign,
    spec: ModelSpec,
    pictures: Pictures,
    part: Path,
    progress: Callable[[str], None],
) -> tuple[Form, ModelProto, Adoption]:
    """The first form whose rewriting says what the original says; it is written to `part`."""
    failures: list[Exception] = []
    for form in forms:
        adopted = rewrite(form.model, foreign, spec)
        part.write_bytes(adopted.SerializeToString())
        try:
            check_graph(adopted, spec)
            adoption = compare(original, part, foreign, pictures, progress)
            enforce(adoption, spec)
            if foreign.size_step is not None:
                other = replace(foreign, size=larger(foreign))
                enforce(compare(original, part, other, pictures, progress), spec)
        except (GateError, ModelError) as error:
            failures.append(error)
        else:
            return form, adopted, adoption
    raise failures[0]


def load_model(path: Path, data: bytes) -> ModelProto:
    """Read an ONNX file of standard operators.

    ModelError: it is none.
    """
    if not data:
        raise ModelError(f"{path}: is empty, expected an ONNX file")
    try:
        model = onnx.load_from_string(data)
        weights = model.graph.initializer
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in weights):
            raise ModelError(f"{path}: has its weights in another file: save it as one file")
        if any(entry.key == METADATA_KEY for entry in model.metadata_props):
            raise ModelError(f"{path}: is a file of nmsfree already: use it as it is")
        onnx.checker.check_model(model)
    except (DecodeError, UnicodeDecodeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: is no ONNX file that can be read ({one_line(error)})") from None
    domains = {e.domain for e in model.opset_import} - {"", "ai.onnx"}
    used = {node.domain for node in model.graph.node} & domains
    if used:
        raise ModelError(
            f"{path}: has operators of {', '.join(sorted(used))}, expected standard ones"
        )
    return model


def forms_of(path: Path, model: ModelProto) -> list[Form]:
    """The forms of a file that may be adopted, best first.

    That is the file of an opset from 16 to 18 as it is; another one converted to 18 and, where that
    is newer and does not succeed, as it is: ONNX Runtime's CUDA provider lacks some of the newer
    operators in many releases.

    ModelError: it is of an opset that cannot be converted and is not adopted as it is.
    """
    opset = opset_of(model)
    if OLDEST_OPSET <= opset <= NEWEST_OPSET:
        return [Form(model)]
    forms, why = [], "it answers otherwise then"
    try:
        converted = version_converter.convert_version(model, NEWEST_OPSET)
        forms.append(Form(converted, (("opset", f"{opset}, converted to {NEWEST_OPSET}"),)))
    except (RuntimeError, version_converter.ConvertError) as error:
        why = one_line(error)
    if NEWEST_OPSET < opset <= READ_OPSET:
        said = f"{opset}, not converted to {NEWEST_OPSET}: {why}"
        forms.append(Form(model, (("opset", said),)))
    if not forms:
        raise ModelError(
            f"{path}: opset {opset}, expected {OLDEST_OPSET} to {NEWEST_OPSET}, and it cannot be"
            f" converted ({why}): export it again with opset 17 or 18"
        )
    return forms


def _check_comparable(foreign: Foreign, spec: ModelSpec, check: DetectionDataset) -> None:
    """Refuse to compare with and without NMS what has none, or has its own."""
    if spec.nms is None or foreign.own_nms:
        raise InputError(
            "--check-data compares the file without NMS and with it: give --nms plain, for a file"
            " that has none of its own"
        )
    category_ids_of(spec.class_names, check, adopted=True)
