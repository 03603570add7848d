"""Budgets: the law of size and data comes back from its points, and the arithmetic is the published one."""

import dataclasses
import json
import math

import numpy as np
import pytest

from minilm.errors import UserError
from minilm.studies.budget import (
    POLICIES,
    REFIT,
    ChinchillaLaw,
    fit_chinchilla,
    fit_isoflop,
    kv_cache_bytes,
    splits,
    training_memory,
    training_seconds,
)
from minilm.studies.scaling import Point


def point(n, d, loss):
    return Point({"non_embedding": int(n)}, float(loss), tokens=float(d), flops=6.0 * n * d)


def grid(law=REFIT, spread=0.0, seed=0, sizes=15, budgets=16):
    rng = np.random.default_rng(seed)
    return [
        point(n, d, law.loss(n, d) * math.exp(rng.normal(0, spread)))
        for n in np.geomspace(3e6, 3e9, sizes).round()
        for d in np.geomspace(1e8, 3e10, budgets)
    ]


def iso_flop_runs(around=1.0, law=REFIT, budgets=5, widths=7):
    """Runs about the optimum of each budget; `around` shifts the sizes away from it."""
    runs = []
    for flops in np.geomspace(1e17, 1e20, budgets):
        best, _ = law.split(flops)
        for n in (around * best * np.geomspace(0.25, 4, widths)).round():
            runs.append(point(n, flops / 6 / n, law.loss(n, flops / 6 / n)))
    return runs


class TestLawOfSizeAndData:
    @pytest.mark.parametrize(
        "law", [REFIT, ChinchillaLaw(1.69, 406.4, 410.7, 0.34, 0.28), ChinchillaLaw(0.8, 30.0, 90.0, 0.15, 0.2)]
    )
    def test_240_points_without_noise_give_back_all_five_parameters(self, law):
        fit = fit_chinchilla(grid(law))
        assert fit.n_points == 240 and fit.refusals == ()
        assert dataclasses.astuple(fit.law) == pytest.approx(dataclasses.astuple(law), rel=0.01)
        assert fit.agreeing >= fit.starts // 2

    def test_noise_moves_the_exponents_little(self):
        fit = fit_chinchilla(grid(spread=0.003))
        assert fit.law.alpha == pytest.approx(REFIT.alpha, abs=0.02)
        assert fit.law.beta == pytest.approx(REFIT.beta, abs=0.02)

    def test_the_loss_is_huber_and_summed(self):
        points = grid(spread=0.003)
        fit = fit_chinchilla(points)
        r = np.array([math.log(p.loss / fit.law.loss(p.n_params["non_embedding"], p.tokens)) for p in points])
        huber = np.where(np.abs(r) < 1e-3, r**2 / 2, 1e-3 * (np.abs(r) - 5e-4)).sum()
        assert fit.loss == pytest.approx(huber, rel=1e-6)

    def test_one_wild_run_does_not_move_it(self):
        points = grid(spread=0.0002)
        wild = [dataclasses.replace(points[0], loss=points[0].loss * 2), *points[1:]]
        assert fit_chinchilla(wild).law.alpha == pytest.approx(REFIT.alpha, abs=0.01)

    def test_too_little_is_refused(self):
        assert "2 token budgets" in fit_chinchilla(grid(budgets=2)).refusals[0]
        assert "2 sizes" in fit_chinchilla(grid(sizes=2)).refusals[0]
        assert "finite runs; five parameters need 8" in fit_chinchilla(grid()[:5]).refusals[0]

    def test_a_term_that_vanishes_is_refused(self):
        by_size_alone = [dataclasses.replace(p, loss=2 + 300 * p.n_params["non_embedding"] ** -0.3) for p in grid()]
        fit = fit_chinchilla(by_size_alone)
        assert fit.law is None and any("term of data vanishes" in r for r in fit.refusals)

    def test_diverged_runs_are_left_out_and_missing_tokens_told(self):
        points = grid()
        assert fit_chinchilla([dataclasses.replace(points[0], loss=math.nan), *points[1:]]).n_points == 239
        with pytest.raises(UserError, match="no tokens"):
            fit_chinchilla([dataclasses.replace(points[0], tokens=None), *points[1:]])
        with pytest.raises(UserError, match="not above 0"):
            fit_chinchilla([dataclasses.replace(points[0], loss=0.0), *points[1:]])


class TestIsoFlop:
    def test_the_exponents_of_the_law_come_back(self):
        fit = fit_isoflop(iso_flop_runs())
        assert fit.refusals == () and len(fit.curves) == 5
        assert fit.n_exponent == pytest.approx(REFIT.beta / (REFIT.alpha + REFIT.beta), abs=1e-3)
        assert fit.d_exponent == pytest.approx(REFIT.alpha / (REFIT.alpha + REFIT.beta), abs=1e-3)
        assert fit.n_low <= fit.n_exponent <= fit.n_high
        for curve in fit.curves:
            best, tokens = REFIT.split(curve.flops)
            assert curve.n == pytest.approx(best, rel=0.05) and curve.tokens == pytest.approx(tokens, rel=0.05)
            assert curve.loss == pytest.approx(REFIT.loss(best, tokens), rel=0.003)

    def test_the_minimum_of_a_lopsided_parabola_is_exact(self):
        runs = [
            point(n, flops / 6 / n, 3 + 0.05 * math.log(n / best) ** 2)
            for flops, best in ((1e17, 1e7), (1e18, 3e7), (1e19, 9e7))
            for n in (best * np.geomspace(0.5, 8, 5)).round()
        ]
        for curve, best in zip(fit_isoflop(runs).curves, (1e7, 3e7, 9e7), strict=True):
            assert curve.n == pytest.approx(best, rel=1e-6) and curve.loss == pytest.approx(3, rel=1e-9)

    def test_the_interval_of_the_exponent_is_student_s(self):
        rng = np.random.default_rng(0)
        runs = [dataclasses.replace(p, loss=p.loss * math.exp(rng.normal(0, 0.002))) for p in iso_flop_runs()]
        fit = fit_isoflop(runs)
        x, y = np.log([c.flops for c in fit.curves]), np.log([c.n for c in fit.curves])
        coefficients, covariance = np.polyfit(x, y, 1, cov=True)
        assert fit.n_high - fit.n_exponent == pytest.approx(3.182446 * math.sqrt(covariance[0, 0]), rel=1e-5)
        assert fit.n_exponent == pytest.approx(coefficients[0])

    @pytest.mark.parametrize(("around", "side"), [(30, "smaller"), (1 / 30, "larger")])
    def test_a_minimum_outside_the_sizes_tried_is_refused(self, around, side):
        fit = fit_isoflop(iso_flop_runs(around))
        assert fit.n_exponent is None and all(c.n is None for c in fit.curves)
        assert "outside the sizes tried" in fit.refusals[0] and side in fit.refusals[0]

    def test_a_curve_that_bends_down_or_has_few_sizes_is_refused(self):
        fit = fit_isoflop([dataclasses.replace(p, loss=9 - p.loss) for p in iso_flop_runs()])
        assert all("opens downward" in c.reason for c in fit.curves)
        assert "3 sizes; a parabola needs 4" in fit_isoflop(iso_flop_runs(widths=3)).refusals[0]

    def test_two_budgets_make_no_power_law(self):
        fit = fit_isoflop(iso_flop_runs(budgets=2))
        assert fit.n_exponent is None and "2 compute budgets have a minimum" in fit.refusals[0]
        json.dumps(dataclasses.asdict(fit), allow_nan=False)

    def test_budgets_that_differ_by_rounding_are_one_curve(self):
        runs = [dataclasses.replace(p, flops=p.flops * (1 + 0.004 * (i % 7))) for i, p in enumerate(iso_flop_runs())]
        assert len(fit_isoflop(runs).curves) == 5


class TestSplits:
    def test_the_split_is_the_minimum_of_the_law(self):
        n, d = REFIT.split(1e20)
        assert 6 * n * d == pytest.approx(1e20)
        for factor in (0.9, 1.1):
            assert REFIT.loss(n * factor, d / factor) > REFIT.loss(n, d)

    def test_the_three_ways_in_agree(self):
        for k in (0, 1):
            by_flops = splits(flops=1e20)[k]
            assert splits(params=by_flops.params)[k].flops == pytest.approx(1e20)
            assert splits(tokens=by_flops.tokens)[k].params == pytest.approx(by_flops.params)

    def test_twenty_tokens_a_parameter_and_the_refit_are_both_named(self):
        rule, refit = splits(params=1e9)
        assert (rule.tokens, rule.flops, rule.tokens_per_parameter) == (2e10, 1.2e20, 20)
        assert "20 tokens" in rule.rule and "Besiroglu" in refit.rule
        assert refit.params == pytest.approx(1e9) and refit.tokens_per_parameter == pytest.approx(
            refit.tokens / refit.params
        )

    def test_chinchilla_itself(self):
        """70 B parameters on 1.4 T tokens, 5.76e23 FLOPs (Hoffmann et al. 2022): both rules land near it."""
        for split in splits(flops=5.76e23):
            assert split.params == pytest.approx(70e9, rel=0.1) and split.tokens == pytest.approx(1.4e12, rel=0.1)

    def test_exactly_one_positive_figure(self):
        for wrong in ({}, {"params": 1e6, "flops": 1e18}):
            with pytest.raises(UserError, match="give exactly one"):
                splits(**wrong)
        for value in (0, -1, math.nan, math.inf):
            with pytest.raises(UserError, match="params is"):
                splits(params=value)


class TestTimeAndMemory:
    def test_time_of_gpt2_on_an_h100_at_the_stated_share(self):
        """llm.c: 468 thousand tokens a second on one H100 at 41% of 989 TFLOP/s, 6·N FLOPs a token and attention's."""
        flops_a_token = 6 * 124e6 + 12 * 12 * 768 * 1024
        assert training_seconds(468e3 * flops_a_token, 989e12, 0.41) == pytest.approx(1, rel=0.02)
        with pytest.raises(UserError, match="at most 1"):
            training_seconds(1e18, 989e12, 41)
        with pytest.raises(UserError, match="peak is 0"):
            training_seconds(1e18, 0, 0.4)

    def test_the_cache_holds_keys_and_values_of_every_layer(self):
        """Llama-2 7B: 0.5 MiB a token in 16 bits, so 2 GiB at 4096 tokens; grouped heads divide it."""
        assert kv_cache_bytes(32, 32, 128, 4096) == 2 * 2**30
        assert kv_cache_bytes(32, 8, 128, 4096, batch=4, dtype="float32") == 4 * 2**30
        with pytest.raises(UserError, match="dtype is 'int3'"):
            kv_cache_bytes(1, 1, 1, 1, dtype="int3")
        with pytest.raises(UserError, match="whole number"):
            kv_cache_bytes(1.5, 1, 1, 1)
        with pytest.raises(UserError, match="batch is 0"):
            kv_cache_bytes(1, 1, 1, 1, batch=0)

    def test_adamw_takes_sixteen_bytes_a_parameter_in_float32_and_in_mixed_precision(self):
        assert training_memory(10**6, "float32").total == training_memory(10**6, "mixed").total == 16 * 10**6
        assert training_memory(10**6).total == 18 * 10**6 and training_memory(10**6, "bfloat16").total == 8 * 10**6
        for policy in POLICIES:
            found = training_memory(7, policy)
            assert found.weights + found.gradients + found.moments + found.copies == found.total
        with pytest.raises(UserError, match="policy is 'fp4'; it must be one of float32, autocast"):
            training_memory(1, "fp4")
