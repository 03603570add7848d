"""The command line: starts at once, does what its help says, and answers every mistake with one sentence and code 2."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import minilm
from minilm.cli import cli, main
from tests.children import Python, python
from tests.waiting import PATIENCE

TINY = ["train", "--preset", "tiny", "--device", "cpu", "--no-report", "--set", "train.eval_tokens=500"]


def run(*arguments, cwd=None, **environment):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "", **environment}
    return python("-m", "minilm", *arguments, cwd=cwd, env=environment)


def run_here(*arguments, cwd=None):
    """The command in this process: a fraction of a second instead of two."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["minilm", *map(str, arguments)])
        patch.chdir(cwd or os.getcwd())
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


def refused(done, *sentences):
    """One sentence on standard error, exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("minilm: "), done.stderr
    for sentence in sentences:
        assert sentence in lines[0], lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file):
    """A run of a few steps, made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    done = run(*TINY, "--data", text_file, "--steps", 20, "--out", "run", "--set", "train.eval_interval=10", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


class TestHelp:
    def test_help_loads_nothing_heavy(self):
        heavy = ("torch", "numpy", "rich", "matplotlib", "tokenizers")
        code = f"import sys, minilm.cli; print([m for m in {heavy} if m in sys.modules])"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.strip() == "[]"

    @pytest.mark.parametrize("command", sorted(cli.commands))
    def test_every_command_explains_itself(self, command):
        done = run_here(command, "--help")
        assert done.returncode == 0 and f"Usage: minilm {command}" in done.stdout
        told = map(str.strip, cli.commands[command].help.splitlines())
        examples = [line for line in told if line.startswith("minilm ")]
        assert any(line.startswith(f"minilm {command}") for line in examples)
        assert all(f"\n  {line}\n" in done.stdout for line in examples)  # each on a line of its own

    def test_the_version_is_the_packages(self):
        assert minilm.__version__ in run("--version").stdout


class TestCompletion:
    @pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete")])
    def test_the_script_says_how_it_is_installed(self, shell, words):
        script = run_here("completion", shell).stdout
        first, *rest = script.splitlines()
        assert first.startswith("# In every new shell: ") and f"minilm completion {shell}" in first
        assert "_MINILM_COMPLETE" in script and any(words in line for line in rest)

    def test_what_the_script_asks_for_is_answered(self):
        def completed(*words):
            typed = " ".join(["minilm", *words])
            done = run(_MINILM_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(words)))
            return done.stdout.split()

        assert completed("tr") == ["plain,train"]
        assert completed("train", "--log", "t") == ["plain,tensorboard"]

    @pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
    def test_bash_can_read_its_script(self, tmp_path):
        (tmp_path / "script").write_text(run_here("completion", "bash").stdout)
        assert subprocess.run(["bash", "-n", tmp_path / "script"], capture_output=True).stderr == b""


class TestTrain:
    def test_it_trains_compares_and_says_what_next(self, trained):
        folder, done = trained
        for words in ("kernels     torch (auto: not triton", "step 20: validation loss", "3-gram", "this model, best"):
            assert words in done.stdout
        assert "minilm generate --run run --stream" in done.stdout
        saved = json.loads((folder / "run" / "config.json").read_text())
        assert saved["facts"]["command"].startswith("minilm train --preset tiny")
        orders = json.loads((folder / "run" / "baselines.json").read_text())["orders"]
        assert [row["order"] for row in orders] == [1, 2, 3, 4, 5, 6]

    def test_runs_are_numbered_and_resumed_by_preset(self, text_file, tmp_path):
        for _ in range(2):
            done = run_here(*TINY, "--data", text_file, "--steps", 2, "--no-baselines", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["tiny-001", "tiny-002"]
        again = ("train", "--preset", "tiny", "--resume", "--steps", 4, "--no-baselines", "--no-report")
        done = run_here(*again, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "runs/tiny-002/config.json").read_text())["train"]["steps"] == 4
        assert json.loads((tmp_path / "runs/tiny-001/config.json").read_text())["train"]["steps"] == 2

    def test_every_setting_can_be_set(self, text_file, tmp_path):
        settings = ("model.n_layers=1", "model.activation=swiglu", "train.lr=2e-3", "data.val_fraction=0.2")
        done = run_here(
            *TINY, "--data", text_file, "--steps", 1, "--seed", 5, "--dtype", "bfloat16", "--kernels", "reference",
            "--save-at", "0,1", "--out", "run", "--no-baselines", *(w for s in settings for w in ("--set", s)),
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        saved = json.loads((tmp_path / "run" / "config.json").read_text())
        assert saved["model"]["n_layers"] == 1 and saved["model"]["activation"] == "swiglu"
        assert saved["train"]["lr"] == 2e-3 and saved["train"]["seed"] == 5 and saved["data"]["val_fraction"] == 0.2
        assert saved["facts"]["dtype"] == "bfloat16" and saved["facts"]["kernels"] == "reference"
        assert {"step_000000.pt", "step_000001.pt"} <= {p.name for p in (tmp_path / "run/checkpoints").iterdir()}

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
    def test_a_signal_ends_it_saved(self, number, code, text_file, tmp_path):
        command = [*TINY, "--data", text_file, "--steps", 100_000, "--out", "run"]
        process = Python("-m", "minilm", *command, cwd=tmp_path)
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("grad_norm") < 20:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == code and "and saved" in said
        assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


class TestGenerate:
    def test_greedy_text_is_the_same_through_both_backends(self, trained):
        texts = [
            run_here(
                "generate", "--run", "run", "--temperature", 0, "--kernels", k, "--prompt", "1 green", cwd=trained[0]
            ).stdout
            for k in ("reference", "torch")
        ]
        assert texts[0] == texts[1] and texts[0].startswith("1 green") and len(texts[0]) > 500

    def test_streamed_text_is_the_text(self, trained):
        common = ("generate", "--run", "run", "--seed", 3, "--max-new-tokens", 80, "--top-k", 9, "--top-p", 0.9)
        whole, streamed = run_here(*common, cwd=trained[0]).stdout, run(*common, "--stream", cwd=trained[0]).stdout
        assert whole == streamed and len(whole) == 81
        assert run_here(*common[:-4], cwd=trained[0]).stdout != whole

    @pytest.mark.parametrize("which", ["best", "last"])
    def test_a_checkpoint_can_be_chosen(self, trained, which):
        done = run_here("generate", "--run", "run", "--checkpoint", which, "--max-new-tokens", 5, cwd=trained[0])
        assert done.returncode == 0, done.stderr

    def test_bytes_of_one_character_come_together(self, tmp_path):
        (tmp_path / "a.txt").write_text("😀é漢字 " * 800, encoding="utf-8")
        settings = ("--set", "data.tokenizer=bpe", "--set", "data.vocab_size=257", "--no-baselines")
        done = run(
            *TINY, "--data", "a.txt", "--steps", 30, "--set", "train.lr=1e-2", *settings, "--out", "r", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        common = ("generate", "--run", "r", "--seed", 1, "--max-new-tokens", 60)
        whole, streamed = run_here(*common, cwd=tmp_path).stdout, run(*common, "--stream", cwd=tmp_path).stdout
        assert whole == streamed

    def test_mistakes_are_sentences(self, trained):
        def generate(*arguments):
            return run_here("generate", *arguments, cwd=trained[0])

        refused(generate("--run", "nowhere"), "There is no run folder nowhere")
        refused(generate("--run", "run", "--checkpoint", "77"), "has no checkpoint '77'; it has best, last")
        refused(generate("--run", "run", "--prompt", "a€"), "'€' at position 1", "--unknown replace")
        refused(generate("--run", "run", "--temperature", "-1"), "--temperature")
        refused(generate("--run", "run", "--temperature", "nan"), "The temperature is nan")
        refused(generate("--run", "."), "is not a run folder")
        triton = run("generate", "--run", "run", "--kernels", "triton", cwd=trained[0])
        refused(triton, "--kernels triton cannot run here")
        assert (
            generate("--run", "run", "--prompt", "a€", "--unknown", "replace", "--max-new-tokens", "3").returncode == 0
        )


class TestCheck:
    def test_exit_codes_and_sentences(self, trained, tmp_path):
        done = run_here("check", "run", cwd=trained[0])
        assert done.returncode == 0 and done.stdout.endswith("Everything is sound.\n"), done.stdout + done.stderr
        (tmp_path / "torn.pt").write_bytes((trained[0] / "run/checkpoints/best.pt").read_bytes()[:-9])
        done = run_here("check", tmp_path / "torn.pt")
        assert done.returncode == 1 and "What can be done: " in done.stdout and not done.stderr
        refused(run_here("check", tmp_path), "is no run folder, no prepared data and no checkpoint")


class TestPrepare:
    def test_it_writes_what_it_says(self, text_file, tmp_path):
        done = run("prepare", text_file, "--out", "data", "--val-fraction", 0.25, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert {p.name for p in (tmp_path / "data").iterdir()} == {
            "train.bin",
            "val.bin",
            "meta.json",
            "tokenizer.json",
        }
        meta = json.loads((tmp_path / "data" / "meta.json").read_text())
        assert f"{meta['val']['tokens']:,} tokens" in done.stdout and meta["val"]["tokens"] == 40_000 // 4
        assert meta["split"] == {"rule": "tail", "val_fraction": 0.25}

    def test_fables_print_their_floor(self, tmp_path):
        done = run("prepare", "fables", "--characters", 30000, "--out", "data", cwd=tmp_path)
        assert done.returncode == 0 and "floor 0." in done.stdout, done.stderr


class TestMistakes:
    def test_of_data(self, tmp_path, text_file):
        (tmp_path / "empty.txt").touch()
        (tmp_path / "short.txt").write_text("A short text.")
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
        refused(run_here(*TINY, "--data", tmp_path / "missing.txt"), "There is no file", "missing.txt")
        refused(run_here(*TINY, "--data", tmp_path / "empty.txt"), "empty.txt is empty")
        refused(run_here(*TINY, "--data", tmp_path / "short.txt"), "12 tokens", "context_length is 32", "at least 33")
        refused(run_here(*TINY, "--data", tmp_path / "latin.txt"), "latin.txt is not UTF-8", "offset 3")
        refused(run_here("prepare", tmp_path / "latin.txt", "--out", tmp_path / "data"), "offset 3")

        refused(run_here(*TINY, "--data", ""), "The data source is empty")

    def test_of_settings(self, tmp_path):
        refused(run_here("train", "--preset", "quik"), "no preset 'quik'", "did you mean quick?")
        refused(run_here(*TINY, "--set", "train.lrr=1"), "no key train.lrr", "did you mean train.lr?")
        refused(run_here(*TINY, "--set", "train.lr=fast"), "train.lr is 'fast'; it must be a number")
        refused(run_here(*TINY, "--steps", "0"), "train.steps is 0; it must be at least 1")
        refused(run_here(*TINY, "--device", "cuda"), "The device is 'cuda' and this machine has 0 of that kind")
        refused(run_here(*TINY, "--device", "quantum"), "The device is 'quantum'")
        refused(run_here(*TINY, "--dtype", "float16"), "train.dtype is 'float16' and the device is a CPU")
        refused(run_here(*TINY, "--kernels", "cuda"), "--kernels")
        refused(run_here(*TINY, "--log", "excel"), "--log", "tensorboard")
        refused(run_here("train", "--nonsense"), "--nonsense")
        refused(run_here("nonsense"), "nonsense")

    def test_triton_without_a_gpu_is_one_sentence(self, tmp_path):
        done = run(*TINY, "--kernels", "triton", cwd=tmp_path)
        refused(done, "--kernels triton cannot run here", "needs an NVIDIA GPU")
        assert not list(tmp_path.iterdir())

    def test_compiling_without_a_compiler_is_one_sentence(self, tmp_path, text_file):
        done = run(*TINY, "--data", text_file, "--compile", "on", cwd=tmp_path, CXX="/nowhere/c++")
        refused(done, "train.compile is 'on', which needs a C++ compiler", "install g++")

    def test_of_folders(self, trained, text_file, tmp_path):
        again = run_here(*TINY, "--data", text_file, "--out", "run", cwd=trained[0])
        refused(again, "run holds a run already; continue it with --resume")
        refused(run_here("train", "--out", tmp_path / "none", "--resume"), "none", "no config.json")
        changed = run_here("train", "--out", "run", "--resume", "--set", "train.lr=1", cwd=trained[0])
        refused(changed, "cannot change train.lr")
        refused(run_here("report", tmp_path), "is not a run folder")
        refused(run_here("baselines", tmp_path / "none"), "no run folder")

    def test_a_run_in_use_is_left_alone(self, trained, text_file):
        from minilm.training.journal import RunFolder

        with RunFolder(trained[0] / "run", resume=True):
            done = run("train", "--out", "run", "--resume", "--steps", 99, cwd=trained[0])
        refused(done, f"run is in use by process {os.getpid()}")


def test_doctor_says_which_kernels_would_run_and_why():
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    for words in ("kernels auto", "torch (auto: not triton", "dtype auto", "memory", "disk", "cache", "torch.compile"):
        assert words in done.stdout
