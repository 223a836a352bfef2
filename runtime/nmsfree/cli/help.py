"""What `--help` prints: what a command does, examples, then its options, in 80 columns.

Of a command whose options are in groups, `--help` shows the others, and names the groups; all is
shown by `--help-all`.
"""

import inspect
import re
import textwrap
from functools import partial
from typing import Annotated, Any

import typer

COLUMN = 26  # widest left column
CHOICES = 40  # widest list of choices beside an option
SHELL = ("install_completion", "show_completion")  # typer's options, found in docs
USUAL = ("Arguments", "Options", "Commands")  # what is no group
WHOLE = "nmsfree.whole_help"  # set in a context where all is asked for
EXAMPLE = re.compile(r"(?:(?P<about>[^:]*): )?(?P<line>(?:nmsfree|torchrun) .*)")


def _show_all(context: typer.Context, wanted: bool) -> None:
    """Print the help with every option, and end."""
    if wanted:
        context.meta[WHOLE] = True
        typer.echo(context.get_help())
        raise typer.Exit


HELP_ALL = typer.Option(
    "--help-all",
    callback=_show_all,
    is_eager=True,
    expose_value=False,
    help="Show every option and exit.",
)


def use_plain_help(command: Any) -> None:
    """Let a command and those below it print their help, and all of it, as this file does."""
    for child in getattr(command, "commands", {}).values():
        use_plain_help(child)
    app = typer.Typer(add_completion=False)
    app.command()(_with_all)
    (whole,) = typer.main.get_command(app).params
    whole.hidden = not any(p.rich_help_panel for p in command.params)  # type: ignore[attr-defined]
    command.params.append(whole)
    command.format_help = partial(format_help, command)
    command.format_usage = partial(format_usage, command)


def _with_all(help_all: Annotated[bool, HELP_ALL] = False) -> None: ...


def format_usage(command: Any, context: Any, formatter: Any) -> None:
    """Write how a command is called; wrong usage shows this alone."""
    usage = ["COMMAND …"] if hasattr(command, "commands") else ["[OPTIONS]"]
    arguments = [x for x in command.get_params(context) if x.param_type_name == "argument"]
    usage += [_row(argument)[0] for argument in arguments]
    formatter.write_usage(context.command_path, " ".join(usage))


def format_help(command: Any, context: Any, formatter: Any) -> None:
    """Write the help of a command, whose docstring has examples as paragraphs of their own."""
    text = inspect.cleandoc(command.help or "")
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part]
    examples = [(part, EXAMPLE.fullmatch(part)) for part in paragraphs[1:]]
    formatter.write_text(paragraphs[0] if paragraphs else "")
    formatter.write_paragraph()
    parameters = command.get_params(context)
    format_usage(command, context, formatter)
    if any(found for _, found in examples):
        with formatter.section(_bold("Examples")):
            pairs = [(found["line"], found["about"]) for _, found in examples if found]
            _write_examples(pairs, formatter)
    short = WHOLE not in context.meta and any(p.rich_help_panel for p in parameters)
    for part, found in examples:
        if not found and part != "Examples:":
            formatter.write_paragraph()
            formatter.write_text(part)
    rows: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        if not getattr(parameter, "hidden", False) and parameter.name not in SHELL:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            rows.setdefault(parameter.rich_help_panel or usual, []).append(_row(parameter, short))
    for name, child in getattr(command, "commands", {}).items():
        about = inspect.cleandoc(child.help or "").split("\n\n")[0]
        rows.setdefault("Commands", []).append((name, " ".join(about.split())))
    for group in sorted(rows, key=lambda name: name == "Options" and "Commands" in rows):
        if group in USUAL or not short:
            with formatter.section(_bold(group)):
                formatter.write_dl(rows.pop(group), col_max=COLUMN)
    if rows:
        with formatter.section(_bold("More, described by --help-all")):
            for group, own in rows.items():
                names = ", ".join(re.split("[, ]", left)[0] for left, _ in own)
                text = f"  {group.partition(' (')[0]}: {names}"
                formatter.write("\n    ".join(_wrapped(text, formatter.width - 4)) + "\n")
    if hasattr(command, "commands"):
        formatter.write_paragraph()
        formatter.write_text(f"Options of a command: {context.command_path} COMMAND --help")


def _write_examples(pairs: list[tuple[str, str | None]], formatter: Any) -> None:
    """Write command lines with what each is for: beside it where all find room, or above it."""
    width = max(len(line) for line, _ in pairs)
    notes = ["" if not a or a == "Example" else f"# {a[0].lower()}{a[1:]}" for _, a in pairs]
    beside = width + max(map(len, notes)) + 4 <= formatter.width
    for (line, _), note in zip(pairs, notes, strict=True):
        if beside:
            formatter.write(f"  {line:{width}}  {note}".rstrip() + "\n")
            continue
        if note:
            formatter.write(f"  {note}\n")
        formatter.write("  " + " \\\n      ".join(_wrapped(line, formatter.width - 8)) + "\n")


def _wrapped(text: str, width: int) -> list[str]:
    """Lines that end between words; an option stays whole."""
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def _row(parameter: Any, short: bool = False) -> tuple[str, str]:
    """Spelling and value at the left, help (short: its first sentence) and default at the right."""
    argument = parameter.param_type_name == "argument"
    value, about = parameter.metavar or "", parameter.help or ""
    if short:
        about = re.split(r"(?<=\.) ", about)[0]
    if len(value) > CHOICES:
        value, about = "NAME", f"{about} One of {value.replace('|', ', ')}."
    if argument:
        left = (value or parameter.name.upper()) + " …" * (parameter.nargs == -1)
    else:
        left = ", ".join(sorted(parameter.opts, key=len) + parameter.secondary_opts)
        left += "" if getattr(parameter, "is_flag", False) else f" {value}"
    default = parameter.default
    if isinstance(default, tuple | list):
        default = " ".join(map(str, default))
    notes = []
    if parameter.required and not argument:
        notes.append("required")
    elif not callable(default) and default not in (None, "", False, True):
        notes.append(f"default: {default}")
    elif default is True and parameter.secondary_opts:
        notes.append(f"default: {parameter.opts[0]}")
    return left, about + "".join(f"  [{note}]" for note in notes)


def _bold(text: str) -> str:
    return typer.style(text, bold=True)
