"""The results of benchmarks in `benchmarks/results`, and the tables of them in README and docs.

    python benchmarks/tests/results.py            # writes what pages and reports take from results
    python benchmarks/tests/results.py measure    # first measures every question, for half an hour
    python benchmarks/tests/results.py measure roofline jitter    # these alone

A page has `<!-- results: NAME WHAT -->`, the lines that this program writes, and `<!-- end -->`.
NAME is a file. WHAT is `about` (command, machine, verdict); `conclusions` or `notes`, then
`; TEXT | TEXT` for those that have a text; or how a table's title begins, then `: COLUMN, COLUMN`
(`: -COLUMN`: all but that) and `; COLUMN = VALUE | VALUE` for some of it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from os.path import relpath
from pathlib import Path
from typing import Any

from nmsfree_benchmarks.cli import find_question
from nmsfree_benchmarks.harness.machine import hardware
from nmsfree_benchmarks.harness.records import Results, read
from nmsfree_benchmarks.harness.run import markdown, write
from nmsfree_benchmarks.harness.table import Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- results: (\w+) ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
# What measures each, and for how long it is timed: half an hour in all on two cores, exports
# included, most of it for `table`.
QUESTIONS = {
    "table": "--seconds 70",
    "nms": "nms --threads 1 --seconds 30",
    "jitter": "jitter --threads 1 --passes 20",
    "frontier": "frontier --model fcos_e2e_nano --seconds 60",
    "throughput": "throughput --seconds 60",
    "overhead": "overhead --large --seconds 45",
    "roofline": "roofline --seconds 30",
    "training": "training --threads 1",
    "criterion": "criterion --batch 2",
}


def main() -> None:
    """Measure what is asked for, then write; ends with 1 where a question could not be asked."""
    verb, *names = sys.argv[1:] or [""]
    if verb not in ("", "measure") or not set(names) <= set(QUESTIONS):
        sys.exit(f"usage: python {sys.argv[0]} [measure [{' | '.join(QUESTIONS)}] …]")
    failed = list(measure(names or list(QUESTIONS))) if verb else []
    for path, text in written():
        path.write_text(text, encoding="utf-8")
    sys.exit(f"not measured: {', '.join(failed)}" if failed else None)


def measure(names: Sequence[str]) -> Iterator[str]:
    """Replace results by new ones; gives the names of those that failed."""
    for name in names:
        command = ["nmsfree", "bench", *QUESTIONS[name].split()]
        print(f"{name}: {' '.join(command)}", flush=True)
        command[0] = str(Path(sys.executable).with_name("nmsfree"))
        if subprocess.run([*command, "--json", RESULTS / f"{name}.json"], cwd=ROOT).returncode:
            yield name
        elif isinstance(found := load(name), Results):
            write(find_question(found.kind), found, RESULTS, name)


def written() -> Iterator[tuple[Path, str]]:
    """Every page, and every report beside a result, as it should be."""
    for page in PAGES:
        yield page, filled(page)
    for name in QUESTIONS:
        if isinstance(found := load(name), Results):
            text = markdown(find_question(found.kind), found, f"{name}.png")
            yield RESULTS / f"{name}.md", text


@cache
def load(name: str) -> Any:
    """Results; what `training` and `criterion` say, who have no records, as JSON."""
    path = RESULTS / f"{name}.json"
    if name in ("training", "criterion"):
        return json.loads(path.read_text(encoding="utf-8"))
    return read(path)


def filled(page: Path) -> str:
    """A page with what its markers ask for."""

    def part(marker: re.Match[str]) -> str:
        lines = "\n".join(answer(marker[2], marker[3], page)).strip()
        return f"{marker[1]}\n{lines}\n\n{marker[4]}"

    return MARKED.sub(part, page.read_text(encoding="utf-8"))


def answer(name: str, what: str, page: Path) -> Iterator[str]:
    """The lines for a marker."""
    found = load(name)
    what, _, where = (part.strip() for part in what.partition(";"))
    what, _, columns = (part.strip() for part in what.partition(":"))
    if what == "about":
        yield about(name, found, page)
    elif what in ("conclusions", "notes"):
        said = getattr(find_question(found.kind), what)(found)
        texts = [text.strip() for text in where.split("|")]
        yield from (f"- {line}" for line in said if any(text in line for text in texts))
    else:
        table = next(each for each in tables(name, found) if each.title.startswith(what))
        yield from (f"*{table.title}*", "", *chosen(table, columns, where).markdown()[2:])


def tables(name: str, found: Any) -> Sequence[Table]:
    if isinstance(found, Results):
        return find_question(found.kind).tables(found)
    return [training_table(found) if name == "training" else criterion_table(found)]


def chosen(table: Table, columns: str, where: str) -> Table:
    """Some columns of some rows, which may have the marks ! and * at the end of a value."""
    names = re.split(r",\s+", columns) if columns else list(table.header)
    if columns.startswith("-"):
        names = [name for name in table.header if f"-{name}" not in names]
    at = [table.header.index(name) for name in names]
    key, _, values = (part.strip() for part in where.partition("="))
    wanted = [value.strip() for value in values.split("|")]
    rows = tuple(
        tuple(row[i] for i in at)
        for row in table.rows
        if not where or row[table.header.index(key)].rstrip("!*") in wanted
    )
    numeric = [any(row[i][:1].isdigit() for row in rows) for i in range(len(at))]
    return Table(table.title, tuple(names), rows, words=numeric.index(True))


def about(name: str, found: Any, page: Path) -> str:
    """Where figures are from, in a line."""
    if not isinstance(found, Results):
        e = found["environment"]
        return f"*`nmsfree bench {QUESTIONS[name]}`; {hardware(e)}, threads: {e['threads']}.*"
    e, day = found.environment, f"{found.stamp[:4]}-{found.stamp[4:6]}-{found.stamp[6:8]}"
    rows = f"{Path(relpath(RESULTS, page.parent)).as_posix()}/{name}.md"
    return (
        f"*`{found.command}` ({found.seconds / 60:.1f} minutes, {day}); {hardware(e)}, cores: "
        f"{e['cores']}, engine threads: {e['threads']}. Verdict: {found.verdict_text()}. "
        f"[All rows]({rows}).*"
    )


def training_table(found: Any) -> Table:
    loading, training = found["loading"], found["training"]
    row = (
        found["model"],
        f"{loading['images_per_second_per_core']:.0f}",
        f"{training['images_per_second']:.1f} ({training['precision']})",
        f"{100 * found['loader_load']:.0f} %",
    )
    header = ("recipe", "loads", "trains", "one loader process is busy")
    return Table("Images a second: what one core loads, and what training consumes", header, (row,))


def criterion_table(found: Any) -> Table:
    def cell(spread: Any, scale: float = 1, form: str = ".2f") -> str:
        low, middle, high = (scale * spread[key] for key in ("low", "median", "high"))
        return f"{middle:{form}} ({low:{form}}–{high:{form}})"

    rows = tuple(
        (
            cost["preset"],
            f"{cost['batch']} × {cost['height']} × {cost['width']}",
            cell(cost["network_s"], form=".1f"),
            cell(cost["criterion_s"]),
            cell(cost["share"], 100, ".1f"),
            f"{cost['criterion_peak_mb']:.0f}",
        )
        for cost in found["criterion"]
    )
    header = ("network", "images", "forward + backward, s", "criterion, s", "share, %", "peak, MB")
    return Table("A training step, median (range)", header, rows, words=2)


if __name__ == "__main__":
    main()
