"""The pages keep to the code: what they tell to run runs, what they point to is there, their figures are the record's.

Commands and Python of docs/ and of CONTRIBUTING.md are in the tables here: tests/pages.py says what may stand there.
"""

import importlib.util
import json
import re
import shlex

import click
import pytest

from minilm.cli import cli
from tests.pages import (
    ROOT,
    SMALL,
    TRAIN,
    TRIALS,
    Cannot,
    Covered,
    Replaced,
    Shortened,
    check_tables,
    commands,
    exists,
    pages,
    run_page,
)

DOCS = ROOT / "docs"
RECORD = ROOT / "bench/results/machine_code.json"
RUNS = "tests/test_docs.py::test_what_the_pages_tell_to_run_runs"
TRIAL = ", ".join(repr(word) for word in SMALL.split() if "=" in word)

COMMANDS = {
    "../CONTRIBUTING.md": {
        'pip install -c constraints.txt -e ".[test]"': Cannot("it installs from the network"),
        "pytest": Cannot("it runs these very tests"),
        "pytest tests/kernels -k swiglu": Cannot("it runs some of these very tests"),
        "pytest -m slow": Cannot("it runs tests that take minutes"),
        "pytest -m faults": Cannot("it runs tests that take minutes"),
        "pytest -m gpu": Cannot("it runs tests that need a GPU"),
        'python -m kernels.machine_code --arch 90 --cases "swiglu: width 512, bfloat16"': Covered(RUNS),
        "python -m kernels.machine_code --stale --json bench/results/machine_code.json": Cannot(
            "it compiles for minutes; tests/kernels/test_machine_code.py holds what it writes"
        ),
    },
    "kernels/README.md": {
        'python -m kernels.machine_code --arch 90 --cases "swiglu: width 512, bfloat16"': Shortened(),
    },
    "adding.md": {
        "minilm ablate --axis model.dropout=0.1,0.2 --axis train.beta2=0.99 --seeds 3": Shortened(
            f"{TRIALS} --axes norm --out studies/fields", makes=("studies/fields/report.html",)
        ),
        'python -m kernels.machine_code --arch 90 --cases "swiglu: width 512, bfloat16"': Covered(RUNS),
    },
    "reading.md": {
        "minilm train --on-spike rewind --keep-last 3 --save-at 0,1000 --steps 2000": Shortened(
            f"{TRAIN} --no-report --no-baselines", makes=("runs/quick-001/checkpoints/step_000000.pt",)
        ),
        "minilm train --save-at pythia --out runs/early": Shortened(
            f"{TRAIN} --no-report", makes=(*(f"runs/early/checkpoints/step_00000{n}.pt" for n in (0, 1, 2, 4)),)
        ),
        "minilm samples runs/early": Shortened(
            "--max-new-tokens 40 --samples 2 --temperature 1", makes=("runs/early/samples/watch.txt",)
        ),
        "minilm generate --run runs/early --checkpoint 512": Shortened("--checkpoint 4 --max-new-tokens 20"),
    },
}
PYTHON = {
    "kernels/README.md": {"judge(": Replaced()},
    "adding.md": {
        'AXES["batch"]': Replaced({"steps=200, seeds=3": f"steps=4, seeds=1, assignments=({TRIAL})"}),
    },
    "statistics.md": {"power(": Replaced(), "scaling_analysis": Replaced()},
}
NAMED = sorted({*(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")), "../CONTRIBUTING.md"})


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return tmp_path_factory.mktemp("docs")


@pytest.mark.parametrize("name", NAMED)
def test_every_command_and_python_block_is_in_a_table_and_every_entry_on_its_page(name):
    assert not check_tables(DOCS / name, COMMANDS.get(name, {}), PYTHON.get(name, {}))


@pytest.mark.parametrize("name", [name for name in NAMED if name in COMMANDS or name in PYTHON])
def test_what_the_pages_tell_to_run_runs(name, desk):
    faults = run_page(DOCS / name, COMMANDS.get(name, {}), PYTHON.get(name, {}), desk)
    assert not faults, "\n\n".join(faults)


def test_the_tables_name_pages_that_are_there():
    assert not (COMMANDS.keys() | PYTHON.keys()) - set(NAMED)


def test_the_axis_of_the_page_became_arms_at_equal_tokens(desk):
    """The worked example of docs/adding.md, after it has run."""
    if not (desk / "studies/batch").exists():
        faults = run_page(DOCS / "adding.md", {}, PYTHON["adding.md"], desk)
        assert not faults, faults
    result = json.loads((desk / "studies/batch/result.json").read_text(encoding="utf-8"))
    rows = {row["arm"]: row for row in result["table"]}
    assert list(rows) == ["baseline", "batch 4", "batch 16", "A/A"]
    assert len({row["tokens"] for row in rows.values()}) == 1


def prose(page):
    """Without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
class TestPointers:
    def test_every_link_is_relative_and_leads_to_a_file_and_a_heading(self, page):
        wrong = []
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", path):
                wrong += [] if path.startswith("https:") else [target]
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or not there.is_relative_to(ROOT) or (anchor and anchor not in anchors(there)):
                wrong.append(target)
        assert not wrong

    def test_every_file_and_test_it_names_is_there(self, page):
        text = re.sub(r"\]\([^)\s]+\)", "]", page.read_text(encoding="utf-8"))  # links have a test of their own
        named = set(re.findall(r"\b(?:kernels|minilm|bench|tests|docs|examples)/[\w./-]*\w\.(?:py|json|md)\b", text))
        assert not {name for name in named - {"examples/NAME.py"} if not (ROOT / name).is_file()}
        tests = set(re.findall(r"`(test_\w+)`", text))
        defined = set(re.findall(r"def (test_\w+)", "".join(p.read_text("utf-8") for p in ROOT.glob("tests/**/*.py"))))
        assert not tests - defined

    def test_every_minilm_command_it_names_exists_with_its_options(self, page):
        spans = re.findall(r"`(minilm [^`\n]+)`", prose(page)) + [command for _, command in commands(page)]
        assert not {span for span in spans if not exists_as_command(span)}

    def test_the_mathematics_is_closed_and_out_of_code(self, page):
        text = re.sub(r"`[^`\n]*`", "", prose(page))
        assert text.count("$$") % 2 == 0
        for paragraph in re.sub(r"\$\$.*?\$\$", "", text, flags=re.S).split("\n\n"):
            assert paragraph.count("$") % 2 == 0, paragraph


def exists_as_command(text):
    """Whether `minilm COMMAND --option ...` and `python -m MODULE ...` name what there is; others are let be."""
    words = shlex.split(text.replace("...", ""))
    words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]  # past VARIABLE=value
    if "minilm" in words[:1] or words[:2] == ["-m", "minilm"]:
        command, rest = cli, words[1:]
        if rest and not rest[0].startswith("-"):
            command, rest = cli.commands.get(rest[0]), rest[1:]
        if command is None:
            return False
        context = click.Context(command, info_name="minilm")
        options = {name for p in command.get_params(context) for name in (*p.opts, *p.secondary_opts)} | {
            "-h",
            "--help",
        }
        return all(word.partition("=")[0] in options for word in rest if re.match(r"--?[a-z]", word))
    if words[:2] == ["python", "-m"]:
        return importlib.util.find_spec(words[2]) is not None
    return True


def test_the_reading_of_pages_sees_what_is_wrong():
    assert exists_as_command("minilm train --set train.lr=1 --resume") and exists_as_command("make test")
    assert exists_as_command("TRITON_INTERPRET=1 minilm train --kernels triton")
    for wrong in ("minilm trian", "minilm train --stepz 3", "X=1 minilm check --deep", "python -m kernels.nothing"):
        assert not exists_as_command(wrong), wrong
    assert exists("tests/test_docs.py::TestPointers::test_the_mathematics_is_closed_and_out_of_code")
    for wrong in ("tests/test_docs.py::test_nothing", "tests/nowhere.py::test_x", "tests/kernels/test_tune.py::"
                  "test_tuning_writes_a_table_that_later_lookups_use"):  # fmt: skip
        assert not exists(wrong), wrong


ROW = re.compile(r"^\| (width [^|]+) \| `(_\w+)` \| ([^|]+) \| ([\d| of]+) \|$", re.M)


@pytest.mark.parametrize("name", ["attention", "cross_entropy", "decode", "layer_norm", "swiglu"])
def test_the_figures_of_a_kernels_page_are_those_of_the_committed_machine_code(name):
    rows = [row for row in json.loads(RECORD.read_text(encoding="utf-8"))["kernels"] if row["arch"] == 90]
    told = ROW.findall((DOCS / f"kernels/{name}.md").read_text(encoding="utf-8"))
    assert len(told) >= 4
    for case, kernel, tile, numbers in told:
        measured = [row for row in rows if row["case"] == f"{name}: {case}" and row["kernel"] == kernel]
        assert (tile, re.sub(r"\s*\|\s*", " | ", numbers)) in {written(row) for row in measured}, (case, kernel)


def written(row):
    """A row of the record as the pages write it: tile and numbers."""
    c = row["config"]
    names = ("BLOCK_M", "BLOCK_N", "ROWS", "BLOCK_C", "BLOCK", "BLOCK_V", "BLOCK_SPLITS")
    tile = " ".join(f"{name.removeprefix('BLOCK_')} {c[name]}" for name in names if name in c)
    loads = f"{row['loads_128']} of {row['loads']}"
    figures = (c["num_warps"], row["registers"], row["spills"], row["wgmma"], loads)
    return tile, " | ".join(map(str, (*figures, row["blocks_per_sm"], row["warps_per_sm"])))
