"""Trying the claims on a GPU, each in a process of its own: a vendor's library may crash or hang.

`python -m nmsfree_benchmarks.gpu_check.check KEY FOLDER` tries one and ends with a line of JSON.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nmsfree.doctor.probe import ask_child, module_command
from nmsfree.errors import InputError, MissingExtraError, NmsfreeError
from nmsfree_benchmarks.gpu_check.claim_list import BY_KEY, FREE, FREE_FP16, WITH_NMS
from nmsfree_benchmarks.gpu_check.claims import CannotTry, Claim

Outcome = Literal["pass", "fail", "skip"]
LIMIT_SECONDS = 900  # the marked tests take the longest


@dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
        key, text: of the claim.
        outcome: "skip" = it could not be tried here.
        detail: what was seen, or why not.
        seconds: it took this long.
    """

    key: str
    text: str
    outcome: Outcome
    detail: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def prepare(weights: Path, folder: Path) -> None:
    """Export the detectors that claims are tried on: NMS-free in FP32 and FP16, and with NMS.

    Raises:
        InputError: the bundled weights are not in the folder.
        GateError: an export differs from its checkpoint.
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


def try_claims(
    claims: Sequence[Claim],
    folder: Path,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Try claims one after another.

    Args:
        tell: called with each finding as it comes.
    """
    findings = []
    for claim in claims:
        finding = try_claim(claim, folder)
        tell(finding)
        findings.append(finding)
    return findings


def try_claim(claim: Claim, folder: Path, limit: float = LIMIT_SECONDS) -> Finding:
    """Try one claim in a child process; a child that crashes or hangs is a failure."""
    started = time.monotonic()
    command = module_command(__name__, claim.key, str(folder))
    answer, problem = ask_child(command, limit)
    seconds = round(time.monotonic() - started, 1)
    if answer is None:
        return Finding(claim.key, claim.text, "fail", problem, seconds)
    return Finding(claim.key, claim.text, answer["outcome"], answer["detail"], seconds)


def outcome_of(claim: Claim, folder: Path) -> tuple[Outcome, str]:
    """Try one claim in this process."""
    try:
        return "pass", claim.check(folder)
    except (CannotTry, MissingExtraError) as error:
        return "skip", str(error)
    except NmsfreeError as error:
        return "fail", str(error)


def main() -> None:
    """The child process."""
    key, folder = sys.argv[1:]
    outcome, detail = outcome_of(BY_KEY[key], Path(folder))
    answer = {"outcome": outcome, "detail": " ".join(detail.split())}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
