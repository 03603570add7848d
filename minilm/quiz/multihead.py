"""Question 8: multi-head attention, of which the person writes the function in a file of their own."""

from __future__ import annotations

import inspect
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from minilm.quiz.grading import Evidence, Number, Part, Question, Shape, Verdict, choice

VASWANI = "Vaswani et al. 2017, section 3.2.2"
CLOSE = 1e-12  # between two float64 computations of the same small thing
RUNS = (
    "The file is run as a program, with your rights, in a Python process of its own, and stopped if it does not answer "
    "within 20 seconds. Give no file that you would not run yourself."
)

TEMPLATE = '''"""Multi-head attention, by you: question 8 of minilm quiz.

Test it with minilm quiz --code FILE, FILE being this one, which is then run as a program.
"""

import math

import torch


def multi_head_attention(x, w_qkv, w_out, n_heads):
    """Causal multi-head self-attention, without bias and without dropout.

    x        (B, T, C)  the input
    w_qkv    (3C, C)    the projections to queries, keys and values, C rows each, in this order; used as x @ w.T
    w_out    (C, C)     the projection of the output; used as y @ w.T
    n_heads  H          divides C; head h has the columns h*D to (h+1)*D, D = C / H

    Returns (B, T, C) in the dtype of x: each token attends to itself and to what stands before it.
    """
    raise NotImplementedError
'''


@dataclass(frozen=True, kw_only=True)
class Code(Part):
    """A file of the person's, which is run."""

    kind: ClassVar[str] = "code"
    seed: int

    def how(self) -> str:
        return "the path of your file; minilm quiz --template FILE writes one to begin with"

    def key(self) -> str:
        """The source of a right function, not a path."""
        from minilm.quiz import flaws

        return f"import math\nimport torch\n\n{plain_source(flaws.multi_head_attention)}"

    def check(self, text: str) -> Verdict:
        return self.run(text)[0]

    def run(self, text: str) -> tuple[Verdict, str]:
        """The verdict on the file of that path, and what the file printed. Raises Malformed where it is missing."""
        from minilm.quiz.trial import try_file

        return try_file(Path(text.strip()).expanduser(), self.seed)


def plain_source(function) -> str:
    """As a person would type it: without the types."""
    return inspect.getsource(function).replace(": Tensor", "").replace(": int", "").replace(" -> Tensor", "").rstrip()


def multi_head(rng: random.Random) -> Question:
    H, D = rng.choice((6, 8, 12)), rng.choice((16, 32, 64))
    B, T = rng.choice((2, 3)), rng.choice((5, 7, 9))
    C = H * D
    seed = rng.randrange(2**31)
    parts: tuple[Part, ...] = (
        Shape(
            id="8a",
            topic="shape of split heads",
            prompt=f"x is (B, T, C) = ({B}, {T}, {C}). In what shape do its queries go into attention, with {H} heads?",
            answer=(B, H, T, D),
            mistakes={
                (B, T, H, D): "One step before: the heads must stand next to the batch, so transpose(1, 2).",
                (B, T, C): "The heads are not split yet.",
                (B, H, T, C): f"The heads share the width: C / H = {D} each.",
                (B, H, D, T): "That is the transposed one, which keys take in Q Kᵀ.",
            },
            why=f"(B, T, C) -> (B, T, H, D) -> (B, H, T, D), D = C / H = {D}: the heads become a batch ({VASWANI}).",
        ),
        Number(
            id="8b",
            topic="parameters of attention",
            prompt=f"How many parameters has a multi-head attention of width {C}, without biases?",
            answer=4 * C * C,
            tolerance=1e-6,
            unit="parameters",
            mistakes=(
                (3 * C * C, "The output projection is missing: C x C more."),
                (4 * C * C * H, f"The heads share the width: {H} heads of width {D} are {C} columns together."),
                (4 * C * D, "That is one head's share."),
                (C * C, "That is one projection of four: queries, keys, values, output."),
                (12 * C * C, "That is a whole block, MLP included."),
            ),
            why=f"4·C² = {4 * C * C:,}: three projections in, one out, however many heads ({VASWANI}).",
        ),
        choice(
            rng,
            "each head can attend to other places for other reasons, at the cost of one wide head",
            [
                ("it makes attention cheaper", "The products cost the same: H heads of width C / H."),
                ("it lets the model have more parameters", "Their number does not depend on H: 4·C² in all."),
                ("each head learns from another part of the text", "Every head sees the whole text up to the token."),
            ],
            id="8c",
            topic="why several heads",
            prompt="Why several heads rather than one wide one?",
            why=f"One softmax gives one weighted mean; several heads give several ({VASWANI}).",
        ),
        Code(
            id="8d",
            topic="multi-head attention, written",
            prompt="Write the function multi_head_attention(x, w_qkv, w_out, n_heads) in a file, from memory.",
            seed=seed,
            why="It is compared with kernels.reference on seven cases, in float32 to 1e-4 of the largest number and in "
            "float64 to 1e-10.",
        ),
    )
    return Question(8, "Multi-head attention, written by you", parts, lambda: _verify(seed))


def _verify(seed: int) -> list[Evidence]:
    import torch.nn.functional as F

    from minilm.quiz.flaws import FLAWS, flawed, multi_head_attention
    from minilm.quiz.trial import draw_cases

    lines, holds = [f"{'case':20}{'B':>3}{'T':>3}{'C':>4}{'H':>3}   largest difference from the reference"], True
    cases = draw_cases(seed)
    for case in cases:
        (B, T, C), H = case.x.shape, case.n_heads
        x, w_qkv, w_out = (t.double() for t in (case.x, case.w_qkv, case.w_out))
        off = (multi_head_attention(x, w_qkv, w_out, H) - case.right()).abs().max().item()
        holds &= off < CLOSE
        lines.append(f"{case.name:20}{B:3}{T:3}{C:4}{H:3}   {off:.0e}")
    main = cases[0]
    x, w_qkv, w_out = (t.double() for t in (main.x, main.w_qkv, main.w_out))
    (B, T, C), H = x.shape, main.n_heads
    q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in (x @ w_qkv.T).chunk(3, dim=-1))
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ w_out.T
    off = (fused - main.right()).abs().max().item()
    lines.append(f"PyTorch's own scaled_dot_product_attention on the first case: {off:.0e}")
    wrong = []
    for name in ("no scale", "no mask", "heads not split", "softmax over queries", "no output projection"):
        option, value = FLAWS[name][0]
        y = flawed(x, w_qkv, w_out, H, **cast(Any, {option: value}))
        wrong.append(f"{name:24}{(y - main.right()).abs().max() / main.right().abs().max():6.0%} of the largest number")
    return [
        Evidence(
            "This function (minilm/quiz/flaws.py) is multi-head attention:",
            (*plain_source(multi_head_attention).splitlines(), "", *lines),
            holds and off < CLOSE and math.isfinite(off),
        ),
        Evidence(
            "How far mistakes lead away, on the first case:", tuple(wrong), all("nan" not in line for line in wrong)
        ),
    ]
