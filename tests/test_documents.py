"""The documents: made parts are as the code makes them, links lead somewhere, and the README can be read in one go."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generated_documents import documents

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What GitHub and mkdocs make of a file's headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
        for heading in HEADING.findall(path.read_text())
    }


@pytest.mark.parametrize("path", [*documents()], ids=lambda path: path.name)
def test_what_is_made_from_the_code_is_as_the_code_makes_it(path: Path) -> None:
    assert path.read_text() == documents()[path], "run: python -m tests.generated_documents"


@pytest.mark.parametrize("name", TRACKED)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    broken = []
    for link in LINK.findall((ROOT / name).read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_site_is_built_without_a_dead_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    front_page = (tmp_path / "site" / "index.html").read_text()
    assert 'href="architecture/"' in front_page
    assert 'href="security/"' in front_page
