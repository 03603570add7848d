"""train --init: a training begins from the weights and the tokens of another model, and is exact like any other; and
what the commands and the model card say."""

import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from minilm.check import check
from minilm.cli import cli
from minilm.config import DataConfig, RunConfig, build
from minilm.corpus.dataset import open_dataset, prepare, prepared
from minilm.corpus.tokenizer import CharTokenizer, load_tokenizer
from minilm.errors import UserError
from minilm.interop.export import export
from minilm.interop.intake import import_model, read_start
from minilm.sampling.baselines import write_baselines
from minilm.training import checkpoint, journal, loop
from minilm.training.loop import train
from tests.children import python
from tests.interop.interop_models import ROTARY, characters, load_ours, make_run
from tests.training.test_resume import stop_after

ROTARY_MODEL = {**ROTARY, "bias": False, "n_kv_heads": 1}
LEARNED_MODEL = {"activation": "gelu_tanh"}
NARROW = {"n_layers": 2, "n_heads": 2, "d_model": 16, "context_length": 16}
SHORT = {
    "steps": 6,
    "warmup_steps": 2,
    "batch_size": 4,
    "eval_interval": 2,
    "checkpoint_interval": 2,
    "log_interval": 1,
}
PLAIN = {"device": "cpu", "kernels": "torch", "dtype": "float32", "sample_interval": 6}


def quietly(config, out, resume=False, start=None):
    return train(config, out, resume, Console(file=io.StringIO()), start=start)


def configured(text, model, **data):
    return build("tiny", {"model": NARROW | model, "train": SHORT | PLAIN, "data": {"source": str(text)} | data})


def fine_tuning(start, text, **changes):
    model = dataclasses.asdict(start.model)
    return build("tiny", {"model": model, "train": SHORT | PLAIN | changes, "data": {"source": str(text)}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file):
    """A run of each layout, one by byte pairs and one by character, and what became of them."""
    folder = tmp_path_factory.mktemp("trained")
    by_pairs = {"tokenizer": "bpe", "vocab_size": 300}
    for name, model, data in (("learned", LEARNED_MODEL, by_pairs), ("rotary", ROTARY_MODEL, {})):
        quietly(configured(text_file, model, **data), folder / name)
        export(folder / name, folder / f"{name}-hf", which="last")
        export(folder / name, folder / f"{name}-own", "safetensors", which="last")
        import_model(folder / f"{name}-hf", folder / f"{name}-in")
    return folder


def evaluations(run):
    return [row["val_loss"] for row in journal.read_rows(run / journal.METRICS) if "val_loss" in row]


@pytest.mark.parametrize("form", ["", "-hf", "-own", "-in"])
@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_training_begins_at_the_loss_where_the_source_ended_and_goes_on_down(name, form, trained, text_file, tmp_path):
    start = read_start(trained / f"{name}{form}")
    quietly(fine_tuning(start, text_file), tmp_path / "run", start=start)
    before, after = evaluations(trained / name), evaluations(tmp_path / "run")
    assert after[0] == before[-1]
    assert after[-1] < after[0] - 0.01
    said = journal.read_json(tmp_path / "run" / journal.CONFIG)["init"]
    assert said["path"] == str(trained / f"{name}{form}") and re.fullmatch("[0-9a-f]{64}", said["sha256"])
    assert said["sha256"] == read_start(trained / name).origin["sha256"]
    assert (tmp_path / "run/tokenizer.json").read_bytes() == (trained / name / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_a_training_that_began_so_resumes_exactly_though_what_it_began_from_is_gone(
    name, trained, text_file, tmp_path, monkeypatch
):
    source = shutil.copytree(trained / f"{name}-hf", tmp_path / "source")
    start = read_start(source)
    config = fine_tuning(start, text_file)
    quietly(config, tmp_path / "whole", start=start)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        quietly(config, tmp_path / "parts", start=start)
    shutil.rmtree(source)
    shutil.move(tmp_path / "parts", tmp_path / "moved")
    with pytest.raises(UserError, match=r"--resume cannot change|is missing"):
        quietly(config, tmp_path / "moved", resume=True)
    quietly(journal.read_config(tmp_path / "moved"), tmp_path / "moved", resume=True)
    for which in ("best.pt", "last.pt"):
        one, other = (checkpoint.load(tmp_path / run / "checkpoints" / which) for run in ("whole", "moved"))
        assert one["step"] == other["step"] == 6
        assert all(torch.equal(t, other["model"][key]) for key, t in one["model"].items())
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "moved")
    assert journal.read_json(tmp_path / "moved" / journal.CONFIG)["init"]["path"] == str(source)
    assert not check(tmp_path / "moved").faults
    write_baselines(tmp_path / "moved")  # on the very tokens


def test_other_text_is_cut_into_the_tokens_of_the_weights(trained, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("Quite other words, and not a bottle among them: 17 jars! " * 300)
    start = read_start(trained / "learned")
    run = quietly(fine_tuning(start, text), tmp_path / "run", start=start)
    data = prepared(journal.read_config(run.path).data)
    own = load_tokenizer(trained / "learned/tokenizer.json")
    assert data.tokenizer.to_json() == own.to_json()
    assert own.decode(data.train) + own.decode(data.val) == text.read_text()
    assert np.array_equal(data.train[:200], own.encode(text.read_text()[:2000])[:200])
    assert data.meta["tokenizer"]["type"] == "bpe"


def test_the_cache_tells_tokens_of_the_same_number_apart(text_file, tmp_path):
    own = prepared(DataConfig(source=str(text_file)))
    backwards = CharTokenizer(own.tokenizer.vocabulary[::-1])
    (tmp_path / "tokenizer.json").write_text(backwards.to_json())
    turned = prepared(DataConfig(source=str(text_file), tokenizer_file=str(tmp_path / "tokenizer.json")))
    assert turned.folder != own.folder and np.array_equal(turned.train, own.vocab_size - 1 - own.train)
    straight = CharTokenizer(own.tokenizer.vocabulary)
    (tmp_path / "tokenizer.json").write_text(straight.to_json())
    given = prepared(DataConfig(source=str(text_file), tokenizer_file=str(tmp_path / "tokenizer.json")))
    assert np.array_equal(given.train, own.train) and given.folder != turned.folder


def test_a_character_that_the_weights_do_not_know_is_named_or_replaced(trained, tmp_path):
    text = tmp_path / "greek.txt"
    text.write_text("10 green bottles, ω and all! " * 300, encoding="utf-8")
    start = read_start(trained / "rotary")
    with pytest.raises(UserError, match="'ω' at position .* data.unknown=replace"):
        quietly(fine_tuning(start, text), tmp_path / "run", start=start)
    assert not (tmp_path / "run").exists()
    config = fine_tuning(start, text)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, unknown="replace"))
    quietly(config, tmp_path / "run", start=start)
    data = prepared(journal.read_config(tmp_path / "run").data)
    assert data.tokenizer.decode(data.train[:29]) == "10 green bottles,   and all! "


def test_data_prepared_with_other_tokens_is_refused_with_the_way_out(trained, text_file, tmp_path):
    start = read_start(trained / "rotary-hf")
    prepare(DataConfig(source=str(text_file), tokenizer="bpe", vocab_size=280), tmp_path / "pairs")
    with pytest.raises(UserError, match="prepared with other tokens .*--tokenizer-file .*tokenizer.json") as caught:
        quietly(fine_tuning(start, tmp_path / "pairs"), tmp_path / "run", start=start)
    file = re.search(r"--tokenizer-file (\S+)", str(caught.value)).group(1)
    again = ["prepare", str(text_file), "--tokenizer-file", file, "--out", str(tmp_path / "again")]
    assert CliRunner().invoke(cli, again).exit_code == 0
    assert open_dataset(tmp_path / "again").tokenizer.to_json() == (trained / "rotary/tokenizer.json").read_text()
    quietly(fine_tuning(start, tmp_path / "again"), tmp_path / "run", start=start)
    both = CliRunner().invoke(cli, [*again, "--vocab-size", "300"])
    assert isinstance(both.exception, UserError) and "brings its own tokens" in str(both.exception)


def test_what_the_weights_fix_cannot_be_changed_and_what_they_leave_free_can(trained, text_file, tmp_path):
    for name in ("learned", "rotary"):
        start = read_start(trained / name)
        config = fine_tuning(start, text_file, steps=1, eval_interval=0, sample_interval=0)
        other = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 32, "d_ff": 24, "vocab_size": 512}
        other |= {"activation": "relu", "norm": "post", "bias": name == "rotary", "tie_embeddings": False}
        other |= {"context_length": 8} if name == "learned" else {}
        for key, value in other.items():
            if getattr(start.model, key) == value:
                continue
            changed = dataclasses.asdict(config.model) | {key: value}
            with pytest.raises(UserError, match=rf"model\.{key} is .*--init.*model\.dropout.*can change"):
                wrong = dataclasses.replace(config, model=type(config.model)(**changed | _agreeing(key)))
                quietly(wrong, tmp_path / "run", start=start)
        free = {"dropout": 0.2} | ({"context_length": 8} if name == "rotary" else {})
        model = dataclasses.replace(config.model, **free)
        quietly(dataclasses.replace(config, model=model), tmp_path / name, start=start)
        saved = journal.read_config(tmp_path / name)
        assert {key: getattr(saved.model, key) for key in free} == free


def _agreeing(key):
    """Other settings that a changed one needs to be a model at all."""
    return {"n_kv_heads": 1} if key == "n_heads" else {}


def test_a_run_without_weights_yet_and_an_import_have_nothing_to_resume(trained, text_file, tmp_path, monkeypatch):
    start = read_start(trained / "rotary")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "run_to_end", killed)
        with pytest.raises(KeyboardInterrupt):
            quietly(fine_tuning(start, text_file), tmp_path / "run", start=start)
    with pytest.raises(UserError, match="before it held any weights.*--init"):
        quietly(journal.read_config(tmp_path / "run"), tmp_path / "run", resume=True)
    imported = trained / "rotary-in"
    with pytest.raises(UserError, match="was imported .*minilm train --init"):
        quietly(journal.read_config(imported), imported, resume=True)


def test_the_commands_go_from_a_run_to_an_export_to_an_import_to_text(trained, text_file, tmp_path):
    def call(*arguments):
        result = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit | UserError), result.exception
        return result

    run, hf, again = trained / "rotary", tmp_path / "hf", tmp_path / "again"
    assert call("export", run, "--format", "hf", "--out", hf).exit_code == 0
    assert call("import", hf, "--out", again).output.strip() == str(again)
    assert call("check", again).exit_code == 0 and "Everything is sound" in call("check", again).output
    write = ["--prompt", "10 green", "--max-new-tokens", 20, "--temperature", 0]
    texts = [call("generate", "--run", path, *write).stdout for path in (run, again)]
    assert texts[0] == texts[1] and texts[0].startswith("10 green")
    options = ["--steps", 2, "--no-report", "--no-baselines", "--set", "train.device=cpu", "--data", text_file]
    made = call(
        "train", "--preset", "tiny", "--init", hf, "--out", tmp_path / "on", "--set", "model.dropout=0.1", *options
    )
    assert made.exit_code == 0
    saved = RunConfig.from_dict(journal.read_json(tmp_path / "on/config.json"))
    assert (saved.model.d_model, saved.model.n_kv_heads, saved.model.dropout) == (16, 1, 0.1)
    for wrong, sentence in (
        (["--set", "model.n_layers=3"], "model.n_layers is 3"),
        (["--set", "data.tokenizer=bpe"], "data.tokenizer cannot be set with --init"),
        (["--resume"], "leave --init out"),
    ):
        result = call("train", "--preset", "tiny", "--init", hf, "--out", tmp_path / "no", *wrong, *options)
        assert sentence in str(result.exception)


def test_dropout_that_cannot_be_had_here_is_said(trained, tmp_path):
    for name, rates, said in (
        ("learned", {"resid_pdrop": 0.1}, "dropout differs by place; for further training all have 0.1"),
        ("rotary", {"attention_dropout": 0.2}, "dropout of attention weights is left out"),
    ):
        folder = shutil.copytree(trained / f"{name}-hf", tmp_path / name)
        saved = journal.read_json(folder / "config.json")
        (folder / "config.json").write_text(json.dumps(saved | rates))
        result = CliRunner().invoke(cli, ["import", str(folder), "--out", str(tmp_path / f"{name}-in")])
        assert said in result.stdout
        assert read_start(tmp_path / f"{name}-in").model.dropout == rates.get("resid_pdrop", 0.0)


def test_check_finds_a_damaged_import(trained, tmp_path):
    run = shutil.copytree(trained / "learned-in", tmp_path / "run")
    assert not check(run).faults
    path = run / "checkpoints/best.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert check(run).faults == 1
    path.unlink()
    assert check(run).faults == 1


@pytest.mark.parametrize("form", ["hf", "safetensors"])
@pytest.mark.parametrize("name", ["learned", "rotary", "learned-in", "random"])
def test_the_model_card_says_what_is_known_and_nothing_else(name, form, trained, tmp_path):
    if name == "random":
        make_run(tmp_path / "run", characters())
    run = tmp_path / "run" if name == "random" else trained / name
    card = (export(run, tmp_path / "out", form) / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"None|\bnan\b|TODO|n/a|unknown|More Information|\{|\}|\| \|$", card.split("## What")[0])
    assert f"{sum(p.numel() for p in load_ours(run).parameters()):,} parameters" in card.replace("of ", "")
    if name in ("learned", "rotary"):
        best = min(evaluations(run))
        assert f"{best:.4f} nats" in card and "rhymes.txt" in card and "## What it writes" in card
        assert json.loads((run / "data.json").read_text())["sha256"] in card
    else:
        assert "## Training" not in card and "## What it writes" not in card
    if form == "hf":
        code = re.search(r"```python\n(.*?)```", card, re.S).group(1)
        assert "AutoModelForCausalLM" in code


def test_the_code_in_a_model_card_runs(trained, tmp_path):
    pytest.importorskip("transformers")
    export(trained / "learned", tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.S).group(1)
    ran = python("-c", code, cwd=tmp_path)
    assert ran.returncode == 0 and ran.stdout.startswith("The "), ran.stderr
