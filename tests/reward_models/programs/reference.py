"""The meaning of programs, one step at a time: Python's own tree of the text, walked with Python's control flow over
float32 scalars. Nothing of `reward_models.programs` is used."""

import ast
from collections.abc import Mapping, Sequence

import numpy as np

F32 = np.float32
ARITHMETIC = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
COMPARISONS = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}


def smaller(a: F32, b: F32) -> F32:
    return a if a != a or a < b else b


def greater(a: F32, b: F32) -> F32:
    return a if a != a or a > b else b


def near(a: F32, b: F32, width: F32) -> F32:
    distance = (a - b) / width
    return np.exp(-(distance * distance))


FUNCTIONS = {
    "abs": abs,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sign": np.sign,
    "floor": np.floor,
    "clip": lambda x, low, high: smaller(greater(x, low), high),
    "where": lambda test, a, b: a if test != 0 else b,
    "near": near,
}


def power(base: F32, exponent: float) -> F32:
    if exponent in (2, 3, 4):
        square = base * base
        return {2: square, 3: square * base, 4: square * square}[exponent]
    return np.power(np.array([base, base]), F32(exponent))[0]


class Walk:
    """One step of a batch: `moments` are its features, by moment and name."""

    def __init__(self, moments: Mapping[str, Mapping[str, F32]], action: int, actions: Sequence[str]) -> None:
        self.moments, self.action, self.actions = moments, action, actions
        self.names: dict[str, F32] = {}

    def components(self, text: str) -> list[float]:
        """Of the program `text`; NaN where not finite."""
        (last,) = ast.parse(text).body[-1:]
        if isinstance(last, ast.Expr):
            value: ast.expr = last.value
        else:
            assert isinstance(last, ast.FunctionDef)
            found = self.run(last.body)
            assert found is not None
            value = found
        values = value.values if isinstance(value, ast.Dict) else [value]
        found_values = [float(F32(self.value(part))) for part in values]
        return [number if np.isfinite(number) else np.nan for number in found_values]

    def run(self, body: Sequence[ast.stmt]) -> ast.expr | None:
        """Run statements up to a return; the expression that it returns."""
        for statement in body:
            match statement:
                case ast.Return():
                    return statement.value
                case ast.If():
                    self.run(statement.body if self.is_true(statement.test) else statement.orelse)
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    self.names[name] = self.value(statement.value)
                case ast.AugAssign(target=ast.Name(id=name)):
                    self.names[name] = ARITHMETIC[type(statement.op)](self.names[name], self.value(statement.value))
        return None

    def is_true(self, node: ast.expr) -> bool:
        return bool(self.value(node) != 0)

    def value(self, node: ast.expr) -> F32:
        match node:
            case ast.Constant(value=value):
                return F32(value)
            case ast.Name(id=name):
                return self.names[name]
            case ast.Attribute(value=ast.Name(id=moment), attr=name):
                return self.moments[moment][name]
            case ast.BinOp(op=ast.Pow()):
                return power(self.value(node.left), ast.literal_eval(node.right))
            case ast.BinOp():
                return ARITHMETIC[type(node.op)](self.value(node.left), self.value(node.right))
            case ast.UnaryOp(op=ast.Not()):
                return F32(not self.is_true(node.operand))
            case ast.UnaryOp(op=ast.USub()):
                return -self.value(node.operand)
            case ast.UnaryOp(op=ast.UAdd()):
                return self.value(node.operand)
            case ast.BoolOp(op=ast.And()):
                return F32(all(self.is_true(value) for value in node.values))
            case ast.BoolOp():
                return F32(any(self.is_true(value) for value in node.values))
            case ast.IfExp():
                return self.value(node.body if self.is_true(node.test) else node.orelse)
            case ast.Compare():
                return F32(self.holds(node))
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
                return self.call(name, [self.value(argument) for argument in node.args])
        raise AssertionError(ast.dump(node))

    def call(self, name: str, arguments: list[F32]) -> F32:
        if name not in ("min", "max"):
            return FUNCTIONS[name](*arguments)
        first, *others = arguments
        for other in others:
            first = smaller(first, other) if name == "min" else greater(first, other)
        return first

    def holds(self, node: ast.Compare) -> bool:
        parts = [node.left, *node.comparators]
        if any(isinstance(part, ast.Name) and part.id == "action" for part in parts):
            (other,) = [part for part in parts if not (isinstance(part, ast.Name) and part.id == "action")]
            which = other.id if isinstance(other, ast.Name) else ast.literal_eval(other)
            is_it = self.action == (self.actions.index(which) if isinstance(which, str) else which)
            return is_it == isinstance(node.ops[0], ast.Eq)
        left = self.value(parts[0])
        for operator, part in zip(node.ops, parts[1:], strict=True):
            right = self.value(part)
            if not COMPARISONS[type(operator)](left, right):
                return False
            left = right
        return True
