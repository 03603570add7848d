"""What the compiler makes of the kernels for chips that are not here, and of which sources the figures are."""

import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

triton = pytest.importorskip("triton")

from kernels import machine_code  # noqa: E402
from kernels.fused import tuning  # noqa: E402
from tests.children import python  # noqa: E402

ROOT = Path(machine_code.HERE).parent
COMMITTED = sorted((ROOT / "bench" / "results").glob("machine_code*.json"))  # of the constraints' Triton and of 3.6.0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Attention of widths 40 and 64 in bfloat16 for sm_90: figures by width and kernel, the record, the output."""
    folder = tmp_path_factory.mktemp("machine_code")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    chosen = "^attention: width (40|64), bfloat16$"
    arguments = ["--arch", "90", "--cases", chosen, "--json", str(folder / "figures.json")]
    done = python("-m", "kernels.machine_code", *arguments, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "figures.json").read_text())
    return {(row["config"]["D"], row["kernel"]): row for row in record["kernels"]}, record, done.stdout


PASSES = ("_forward_kernel", "_query_gradient_kernel", "_key_gradient_kernel")
both_widths = pytest.mark.parametrize("width", [40, 64])


@both_widths
@pytest.mark.parametrize("kernel", PASSES)
def test_no_pass_spills_and_every_product_is_a_wgmma(kernel, width, compiled):
    figures = compiled[0][width, kernel]
    assert figures["spills"] == 0
    assert figures["wgmma"] == figures["tensor_core"] > 0
    assert figures["fits"]


@both_widths
@pytest.mark.parametrize(("kernel", "rows_of_numbers"), list(zip(PASSES, (0, 2, 4), strict=True)))
def test_every_tile_is_loaded_128_bits_at_a_time(kernel, rows_of_numbers, width, compiled):
    """What is loaded in less are lse and delta, one number a row: by dK and dV in two loops, as often as they have
    stages."""
    figures = compiled[0][width, kernel]
    if triton.__version__ < "3.7" and kernel == "_key_gradient_kernel":
        pytest.skip("Triton 3.6 loads lse and delta once for each thread that needs them")
    assert figures["loads_128"] > 0
    stages = figures["config"]["num_stages"] if kernel == "_key_gradient_kernel" else 1
    assert figures["loads"] - figures["loads_128"] <= rows_of_numbers * stages


def test_the_multiprocessor_holds_two_blocks_of_every_pass_at_width_64(compiled):
    """While one takes exponentials, which cost as much as the products at this width, the other multiplies."""
    assert all(compiled[0][64, kernel]["blocks_per_sm"] >= 2 for kernel in PASSES)


def test_the_record_names_its_sources_and_its_compiler(compiled):
    _, record, printed = compiled
    assert record["sources"] == {"attention": None}  # two cases on one chip are not the whole
    assert record["triton"] == triton.__version__
    assert all(kernel in printed for kernel in PASSES)


def test_comments_docstrings_and_layout_are_not_compiled_and_all_else_is():
    source = """
def f(x, *, n: int = 1):
    return [x + n, f"{x!r:>{n}}"]
"""
    other_words = """
def f(
    x,
    *,
    n: int = 1,  # how many
):
    'Said in other words.'
    return [
        x + n,

        f'{x!r:>{n}}'
    ]
"""
    assert machine_code.as_compiled(source) == machine_code.as_compiled(other_words)
    for old, new in (("x + n", "x - n"), ("= 1", "= 2"), ("= 1", "= True"), ("f(x", "g(x"), (": int", ""), ("!r", "")):
        assert machine_code.as_compiled(source) != machine_code.as_compiled(source.replace(old, new)), new


def test_the_words_of_a_syntax_tree_are_the_same_in_every_version_of_python():
    """Else the committed figures would be stale on a machine with another; these are those of 3.11 to 3.13."""
    source = "def f(x: int = 1, *, y=None):\n    x[0] = f'{y!r}' if x else -2.5\n"
    assert machine_code.as_compiled(source) == (
        "(Module body=(FunctionDef name='f' args=(arguments args=(arg arg='x' annotation=(Name id='int')) "
        "kwonlyargs=(arg arg='y') kw_defaults=(Constant ) defaults=(Constant value=1)) "
        "body=(Assign targets=(Subscript value=(Name id='x') slice=(Constant value=0)) "
        "value=(IfExp test=(Name id='x') "
        "body=(JoinedStr values=(FormattedValue value=(Name id='y') conversion=114)) "
        "orelse=(UnaryOp op=(USub ) operand=(Constant value=2.5))))))"
    )


class TestTheRecord:
    """A little project of two kernels: op uses a helper, other stands alone."""

    @pytest.fixture
    def project(self, tmp_path, monkeypatch):
        fused = tmp_path / "fused"
        (fused / "tuned").mkdir(parents=True)
        files = {name: fused / f"{name}.py" for name in ("op", "helper", "other")}
        files["op"].write_text("from kernels.fused import helper\n")
        files["helper"].write_text("from kernels import dropout, other_thing\n")
        files["other"].write_text("x = 1\n")
        files["dropout"] = tmp_path / "dropout.py"
        files["dropout"].write_text("")
        monkeypatch.setattr(machine_code, "HERE", tmp_path)
        monkeypatch.setattr(machine_code, "CASES", {"op": {"a": partial(one)}, "other": {"a": partial(one)}})
        monkeypatch.setattr(tuning, "COMMITTED", fused / "tuned")
        self.table("op_forward", 32)
        return files

    def table(self, op, block):
        config = {"BLOCK": block, "num_warps": 4, "num_stages": 1}
        entry = {"dtypes": None, "max_width": None, "max_length": None, "config": config}
        tuning.write_table(tuning.COMMITTED / "sm_90.json", "sm_90", {op: [entry]})

    @pytest.fixture
    def record(self, project, tmp_path):
        machine_code.write_json(tmp_path / "figures.json", [], machine_code.source_hashes())
        assert machine_code.stale_modules(tmp_path / "figures.json") == []
        return tmp_path / "figures.json"

    @pytest.mark.parametrize("changed", ["op", "helper", "dropout"])
    def test_is_stale_for_a_kernel_when_it_or_what_it_imports_changes(self, changed, project, record):
        project[changed].write_text(project[changed].read_text() + "y = 1\n")
        assert machine_code.stale_modules(record) == ["op"]

    @pytest.mark.parametrize("changed", ["op", "helper", "dropout"])
    def test_is_not_stale_for_what_the_compiler_does_not_see(self, changed, project, record):
        source = project[changed].read_text()
        said = f'"""Said anew."""\n# and remarked\n\n{source}  # here too\n'
        project[changed].write_text(said)
        assert machine_code.stale_modules(record) == []

    def test_is_stale_when_a_table_says_something_else_of_its_ops(self, record):
        self.table("other_forward", 32)
        assert machine_code.stale_modules(record) == ["other"]
        self.table("op_forward", 64)
        assert machine_code.stale_modules(record) == ["op", "other"]

    def test_is_stale_when_other_cases_are_compiled(self, record, monkeypatch):
        monkeypatch.setitem(machine_code.CASES, "op", {"a": partial(one), "b": partial(one)})
        assert machine_code.stale_modules(record) == ["op"]
        monkeypatch.setitem(machine_code.CASES, "op", {"a": partial(two)})
        assert machine_code.stale_modules(record) == ["op"]

    def test_keeps_the_figures_of_kernels_that_were_not_measured_again(self, project, record):
        def row(module, registers):
            return machine_code.Figures(f"{module}: a", "k", 90, {}, registers, 0, 0, True, 0, 0, 0, 0, 1, 1)

        hashes = machine_code.source_hashes()
        machine_code.write_json(record, [row("op", 10), row("other", 20)], hashes)
        machine_code.write_json(record, [row("op", 11)], {"op": hashes["op"]})
        kernels = json.loads(record.read_text())["kernels"]
        assert [(k["case"], k["registers"]) for k in kernels] == [("op: a", 11), ("other: a", 20)]
        assert machine_code.stale_modules(record) == []
        machine_code.write_json(record, [row("op", 11)], {"op": None})  # not all of it was measured
        assert machine_code.stale_modules(record) == ["op"]


def one():
    pass


def two():
    pass


committed = pytest.mark.parametrize("record", COMMITTED, ids=lambda path: path.stem)


@committed
def test_the_committed_figures_are_of_the_present_sources(record):
    command = f"python -m kernels.machine_code --stale --json {record.relative_to(ROOT)}"
    assert machine_code.stale_modules(record) == [], f"{record.name} is stale; mend it: {command}"


def test_figures_are_committed_for_both_versions_of_triton():
    versions = {json.loads(record.read_text())["triton"] for record in COMMITTED}
    assert len(versions) == 2 and "3.6.0" in versions


@committed
def test_every_committed_configuration_fits_its_chip_and_spills_nothing_on_sm_90_in_16_bits(record):
    rows = json.loads(record.read_text())["kernels"]
    assert {row["arch"] for row in rows} == set(machine_code.DEFAULT_ARCHS)
    assert [row for row in rows if not row["fits"]] == []
    assert [row for row in rows if row["arch"] == 90 and "float16" in row["case"] and row["spills"]] == []


@committed
def test_every_product_of_attention_up_to_width_128_is_a_wgmma_on_sm_90_in_16_bits(record):
    rows = [row for row in json.loads(record.read_text())["kernels"] if row["arch"] == 90]
    attention = [
        row for row in rows if row["kernel"] in PASSES and "float16" in row["case"] and row["config"]["D"] <= 128
    ]
    assert len({(row["config"]["D"], row["kernel"]) for row in attention}) == 7 * len(PASSES)
    assert [row for row in attention if not row["wgmma"] == row["tensor_core"] > 0] == []


@committed
def test_norms_and_swiglu_load_128_bits_at_a_time_on_sm_90_in_16_bits(record):
    """What is loaded in less are mean and rstd, one number a row. Rows of less than 1 KiB are not held to it."""
    rows = [row for row in json.loads(record.read_text())["kernels"] if row["arch"] == 90 and "float16" in row["case"]]
    held = [
        row for row in rows if row["kernel"].startswith(("_norm", "_swiglu")) and width(row) in (512, 1024, 2048, 4096)
    ]
    assert len(held) > 30
    assert [row for row in held if row["loads"] - row["loads_128"] > 4] == []


def width(row):
    return row["config"].get("C") or row["config"]["F"]


def test_the_cases_reach_every_entry_of_every_committed_table(tmp_path, monkeypatch):
    """Each entry is given a number, in the place of maxnreg; nothing is compiled or run."""
    numbers = {}
    for path in sorted(tuning.COMMITTED.glob("*.json")):
        ops = tuning.read_table(path)
        for op, entries in ops.items():
            for position, entry in enumerate(entries):
                numbers[len(numbers) + 1] = f"{path.stem}, {op}, entry {position + 1}"
                entry["config"]["maxnreg"] = len(numbers)
        tuning.write_table(tmp_path / path.name, path.stem, ops)
    monkeypatch.setattr(tuning, "COMMITTED", tmp_path)
    monkeypatch.setattr(triton.runtime.interpreter.InterpretedFunction, "run", lambda *args, **kwargs: None)
    monkeypatch.setattr(triton.JITFunction, "run", lambda *args, **kwargs: None)
    seen = set()
    original = tuning.lookup

    def spy(*args, **kwargs):
        config = original(*args, **kwargs)
        seen.add(config["maxnreg"])
        return config

    monkeypatch.setattr(tuning, "lookup", spy)
    tuning.forget()
    try:
        for path in tmp_path.glob("*.json"):
            with tuning.pretend(path.stem):
                for case in machine_code.cases().values():
                    case()
    finally:
        tuning.forget()
    assert [numbers[n] for n in sorted(numbers.keys() - seen)] == []


def test_every_fused_module_that_looks_up_a_configuration_has_cases():
    fused = machine_code.HERE / "fused"
    with_tables = {f.stem for f in fused.glob("*.py") if "tuning.lookup(" in f.read_text() and f.stem != "tuning"}
    assert with_tables == set(machine_code.CASES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arch", "70"], "no figures are known for 70"),
        (["--cases", "nonsense"], "no case has a label that contains 'nonsense'"),
        (["--stale"], "--stale compares with the FILE of --json"),
        ([], "TRITON_INTERPRET is set"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stopped:
        machine_code.main(arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_occupancy_is_bounded_by_registers_shared_memory_warps_and_blocks(monkeypatch):
    def blocks(registers, warps, shared):
        monkeypatch.setattr(machine_code, "_run", lambda tool, *_: f"REG:{registers}" if tool == "cuobjdump" else "")
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        metadata = SimpleNamespace(name="k", num_warps=warps, shared=shared, target=target)
        return machine_code.figures(SimpleNamespace(asm={"cubin": b""}, metadata=metadata), "", {}).blocks_per_sm

    assert blocks(128, 4, 1024) == 4
    assert blocks(97, 4, 1024) == 4  # registers are given out in eights: 104
    assert blocks(32, 4, 45 * 1024) == 4  # and 1 KiB each for the system
    assert blocks(32, 16, 0) == 4
    assert blocks(16, 1, 0) == 32
