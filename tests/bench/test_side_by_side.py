"""minilm beside a plain loop: the same model, alternated, and a ratio with an honest interval."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from bench import plain_loop, side_by_side
from minilm import hardware
from minilm.config import ModelConfig, build
from minilm.errors import UserError
from minilm.model import GPT
from tests.children import forked


@pytest.fixture(scope="module")
def found(text_file, tmp_path_factory):
    """What the command writes: two pairs of a tiny model."""
    out = tmp_path_factory.mktemp("side") / "side.json"
    settings = {"preset": "tiny", "pairs": 2, "steps": 40, "data": text_file, "out": out}
    with forked(side_by_side):
        side_by_side.main([word for name, value in settings.items() for word in (f"--{name}", str(value))])
    return json.loads(out.read_text(encoding="utf-8"))


class TestCommand:
    def test_the_two_take_turns_and_so_does_who_is_first(self, found):
        assert [pair["order"] for pair in found["pairs"]] == [["minilm", "plain"], ["plain", "minilm"]]

    def test_both_train_as_many_parameters_on_as_many_tokens(self, found, text_file):
        tiny = build("tiny")
        vocabulary = len(set(text_file.read_text(encoding="utf-8")))
        with torch.device("meta"):
            model = GPT(ModelConfig(**{**vars(tiny.model), "vocab_size": vocabulary}))
        for pair in found["pairs"]:
            for side in (pair["minilm"], pair["plain"]):
                assert side["parameters"] == model.count_parameters()["total"] == found["parameters"]
                assert side["tokens_per_step"] == 8 * 32 == found["tokens_per_step"]

    def test_both_learn_alike(self, found):
        """The same recipe from other random numbers: after 40 steps both are as far below log(vocabulary)."""
        for pair in found["pairs"]:
            assert pair["minilm"]["loss"] == pytest.approx(pair["plain"]["loss"], abs=0.1)

    def test_the_ratio_is_of_steps_a_second_and_its_interval_contains_it(self, found):
        ratios = [pair["plain"]["seconds"] / pair["minilm"]["seconds"] for pair in found["pairs"]]
        assert [pair["ratio"] for pair in found["pairs"]] == ratios
        ratio = found["ratio"]
        assert ratio["geometric_mean"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
        assert ratio["low"] <= ratio["geometric_mean"] <= ratio["high"]

    def test_the_file_says_on_what_machine_and_by_what_versions(self, found):
        assert found["machine"] == {
            "device_name": hardware.device_name(torch.device("cpu")),
            "threads": 1,
            "versions": hardware.versions(),
            "git_revision": hardware.git_revision(),
        }


class TestInterval:
    def test_it_is_the_t_interval_of_the_logarithms(self):
        ratios = [1.1, 1.3, 0.9, 1.2]
        mean, low, high = side_by_side.interval(ratios)
        ends = stats.ttest_1samp(np.log(ratios), 0.0).confidence_interval(0.95)
        assert (mean, low, high) == pytest.approx((stats.gmean(ratios), *np.exp(ends)))

    def test_exchanging_the_sides_turns_it_over(self):
        mean, low, high = side_by_side.interval([1.5, 2.0, 1.8])
        assert side_by_side.interval([1 / 1.5, 1 / 2.0, 1 / 1.8]) == pytest.approx((1 / mean, 1 / high, 1 / low))


class TestTimes:
    def test_a_step_is_the_median_window_without_the_first_steps(self):
        steps = [9.0] * side_by_side.SKIPPED + [0.2] * 10 + [0.1] * 10 + [0.4] * 10
        rows = [{"wall": wall, "loss": 2.0} for wall in np.cumsum(steps)]
        assert side_by_side._side(1, 1, rows).seconds == pytest.approx(0.2)

    def test_what_happens_once_a_window_counts(self):
        """As writing the journal does: a median of single steps would not see it."""
        rows = [{"wall": wall, "loss": 2.0} for wall in np.cumsum([1.0 if i % 10 == 9 else 0.1 for i in range(60)])]
        assert side_by_side._side(1, 1, rows).seconds == pytest.approx(0.19)


class TestPlainLoop:
    @pytest.mark.parametrize("bias", [True, False])
    def test_with_the_same_weights_it_is_the_same_model(self, bias):
        torch.manual_seed(0)
        ours = GPT(ModelConfig(n_layers=2, n_heads=2, d_model=32, vocab_size=20, context_length=16, bias=bias))
        plain = plain_loop.GPT(vocabulary=20, context=16, layers=2, heads=2, width=32, hidden=128, bias=bias)
        with torch.no_grad():
            for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
                one.normal_(0.0, 0.3)
                other.copy_(one)
        tokens = torch.randint(20, (3, 16))
        torch.testing.assert_close(plain(tokens), ours(tokens))

    def test_it_starts_from_the_same_distribution(self):
        torch.manual_seed(0)
        ours = GPT(ModelConfig(n_layers=2, n_heads=2, d_model=64, vocab_size=50, context_length=64))
        plain = plain_loop.GPT(vocabulary=50, context=64, layers=2, heads=2, width=64, hidden=256, bias=True)
        for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
            assert other.std(correction=0).item() == pytest.approx(one.std(correction=0).item(), rel=0.1), name
            assert other.mean().item() == pytest.approx(one.mean().item(), abs=0.002), name

    def test_targets_are_what_follows(self):
        x, y = plain_loop.draw(np.arange(100), context=7, batch_size=50)
        assert x.shape == y.shape == (50, 7)
        assert torch.equal(y, x + 1) and len(x[:, 0].unique()) > 10


class TestRefusals:
    def test_a_preset_that_the_plain_loop_cannot_train_is_refused_with_those_it_can(self):
        with pytest.raises(
            UserError, match=r"no model\.position rope, train\.optimizer muon.*tiny.*shakespeare-char-cpu"
        ):
            side_by_side.same_recipe("quick", 100)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--steps", "29"], "--steps is 29; it must be at least 30"),
            (["--pairs", "1"], "give 2 pairs or more"),
            (["--data", "nowhere.txt"], "--data is nowhere.txt"),
            (["--preset", "huge"], "There is no preset 'huge'"),
        ],
    )
    def test_what_cannot_be_measured_is_one_sentence(self, arguments, sentence):
        with pytest.raises(SystemExit, match=sentence):
            side_by_side.main(arguments)
