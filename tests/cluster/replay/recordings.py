"""Recordings made by hand: a terminal that changes at every step, pictures, and neither."""

import numpy as np

from cluster.replay.recording import Moment, Recording


def recording(kind: str = "screen", steps: int = 12) -> Recording:
    """`kind`: `screen`, `picture` or `text`."""
    return Recording(
        environment="Hand-v0",
        player="policy",
        game=(0, 1, 2),
        metrics={"return": 3.0, "length": float(steps)},
        moments=tuple(_moment(kind, t) for t in range(steps + 1)),
    )


def _moment(kind: str, t: int) -> Moment:
    rows = [f"You are at {t}.".ljust(80), *[" " * 80] * 21, "Agent S:7".ljust(80), "Dlvl:1 HP:9".ljust(79) + "x"]
    rows[5] = " " * t + "@" + "." * (79 - t)
    colours = np.full((24, 80), 7, np.uint8)
    colours[5, t] = 12
    return Moment(
        step=t,
        action="far east" if t else None,
        reward=1.0 if t and t % 4 == 0 else 0.0,
        caption=f"You are at {t}. ½" if t else "",
        intrinsic=0.25 if t == 2 else 0.0,
        probability=0.75 if t else None,
        value=None if t == 12 else 1.5,
        screen=tuple(rows) if kind == "screen" else None,
        colours=colours if kind == "screen" else None,
        picture=np.full((16, 24, 3), 10 * t, np.uint8) if kind == "picture" else None,
        cursor=(5, t) if kind == "screen" else None,
    )
