"""The examples run, away from the checkout, and show what they say they show."""

import json
import os
import re
from pathlib import Path

import pytest

import minilm
from tests.children import python

ROOT = Path(minilm.__file__).parents[1]
EXAMPLES = ROOT / "examples"


# an example whose trials do not take two seconds each to import PyTorch
TRIALS_FORKED = """
import runpy
from minilm.studies import trials
from tests.children import forked
with forked(trials):
    runpy.run_path({file!r}, run_name="__main__")
"""


def run(name: str, *arguments: object, cwd: Path, fails: bool = False, within: str = "", **environment: str) -> str:
    """What an example prints in another Python, from a folder that is not the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    file = EXAMPLES / f"{name}.py"
    command = ("-c", within.format(file=str(file))) if within else (file,)
    done = python(*command, *arguments, cwd=cwd, env=environment)
    assert bool(done.returncode) == fails, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stderr if fails else done.stdout


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_kernel_in_your_module_has_the_gradients_of_its_equation(backend, tmp_path):
    printed = run("kernel_in_your_module", "--kernels", backend, "--width", 32, cwd=tmp_path, TRITON_INTERPRET="1")
    assert printed.startswith(f"{backend} kernels on")
    judged = re.findall(r"^(\S+) +(\S+e-\d+) +(\S+e-\d+)  ok$", printed, re.M)
    assert [name for name, *_ in judged] == ["output", "x", "norm", "gate_up.weight", "down.weight"]
    assert any(float(error) > 0 for _, error, _ in judged)


def test_fine_tuning_learns_the_new_text(tmp_path, text_file):
    sizes = ("--steps", 40, "--finetune-steps", 60, "--out", tmp_path / "run")
    printed = run("finetune_on_your_text", text_file, *sizes, cwd=tmp_path)
    losses = {
        name: (float(a), float(b)) for name, a, b in re.findall(r"^(\w+ text) +([\d.]+) +([\d.]+)$", printed, re.M)
    }
    assert losses.keys() == {"first text", "your text"}
    before, after = losses["your text"]
    assert after < before - 0.1
    assert (tmp_path / "run/checkpoints").is_dir() and "It now writes:" in printed


def test_fine_tuning_on_too_little_is_said_in_a_sentence(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Once.")
    error = run("finetune_on_your_text", short, "--out", tmp_path / "run", cwd=tmp_path, fails=True)
    assert "short.txt has 5 characters; give" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()  # said before the first training, not after it


def test_an_axis_of_ones_own_is_an_axis_like_any_other(tmp_path):
    small = [
        "model.d_model=16",
        "model.n_layers=1",
        "model.n_heads=1",
        "data.characters=20000",
        "train.eval_tokens=500",
    ]
    sets = [word for setting in small for word in ("--set", setting)]
    arguments = ("--steps", 2, "--seeds", 1, "--out", tmp_path / "study", *sets)
    run("add_an_ablation_axis", *arguments, cwd=tmp_path, within=TRIALS_FORKED)
    result = json.loads((tmp_path / "study/result.json").read_text())
    rows = {row["arm"]: row for row in result["table"]}
    assert list(rows) == ["baseline", "2 heads of 8", "A/A"]
    assert {row["n"] for row in rows.values()} == {1}
    assert rows["2 heads of 8"]["parameters"] == rows["baseline"]["parameters"]
    assert rows["2 heads of 8"]["changes"] == {"model.n_heads": 2, "model.n_kv_heads": 2}
    assert (tmp_path / "study/report.html").exists()
