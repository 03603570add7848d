"""Whatever is typed, configured or given as text: taken, or refused in one sentence; never a traceback."""

import contextlib
import io
import itertools
import json
import shutil
import signal
import string
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minilm import config as configuration
from minilm.cli import cli, main
from minilm.config import SECTIONS, DataConfig, RunConfig, build, parse_assignment
from minilm.corpus.dataset import open_dataset, prepare, prepared, source_of
from minilm.corpus.tokenizer import load_tokenizer
from minilm.errors import UserError
from minilm.training.guards import State
from minilm.training.loop import Result
from tests.faults import victim

LONG = pytest.mark.faults
CALM = {"suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}

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


def tuple_of(word):
    return (word,)


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
    from minilm.training.journal import read_config

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


def harmless(word):
    """No path out of the test's folder, and nothing that no shell can pass on."""
    return "/" not in word and ".." not in word and "\0" not in word


def option(name, values):
    return st.tuples(
        st.just(name), values.map(str) if isinstance(values, st.SearchStrategy) else st.sampled_from(values)
    )


PRESETS = [name for name in configuration.PRESETS if build(name).data.source == "fables"]  # the others need a network
PROPER = [  # what each option of train takes
    option("--steps", st.integers(1, 10**7)),
    option("--seed", st.integers(0, 2**63)),
    option("--keep-last", st.integers(1, 99)),
    option("--eval-tokens", st.integers(0, 10**9)),
    option("--device", ["cpu", "auto"]),
    option("--dtype", ["float32", "bfloat16", "auto"]),
    option("--kernels", ["reference", "torch", "auto"]),
    option("--matmul-precision", ["highest", "high", "medium"]),
    option("--on-spike", ["continue", "rewind"]),
    option("--data", ["fables", "text.txt"]),
    option("--out", ["new", "another"]),
    option("--save-at", st.just("pythia") | st.lists(st.integers(0, 10), max_size=3).map(lambda n: str(n)[1:-1])),
    option("--compile", ["auto", "off", "on"]),
    st.sampled_from(["--exact-reduction", "--no-report", "--no-baselines"]).map(tuple_of),
]
OWN = st.sampled_from([p.opts[0] for p in cli.commands["train"].params if p.opts[0] != "--out"])
WILD = st.one_of(st.tuples(st.just("--set"), ASSIGNMENTS.filter(harmless)), st.tuples(OWN, VALUES.filter(harmless)))
WORD = st.sampled_from([*cli.commands, *OPTIONS, *WORDS, "fables", "runs"]).filter(harmless).map(tuple_of)


@st.composite
def trainings(draw):
    """A preset, options with what they take and its own settings; one time in three something wild among them."""
    preset = draw(st.sampled_from(PRESETS))
    own = [f"{section}.{k}={v}" for section in SECTIONS for k, v in build(preset).to_dict()[section].items()]
    proper = st.one_of(*PROPER, option("--set", [word for word in own if harmless(word)]))
    pieces = draw(st.lists(proper, max_size=5))
    if draw(st.sampled_from([False, False, True])):
        pieces.insert(draw(st.integers(0, len(pieces))), draw(WILD | WORD))
    return ["train", "--preset", preset, *itertools.chain(*pieces)]


GENERATING = [
    option("--checkpoint", ["best", "last", "2", "7"]),
    option("--prompt", ["", "green", "\u00e9"]),
    option("--temperature", st.floats(-0.5, 3)),
    option("--top-k", st.integers(-1, 90)),
    option("--top-p", st.floats(-0.1, 1.1)),
    option("--seed", st.integers(0, 2**40)),
]
LINES = st.one_of(
    *3 * [trainings()],
    st.lists(st.sampled_from(["run", "data", "text.txt", "nothing", "run.pt"]), min_size=1, max_size=2).map(
        lambda paths: ["check", *paths[: 1 + (len(paths[0]) > 7)]]
    ),
    st.lists(st.one_of(*GENERATING), max_size=3).map(
        lambda pieces: [
            "generate",
            "--run",
            "run",
            "--max-new-tokens",
            "2",
            "--device",
            "cpu",
            *itertools.chain(*pieces),
        ]
    ),
    st.lists(WILD | WORD, max_size=3).map(lambda pieces: [*itertools.chain(*pieces)]),
)


@many(10_000)
def test_any_command_line_is_obeyed_or_refused(draws, tmp_path, monkeypatch, text_file):
    """Trainings, and what else would take long or a network, are only begun: their work is replaced by looking at what
    they were given. minilm check and minilm generate do theirs, on a run of two steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(text_file.read_bytes())
    config = victim.config_for(tmp_path / "text.txt", steps=2)
    victim.run(config, tmp_path / "run")
    shutil.copytree(prepared(config.data).folder, tmp_path / "data")
    begun = []

    def begin(config, out, *_):
        begun.append(config)
        assert isinstance(config, RunConfig) and RunConfig.from_dict(config.to_dict()) == config
        if config.data.source != "shakespeare":
            source_of(config.data)
        return Result(out, State(), signal.SIGTERM)

    def refuse(*_, **__):
        raise UserError("begun")

    monkeypatch.setattr("minilm.pipeline.train", begin)
    for name in ("minilm.studies.study.ablate", "minilm.studies.ladder.scale", "minilm.tune.tune"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("minilm.corpus.dataset.prepare", refuse)
    monkeypatch.setattr("minilm.doctor.diagnose", lambda: None)
    codes, obeyed, refusals = Counter(), Counter(), Counter()

    @settings(max_examples=draws, **CALM)
    @given(LINES)
    def draw(arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["minilm", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        codes[code] += 1
        assert code in (0, 1, 2), (code, err.getvalue())
        assert "Traceback" not in err.getvalue()
        if code == 0 and arguments:
            obeyed[arguments[0]] += 1
        if code == 2 and err.getvalue():
            assert err.getvalue().startswith("minilm: "), err.getvalue()
            refusals[" ".join(err.getvalue().split()[1:6])] += 1

    draw()
    print(f"command lines: exit codes {dict(codes)}, {len(refusals)} kinds of refusal; obeyed: {dict(obeyed)}")
    # enough of each kind, whatever is drawn, for the whole to mean something
    assert codes[0] > draws // 8 and codes[2] > draws // 5
    assert len(begun) > draws // 16 and obeyed["generate"] > draws // 50
    assert obeyed["check"] > 2  # of which there are but a dozen to draw
    assert len(refusals) > 20  # not all for one and the same reason


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
