"""`compile_program`: a text becomes a program, or an error that says what to write instead.

Invariant: the text is data: it is parsed and checked, and no part of it is ever run as Python.
"""

import ast
import textwrap
from collections.abc import Sequence

from xxhash import xxh3_64_hexdigest

from reward_models.programs.checking import checked
from reward_models.programs.language import FORMS, MAX_BYTES
from reward_models.programs.lowering import lowered
from reward_models.programs.parsing import parsed
from reward_models.programs.program import Program
from reward_models.programs.refusal import refusal_at


def compile_program(text: str, features: Sequence[str], actions: Sequence[str] = ()) -> Program:
    """The program that `text` is: one function `reward(before, after, start, action)` or `progress(state)`, or one
    expression over their parameters.

    `features` are the names that may be read, `actions` the words for the actions in the order of their numbers; none,
    and actions are compared with numbers only. Raises ProgramError: one line, with line and column, of what was met and
    what to write instead."""
    tree, source = parsed(text)
    form, body = checked(tree, source, features, actions)
    steps, components, outputs = lowered(form, body, source, actions)
    canonical = _canonical(form, body)
    return Program(
        form=form,
        text=canonical,
        program_id=xxh3_64_hexdigest(canonical.encode()),
        features=tuple(sorted({step.detail[1] for step in steps if isinstance(step.detail, tuple)})),
        components=components,
        num_nodes=len(steps),
        steps=steps,
        outputs=outputs,
    )


def _canonical(form: str, body: list[ast.stmt]) -> str:
    statements = ast.unparse(ast.Module(body, []))
    text = f"def {form}({', '.join(FORMS[form])}):\n{textwrap.indent(statements, '    ')}\n"
    if len(text.encode()) > MAX_BYTES:
        what = f"more than {MAX_BYTES} bytes once evenly formatted"
        raise refusal_at(1, 1, "", what, "fewer lines, or less deep ones")
    return text
