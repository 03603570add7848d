"""Comparisons of arms: few false alarms, known power, and an honest sentence wherever nothing can be said."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from minilm.errors import UserError
from minilm.studies.statistics import LEVEL, compare, equivalence, power


def simulated(rng, arms=8, seeds=3, of_seed=0.0, noise=0.005, effects=None, control=False):
    """A study with a true effect an arm (none by default); the A/A arm draws seeds of its own."""
    block = rng.normal(0, of_seed, seeds)
    trials = {
        f"arm{i}": [(s, 3 + block[s] + (effects or {}).get(i, 0) + rng.normal(0, noise)) for s in range(seeds)]
        for i in range(arms + 1)
    }
    if control:
        trials["again"] = [(100 + s, 3 + rng.normal(0, of_seed) + rng.normal(0, noise)) for s in range(seeds)]
    return trials


def arms_of(rng, *sizes):
    """Arms whose seeds are all different, for a one-way design."""
    return {f"arm{i}": [(100 * i + s, float(v)) for s, v in enumerate(rng.normal(size=n))] for i, n in enumerate(sizes)}


def values(trials):
    return [[v for _, v in pairs] for pairs in trials.values()]


def most_allowed(studies, rate=LEVEL):
    """The count that a true rate of 5% exceeds once in a hundred."""
    return stats.binom.ppf(0.99, studies, rate)


class TestFalsePositives:
    @staticmethod
    def alarms(studies, of_seed, seed):
        rng = np.random.default_rng(seed)
        found = [compare(simulated(rng, of_seed=of_seed, control=True), "arm0", "again") for _ in range(studies)]
        family = sum(any(c.verdict != "inconclusive" for c in study.comparisons) for study in found)
        return family, sum(not study.control.inside for study in found), found

    @pytest.mark.parametrize("of_seed", [0.0, 0.01])
    def test_null_studies_raise_no_more_alarms_than_the_level(self, of_seed):
        family, control, found = self.alarms(250, of_seed, seed=7)
        assert family <= most_allowed(250) and control <= most_allowed(250)
        assert family >= stats.binom.ppf(0.001, 250, LEVEL)  # a rule that never speaks would pass too
        covered = np.mean([[arm.low < 3 < arm.high for arm in study.arms] for study in found])
        assert covered > 0.93

    @pytest.mark.slow
    @pytest.mark.parametrize("of_seed", [0.0, 0.003, 0.01])
    def test_at_most_62_of_1000_in_2000_null_studies(self, of_seed):
        family, control, _ = self.alarms(2000, of_seed, seed=11)
        print(f"seed effect {of_seed}: family-wise {family / 2000:.4f}, A/A {control / 2000:.4f}")
        assert family <= 0.062 * 2000
        assert control <= 0.062 * 2000


class TestDunnett:
    @pytest.mark.parametrize("sizes", [(3, 3, 3, 3, 3), (6, 3, 4, 5)])
    def test_adjusted_p_and_intervals_are_those_of_scipy(self, sizes):
        trials = arms_of(np.random.default_rng(3), *sizes)
        study = compare(trials, "arm0")
        control, *others = values(trials)
        theirs = stats.dunnett(*others, control=control, random_state=0)
        assert study.design == "one-way"
        assert [c.p for c in study.comparisons] == pytest.approx(theirs.pvalue, abs=5e-4)
        ends = theirs.confidence_interval(0.95)
        assert [c.low for c in study.comparisons] == pytest.approx(ends.low, abs=0.01)
        assert [c.high for c in study.comparisons] == pytest.approx(ends.high, abs=0.01)

    def test_the_tabled_critical_value(self):
        """Dunnett 1964, table II: 8 comparisons, 16 degrees of freedom, two-sided 5%: 2.97."""
        study = compare(simulated(np.random.default_rng(0)), "arm0")
        assert study.df == 16
        assert study.critical == pytest.approx(2.97, abs=0.005)

    def test_one_arm_with_shared_seeds_is_the_paired_t_test(self):
        trials = simulated(np.random.default_rng(5), arms=1, seeds=4, of_seed=0.1)
        study = compare(trials, "arm0")
        assert study.design == "blocked"
        assert study.comparisons[0].p == pytest.approx(stats.ttest_rel(*values(trials)[::-1]).pvalue, rel=1e-6)

    def test_an_interval_excludes_zero_exactly_where_p_is_below_the_level(self):
        rng = np.random.default_rng(2)
        for _ in range(20):
            study = compare(simulated(rng, effects={1: 0.02, 2: -0.015, 3: 0.012}), "arm0")
            for c in study.comparisons:
                assert (c.low > 0 or c.high < 0) == (c.p < LEVEL)

    def test_blocks_with_holes_keep_their_model_and_repeat_their_digits(self):
        trials = simulated(np.random.default_rng(4), arms=3, seeds=5, of_seed=1.0, effects={1: -0.05})
        trials["arm2"][1] = (1, math.nan)
        trials["arm3"] = trials["arm3"][:3]
        study = compare(trials, "arm0")
        assert study.design == "blocked"
        assert study.spread == pytest.approx(0.005, rel=0.6)  # seeds differ by 1.0: only blocks can show this
        assert study.comparisons[0].verdict == "better"
        assert study == compare(trials, "arm0")

    def test_where_holes_leave_no_common_seed_the_design_is_one_way(self):
        first, second = [3.0, 3.1], [3.3, 3.5]
        trials = {
            "arm0": [(0, first[0]), (1, first[1]), (2, None), (3, None)],
            "arm1": [(0, None), (1, None), (2, second[0]), (3, second[1])],
        }
        study = compare(trials, "arm0")
        assert study.design == "one-way"
        assert study.comparisons[0].p == pytest.approx(stats.ttest_ind(first, second).pvalue, rel=1e-6)


class TestPower:
    def test_what_three_and_five_seeds_can_find(self):
        """Difference 0.01, spread 0.005, eight arms: Dunnett finds a little more than Bonferroni's 0.30 and 0.60."""
        assert power(0.01, 0.005, 3, 8) == pytest.approx(0.337, abs=0.002)
        assert power(0.01, 0.005, 5, 8) == pytest.approx(0.640, abs=0.002)

    def test_the_stated_power_is_the_rate_of_findings(self):
        rng = np.random.default_rng(8)
        found = sum(
            compare(simulated(rng, of_seed=0.01, effects={1: 0.01}), "arm0").comparisons[0].verdict == "worse"
            for _ in range(300)
        )
        assert abs(found / 300 - 0.337) < 2.6 * math.sqrt(0.337 * 0.663 / 300)

    def test_the_detectable_effect_is_found_with_probability_080(self):
        study = compare(simulated(np.random.default_rng(1)), "arm0")
        for c in study.comparisons:
            assert power(c.detectable, study.spread, 3, 8) == pytest.approx(0.8, abs=1e-3)

    def test_senseless_designs_are_told(self):
        for wrong in ((0.01, 0.005, 1, 8), (0.01, 0.005, 3, 0), (0.01, 0.0, 3, 8)):
            with pytest.raises(UserError, match="give 2 seeds"):
                power(*wrong)


class TestVerdicts:
    trials = simulated(np.random.default_rng(6), arms=3, seeds=4, effects={1: -0.1, 2: 0.1})

    def test_lower_loss_is_better_and_the_rest_inconclusive(self):
        study = compare(self.trials, "arm0")
        assert [c.verdict for c in study.comparisons] == ["better", "worse", "inconclusive"]
        assert study.comparisons[0].difference == pytest.approx(-0.1, abs=0.02)
        assert (study.comparisons[0].n, study.comparisons[0].n_baseline) == (4, 4)

    @pytest.mark.parametrize("failed", [None, math.nan, math.inf])
    def test_an_arm_that_diverged_is_named_and_never_better(self, failed):
        trials = self.trials | {"arm1": [(0, failed), *self.trials["arm1"][1:]]}
        study = compare(trials, "arm0")
        assert study.comparisons[0].p < LEVEL and study.comparisons[0].verdict == "inconclusive"
        assert "Seed 0 of arm1 diverged" in study.comparisons[0].reason
        assert study.arms[1].diverged == (0,) and study.arms[1].n == 3
        assert study.comparisons[1].verdict == "worse"

    def test_nothing_is_worse_than_a_baseline_that_diverged(self):
        study = compare(self.trials | {"arm0": [(0, math.nan), *self.trials["arm0"][1:]]}, "arm0")
        assert [c.verdict for c in study.comparisons] == ["better", "inconclusive", "inconclusive"]
        assert study.comparisons[1].p < LEVEL

    def test_an_arm_with_a_spread_of_its_own_gets_no_verdict(self):
        wild = [(s, 3 + 0.8 * (s - 1.4)) for s in range(4)]
        study = compare(self.trials | {"wild": wild}, "arm0")
        assert "times that of the other arms" in study.comparisons[-1].reason
        assert any("spread of wild" in w for w in study.warnings)

    def test_a_study_becomes_json(self):
        text = json.dumps(dataclasses.asdict(compare(self.trials, "arm0", "arm3")), allow_nan=False)
        assert json.loads(text)["comparisons"][0]["verdict"] == "better"
        assert json.loads(json.dumps(dataclasses.asdict(equivalence([(0, 1.0)], [(0, 1.0)], 0.1))))["n"] == 1


class TestControl:
    def test_the_control_is_outside_the_family_and_does_not_touch_the_comparisons_of_blocks(self):
        trials = simulated(np.random.default_rng(9), control=True)
        study = compare(trials, "arm0", "again")
        without = compare({a: pairs for a, pairs in trials.items() if a != "again"}, "arm0")
        assert study.comparisons == without.comparisons
        assert study.control.inside is True and study.control.low < 0 < study.control.high

    def test_in_a_one_way_design_it_informs_the_pooled_spread(self):
        trials = arms_of(np.random.default_rng(9), 3, 3, 3)
        assert compare(trials, "arm0").df == 6
        study = compare(trials, "arm0", "arm2")
        assert study.df == 6 and len(study.comparisons) == 1

    def test_in_blocks_its_p_is_that_of_two_samples_and_in_one_way_designs_that_of_the_pool(self):
        trials = simulated(np.random.default_rng(9), of_seed=0.01, control=True)
        two = stats.ttest_ind([v for _, v in trials["again"]], [v for _, v in trials["arm0"]])
        assert compare(trials, "arm0", "again").control.p == pytest.approx(two.pvalue, rel=1e-6)
        one_way = arms_of(np.random.default_rng(9), 3, 4, 5)
        study = compare(one_way, "arm0", "arm2")
        t = study.control.difference / (study.spread * math.sqrt(1 / 3 + 1 / 5))
        assert study.control.p == pytest.approx(2 * stats.t.sf(abs(t), 9), rel=1e-6)

    def test_a_control_that_differs_is_outside(self):
        trials = simulated(np.random.default_rng(9), control=True)
        trials["again"] = [(s, v + 0.05) for s, v in trials["again"]]
        assert compare(trials, "arm0", "again").control.inside is False

    def test_a_control_with_the_baselines_seeds_shows_nothing(self):
        trials = simulated(np.random.default_rng(9))
        study = compare(trials | {"again": trials["arm0"]}, "arm0", "again")
        assert study.control.p is None and "shares seeds" in study.control.reason


class TestWhereNothingCanBeSaid:
    @pytest.mark.parametrize(
        ("trials", "reason"),
        [
            ({"a": [(0, 3.0)], "b": [(0, 3.1)]}, "Too few seeds"),
            ({"a": [(0, 3.0), (1, 3.0)], "b": [(0, 3.0), (1, 3.0)]}, "No spread"),
            ({"a": [(0, 3.0), (1, 3.0)], "b": [(0, 3.1), (1, 3.1)]}, "No spread"),
            ({"a": [(0, 3.0), (1, 3.1)], "b": [(0, math.nan), (1, None)]}, "b has no finite trial"),
            ({"a": [(0, math.nan)], "b": [(0, 3.0), (1, 3.1)]}, "a has no finite trial"),
            (
                {"a": [(0, 3.0), (1, 3.1), (2, 3.2)], "c": [(0, 3.0), (1, 3.1), (2, 3.3)], "b": [(0, 2.0)]},
                "b has one finite trial",
            ),
            ({"a": [], "b": []}, "a has no finite trial"),
        ],
    )
    def test_a_sentence_and_no_verdict(self, trials, reason):
        study = compare(trials, "a")
        assert study.comparisons[-1].verdict == "inconclusive" and reason in study.comparisons[-1].reason
        json.dumps(dataclasses.asdict(study), allow_nan=False)

    def test_two_seeds_are_judged_with_a_warning(self):
        study = compare({"a": [(0, 3.0), (1, 3.1)], "b": [(0, 3.01), (1, 3.1)]}, "a")
        assert study.comparisons[0].p is not None
        assert any("Fewer than 3" in w for w in study.warnings)

    def test_one_arm_has_an_interval_and_nothing_to_compare(self):
        study = compare({"a": [(0, 3.0), (1, 3.1), (2, 3.3)]}, "a")
        half = stats.t.ppf(0.975, 2) * np.std([3.0, 3.1, 3.3], ddof=1) / math.sqrt(3)
        assert study.comparisons == () and "nothing to compare" in study.warnings[0]
        assert study.arms[0].high - study.arms[0].mean == pytest.approx(half)

    def test_wrong_names_and_repeated_seeds_are_told(self):
        good = [(0, 3.0), (1, 3.1)]
        with pytest.raises(UserError, match="baseline 'x' is none"):
            compare({"a": good}, "x")
        with pytest.raises(UserError, match="A/A arm 'x' is none"):
            compare({"a": good}, "a", "x")
        with pytest.raises(UserError, match="needs its own name"):
            compare({"a": good}, "a", "a")
        with pytest.raises(UserError, match="more than once"):
            compare({"a": [(0, 3.0), (0, 3.1)]}, "a")


class TestEquivalence:
    first = ((0, 3.0), (1, 3.2), (2, 3.1))

    @staticmethod
    def shifted(pairs, *by):
        return [(s, v + d) for (s, v), d in zip(pairs, by, strict=True)]

    def test_p_is_the_larger_of_two_one_sided_paired_tests(self):
        second = self.shifted(self.first, 0.002, -0.001, 0.003)
        found = equivalence(self.first, second, 0.01)
        d = np.array([0.002, -0.001, 0.003])
        tests = stats.ttest_1samp(d, -0.01, alternative="greater"), stats.ttest_1samp(d, 0.01, alternative="less")
        assert found.p == pytest.approx(max(t.pvalue for t in tests), rel=1e-6)
        assert found.verdict == "equivalent" and -0.01 < found.low < found.high < 0.01
        ends = stats.ttest_1samp(d, 0).confidence_interval(0.90)
        assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-6)

    def test_a_wide_interval_is_not_shown_equivalent_and_one_outside_is_different(self):
        wide = equivalence(self.first, self.shifted(self.first, 0.03, -0.03, 0.0), 0.01)
        assert wide.verdict == "not shown equivalent" and wide.p > LEVEL
        for sign in (1, -1):
            far = self.shifted(self.first, sign * 0.05, sign * 0.051, sign * 0.049)
            assert equivalence(self.first, far, 0.01).verdict == "different"

    def test_a_true_difference_of_the_margin_passes_no_more_often_than_the_level(self):
        rng = np.random.default_rng(0)
        passed = 0
        for _ in range(2000):
            base = rng.normal(3, 0.1, 3)
            pair = list(enumerate(base)), list(enumerate(base + 0.01 + rng.normal(0, 0.002, 3)))
            passed += equivalence(*pair, 0.01).verdict == "equivalent"
        assert stats.binom.ppf(0.001, 2000, LEVEL) < passed <= most_allowed(2000)

    def test_identical_to_the_bit_is_equivalent(self):
        found = equivalence(self.first, self.first, 0.01)
        assert (found.verdict, found.p, found.low, found.high) == ("equivalent", 0.0, 0.0, 0.0)
        assert "to the bit" in found.reason

    def test_the_same_difference_in_every_seed_shows_nothing(self):
        found = equivalence([(0, 1.0), (1, 2.0)], [(0, 1.5), (1, 2.5)], 1.0)
        assert found.verdict == "not shown equivalent" and "same in every seed" in found.reason

    def test_one_seed_or_none_shows_nothing(self):
        assert "One seed" in equivalence([(0, 3.0)], [(0, 3.0)], 0.01).reason
        assert equivalence([(0, 3.0)], [(1, 3.0)], 0.01).verdict == "not shown equivalent"

    def test_a_diverged_trial_forbids_equivalence(self):
        found = equivalence([*self.first, (3, 3.0)], [*self.first, (3, math.nan)], 0.01)
        assert found.verdict == "not shown equivalent" and "Seed 3" in found.reason and found.n == 3

    @pytest.mark.parametrize("margin", [0, -1, math.nan])
    def test_a_margin_must_be_positive(self, margin):
        with pytest.raises(UserError, match="margin"):
            equivalence(self.first, self.first, margin)
