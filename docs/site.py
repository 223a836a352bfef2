"""What the site has beyond the pages: files that they link to, all commands, and all messages.

A page that is read on the repository's own pages links to `../weights/fcos_e2e_nano.json`; MkDocs
serves docs alone. Each such file is copied to `files/` of the site, and the link follows.

The pages of commands and of messages are made from the code, so that the search finds each option
and each message by its words.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from nmsfree.cli.help import WHOLE
from nmsfree.cli.main import build_app

CODE = (
    "runtime/nmsfree",
    "training/nmsfree_training",
    "export/nmsfree_export",
    "benchmarks/nmsfree_benchmarks",
)
INNER = ("_LostError", "URLError", "Refused")  # beside Python's own: become words of another error
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")
# Browsers start no worker from a file, so its script runs in a frame of the page. It is inline, as
# it must be there before the theme's own.
SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
WORKER = """<script>
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.documentElement.appendChild(document.createElement("iframe"));
    frame.hidden = true;
    this.inner = frame.contentWindow;
    this.inner.postMessage = data => this.answer(data);
    const script = this.inner.document.createElement("script");
    this.ready = new Promise(done => script.onload = done);
    script.src = new URL(url, document.baseURI);
    this.inner.document.body.appendChild(script);
  }
  answer(data) {
    const event = new MessageEvent("message", {data});
    this.dispatchEvent(event);
    if (this.onmessage) this.onmessage(event);
  }
  postMessage(data) {
    this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", {data})));
  }
  terminate() {}
}
</script>"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs; folders become their README or are left to the build."""
    root = Path(config.docs_dir).parent
    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    linked = {name for page in pages for name in OUTSIDE.findall(page.content_string)}
    for name in sorted(linked):
        if (root / name).is_file():
            files.append(File.generated(config, f"files/{name}", abs_src_path=str(root / name)))
    files.append(File.generated(config, "messages.md", content=messages_page(root)))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the page's links at the copies; commands have no prompt, and are not their output."""
    return OUTSIDE.sub(r"files/\1", markdown).replace("```console", "```bash")


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """The search of a page that is opened as a file; the theme would fetch that from elsewhere."""
    return output.replace(SHIM, WORKER)


def on_post_template(output_content: str, *, template_name: str, config: MkDocsConfig) -> str:
    """The same for the page of an address that is not there."""
    return output_content.replace(SHIM, WORKER)


def commands_page() -> str:
    """A page with the whole help of every command."""
    lines = ["# All commands", "", "What `nmsfree COMMAND --help-all` prints.", ""]
    for name, text in commands(typer.main.get_command(build_app()), "nmsfree"):
        lines += [f"## {name}", "", "```text", text, "```", ""]
    return "\n".join(lines)


def commands(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """The names of a command and of those below it, each with its help."""
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    context.meta[WHOLE], context.terminal_width = True, 80
    yield name, re.sub(r"\x1b\[\d+m", "", context.get_help())
    for child in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from commands(
            command.resolve_command(context, [child])[1], f"{name} {child}", context
        )


def messages_page(root: Path) -> str:
    """A page with every message under the class of its error."""
    found: dict[str, set[str]] = {}
    for kind, text in messages(root):
        found.setdefault(kind, set()).add(text)
    lines = ["# All messages", "", "Made from the code; `…` stands for what differs.", ""]
    for kind in sorted(found):
        lines += [f"## {kind}", "", *(f"- `{text}`" for text in sorted(found[kind])), ""]
    return "\n".join(lines)


def messages(root: Path) -> Iterator[tuple[str, str]]:
    """Class and text of every error, and "Warning" and text of every warning."""
    for file in sorted(file for folder in CODE for file in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            kind = {"warning": "Warning", "warn": "Warning", "__init__": file.stem}.get(name, name)
            text = re.sub(r"%[sdg]", "…", fixed_words(node.args[0])).replace("`", "'")
            kind = "MissingExtraError" if kind == "errors" else kind
            if kind.endswith(("Error", "Refused", "Warning")) and re.search(r"\w", text):
                ours = kind == "Warning" or not (hasattr(builtins, kind) or kind in INNER)
                yield (kind if ours else "Part of another message"), text.removeprefix("…: ")


def fixed_words(node: ast.expr) -> str:
    """The text of a string, with … for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(fixed_words, node.values))
    if isinstance(node, ast.BinOp):
        return fixed_words(node.left) + fixed_words(node.right)
    return "…"
