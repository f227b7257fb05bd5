"""Canonical text: one for all ways of writing a program, and its own."""

import pytest

from reward_models.programs.compiling import compile_program
from reward_models.programs.refusal import ProgramError
from tests.reward_models.programs.random_programs import ACTIONS, FEATURES, Writer

WRITTEN = '''
def reward(before: "State", after: State, start, action: int) -> dict[str, float]:
    """Pays steps towards the goal. \\alpha"""
    # Nearer is better.
    nearer: float = (before.distance_to_goal) - after.distance_to_goal
    if 'pick up'==action: nearer += np.abs(+0.10)
    elif action != north:
        pass
    return {"nearer": 1.0*nearer, "opened": True * (after.doors_open>before.doors_open)}
'''
CANONICAL = """def reward(before, after, start, action):
    nearer = before.distance_to_goal - after.distance_to_goal
    if action == 'pick up':
        nearer = nearer + abs(0.1)
    elif action != 'north':
        pass
    return {'nearer': 1 * nearer, 'opened': 1 * (after.doors_open > before.doors_open)}
"""


def test_canonical_text_is_the_program_without_what_means_nothing() -> None:
    program = compile_program(WRITTEN, FEATURES, ACTIONS)
    assert program.text == CANONICAL
    assert (program.form, program.components) == ("reward", ("nearer", "opened"))
    assert program.features == ("distance_to_goal", "doors_open")


def test_the_canonical_text_of_canonical_text_is_itself() -> None:
    writer = Writer(100)
    for _ in range(300):
        program = compile_program(writer.program(), FEATURES, ACTIONS)
        assert compile_program(program.text, FEATURES, ACTIONS) == program


@pytest.mark.parametrize(
    "text",
    [
        "state.x+state.y",
        "  (state.x + state.y)  ",
        "\r\nstate.x + state.y\r\n",
        "def progress(state):\n\treturn state.x + state.y",
        "    def progress(state) -> float:\n        return state.x + state.y\n",
        "'''A module's docstring.'''\ndef progress(state):\n    'And its own.'\n    return state.x + state.y  # end",
        "def progress(state): return (state.x +\n    state.y)",
    ],
)
def test_ways_of_writing_one_program_have_one_identity(text: str) -> None:
    program = compile_program(text, FEATURES)
    assert program == compile_program("state.x + state.y", FEATURES)
    assert program.text == "def progress(state):\n    return state.x + state.y\n"
    assert program.components == ("progress",)
    assert len(program.program_id) == 16


def test_other_programs_have_other_identities() -> None:
    texts = ("state.x", "state.y", "state.x + 0", "-state.x", "after.x", "{'x': state.x}", "0.1 * state.x")
    assert len({compile_program(text, FEATURES).program_id for text in texts}) == len(texts)


def test_parentheses_stay_where_the_meaning_needs_them() -> None:
    for text in (
        "(-state.x) ** 2",
        "-state.x ** 2",
        "state.x - (state.y - 1)",
        "(state.x < 1) < 2",
        "not (not state.x)",
    ):
        program = compile_program(text, FEATURES)
        assert compile_program(program.text, FEATURES) == program
    assert compile_program("(-state.x) ** 2", FEATURES).text != compile_program("-state.x ** 2", FEATURES).text


def test_what_is_within_the_limits_only_as_it_was_written_is_refused() -> None:
    nested = "".join("\n" + " " * depth + f"if state.x > {depth}:" for depth in range(1, 36))
    lines = ";".join(f"a={number}" for number in range(60))
    with pytest.raises(ProgramError, match="bytes once evenly formatted"):
        compile_program(f"def progress(state):\n a=0{nested}\n{' ' * 36}{lines}\n return a", FEATURES)
