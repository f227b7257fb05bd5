"""The prompt of the generating judge that `annotation.py` measures against: knowledge, analysis and a verdict in tags,
like ONI's.

The wording is this project's own; of ONI's prompt (arXiv 2410.23022, appendix) only the form is taken: the model first
writes down what it knows of the game, then analyses the message in a sentence, then gives one of two labels, with four
answered examples.
"""

import re

VERDICTS = ("HELPFUL", "IDLE")
END = "</verdict>"
"""A generation stops here."""

INSTRUCTIONS = """\
You watch somebody play the game NetHack and read its messages. For each message write {wanted}Analysis: in one \
sentence,
what the message says about how the player gets on. Verdict: HELPFUL if the player just did something that helps to \
win the game, or
IDLE if it does not matter or harms."""

EXAMPLES = (
    (
        "You kill the giant bat!",
        "NetHack is won by bringing the Amulet of Yendor up from the depths of the dungeon. Killing monsters"
        " gives experience, and a "
        "character of a higher level survives deeper down.",
        "The player has defeated a monster, which gives experience and ends the danger.",
        "HELPFUL",
    ),
    (
        "There is a closed coffin in your way.",
        "The dungeon has to be explored to find the stairs that lead down. The character moves on a grid where"
        " walls and large objects "
        "block a step.",
        "The player could not move there, so nothing was gained by this turn.",
        "IDLE",
    ),
    (
        "$ - 31 gold pieces.",
        "Gold lies about in the rooms of the dungeon. It counts for the score, and shopkeepers and priests take"
        " it for goods and "
        "protection.",
        "The player has picked up gold, which will be useful later.",
        "HELPFUL",
    ),
    (
        "You hear the footsteps of a guard on patrol.",
        "The game tells of noises from other parts of the level. They hint at what is there, such as a vault with"
        " gold, but change nothing.",
        "The player has only heard something far away and has done nothing towards the goal.",
        "IDLE",
    ),
)


def prompt(with_knowledge: bool) -> tuple[str, str]:
    """What stands before and after a caption; without knowledge, the analysis is what the model begins with."""

    def answer(knowledge: str, analysis: str, verdict: str) -> str:
        first = f"<knowledge>{knowledge}</knowledge>\n" if with_knowledge else ""
        return f"{first}<analysis>{analysis}</analysis>\n<verdict>{verdict}{END}"

    shown = "".join(f"Message: {message}\n{answer(*said)}\n\n" for message, *said in EXAMPLES)
    wanted = (
        "three things. Knowledge: what you know of\nNetHack and its goal that bears on the message. "
        if with_knowledge
        else "two things. "
    )
    return (
        f"{INSTRUCTIONS.format(wanted=wanted)}\n\n{shown}Message:",
        f"\n<{'knowledge' if with_knowledge else 'analysis'}>",
    )


def parse(answer: str) -> bool | None:
    """Whether the verdict of a generated answer is the helpful one; None where it gives none of the two."""
    found = re.search(r"<verdict>\s*(\w+)\s*</verdict>", answer)
    return found[1] == VERDICTS[0] if found and found[1] in VERDICTS else None
