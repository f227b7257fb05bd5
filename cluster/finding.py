"""What a check of `delphi doctor` finds.

Invariant: a finding that is not `ok` says what to do; importing this imports nothing that may be missing.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    status: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""
    """What to do; empty where all is well."""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check=check, status="ok", found=_line(found))


def warning(check: str, found: str, advice: str) -> Finding:
    """A run will start, and may fare badly."""
    return Finding(check=check, status="warning", found=_line(found), advice=advice)


def failed(check: str, found: str, advice: str) -> Finding:
    """A run will not start, or will not do what it is for."""
    return Finding(check=check, status="failed", found=_line(found), advice=advice)


def _line(text: str) -> str:
    return " ".join(text.split())
