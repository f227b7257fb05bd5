"""The values of a program over whole batches: one numpy call for each of its steps, in float32.

Invariant: a value depends on its own step of the batch alone, and only columns that the program reads are touched.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reward_models.programs.program import Program

F32 = np.float32
CHUNK = 8192
"""Steps of the batch at once, so that what is between operations stays in the processor's cache."""


def _truth(compare: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *operands: compare(*operands).astype(F32)


def _near(a: np.ndarray, b: np.ndarray, width: np.ndarray) -> np.ndarray:
    distance = (a - b) / width
    return np.exp(-(distance * distance))


OPERATIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.true_divide,
    "//": np.floor_divide,
    "%": np.remainder,
    "**": np.power,
    "negative": np.negative,
    "<": _truth(np.less),
    "<=": _truth(np.less_equal),
    ">": _truth(np.greater),
    ">=": _truth(np.greater_equal),
    "==": _truth(np.equal),
    "!=": _truth(np.not_equal),
    "and": _truth(np.logical_and),
    "or": _truth(np.logical_or),
    "not": _truth(np.logical_not),
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sign": np.sign,
    "floor": np.floor,
    "where": np.where,
    "near": _near,
}


def evaluate_reward(
    program: Program,
    before: np.ndarray,
    after: np.ndarray,
    start: np.ndarray,
    action: np.ndarray,
    names: Sequence[str],
) -> np.ndarray:
    """[..., C] f32, the components of a `reward` program; NaN where one is not finite, and where a feature that the
    program reads is NaN.

    `before`, `after` and `start` are [..., F] f32 of the features `names` [F]; `action` [...] i64. Raises ValueError
    for other shapes, for a feature that is not among the names, and for a program of the other form."""
    return _evaluate(program, "reward", {"before": before, "after": after, "start": start}, action, names)


def evaluate_progress(program: Program, state: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[..., C] f32, the components of a `progress` program of states [..., F] f32; otherwise as `evaluate_reward`."""
    return _evaluate(program, "progress", {"state": state}, np.zeros(state.shape[:-1], np.int64), names)


def _evaluate(
    program: Program, form: str, moments: Mapping[str, np.ndarray], action: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    if program.form != form:
        raise ValueError(f"got a `{program.form}` program, wanted a `{form}` program")
    for moment, features in moments.items():
        if features.shape != (*action.shape, len(names)):
            wanted = f"{(*action.shape, len(names))}: actions by features"
            raise ValueError(f"`{moment}`: got features of shape {features.shape}, wanted {wanted}")
    actions = action.reshape(-1)
    components = np.empty((actions.size, len(program.outputs)), F32)
    reads = [step.detail for step in program.steps if isinstance(step.detail, tuple)]
    with np.errstate(all="ignore"):
        columns = {(moment, name): _column(moments[moment], names, name) for moment, name in reads}
        for begin in range(0, actions.size, CHUNK):
            part = slice(begin, begin + CHUNK)
            values: list[Any] = []  # [part] f32, or a number
            for operation, operands, detail in program.steps:
                value: Any
                if isinstance(detail, tuple):
                    value = columns[detail][part]
                elif isinstance(detail, float):
                    value = F32(detail)
                elif isinstance(detail, int):
                    value = np.equal(actions[part], detail).astype(F32)
                else:
                    value = OPERATIONS[operation](*(values[operand] for operand in operands))
                values.append(value)
            for component, place in enumerate(program.outputs):
                components[part, component] = values[place]
    for column in columns.values():  # comparisons would make a known number of an unknown one
        components[np.isnan(column)] = np.nan
    components[~np.isfinite(components)] = np.nan
    return components.reshape(*action.shape, len(program.outputs))


def _column(features: np.ndarray, names: Sequence[str], name: str) -> np.ndarray:
    """[N] f32, contiguous: the values of one feature."""
    if name not in names:
        raise ValueError(f"the program reads `{name}`, wanted one of the features {', '.join(names)}")
    return np.ascontiguousarray(features[..., names.index(name)], F32).reshape(-1)
