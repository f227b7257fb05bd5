"""What to write instead of Python that the language lacks.

Invariant: hints only word refusals; what is refused is decided in `checking` and `expressions`.
"""

import ast

from reward_models.programs.language import PREFIXES

NO_LOOP = "each term written out; relational features stand for loops over objects"
NO_NAME = "numbers in local names, with `if`, `elif` and `else`, and one return at the end"
NODES: dict[type[ast.AST], tuple[str, str]] = {
    ast.For: ("a loop", NO_LOOP),
    ast.While: ("a loop", NO_LOOP),
    ast.ListComp: ("a comprehension", NO_LOOP),
    ast.SetComp: ("a comprehension", NO_LOOP),
    ast.DictComp: ("a comprehension", NO_LOOP),
    ast.GeneratorExp: ("a comprehension", NO_LOOP),
    ast.Import: ("an import", "no such line: `abs`, `min`, `exp` and so on are there without it"),
    ast.ImportFrom: ("an import", "no such line: `abs`, `min`, `exp` and so on are there without it"),
    ast.FunctionDef: ("a further function", "its expression where it is used"),
    ast.Lambda: ("a lambda", "its expression where it is used"),
    ast.ClassDef: ("a class", NO_NAME),
    ast.AsyncFunctionDef: ("an asynchronous function", "`def` alone"),
    ast.Delete: ("`del`", "no such line"),
    ast.Assert: ("an assertion", "no such line: a step whose reward is not finite earns 0"),
    ast.Raise: ("`raise`", "no such line: a step whose reward is not finite earns 0"),
    ast.Try: ("`try`", "no such line: a step whose reward is not finite earns 0"),
    ast.Global: ("`global`", "no such line: a program keeps nothing between steps, but reads `start`"),
    ast.Nonlocal: ("`nonlocal`", "no such line: a program keeps nothing between steps, but reads `start`"),
    ast.With: ("`with`", "what stands within it alone"),
    ast.Match: ("`match`", "`if`, `elif` and `else`"),
    ast.Expr: ("an expression whose value is not used", "an assignment, or no such line"),
    ast.NamedExpr: ("`:=`", "an assignment on a line of its own"),
    ast.JoinedStr: ("a text", "a number"),
    ast.List: ("a list", "its elements one by one, as in `max(a, b)`"),
    ast.Tuple: ("a tuple", "its elements one by one, as in `max(a, b)`"),
    ast.Set: ("a set", "its elements one by one, as in `max(a, b)`"),
    ast.Dict: ("a dict within the program", 'numbers, and `return {"name": value}` at the end'),
    ast.Subscript: ("an element", "a feature, as `after.X`"),
    ast.Starred: ("`*`", "the arguments one by one"),
}
OTHERWISE = ("what the language lacks", "numbers, features, arithmetic, comparisons and known functions")

OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.BitAnd: ("`&`", "`and`"),
    ast.BitOr: ("`|`", "`or`"),
    ast.BitXor: ("`^`", "`**` for powers, `!=` for either of two"),
    ast.Invert: ("`~`", "`not`"),
    ast.MatMult: ("`@`", "the terms written out: a * b + c * d"),
    ast.LShift: ("`<<`", "`*`"),
    ast.RShift: ("`>>`", "`//`"),
    ast.Is: ("`is`", "`==`"),
    ast.IsNot: ("`is not`", "`!=`"),
    ast.In: ("`in`", "`x == 1 or x == 2`"),
    ast.NotIn: ("`not in`", "`x != 1 and x != 2`"),
}

_AS_IT_IS = "the value as it is: every value is a number"
_FEATURE = "`after.FEATURE`"
CALLS = {
    **dict.fromkeys(("maximum", "amax", "fmax", "relu"), "`max(a, b)`"),
    **dict.fromkeys(("minimum", "amin", "fmin"), "`min(a, b)`"),
    **dict.fromkeys(("clamp", "clip_by_value"), "`clip(x, low, high)`"),
    **dict.fromkeys(("fabs", "absolute"), "`abs(x)`"),
    **dict.fromkeys(("pow", "power", "square"), "`x ** 2`"),
    **dict.fromkeys(("round", "rint", "around"), "`floor(x + 0.5)`"),
    **dict.fromkeys(("int", "trunc", "int32", "int64", "fix"), "`floor(x)`"),
    **dict.fromkeys(("float", "bool", "float32", "float64", "tensor", "array", "asarray", "str"), _AS_IT_IS),
    **dict.fromkeys(("sum", "mean", "average", "dot", "fsum"), "the terms written out: a + b + c"),
    **dict.fromkeys(("norm", "hypot", "dist", "distance"), "`sqrt(x ** 2 + y ** 2)`"),
    **dict.fromkeys(("any", "logical_or"), "`a or b`"),
    **dict.fromkeys(("all", "logical_and"), "`a and b`"),
    **dict.fromkeys(("isclose", "allclose"), "`near(a, b, width)`, or `abs(a - b) < 0.01`"),
    **dict.fromkeys(("isnan", "isfinite", "isinf"), "no test: a step whose reward is not finite earns 0"),
    **dict.fromkeys(("getattr", "get", "hasattr", "item", "vars", "setattr"), _FEATURE),
    **dict.fromkeys(("range", "len", "enumerate", "zip", "map", "filter", "reduce"), NO_LOOP),
    **dict.fromkeys(("random", "rand", "randn", "uniform", "normal", "randint"), "no randomness"),
    "logical_not": "`not a`",
    "ceil": "`-floor(-x)`",
    "sigmoid": "`1 / (1 + exp(-x))`",
    "log1p": "`log(1 + x)`",
    "expm1": "`exp(x) - 1`",
    "log2": "`log(x) / 0.6931`",
    "log10": "`log(x) / 2.3026`",
    "print": "no such line",
    "dict": '`return {"name": value}` at the end',
}
"""Name of a function that writers expect -> what stands for it."""


def dotted(node: ast.AST) -> list[str]:
    """["np", "linalg", "norm"] of `np.linalg.norm`; empty for what is no dotted name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def function_name(node: ast.AST) -> str:
    """`abs` of `abs` and of `np.abs`; empty for what is neither."""
    parts = dotted(node)
    if len(parts) == 2 and parts[0] in PREFIXES:
        return parts[1]
    return parts[0] if len(parts) == 1 else ""
