"""Every command of README.md does what it says: each is run, shortened where it is long, or is covered by name.

To add a command to the README, add it to the table here: tests/pages.py says what may stand there. They run in the
order of the page, in one folder, in which my.txt, rows.jsonl and books/ lie; what one makes the next may use.
"""

import json

import pytest

from tests.pages import (
    ROOT,
    TRAIN,
    TRIALS,
    Cannot,
    Covered,
    Replaced,
    Shortened,
    blocks,
    check_tables,
    commands,
    run_page,
)

README = ROOT / "README.md"
NETWORK = "it installs from the network; tests/test_packaging.py builds the wheel and looks into it"

COMMANDS = {
    # two commands
    "make train": Cannot("it installs from the network, then runs minilm train, which is below"),
    "make test": Cannot("it installs from the network, then runs these very tests"),
    "pip install -c constraints.txt -e .": Cannot(NETWORK),
    # three ways in
    "minilm train --kernels triton": Covered(
        "tests/kernels/test_whole_model.py::test_twenty_steps_of_training_are_those_of_the_reference"
    ),
    "pytest bench/ --benchmark-only": Covered(
        "tests/bench/test_contest.py::test_pytest_reports_a_planted_wrong_backend_and_gives_it_no_time"
    ),
    "minilm ablate --axes kernels": Shortened(
        f"{TRIALS} --out studies/kernels", makes=("studies/kernels/report.html",)
    ),
    # train
    "minilm train": Shortened(TRAIN, makes=("runs/quick-001/report.html", "runs/quick-001/baselines.json")),
    "minilm train --data my.txt --steps 3000": Shortened(f"{TRAIN} --no-report", makes=("runs/quick-002",)),
    "minilm train --data rows.jsonl --set data.field=body": Shortened(f"{TRAIN} --no-report --no-baselines"),
    'minilm prepare "books/**/*.txt" --tokenizer bpe --vocab-size 8192 --out data/books': Shortened(),
    "minilm train --data data/books": Shortened(f"{TRAIN} --no-report --no-baselines"),
    "minilm train --preset shakespeare-char-cpu": Shortened(
        f"--data my.txt {TRAIN} --no-report --no-baselines", makes=("runs/shakespeare-char-cpu-001",)
    ),
    "minilm train --out runs/quick-001 --resume --steps 3000": Shortened("--steps 6"),
    "minilm train --log tensorboard --log csv": Shortened(
        f"{TRAIN} --no-report --no-baselines", makes=("runs/quick-005/metrics.csv", "runs/quick-005/tensorboard/*")
    ),
    "minilm report runs/quick-001 runs/quick-002": Shortened(makes=("runs/report/report.html",)),
    "minilm check runs/quick-001": Shortened(),
    "minilm doctor": Shortened(),
    # write, and be judged
    'minilm generate --run runs/quick-001 --prompt "The miller" --stream': Shortened("--max-new-tokens 20"),
    'minilm generate --run runs/quick-001 --prompt "The " --prompt "Once " --samples 2 --min-p 0.05 --stop "\\n\\n"': (
        Shortened("--max-new-tokens 20")
    ),
    "minilm generate --run runs/quick-001 --interactive": Covered(
        "tests/sampling/test_generate.py::TestConsole::test_a_conversation_goes_on_with_an_empty_line"
    ),
    "minilm samples runs/quick-001": Shortened(
        "--max-new-tokens 20 --samples 2 --temperature 1", makes=("runs/quick-001/samples/watch.txt",)
    ),
    # the whole study
    "minilm capstone --scale quick --out capstone": Covered(
        "tests/capstone/test_capstone_run.py::test_killed_in_its_training_it_ends_with_the_weights_of_one_that_was_not"
    ),
    "minilm capstone --check capstone": Covered(
        "tests/capstone/test_capstone_check.py::test_all_but_the_quiz_is_there_with_evidence"
    ),
    "minilm quiz": Covered(
        "tests/quiz/test_play.py::TestThroughout::test_all_eight_played_without_a_terminal_by_who_knows_everything"
    ),
    # studies
    "minilm ablate": Shortened(f"--axes depth {TRIALS}", makes=("studies/quick/report.html",)),
    "minilm ablate --axes depth,activation --data my.txt --seeds 5 --jobs 2": Shortened(
        f"{TRIALS} --out studies/two-axes", makes=("studies/two-axes/report.html",)
    ),
    "minilm ablate --axis model.dropout=0.1,0.2 --cross norm,warmup": Shortened(f"{TRIALS} --out studies/crossed"),
    "minilm ablate --out studies/quick --resume": Shortened(),
    "minilm ablate --study capstone --emit-slurm 8": Shortened(TRIALS, makes=("studies/capstone/run.sbatch",)),
    "minilm scale": Shortened(f"--sizes 1x8,2x16 {TRIALS}", makes=("studies/scale/scaling.html",)),
    "minilm scale studies/quick --out studies/law": Shortened(makes=("studies/law/scaling.html",)),
    "minilm budget --flops 1e19": Shortened(),
    # what it costs
    "minilm race": Covered("tests/studies/test_race.py::TestCommand::test_it_runs_reports_and_is_not_run_twice"),
    "minilm tune": Cannot("it needs a GPU; tests/kernels/test_tune.py runs it with a stand-in for the clock"),
    "python -m bench.memory": Covered("tests/bench/test_step_parts.py::test_the_two_commands_print_their_tables"),
    "python -m bench.breakdown": Covered("tests/bench/test_step_parts.py::test_the_two_commands_print_their_tables"),
    "python -m bench.traffic": Covered("tests/bench/test_traffic.py::test_it_is_told_as_a_table"),
    "python -m bench.coincide --out results/coincide": Covered(
        "tests/bench/test_coincide.py::test_each_is_switched_on_alone_and_then_all_together"
    ),
    "python -m bench.gpu --out results": Cannot("it measures for ten minutes and more, on a GPU"),
    "python -m bench.report results/*.json": Covered(
        "tests/bench/test_bench_report.py::test_a_race_is_told_with_the_device_that_it_was_run_on"
    ),
    # at home elsewhere
    "minilm train --preset tiny --data my.txt --out runs/small": Shortened(
        "--device cpu --steps 4 --set train.warmup_steps=1 --no-report --no-baselines"
    ),
    "minilm export runs/small --format hf --out my-gpt": Shortened(makes=("my-gpt/model.safetensors",)),
    "minilm import my-gpt --out runs/mine": Shortened(makes=("runs/mine/config.json",)),
    "minilm train --init runs/mine --data my.txt --set train.lr=1e-4": Shortened(
        "--device cpu --steps 4 --set train.warmup_steps=1 --set train.min_lr=0 --no-report --no-baselines"
    ),
    # several processes
    "torchrun --standalone --nproc-per-node 4 -m minilm train --preset capstone": Covered(
        "tests/training/test_distributed.py::test_four_processes_give_the_same_bits_by_exact_reduction"
    ),
    "torchrun --standalone --nproc-per-node 2 -m minilm train --preset tiny --exact-reduction": Shortened(
        f"{TRAIN} --no-report --no-baselines", makes=("runs/tiny-001",)
    ),
    "torchrun --standalone --nproc-per-node 8 -m minilm train --preset gpt2 --shard": Cannot("it needs eight GPUs"),
    "torchrun --standalone --nproc-per-node 2 -m minilm train --out runs/tiny-001 --resume": Covered(
        "tests/training/test_distributed.py::TestChangingNumbers"
        "::test_with_exact_reduction_the_bits_are_those_of_a_run_that_never_stopped"
    ),
}
# Python blocks, each named by some text that no other block of the page holds.
PYTHON = {
    "plot_training_report": Replaced({"[...]": "[3.0, 2.0, 1.0]"}),
    "kernels.patch": Covered("tests/kernels/test_patch.py::test_only_what_is_asked_for_is_swapped"),
    "minilm.open_run": Replaced(
        {
            'preset="quick"': 'preset="tiny", device="cpu"',
            "steps=500, settings={": 'steps=4, settings={"train.warmup_steps": 1, ',
            '"The ", max_new_tokens=200': '"green", max_new_tokens=20',
            "resume(steps=1000)": "resume(steps=6)",
        }
    ),
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory, text_file):
    """A folder with a reader's own texts."""
    folder = tmp_path_factory.mktemp("reader")
    text = text_file.read_text(encoding="utf-8")
    (folder / "my.txt").write_text(text, encoding="utf-8")
    (folder / "books/old").mkdir(parents=True)
    (folder / "books/old/one.txt").write_text(text, encoding="utf-8")
    rows = (json.dumps({"body": line}) for line in text.splitlines())
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_every_command_and_python_block_is_in_the_table_and_every_entry_in_the_readme():
    assert not check_tables(README, COMMANDS, PYTHON)
    assert len(commands(README)) > 20 and blocks(README, "python")  # the reading of blocks has not gone blind


def test_the_commands_and_python_of_the_readme_run(desk):
    faults = run_page(README, COMMANDS, PYTHON, desk)
    assert not faults, "\n\n".join(faults)
