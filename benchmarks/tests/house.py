"""How the code may be laid out, checked; and its picture in CONTRIBUTING.md, made of the imports.

    python benchmarks/tests/house.py            # what lint runs: prints what is against the rules
    python benchmarks/tests/house.py --write    # draws the picture again

More lines than a budget allows? Merge first; then raise the one number in the same commit, and say
why in its message.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "nmsfree_benchmarks": "benchmarks",
    "nmsfree_export": "export",
    "nmsfree_training": "training",
    "nmsfree": "runtime",
}
LINES = {"runtime": 18321, "training": 10627, "export": 9219, "benchmarks": 10053}  # of code
TEST_LINES = {"runtime": 15512, "training": 9135, "export": 6134, "benchmarks": 8231}
FILES = 289  # of code, all distributions
SHORTEST, LONGEST = 40, 450  # lines of a file
FULL = 16  # files in a folder
BEGIN, END = "<!-- picture: begin -->\n", "<!-- picture: end -->"


def main() -> None:
    """Print what is wrong and end with 1, or write the picture."""
    page = ROOT / "CONTRIBUTING.md"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    drawn = head + BEGIN + draw() + END + rest.partition(END)[2]
    if sys.argv[1:] == ["--write"]:
        page.write_text(drawn, encoding="utf-8")
        return
    problems = list(check())
    if drawn != text:
        problems.append(
            "CONTRIBUTING.md: draw its picture again: benchmarks/tests/house.py --write"
        )
    places = re.findall(rf"`((?:{'|'.join(PACKAGES.values())})/\S+)`", text)
    problems += [f"CONTRIBUTING.md: no {place}" for place in places if not (ROOT / place).exists()]
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


def check() -> Iterator[str]:
    """What is against the rules, a line each."""
    files = 0
    for package, distribution in PACKAGES.items():
        modules = sorted((ROOT / distribution / package).rglob("*.py"))
        files += len(modules)
        yield from check_lines(distribution, modules, LINES[distribution])
        tests = sorted((ROOT / distribution / "tests").rglob("*.py"))
        yield from check_lines(f"{distribution}/tests", tests, TEST_LINES[distribution])
        rooms: dict[Path, list[str]] = {}
        for module in modules:
            if not module.stem.startswith("__"):
                rooms.setdefault(module.parent, []).append(module.stem)
                yield from check_file(module)
        for room, names in rooms.items():
            yield from check_room(room.relative_to(ROOT), names)
    if files > FILES:
        yield f"{files} files of code, at most {FILES}"


def check_lines(name: str, files: list[Path], budget: int) -> Iterator[str]:
    lines = sum(map(count_lines, files))
    if lines > budget:
        yield f"{name}: {lines} lines, at most {budget}"


def check_file(module: Path) -> Iterator[str]:
    lines, name = count_lines(module), module.relative_to(ROOT)
    if not SHORTEST <= lines <= LONGEST:
        yield f"{name}: {lines} lines, expected {SHORTEST} to {LONGEST}: merge or part it"
    if module.stem.endswith("_cli"):
        yield f"{name}: the command line lies in cli/"


def check_room(room: Path, names: list[str]) -> Iterator[str]:
    if len(names) > FULL:
        yield f"{room}: {len(names)} files, at most {FULL}"
    for prefix, count in Counter(name.partition("_")[0] for name in names).items():
        if count > 2:
            yield f"{room}: {count} files begin with {prefix}: they are a room of their own"


def count_lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def draw() -> str:
    """The rooms and their imports as a Mermaid chart; what follows from others is left out."""
    graph = grimp.build_graph(*PACKAGES)
    lines = ["```mermaid", "flowchart TD"]
    for package, distribution in PACKAGES.items():
        lines.append(f"  subgraph {distribution}")
        below: dict[str, set[str]] = {
            room: {
                other
                for other in graph.find_children(package)
                if other != room
                and graph.direct_import_exists(importer=room, imported=other, as_packages=True)
            }
            for room in graph.find_children(package)
        }
        for room in sorted(below):
            lines.append(f"    {room}[{room.rpartition('.')[2]}]")
            implied = {deep for other in below[room] for deep in reach(other, below)}
            lines += [f"    {room} --> {other}" for other in sorted(below[room] - implied)]
        lines.append("  end")
    lines += ["  benchmarks --> export --> training --> runtime", "```", ""]
    return "\n".join(lines)


def reach(room: str, below: dict[str, set[str]]) -> set[str]:
    """Every room that one imports, directly or through others."""
    found: set[str] = set()
    left = [room]
    while left:
        more = below[left.pop()] - found
        found |= more
        left += more
    return found


if __name__ == "__main__":
    main()
