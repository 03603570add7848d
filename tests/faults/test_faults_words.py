"""Whatever is typed, configured or given as text: taken, or refused in one sentence; never a traceback."""

import contextlib
import io
import json
import string
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minilm import config as configuration
from minilm.cli import cli, main
from minilm.config import SECTIONS, DataConfig, RunConfig, build, parse_assignment
from minilm.corpus.dataset import open_dataset, prepare
from minilm.corpus.sources import open_source
from minilm.corpus.tokenizer import load_tokenizer
from minilm.errors import UserError

LONG = pytest.mark.faults
CALM = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}

KEYS = [f"{section}.{name}" for section, kind in SECTIONS.items() for name in kind.__dataclass_fields__]
WORDS = ["nan", "inf", "-inf", "1e400", "-1", "0", "1", "1e9", "None", "", "true", "²", "٣", "1_0", "\0", "auto", "🦜"]
WORDS += [
    "pythia",
    "1,2,3",
    "9" * 5000,
    "..",
    "/",
    "a" * 300,
    "muon",
    "rope",
    "cuda",
    "cuda:99",
    "meta",
    "cpu:",
    "\udc80",
]
VALUES = st.sampled_from(WORDS) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=12)
STRANGE = st.builds("{}={}".format, st.sampled_from(KEYS) | st.text(max_size=12), VALUES)
PLAUSIBLE = st.sampled_from(
    [f"{key}={value}" for preset in configuration.PRESETS for section in SECTIONS
     for key, value in ((f"{section}.{k}", v) for k, v in build(preset).to_dict()[section].items())]
)  # fmt: skip
ASSIGNMENTS = PLAUSIBLE | PLAUSIBLE | STRANGE
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def many(draws):
    """A fast form of some draws, and a long one of so many."""
    return pytest.mark.parametrize("draws", [pytest.param(150, id="fast"), pytest.param(draws, marks=LONG, id="long")])


def in_one_sentence(work):
    """Run `work`; only a UserError of one line may come out. Returns whether it was refused."""
    try:
        work()
        return False
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)
        return True


@many(10_000)
def test_any_settings_make_a_configuration_or_a_sentence(draws):
    counts = {True: 0, False: 0}

    @settings(max_examples=draws, **CALM)
    @given(st.sampled_from(list(configuration.PRESETS)), st.lists(ASSIGNMENTS, max_size=4))
    def draw(preset, assignments):
        def use():
            overrides = {}
            for assignment in assignments:
                section, key, value = parse_assignment(assignment)
                overrides.setdefault(section, {})[key] = value
            config = build(preset, overrides)
            json.loads(json.dumps(config.to_dict(), allow_nan=False))
            config.train.kept_steps()

        counts[in_one_sentence(use)] += 1

    draw()
    print(f"settings: {counts[False]} taken, {counts[True]} refused, no traceback")
    assert counts[True] > draws // 10 and counts[False] > draws // 50


@many(10_000)
def test_any_saved_configuration_is_read_or_refused(draws, tmp_path):
    from minilm.training.loop import read_config

    whole = build("tiny").to_dict()

    @settings(max_examples=draws, **CALM)
    @given(st.sampled_from(["", *SECTIONS]), st.sampled_from(KEYS), JSON)
    def draw(section, key, value):
        saved = json.loads(json.dumps(whole))
        if section:
            saved[section] = value
        else:
            saved[key.split(".")[0]][key.split(".")[1]] = value
        (tmp_path / "config.json").write_text(json.dumps(saved), encoding="utf-8")
        in_one_sentence(lambda: read_config(tmp_path))

    draw()


OPTIONS = sorted({o for command in cli.commands.values() for p in command.params for o in p.opts if o.startswith("-")})
ARGUMENTS = st.sampled_from([*cli.commands, *OPTIONS, *WORDS, "fables", "quick", "tiny", "runs"]) | ASSIGNMENTS


def harmless(word):
    """No path out of the test's folder, and nothing that no shell can pass on."""
    return "/" not in word and ".." not in word and "\0" not in word


ARGUMENTS = ARGUMENTS.filter(harmless)
OPTION = st.sampled_from([p.opts[0] for p in cli.commands["train"].params if p.opts[0] != "--out"])
PIECES = st.one_of(
    st.tuples(st.just("--set"), PLAUSIBLE.filter(harmless)),
    st.tuples(st.just("--set"), ASSIGNMENTS.filter(harmless)),
    st.tuples(OPTION, VALUES.filter(harmless)),
    st.tuples(ARGUMENTS),
)
LINES = st.lists(PIECES, max_size=3).map(lambda pieces: [word for piece in pieces for word in piece])
STARTS = st.sampled_from([["train"], ["train"], ["train", "--preset", "tiny"], ["check"], ["generate"], []])


@many(10_000)
def test_any_command_line_is_obeyed_or_refused(draws, tmp_path, monkeypatch):
    """Trainings, and what else would take long or a network, are only begun: their work is replaced by looking at what
    they were given."""
    monkeypatch.chdir(tmp_path)

    begun = []

    def begin(config, *_, **__):
        begun.append(config)
        assert isinstance(config, RunConfig)
        if config.data.source != "shakespeare":
            open_source(config.data)
        raise UserError("begun")

    def refuse(*_, **__):
        raise UserError("begun")

    monkeypatch.setattr("minilm.training.loop.train", begin)
    for name in ("minilm.studies.study.ablate", "minilm.studies.ladder.scale", "minilm.tune.tune"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("minilm.corpus.dataset.prepare", refuse)
    monkeypatch.setattr("minilm.doctor.diagnose", lambda: None)
    codes: dict[int, int] = {}

    @settings(max_examples=draws, **CALM)
    @given(LINES, STARTS)
    def draw(arguments, first):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["minilm", *first, *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 1, 2), (code, err.getvalue())
        assert "Traceback" not in err.getvalue()
        if code == 2 and err.getvalue():
            assert err.getvalue().startswith("minilm: "), err.getvalue()

    draw()
    print(f"command lines: exit codes {codes}")
    print(f"{len(begun)} of them would have trained")
    assert codes[2] > draws // 2 and len(begun) > draws // 50


TEXTS = st.binary(min_size=1, max_size=400) | st.text(min_size=1, max_size=300).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
ALPHABET = string.printable.encode() + "é漢😀\u2028\ufeff\x85".encode()
TEXTS |= st.lists(st.sampled_from(ALPHABET), min_size=8, max_size=400).map(bytes)


@pytest.mark.parametrize(
    "settings_of", [{"tokenizer": "char"}, {"tokenizer": "bpe", "vocab_size": 300}], ids=["char", "bpe"]
)
@pytest.mark.parametrize("draws", [pytest.param(40, id="fast"), pytest.param(1500, marks=LONG, id="long")])
def test_any_bytes_as_a_corpus_come_back_from_the_tokens_or_are_refused(draws, settings_of, tmp_path):
    counts = {True: 0, False: 0}

    @settings(max_examples=draws, **CALM)
    @given(TEXTS)
    def draw(content):
        path = tmp_path / "text.txt"
        path.write_bytes(content)

        def use():
            out = prepare(DataConfig(source=str(path), val_fraction=0.3, **settings_of), tmp_path / "data")
            data = open_dataset(out)
            tokenizer = load_tokenizer(out / "tokenizer.json")
            back = b"".join(tokenizer.decode(part.tolist()).encode("utf-8") for part in (data.train, data.val))
            assert back == content

        refused = in_one_sentence(use)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            assert refused
        else:
            assert not refused or len(text) < 8  # too short for two splits
        counts[refused] += 1

    draw()
    print(f"corpora: {counts[False]} came back, {counts[True]} refused")
    assert counts[True] and counts[False]
