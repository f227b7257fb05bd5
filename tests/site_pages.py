"""A mkdocs hook: the repository's own documents become pages of the site beside those in `docs/`.

Invariant: no link of the site is dead: one to a document leads to its page, one to any other file becomes its text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "clusters.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents that lie outside `docs/`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page's text with its links, which are relative to the repository, relative to the site."""
    sources = {made: source for source, made in PAGES.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def of_site(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        if not target or "://" in target or target.startswith("mailto:"):
            return found.group()
        path = posixpath.normpath(posixpath.join(folder, target))
        made = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not made or files.get_file_from_path(made) is None:
            return text
        return f"[{text}]({posixpath.relpath(made, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(of_site, markdown)
