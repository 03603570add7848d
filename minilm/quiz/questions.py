"""All eight questions for a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable

from minilm.quiz.cache import kv_cache
from minilm.quiz.chinchilla import chinchilla
from minilm.quiz.equation import attention_equation, why_root_of_width
from minilm.quiz.families import families
from minilm.quiz.grading import Question
from minilm.quiz.mask import causal_mask
from minilm.quiz.merges import byte_pairs
from minilm.quiz.multihead import multi_head

COUNT = 8


def draw_questions(seed: int, numbers: Iterable[int] | None = None, text: str | None = None) -> list[Question]:
    """The questions of these numbers (all by default), drawn by the seed; each is the same whichever others are asked.

    text is what question 6 is about, drawn unless given. Raises UserError where it is of no use for that.
    """
    build = {
        1: attention_equation,
        2: why_root_of_width,
        3: causal_mask,
        4: kv_cache,
        5: chinchilla,
        6: lambda rng: byte_pairs(rng, text),
        7: families,
        8: multi_head,
    }
    return [build[number](random.Random(f"{seed}/{number}")) for number in numbers or range(1, COUNT + 1)]
