"""Statements of a program: which are allowed, and their normal form.

Invariant: the normal form has the meaning of what was written, within the language; what is not understood in full is
refused, never left out (but for docstrings, comments and annotations, which mean nothing).
"""

import ast
import re
from collections.abc import Sequence
from typing import NoReturn

from reward_models.programs.expressions import Expressions
from reward_models.programs.hints import NODES, OTHERWISE
from reward_models.programs.language import COMPONENT_NAME, FORMS, GIVEN, MAX_COMPONENTS, MAX_NAMES
from reward_models.programs.parsing import WANTED
from reward_models.programs.refusal import Source, refusal_at

_OWN = "a name of its own"
TARGETS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Attribute: ("an assignment to an attribute", f"{_OWN}: features are only read"),
    ast.Subscript: ("an assignment to an element", _OWN),
    ast.Tuple: ("an assignment to several names", "one name on each line"),
    ast.List: ("an assignment to several names", "one name on each line"),
}
ANNOTATION = (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.Constant, ast.BinOp, ast.BitOr, ast.expr_context)
"""What annotations may hold."""


def checked(
    tree: ast.Module, source: Source, features: Sequence[str], actions: Sequence[str]
) -> tuple[str, list[ast.stmt]]:
    """The form of the program, and the body of its function in normal form: assignments and branches, and one return
    at the end. Raises ProgramError."""
    body = _without_docstring(tree.body)
    match body:
        case []:
            raise refusal_at(1, 1, "", "no program", f"{WANTED}, or one expression")
        case [ast.Expr() as line]:
            form = _form_of(line.value, source)
            expressions = Expressions(source, form, features, actions)
            returned = Statements(source, expressions).returned(line, line.value)
            if not _given(returned):
                raise source.refusal(line, "which reads no feature", "one that reads `after.X` or `state.X`")
            return form, [returned]
        case [ast.FunctionDef() as function]:
            _check_signature(function, source)
            expressions = Expressions(source, function.name, features, actions)
            return function.name, Statements(source, expressions).body(function)
        case [ast.FunctionDef() | ast.Expr(), other, *_] | [other, *_]:
            is_plain = isinstance(other, ast.Expr) or type(other) not in NODES
            hint = ("which stands outside of a function", f"only {WANTED}, or one expression")
            raise source.refusal(other, *(hint if is_plain else NODES[type(other)]))
    raise AssertionError("every list is one of these")


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), _, *_]:
            return body[1:]
    return body


def _given(node: ast.AST) -> list[ast.Name]:
    return [part for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in GIVEN]


def _form_of(expression: ast.expr, source: Source) -> str:
    """The form whose names it reads; `reward` where it reads none."""
    read = _given(expression)
    of_state = [name for name in read if name.id in FORMS["progress"]]
    if of_state and len(of_state) < len(read):
        raise source.refusal(of_state[0], "beside names of a step", "`state` alone, or before, after, start and action")
    return "progress" if of_state else "reward"


def _check_signature(function: ast.FunctionDef, source: Source) -> None:
    given, arguments = FORMS.get(function.name), function.args
    if given is None:
        raise source.refusal(function, "a function of another name", WANTED)
    for decorator in function.decorator_list:
        raise source.refusal(decorator, "a decorator", "`def` alone")
    others = [arguments.posonlyargs, arguments.kwonlyargs, arguments.defaults, getattr(function, "type_params", [])]
    has_others = any(others) or arguments.vararg or arguments.kwarg
    if has_others or tuple(argument.arg for argument in arguments.args) != given:
        wanted = f"`def {function.name}({', '.join(given)}):`"
        raise source.refusal(function, "other parameters", wanted)
    for annotation in [function.returns, *(argument.annotation for argument in arguments.args)]:
        _check_annotation(annotation, source)


def _check_annotation(annotation: ast.expr | None, source: Source) -> None:
    if annotation and not all(isinstance(part, ANNOTATION) for part in ast.walk(annotation)):
        raise source.refusal(annotation, "an annotation that is no plain type", "a type's name, or no annotation")


class Statements:
    """Those of one program."""

    def __init__(self, source: Source, expressions: Expressions) -> None:
        self._source, self._expressions = source, expressions

    def _refuse(self, node: ast.AST, what: str, wanted: str) -> NoReturn:
        raise self._source.refusal(node, what, wanted)

    def body(self, function: ast.FunctionDef) -> list[ast.stmt]:
        """The normal form of a function's body. Raises ProgramError."""
        *body, last = _without_docstring(function.body)
        normal = [self._normal(statement, 1) for statement in body]
        if not isinstance(last, ast.Return):
            self._normal(last, 1)
            self._refuse(last, "the end of a program without a return", '`return value` or `return {"name": value}`')
        if last.value is None:
            self._refuse(last, "a return without a value", '`return value` or `return {"name": value}`')
        return [*normal, self.returned(last, last.value)]

    def _normal(self, node: ast.stmt, depth: int) -> ast.stmt:
        self._expressions.count(node, depth)
        return ast.copy_location(self._anew(node, depth + 1), node)

    def _anew(self, node: ast.stmt, depth: int) -> ast.stmt:
        match node:
            case ast.Assign(targets=[target]):
                return self._assignment(target, node.value, depth)
            case ast.AnnAssign(value=ast.expr() as value):
                _check_annotation(node.annotation, self._source)
                return self._assignment(node.target, value, depth)
            case ast.AugAssign(target=ast.Name(id=name)):
                old = ast.copy_location(ast.Name(name, ast.Load()), node.target)
                changed = ast.copy_location(ast.BinOp(old, node.op, node.value), node)
                return self._assignment(node.target, changed, depth)
            case ast.AugAssign():
                return self._assignment(node.target, node.value, depth)  # refused
            case ast.Assign():
                self._refuse(node, "an assignment to several names", "one name on each line")
            case ast.AnnAssign():
                self._refuse(node, "a name without a value", "`name = value`")
            case ast.If():
                test = self._expressions.normal(node.test, depth)
                branches = ([self._normal(part, depth) for part in branch] for branch in (node.body, node.orelse))
                return ast.If(test, *branches)
            case ast.Pass():
                return ast.Pass()
            case ast.Return():
                wanted = "a name assigned in each branch, and one return at the end"
                self._refuse(node, "a return before the end", wanted)
        self._refuse(node, *NODES.get(type(node), OTHERWISE))

    def _assignment(self, target: ast.expr, value: ast.expr, depth: int) -> ast.Assign:
        if not isinstance(target, ast.Name):
            self._refuse(target, *TARGETS.get(type(target), OTHERWISE))
        if target.id in GIVEN:
            self._refuse(target, "an assignment to what is given", _OWN)
        names = self._expressions.names
        if target.id not in names and len(names) == MAX_NAMES:
            self._refuse(target, f"more than {MAX_NAMES} names", "fewer: one may be assigned again")
        normal = self._expressions.normal(value, depth)
        names.add(target.id)
        return ast.Assign([ast.Name(target.id, ast.Store())], normal)

    def returned(self, node: ast.stmt, value: ast.expr) -> ast.Return:
        """`return value`, or of a dict of components, in normal form. Raises ProgramError."""
        match value:
            case ast.Tuple():
                self._refuse(value, "a tuple", 'one number, or `{"name": value}` of its summands')
            case ast.Dict():
                normal: ast.expr = self._components(value)
            case _:
                normal = self._expressions.normal(value, 2)
        return ast.copy_location(ast.Return(normal), node)

    def _components(self, node: ast.Dict) -> ast.Dict:
        if not 1 <= len(node.keys) <= MAX_COMPONENTS:
            self._refuse(node, f"{len(node.keys)} components", f"1 to {MAX_COMPONENTS}")
        names: list[str] = []
        for key, value in zip(node.keys, node.values, strict=True):
            match key:
                case ast.Constant(value=str() as name) if re.fullmatch(COMPONENT_NAME, name):
                    if name in names:
                        self._refuse(key, "a component for the second time", "one value of each name")
                    names.append(name)
                case _:
                    wanted = 'a name in quotes: `"name": value`, of at most 32 letters, digits and `_`'
                    self._refuse(key or value, "no component's name", wanted)
        values = [self._expressions.normal(value, 3) for value in node.values]
        return ast.copy_location(ast.Dict([ast.Constant(name) for name in names], values), node)
