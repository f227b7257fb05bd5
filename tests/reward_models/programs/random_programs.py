"""Programs written at random, in all the ways the language allows, and states to run them on."""

import random

import numpy as np

FEATURES = ("x", "y", "distance_to_goal", "doors_open", "turn")
ACTIONS = ("north", "south", "pick up", "kick")
GIVEN = {"reward": ("before", "after", "start", "action"), "progress": ("state",)}
PREFIXES = ("", "", "np.", "math.", "torch.", "numpy.")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
NAMES = ("a", "b", "gain", "near", "done", "größe", "north")


class Writer:
    """Writes texts; names are read only where every path has assigned them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.form = "reward"

    def program(self) -> str:
        """One of at most 1 KB."""
        while len((text := self.any_program()).encode()) > 1000:
            pass
        return text

    def any_program(self) -> str:
        self.form = self.random.choice(("reward", "reward", "progress"))
        if self.random.random() < 0.1:
            return self.reading(3)
        given = ", ".join(GIVEN[self.form])
        lines = [f"def {self.form}({given}):"]
        if self.random.random() < 0.2:
            lines.append('    """What it pays."""')
        written, assigned = self.block(1, frozenset(), self.random.randint(0, 4), 2)
        lines += [*written, f"    return {self.returned(assigned)}"]
        return "\n".join(lines)

    def reading(self, depth: int) -> str:
        """An expression that reads a feature."""
        return f"{self.feature()} {self.random.choice('+-*/')} ({self.expression(depth, frozenset())})"

    def returned(self, names: frozenset[str]) -> str:
        if self.random.random() < 0.5:
            return self.expression(3, names)
        parts = [f"'c{index}': {self.expression(2, names)}" for index in range(self.random.randint(1, 4))]
        return "{" + ", ".join(parts) + "}"

    def block(self, indent: int, names: frozenset[str], length: int, depth: int) -> tuple[list[str], frozenset[str]]:
        lines: list[str] = []
        for _ in range(length):
            written, names = self.statement(indent, names, depth)
            lines += written
        return lines, names

    def statement(self, indent: int, names: frozenset[str], depth: int) -> tuple[list[str], frozenset[str]]:
        space, kind = "    " * indent, self.random.random()
        if kind < 0.35 and depth:
            return self.branching(indent, names, depth - 1)
        if kind < 0.55 and names:
            operator = self.random.choice(("+", "-", "*", "/", "//", "%"))
            return [f"{space}{self.pick(names)} {operator}= {self.expression(2, names)}"], names
        name = self.random.choice(NAMES)
        annotation = self.random.choice(("", "", "", ": float", ": 'np.ndarray | None'"))
        return [f"{space}{name}{annotation} = {self.expression(3, names)}"], names | {name}

    def branching(self, indent: int, names: frozenset[str], depth: int) -> tuple[list[str], frozenset[str]]:
        space, lines, ends = "    " * indent, [], []
        has_else = self.random.random() < 0.7
        for index in range(self.random.randint(1, 3)):
            lines.append(f"{space}{'elif' if index else 'if'} {self.expression(2, names)}:")
            written, end = self.block(indent + 1, names, self.random.randint(0, 2), depth)
            lines += written or [f"{space}    pass"]
            ends.append(end)
        if has_else:
            written, end = self.block(indent + 1, names, self.random.randint(1, 2), depth)
            lines += [f"{space}else:", *written]
            ends.append(end)
        return lines, frozenset.intersection(*ends) if has_else else names

    def expression(self, depth: int, names: frozenset[str]) -> str:
        if depth == 0 or self.random.random() < 0.15:
            return self.atom(names)

        def part() -> str:
            return self.expression(depth - 1, names)

        def call(among: tuple[str, ...], num: int) -> str:
            arguments = ", ".join(part() for _ in range(num))
            return f"{self.random.choice(PREFIXES)}{self.random.choice(among)}({arguments})"

        choice = self.random.choice
        kinds = [
            lambda: f"({part()} {choice(('+', '-', '*', '/', '//', '%', 'and', 'or'))} {part()})",
            lambda: f"({part()} {choice('+-*')} {part()} {choice('+-*')} {part()})",
            lambda: f"({choice(('-', '+', 'not ', '-', '--'))}{part()})",
            lambda: f"(({part()}) ** {choice(('2', '3', '4', '-1', '0.5', '0', '1.0'))})",
            lambda: f"({part()} {choice(COMPARISONS)} {part()})",
            lambda: f"({part()} {choice(COMPARISONS)} {part()} {choice(COMPARISONS)} {part()})",
            lambda: f"({part()} if {part()} else {part()})",
            lambda: call(("abs", "sqrt", "exp", "log", "tanh", "sign", "floor"), 1),
            lambda: call(("min", "max"), choice((2, 3))),
            lambda: call(("clip", "where", "near"), 3),
        ]
        if self.form == "reward":
            words = ("'north'", '"pick up"', "south", "2", "3.0")
            kinds.append(lambda: f"(action {choice(('==', '!='))} {choice(words)})")
            kinds.append(lambda: f"({choice(words)} == action)")
        return choice(kinds)()

    def atom(self, names: frozenset[str]) -> str:
        kind = self.random.random()
        if kind < 0.25 and names:
            return self.pick(names)
        if kind < 0.7:
            return self.feature()
        return self.random.choice(("0", "1", "0.5", "2.50", "1e-3", "True", "1_000", "0x10", "7", "1e6"))

    def feature(self) -> str:
        moments = [name for name in GIVEN[self.form] if name != "action"]
        return f"{self.random.choice(moments)}.{self.random.choice(FEATURES)}"

    def pick(self, names: frozenset[str]) -> str:
        return self.random.choice(sorted(names))


def states(generator: np.random.Generator, num: int) -> np.ndarray:
    """[num, F] f32: small integers and fractions, so that comparisons are equal at times, and some NaN."""
    values = generator.integers(-3, 4, (num, len(FEATURES))) * generator.choice([1, 1, 0.3, 100], (num, len(FEATURES)))
    return np.where(generator.random(values.shape) < 0.05, np.nan, values).astype(np.float32)
