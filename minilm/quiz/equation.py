"""Questions 1 and 2: the attention equation term by term, and why it divides by the square root of the head width."""

from __future__ import annotations

import math
import random

from minilm.quiz.grading import Evidence, Free, Number, Part, Question, Shape, choice, tell

VASWANI = "Vaswani et al. 2017, section 3.2.1"
CLOSE = 1e-12  # between two float64 computations of the same small thing


def attention_equation(rng: random.Random) -> Question:
    B, H, D = rng.choice((2, 3)), rng.choice((4, 6, 8)), rng.choice((10, 16, 20))
    Tq = rng.choice((5, 7))
    Tk = Tq + rng.choice((4, 6))
    parts: tuple[Part, ...] = (
        Free(
            id="1a",
            topic="the attention equation",
            prompt="Write the equation of scaled dot-product attention and say what each term does.",
            why=f"Attention is a lookup by similarity: soft, so that it can be differentiated ({VASWANI}, equation 1).",
            model="Attention(Q, K, V) = softmax(Q Kᵀ / √D) V. Q Kᵀ compares every query with every key; dividing by √D "
            "keeps the scores' variance at 1; softmax turns each query's row of scores into weights that sum to 1; "
            "the product with V is the weighted mean of the values. Q, K and V are three linear maps of the input.",
            points=(
                ("Q Kᵀ: a score for each pair of a query and a key", "Q Kᵀ holds one dot product a query-key pair."),
                (
                    "divided by √D, D being the width of one head",
                    "The scores are divided by √D, D the width of a head.",
                ),
                ("softmax over the keys: each query's weights sum to 1", "Softmax runs over the keys, row by row."),
                ("times V: a weighted mean of the values", "The weights then average the rows of V."),
                ("Q, K, V are learned linear maps of the input", "Q, K and V come from the input by three matrices."),
            ),
        ),
        Shape(
            id="1b",
            topic="shape of the scores",
            prompt="What is the shape of Q Kᵀ?",
            answer=(B, H, Tq, Tk),
            mistakes={
                (
                    B,
                    H,
                    Tk,
                    Tq,
                ): "That is K Qᵀ. Rows are queries: softmax along a row then weighs the keys of one query.",
                (B, H, D, D): "That is Qᵀ K, which sums over time. The sum runs over the head width D, so D goes.",
                (B, H, Tq, D): "That is Q itself, and the output. The sum over D leaves one number a query-key pair.",
                (B, H, Tq, Tq): "There are more keys than queries here: the last axis counts keys.",
                (B, Tq, Tk): "Every head has scores of its own: the head axis stays.",
            },
            why=f"(B, H, Tq, D) times (B, H, D, Tk): the head width is summed over, queries and keys stay ({VASWANI}).",
        ),
        Shape(
            id="1c",
            topic="shape of the output",
            prompt="What is the shape of softmax(Q Kᵀ / √D) V, before the heads are merged?",
            answer=(B, H, Tq, D),
            mistakes={
                (B, H, Tk, D): "That is V. One output row comes for each query, not for each key.",
                (B, H, Tq, Tk): "Those are the weights. Multiplied by V, the key axis is summed over.",
                (B, Tq, H * D): "That is the output with its heads merged: one step further.",
            },
            why="(B, H, Tq, Tk) times (B, H, Tk, D): the keys are summed over, one row a query stays.",
        ),
        choice(
            rng,
            "the last: over the keys of one query",
            [
                (
                    "the third: over the queries",
                    "Then a key's weights sum to 1, and a query might get next to nothing.",
                ),
                ("the second: over the heads", "Heads do not compete: each has a distribution of its own."),
                ("the last two together", "Then all queries share one unit of weight; each query has one of its own."),
            ],
            id="1d",
            topic="axis of the softmax",
            prompt="Over which axis of the scores does the softmax run?",
            why=f"Each query distributes one unit of weight over the keys it may see ({VASWANI}).",
        ),
    )
    setting = f"Q is (B, H, Tq, D) = ({B}, {H}, {Tq}, {D}); K and V are (B, H, Tk, D) = ({B}, {H}, {Tk}, {D})."
    seed = rng.randrange(2**31)
    return Question(1, "The attention equation", parts, lambda: _verify_equation(B, H, Tq, Tk, D, seed), setting)


def _verify_equation(B: int, H: int, Tq: int, Tk: int, D: int, seed: int) -> list[Evidence]:
    import torch

    from kernels.reference import causal_attention

    g = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, Tq, D, generator=g, dtype=torch.float64)
    k, v = (torch.randn(B, H, Tk, D, generator=g, dtype=torch.float64) for _ in range(2))
    scores = q @ k.transpose(-2, -1)
    later = torch.ones(Tq, Tk, dtype=torch.bool).triu(Tk - Tq + 1)
    weights = (scores / math.sqrt(D)).masked_fill(later, -math.inf).softmax(dim=-1)
    output = weights @ v
    shapes = tuple(
        f"{name:28}{tuple(x.shape)!s}"
        for name, x in (("Q", q), ("K", k), ("Q Kᵀ", scores), ("weights", weights), ("output", output))
    )
    off = (output - causal_attention(q, k, v)).abs().max().item()
    sums = (weights.sum(dim=-1) - 1).abs().max().item()
    inside = bool((output.amax(2) <= v.amax(2)).all() and (output.amin(2) >= v.amin(2)).all())
    wrong_axis = (scores / math.sqrt(D)).softmax(dim=-2).sum(dim=-1)
    return [
        Evidence(
            "The equation, term by term on random tensors, is kernels.reference.causal_attention (with the mask of "
            "question 3).",
            (*shapes, f"{'largest difference':28}{off:.1e}"),
            off < CLOSE and scores.shape == (B, H, Tq, Tk) and output.shape == (B, H, Tq, D),
        ),
        Evidence(
            "Each query's weights sum to 1, so its output lies within the range of the values.",
            (
                f"softmax over keys:    |sum - 1| at most {sums:.1e}; outputs within range: {inside}",
                f"softmax over queries: a query's weights sum to {wrong_axis.min():.2f} ... {wrong_axis.max():.2f}",
            ),
            sums < CLOSE and inside,
        ),
    ]


def why_root_of_width(rng: random.Random) -> Question:
    D = rng.choice((20, 32, 48, 64, 96, 128))
    sd = rng.choice((2, 3))
    top = rng.choice((2, 2.5, 3))
    p = rng.choice((0.8, 0.9, 0.95, 0.98))
    largest = math.exp(top - 1) / (math.exp(top - 1) + 3)
    parts: tuple[Part, ...] = (
        Number(
            id="2a",
            topic="variance of a dot product",
            prompt=f"The {D} entries of q and of k are independent, with mean 0 and variance 1. Variance of q·k?",
            answer=D,
            mistakes=(
                (math.sqrt(D), "That is its standard deviation."),
                (1, "One product qᵢkᵢ has variance 1; q·k sums D independent ones, and variances add."),
                (D**2, "Variances add, once a term: they are not multiplied by each other."),
                (2 * D, "var(qᵢkᵢ) = var(qᵢ)·var(kᵢ) = 1 for means of 0: a product, not a sum."),
            ),
            why=f"var(q·k) = Σ var(qᵢ)·var(kᵢ) = D: variances of independent terms add ({VASWANI}, footnote 4).",
        ),
        Number(
            id="2b",
            topic="variance after the division",
            prompt=f"If the entries of q and k have standard deviation {sd} instead: variance of q·k/√D?",
            answer=sd**4,
            mistakes=(
                (sd**2, f"Both factors have variance {sd**2}: q's and k's multiply."),
                (1, f"That holds for entries of variance 1; these have {sd**2} each."),
                (D * sd**4, "That is before the division: a factor 1/√D divides the variance by D."),
                (math.sqrt(D) * sd**4, "A factor 1/√D on the score is a factor 1/D on its variance."),
                (sd**4 / D, "Dividing by √D takes D off the variance once, and there is D·sd⁴ to begin with."),
                (sd, "That is the standard deviation of an entry, not the variance of the scaled product."),
            ),
            why=f"D·sd²·sd² / D = sd⁴ = {sd**4}: the division cancels the width, and nothing else ({VASWANI}).",
        ),
        Number(
            id="2c",
            topic="softmax of a few scores",
            prompt=f"Largest entry of softmax([{top}, 1, 1, 1])? (a calculator is fine)",
            answer=largest,
            mistakes=(
                (top / (top + 3), "You shared the scores out; softmax shares out their exponentials."),
                (1 / (1 + math.exp(1 - top)), "That is against one rival; there are three, each e^1."),
                (
                    math.exp(top) / (math.exp(top) + 3),
                    "The three rivals have score 1, so each counts e^1 = 2.718, not 1.",
                ),
                (0.25, "That is softmax of equal scores."),
            ),
            why=f"e^{top} / (e^{top} + 3e) = {largest:.4f}: only differences of scores count.",
        ),
        Number(
            id="2d",
            topic="gradient of softmax",
            prompt=f"A softmax gives an entry the weight p = {p}. Derivative of p by that entry's own score?",
            answer=p * (1 - p),
            tolerance=0.02,
            mistakes=(
                (p, "That would be the derivative of an exponential alone: the sum below it grows as well."),
                (1 - p, "Almost: p·(1 - p), of which you have one factor."),
                (p**2, "-p·pⱼ is the derivative by another's score; by its own it is p·(1 - p)."),
            ),
            why=f"∂pᵢ/∂sᵢ = pᵢ(1 - pᵢ) = {p * (1 - p):.4g}: it vanishes as p nears 0 or 1. ∂pᵢ/∂sⱼ = -pᵢpⱼ does too.",
        ),
        choice(
            rng,
            "nothing measurable: below 1e-40",
            [
                ("about 0.25", "0.25 is the most that p(1 - p) reaches, at p = 0.5; here p is 1 to 40 digits."),
                ("about 1", "p is about 1; its gradient is p(1 - p)."),
                ("about 99", "The scores differ by 99; the weights feel e^-99 of it."),
            ],
            id="2e",
            topic="a saturated softmax",
            prompt="softmax([100, 1, 1, 1]): how large is the largest derivative of a weight by a score?",
            why="p(1 - p) with 1 - p = 3e^-99 = 3e-43. float32 rounds p to 1 exactly: the head learns nothing.",
        ),
        Free(
            id="2f",
            topic="why √D",
            prompt="Why are scores divided by √D, and not by D, or not at all?",
            why=f"The division keeps the softmax where its gradient lives, at any width ({VASWANI}).",
            model="q·k has variance D, so its size grows like √D. Undivided, wide heads give scores far apart; softmax "
            "then puts all weight on one key and its gradients, p(1 - p), vanish. Dividing by √D, the standard "
            "deviation, gives variance 1 at every width. Dividing by D would give variance 1/D: near-uniform "
            "weights at the start of training.",
            points=(
                ("the variance of q·k grows with D", "Begin at var(q·k) = D."),
                ("large scores saturate the softmax: one weight near 1", "Scores far apart make softmax one-hot."),
                ("a saturated softmax has vanishing gradients", "At p near 0 or 1 the gradient p(1 - p) is gone."),
                ("√D is the standard deviation, so the variance becomes 1", "√D because a variance scales by squares."),
            ),
        ),
    )
    seed = rng.randrange(2**31)
    return Question(2, "Why √D", parts, lambda: _verify_root(D, seed), f"D is the width of one head, here {D}.")


def _verify_root(D: int, seed: int) -> list[Evidence]:
    import torch

    g = torch.Generator().manual_seed(seed)
    n, keys = 4000, 32
    widths = sorted({4, 16, D, 256, 1024})
    lines = ["    D   var(q·k)   var(q·k/√D)   largest weight of 32     mean p(1 - p)"]
    lines += ["                                    raw    divided      raw    divided"]
    good, raw_gradients, divided_gradients = True, [], []
    for width in widths:
        q = torch.randn(n, 1, width, generator=g)
        k = torch.randn(n, keys, width, generator=g)
        scores = (q * k).sum(dim=-1)  # (n, keys)
        variance = scores.var().item()
        raw, divided = scores.softmax(dim=-1), (scores / math.sqrt(width)).softmax(dim=-1)
        slope = [(w * (1 - w)).mean().item() for w in (raw, divided)]
        raw_gradients.append(slope[0])
        divided_gradients.append(slope[1])
        # keys of one query share it: the spread of the estimate is that of n values |q|², of variance 2·width
        spread = math.sqrt(2 * width / n + (2 * width**2 + 6 * width) / (n * keys))
        good &= abs(variance - width) < 5 * spread
        top = [w.amax(dim=-1).mean().item() for w in (raw, divided)]
        lines.append(
            f"{width:5}{variance:11.1f}{variance / width:14.3f}{top[0]:11.3f}{top[1]:11.3f}"
            f"{slope[0]:9.4f}{slope[1]:11.4f}"
        )
    good &= raw_gradients[-1] < raw_gradients[0] / 4 and min(divided_gradients) > 0.02
    return [
        Evidence(
            f"The variance of q·k is the width, to five standard errors over {n:,} queries; divided by √D it is 1, and "
            "weights and gradients no longer depend on the width.",
            tuple(lines),
            good,
        ),
        _saturation(),
    ]


def _saturation() -> Evidence:
    import torch

    scores = torch.tensor([100.0, 1, 1, 1], dtype=torch.float64)
    rows, largest = [], {}
    for name, s in (("[100, 1, 1, 1]", scores), ("the same / 10", scores / 10), ("the same / 100", scores / 100)):
        p = s.softmax(dim=0)
        slopes = torch.autograd.functional.jacobian(lambda x: x.softmax(dim=0), s)
        # p(1 - p) loses 1 - p to rounding where p is 1, so the row of a rival is the one to read
        largest[name] = slopes[1:].abs().max().item()
        rows.append(f"{name:16} softmax {', '.join(f'{x:.3g}' for x in p.tolist()):34} ∂p₂/∂s {largest[name]:.2g}")
    single = scores.float().softmax(dim=0)
    rows.append(f"in float32       softmax {', '.join(tell(x) for x in single.tolist())}")
    holds = 0 < largest["[100, 1, 1, 1]"] < 1e-40 and largest["the same / 100"] > 0.1 and single[0].item() == 1
    return Evidence(
        "softmax([100, 1, 1, 1]) is one-hot and has no gradient; smaller scores have one.", tuple(rows), holds
    )
