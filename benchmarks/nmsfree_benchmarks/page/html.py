"""A report as one HTML page that loads nothing: style, pictures and all in one file."""

import re
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nmsfree.text import shown
from nmsfree_benchmarks.page.page import Page

UNIT = re.compile(r"(?<=\d) (%|×|ms|MB|MiB|GB/s|GFLOP/s|TFLOP/s|FPS)(?!\w)")


def to_html(page: Page) -> str:
    """Render the page; every text of a result file is escaped."""
    folder = files("nmsfree_benchmarks.page").joinpath("templates")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    template = environment.from_string(folder.joinpath("report.html.j2").read_text("utf-8"))
    # The style sheet is ours and holds no text of a result file.
    style = folder.joinpath("report.css").read_text("utf-8")
    return template.render(page=page, style=style) + "\n"


def _unbroken(value: object) -> object:
    """Keep a number and its unit on one line; what is HTML already, or a picture, stays."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
        return value
    return UNIT.sub("\u00a0\\1", shown(value, 10_000))
