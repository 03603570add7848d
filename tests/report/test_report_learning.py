"""The page shows what `minilm samples` wrote, where it did, and takes nothing that a file holds for granted."""

import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from minilm.report import learning, learning_panels
from minilm.report.page import write_report
from minilm.report.runs import read_run

undrawn = pytest.mark.usefixtures("undrawn_figures")
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>\n| a `b` ````c```` \x00'
STEPS = (0, 50, 2000)
HEATS = (0.3, 0.7, 1.0)


def row(value, spread=0.02, n=20):
    return {"value": value, "low": value - spread, "high": value + spread, "n": n}


def figures(known, copy, accepted=0):
    novelty = {f"novelty_{n}": row((1 - known) * n / 10, 0.01) for n in range(1, 11)}
    counted = {"repeated_4grams": row(0.1), "distinct_1": row(0.8), "distinct_2": row(0.9), "known_words": row(known)}
    empty = {"value": None, "low": None, "high": None, "n": 0}
    stories = {"accepted": row(accepted, 0.1), "followed": row(12, 3), "story_nats": row(0.8) if accepted else empty}
    return counted | novelty | {"longest_copy": row(copy, 2)} | stories


def write_samples(folder, copy=20, text="The fox met the crow."):
    points = [{"name": f"step {s:,}", "step": s, "bits_per_byte": 6 / (1 + s), "samples": []} for s in STEPS]
    for point in points:
        point["samples"] = [
            {"prompt": prompt, "temperature": heat, "text": f"{text} {point['step']} at {heat}"}
            for prompt in ("", "The ")
            for heat in HEATS
        ]
    watch = {"format": 1, "prompts": ["", "The "], "temperatures": HEATS, "checkpoints": points}
    known = [
        {"name": p["name"], "step": p["step"], "best": p["step"] == 2000, "bits_per_byte": row(3 - i)}
        for i, p in enumerate(points)
    ]
    cells = [
        {"checkpoint": i, "step": s, "temperature": heat, **figures(0.3 + 0.2 * i - 0.1 * heat, copy)}
        for i, s in enumerate(STEPS)
        for heat in HEATS
    ]
    quality = {
        "format": 1, "max_new_tokens": 150, "samples": 20, "temperatures": HEATS, "novelty_of": "character",
        "training_characters": 4_000_000, "searched_characters": 4_000_000, "checkpoints": known, "cells": cells,
        "held_out": {"bits_per_byte": 0.6, **figures(0.99, 30, accepted=1)},
        "ngram": {"order": 5, "fitted_on_tokens": 1000, "bits_per_byte": row(1.7),
                  "cells": [{"temperature": heat, **figures(0.8 - 0.1 * heat, 15)} for heat in HEATS]},
    }  # fmt: skip
    (folder / "samples" / "watch.json").write_text(json.dumps(watch), encoding="utf-8")
    (folder / "quality.json").write_text(json.dumps(quality), encoding="utf-8")
    return folder


def edit(path, change):
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def page(folder):
    return write_report([folder]).read_text(encoding="utf-8")


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


@pytest.fixture
def judged(make_run):
    return write_samples(make_run(steps=40))


def test_a_run_without_samples_has_neither_section(make_run):
    text = page(make_run(steps=40))
    assert "Watch it learn" not in text and "How good its texts are" not in text and "Learning to write" in text


@undrawn
def test_every_checkpoint_is_shown_at_every_temperature_after_every_prompt(judged):
    said = plain(page(judged))
    assert "Watch it learn" in said and "The beginning of a new text" in said and "After “The ”" in said
    for step in STEPS:
        assert f"step {step:,}" in said
        for heat in HEATS:
            assert said.count(f"The fox met the crow. {step} at {heat}") == 2
    assert said.index("temperature 0.3") < said.index("temperature 0.7") < said.index("temperature 1")
    assert "Learning to write" not in said, "the same, at one temperature"


@undrawn
def test_long_samples_are_folded_away_and_cut(judged):
    write_samples(judged, text="x" * 3000 + "y\n")
    text = page(judged)
    assert text.count("<details") == text.count("</details>") == 8 and "x" * 900 not in text
    edit(
        judged / "samples" / "watch.json",
        lambda w: w["checkpoints"][0]["samples"][0].update(text="a" + "\n" * 30 + "b"),
    )
    assert "[30 line ends]" in page(judged)


def test_the_figures_show_the_model_beside_held_out_text_and_the_ngram_model(judged):
    text = page(judged)
    said = plain(text)
    for title in (
        "Words that the training text has",
        "New 8-grams of characters",
        "Longest copy from the training text",
    ):
        assert said.count(title) == 2, title
    assert "Bits a byte of held-out text" in said and "Characters before the grammar objects" in said
    assert "held-out text" in said and "5-gram model, temperature 1" in said
    assert {p.name for p in judged.glob("quality_*.png")} == {
        f"quality_by_step_{judged.name}.png",
        f"quality_by_temperature_{judged.name}.png",
    }
    markdown = (judged / "report.md").read_text(encoding="utf-8")
    assert f"(quality_by_step_{judged.name}.png)" in markdown and "| held-out text |" in markdown


@undrawn
def test_the_numbers_are_those_of_the_best_checkpoint_with_their_intervals(judged):
    said = plain(page(judged))
    assert "In numbers, step 2,000" in said
    assert "temperature 0.7 63% 61% to 65%" in said and "held-out text 99% 97% to 101%" in said
    assert "it writes at temperature 0.7, 63% (95%: 61% to 65%) occur" in said
    assert "Of 20 stories judged the grammar accepts 0" in said


@undrawn
@pytest.mark.parametrize(("copy", "verdict"), [(20, "no sign of memorising"), (80, "some of it was memorised")])
def test_copies_are_judged_against_those_of_held_out_text(make_run, copy, verdict):
    assert verdict in plain(page(write_samples(make_run(steps=40), copy=copy)))


@undrawn
def test_a_training_text_that_was_searched_in_part_is_said_to_be(judged):
    assert "is not found" not in plain(page(judged))
    edit(judged / "quality.json", lambda q: q.update(training_characters=50_000_000))
    assert "in the first 4M of the 50M characters of training text" in plain(page(judged))


def test_the_same_files_give_the_same_bytes(judged):
    def written():
        page(judged)
        return {p.name: p.read_bytes() for p in judged.iterdir() if p.suffix in (".png", ".html", ".md")}

    first = written()
    assert len(first) == 5 and written() == first


def test_nothing_in_the_files_is_taken_for_markup(judged):
    def spoil(w):
        w["prompts"][0] = HOSTILE
        w["checkpoints"][0]["name"] = HOSTILE
        w["checkpoints"][0]["samples"][0].update(prompt=HOSTILE, text=HOSTILE)

    edit(judged / "samples" / "watch.json", spoil)
    edit(judged / "quality.json", lambda q: q["checkpoints"][2].update(name=HOSTILE))
    text = page(judged)
    assert "<script" not in text and "<img" not in text and "\0" not in text and "&lt;script&gt;" in text


@undrawn
@pytest.mark.parametrize(
    "change",
    [
        lambda q: q.clear(),
        lambda q: q.update(cells=[1, None, {"temperature": "hot"}]),
        lambda q: q.update(checkpoints=[]),
        lambda q: q.update(checkpoints=7, ngram=[], held_out=None),
        lambda q: q["cells"][0].update(known_words={"value": 1e999, "low": "x"}),
        lambda q: [c.update(known_words=None) for c in q["cells"]],
        lambda q: [c.pop("longest_copy") for c in q["cells"]],
        lambda q: q.update(cells=q["cells"][:1]),
    ],
)
def test_a_file_of_another_form_is_passed_over(judged, change):
    edit(judged / "quality.json", change)
    run = read_run(judged)
    found, plates = learning.quality_of(run, "r0", "run"), learning.plates_of(run)
    assert " nan" not in str(found) and len(plates) == len(found.get("plates", []))


@undrawn
def test_a_torn_file_is_left_out_and_said_to_be(judged):
    (judged / "quality.json").write_text('{"cells": [')
    (judged / "samples" / "watch.json").write_text("[]")
    said = plain(page(judged))
    assert "quality.json could not be read" in said and "watch.json could not be read" in said


def test_a_line_is_drawn_through_what_is_known_and_bars_where_there_is_an_interval():
    axes = Figure().add_subplot()
    value = np.array([0.2, np.nan, 0.4])
    line = ("s1", "solid", np.array([0.0, 10.0, 100.0]), value, value - 0.1, np.array([0.3, 0.5, np.nan]))
    learning_panels.draw_figure(axes, [line], [("ink", "dashed", 0.9), ("muted", "dotted", np.nan)], "%", "step")
    drawn = axes.get_lines()
    assert drawn[0].get_xydata().tolist() == [[0.0, 0.2], [100.0, 0.4]]
    assert [set(other.get_ydata()) for other in drawn[1:]] == [{0.9}]
    assert len(axes.collections[0].get_segments()) == 1
    assert axes.get_ylim()[0] < 0.1 and axes.get_ylim()[1] > 0.9


def test_labels_of_many_checkpoints_keep_clear_of_each_other():
    steps = np.array([0, *2.0 ** np.arange(10), *range(1000, 20_001, 500)])
    axes = Figure().add_subplot()
    line = ("s1", "solid", steps, np.full(len(steps), 0.5), np.full(len(steps), np.nan), np.full(len(steps), np.nan))
    learning_panels.draw_figure(axes, [line], [], "bits", "step")
    ticks = axes.get_xticks()
    places = axes.transData.transform([(t, 0.5) for t in ticks])[:, 0]
    assert ticks[0] == 0 and ticks[-1] == 20_000 and 3 <= len(ticks) <= 7
    assert np.diff(places).min() > 0.1 * (places[-1] - places[0])


def test_panels_are_as_many_as_there_is_something_to_show(judged):
    edit(judged / "quality.json", lambda q: q.update(checkpoints=q["checkpoints"][2:], cells=q["cells"][6:]))
    edit(judged / "quality.json", lambda q: [c.update(checkpoint=0) for c in q["cells"]])
    names = [plate.name for plate in learning.plates_of(read_run(judged))]
    assert names == ["quality_by_temperature"], "one checkpoint is no curve"


def test_a_text_of_nothing_but_line_ends_says_so():
    """A young model at a low temperature often writes no more than that."""
    assert learning._cut("\n" * 150, "") == "[nothing but 150 blanks]"
    assert learning._cut("\n\nOnce", "") == "Once"
