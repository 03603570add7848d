"""The tables of launch configurations: what is read, in which order, and what is refused."""

import json

import pytest
import torch

pytest.importorskip("triton")

from kernels.fused import tuning

pytestmark = pytest.mark.usefixtures("user_folder")
CPU = torch.device("cpu")


def entry(config=None, dtypes=None, max_width=None, max_length=None):
    config = {"BLOCK_M": 16, "num_warps": 4, "num_stages": 1} if config is None else config
    return {"dtypes": dtypes, "max_width": max_width, "max_length": max_length, "config": config}


def numbered(warps, **bounds):
    return entry({"BLOCK_M": 16, "num_warps": warps, "num_stages": 1}, **bounds)


def warps(op="attention_forward", dtype=torch.float16, width=64, length=128):
    return tuning.lookup(op, CPU, dtype, width=width, length=length)["num_warps"]


@pytest.fixture
def committed(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "COMMITTED", tmp_path / "committed")
    return tmp_path / "committed"


@pytest.mark.parametrize("path", sorted(tuning.COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_table_is_valid_and_names_its_chip(path):
    assert tuning.read_table(path)


def test_every_chip_that_the_project_names_has_a_table():
    chips = {path.stem for path in tuning.COMMITTED.glob("*.json")}
    assert chips >= {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "default"}


@pytest.mark.parametrize("op", ["attention_forward", "attention_backward_q", "attention_backward_kv"])
@pytest.mark.parametrize("chip", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "sm_75", "default"])
def test_attention_has_an_answer_for_every_chip_dtype_width_and_length(op, chip):
    with tuning.pretend(chip):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, "tf32"):
            for width in (1, 16, 40, 64, 80, 128, 256):
                for length in (1, 512, 2**20):
                    config = tuning.lookup(op, CPU, dtype, width=width, length=length)
                    assert config.keys() >= {"BLOCK_M", "BLOCK_N", "num_warps", "num_stages"}


def test_the_first_entry_that_matches_counts(committed):
    entries = [
        numbered(1, dtypes=["float32"]),
        numbered(2, max_width=64, max_length=512),
        numbered(4, max_width=64),
        numbered(8),
    ]
    tuning.write_table(committed / "default.json", "default", {"attention_forward": entries})
    assert warps(dtype=torch.float32, width=256) == 1
    assert warps(width=64, length=512) == 2
    assert warps(width=64, length=513) == 4
    assert warps(width=65, length=1) == 8


def test_the_users_table_comes_before_the_chips_its_generations_and_the_default(committed, user_folder, monkeypatch):
    tuning.write_table(committed / "default.json", "default", {op: [numbered(1)] for op in "abcd"})
    tuning.write_table(committed / "sm_80.json", "sm_80", {op: [numbered(2)] for op in "abc"})
    tuning.write_table(committed / "sm_86.json", "sm_86", {op: [numbered(4)] for op in "ab"})
    tuning.write_table(user_folder / "sm_86.json", "sm_86", {"a": [numbered(8)]})
    for chip, expected in (("sm_86", [8, 4, 2, 1]), ("sm_87", [2, 2, 2, 1]), ("sm_75", [1, 1, 1, 1])):
        monkeypatch.setattr(tuning, "_chip", lambda *device, chip=chip: chip)
        assert [warps(op) for op in "abcd"] == expected, chip
    with tuning.pretend("sm_86"):  # what is compiled for an absent chip is what is committed
        assert [warps(op) for op in "abcd"] == [4, 4, 2, 1]


def test_an_entry_of_the_user_that_does_not_match_leaves_the_committed_ones(committed, user_folder):
    tuning.write_table(committed / "default.json", "default", {"a": [numbered(1)]})
    tuning.write_table(user_folder / "default.json", "default", {"a": [numbered(8, max_width=32)]})
    assert [warps("a", width=width) for width in (32, 33)] == [8, 1]


def test_an_unknown_op_is_an_error_that_names_it(committed):
    with pytest.raises(tuning.TuningError, match="no tuning table has an entry for nonsense, float16, width 64"):
        warps("nonsense")


def test_a_configuration_cannot_be_changed_by_its_reader():
    with pytest.raises(TypeError):
        tuning.lookup("attention_forward", CPU, torch.float16, width=64, length=64)["num_warps"] = 1


def test_a_repeated_lookup_reads_no_file(monkeypatch):
    expected = warps()
    monkeypatch.setattr(tuning, "read_table", None)
    assert warps() == expected


def test_a_written_table_reads_back_and_keeps_the_other_ops(user_folder):
    path = user_folder / "sm_90.json"
    tuning.write_table(path, "sm_90", {"a": [numbered(1)], "b": [numbered(2)]})
    tuning.write_table(path, "sm_90", {"b": [numbered(4)], "c": []})
    assert tuning.read_table(path) == {"a": [numbered(1)], "b": [numbered(4)], "c": []}
    assert [file.name for file in user_folder.iterdir()] == ["sm_90.json"]


def test_a_table_says_on_what_it_was_measured_until_it_is_measured_anew(user_folder):
    path = user_folder / "sm_90.json"
    for measured, expected in ((None, None), ({"device": "A"}, {"device": "A"}), (None, {"device": "A"})):
        tuning.write_table(path, "sm_90", {"a": [numbered(1)]}, measured)
        assert json.loads(path.read_text()).get("measured") == expected
        assert tuning.read_table(path) == {"a": [numbered(1)]}
    tuning.write_table(path, "sm_90", {"b": [numbered(1)]}, {"device": "B"})
    assert json.loads(path.read_text())["measured"] == {"device": "B"}


def test_a_number_of_programs_need_not_be_a_power_of_two(user_folder):
    programs = entry({"PROGRAMS": 528, "num_warps": 4, "num_stages": 1})
    tuning.write_table(user_folder / "sm_90.json", "sm_90", {"a": [programs]})
    assert tuning.read_table(user_folder / "sm_90.json") == {"a": [programs]}


def test_writing_a_fault_leaves_the_table_as_it_was(user_folder):
    path = user_folder / "sm_90.json"
    tuning.write_table(path, "sm_90", {"a": [numbered(1)]})
    before = path.read_bytes()
    with pytest.raises(tuning.TuningError, match="num_warps is 3; it must be a power of two"):
        tuning.write_table(path, "sm_90", {"a": [numbered(3)]})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "cannot be read"),
        ("[]", "no table of format 1"),
        ('{"format": 2}', "no table of format 1"),
        ('{"format": 1, "chip": "sm_80", "ops": {}}', "for the chip 'sm_80'"),
        ('{"format": 1, "chip": "sm_90", "ops": []}', '"ops" is no object'),
        ('{"format": 1, "chip": "sm_90", "measured": {"device": 1}, "ops": {}}', '"measured" is no object of strings'),
        ('{"format": 1, "chip": "sm_90", "ops": {"a": {}}}', "a is no list of entries"),
        ('{"format": 1, "chip": "sm_90", "ops": {"a": [{"config": {}}]}}', "entry 1 of a: an entry has exactly"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence_with_its_file(text, fault, user_folder, monkeypatch):
    path = user_folder / "sm_90.json"
    path.parent.mkdir()
    path.write_text(text)
    monkeypatch.setattr(tuning, "_chip", lambda *device: "sm_90")
    with pytest.raises(tuning.TuningError) as raised:
        warps()
    message = str(raised.value)
    assert fault in message and str(path) in message and "\n" not in message and message.endswith("remove it.")


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (entry(dtypes="float16"), "dtypes is 'float16'"),
        (entry(max_width=0), "max_width is 0"),
        (entry(max_length=True), "max_length is True"),
        (entry({"BLOCK_M": 16}), "lacks num_warps"),
        (numbered(64), "at most 32 and 8"),
        (entry({"BLOCK_M": 48, "num_warps": 4, "num_stages": 1}), "BLOCK_M is 48; it must be a power of two"),
        (entry({"BLOCK_M": 16.0, "num_warps": 4, "num_stages": 1}), "BLOCK_M is 16.0; it must be a positive integer"),
        (entry({"warp": 4, "num_warps": 4, "num_stages": 1}), "warp is no launch option"),
        ({**entry(), "speed": 1}, "an entry has exactly"),
    ],
)
def test_a_wrong_entry_is_refused_by_what_is_wrong(wrong, fault, user_folder):
    user_folder.mkdir()
    path = user_folder / "sm_90.json"
    path.write_text(json.dumps({"format": 1, "chip": "sm_90", "ops": {"a": [entry(), wrong]}}))
    with pytest.raises(tuning.TuningError) as raised:
        tuning.read_table(path)
    assert "entry 2 of a: " in str(raised.value) and fault in str(raised.value)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", ("minilm", "tuned")),
        ("win32", "LOCALAPPDATA", ("minilm", "tuned")),
    ],
)
def test_without_a_folder_of_its_own_the_platforms_is_used(platform, variable, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("MINILM_DATA")
    monkeypatch.setattr(tuning.sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert tuning.user_folder() == tmp_path.joinpath(*expected)
