"""What programs pay: against a scalar reference, over shapes, with unknown features, and how fast."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest

from reward_models.programs.compiling import compile_program
from reward_models.programs.evaluation import evaluate_progress, evaluate_reward
from reward_models.programs.program import Program
from tests.reward_models.programs.random_programs import ACTIONS, FEATURES, Writer, states
from tests.reward_models.programs.reference import Walk

NUM_STATES = 3


def evaluate(program: Program, moments: dict[str, np.ndarray], action: np.ndarray) -> np.ndarray:
    if program.form == "progress":
        return evaluate_progress(program, moments["state"], FEATURES)
    return evaluate_reward(program, moments["before"], moments["after"], moments["start"], action, FEATURES)


def moments_of(seed: int, num: int = NUM_STATES) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    moments = {name: states(generator, num) for name in ("before", "after", "start", "state")}
    return moments, generator.integers(0, len(ACTIONS), num)


def paid(text: str, **features: float) -> float:
    """What a `progress` program pays in the state that has these features, and 0 for all others."""
    state = np.array([features.get(name, 0.0) for name in FEATURES], np.float32)
    (value,) = evaluate_progress(compile_program(text, FEATURES), state, FEATURES)
    return float(value)


@pytest.mark.parametrize("part", range(4))
def test_programs_pay_what_a_walk_over_their_text_pays_step_by_step(part: int) -> None:
    writer, num_known = Writer(part), 0
    for seed in range(500):
        text = writer.program()
        moments, action = moments_of(1000 * part + seed)
        program = compile_program(text, FEATURES, ACTIONS)
        got, reads = evaluate(program, moments, action), [one.detail for one in program.steps]
        for step in range(NUM_STATES):
            of_step = {name: dict(zip(FEATURES, values[step], strict=True)) for name, values in moments.items()}
            with np.errstate(all="ignore"):
                wanted = Walk(of_step, int(action[step]), ACTIONS).components(text)
            if any(np.isnan(of_step[read[0]][read[1]]) for read in reads if isinstance(read, tuple)):
                wanted = [np.nan] * len(wanted)
            assert np.array_equal(got[step], np.float32(wanted), equal_nan=True), (text, got[step], wanted)
        num_known += int(np.isfinite(got).any())
    assert num_known > 300, "most programs pay something"


def test_components_keep_the_shape_of_the_batch() -> None:
    text = "{'a': after.x - before.x, 'b': action == 'kick', 'c': 2}"
    program = compile_program(text, FEATURES, ACTIONS)
    moments, action = moments_of(0, 24)
    flat = evaluate(program, moments, action)
    assert flat.shape == (24, 3)
    assert flat.dtype == np.float32
    tall = {name: values.reshape(4, 6, -1) for name, values in moments.items()}
    np.testing.assert_array_equal(evaluate(program, tall, action.reshape(4, 6)), flat.reshape(4, 6, 3))
    one = {name: values[0] for name, values in moments.items()}
    np.testing.assert_array_equal(evaluate(program, one, action[0]), flat[0])
    none = {name: values[:0] for name, values in moments.items()}
    assert evaluate(program, none, action[:0]).shape == (0, 3)


def test_large_batches_pay_as_small_ones_do_and_nothing_is_written_to_the_features() -> None:
    program = compile_program("exp(-abs(after.x)) * (before.y > start.y) + near(after.turn, 3, 2)", FEATURES)
    moments, action = moments_of(1, 20_000)
    for values in moments.values():
        values.flags.writeable = False  # as arrays from the object store are
    got = evaluate(program, moments, action)
    part = {name: values[8000:8400] for name, values in moments.items()}
    np.testing.assert_array_equal(evaluate(program, part, action[8000:8400]), got[8000:8400])


def test_columns_that_are_not_read_do_not_matter() -> None:
    program = compile_program("after.x - before.x", FEATURES)
    moments, action = moments_of(2)
    wanted = evaluate(program, moments, action)
    for values in moments.values():
        values[:, 1:] = np.nan
    np.testing.assert_array_equal(evaluate(program, moments, action), wanted)
    assert program.features == ("x",)


def test_features_are_found_by_their_names() -> None:
    program = compile_program("state.y", FEATURES)
    state = np.array([[1.0, 2.0]], np.float32)
    assert evaluate_progress(program, state, ("y", "other")) == [[1.0]]
    with pytest.raises(ValueError, match="the program reads `y`, wanted one of the features a, b"):
        evaluate_progress(program, state, ("a", "b"))


def test_wrong_shapes_and_forms_are_refused() -> None:
    program = compile_program("after.x", FEATURES)
    moments, action = moments_of(3)
    with pytest.raises(ValueError, match=r"`after`: got features of shape \(2, 5\), wanted \(3, 5\)"):
        evaluate(program, {**moments, "after": moments["after"][:2]}, action)
    with pytest.raises(ValueError, match="got a `reward` program, wanted a `progress` program"):
        evaluate_progress(program, moments["state"], FEATURES)


@pytest.mark.parametrize(
    ("text", "features", "wanted"),
    [
        ("1 / state.x", {}, np.nan),
        ("-1 / state.x", {}, np.nan),
        ("state.x % state.y", {"x": 5}, np.nan),
        ("sqrt(state.x)", {"x": -1}, np.nan),
        ("log(state.x)", {}, np.nan),
        ("exp(state.x)", {"x": 100}, np.nan),
        ("state.x ** 0.5", {"x": -4}, np.nan),
        ("clip(1 / state.x, 0, 1)", {}, 1.0),
        ("0 if state.x < 1 else 1 / state.y", {}, 0.0),
        ("where(state.x, 1 / state.x, 0.25)", {}, 0.25),
        ("state.x", {"x": np.nan}, np.nan),
        ("state.x > 0", {"x": np.nan}, np.nan),
        ("1 if state.x else 0", {"x": np.nan}, np.nan),
        ("state.y if state.turn else state.x", {"x": np.nan, "turn": 1}, np.nan),
        ("max(state.x, 1)", {"x": np.nan}, np.nan),
        ("min(1, state.x)", {"x": np.nan}, np.nan),
        ("clip(state.x, 0, 1)", {"x": np.nan}, np.nan),
        ("state.x // 2", {"x": -3}, -2.0),
        ("state.x % 3", {"x": -1}, 2.0),
        ("state.x % -3", {"x": 1}, -2.0),
        ("-state.x ** 2", {"x": 3}, -9.0),
        ("state.x ** -1", {"x": 4}, 0.25),
        ("0 < state.x < 3", {"x": 2}, 1.0),
        ("0 < state.x < 3", {"x": 3}, 0.0),
        ("3 > state.x != 2", {"x": 2}, 0.0),
        ("(state.x > 1) + (state.x > 2) + (state.x > 3)", {"x": 3}, 2.0),
        ("-(state.x > 1)", {"x": 2}, -1.0),
        ("(state.x > 1) - (state.y > 1)", {"y": 2}, -1.0),
        ("(state.x >= 0) / (state.y + 4)", {}, 0.25),
        ("exp(state.x > 1)", {}, 1.0),
        ("state.x and state.y", {"x": 5, "y": 7}, 1.0),
        ("state.x or state.y", {"x": 5}, 1.0),
        ("not state.x", {"x": 5}, 0.0),
        ("max(state.x, 2, state.y)", {"x": 1, "y": 9}, 9.0),
        ("clip(state.x, -1, 1)", {"x": -4}, -1.0),
        ("near(state.x, 3, 2)", {"x": 5}, float(np.exp(np.float32(-1.0)))),
        ("state.turn + 1", {"turn": 16_777_216}, 16_777_216.0),
    ],
)
def test_arithmetic_is_that_of_python_in_float32(text: str, features: dict[str, float], wanted: float) -> None:
    np.testing.assert_equal(paid(text, **features), wanted)


def test_equal_operations_are_evaluated_once_and_unneeded_ones_never() -> None:
    text = """
def progress(state):
    unused = log(state.y)
    root = sqrt(state.x) + sqrt(state.x)
    return root * root
"""
    program = compile_program(text, FEATURES)
    assert [step.operation for step in program.steps] == ["feature", "sqrt", "+", "*"]
    assert (program.num_nodes, program.features) == (4, ("x",))


def test_programs_travel_between_processes() -> None:
    program = compile_program("0.1 * after.x", FEATURES)
    assert pickle.loads(pickle.dumps(program)) == program
    assert replace(program, text="") != program


def test_a_hundred_nodes_take_at_most_half_a_microsecond_a_step() -> None:
    terms = [f"c{index} = {index + 1.5} * after.x - before.y" for index in range(13)]
    terms += [f"d{index} = tanh(c{index}) if c{index} > after.turn else abs(c{index})" for index in range(9)]
    names = [*(f"c{index}" for index in range(13)), *(f"d{index}" for index in range(9))]
    body = "\n    ".join([*terms, f"return {' + '.join(names)}"])
    program = compile_program(f"def reward(before, after, start, action):\n    {body}", FEATURES)
    assert 95 <= program.num_nodes <= 105
    moments, action = moments_of(4, 2048)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        evaluate(program, moments, action)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) / 2048 < 0.5e-6
