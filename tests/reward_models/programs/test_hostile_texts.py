"""Any text compiles or is refused in one line, at once; nothing that leads out of a sandbox of Python compiles."""

import random
import re
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from reward_models.programs.compiling import compile_program
from reward_models.programs.evaluation import evaluate_progress, evaluate_reward
from reward_models.programs.program import Program
from reward_models.programs.refusal import ProgramError
from tests.reward_models.programs.random_programs import ACTIONS, FEATURES, Writer

MAX_S = 0.05


def compiled(text: str) -> tuple[Program | ProgramError, float]:
    """The program or its refusal, and the seconds of processor time that it took."""
    begin = time.thread_time()
    try:
        return compile_program(text, FEATURES, ACTIONS), time.thread_time() - begin
    except ProgramError as error:
        return error, time.thread_time() - begin


def compiles(text: str) -> bool:
    """Whether it does; the only error is a well-formed refusal, in time. What compiles has a canonical text and can
    be evaluated."""
    program, used_s = compiled(text)
    if used_s > MAX_S:  # once more: it may have been a garbage collection
        _, used_s = compiled(text)
    assert used_s < MAX_S, text
    if isinstance(program, ProgramError):
        check_refusal(program, text)
        return False
    assert compile_program(program.text, FEATURES, ACTIONS) == program
    state = np.ones((2, len(FEATURES)), np.float32)
    if program.form == "progress":
        values = evaluate_progress(program, state, FEATURES)
    else:
        values = evaluate_reward(program, state, state, state, np.zeros(2, np.int64), FEATURES)
    assert values.shape == (2, len(program.components))
    assert not np.isinf(values).any()
    return True


def check_refusal(error: ProgramError, text: str) -> None:
    message, lines = str(error), text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert message.isprintable(), text
    assert len(message) <= 300
    assert message.startswith(f"line {error.line}, column {error.column}: got ")
    assert 1 <= error.line <= len(lines), (text, message)
    assert 1 <= error.column <= len(lines[error.line - 1]) + 1, (text, message)


SNIPPETS = (
    *("(", ")", "[", "]", "{", "}", ":", ",", ".", "**", "//", "==", "=", "+=", " if ", " else ", " and ", "not ", "-"),
    *("\n", "\n    ", "\t", ";", "#", "'", '"', '"""', "\\", "\\\n", "\r", "\0", "\ud800", "\u00a0", "\ufeff", "é"),
    "\U0001d431",
    *("lambda: ", "yield ", "await ", "import os", "for x in y", "in ", "is ", ":=", "->", "@", "...", "f'{x}'", "b''"),
    *("1e999", "9" * 4400, "0x" + "f" * 300, "1j", "0_0", "01", "0b2", "1if 1else 2", "None", "True", "__class__"),
    *("after", "state.x", "action", "'north'", "action == 'north'", "np.", "abs(", "max(1, 2)", "return 1", "pass"),
    *("\\N{BULLET}", "'\\d'", "(" * 250, "-" * 300, "not " * 300, "x = " * 50, "if 1:\n" * 30, "1 < " * 80, "x." * 200),
)  # fmt: skip


TOKEN = re.compile(r"\w+|\S")


def other_token(text: str, generator: random.Random) -> str:
    """`text` with one of its tokens in place of another."""
    tokens = list(TOKEN.finditer(text))
    old = generator.choice(tokens)
    new = generator.choice([token for token in tokens if token[0][0].isalpha() == old[0][0].isalpha()])
    return text[: old.start()] + new[0] + text[old.end() :]


def mutated(text: str, others: list[str], generator: random.Random) -> str:
    for _ in range(generator.choice((1, 1, 2, 4))):
        begin, end = sorted(generator.randrange(len(text) + 1) for _ in range(2))
        kind = generator.randrange(14)
        if kind > 5:
            text = other_token(text, generator)
        elif kind == 0:
            text = text[:begin] + text[min(end, begin + 10) :]
        elif kind == 1:
            text = text[:end] + text[begin:]
        elif kind == 2:
            text = text[:begin] + text[begin:end][::-1] + text[end:]
        elif kind == 3:
            text = text[:begin] + text[begin : begin + 12] * generator.randint(2, 300) + text[end:]
        elif kind == 4:
            other = generator.choice(others)
            text = text[:begin] + other[len(other) // 2 :]
        else:
            text = text[:begin] + generator.choice(SNIPPETS) + text[begin if kind == 5 else end :]
    return text


@pytest.mark.parametrize("part", range(4))
def test_mutated_programs_compile_or_are_refused_in_time(part: int) -> None:
    writer, generator = Writer(200 + part), random.Random(part)
    texts = sorted((writer.program() for _ in range(100)), key=len)[:50]
    num_compiled = sum(compiles(mutated(generator.choice(texts), texts, generator)) for _ in range(2500))
    assert 50 < num_compiled < 1500, "both happen"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "(" * 4000 + "state.x" + ")" * 4000,
        "abs(" * 199 + "state.x" + ")" * 199,
        "-" * 8000 + "state.x",
        "not " * 2000 + "state.x",
        "state.x + " * 800 + "1",
        "state.x" + ".x" * 4000,
        "abs" + "()" * 4000,
        "state.x" + "[0]" * 2600,
        "x if state.x else " * 450 + "1",
        "state.x ** " * 700 + "1",
        "state.x < " * 800 + "1",
        "lambda: " * 1000 + "1",
        "[" * 150 + "]" * 150,
        "{1:" * 150 + "1" + "}" * 150,
        "f(a=" * 150 + "1 1" + ")" * 150,
        "f'{" * 100 + "1" + "}'" * 100,
        "a " * 4000,
        "a, " * 2700,
        "a; " * 2700,
        "a = " * 2000 + "1",
        "f(" + "a=1, " * 1600 + ")",
        "def progress(state):\n if state.x:\n  y = 1\n" + " elif state.x:\n  y = 1\n" * 370,
        "def progress(state):\n" + "".join(" " * depth + "if 1:\n" for depth in range(1, 110)),
        "@a\n" * 2700,
        "\n" * 8000,
        "#" * 8000,
        " " * 8000 + "state",
        "\\\n" * 4000,
        "'" * 8000,
        '"""' * 2700,
        "9" * 5000 + " * state.x",
        "state.x ** " + "9" * 5000,
        "10 ** 10 ** 10 + state.x",
        "state.x * 1" + "0" * 8000,
        "1e" + "9" * 5000 + " * state.x",
        "0." + "0" * 8000 + "1 + state." ,
        "state.\0x",
        "state.x\0",
        "state.x + '\ud800'",
        "state.x # \udfff",
        "\ufeffstate.x + ",
        "state\u00a0.x",
        "state.x \u2028 + 1",
        "\uff53tate.\uff59\uff59",
        "state.x + '\\N{NO SUCH NAME}'",
        "state.x + '\\ud800'",
        "state.x + 1_",
        "",
        "\n\t \n",
        "'text'",
        "...",
    ],
    ids=lambda text: repr(text[:24]),
)  # fmt: skip
def test_hostile_texts_are_refused(text: str) -> None:
    assert not compiles(text)


ESCAPES = [
    "__import__('os').system('id')",
    "().__class__.__bases__[0].__subclasses__()",
    "''.__class__.__mro__[1].__subclasses__()[40]('/etc/passwd').read()",
    "(lambda: 0).__globals__['__builtins__']",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'catch_warnings'][0]()._module",
    "eval('__import__(\"os\")')",
    "exec('import os')",
    "compile('1', 'a', 'eval')",
    "open('/etc/passwd').read()",
    "getattr(after, '__class__')",
    "after.__class__",
    "after.x.__class__.__mro__",
    "after.x.tofile('/tmp/x')",
    "f'{after.__class__.__init__.__globals__}'",
    "'{0.__class__.__init__.__globals__}'.format(after)",
    "'%s' % after",
    "globals()['__builtins__']",
    "locals()",
    "vars(after)",
    "__builtins__",
    "breakpoint()",
    "input()",
    "exit()",
    "print.__self__.eval('1')",
    "abs.__self__.__import__('os')",
    "np.load('x.npy', allow_pickle=True)",
    "np.fromfile('/etc/passwd')",
    "np.f2py.os.system('id')",
    "np.abs.__reduce__()",
    "torch.load('x.pt')",
    "math.__loader__.load_module('os')",
    "math.__spec__",
    "(yield).gi_frame.f_back",
    "(x for x in [1]).gi_frame.f_back.f_globals",
    "max(*after.__dict__)",
    "clip(after.x, 0, (lambda: 1)())",
    "near(after.x, exec('1'), 1)",
    "after.x if __import__('os') else 0",
    "{'a': after.x, **globals()}",
    "{exec('1'): after.x}",
    "type('X', (), {'__add__': lambda a, b: 1})() + after.x",
    "(x := __import__('os')).system('id')",
    "__\uff49mport__('os')",
    "\uff45val('1')",
    "after.\\\n__class__",
    "action == __import__('os')",
    "action == ().__class__",
    "import os",
    "from os import system as abs",
    "# -*- coding: unicode_escape -*-\n# \\u000aimport os",
    "@exec\n@input\nclass X: pass",
    "class X(metaclass=print): pass",
    "def reward(before, after, start, action=__import__('os')):\n    return after.x",
    "def reward(before: exec('1'), after, start, action):\n    return after.x",
    "def reward(before, after, start, action) -> (yield):\n    return after.x",
    "def reward(before, after, start, action):\n    x: exec('1') = 1\n    return after.x",
    "@exec\ndef reward(before, after, start, action):\n    return after.x",
    "def reward(before, after, start, action):\n    return after.x\nexec('1')",
    "def reward(before, after, start, action):\n    import os\n    return os.system('id')",
    "def progress(state):\n    try:\n        1 / 0\n    except Exception as e:\n        e.__traceback__\n    return 1",
    "def reward(before, after, start, action):\n    with open('x') as f:\n        pass\n    return 1",
    "def reward(before, after, start, action):\n    after.__class__ = 1\n    return 1",
    "def reward(before, after, start, action):\n    global abs\n    abs = 1\n    return 1",
    "def reward(before, after, start, action):\n    abs.__call__ = 1\n    return 1",
    "def progress(state):\n    match state:\n        case object(__class__=x):\n            pass\n    return 1",
    "def progress(state):\n    for x in ().__class__.__base__.__subclasses__(): pass\n    return 1",
    "def reward(before, after, start, action):\n    def abs(x): return x\n    return abs(after.x)",
    "async def reward(before, after, start, action):\n    return await after.x",
    "def reward(before, after, start, action):\n    after['x'] = 1\n    return 1",
    "def reward(before, after, start, action):\n    del after\n    return 1",
]  # fmt: skip


@pytest.mark.parametrize("text", ESCAPES, ids=range(len(ESCAPES)))
def test_ways_out_of_a_python_sandbox_are_refused(text: str) -> None:
    assert not compiles(text)


def test_the_names_of_escapes_are_no_words_of_the_language_as_local_names_either() -> None:
    program = compile_program("def progress(state):\n    __class__ = state.x\n    return abs(__class__)", FEATURES)
    assert [step.operation for step in program.steps] == ["feature", "abs"]


def test_odd_escapes_warn_nobody() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        compile_program("def progress(state):\n    '''Of \\alpha.'''\n    return state.x if 1else 0", FEATURES)
    assert not heard


def test_texts_are_refused_in_threads_and_under_deep_stacks_too() -> None:
    outcomes: list[bool] = []

    def below(depth: int) -> bool:
        return below(depth - 1) if depth else compiles("(" * 150 + "state.x" + ")" * 150 + " + " + "-" * 5000 + "1")

    thread = threading.Thread(target=lambda: outcomes.append(below(sys.getrecursionlimit() // 2)))
    thread.start()
    thread.join()
    assert outcomes == [False]
