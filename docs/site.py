"""Lets pages link to files of the repository outside docs: they become files of the site.

A page that is read on the repository's own pages links to `../weights/fcos_e2e_nano.json`; MkDocs
serves docs alone. Each such file is copied to `files/` of the site, and the link follows.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs; folders become their README or are left to the build."""
    root = Path(config.docs_dir).parent
    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    linked = {name for page in pages for name in OUTSIDE.findall(page.content_string)}
    for name in sorted(linked):
        if (root / name).is_file():
            files.append(File.generated(config, f"files/{name}", abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the page's links at the copies."""
    return OUTSIDE.sub(r"files/\1", markdown)
