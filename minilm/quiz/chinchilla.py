"""Question 5: how many tokens a model of some size should see, and what that says of three known ones."""

from __future__ import annotations

import math
import random

from minilm.quiz.grading import Evidence, Free, Number, Part, Question, choice, match, tell

HOFFMANN = "Hoffmann et al. 2022"
# parameters, tokens: Brown et al. 2020, table 2.1 and appendix D; Hoffmann et al. 2022, table 1; Grattafiori et al.
# 2024, section 1 ("about 15T")
MODELS = {"GPT-3": (175e9, 300e9), "Chinchilla": (70e9, 1.4e12), "Llama 3 8B": (8e9, 15e12)}


def chinchilla(rng: random.Random) -> Question:
    billions = rng.choice((0.4, 1.5, 2.7, 6.7, 30))
    n, d = rng.choice((1.5, 3, 7, 13)) * 1e9, rng.choice((40, 90, 250, 500)) * 1e9
    budget = rng.choice((1.2e20, 4.8e20, 1.2e21, 4.8e21))
    best = math.sqrt(budget / 120)
    gpt3, llama = (MODELS[name][1] / MODELS[name][0] for name in ("GPT-3", "Llama 3 8B"))
    parts: tuple[Part, ...] = (
        Number(
            id="5a",
            topic="tokens a parameter",
            prompt=f"About how many tokens is compute-optimal for a model of {billions:g} billion parameters?",
            answer=20 * billions,
            tolerance=0.25,
            unit="billion tokens",
            mistakes=(
                (billions, "One token a parameter is far too few; GPT-3 had 1.7 and was under-trained."),
                (1.7 * billions, "That is GPT-3's ratio, and too little by a factor of twelve."),
                (200 * billions, "That is ten times as many: good for a model that is to serve cheaply."),
                (20, "20 is the ratio: multiply by the parameters."),
            ),
            why=f"About 20 tokens a parameter ({HOFFMANN}, table 3).",
        ),
        Number(
            id="5b",
            topic="GPT-3's ratio",
            prompt="GPT-3 has 175B parameters and saw 300B tokens. Tokens a parameter?",
            answer=gpt3,
            tolerance=0.05,
            mistakes=(
                (1 / gpt3, "That is parameters a token."),
                (20, "That is what it should have been."),
                (gpt3 * 6, "No factor 6 here: that one belongs to compute, 6·N·D."),
            ),
            why=f"{gpt3:.2f} (Brown et al. 2020): a twelfth of 20; {tell(20 * 175e9 / 1e12)}T tokens were due.",
        ),
        Number(
            id="5c",
            topic="Llama 3's ratio",
            prompt="Llama 3 8B saw 15T tokens. Tokens a parameter?",
            answer=llama,
            tolerance=0.05,
            mistakes=(
                (1 / llama, "That is parameters a token."),
                (llama / 1000, "15T is 15,000 billion."),
                (20, "That is the compute-optimal ratio; Llama 3 went far beyond it."),
            ),
            why=f"{llama:,.0f} (Grattafiori et al. 2024): some {llama / 20:.0f} times the compute-optimal data.",
        ),
        match(
            rng,
            {
                "GPT-3": (
                    "too large for its data: a smaller model on more tokens would have done better",
                    "1.7 tokens a parameter is far below 20.",
                ),
                "Chinchilla": (
                    "the least loss for the compute of training, by design",
                    "70B and 1.4T are 20 tokens a parameter.",
                ),
                "Llama 3 8B": (
                    "trained far past the optimum, because a small model is cheaper to serve",
                    "1,875 tokens a parameter pay back at every later use.",
                ),
            },
            id="5d",
            topic="three models judged",
            prompt="What do their tokens a parameter say of GPT-3, Chinchilla and Llama 3 8B?",
            why="The optimum counts the compute of training only. Who serves a model for long pays more for training "
            "a smaller one (Touvron et al. 2023, section 1; Sardana et al. 2023).",
        ),
        Number(
            id="5e",
            topic="compute of a training",
            prompt=f"FLOPs to train {n / 1e9:g}B parameters on {d / 1e9:g}B tokens, roughly?",
            answer=6 * n * d,
            tolerance=0.05,
            unit="FLOPs",
            mistakes=(
                (2 * n * d, "2·N·D is the forward pass; the backward pass costs twice that again."),
                (n * d, "6 a parameter and token: a multiply-add is 2, backward twice forward."),
                (4 * n * d, "4·N·D is the backward pass alone."),
                (3 * n * d, "A multiplication with its addition counts 2: twice yours."),
            ),
            why="C = 6·N·D: 2 forward, 4 backward, a parameter and token (Kaplan et al. 2020, section 2.1).",
        ),
        Number(
            id="5f",
            topic="the best size for a budget",
            prompt=f"{tell(budget)} FLOPs are yours. Compute-optimal size, by 20 tokens a parameter and C = 6·N·D?",
            answer=best,
            tolerance=0.05,
            unit="parameters",
            mistakes=(
                (math.sqrt(budget / 6), "That is for one token a parameter: D = 20·N, so C = 120·N²."),
                (math.sqrt(budget / 20), "The 6 is missing: C = 6·N·20·N = 120·N²."),
                (budget / 120, "C = 120·N²: take the root."),
                (20 * best, "Those are the tokens."),
            ),
            why=f"C = 6·N·20·N, so N = √(C/120) = {tell(best)}, on {tell(20 * best)} tokens. Twice the model "
            "needs four times the compute.",
        ),
        choice(
            rng,
            "both by the same factor",
            [
                (
                    "mostly larger: size by 5, tokens by 2",
                    "That was Kaplan et al. 2020 (N ~ C^0.73), overturned by Hoffmann et al. 2022.",
                ),
                ("only larger", "Then tokens a parameter fall without end."),
                ("only longer", "Past 20 tokens a parameter a larger model would have used the compute better."),
            ],
            id="5g",
            topic="how to spend ten times the compute",
            prompt="Ten times the compute: how should the model and its data grow, by Hoffmann et al. 2022?",
            why=f"N ~ C^0.5 and D ~ C^0.5 ({HOFFMANN}, table 2): √10 = 3.2 times each.",
        ),
        Free(
            id="5h",
            topic="Kaplan against Hoffmann",
            prompt="Kaplan et al. 2020 said: grow mostly the model. What was wrong with it, and what came since?",
            why="Pearce and Song 2024 and Porian et al. 2024 take the difference apart.",
            model="Kaplan's runs kept one learning-rate schedule whatever their length, which makes short training "
            "look worse than it is, used small models and left embeddings out of N. With a schedule fitted to "
            "each length, size and data grow alike. Today many train beyond 20 tokens a parameter on purpose, "
            "since serving costs count too.",
            points=(
                (
                    "the learning-rate schedule was not fitted to the length of training",
                    "The schedule must end with the training, or its loss is too high.",
                ),
                ("size and data should grow alike, at about 20 to 1", "Hoffmann: both grow as C^0.5."),
                (
                    "today small models are trained longer because serving costs",
                    "Cost of serving favours small models.",
                ),
            ),
        ),
    )
    return Question(5, "Chinchilla", parts, lambda: _verify(budget))


def _verify(budget: float) -> list[Evidence]:
    return [_ratios(), _minimum(budget)]


def _ratios() -> Evidence:
    from minilm.studies.budget import REFIT, splits

    lines = [f"{'':12}{'N':>6}{'D':>8}{'D/N':>8}{'6·N·D':>10}    20:1 says     excess"]
    excess = {}
    for name, (n, d) in MODELS.items():
        flops = 6 * n * d
        rule, law = splits(flops=flops)
        excess[name] = float(REFIT.loss(n, d) - REFIT.loss(law.params, law.tokens))
        lines.append(
            f"{name:12}{n / 1e9:5.0f}B{d / 1e12:7.1f}T{d / n:8.1f}{flops:10.1e}"
            f"{rule.params / 1e9:6.0f}B, {rule.tokens / 1e12:.1f}T{excess[name]:9.3f}"
        )
    lines.append("excess: nats a token above the best split of the same compute, by the law")
    lines.append("as re-fitted to Chinchilla's own data (Besiroglu et al. 2024)")
    holds = excess["Chinchilla"] < excess["GPT-3"] and excess["Chinchilla"] < excess["Llama 3 8B"]
    return Evidence("Three models against minilm.studies.budget (also: minilm budget).", tuple(lines), holds)


def _minimum(budget: float) -> Evidence:
    """The closed form against a search over sizes, and the rule of 20 beside both."""
    from minilm.studies.budget import REFIT, splits

    rule, law = splits(flops=budget)
    ladder = [(law.params * factor, budget / 6 / (law.params * factor)) for factor in (0.25, 0.5, 1, 2, 4)]
    losses = [float(REFIT.loss(n, d)) for n, d in ladder]
    lines = [f"{'N':>10}{'D':>11}{'D/N':>9}   loss by the law"]
    for (n, d), loss in zip(ladder, losses, strict=True):
        mark = "   <- the closed form" if loss == min(losses) else ""
        lines.append(f"{n:10.2e}{d:11.2e}{d / n:9.1f}{loss:11.4f}{mark}")
    lines.append(
        f"{rule.params:10.2e}{rule.tokens:11.2e}{20:9.1f}{float(REFIT.loss(rule.params, rule.tokens)):11.4f}   by 20:1"
    )
    doubled = splits(flops=4 * budget)[0].params / rule.params
    lines.append(f"four times the compute: a model {doubled:.3g} times as large, by 20:1")
    holds = min(losses) == losses[2] and math.isclose(doubled, 2) and math.isclose(rule.params, math.sqrt(budget / 120))
    return Evidence(
        f"At {tell(budget)} FLOPs the loss is least where the closed form says, and flat around it.",
        tuple(lines),
        holds,
    )
