"""`nmsfree bench gpu-check`: does this GPU do what the project says?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from nmsfree_benchmarks.gpu_check.check import Finding
    from nmsfree_benchmarks.gpu_check.claims import Claim

MARKS = {"pass": "[green]PASS[/]", "fail": "[red]FAIL[/]", "skip": "[yellow]SKIP[/]"}


def gpu_check(
    weights: Annotated[Path, typer.Option(help="Folder of the bundled weights.")] = Path("weights"),
    work: Annotated[Path, typer.Option(help="Where files and engines are made.")] = Path(
        "runs/gpu-check"
    ),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="KEY", help="Only this claim; again for more."),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help='Write JSON; "-" is stdout.')
    ] = None,
) -> None:
    """Try on this machine's GPU what is claimed of GPUs: a line PASS, FAIL or SKIP for each.

    Exit status 1 if a claim fails, 3 if there is no GPU to try them on. What cannot be tried is
    skipped with the reason, and what to install. `nmsfree bench --device cuda` measures speed.

    Example: nmsfree bench gpu-check

    Only some: nmsfree bench gpu-check --only engine --only threads
    """
    from rich.console import Console

    from nmsfree.errors import GateError
    from nmsfree.files import check_outputs, write_json
    from nmsfree_benchmarks.gpu_check.check import prepare, try_claims
    from nmsfree_benchmarks.gpu_check.claims import the_gpu

    claims = choose(only)
    check_outputs([json_file], weights.rglob("*"))
    gpu = the_gpu()
    console = Console(stderr=json_file == "-", highlight=False)
    console.print(f"{gpu}: exporting, then {len(claims)} claims; some take minutes")
    prepare(weights, work)
    findings = try_claims(claims, work, lambda finding: _tell(finding, console))
    found = {"gpu": str(gpu), "findings": [finding.to_json() for finding in findings]}
    write_json(json_file or work / "gpu-check.json", found)
    if json_file == "-":
        write_json(work / "gpu-check.json", found)
    console.print(summary(findings))
    failed = [finding.key for finding in findings if finding.outcome == "fail"]
    if failed:
        raise GateError(f"{len(failed)} of {len(findings)} claims failed: {', '.join(failed)}")


def choose(only: Sequence[str] | None) -> "list[Claim]":
    """The claims of these keys, in the usual order; all of them for none."""
    from nmsfree.errors import InputError
    from nmsfree_benchmarks.gpu_check.claim_list import BY_KEY, CLAIMS

    unknown = [key for key in only or () if key not in BY_KEY]
    if unknown:
        raise InputError(f"claim {unknown[0]!r} is unknown, expected one of: {', '.join(BY_KEY)}")
    return [claim for claim in CLAIMS if not only or claim.key in only]


def _tell(finding: "Finding", console: "Console") -> None:
    from rich.markup import escape

    from nmsfree.text import shown

    console.print(f"{MARKS[finding.outcome]} {finding.key}: {finding.text}")
    console.print(f"     {escape(shown(finding.detail))} ({finding.seconds:.1f} s)", style="dim")


def summary(findings: "Sequence[Finding]") -> str:
    """One line: how many of each outcome."""
    counts = {kind: sum(f.outcome == kind for f in findings) for kind in MARKS}
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped"
