"""A rubric whose kinds of answers are put into two words, for what is tested with yes and no."""

import dataclasses

from llm_server.rubric import Rubric


def in_two_words(rubric: Rubric) -> Rubric:
    """The rubric with the answers " yes" and " no" in place of its kinds."""
    examples = tuple(dataclasses.replace(example, kind="") for example in rubric.examples)
    return dataclasses.replace(
        rubric, positive=" yes", negative=" no", positive_kinds=(), negative_kinds=(), answer_label="Progress:", examples=examples
    )
