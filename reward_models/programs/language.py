"""The words and limits of the language of reward programs.

    def reward(before, after, start, action):            def progress(state):
        nearer = before.distance - after.distance            if state.has_key:
        if action == "toggle":                                   done = 0.5
            nearer -= 0.01                                   else:
        return {"nearer": 0.1 * nearer,                          done = near(state.distance, 0, 5) / 2
                "opened": after.doors > before.doors}        return done

or one expression, as `before.distance - after.distance`. Every value is a number per step, in float32. Comparisons,
`and`, `or` and `not` give 1 or 0; what is not 0 counts as true. `//` and `%` are floored. `x ** 2` to `x ** 4` are
products. `near(a, b, width)` is exp(-((a - b) / width)^2). `min`, `max` and `clip` of NaN are NaN.

Invariant: nothing here depends on an environment; what it calls its features and actions is given to the compiler.
"""

FORMS = {"reward": ("before", "after", "start", "action"), "progress": ("state",)}
"""Name of a program's function -> its parameters. All but `action` hold the features of one moment of each step: before
the action, after it, and at the start of the episode."""
ACTION = "action"
GIVEN = frozenset(name for names in FORMS.values() for name in names)

MANY = 64
FUNCTIONS = {
    "abs": (1, 1),
    "min": (2, MANY),
    "max": (2, MANY),
    "clip": (3, 3),
    "sqrt": (1, 1),
    "exp": (1, 1),
    "log": (1, 1),
    "tanh": (1, 1),
    "sign": (1, 1),
    "floor": (1, 1),
    "where": (3, 3),
    "near": (3, 3),
}
"""Name -> the least and the greatest number of arguments."""
USES = {"clip": "clip(x, low, high)", "where": "where(condition, a, b)", "near": "near(a, b, width)"}
"""Name -> how it is written, of functions whose arguments have different meanings."""
PREFIXES = frozenset({"np", "numpy", "math", "torch"})
"""Accepted before a function's name, and dropped."""

MAX_BYTES = 8192
MAX_NODES = 400
"""Statements, operations, features and numbers as written; and operations, features and numbers as evaluated, where
branches become selections and equal operations are one."""
MAX_DEPTH = 40
MAX_NAMES = 40
MAX_COMPONENTS = 16
MAX_NUMBER = 1e6
MAX_EXPONENT = 4
COMPONENT_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,31}"
