"""`nmsfree bench`: measure NMS-free against NMS; `nmsfree bench training`: a training step."""

import inspect
from typing import Any

import typer

from nmsfree.cli.options import command
from nmsfree_benchmarks.harness.run import Question
from nmsfree_benchmarks.questions import (
    frontier,
    gpu_check,
    jitter,
    overhead,
    roofline,
    throughput,
    training,
)
from nmsfree_benchmarks.questions.models import question as models
from nmsfree_benchmarks.questions.nms import question as nms
from nmsfree_benchmarks.report import compare, page

QUESTIONS: dict[str, Question] = {  # by kind, in the order of a report
    asked.QUESTION.kind: asked.QUESTION
    for asked in (models, nms, jitter, frontier, throughput, overhead, roofline)
}
_bench = command(models.models, models.Options)


def bench(context: typer.Context, **values: Any) -> None:
    if context.invoked_subcommand is None:
        _bench(**values)


_context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
_parameters = [_context, *inspect.signature(_bench).parameters.values()]
bench.__doc__ = models.models.__doc__
bench.__annotations__ = {p.name: p.annotation for p in _parameters}
bench.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]


def report(options: page.Options) -> None:
    """One page from result files: question, answer, pictures, tables, device, how to repeat it.

    The page is a single file that loads nothing from elsewhere. A run that something disturbed says
    so in red. Files of an older format are left out and named.

    Example: nmsfree bench report

    Of two runs: nmsfree bench report a.json b.json --out report.html --markdown report.md
    """
    page.write_report(options, QUESTIONS)


app = typer.Typer(invoke_without_command=True)
app.callback()(bench)
app.command()(command(compare.compare, compare.Options))
app.command("gpu-check")(command(gpu_check.gpu_check, gpu_check.Options))
app.command()(command(frontier.frontier, frontier.Options))
app.command()(command(jitter.jitter, jitter.Options))
app.command()(command(nms.nms, nms.Options))
app.command()(command(overhead.overhead, overhead.Options))
app.command()(command(report, page.Options))
app.command()(command(roofline.roofline, roofline.Options))
app.command()(command(throughput.throughput, throughput.Options))
app.command()(command(training.training, training.Options))
app.command()(command(training.criterion, training.CriterionOptions))
