"""The result of a check of `delphi doctor`.

Invariant: a result that is not `ok` has advice; importing this imports nothing that may be missing.
"""

from dataclasses import dataclass
from typing import Literal

from configs.errors import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One line of the doctor's report."""

    check: str = ""
    """Its name in the report; empty: the name of the check in the doctor's table."""
    status: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""
    """What to do; empty where the status is ok."""


def ok(found: str) -> CheckResult:
    """A result without a problem."""
    return CheckResult(status="ok", found=one_line(found))


def warning(found: str, advice: str) -> CheckResult:
    """A run will start, but may not work well."""
    return CheckResult(status="warning", found=one_line(found), advice=advice)


def failed(found: str, advice: str, check: str = "") -> CheckResult:
    """A run will not start, or cannot reach its purpose."""
    return CheckResult(check=check, status="failed", found=one_line(found), advice=advice)
