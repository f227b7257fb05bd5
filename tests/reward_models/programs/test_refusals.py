"""Refusals teach: the line and column, what was met, and what to write instead."""

import pickle

import pytest

from reward_models.programs.compiling import compile_program
from reward_models.programs.refusal import ProgramError
from tests.reward_models.programs.random_programs import ACTIONS, FEATURES

DEF = "def reward(before, after, start, action):\n"
HERE = "‸"
"""Where the refusal points; not part of the text."""


def refusal(text: str, actions: tuple[str, ...] = ACTIONS) -> ProgramError:
    with pytest.raises(ProgramError) as info:
        compile_program(text, FEATURES, actions)
    assert "\n" not in str(info.value)
    assert str(info.value).startswith(f"line {info.value.line}, column {info.value.column}: got ")
    assert "; wanted " in str(info.value)
    assert len(str(info.value)) <= 300
    return info.value


def check(marked: str, *messages: str, actions: tuple[str, ...] = ACTIONS) -> None:
    before, text = marked.partition(HERE)[0], marked.replace(HERE, "")
    error = refusal(text, actions)
    assert (error.line, error.column) == (before.count("\n") + 1, len(before) - before.rfind("\n")), error
    for message in messages:
        assert message in str(error)


@pytest.mark.parametrize(
    ("marked", "met", "instead"),
    [
        ("‸open('f') + after.x", "got `open('f')`, a call of an unknown function", "one of abs, min, max"),
        ("after.x + ‸absolute(after.y)", "unknown function", "`abs(x)`"),
        ("after.x + ‸mni(after.y, 1)", "unknown function", "did you mean 'min'?"),
        ("‸np.linalg.norm(after.x)", "unknown function", "sqrt(x ** 2 + y ** 2)"),
        ("‸torch.clamp(after.x, 0, 1)", "unknown function", "clip(x, low, high)"),
        ("‸np.maximum(after.x, 0)", "unknown function", "`max(a, b)`"),
        ("‸after.x.abs()", "unknown function", "`abs(x)`"),
        ("‸(after.x + 1).clip(0, 1)", "unknown function", "`clip(x, low, high)`"),
        ("‸sum(after.x for _ in after)", "unknown function", "the terms written out"),
        ("‸float(after.x)", "unknown function", "every value is a number"),
        ("‸getattr(after, 'x')", "unknown function", "`after.FEATURE`"),
        ("‸abs(after.x)(1)", "unknown function", "one of abs"),
        ("‸clip(after.x)", "a call with 1 arguments", "`clip(x, low, high)`"),
        ("‸max(after.x)", "a call with 1 arguments", "`max(a, b)`"),
        ("clip(after.x, ‸min=0, max=1)", "a keyword argument", "in their order: `clip(x, low, high)`"),
        ("max(‸*after.x, 1)", "`*`", "one by one"),
        ("max(‸[after.x, 1], 2)", "a list", "`max(a, b)`"),
        ("1 - ‸after.distance_to_gaol", "an unknown feature", "did you mean 'distance_to_goal'?"),
        ("‸after.x.y", "an attribute", "`after.X`"),
        ("after.x + ‸math.pi", "a constant of a library", "the number"),
        ("‸after['x']", "an element", "`after.X`"),
        ("1 + ‸after", "a whole state", "`after.x`"),
        ("after.x + ‸state.x", "", "before, after, start and action"),
        ("1 + ‸turn", "a feature alone", "`before.turn` or `after.turn` or `start.turn`"),
        ("after.x + ‸abs", "not called", "`abs(x)`"),
        ("after.x + ‸action", "an action used as a number", '`action == "WORD"`'),
        ("after.x + ‸north", "an action alone", '`action == "north"`'),
        ("after.x * (‸action > 2)", "no test of one action", '`action == "WORD"`'),
        ("after.x * (‸action in ('north', 'south'))", "no test of one action", "joined by `or`"),
        ("after.x * (‸0 < action == 2)", "no test of one action", "joined by `or`"),
        ("action == ‸'nort'", "an unknown action", "did you mean 'north'?"),
        ("action == ‸Actions.kick", "no action", "did you mean 'kick'?"),
        ("action != ‸4", "no action's number", "0 to 3"),
        ("action == ‸1.5", "no action's number", "0 to 3"),
        ("action == ‸-1", "no action", "one of 'north', 'south', 'pick up', 'kick'"),
        ("action == ‸1e999", "no action's number", "0 to 3"),
        ("action == ‸True", "no action", "one of"),
        ("after.x + ‸bfore", "an unknown name", "did you mean 'before'?"),
        ("after.x + ‸'north'", "a text", 'action == "WORD"'),
        ("after.x + ‸None", "no number", "a if condition else b"),
        ("after.x + ‸2j", "no number", "a number"),
        ("after.x + ‸1_000_001", "out of range", "1000000"),
        ("after.x + ‸1e999", "out of range", "1000000"),
        ("after.x + ‸0x" + "f" * 5000, "out of range", "1000000"),
        ("after.x ** ‸5", "a large exponent", "from -4 to 4"),
        ("after.x ** ‸-4.5", "a large exponent", "from -4 to 4"),
        ("after.x ** ‸after.y", "no number", "exp(b * log(a))"),
        ("‸(after.x > 0) & (after.y > 0)", "`&`", "`and`"),
        ("‸after.x ^ 2", "`^`", "`**`"),
        ("1 + ‸~after.x", "`~`", "`not`"),
        ("‸after.x is None", "`is`", "`==`"),
        ("‸after.x in (1, 2)", "`in`", "`x == 1 or x == 2`"),
        ("after.x + (‸y := 2)", "`:=`", "an assignment"),
        ("‸lambda before, after: 1", "a lambda", "its expression"),
        ("after.x + ‸[y for y in after][0]", "an element", "`after.X`"),
        ("1 + ‸f'{after.x}'", "a text", "a number"),
        ("‸2 + 2", "reads no feature", "`after.X` or `state.X`"),
        ("after.x +‸", "not Python's syntax", "or one expression"),
        ("Here is the ‸program:", "not Python's syntax", "or one expression"),
        ("‸```python\nafter.x\n```", "not Python's syntax", "or one expression"),
        ("after.x\n‸after.y", "outside of a function", "one expression"),
        ("‸return after.x", "outside of a function", "one expression"),
        ("‸import numpy as np\n" + DEF + "    return after.x", "an import", "there without it"),
        ("‸GAIN = 2\n" + DEF + "    return after.x", "outside of a function", "only `def reward"),
        (
            DEF + "    return after.x\n‸def progress(state):\n    return state.x",
            "a further function",
            "where it is used",
        ),
        (DEF + "    return after.x\n‸print(1)", "outside of a function", "only `def reward"),
        ("‸def compute_reward(before, after):\n    return after.x", "another name", "`def progress(state):`"),
        ("‸def reward(before, after):\n    return after.x", "other parameters", "`def reward(before, after, start"),
        ("‸def progress(state, k=1):\n    return state.x", "other parameters", "`def progress(state):`"),
        ("‸def progress(*state):\n    return state.x", "other parameters", "`def progress(state):`"),
        ("@‸staticmethod\ndef progress(state):\n    return state.x", "a decorator", "`def` alone"),
        ("def progress(state: ‸type(1)):\n    return state.x", "no plain type", "a type's name"),
        ("def progress(state: ‸int - 1):\n    return state.x", "no plain type", "a type's name"),
        ("def progress(state):\n    y: ‸[1] = 1\n    return state.x", "no plain type", "a type's name"),
        (DEF + "    ‸for i in range(3):\n        pass\n    return after.x", "a loop", "relational features"),
        (DEF + "    ‸while 1:\n        pass\n    return after.x", "a loop", "relational features"),
        (DEF + "    ‸import os\n    return after.x", "an import", "there without it"),
        (DEF + "    ‸print(after.x)\n    return after.x", "not used", "an assignment"),
        (DEF + "    ‸assert after.x\n    return after.x", "an assertion", "no such line"),
        (DEF + "    ‸global y\n    return after.x", "`global`", "keeps nothing"),
        (DEF + "    ‸return 1\n    return after.x", "before the end", "one return at the end"),
        (DEF + "    if after.x:\n        ‸return 1\n    return 2", "before the end", "one return at the end"),
        (DEF + "    y = 2\n    ‸z = y", "without a return", "`return value`"),
        (DEF + "    ‸return", "without a value", "`return value`"),
        (DEF + "    return ‸after.x, {'x': after.x}", "a tuple", "summands"),
        (DEF + "    return ‸{}", "0 components", "1 to 16"),
        (DEF + "    ‸after.x = 1\n    return 1", "an assignment to an attribute", "only read"),
        (DEF + "    ‸after.x += 1\n    return 1", "an assignment to an attribute", "only read"),
        (DEF + "    ‸state = 1\n    return 1", "to what is given", "a name of its own"),
        (DEF + "    ‸y, z = 1, 2\n    return 1", "several names", "one name on each line"),
        (DEF + "    ‸y = z = 1\n    return 1", "several names", "one name on each line"),
        (DEF + "    ‸y: float\n    return 1", "without a value", "`name = value`"),
        (DEF + "    parts = ‸{'x': after.x}\n    return parts", "a dict within the program", "at the end"),
        (DEF + "    return {‸1: after.x}", "no component's name", "in quotes"),
        (DEF + "    return {‸'a b': after.x}", "no component's name", "letters, digits"),
        (DEF + "    return {'a': 1, ‸'a': 2}", "for the second time", "one value of each"),
        (DEF + "    return {'a': 1, **‸after}", "no component's name", "in quotes"),
        (DEF + "    return ‸{" + ", ".join(f"'c{i}': 1" for i in range(17)) + "}", "17 components", "1 to 16"),
        (DEF + "    y = ‸z\n    return y", "an unknown name", "assigned before"),
        (DEF + "    y = ‸z\n    z = 1\n    return y", "an unknown name", "assigned before"),
        (DEF + "    ‸z += 1\n    return z", "an unknown name", "assigned before"),
        (DEF + "    if after.x:\n        y = 1\n    return ‸y", "only some branches assign", "`y = 0`"),
        (
            DEF + "    if after.x:\n        y = 1\n    else:\n        z = ‸y\n    return 1",
            "only some branches",
            "`y = 0`",
        ),
        (DEF + "    größe = 1 + ‸'ä'\n    return 1", "a text", "a number"),
        (DEF + "    größe = 1; weite = größe + ‸open(1)\n    return 1", "unknown function", "one of abs"),
        ("near(after.x,\n     # ä\n     ‸'ö', 1)", "a text", "a number"),
        ("\n\n      after.x + (\n        ‸open(1))", "unknown function", "one of abs"),
        ("after.x\r\n + 1\r\n‸\x00", "U+0000", "printable text"),
        ("(after.x +\r\n ‸'a')", "a text", "a number"),
        ("# ä\tö‸\ud800\nafter.x", "U+D800", "printable text"),
    ],
)
def test_refusals_say_where_what_and_what_instead(marked: str, met: str, instead: str) -> None:
    check(marked, met, instead)


def test_without_names_actions_are_compared_with_numbers() -> None:
    assert compile_program("after.x * (action == 7)", FEATURES).num_nodes == 3
    check("action == ‸north", "an unknown action", "wanted its number: they have no names", actions=())
    check("action == ‸-1", "no action", "its number", actions=())


def test_without_features_there_is_nothing_to_read() -> None:
    with pytest.raises(ProgramError, match="an unknown feature; wanted features: set env"):
        compile_program("after.x", ())


def nested(depth: int) -> str:
    return "abs(" * depth + "after.x" + ")" * depth


def limits(num: int) -> dict[str, str]:
    """Programs with `num` of each thing that is limited."""
    names = "".join(f"    n{index} = {index}\n" for index in range(num))
    return {
        "names": f"{DEF}{names}    return after.x",
        "nodes": DEF + "    y = 1\n" * num + "    return after.x",
        "depth": f"{DEF}    return {nested(num)}",
        "branches": DEF + "".join(" " * (4 + index) + f"if after.x > {index}:\n" for index in range(num))
        + " " * (4 + num) + "y = 1\n    return after.x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("what", "within", "beyond", "message"),
    [
        ("names", 40, 41, "more than 40 names; wanted fewer"),
        ("depth", 38, 39, "nested more than 40 levels deep; wanted a local name"),
        ("branches", 38, 39, "nested more than 40 levels deep"),
        ("nodes", 199, 200, "one node too many; wanted a program of at most 400"),
    ],
)
def test_limits_are_refused_where_they_are_passed(what: str, within: int, beyond: int, message: str) -> None:
    compile_program(limits(within)[what], FEATURES)
    error = refusal(limits(beyond)[what])
    assert message in str(error)
    assert error.line > 1


def test_selections_count_where_many_names_meet_many_branches() -> None:
    def nested_branches(num: int) -> str:
        before = "".join(f"    n{index} = 0\n" for index in range(30))
        tests = "".join(f"{' ' * (4 + index)}if after.x > {index}:\n" for index in range(num))
        within = "".join(f"{' ' * (4 + num)}n{index} = {index}.5\n" for index in range(30))
        return f"{DEF}{before}{tests}{within}    return n0"

    assert compile_program(nested_branches(8), FEATURES).num_nodes < 40, "only what the component needs"
    error = refusal(nested_branches(14))
    assert "one operation too many, with the selections that branches become; wanted at most 400" in str(error)
    assert 32 <= error.line < 46, "one of the branchings"


def test_a_text_of_more_than_8_kb_is_refused() -> None:
    text = "after.x + 1  # " + "ä" * 4088
    assert len((text + "b").encode()) == 8192
    compile_program(text + "b", FEATURES)
    assert "8193 bytes; wanted a program of at most 8192" in str(refusal(text + "bc"))
    assert "bytes; wanted a program" in str(refusal("after.x" * 1_000_000))


def test_long_names_and_many_names_leave_the_message_on_its_line() -> None:
    check(f"after.{'y' * 4000}".replace("after", "‸after"), "an unknown feature")
    with pytest.raises(ProgramError) as info:
        compile_program("after.f", [f"feature_{index}" for index in range(64)])
    assert "feature_0, feature_1" in str(info.value)
    assert ", ..." in str(info.value)
    assert len(str(info.value)) <= 300


def test_refusals_travel_between_processes() -> None:
    error = refusal("after.x + foo")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.line, copy.column) == (str(error), 1, 11)
