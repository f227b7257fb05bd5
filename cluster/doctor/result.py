"""What a check of `delphi doctor` returns.

Invariant: a result that is not `ok` says what to do; importing this imports nothing that may be missing."""

from dataclasses import dataclass
from typing import Literal

from configs.errors import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One line of the doctor's report."""

    check: str
    status: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""
    """What to do; empty where all is well."""


def ok(check: str, found: str) -> CheckResult:
    """All is well."""
    return CheckResult(check=check, status="ok", found=one_line(found))


def warning(check: str, found: str, advice: str) -> CheckResult:
    """A run will start, and may fare badly."""
    return CheckResult(check=check, status="warning", found=one_line(found), advice=advice)


def failed(check: str, found: str, advice: str) -> CheckResult:
    """A run will not start, or will not do what it is for."""
    return CheckResult(check=check, status="failed", found=one_line(found), advice=advice)
