"""Relational features against their formulas, and what is no list of objects."""

import math
from typing import Any

import numpy as np
import pytest

from actors.features.objects import MISSING_DISTANCE, Relations

AGENT = {"kind": "self", "x": 0.0, "y": 0.0}


def numbers(relations: Relations, objects: list[dict[str, Any]]) -> dict[str, float]:
    return dict(zip(relations.names, relations.read(objects), strict=True))


def slowly(objects: list[dict[str, Any]], kind: str) -> dict[str, float]:
    (agent,) = (thing for thing in objects if thing["kind"] == "self")
    those = [thing for thing in objects if thing["kind"] == kind and "x" in thing]
    found = {f"count_{kind}": len(those), f"touching_{kind}": 0.0}
    best = {"dx": 0.0, "dy": 0.0, "distance": MISSING_DISTANCE}
    for thing in sorted(those, key=lambda thing: (thing["x"], thing["y"])):
        dx, dy = thing["x"] - agent["x"], thing["y"] - agent["y"]
        if math.sqrt(dx**2 + dy**2) < best["distance"]:
            best = {"dx": dx, "dy": dy, "distance": math.sqrt(dx**2 + dy**2)}
        gap_x = abs(dx) - (thing.get("w", 1) + agent.get("w", 1)) / 2
        gap_y = abs(dy) - (thing.get("h", 1) + agent.get("h", 1)) / 2
        if gap_x <= 0 and gap_y <= 0:
            found[f"touching_{kind}"] = 1.0
    return found | {f"nearest_{kind}_{part}": value for part, value in best.items()}


def test_relations_are_their_formulas_for_random_objects() -> None:
    rng = np.random.default_rng(0)
    relations = Relations([AGENT, {"kind": "key"}, {"kind": "ghost"}])
    assert relations.names[:4] == ("self_x", "self_y", "count_ghost", "nearest_ghost_dx")
    assert len(relations.names) == 12
    touching = 0.0
    for _ in range(200):
        objects: list[dict[str, Any]] = [{"kind": "self", "x": float(rng.normal()), "y": float(rng.normal()), "w": 2.0}]
        for _ in range(rng.integers(6)):
            x, y, w, h = rng.normal(scale=3, size=4).tolist()
            extents = {"w": abs(w), "h": abs(h)} if rng.random() < 0.5 else {}
            objects.append({"kind": str(rng.choice(["key", "ghost"])), "x": x, "y": y, **extents})
        told = numbers(relations, objects)
        wanted = slowly(objects, "key") | slowly(objects, "ghost")
        wanted |= {"self_x": objects[0]["x"], "self_y": objects[0]["y"]}
        assert told == pytest.approx(wanted)
        touching += told["touching_key"]
    assert 10 < touching < 190


def test_what_is_not_there_has_documented_numbers() -> None:
    relations = Relations([AGENT, {"kind": "key", "x": 3, "y": 4}])
    assert numbers(relations, [AGENT, {"kind": "key", "x": 3, "y": 4}])["nearest_key_distance"] == 5.0
    gone = numbers(relations, [AGENT])
    assert gone == {
        **{"self_x": 0, "self_y": 0, "count_key": 0, "touching_key": 0},
        **{"nearest_key_dx": 0, "nearest_key_dy": 0, "nearest_key_distance": MISSING_DISTANCE},
    }
    lost = numbers(relations, [{"kind": "key", "x": 3, "y": 4}])
    assert lost.pop("count_key") == 1
    assert all(math.isnan(number) for number in lost.values())
    assert Relations([{"kind": "key"}]).names == ("count_key",)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (7, "gave int 7, wanted a list of objects"),
        ([["key", 1, 2]], r"gave the object \['key', 1, 2\], wanted a mapping with `kind` \(a str\), `x` and `y`"),
        ([{"kind": 3, "x": 1, "y": 2}], "wanted a mapping with `kind`"),
        ([{"kind": "key", "x": 1}], "wanted finite numbers for x, y"),
        ([{"kind": "key", "x": float("inf"), "y": 2}], "wanted finite numbers for x, y"),
        ([{"kind": "key", "x": "left", "y": 2}], "wanted finite numbers for x, y"),
        (
            [{"kind": "ball"}],
            r"the new kind 'ball' \(at the first reset there were key, self\); name it from the first",
        ),
        ([AGENT, AGENT], "got 2 objects of the kind 'self', wanted at most one"),
    ],
)
def test_what_is_no_list_of_these_objects_is_refused(objects: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relations([AGENT, {"kind": "key"}]).read(objects)


def test_a_late_agent_is_a_new_kind() -> None:
    with pytest.raises(ValueError, match=r"the new kind 'self' \(at the first reset there were key\)"):
        Relations([{"kind": "key"}]).read([AGENT])
