"""Question 7: GPT, BERT and T5, told apart by what they are, what they learn, what a token sees, and what follows."""

from __future__ import annotations

import random

from minilm.quiz.grading import Evidence, Number, Part, Question, choice, match

GPT, BERT, T5 = "GPT", "BERT", "T5"
RADFORD, DEVLIN, RAFFEL = "Radford et al. 2018, 2019", "Devlin et al. 2018", "Raffel et al. 2020"
TASKS = (
    (
        GPT,
        "an assistant that goes on from any text, with a few examples in its prompt",
        {
            BERT: "BERT fills gaps; it has no way to write on token by token.",
            T5: "It could, but one stack that reads and writes alike does this with less (Wang et al. 2022).",
        },
    ),
    (
        BERT,
        "vectors for sentences and the sentiment of reviews, fast, with labels to fine-tune on",
        {
            GPT: "A GPT's token sees its left side only; a classifier wants both sides of every word.",
            T5: "It can spell out the label, but a decoder is then carried along for one word.",
        },
    ),
    (
        T5,
        "translation: a given input turned into an output of another length",
        {
            GPT: "It can, but reads the input with a causal mask; an encoder reads both sides.",
            BERT: "BERT has no decoder: its outputs stand at the places of its inputs.",
        },
    ),
)


def families(rng: random.Random) -> Question:
    tokens = rng.choice((500, 1000, 2000))
    task = rng.choice(TASKS)
    parts: tuple[Part, ...] = (
        match(
            rng,
            {
                GPT: ("decoder only: one stack, causal self-attention", "A GPT has no encoder and no cross-attention."),
                BERT: ("encoder only: one stack, no mask on attention", "BERT encodes; nothing in it decodes."),
                T5: (
                    "encoder and decoder, joined by cross-attention",
                    "T5 keeps both stacks of the first transformer.",
                ),
            },
            id="7a",
            topic="architectures",
            prompt="Which architecture has each?",
            why=f"{RADFORD}; {DEVLIN}, section 3; {RAFFEL}, section 2.1.",
        ),
        match(
            rng,
            {
                GPT: ("predict each next token", "Next-token prediction is language modelling in the plain sense."),
                BERT: (
                    "predict the 15% of tokens that were picked and mostly masked; which sentence follows",
                    "Masked language modelling and next-sentence prediction.",
                ),
                T5: (
                    "write out the spans that were cut and replaced by sentinels",
                    "Span corruption asks a decoder to write the missing spans.",
                ),
            },
            id="7b",
            topic="objectives",
            prompt="What is each trained to do?",
            why=f"{RADFORD}; {DEVLIN}, section 3.1 (80% [MASK], 10% random, 10% kept); {RAFFEL}, section 3.1.4.",
        ),
        match(
            rng,
            {
                GPT: ("tokens to its left only", "A causal mask hides the right side."),
                BERT: ("tokens on both sides", "Without a mask both sides are seen."),
                T5: (
                    "both sides of the input; of the output, what is written already",
                    "The encoder sees both sides, the decoder all of the input and its own past.",
                ),
            },
            id="7c",
            topic="what a token sees",
            prompt="What does a token see in each?",
            why=f"{DEVLIN}, figure 3; {RAFFEL}, section 3.2.1 and figure 3.",
        ),
        match(
            rng,
            {
                GPT: (
                    "writing, conversation, learning from examples in the prompt",
                    "Going on from a text is its trade.",
                ),
                BERT: (
                    "classification, tagging, retrieval",
                    "It gives a vector for each token, with both sides in it.",
                ),
                T5: ("translation, summaries: text in, text out", "One text in, another out."),
            },
            id="7d",
            topic="best uses",
            prompt="What is each best at?",
            why=f"Brown et al. 2020; {DEVLIN}, section 4; {RAFFEL}, section 2.4; Wang et al. 2022.",
        ),
        match(
            rng,
            {
                GPT: (
                    "its representation of a word knows nothing of what follows",
                    "One-sidedness is the price of the causal mask.",
                ),
                BERT: (
                    "cannot simply write text; [MASK] never occurs in use",
                    "Masks in training, none in use: a mismatch.",
                ),
                T5: (
                    "two stacks to run and tune, and every text must be cut into input and output",
                    "Two stacks, and pairs of texts to learn from.",
                ),
            },
            id="7e",
            topic="weaknesses",
            prompt="What is the weakness of each?",
            why=f"{DEVLIN}, sections 1 and 3.1; Wang et al. 2022 compare all three kinds.",
        ),
        Number(
            id="7f",
            topic="how many tokens teach",
            prompt=f"Of {tokens} tokens in a batch, how many does BERT's masked-token loss count?",
            answer=0.15 * tokens,
            tolerance=0.02,
            unit="tokens",
            mistakes=(
                (tokens, "That is GPT: every position predicts its next token."),
                (0.12 * tokens, "Those are the ones replaced by [MASK]; the other fifth of the 15% counts as well."),
                (0.85 * tokens, "Those are left alone: the picked ones count."),
                (0.015 * tokens, "15% are picked; a tenth of these is kept as it is, and counts too."),
            ),
            why=f"15% of {tokens} = {0.15 * tokens:g}; a GPT gets all {tokens}, one reason why BERT "
            f"learns more slowly a step ({DEVLIN}, section 3.1 and appendix C.1).",
        ),
        choice(
            rng,
            task[0],
            list(task[2].items()),
            id="7g",
            topic="choosing a family",
            prompt=f"Which would you take for this: {task[1]}?",
            why=f"By what each was trained to do. With size the lines blur: {RAFFEL}, section 2.4; Wang et al. 2022.",
        ),
    )
    seed = rng.randrange(2**31)
    setting = "Three families. Answer a matching with one letter each for GPT, BERT, T5, in that order."
    return Question(7, "GPT, BERT, T5", parts, lambda: _verify(seed), setting)


def _verify(seed: int) -> list[Evidence]:
    return [_who_moves_whom(seed), _signal(seed), _spans()]


def _who_moves_whom(seed: int) -> Evidence:
    """What is influenced by what, found by changing one input at a time."""
    import torch

    from kernels.reference import causal_attention, decode_attention

    T, S, D = 4, 3, 8
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(1, 1, n, D, generator=g, dtype=torch.float64) for n in (T, S))

    def causal(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return causal_attention(queries, keys, keys)

    def unmasked(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Every query against all keys: each as if it were the newest."""
        length = torch.tensor([keys.shape[2]])
        return torch.cat(
            [decode_attention(queries[:, :, i : i + 1], keys, keys, length) for i in range(queries.shape[2])], 2
        )

    def influence(attend, queries: torch.Tensor, keys: torch.Tensor, own: bool) -> list[str]:
        before, rows = attend(queries, keys), []
        for j in range(keys.shape[2]):
            moved = keys.clone()
            moved[0, 0, j] += 1
            after = attend(moved if own else queries, moved)
            rows.append(["1" if d > 0 else "0" for d in (after - before).abs().amax(dim=-1)[0, 0].tolist()])
        return [" ".join(row) for row in zip(*rows, strict=True)]  # a row for each output, a column for each input

    tables = {
        "GPT": influence(causal, x, x, True),
        "BERT, T5's encoder": influence(unmasked, x, x, True),
        "T5's decoder": influence(causal, y, y, True),
        "cross-attention": influence(unmasked, y, x, False),
    }
    lines = ["".join(f"{name:20}" for name in tables).rstrip()]
    for r in range(T):
        lines.append("".join(f"{rows[r] if r < len(rows) else '':20}" for rows in tables.values()).rstrip())
    lines.append("a row an output, a column an input; 1: moving the input moves the output")
    expected = {
        "GPT": ["1 0 0 0", "1 1 0 0", "1 1 1 0", "1 1 1 1"],
        "BERT, T5's encoder": ["1 1 1 1"] * T,
        "T5's decoder": ["1 0 0", "1 1 0", "1 1 1"],
        "cross-attention": ["1 1 1 1"] * S,
    }
    return Evidence(
        "Who sees whom, found by moving one random token at a time through kernels.reference.",
        tuple(lines),
        tables == expected,
    )


def _signal(seed: int) -> Evidence:
    import torch

    n = 100_000
    g = torch.Generator().manual_seed(seed)
    picked = torch.rand(n, generator=g) < 0.15
    masked = picked & (torch.rand(n, generator=g) < 0.8)
    off = abs(picked.float().mean().item() - 0.15)
    return Evidence(
        f"Of {n:,} random tokens, how many give a loss:",
        (
            f"GPT   {n:8,}   every one, from those before it",
            f"BERT  {int(picked.sum()):8,}   of which {int(masked.sum()):,} are [MASK], the rest random or unchanged",
        ),
        off < 5 * (0.15 * 0.85 / n) ** 0.5,
    )


def _spans() -> Evidence:
    words = "Thank you for inviting me to your party last week".split()
    given, asked = corrupt_spans(words, [(2, 4), (8, 9)])
    return Evidence(
        "Span corruption, on the sentence of Raffel et al. 2020, figure 2:",
        (f"encoder reads   {given}", f"decoder writes  {asked}"),
        given == "Thank you <X> me to your party <Y> week" and asked == "<X> for inviting <Y> last <Z>",
    )


def corrupt_spans(words: list[str], spans: list[tuple[int, int]]) -> tuple[str, str]:
    """Input and target of T5: each span [start, end) replaced by a sentinel, and listed behind it."""
    sentinels = ["<X>", "<Y>", "<Z>"]
    given, asked, at = [], [], 0
    for sentinel, (start, end) in zip(sentinels, spans, strict=False):
        given += [*words[at:start], sentinel]
        asked += [sentinel, *words[start:end]]
        at = end
    return " ".join(given + words[at:]), " ".join([*asked, sentinels[len(spans)]])
