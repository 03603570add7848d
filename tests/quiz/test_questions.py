"""The eight questions: the key passes, a mistake gets the hint that belongs to it, the code bears every answer out."""

import re

import pytest
import torch
from rich.cells import cell_len

from minilm.errors import UserError
from minilm.quiz.grading import Choice, Free, Grid, Malformed, Match, Number, Shape, read_number
from minilm.quiz.multihead import Code
from minilm.quiz.questions import draw_questions

SEEDS = (1, 2, 3, 17)
DRAWN = {seed: draw_questions(seed) for seed in SEEDS}
PARTS = [part for seed in range(40) for q in draw_questions(seed) for part in q.parts]
FIRST = {part.id: part for q in DRAWN[1] for part in q.parts}

# of seed 1: what a person might answer wrongly, and words of the hint that they should get
WRONG = [
    ("1b", "3, 4, 11, 5", "K Qᵀ"),
    ("1b", "3 4 20 20", "Qᵀ K"),
    ("1b", "(3, 5, 11)", "Every head"),
    ("1c", "3x4x11x20", "One output row"),
    ("1b", "4, 3, 5, 11", "in another order"),
    ("1b", "3, 4, 5, 12", "Dimension 4 is not 12"),
    ("1a", "ynyyy", "divided by √D"),
    ("2a", "4.472", "standard deviation"),
    ("2a", "400", "Variances add"),
    ("2b", "9", "multiply"),
    ("2b", "1", "entries of variance 1"),
    ("2c", "3/6", "exponentials"),
    ("2d", "0.95", "sum below"),
    ("2f", "yyny", "p(1 - p)"),
    ("3a", "0000 1000 1100 1110", "the diagonal is 1"),
    ("3a", "1111 1111 1111 1111", "hides nothing"),
    ("3a", "1100 1110 1111 1111", "one too far"),
    ("3a", "1111 0111 0011 0001", "Transposed"),
    ("3b", "10000 11000 11100", "tokens 3 to 5"),
    ("3c", "15", "without the diagonal"),
    ("3f", "nyyy", "inputs are the true tokens"),
    ("4b", "864", "Keys and values"),
    ("4b", "72", "one layer"),
    ("4b", "2592", "Queries are not kept"),
    ("4c", "1728", "only key-value heads"),
    ("4c", "144", "size of a group"),
    ("4d", "999", "half as many"),
    ("4e", "yny", "grows linearly"),
    ("5a", "0.4", "One token a parameter"),
    ("5b", "0.583", "parameters a token"),
    ("5c", "1.875", "15,000 billion"),
    ("5e", "2*3e9*90e9", "forward pass"),
    ("5f", "2.83e10", "D = 20·N"),
    ("5h", "ynn", "C^0.5"),
    ("6a", "e r", "comes 5 times; another comes 10"),
    ("6b", "61", "All occurrences"),
    ("6d", "99744", "special token"),
    ("6a", "x q", "never stand side by side"),
    ("7a", "c a b", "GPT is not c: that is T5"),
    ("7b", "b a c", "GPT is not b: that is BERT"),
    ("7f", "240", "[MASK]"),
    ("7f", "2000", "GPT"),
    ("8a", "2, 5, 12, 16", "transpose(1, 2)"),
    ("8a", "2 12 5 192", "share the width"),
    ("8b", "3*192*192", "output projection"),
    ("8b", "192^2", "one projection"),
]


def passing(part):
    return "y" * len(part.points) if isinstance(part, Free) else part.key()


class TestKey:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_it_passes_wholly(self, seed):
        assert [q.number for q in DRAWN[seed]] == [1, 2, 3, 4, 5, 6, 7, 8]
        for question in DRAWN[seed]:
            for part in question.parts:
                if not isinstance(part, Code):
                    assert part.check(passing(part)).right, part.id

    def test_the_code_bears_every_question_out_within_80_columns(self):
        before = torch.random.get_rng_state()
        for seed in (1, 2):
            for question in DRAWN[seed]:
                evidence = question.verify()
                assert len(evidence) >= 2
                for shown in evidence:
                    assert shown.holds, (seed, question.number, shown.claim, shown.lines)
                    assert max(cell_len(line) for line in shown.lines if not line.startswith("The text now")) <= 76
        assert torch.equal(before, torch.random.get_rng_state())

    def test_known_figures(self):
        """Reckoned by hand, from the settings as a person reads them."""
        setting = next(q.setting for q in DRAWN[1] if q.number == 4)
        layers, heads, width, _, batch, context = map(
            int, re.findall(r"\d+", setting.replace(",", ""))[:4] + ["3", "2048"]
        )
        assert f"{batch} sequences of 2,048" in setting
        assert FIRST["4b"].answer == 2 * layers * heads * width * context * batch * 2 / 2**20 == 1728
        assert FIRST["4c"].answer == 432 and "12 key-value heads" in FIRST["4c"].prompt
        figures = {
            "2a": 20, "2b": 3**4, "2c": 0.7112, "2d": 0.0475, "3c": 21, "4d": 500, "5a": 8, "5b": 1.714, "5c": 1875,
            "5e": 1.62e21, "5f": 6.325e9, "6b": 52, "6d": 99_743, "7f": 300, "8b": 147_456,
        }  # fmt: skip
        assert {name: FIRST[name].answer for name in figures} == pytest.approx(figures, rel=1e-3)
        keys = {"1b": "3, 4, 5, 11", "1c": "3, 4, 5, 20", "8a": "2, 12, 5, 16", "6a": "l o"}
        keys |= {"3a": "1000 1100 1110 1111", "3b": "11100 11110 11111"}
        assert {name: FIRST[name].key() for name in keys} == keys


class TestHints:
    @pytest.mark.parametrize(("part", "answer", "hint"), WRONG)
    def test_a_mistake_gets_its_hint(self, part, answer, hint):
        verdict = FIRST[part].check(answer)
        assert not verdict.right
        assert hint in verdict.hint, verdict.hint

    def test_there_are_three_or_more_a_question(self):
        for number in "12345678":
            assert len({hint for part, _, hint in WRONG if part.startswith(number)}) >= 3

    def test_every_known_mistake_is_told_from_the_answer_and_from_the_others(self):
        for part in PARTS:
            if isinstance(part, Number):
                said = {hint: part.check(repr(float(wrong))).hint for wrong, hint in part.mistakes}
            elif isinstance(part, Shape):
                said = {hint: part.check(str(wrong)).hint for wrong, hint in part.mistakes.items()}
            elif isinstance(part, Grid):
                said = {hint: part.check(" ".join(wrong)).hint for wrong, hint in part.mistakes.items()}
            elif isinstance(part, Choice):
                said = {hint: part.check("abcdefgh"[n]).hint for n, hint in enumerate(part.hints) if hint}
                assert len(said) == len(part.options) - 1 >= 2
            else:
                continue
            assert said == {hint: hint for hint in said}, part.id

    def test_a_matching_counts_by_row(self):
        part = FIRST["7a"]
        assert isinstance(part, Match)
        one, two, three = part.key().split()
        assert part.check(f"{one} {three} {two}").score == pytest.approx(1 / 3)
        assert part.check(f"GPT={one}, bert: {two}; T5 {three}").right

    def test_an_unforeseen_number_is_told_its_side(self):
        assert "Too large, by a factor of about 10" in FIRST["4b"].check("17280.0001e0").hint
        assert FIRST["4b"].check("3").hint == "Too small, by a factor of about 580."
        assert "below it by 20%" in FIRST["4b"].check("1382").hint


class TestDrawing:
    def test_a_seed_draws_the_same_whichever_questions_are_asked(self):
        again = draw_questions(1, [4, 7])
        for question in again:
            first = DRAWN[1][question.number - 1]
            assert question.parts == first.parts and question.setting == first.setting

    def test_another_seed_draws_other_numbers(self):
        for number in (0, 1, 2, 3, 4, 5, 7):
            drawn = {(DRAWN[s][number].setting, *(part.prompt for part in DRAWN[s][number].parts)) for s in SEEDS}
            assert len(drawn) > 1

    @pytest.mark.parametrize(
        "text",
        ["the theme of the thesis", "Ça où ça, là-bas, là où ça va", "aaaa aaaa", "机器学习 机器学习\n\n x_1 x_1"],
    )
    def test_byte_pairs_are_the_librarys_on_any_text(self, text):
        question = draw_questions(1, [6], text)[0]
        assert all(shown.holds for shown in question.verify())
        for part in question.parts:
            assert part.check(passing(part)).right

    def test_a_pair_that_comes_as_often_counts_as_well(self):
        part = draw_questions(1, [6], "ab ab cd cd")[0].parts[0]
        assert part.check("ab").right and part.check("cd").right
        assert "comes 1 time;" in part.check("␣ a").hint and part.check("_a").hint == part.check("␣a").hint

    @pytest.mark.parametrize(
        ("text", "words"), [("hello", "fewer than two merges"), ("", "fewer"), ("ab " * 200, "at most 400")]
    )
    def test_a_text_that_teaches_nothing_is_refused(self, text, words):
        with pytest.raises(UserError, match=words):
            draw_questions(1, [6], text)


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("1,024", 1024), ("2^10", 1024), ("1.5e9", 1.5e9), ("3*64", 192), ("1/8", 0.125), ("1.5 x 10^9", 1.5e9),
         ("12,582,912 MiB", 12582912), ("−2", -2), ("6·3e9·90e9", 1.62e21), (".5", 0.5), ("1_000", 1000), ("3×5", 15)],
    )  # fmt: skip
    def test_they_are_read_as_people_write_them(self, text, value):
        assert read_number(text, "MiB") == pytest.approx(value, rel=1e-12)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "about 5",
            "1,5",
            "sqrt(2)",
            "nan",
            "inf",
            "1/0",
            "9e999",
            "9^9^9",
            "10^999",
            "0^-1",
            "(-8)^0.5",
            "-8^.5",
            "__import__('os')",
        ],
    )
    def test_anything_else_is_no_number(self, text):
        with pytest.raises(Malformed):
            read_number(text)

    @pytest.mark.parametrize(
        ("part", "text"),
        [("1b", "two"), ("1d", "e"), ("1d", "ab"), ("3a", "1000"), ("3a", "2000 1100 1110 1111"), ("7a", "a b"),
         ("7a", "a b z"), ("6a", "e"), ("1a", "yy"), ("1a", "maybe")],
    )  # fmt: skip
    def test_what_is_no_answer_of_its_kind_is_malformed(self, part, text):
        with pytest.raises(Malformed):
            FIRST[part].check(text)
