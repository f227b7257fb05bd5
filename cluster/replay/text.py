"""A recording as text, one line per moment, for pipes.

Invariant: columns are separated by two spaces or more, and the caption comes last, since it is the longest.
"""

from collections.abc import Iterator, Sequence

from cluster.replay.recording import Recording

HEADER = f"{'step':>7}  {'action':<14}  {'reward':>9}  {'intrinsic':>9}  {'judge':>5}  {'value':>9}  caption"


def text_lines(recording: Recording, moments: Sequence[int]) -> Iterator[str]:
    """A header, and a line for each of `moments` (numbers); `-` stands for what there is not."""
    yield HEADER
    for moment in (recording.moments[t] for t in moments):
        judge = "-" if moment.probability is None else f"{moment.probability:.2f}"
        value = "-" if moment.value is None else f"{moment.value:.4g}"
        amounts = f"{moment.reward:>9.4g}  {moment.intrinsic:>9.4g}  {judge:>5}  {value:>9}"
        yield f"{moment.step:>7}  {moment.action or '-':<14}  {amounts}  {moment.caption}".rstrip()
