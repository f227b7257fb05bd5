"""`reward_precision`: what share of the intrinsic reward that was paid went to captions that people call progress.

Invariant: a caption without a label counts on neither side, and how much of the reward that leaves is said.
"""

from collections.abc import Mapping
from typing import Any

SEPARATOR = "  "
"""Between the messages of one caption."""
NUM_SHOWN = 20


def precision_figures(paid: Mapping[str, float], labels: Mapping[str, bool]) -> dict[str, Any]:
    """Figures of the reward `paid` by caption, `labels` being those of captions or messages: its precision (None where
    nothing paid is labelled), the share of it that is labelled, and the captions without a label that were paid most."""
    mass: dict[bool | None, float] = {True: 0.0, False: 0.0, None: 0.0}
    unlabelled: dict[str, float] = {}
    for text, reward in paid.items():
        verdict = label_of(text, labels)
        mass[verdict] += reward
        if verdict is None:
            unlabelled[text] = reward
    known, total = mass[True] + mass[False], sum(mass.values())
    most = sorted(unlabelled, key=lambda text: (-unlabelled[text], text))[:NUM_SHOWN]
    return {
        "reward_precision": mass[True] / known if known else None,
        "reward_labelled_fraction": known / total if total else None,
        "reward_captions": len(paid),
        "reward_unlabelled": [{"caption": text, "share": unlabelled[text] / total} for text in most],
    }


def label_of(text: str, labels: Mapping[str, bool]) -> bool | None:
    """A caption's own label, or its messages': progress where one of them is, none where all are labelled and none is."""
    if text in labels:
        return labels[text]
    verdicts = [labels.get(message.strip()) for message in text.split(SEPARATOR)]
    return True if True in verdicts else None if None in verdicts else False
