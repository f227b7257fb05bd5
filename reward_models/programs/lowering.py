"""From a checked program to steps, each one operation over a whole batch: branches become selections.

Invariant: steps compute what the statements say where each step of the batch takes its own branches; equal operations
are one step, and what no component needs is left out.
"""

import ast
from collections.abc import Sequence
from typing import NamedTuple

from reward_models.programs.language import MAX_NODES
from reward_models.programs.program import Detail, Step
from reward_models.programs.refusal import Source

SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.And: "and",
    ast.Or: "or",
    ast.Not: "not",
    ast.USub: "negative",
}
PAIRWISE = ("min", "max")


class Lowered(NamedTuple):
    """Steps, and of each component the name and its place in them."""

    steps: tuple[Step, ...]
    components: tuple[str, ...]
    outputs: tuple[int, ...]


def lowered(form: str, body: Sequence[ast.stmt], source: Source, actions: Sequence[str]) -> Lowered:
    """The steps of a body in normal form. Raises ProgramError for a name that was assigned in other branches only, and
    for more steps than the language allows."""
    *statements, last = body
    lowering = _Lowering(source, actions)
    for statement in statements:
        lowering.run(statement)
    match last:
        case ast.Return(value=ast.Dict(keys=keys, values=values)):
            names = tuple(str(key.value) for key in keys if isinstance(key, ast.Constant))
        case ast.Return(value=ast.expr() as value):
            names, values = (form,), [value]
        case _:
            raise AssertionError("not in normal form")
    outputs = tuple(lowering.value(value) for value in values)
    return _used(Lowered(tuple(lowering.steps), names, outputs))


def _used(all_of_it: Lowered) -> Lowered:
    """Only the steps that components need."""
    needed = set(all_of_it.outputs)
    for place in reversed(range(len(all_of_it.steps))):
        if place in needed:
            needed.update(all_of_it.steps[place].operands)
    places = {place: new for new, place in enumerate(sorted(needed))}
    kept = (all_of_it.steps[place] for place in places)
    steps = tuple(step._replace(operands=tuple(places[operand] for operand in step.operands)) for step in kept)
    return Lowered(steps, all_of_it.components, tuple(places[place] for place in all_of_it.outputs))


class _Lowering:
    def __init__(self, source: Source, actions: Sequence[str]) -> None:
        self.steps: dict[Step, int] = {}
        self._source, self._actions = source, actions
        self._names: dict[str, int] = {}

    def _add(self, node: ast.AST, operation: str, *operands: int, detail: Detail = None) -> int:
        place = self.steps.setdefault(Step(operation, operands, detail), len(self.steps))
        if len(self.steps) > MAX_NODES:
            what = "one operation too many, with the selections that branches become"
            raise self._source.refusal(node, what, f"at most {MAX_NODES}: fewer names that branches assign")
        return place

    def run(self, node: ast.stmt) -> None:
        """Do an assignment, or both branches."""
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                self._names[name] = self.value(node.value)
            case ast.If():
                self._branch(node)

    def _branch(self, node: ast.If) -> None:
        test, before = self.value(node.test), self._names
        ends = []
        for branch in (node.body, node.orelse):
            self._names = dict(before)
            for statement in branch:
                self.run(statement)
            ends.append(self._names)
        then, otherwise = ends
        self._names = {}
        for name in then:
            if name in otherwise:
                is_same = then[name] == otherwise[name]
                place = then[name] if is_same else self._add(node, "where", test, then[name], otherwise[name])
                self._names[name] = place

    def value(self, node: ast.expr) -> int:
        """The place of an expression's value."""
        match node:
            case ast.Constant(value=int() | float() as number):
                return self._add(node, "number", detail=float(number))
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.Attribute(value=ast.Name(id=moment), attr=feature):
                return self._add(node, "feature", detail=(moment, feature))
            case ast.BinOp(op=ast.Pow()):
                return self._power(node)
            case ast.BinOp():
                return self._add(node, SYMBOLS[type(node.op)], self.value(node.left), self.value(node.right))
            case ast.UnaryOp():
                return self._add(node, SYMBOLS[type(node.op)], self.value(node.operand))
            case ast.BoolOp():
                return self._folded(node, SYMBOLS[type(node.op)], [self.value(value) for value in node.values])
            case ast.IfExp():
                test, then, otherwise = (self.value(part) for part in (node.test, node.body, node.orelse))
                return self._add(node, "where", test, then, otherwise)
            case ast.Compare(
                left=ast.Name(id="action"), ops=[operator], comparators=[ast.Constant(value=str() | int() as which)]
            ):
                action = self._actions.index(which) if isinstance(which, str) else which
                is_it = self._add(node, "action", detail=action)
                return self._add(node, "not", is_it) if isinstance(operator, ast.NotEq) else is_it
            case ast.Compare():
                values = [self.value(part) for part in (node.left, *node.comparators)]
                pairs = zip(node.ops, values, values[1:], strict=False)
                return self._folded(node, "and", [self._add(node, SYMBOLS[type(op)], a, b) for op, a, b in pairs])
            case ast.Call(func=ast.Name(id=name)):
                arguments = [self.value(argument) for argument in node.args]
                if name in PAIRWISE:
                    return self._folded(node, name, arguments)
                return self._add(node, name, *arguments)
        raise AssertionError(f"not in normal form: {ast.dump(node)}")

    def _folded(self, node: ast.expr, operation: str, values: Sequence[int]) -> int:
        first, *others = values
        for value in others:
            first = self._add(node, operation, first, value)
        return first

    def _name(self, node: ast.expr, name: str) -> int:
        if name not in self._names:
            wanted = f"`{name} = 0`, or what it is otherwise, on a line before them"
            raise self._source.refusal(node, "a name that only some branches assign", wanted)
        return self._names[name]

    def _power(self, node: ast.BinOp) -> int:
        base = self.value(node.left)
        exponent = node.right.value if isinstance(node.right, ast.Constant) else None
        if exponent not in (2, 3, 4):
            return self._add(node, "**", base, self.value(node.right))
        square = self._add(node, "*", base, base)
        return square if exponent == 2 else self._add(node, "*", square, base if exponent == 3 else square)
