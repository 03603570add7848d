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
    # use it
    "minilm train": Shortened(TRAIN, makes=("runs/quick-001/report.html", "runs/quick-001/baselines.json")),
    "minilm train --data my.txt --steps 3000": Shortened(f"{TRAIN} --no-report", makes=("runs/quick-002",)),
    "minilm train --data rows.jsonl --set data.field=body": Shortened(f"{TRAIN} --no-report --no-baselines"),
    'minilm prepare "books/**/*.txt" --tokenizer bpe --vocab-size 8192 --out data/books': Shortened(),
    "minilm train --data data/books": Shortened(f"{TRAIN} --no-report --no-baselines"),
    "minilm train --preset shakespeare-char-cpu": Shortened(
        f"--data my.txt {TRAIN} --no-report --no-baselines", makes=("runs/shakespeare-char-cpu-001",)
    ),
    'minilm generate --run runs/quick-001 --prompt "The miller" --stream': Shortened("--max-new-tokens 20"),
    "minilm report runs/quick-001 runs/quick-002": Shortened(makes=("runs/report/report.html",)),
    "minilm train --out runs/quick-001 --resume --steps 3000": Shortened("--steps 6"),
    "minilm check runs/quick-001": Shortened(),
    "minilm quiz": Covered(
        "tests/quiz/test_play.py::TestThroughout::test_all_eight_played_without_a_terminal_by_who_knows_everything"
    ),
    "minilm ablate": Shortened(f"--axes depth {TRIALS}", makes=("studies/quick/report.html",)),
    "minilm scale": Shortened(f"--sizes 1x8,2x16 {TRIALS}", makes=("studies/scale/scaling.html",)),
    "minilm budget --flops 1e19": Shortened(),
    "minilm doctor": Shortened(),
    "minilm tune": Cannot("it needs a GPU; tests/kernels/test_tune.py runs it with a stand-in for the clock"),
    # three ways in
    "minilm train --kernels triton": Covered(
        "tests/kernels/test_whole_model.py::test_twenty_steps_of_training_are_those_of_the_reference"
    ),
    "pytest bench/ --benchmark-only": Covered(
        "tests/bench/test_contest.py::test_pytest_reports_a_planted_wrong_backend_and_gives_it_no_time"
    ),
    "minilm ablate --axes kernels": Shortened(
        f"{TRIALS} --set train.batch_size=4 --out studies/kernels", makes=("studies/kernels/report.html",)
    ),
    # studies
    "minilm ablate --axes depth,activation --data my.txt --seeds 5 --jobs 2": Shortened(
        f"{TRIALS} --out studies/two-axes", makes=("studies/two-axes/report.html",)
    ),
    "minilm ablate --axis model.dropout=0.1,0.2 --cross norm,warmup": Shortened(f"{TRIALS} --out studies/crossed"),
    "minilm ablate --out studies/quick --resume": Shortened(),
    "minilm ablate --study capstone --emit-slurm 8": Shortened(TRIALS, makes=("studies/capstone/run.sbatch",)),
    "minilm scale studies/quick --out studies/law": Shortened(makes=("studies/law/scaling.html",)),
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
PYTHON = {"plot_training_report": Replaced({"[...]": "[3.0, 2.0, 1.0]"})}


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
