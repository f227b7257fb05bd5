"""In which order the programs of a round stand: by their score, by a person, or by a language model.

Invariant: programs whose runs died come last, whoever orders the others.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

from cluster.design.candidates import Candidate
from cluster.design.kind import BY_MODEL, BY_PERSON
from cluster.design.material import figures_text
from cluster.design.writing import WritingRoom


def ordered(select: str, number: int, contestants: Sequence[Candidate], room: WritingRoom) -> list[Candidate]:
    """The contestants of a round, the best first. Raises as `WritingRoom.ask`, and EOFError where nobody is asked."""
    by_score = sorted(contestants, key=lambda each: each.score, reverse=True)  # stable: of equal ones the earlier first
    alive = [each for each in by_score if not each.problem]
    if select == BY_PERSON and len(alive) > 1:
        alive = _by_person(alive)
    elif select == BY_MODEL:
        alive = _by_model(number, alive, room)
    return [*alive, *(each for each in by_score if each.problem)]


def _by_model(number: int, alive: Sequence[Candidate], room: WritingRoom) -> list[Candidate]:
    """By how many of the others each is preferred to; each pair is asked about in both orders."""
    wins: Counter[str] = Counter()
    for one, other in combinations(alive, 2):
        for first, second in ((one, other), (other, one)):
            is_better = room.is_first_better(number, first, second)
            if is_better is not None:
                wins[(first if is_better else second).name] += 1
    return sorted(alive, key=lambda each: -wins[each.name])


def _by_person(alive: Sequence[Candidate], say: Callable[[str], None] = print) -> list[Candidate]:
    for each in alive:
        say(f"\nprogram {each.name}\n{each.program.text.rstrip()}")
        say(figures_text(each.outcomes[0]))
        say(f"to see it: delphi replay {each.outcomes[0].run}")
    names = {each.name: each for each in alive}
    while True:
        sys.stdout.write(f"\nthe best and the worst of {', '.join(names)}, for example `{' '.join([*names][:2])}`: ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        match line.split():
            case [best, worst] if best in names and worst in names and best != worst:
                between = [each for each in alive if each.name not in (best, worst)]
                return [names[best], *between, names[worst]]
        say(f"got {line.strip()!r}, wanted two different names of {', '.join(names)}")
