"""The names of an environment's features and the columns that each source fills.

Invariant: names are identifiers, all different, and 1 to 64 of them; anything else is refused in one line.
"""

from collections.abc import Sequence

from configs.features import MAX_FEATURES, check_names


def columns_of(named: Sequence[tuple[str, Sequence[str]]]) -> tuple[tuple[str, ...], list[slice]]:
    """The names of all sources (as `env.features` writes them, with the names of each) in their order, and the columns
    of each source. Raises ValueError."""
    names: list[str] = []
    columns = []
    for source, own in named:
        if not own:
            raise ValueError(f"env.features: {source!r} gave no features at the reset, wanted at least one")
        check_names(own, f"env.features: {source!r}")
        for name in own:
            if name in names:
                other = next(theirs for theirs, given in named if name in given)
                wanted = "wanted different names"
                raise ValueError(f"env.features: got the name {name!r} twice, of {other!r} and {source!r}, {wanted}")
        columns.append(slice(len(names), len(names) + len(own)))
        names += own
    if len(names) > MAX_FEATURES:
        each = ", ".join(f"{len(own)} of {source!r}" for source, own in named)
        wanted = f"wanted at most {MAX_FEATURES}: leave sources out, or give those that matter by module:function"
        raise ValueError(f"env.features: got {len(names)} features ({each}), {wanted}")
    return tuple(names), columns
