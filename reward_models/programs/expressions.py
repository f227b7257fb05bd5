"""Expressions of a program: which are allowed, and their normal form.

Invariant: a normal expression is made anew of allowed nodes, holds no text but names of actions, and is no deeper than
the language's limit; it is its own normal form.
"""

import ast
from collections.abc import Sequence
from typing import NoReturn

from configs.errors import did_you_mean
from reward_models.programs.hints import CALLS, NODES, OPERATORS, OTHERWISE, dotted, function_name
from reward_models.programs.language import (
    ACTION,
    FORMS,
    FUNCTIONS,
    GIVEN,
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_NODES,
    MAX_NUMBER,
    PREFIXES,
    USES,
)
from reward_models.programs.refusal import Source, listed

ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


class Expressions:
    """Those of one program of a `form`."""

    def __init__(self, source: Source, form: str, features: Sequence[str], actions: Sequence[str]) -> None:
        self.names: set[str] = set()
        """Those that were assigned up to here, in whichever branch."""
        self._source, self._form = source, form
        self._features, self._actions = features, actions
        self._moments = tuple(name for name in FORMS[form] if name != ACTION)
        self._num_nodes = 0

    def count(self, node: ast.expr | ast.stmt, depth: int) -> None:
        """One more node, which stands `depth` levels deep. Raises ProgramError where that is beyond the limits."""
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            wanted = f"a program of at most {MAX_NODES} operations, features and numbers"
            self._refuse(node, "one node too many", wanted)
        if depth > MAX_DEPTH:
            self._refuse(node, f"nested more than {MAX_DEPTH} levels deep", "a local name for a part, assigned before")

    def normal(self, node: ast.expr, depth: int) -> ast.expr:
        """The normal form of `node`, which stands `depth` levels deep. Raises ProgramError."""
        self.count(node, depth)
        return ast.copy_location(self._normal(node, depth + 1), node)

    def _refuse(self, node: ast.AST, what: str, wanted: str) -> NoReturn:
        raise self._source.refusal(node, what, wanted)

    def _normal(self, node: ast.expr, depth: int) -> ast.expr:
        match node:
            case ast.Constant():
                return ast.Constant(self._number(node))
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                return self._feature(node)
            case ast.Call():
                return self._call(node, depth)
            case ast.UnaryOp(op=ast.UAdd()):
                return self.normal(node.operand, depth)
            case ast.UnaryOp(op=ast.USub() | ast.Not()):
                return ast.UnaryOp(node.op, self.normal(node.operand, depth))
            case ast.UnaryOp():
                self._refuse(node, *OPERATORS[type(node.op)])
            case ast.BinOp():
                return self._binary(node, depth)
            case ast.BoolOp():
                return ast.BoolOp(node.op, [self.normal(value, depth) for value in node.values])
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.IfExp():
                parts = (self.normal(part, depth) for part in (node.test, node.body, node.orelse))
                return ast.IfExp(*parts)
        self._refuse(node, *NODES.get(type(node), OTHERWISE))

    def _number(self, node: ast.Constant) -> int | float:
        value = node.value
        if isinstance(value, str):
            self._refuse(node, "a text", 'a number; a text stands only in `action == "WORD"`')
        if not isinstance(value, int | float):  # a bool is an int
            self._refuse(node, "no number", "a number, or a choice: `a if condition else b`")
        if not abs(value) <= MAX_NUMBER:
            self._refuse(node, "a number out of range", f"one from -{MAX_NUMBER:.0f} to {MAX_NUMBER:.0f}")
        return int(value) if value == int(value) else float(value)

    def _name(self, node: ast.Name) -> ast.Name:
        name, moments = node.id, self._moments
        if name in self.names:
            return ast.Name(name, ast.Load())
        if name == ACTION and name in FORMS[self._form]:
            self._refuse(node, "an action used as a number", '`action == "WORD"` or `action == NUMBER`')
        if name in moments:
            self._refuse(node, "a whole state", f"one of its features, as `{name}.{next(iter(self._features), 'X')}`")
        if name in GIVEN:
            self._refuse(node, f"which a `{self._form}` program is not given", listed(FORMS[self._form]))
        if name in self._features:
            self._refuse(node, "a feature alone", " or ".join(f"`{moment}.{name}`" for moment in moments))
        if name in FUNCTIONS:
            self._refuse(node, "a function that is not called", f"`{USES.get(name, f'{name}(x)')}`")
        if name in self._actions:
            self._refuse(node, "an action alone", f'`action == "{name}"`')
        near = did_you_mean(name, [*self.names, *FORMS[self._form]])
        self._refuse(node, "an unknown name", f"a name that was assigned before{near}, a number, or a feature")

    def _feature(self, node: ast.Attribute) -> ast.Attribute:
        match node.value:
            case ast.Name(id=moment) if moment in self._moments:
                if node.attr not in self._features:
                    near = did_you_mean(node.attr, self._features)
                    known = f"one of {listed(self._features)}" if self._features else "features: set env.features"
                    self._refuse(node, "an unknown feature", f"{known}{near}")
                return ast.Attribute(ast.Name(moment, ast.Load()), node.attr, ast.Load())
            case ast.Name(id=name) if name in PREFIXES:
                self._refuse(node, "a constant of a library", "the number itself")
            case ast.Name(id=name) if name in GIVEN - {ACTION}:
                self._name(node.value)  # refused: the other form's
        self._refuse(node, "an attribute", f"a feature, as `{self._moments[len(self._moments) // 2]}.X`")

    def _call(self, node: ast.Call, depth: int) -> ast.Call:
        name = function_name(node.func)
        if name not in FUNCTIONS:
            self._refuse_call(node)
        use = USES.get(name, f"{name}(a, b)" if FUNCTIONS[name][0] == 2 else f"{name}(x)")
        for keyword in node.keywords:
            self._refuse(keyword, "a keyword argument", f"the arguments in their order: `{use}`")
        least, most = FUNCTIONS[name]
        if not least <= len(node.args) <= most:
            self._refuse(node, f"a call with {len(node.args)} arguments", f"`{use}`")
        return ast.Call(ast.Name(name, ast.Load()), [self.normal(argument, depth) for argument in node.args], [])

    def _refuse_call(self, node: ast.Call) -> NoReturn:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else (dotted(function) or [""])[0]
        if name in FUNCTIONS:
            wanted = f"`{USES.get(name, f'{name}(x)')}`"
        else:
            wanted = CALLS.get(name) or f"one of {listed(FUNCTIONS)}{did_you_mean(name, FUNCTIONS)}"
        self._refuse(node, "a call of an unknown function", wanted)

    def _binary(self, node: ast.BinOp, depth: int) -> ast.BinOp:
        if not isinstance(node.op, ARITHMETIC):
            self._refuse(node, *OPERATORS[type(node.op)])
        left, right = self.normal(node.left, depth), self.normal(node.right, depth)
        if isinstance(node.op, ast.Pow):
            match right.operand if isinstance(right, ast.UnaryOp) and isinstance(right.op, ast.USub) else right:
                case ast.Constant(value=int() | float() as exponent) if exponent <= MAX_EXPONENT:
                    pass
                case ast.Constant():
                    self._refuse(node.right, "a large exponent", f"one from -{MAX_EXPONENT} to {MAX_EXPONENT}")
                case _:
                    wanted = "a number, or `exp(b * log(a))` for a ** b"
                    self._refuse(node.right, "an exponent that is no number", wanted)
        return ast.BinOp(left, node.op, right)

    def _comparison(self, node: ast.Compare, depth: int) -> ast.Compare:
        parts = [node.left, *node.comparators]
        if ACTION in FORMS[self._form] and any(isinstance(part, ast.Name) and part.id == ACTION for part in parts):
            return self._action(node, parts)
        for operator in node.ops:
            if not isinstance(operator, COMPARISONS):
                self._refuse(node, *OPERATORS[type(operator)])
        left, *others = (self.normal(part, depth) for part in parts)
        return ast.Compare(left, node.ops, others)

    def _action(self, node: ast.Compare, parts: list[ast.expr]) -> ast.Compare:
        """`action == WORD or number`, or `!=`, whichever stands first."""
        if len(parts) != 2 or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            wanted = '`action == "WORD"` or `action != "WORD"`, several joined by `or`'
            self._refuse(node, "no test of one action", wanted)
        is_first = isinstance(parts[0], ast.Name) and parts[0].id == ACTION
        value = self._which(parts[1] if is_first else parts[0])
        return ast.Compare(ast.Name(ACTION, ast.Load()), node.ops, [ast.Constant(value)])

    def _which(self, node: ast.expr) -> str | int:
        """The word or number of an action."""
        actions = self._actions
        known = f"one of {listed(repr(name) for name in actions)}" if actions else "its number: they have no names"
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as number):
                if not (0 <= number < (len(actions) or MAX_NUMBER) and number == int(number)):
                    self._refuse(node, "no action's number", f"0 to {len(actions) - 1}" if actions else "0, 1, ...")
                return int(number)
            case ast.Name(id=word) if word in self.names:
                self._refuse(node, "a local name", "an action's word in quotes, or its number")
            case ast.Constant(value=str() as word) | ast.Name(id=word):
                if word in actions:
                    return word
                self._refuse(node, "an unknown action", f"{known}{did_you_mean(word, actions)}")
        near = did_you_mean(".".join(dotted(node)), actions) if dotted(node) else ""
        self._refuse(node, "no action", f"{known}{near}")
