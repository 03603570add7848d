"""Question 3: the causal mask, what it keeps from whom, and why it lets a model train on all positions at once."""

from __future__ import annotations

import random

from minilm.quiz.grading import Evidence, Free, Grid, Number, Part, Question, choice

SAME_LOSS = 1e-5  # nats, between one pass over all positions and a pass for each, in float32


def causal_mask(rng: random.Random) -> Question:
    Tk = 5
    Tq = rng.choice((2, 3))
    T = rng.choice((6, 8, 9, 10, 12))
    moved = rng.choice((3, 4))
    square, tail = _mask(4, 4), _mask(Tq, Tk)
    parts: tuple[Part, ...] = (
        Grid(
            id="3a",
            topic="the 4 x 4 causal mask",
            prompt="Write the causal mask of 4 tokens: a row for each query, a column for each key.",
            answer=square,
            mistakes={
                _mask(4, 4, diagonal=-1): "A token may see itself: the diagonal is 1. (Row 1 would see nothing: 0/0.)",
                _mask(4, 4, diagonal=1): "Each token sees one too far: the one right after it is what it must predict.",
                ("1111",) * 4: "That hides nothing: BERT's attention, not a causal one.",
                _transposed(
                    square
                ): "Transposed: that shows the future. Rows are queries, and query 1 sees key 1 only.",
            },
            why="Query i sees keys j <= i: lower triangle and diagonal (Vaswani et al. 2017, section 3.2.3).",
        ),
        Grid(
            id="3b",
            topic="the mask of the last rows",
            prompt=f"Of {Tk} tokens only the last {Tq} are queries (the rest are cached). Write the {Tq} x {Tk} mask.",
            answer=tail,
            mistakes={
                _mask(
                    Tq, Tk, diagonal=0
                ): f"That aligns the first tokens. These queries are tokens {Tk - Tq + 1} to {Tk}.",
                ("1" * Tk,) * Tq: "Only the last query may see everything: the others come before it.",
                _mask(Tq, Tk, diagonal=Tk - Tq - 1): "A token may see itself: each row is one short.",
            },
            why=f"Query i of these is token {Tk - Tq} + i, so row i has {Tk - Tq} + i ones: the mask's last {Tq} rows.",
        ),
        Number(
            id="3c",
            topic="pairs that the mask leaves",
            prompt=f"How many query-key pairs does the causal mask of {T} tokens leave?",
            answer=T * (T + 1) // 2,
            tolerance=1e-6,
            unit="pairs",
            mistakes=(
                (T * T, "Those are all pairs, hidden ones too."),
                (T * (T - 1) // 2, "That is without the diagonal: every token sees itself as well."),
                (T * T / 2, "Half the square counts half the diagonal; the whole diagonal stays."),
            ),
            why=f"1 + 2 + ... + T = T(T + 1)/2 = {T * (T + 1) // 2}: about half the square, which fused kernels skip.",
        ),
        choice(
            rng,
            f"those of tokens {moved} and later",
            [
                ("all of them", "Earlier tokens cannot see it: their keys end before it."),
                (f"only that of token {moved}", "Later tokens attend to it, so they move too."),
                (
                    f"those after token {moved}, not its own",
                    "It attends to itself, and its own row holds its embedding.",
                ),
                (f"those before token {moved}", "The other way round: those are the ones that cannot see it."),
            ],
            id="3d",
            topic="what a changed token moves",
            prompt=f"You change token {moved} of 6 at the input of a GPT. Which outputs can move?",
            why="No path leads from a token to an earlier position, through any number of layers.",
        ),
        choice(
            rng,
            "before the softmax, by setting scores to -∞",
            [
                (
                    "after the softmax, by setting weights to 0",
                    "Then a row no longer sums to 1, and hidden scores still count in the sum below.",
                ),
                (
                    "before the softmax, by setting scores to 0",
                    "e^0 = 1: a score of 0 is an ordinary score. It takes -∞.",
                ),
                ("on the values, by setting rows of V to 0", "All queries share V: what one must not see another may."),
            ],
            id="3e",
            topic="where the mask is applied",
            prompt="Where does the mask act?",
            why="e^-∞ = 0: hidden keys get no weight, and the rest sums to 1 (Vaswani et al. 2017, section 3.2.3).",
        ),
        Free(
            id="3f",
            topic="why training is parallel",
            prompt="Why can a GPT learn from all positions of a text in one pass, though it writes token by token?",
            why="Recurrent networks must walk through time even in training (Vaswani et al. 2017, section 1).",
            model="In training the whole text is known. The mask makes position t a function of tokens 1 to t only, so "
            "one pass gives T honest predictions, each to be compared with the token that really follows. Nothing "
            "waits for a sampled token. Writing is sequential because token t + 1 must exist before t + 2 can see it.",
            points=(
                ("the true tokens are known beforehand (teacher forcing)", "In training, inputs are the true tokens."),
                ("position t depends on tokens up to t only", "The mask is what keeps each prediction honest."),
                ("one pass gives T predictions and T losses", "All T next-token losses come from one pass."),
                ("writing stays sequential", "Writing needs its own output as input: one token after another."),
            ),
        ),
    )
    seed = rng.randrange(2**31)
    return Question(3, "The causal mask", parts, lambda: _verify(Tq, Tk, T, moved, seed))


def _mask(rows: int, columns: int, diagonal: int | None = None) -> tuple[str, ...]:
    """Row r sees columns up to r + diagonal; by default the rows are the last ones."""
    reach = columns - rows if diagonal is None else diagonal
    return tuple("".join("1" if c <= r + reach else "0" for c in range(columns)) for r in range(rows))


def _transposed(grid: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("".join(column) for column in zip(*grid, strict=True))


def seen_by_attention(Tq: int, Tk: int) -> tuple[str, ...]:
    """The mask as kernels.reference applies it: with values that are the unit vectors, the output is the weights."""
    import torch

    from kernels.reference import causal_attention

    weights = causal_attention(torch.zeros(1, 1, Tq, Tk), torch.zeros(1, 1, Tk, Tk), torch.eye(Tk).view(1, 1, Tk, Tk))
    return tuple("".join("1" if w > 0 else "0" for w in row) for row in weights[0, 0].tolist())


def _verify(Tq: int, Tk: int, T: int, moved: int, seed: int) -> list[Evidence]:
    square, tail = seen_by_attention(4, 4), seen_by_attention(Tq, Tk)
    left = "".join(seen_by_attention(T, T)).count("1")
    lines = [f"{'4 of 4 tokens':22}{Tq} of {Tk} tokens"]
    for row in range(4):
        lines.append(f"{' '.join(square[row]):22}{' '.join(tail[row]) if row < Tq else ''}".rstrip())
    return [
        Evidence(
            "The mask, read off kernels.reference: with equal scores and unit vectors as values, the output is the "
            "weights, here 1 where they are above 0.",
            (*lines, f"of {T} tokens it leaves {left} of {T * T} pairs"),
            square == _mask(4, 4) and tail == _mask(Tq, Tk) and left == T * (T + 1) // 2,
        ),
        *_verify_on_a_model(moved, seed),
    ]


def _verify_on_a_model(moved: int, seed: int) -> list[Evidence]:
    import torch
    import torch.nn.functional as F

    import kernels
    from minilm.config import ModelConfig
    from minilm.model import GPT

    T, V = 6, 11
    g = torch.Generator().manual_seed(seed)
    config = ModelConfig(n_layers=3, n_heads=2, d_model=16, vocab_size=V, context_length=T)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config, kernels.select("reference")).eval()
    tokens = torch.randint(V, (1, T), generator=g)
    other = tokens.clone()
    other[0, moved - 1] = (other[0, moved - 1] + 1) % V
    targets = torch.randint(V, (T,), generator=g)
    with torch.no_grad():
        logits = model(tokens)[0]
        shift = (logits - model(other)[0]).abs().amax(dim=-1).tolist()
        together = F.cross_entropy(logits, targets)
        alone = torch.stack([F.cross_entropy(model(tokens[:, : t + 1])[0, -1:], targets[t : t + 1]) for t in range(T)])
    apart = (together - alone.mean()).abs().item()
    before, after = shift[: moved - 1], shift[moved - 1 :]
    return [
        Evidence(
            f"Token {moved} of {T} changed at the input of a random 3-layer GPT: before it not one bit moves.",
            (
                "token                    " + "".join(f"{t:>8}" for t in range(1, T + 1)),
                "largest move of a logit  " + "".join(f"{s:8.1g}" if s else f"{'0':>8}" for s in shift),
            ),
            max(before) == 0 and min(after) > 0,
        ),
        Evidence(
            f"One pass over {T} tokens gives the losses of {T} passes over ever longer beginnings.",
            (
                f"1 pass,   mean of {T} losses  {together.item():.7f}",
                f"{T} passes, mean of {T} losses  {alone.mean().item():.7f}    difference {apart:.0e}",
            ),
            apart < SAME_LOSS,
        ),
    ]
