"""Try on this GPU what is claimed of GPUs: PASS, FAIL or SKIP.

Exit status 1 if a claim fails, 3 if there is no GPU to try them on. What cannot be tried is
skipped with the reason, and what to install. `nmsfree bench --device cuda` measures speed.

Example: nmsfree bench gpu-check

Only some: nmsfree bench gpu-check --only engine --only threads
"""

# Each claim is tried in a process of its own, since a vendor's library may crash or hang: this
# module, run with KEY FOLDER, tries one and ends with a line of JSON.

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.markup import escape

from nmsfree.doctor.probe import ask_child, module_command
from nmsfree.errors import GateError, InputError, MissingExtraError, NmsfreeError
from nmsfree.files import check_outputs, write_json
from nmsfree.options import Option
from nmsfree.text import one_of, shown
from nmsfree_benchmarks.harness.engines import the_gpu
from nmsfree_benchmarks.harness.options import Json
from nmsfree_benchmarks.harness.run import console_for
from nmsfree_benchmarks.questions.gpu_check.claims import (
    BY_KEY,
    CLAIMS,
    FREE,
    FREE_FP16,
    WITH_NMS,
    CannotTry,
    Claim,
)

Outcome = Literal["pass", "fail", "skip"]
MARKS = {"pass": "[green]PASS[/]", "fail": "[red]FAIL[/]", "skip": "[yellow]SKIP[/]"}
CHILD = "nmsfree_benchmarks.questions.gpu_check.question"
LIMIT_S = 900  # the marked tests take the longest


@dataclass(frozen=True)
class Options:
    weights: Annotated[Path, Option("Folder of the bundled weights.")] = Path("weights")
    work: Annotated[Path, Option("Where files and engines are made.")] = Path("runs/gpu-check")
    only: Annotated[
        tuple[str, ...] | None, Option("Only this claim; again for more.", metavar="KEY")
    ] = None
    json_file: Json = None


@dataclass(frozen=True)
class Finding:
    key: str
    text: str
    outcome: Outcome  # "skip" = it could not be tried here
    detail: str  # what was seen, or why not
    seconds: float


def main(options: Options) -> None:
    claims, json_file = choose(options.only or ()), options.json_file
    check_outputs([json_file], options.weights.rglob("*"))
    gpu = the_gpu()
    console = console_for(json_file)
    console.print(f"{gpu}: exporting, then {len(claims)} claims; some take minutes")
    prepare(options.weights, options.work)
    findings = []
    for claim in claims:
        found = try_claim(claim, options.work)
        console.print(f"{MARKS[found.outcome]} {found.key}: {found.text}")
        console.print(f"     {escape(shown(found.detail))} ({found.seconds:.1f} s)", style="dim")
        findings.append(found)
    report = {"gpu": str(gpu), "findings": [asdict(finding) for finding in findings]}
    write_json(json_file, report)
    if json_file in (None, "-"):
        write_json(options.work / "gpu-check.json", report)
    outcomes = [finding.outcome for finding in findings]
    counts = [f"{outcomes.count(kind)} {kind}ed" for kind in ("pass", "fail")]
    console.print(f"{', '.join(counts)}, {outcomes.count('skip')} skipped")
    failed = [finding.key for finding in findings if finding.outcome == "fail"]
    if failed:
        raise GateError(f"{len(failed)} of {len(findings)} claims failed: {', '.join(failed)}")


def choose(only: Sequence[str]) -> list[Claim]:
    """The claims of these keys, in the usual order; all of them for none."""
    unknown = [key for key in only if key not in BY_KEY]
    if unknown:
        raise InputError(f"claim {unknown[0]!r} is unknown, expected {one_of(BY_KEY, unknown[0])}")
    return [claim for claim in CLAIMS if not only or claim.key in only]


def prepare(weights: Path, folder: Path) -> None:
    """Export the detectors that claims are tried on: NMS-free in FP32 and FP16, and with NMS.

    InputError: weights are missing. GateError: an export differs from its checkpoint.
    """
    from nmsfree_export.export import ExportOptions, export_onnx
    from nmsfree_training.weights.checkpoint import load_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    for name in (FREE, WITH_NMS):
        if not (weights / f"{name}.safetensors").is_file():
            raise InputError(
                f"{weights}: no {name}.safetensors in it: give the folder with the bundled weights"
            )
    for stale in folder.glob("*.engine*"):
        stale.unlink()
    for name, model, options in (
        (FREE, FREE, ExportOptions()),
        (FREE_FP16, FREE, ExportOptions(precision="fp16")),
        (WITH_NMS, WITH_NMS, ExportOptions()),
    ):
        checkpoint = load_checkpoint(weights / f"{model}.safetensors")
        export_onnx(checkpoint, folder / f"{name}.onnx", options)
    shutil.copy(weights / f"{FREE}.safetensors", folder)


def try_claim(claim: Claim, folder: Path) -> Finding:
    """Try one claim in a child process; a child that crashes or hangs is a failure."""
    started = time.monotonic()
    answer, problem = ask_child(module_command(CHILD, claim.key, str(folder)), LIMIT_S)
    found = answer or {"outcome": "fail", "detail": problem}
    seconds = round(time.monotonic() - started, 1)
    return Finding(claim.key, claim.text, found["outcome"], found["detail"], seconds)


def outcome_of(claim: Claim, folder: Path) -> tuple[Outcome, str]:
    try:
        return "pass", claim.check(folder)
    except (CannotTry, MissingExtraError) as error:
        return "skip", str(error)
    except NmsfreeError as error:
        return "fail", str(error)


if __name__ == "__main__":  # the child process
    said = outcome_of(BY_KEY[sys.argv[1]], Path(sys.argv[2]))
    answer = {"outcome": said[0], "detail": " ".join(said[1].split())}
    sys.stdout.write(json.dumps(answer) + "\n")
