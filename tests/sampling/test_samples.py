"""`minilm samples`: every checkpoint at every temperature, judged beside what it is compared with."""

import contextlib
import dataclasses
import io
import json
import shutil
import sys

import numpy as np
import pytest
from rich.console import Console

from minilm.cli import main
from minilm.config import build
from minilm.corpus import fables
from minilm.corpus.dataset import prepared
from minilm.errors import UserError
from minilm.sampling import quality, samples, yardsticks
from minilm.sampling.generate import load_run
from minilm.sampling.samples import write_samples
from minilm.training.evaluate import evaluate
from minilm.training.journal import read_config
from minilm.training.loop import train

SMALL = {"n_layers": 1, "n_heads": 2, "d_model": 32, "context_length": 32}
SHORT = {"steps": 12, "batch_size": 8, "eval_interval": 12, "save_at": "0,5", "device": "cpu", "kernels": "torch"}
FEW = {"temperatures": (0.5, 1.0), "max_new_tokens": 60, "samples": 4, "device_name": "cpu"}


def train_small(out, **data):
    config = build("tiny", {"model": SMALL, "train": SHORT | {"eval_tokens": 2000}, "data": data})
    train(config, out, console=Console(file=io.StringIO()))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_small(tmp_path_factory.mktemp("runs") / "fables-001", characters=60_000, val_fraction=0.4)


@pytest.fixture(scope="module")
def found(run):
    return write_samples(run, **FEW)


@pytest.fixture(scope="module")
def data(run):
    return prepared(read_config(run).data)


def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["minilm", "samples", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, out.getvalue(), err.getvalue()


def refused(code, out, err):
    assert code == 2 and not out
    assert err.startswith("minilm: ") and err.count("\n") == 1, err
    return err


# What is written


def test_every_checkpoint_writes_after_every_prompt_at_every_temperature(found, run):
    watch = json.loads((run / "samples" / "watch.json").read_text())
    assert watch == found["watch"]
    assert [point["name"] for point in watch["checkpoints"]] == ["step 0", "step 5", "step 12, best, last"]
    for point in watch["checkpoints"]:
        written = {(s["prompt"], s["temperature"]): s["text"] for s in point["samples"]}
        assert written.keys() == {(p, t) for p in samples.PROMPTS for t in FEW["temperatures"]}
        assert len(set(written.values())) == len(written) and {len(text) for text in written.values()} == {60}


def test_a_person_can_read_it_all_as_text(found, run):
    text = (run / "samples" / "watch.txt").read_text(encoding="utf-8")
    for point in found["watch"]["checkpoints"]:
        assert text.count(f"--- {point['name']}") == 6
        assert all(s["prompt"] + s["text"] in text for s in point["samples"])


def test_samples_that_training_wrote_stay_as_they_are(tmp_path, run):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "samples" / "step_000012.json").write_text('{"step": 12, "samples": []}')
    write_samples(copy, **FEW, quality=False)
    assert (copy / "samples" / "step_000012.json").read_text() == '{"step": 12, "samples": []}'


def test_the_same_seed_gives_the_same_files_and_another_seed_others(run, found):
    def written(**changes):
        return [path.read_bytes() for path in write_samples(run, **FEW | changes)["files"]]

    first = written()
    other = written(seed=1)
    assert written() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_an_interrupted_command_writes_nothing(tmp_path, run):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("watch*", "quality*"))

    def stop(done, total, what):
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(copy, **FEW, on_progress=stop)
    assert not [path for path in copy.rglob("*") if "watch" in path.name or "quality" in path.name]


def test_progress_goes_from_nothing_to_all(run):
    told = []
    write_samples(run, **FEW, on_progress=lambda done, total, what: told.append((done, total)))
    assert told == [(i, told[0][1]) for i in range(told[0][1] + 1)]


# How it is judged


def test_every_cell_holds_the_figures_of_its_own_texts(found, run, data):
    judged, write = found["quality"], yardsticks.model_writer
    training = quality.Training(yardsticks.training_text(data))
    assert [(c["step"], c["temperature"]) for c in judged["cells"]] == [(s, t) for s in (0, 5, 12) for t in (0.5, 1.0)]
    model, tokenizer = load_run(run, "5", device_name="cpu")
    cell = judged["cells"][2]
    seed = samples._own(0, 0.5)
    ids = yardsticks.written(write(model, 0.5, seed), tokenizer.encode("\n\n"), 4, 60)
    texts = [tokenizer.decode(row) for row in ids]
    words = [word for text in texts for word in quality.words_of(text)]
    text = yardsticks.training_text(data)
    copied = [max(len(t[i:j]) for i in range(60) for j in range(i, 61) if t[i:j] in text) for t in texts]
    assert cell["known_words"]["value"] == pytest.approx(np.mean([word in training.words for word in words]))
    assert cell["longest_copy"]["value"] == np.mean(copied) and len(cell["copied"]) == max(copied)
    assert cell["copied"] in text and cell["novelty_1"]["value"] == 0


def test_held_out_text_and_the_ngram_model_are_judged_alike(found, data):
    judged, held = found["quality"], found["quality"]["held_out"]
    assert held["accepted"]["value"] == 1 and 0.7 < held["known_words"]["value"] < 1
    assert held["story_nats"]["low"] < data.floor < held["story_nats"]["high"]
    assert held["bits_per_byte"] == pytest.approx(data.bits_per_byte(data.floor))
    grams = judged["ngram"]
    assert grams["order"] == 5 and [c["temperature"] for c in grams["cells"]] == [0.5, 1.0]
    figures = set(judged["cells"][0]) - {"checkpoint", "step"}
    assert figures == set(grams["cells"][0]) == set(held) - {"bits_per_byte"} | {"temperature"}
    assert grams["fitted_on_tokens"] == 12 * 8 * 32


def test_bits_a_byte_are_the_runs_own_where_it_evaluated_and_measured_where_not(found, run, data):
    zero, five, last = (point["bits_per_byte"] for point in found["quality"]["checkpoints"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    known = {row["step"]: row["val_bpb"] for row in rows if "val_bpb" in row}
    assert (zero["value"], last["value"]) == (known[0], known[12]) and "run" in zero["by"]
    assert 5 not in known and last["value"] < five["value"] < zero["value"] and "windows" in five["by"]
    assert all(row["low"] < row["value"] < row["high"] for row in (zero, five, last))


def test_bits_measured_over_all_windows_are_what_evaluation_gives(run, data, monkeypatch):
    model, _ = load_run(run, "5", device_name="cpu")
    short = dataclasses.replace(data, val=np.array(data.val[: 32 * 40 + 1]))
    monkeypatch.setattr(yardsticks, "WINDOWS", 40)
    found = yardsticks.bits_per_byte(model, short, None, 0)
    assert found["value"] == pytest.approx(data.bits_per_byte(evaluate(model, short.val)), rel=1e-5)


def test_judged_texts_have_words_enough_for_distinct_figures(found):
    assert found["quality"]["held_out"]["distinct_2"]["n"] > 0.8 * found["quality"]["held_out"]["known_words"]["n"]


def test_stories_are_gone_on_with_until_they_end_and_only_while_they_are_in_order(data):
    told = [story for story, _ in fables.stories(8000, seed=3)][:5]
    told[4] = told[4][:100] + "Q" + told[4][100:]
    asked = []

    def write(rows, more):
        asked.append(len(rows))
        texts = [data.tokenizer.decode(row[2:]) for row in rows]
        whole = [next(t for t in told if t.startswith(text)) + "The " * 500 for text in texts]
        ids = [data.tokenizer.encode(w[len(t) : len(t) + more]) for w, t in zip(whole, texts, strict=True)]
        return np.concatenate((rows, np.array(ids)), axis=1)

    ids = np.array([data.tokenizer.encode(story[:90]) for story in told])
    found = quality.story_tally(yardsticks.stories(write, data.tokenizer, data.tokenizer.encode("\n\n"), ids))
    assert [part for part, _ in found["accepted"]] == [1, 1, 1, 1, 0]
    assert asked[:2] == [5, 4] and asked == sorted(asked, reverse=True)
    assert 90 * len(asked) < max(map(len, told)) + 90


def test_an_ngram_model_writes_what_it_holds_likely(data):
    model, _ = yardsticks.fit_ngram(data, 5000)
    start, n = data.tokenizer.encode("\n\nT"), 2000
    for temperature in (0.5, 2.0):
        p = model.probabilities(start) ** (1 / temperature)
        p /= p.sum()
        drawn = yardsticks.written(yardsticks.ngram_writer(model, temperature, 1), start, n, 1)
        counts = np.bincount(drawn[:, 0], minlength=len(p))
        assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1e-9).all()
    greedy = yardsticks.written(yardsticks.ngram_writer(model, 0, 1), start, 2, 30)
    assert (greedy[0] == greedy[1]).all() and greedy[0, 0] == model.probabilities(start).argmax()


def test_held_out_texts_begin_with_documents_and_fit_in_the_split(data):
    starts = yardsticks.held_out_starts(data, 60)
    text = data.tokenizer.decode(data.val)
    assert len(starts) == len(set(starts)) >= 20
    assert all(s + 60 <= len(text) and (s == 0 or text[s - 2 : s] == "\n\n") for s in starts)
    assert yardsticks.held_out_starts(data, len(data.val) + 1) == []


def test_text_without_marks_between_documents_is_held_out_from_word_to_word(tmp_path, text_file):
    config = build("tiny", {"data": {"source": str(text_file)}})
    data = prepared(config.data)
    text = data.tokenizer.decode(data.val)
    starts = yardsticks.held_out_starts(data, 100)
    assert len(starts) > 10 and all(s == 0 or text[s - 1].isspace() or text[s].isspace() for s in starts)


def test_greedy_texts_are_one(run):
    judged = write_samples(run, **FEW | {"temperatures": [0]})["quality"]
    assert {cell["known_words"]["n"] for cell in judged["cells"]} <= {0, 1}
    assert all(cell["longest_copy"]["low"] is None for cell in judged["cells"])


def test_a_run_on_tokens_is_judged_by_words(tmp_path, text_file):
    run = train_small(tmp_path / "bpe", source=str(text_file), tokenizer="bpe", vocab_size=300)
    judged = write_samples(run, **FEW)["quality"]
    assert judged["novelty_of"] == "word" and "accepted" not in judged["held_out"]
    assert judged["held_out"]["novelty_1"]["value"] < judged["held_out"]["novelty_10"]["value"]
    assert judged["held_out"]["bits_per_byte"] is None


# The command


def test_the_command_writes_the_files_and_tells_what_came_of_it(run):
    given = ("--temperature", 0.7, "--max-new-tokens", 60, "--samples", 3, "--prompt", "The ", "--device", "cpu")
    code, out, err = command(run, *given)
    assert code == 0 and not err
    for words in ("step 12, best, last", "held-out", "5-gram", "known", "quality.json", "watch.txt"):
        assert words in out
    watch = json.loads((run / "samples" / "watch.json").read_text())
    assert watch["prompts"] == ["The "] and watch["temperatures"] == [0.7]


def test_without_quality_no_data_are_needed(tmp_path, text_file):
    source = shutil.copy(text_file, tmp_path / "mine.txt")
    run = train_small(tmp_path / "run", source=str(source), val_fraction=0.2)
    (tmp_path / "mine.txt").unlink()
    assert "mine.txt" in refused(*command(run, "--device", "cpu"))
    code, out, _ = command(run, "--device", "cpu", "--no-quality", "--max-new-tokens", 5)
    assert code == 0 and "watch.txt" in out and not (run / "quality.json").exists()


def test_mistakes_are_answered_in_one_sentence(tmp_path, run):
    assert "no run folder" in refused(*command(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in refused(*command(tmp_path / "empty"))
    assert "temperature" in refused(*command(run, "--temperature", -1))
    assert "temperature" in refused(*command(run, "--temperature", "nan"))
    assert "'é'" in refused(*command(run, "--prompt", "caf\u00e9", "--device", "cpu"))
    assert "--max-new-tokens" in refused(*command(run, "--max-new-tokens", 10**6, "--device", "cpu"))


def test_a_run_without_a_kept_checkpoint_is_refused(tmp_path, run):
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint" in refused(*command(copy))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperatures": [-0.1]}, "temperature is -0.1"),
        ({"temperatures": []}, "No temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"prompts": []}, "No prompt"),
    ],
)
def test_arguments_out_of_range_are_refused(run, wrong, said):
    with pytest.raises(UserError, match=said):
        write_samples(run, **FEW | wrong)
