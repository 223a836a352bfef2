"""`nmsfree bench` and its sub-commands: the modules of `questions`, and two of `report`.

A module has its help as docstring, `Options`, and either `main(options)` or what a `Question` has.
It is imported when it is called or its help is asked for; the list of commands needs its docstring.
"""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from nmsfree.cli.help import use_plain_help
from nmsfree.cli.main import check_numbers
from nmsfree.cli.options import command
from nmsfree.errors import InputError
from nmsfree.text import one_of, shown
from nmsfree_benchmarks.questions.models import Options

HERE = Path(__file__).parent
MODELS = "models"  # asked by `nmsfree bench` itself


def _modules() -> dict[str, str]:
    """Sub-command → module, below this package; a folder has one that is called `question`."""
    found = {"compare": "report.compare", "report": "report.page"}
    for path in (HERE / "questions").iterdir():
        if (path / "question.py").is_file():
            found[path.name.replace("_", "-")] = f"questions.{path.name}.question"
        elif path.suffix == ".py" and path.stem != "__init__":
            found[path.stem] = f"questions.{path.stem}"
    return dict(sorted(found.items()))


MODULES = _modules()


def _help(name: str) -> str:
    """The docstring of a module, which is not imported for it."""
    path = HERE / f"{MODULES[name].replace('.', '/')}.py"
    return inspect.cleandoc(path.read_text(encoding="utf-8").split('"""', 2)[1])


def _load(module: str) -> Any:
    return import_module(f"nmsfree_benchmarks.{module}")


def find_question(kind: str) -> Any:
    """The `Question` that writes result files of a kind; None of a kind without one."""
    module = _load(MODULES.get(MODELS if kind == "table" else kind, "cli"))
    return module if hasattr(module, "KIND") else None


def _run(name: str, options: Any) -> None:
    from nmsfree_benchmarks.harness.run import answer

    module = _load(MODULES[name])
    if name == "report":
        module.main(options, find_question)
    elif hasattr(module, "main"):
        module.main(options)
    else:
        answer(module, options)


def _bench(context: typer.Context, files: list[str], **values: Any) -> None:
    if context.invoked_subcommand is None:
        for file in files:
            if not Path(file).exists():
                known = [name for name in MODULES if name != MODELS]
                raise InputError(
                    f"{shown(file)} is neither a file nor a question, expected "
                    f"{one_of(known, file)}"
                )
        _of_models(files=[Path(file) for file in files], **values)


_of_models = command(lambda options: _run(MODELS, options), Options)
_context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
# The name of a question stands where a file may: it is no path yet.
_parameters = [
    p.replace(annotation=Annotated[list[str], p.annotation.__metadata__[0]])
    if p.name == "files"
    else p
    for p in (_context, *inspect.signature(_of_models).parameters.values())
]
_bench.__annotations__ = {p.name: p.annotation for p in _parameters}
_bench.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]


class _Commands(typer.core.TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        """In the usage of a question no file stands before its name."""
        found = super().get_params(ctx)
        return [p for p in found if ctx.command is self or p.name != "files"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Tell files from the name of a question; options may follow files."""
        given = list(args)
        super().parse_args(ctx, args)
        words = list(ctx.params.get("files") or ())
        if words and words[0] in self.commands:
            ctx._protected_args, ctx.args = words[:1], words[1:]  # as TyperGroup does
            ctx.params["files"] = []
        elif words:
            ctx.allow_interspersed_args = True
            ctx.params.clear()
            super().parse_args(ctx, given)
        return ctx.args  # type: ignore[no-any-return]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        # Completion asks for commands that are not there.
        return name, found and _load_command(args[0]), rest


def _load_command(name: str) -> Any:
    alone = typer.Typer(add_completion=False)
    run = command(lambda options: _run(name, options), _load(MODULES[name]).Options)
    alone.command(name, help=_help(name))(run)
    loaded = typer.main.get_command(alone)
    check_numbers(loaded)
    use_plain_help(loaded)
    return loaded


app = typer.Typer(cls=_Commands, invoke_without_command=True)
app.callback(help=_help(MODELS))(_bench)
for _name in MODULES:
    if _name != MODELS:
        app.command(_name, help=_help(_name))(lambda: None)
