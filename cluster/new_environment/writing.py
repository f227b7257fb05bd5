"""Writes the files of `delphi new-environment` from templates and from what a look at the environment found.

Invariant: every file that is written works as it is; what only the user can know is marked in it.
"""

import itertools
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template

from actors.environments.errors import shown
from cluster.new_environment.looking import Image, Look, SeenCaption
from cluster.new_environment.things import Thing

TEMPLATES = resources.files("cluster").joinpath("new_environment", "templates")
BUILT_IN = {"NetHack": "nethack_progress", "MiniHack": "minihack_progress", "MiniGrid": "minigrid_progress"}
"""Rubrics for the captions of these families' own captioners."""
MOST_SAID = 4
"""Numbers in one caption: each of them triples the number of different captions."""
MOST_LISTED = 40
MOST_SHOWN = 3
"""Captions that the user is told at once."""
EXTRINSIC_CLIP = 10.0
"""Default of `reward.extrinsic_clip`: larger rewards are scaled down to it."""


def environment_file(name: str) -> tuple[str, str]:
    """Id and source of an environment to start from, of which `name`/environment.py is made."""
    class_name = name.title().replace("_", "")
    short_id = f"{class_name}-v0"
    return f"{name}.environment:{short_id}", _filled("environment.py", class_name=class_name, short_id=short_id)


def test_file() -> str:
    """Source of the tests."""
    return _filled("test.py")


def captioner_file(look: Look) -> str | None:
    """Source of the captioner; None where an observation entry's own text is the caption."""
    if look.own_text:
        return None
    said = _said(look)
    imports = ["from collections.abc import Mapping", "from typing import Any", ""]
    if any("np." in thing.code for thing in said):
        imports += ["import numpy as np", ""]
    if look.minigrid:
        imports += [f"from actors.minigrid_captions import {look.minigrid}", ""]
    needs_level = not look.minigrid and any(thing.thirds for thing in said)
    measured = f", with its range or its values in {look.steps} random steps"
    return _filled(
        "captioner.py",
        env_id=look.env_id,
        imports="\n".join(imports),
        measured=measured,
        inventory="\n".join(f"#   {line}" for line in _inventory(look)),
        body="\n".join(f"    {line}" for line in _body(look, said)),
        helper=_filled("level.py") if needs_level else "",
    )


def config_file(name: str, look: Look) -> str:
    """The configuration."""
    if look.own_text:
        captioner, note = _yaml(look.own_text), "an entry of the observation; the policy reads it too"
    else:
        captioner, note = f"{name}.captioner:caption", f"the function `caption` of {name}/captioner.py"
    lowest, highest = look.rewards
    largest = max(abs(lowest), abs(highest))
    rewards = f"  # those of {look.steps} random steps: {lowest:.3g} to {highest:.3g}" if look.steps else ""
    scale = f"  extrinsic_scale: {EXTRINSIC_CLIP / largest:.3g}\n" if largest > EXTRINSIC_CLIP else ""
    return _filled(
        "config.yaml",
        name=name,
        env_id=look.env_id,
        env_id_yaml=_yaml(look.env_id),
        captioner=captioner,
        captioner_note=note,
        images=_image_settings(look.images, look.family),
        rewards=rewards,
        scale=scale,
    )


def rubric_file(name: str, look: Look, seen: Sequence[SeenCaption]) -> str:
    """The rubric: a built-in one for captions that it was made for, else examples of the captions seen."""
    num_steps = sum(caption.count for caption in seen)
    if look.family in BUILT_IN and (look.own_text or look.minigrid):
        listed = [f"#   {caption.count:>5} x  {caption.text}" for caption in seen[:MOST_LISTED]] or ["#   none"]
        texts = {"base": BUILT_IN[look.family], "num_captions": str(len(seen)), "captions": "\n".join(listed)}
        return _filled("extended_rubric.yaml", name=name, env_id=look.env_id, num_steps=f"{num_steps:,}", **texts)
    positive, negative = sorted_by_progress(seen)
    shown_ones = itertools.zip_longest(reversed(positive[:6]), reversed(negative[0:16:2]))
    examples = [_example(caption, caption in positive) for pair in shown_ones for caption in pair if caption]
    calibration = [f"    - {json.dumps(caption.text, ensure_ascii=False)}" for caption in negative[1:13:2]]
    threshold = "threshold: 0.5  # with more captions: auto, and calibration items"
    if calibration:
        note = "  # all of these deserve the negative answer, and are no examples: theta lies above them"
        threshold = "\n".join(["threshold: auto", "calibration:", f"  items:{note}", *calibration])
    return _filled(
        "rubric.yaml",
        name=name,
        env_id=look.env_id,
        num_steps=f"{num_steps:,}",
        examples="".join(f"\n{line}" for line in examples) or " []",
        threshold=threshold,
    )


def sorted_by_progress(seen: Sequence[SeenCaption]) -> tuple[list[SeenCaption], list[SeenCaption]]:
    """A first guess which captions are progress, and which are not, each most frequent first: those of steps that the
    environment rewarded more than the mean, and the rarest third of all."""
    steps = sum(caption.count for caption in seen)
    mean = sum(caption.count * caption.reward for caption in seen) / max(steps, 1)
    rare = seen[len(seen) - len(seen) // 3 :]
    positive = [caption for caption in seen if caption.reward > mean + 1e-6 or caption in rare]
    return positive, [caption for caption in seen if caption not in positive]


def readme_file(name: str, look: Look, seen: Sequence[SeenCaption], files: Sequence[str]) -> str:
    """What was found, and the next commands."""
    rows = {
        "environment.py": "an environment of a corridor with a key and a door: write your own in its place",
        "captioner.py": "`caption(obs, info)`: say better what happens",
        "rubric.yaml": "what the judge is asked: goal, instructions, and correct examples",
        "config.yaml": "the settings of runs: lengths, network, rewards",
        f"test_{name}.py": "tests of these files",
    }
    lines = found_lines(look, seen)
    found = "\n".join(f"  - {line.strip()}" if line.startswith(" ") else f"- {line}" for line in lines)
    table = "\n".join(f"| `{file}` | {rows[file]} |" for file in files if file in rows)
    return _filled("README.md", name=name, env_id=look.env_id, found=found, files=table, word=_telling_word(seen))


def found_lines(look: Look, seen: Sequence[SeenCaption]) -> list[str]:
    """What was found out about the environment, in sentences."""
    what = f"{look.env_id} is {look.family}." if look.family else f"{look.env_id}:"
    actions = f"{look.num_actions} actions" + (f" ({', '.join(look.actions)})" if look.actions else "")
    limit = f"at most {look.step_limit:,} steps" if look.step_limit else "no step limit is known"
    lines = [f"{what} {actions}; {limit}; it observes {look.observation}"]
    if look.own_text:
        lines.append(
            f"Captions are its own text, the observation `{look.own_text}`, so there is no captioner to write."
        )
    elif look.minigrid:
        lines.append(f"Captions are those of actors.minigrid_captions:{look.minigrid}.")
    elif any(thing.is_text for thing in _said(look)):
        told = ", ".join(thing.code for thing in _said(look))
        lines.append(f"Captions are the text that it gives in {told}.")
    elif _said(look):
        lines.append(f"Captions name {len(_said(look))} numbers as low, middle or high: write better ones.")
    else:
        lines.append("Nothing in it changed in random play, so there are no captions yet: write them.")
    top = [f"  {caption.count:>5,} x  {shown(caption.text, 90)}" for caption in seen[:MOST_SHOWN]]
    told = (
        f"Random play showed {len(seen)} different captions, most often:" if seen else "Random play showed no caption."
    )
    return [*lines, told, *top]


def _telling_word(seen: Sequence[SeenCaption]) -> str:
    """A word that about a fifth of the steps with a caption showed; `.`, which is in all, if there is no word."""
    counts: dict[str, int] = {}
    for caption in seen:
        for word in set(re.findall(r"[A-Za-z]{3,}", caption.text)):
            counts[word] = counts.get(word, 0) + caption.count
    fifth = sum(caption.count for caption in seen) / 5
    return min(counts, key=lambda word: (abs(counts[word] - fifth), word), default=".")


def _said(look: Look) -> list[Thing]:
    """What the captioner says: texts that change if there are any, else the first numbers that change."""
    # An expression with a double quote or a backslash, from a strange key, cannot stand within an f-string.
    varying = [thing for thing in look.things if thing.varies and not set(thing.code) & set('"\\')]
    texts = [thing for thing in varying if thing.is_text]
    return texts or varying[:MOST_SAID]


def _body(look: Look, said: Sequence[Thing]) -> list[str]:
    if look.minigrid:
        return [f"return {look.minigrid}(obs, info)"]
    if said and said[0].is_text:
        joined = [f"str({thing.code})," for thing in said]
        only = f"return str({said[0].code})"
        return (
            [only]
            if len(said) == 1
            else ["told = (", *(f"    {line}" for line in joined), ")", 'return "  ".join(told)']
        )
    if not said:
        return ['return ""  # nothing changed in random play']
    clauses = [_clause(said[0], upper=True), *map(_clause, said[1:])]
    return ["told = (", *(f"    {clause}," for clause in clauses), ")", "return f\"{', '.join(told)}.\""]


def _clause(thing: Thing, *, upper: bool = False) -> str:
    """The f-string that says a number; `upper`: as a sentence's first word."""
    name = re.sub(r'["\\{}]', " ", thing.name)
    name = name[:1].upper() + name[1:] if upper else name
    value = f"float({thing.code}):g"
    if thing.thirds:
        value = f"level({thing.code}, {thing.thirds[0]}, {thing.thirds[1]})"
    return f'f"{name} is {{{value}}}"'


def _inventory(look: Look) -> list[str]:
    lines = []
    for thing in look.things[:MOST_LISTED]:
        if thing.is_text:
            values = f"{len(thing.values)} different texts, such as {shown(thing.values[-1], 60)}"
        elif thing.thirds:
            values = f"{thing.values[0]:.4g} to {thing.values[-1]:.4g}"
        else:
            values = ", ".join(f"{value:.4g}" for value in thing.values)
        lines.append(f"{thing.code:<24} {values}")
    if len(look.things) > MOST_LISTED:
        lines.append(f"and {len(look.things) - MOST_LISTED} more")
    actions = f"   {', '.join(look.actions)}" if look.actions else ""
    return [*lines, *([f"actions 0 to {look.num_actions - 1}{actions}"[:112]])]


def _image_settings(images: Sequence[Image], family: str) -> str:
    if not images:
        return ""
    from actors.networks.encoders import is_channels_first

    highest = max(image.highest for image in images)
    scale = 10.0 if family == "MiniGrid" and highest <= 10 else highest if 0 < highest <= 32 else 255.0
    kind = "pictures" if scale == 255.0 else "codes, not pixels"
    layouts = {"channels_first" if is_channels_first(image.shape, "auto") else "channels_last" for image in images}
    layout = layouts.pop() if len(layouts) == 1 else "auto"
    shapes = ", ".join(f"{image.name} {image.shape}" for image in images)
    return f"  image_scale: {scale}  # {kind}: the highest value\n  image_layout: {layout}  # {shapes}\n"


def _example(caption: SeenCaption, is_positive: bool) -> str:
    flag = f"positive: {str(is_positive).lower()},".ljust(16)
    return f"  - {{{flag} item: {json.dumps(caption.text, ensure_ascii=False)}}}  # {caption.count:,} x"


def _yaml(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+(:[\w./-]+)*", text) else json.dumps(text, ensure_ascii=False)


def _filled(template: str, **texts: str) -> str:
    """A template with its $names replaced."""
    text = TEMPLATES.joinpath(f"{template}.txt").read_text("utf-8")
    return Template(text).substitute(texts) if texts else text
