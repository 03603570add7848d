"""A race: recipes take turns, what counts is the mean over seeds, and the report says what was measured."""

import json

import pytest
from rich.console import Console

from minilm.errors import UserError
from minilm.report.race import print_race, verdict, write_race
from minilm.studies import race, trials
from minilm.studies.race import Race, first_at_most
from minilm.studies.racing import run_race
from tests.children import forked


def runner(name, seeds_curves, target, steps=(10, 20, 30)):
    """From {seed: losses}, an evaluation every second times the seed."""
    folders = {}
    for seed, losses in seeds_curves.items():
        folders[seed] = [(10.0 * seed * (i + 1), loss) for i, loss in enumerate(losses)]
    walls = [[w for w, _ in curve] for curve in folders.values()]
    curves = list(seeds_curves.values())
    wall = [sum(at) / len(at) for at in zip(*walls, strict=True)]
    mean = [sum(at) / len(at) for at in zip(*curves, strict=True)]
    return race.Runner(
        name=name,
        seeds=list(seeds_curves),
        parameters=1000,
        total_steps=steps[-1],
        total_s=wall[-1],
        steps=list(steps),
        wall_s=wall,
        losses=mean,
        low=[min(at) for at in zip(*curves, strict=True)],
        high=[max(at) for at in zip(*curves, strict=True)],
        curves=list(zip(walls, curves, strict=True)),
        to_target_s=first_at_most(target, wall, mean),
        by_seed_s=[first_at_most(target, w, c) for w, c in zip(walls, curves, strict=True)],
    )


SLOW = {1: [3.0, 2.5, 2.0], 2: [3.1, 2.4, 1.9], 3: [3.0, 2.6, 2.0]}
FAST = {1: [2.0, 1.9, 1.8], 2: [1.9, 1.8, 1.7], 3: [2.2, 2.0, 1.7]}


class TestPlan:
    def test_recipes_take_turns_seed_by_seed(self):
        trials = race.plan(["shakespeare-char-cpu", "shakespeare-char-cpu-fast"], 2, source="x.txt")
        assert [(t.arm.endswith("fast"), t.seed) for t in trials] == [(False, 1), (True, 1), (False, 2), (True, 2)]
        assert all(t.config.train.seed == t.seed and t.config.data.source == "x.txt" for t in trials)
        assert [t.config.train.eval_interval for t in trials] == [100, 10, 100, 10]
        assert len({t.id for t in trials}) == 4

    def test_a_fast_recipe_has_nanogpts_data_and_no_other_inputs_than_its_tokens(self):
        """The same text, split and tokens; at least four layers, 128 wide."""
        from minilm.config import build

        for recipe, baseline in (race.ON_CPU[0][::-1], race.ON_GPU[0][::-1]):
            ours, theirs = build(recipe), build(baseline)
            assert ours.data == theirs.data and ours.model.context_length == theirs.model.context_length
            assert ours.model.n_layers >= 4 and ours.model.d_model >= 128


class TestResult:
    def test_a_loss_counts_once_it_is_measured(self):
        assert first_at_most(2.0, [1, 2, 3], [3.0, 2.1, 2.0]) == 3
        assert first_at_most(2.0, [1, 2, 3], [3.0, 1.9, 2.5]) == 2
        assert first_at_most(2.0, [1, 2], [3.0, 2.1]) is None

    def test_the_mean_over_seeds_decides_and_its_interval_is_of_the_ratio(self):
        found = Race(2.0, "a machine", [runner("slow", SLOW, 2.0), runner("fast", FAST, 2.0)])
        slow, fast = found.runners
        assert slow.to_target_s == 60 and fast.to_target_s == 40  # the third and the second evaluation, mean wall
        assert slow.by_seed_s == [30, 60, 90] and fast.by_seed_s == [10, 20, 60]
        said = verdict(found)
        assert "fast reached a validation loss of 2 in 40 s, slow in 1 min 00 s: 1.5 times as fast" in said
        assert "95% interval of the ratio over 3 seeds 0.9 to 6.4" in said

    def test_a_baseline_that_never_got_there_gives_a_bound(self):
        said = verdict(Race(1.8, "a machine", [runner("slow", SLOW, 1.8), runner("fast", FAST, 1.8)]))
        assert said.startswith(
            "fast reached a validation loss of 1.8 in 1 min 00 s; slow had not reached 1.8 when its 30"
        )
        assert said.endswith("1.0 times as long.")

    def test_one_that_missed_is_named(self):
        found = Race(1.75, "a machine", [runner("slow", SLOW, 1.75), runner("fast", FAST, 1.75)])
        assert "no other recipe" not in verdict(found) or found.runners[1].to_target_s is None
        text = _printed(found)
        assert "fast missed 1.75 with 1 of 3 seeds." in text and "not reached" in text

    def test_few_seeds_are_said(self):
        found = Race(2.0, "a machine", [runner("slow", {1: SLOW[1]}, 2.0), runner("fast", {1: FAST[1]}, 2.0)])
        assert "fast ran with 1 seeds" in _printed(found) and "interval" not in verdict(found)

    def test_the_page_is_the_same_bytes_and_holds_the_curve(self, tmp_path):
        found = Race(2.0, "a <machine>", [runner("slow", SLOW, 2.0), runner("fast", FAST, 2.0)])
        pages = [write_race(found, tmp_path / name).read_bytes() for name in ("a", "b")]
        assert pages[0] == pages[1] and b"a &lt;machine&gt;" in pages[0] and b"<svg" in pages[0]
        assert {p.name for p in (tmp_path / "a").iterdir()} == {"race.html", "race.md", "race.json", "race.png"}
        saved = json.loads((tmp_path / "a" / "race.json").read_text())
        assert saved["runners"][1]["to_target_s"] == 40


def _printed(found):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_race(found, console)
    return console.export_text()


class TestCommand:
    def race(self, out, **changes):
        usual = {"recipes": "tiny", "target": 3.0, "seeds": 1, "source": None, "device": "cpu", "kernels": "torch"}
        run_race(**{**usual, "beside": (), "out": out, "resume": False, **changes})

    def test_what_is_wrong_is_said_before_anything_runs(self, tmp_path):
        for changes, words in (
            ({"recipes": "tiny,none"}, "There is no preset 'none'"),
            ({"recipes": "tiny,tiny"}, "names one twice"),
            ({"target": None}, "needs a --target"),
        ):
            with pytest.raises(UserError, match=words):
                self.race(tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()

    def test_it_runs_reports_and_is_not_run_twice(self, tmp_path, capsys):
        with forked(trials):
            self.race(tmp_path / "out", target=4.0)
        assert "tiny reached a validation loss of 4 in" in capsys.readouterr().out.replace("\n", " ")
        assert (tmp_path / "out" / "race.html").exists()
        run = next(p for p in (tmp_path / "out" / "trials").iterdir() if p.is_dir())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert sum("val_loss" in row for row in rows) == 21  # at the start and every fifth of 100 steps
        with pytest.raises(UserError, match="go on with it by --resume"):
            self.race(tmp_path / "out")
        self.race(tmp_path / "out", target=4.0, resume=True, beside=(run,))
        assert "tiny ran with 2 seeds" in capsys.readouterr().out
