"""`Program`: a reward program that was checked, with its identity and what is evaluated.

Invariant: `steps` are in the order of evaluation, each reads only earlier ones, and there are no more than the
language's limit; compiling `text` again gives the same program.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

Detail = float | int | tuple[str, str] | None
"""A number; an action's number; a moment and a feature, as ("after", "distance"); None for operations."""


class Step(NamedTuple):
    """One operation over all steps of a batch."""

    operation: str
    """`number`, `feature`, `action` (whether it is that one), or a key of `evaluation.OPERATIONS`."""
    operands: tuple[int, ...] = ()
    """Places of earlier steps."""
    detail: Detail = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """compiler -> learner, gates, campaigns, reports."""

    form: str
    """`reward` (reads before, after, start, action) or `progress` (reads state)."""
    text: str
    """Canonical: the function without comments, annotations and prefixes, evenly formatted."""
    program_id: str
    """16 hexadecimal digits: xxh3 of the text."""
    features: tuple[str, ...]
    """Names of the features on which its components depend, sorted."""
    components: tuple[str, ...]
    """Names in the order of writing; that of a single number is the form."""
    num_nodes: int
    """Operations, constants and features that are evaluated."""
    steps: tuple[Step, ...] = field(repr=False)
    outputs: tuple[int, ...] = field(repr=False)
    """[C]: the place in `steps` of each component."""
