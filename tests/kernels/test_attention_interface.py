"""attn_implementation="minilm": causal_attention gets what it can compute, and transformers is not misled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from small_models import FAMILIES, build, logits_and_gradients, tokens, transformers
from torch import nn

import kernels
import minilm
from kernels import attention_interface, reference

ROOT = Path(kernels.__file__).parents[1]


# --- what transformers asks of attention ------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_writes_the_same_tokens(family, cache):
    model, ids = build(family), tokens(2, 6)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    expected = model.generate(ids, use_cache=False, **options)
    with kernels.patch(model, "reference"):
        written = model.generate(ids, cache_implementation=cache, disable_compile=True, **options)
    assert expected.shape == (2, 14) and torch.equal(written, expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_read_in_parts_gives_the_logits_of_the_whole(family, backend, ours_alone):
    """A second turn of a chat: more queries than one, fewer than keys, and they are the last rows."""
    model, ids = build(family), tokens(2, 9)
    whole = model(ids).logits
    kernels.patch(model, backend)
    ours_alone()
    begun = model(ids[:, :4], use_cache=True)
    rest = model(ids[:, 4:], past_key_values=begun.past_key_values).logits
    torch.testing.assert_close(torch.cat((begun.logits, rest), 1), whole)


@pytest.fixture
def ours_alone(monkeypatch):
    """transformers' own attention must not be called, from when the value is called."""

    def refuse(*args, **kwargs):
        raise AssertionError("transformers' own attention was called")

    return lambda: monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", refuse)


@pytest.fixture
def theirs_alone(monkeypatch):
    """causal_attention must not be called: it would not see what is masked."""

    def refuse(*_):
        raise AssertionError("causal_attention was called where there is more to mask than the future")

    monkeypatch.setattr("kernels.attention_interface._ops", refuse)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_reach_real_tokens(family, side, theirs_alone):
    model, ids = build(family), tokens(2, 7)
    alone = model(ids[:1, :4]).logits
    mask = torch.ones_like(ids)
    padded, real = ids.clone(), slice(3, 7) if side == "left" else slice(0, 4)
    padded[0, real] = ids[0, :4]
    mask[0] = 0
    mask[0, real] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    original = model(padded, attention_mask=mask, position_ids=positions).logits
    kernels.patch(model, "reference", ops=("attention",))
    ours = model(padded, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(ours[:1, real], alone)
    assert torch.equal(ours, original)  # at the padding too


def causal_but_for_one_key(length: int) -> torch.Tensor:
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[5, 2] = False
    return mask.expand(2, 1, length, length)


MASKED = {  # what only a mask can say: family, settings of the model, arguments of the call
    "a mask of the user's": ("llama", {}, {"attention_mask": causal_but_for_one_key(8)}),
    "an additive mask of the user's": (
        "gpt2",
        {},
        {"attention_mask": torch.zeros(2, 1, 8, 8).masked_fill(~causal_but_for_one_key(8), -1e30)},
    ),
    "a sliding window": ("mistral", {"sliding_window": 3}, {}),
    "packed sequences": (
        "llama",
        {},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]] * 2), "use_cache": False},
    ),
    "no causality": ("llama", {"is_causal": False}, {"use_cache": False}),
}


@pytest.mark.parametrize("case", MASKED)
def test_what_only_a_mask_can_say_goes_to_transformers_own_attention(case, theirs_alone):
    family, settings, arguments = MASKED[case]
    model, ids = build(family, attn_implementation="sdpa", **settings), tokens(2, 8)
    original = model(ids, **arguments).logits
    kernels.patch(model, "reference", ops=("attention",))
    assert torch.equal(model(ids, **arguments).logits, original)


def all_but_the_fifth(batch, head, row, column):
    return (column <= row) & (column != 5)


def window(batch, head, row, column):
    return (column <= row) & (column > row - 3)


CAUSAL = {  # how transformers asks for a mask, and whether it is that of causal_attention
    "a whole text": ({"q_length": 6, "kv_length": 6}, True),
    "a text after another": ({"q_length": 4, "kv_length": 6, "q_offset": 2}, True),
    "a token after a text": ({"q_length": 1, "kv_length": 6, "q_offset": 5}, True),
    "a batch without padding": ({"q_length": 6, "kv_length": 6, "attention_mask": torch.ones(2, 6).bool()}, True),
    "padding": ({"q_length": 6, "kv_length": 6, "attention_mask": torch.arange(12).view(2, 6) != 6}, False),
    "an empty static cache": ({"q_length": 4, "kv_length": 6}, False),
    "a static cache, half full": ({"q_length": 2, "kv_length": 6, "q_offset": 2}, False),
    "a token in a static cache": ({"q_length": 1, "kv_length": 6, "q_offset": 2}, False),
    "an offset on the device": ({"q_length": 4, "kv_length": 6, "q_offset": torch.tensor(2)}, False),
    "a window": ({"q_length": 6, "kv_length": 6, "mask_function": window, "local_size": 3}, False),
    "a window wider than the text": ({"q_length": 2, "kv_length": 2, "mask_function": window, "local_size": 3}, True),
    "a cache that slid": ({"q_length": 2, "kv_length": 4, "q_offset": 6, "kv_offset": 4}, True),
    "another mask": ({"q_length": 6, "kv_length": 6, "mask_function": all_but_the_fifth}, False),
    "a mask at any rate": ({"q_length": 6, "kv_length": 6, "allow_is_causal_skip": False}, False),
}


@pytest.mark.parametrize("case", CAUSAL)
def test_no_mask_means_queries_are_the_last_rows_and_see_all_before_them(case):
    asked, causal = CAUSAL[case]
    function = {"mask_function": transformers.masking_utils.causal_mask_function, **asked}
    mask = attention_interface.mask_or_none(batch_size=2, **function)
    assert (mask is None) == causal
    rows = (torch.arange(asked["q_length"]) + asked.get("q_offset", 0))[:, None]
    columns = torch.arange(asked["kv_length"]) + asked.get("kv_offset", 0)
    expected = function["mask_function"](0, 0, rows, columns).expand(2, 1, -1, -1)
    if "attention_mask" in asked:
        expected = expected & asked["attention_mask"][:, None, None]
    if mask is None:  # what causal_attention does without one
        mask = torch.ones_like(expected).tril(asked["kv_length"] - asked["q_length"])
    assert torch.equal(mask, expected)


def test_without_a_mask_attention_is_causal_only_where_the_module_is(theirs_alone):
    """Cross-attention: no mask, more queries than keys, and all is seen."""
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 3, 8)
    expected = torch.softmax(q @ k.transpose(-2, -1) * 0.2, -1) @ k
    module = nn.Module()
    by_argument, _ = attention_interface.attend("torch", module, q, k, k, None, scaling=0.2, is_causal=False)
    module.is_causal = False
    by_module, _ = attention_interface.attend("torch", module, q, k, k, None, scaling=0.2)
    torch.testing.assert_close(by_argument.transpose(1, 2), expected)
    assert torch.equal(by_argument, by_module)


def test_a_window_slides_over_a_cache_too():
    model, ids = build("mistral", sliding_window=4), tokens(2, 7)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    expected = model.generate(ids, use_cache=False, **options)
    with kernels.patch(model, "reference"):
        assert torch.equal(model.generate(ids, **options), expected)


REFUSED = {
    "output_attentions": True,
    "softcap": 30.0,
    "s_aux": torch.zeros(2),
    "position_bias": torch.zeros(1, 2, 3, 3),
    "head_mask": torch.ones(2),
    "cache": object(),
    "cu_seq_lens_q": torch.tensor([0, 3]),
    "slopes_of_tomorrow": torch.ones(2),  # a tensor that nobody here has heard of
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_attention_is_refused_by_name(name):
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match=name):
        attention_interface.attend("torch", nn.Module(), q, q, q, None, **{name: REFUSED[name]})
    harmless = {"output_attentions": False, "softcap": None, "position_ids": torch.arange(3), "use_cache": True}
    attention_interface.attend("torch", nn.Module(), q, q, q, None, **harmless)


def test_a_model_asked_for_its_attention_weights_refuses():
    model = build("llama")
    kernels.patch(model, "torch")
    with pytest.raises(ValueError, match="output_attentions"):
        model(tokens(1, 4), output_attentions=True)


@pytest.mark.parametrize(("family", "dropout"), [("llama", "attention_dropout"), ("gpt2", "attn_pdrop")])
def test_attention_drops_weights_in_training_alone_and_checkpointing_draws_them_again(family, dropout):
    model, ids = build(family, **{dropout: 0.3}), tokens(2, 8)
    still = model(ids).logits
    kernels.patch(model, "reference")
    torch.testing.assert_close(model(ids).logits, still)
    model.train()

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return logits_and_gradients(model, ids)

    first, again, other = drawn(3), drawn(3), drawn(4)
    model.gradient_checkpointing_enable()
    checkpointed = drawn(3)
    for name in first:
        assert torch.equal(first[name], again[name])
        torch.testing.assert_close(checkpointed[name], first[name])
    assert (first["logits"] - other["logits"]).abs().max() > 0.01 * still.abs().max()


def test_dropout_is_that_of_the_reference_at_the_seed_that_is_drawn():
    q, k, v = (torch.randn(2, heads, 6, 8) for heads in (4, 2, 2))
    torch.manual_seed(5)
    out, weights = attention_interface.attend("torch", nn.Module(), q, k, v, None, dropout=0.4, scaling=0.2)
    torch.manual_seed(5)
    seed = torch.randint(2**62, ())
    expected = reference.causal_attention(q, k, v, scale=0.2, dropout_p=0.4, dropout_seed=seed)
    assert weights is None and torch.equal(out, expected.transpose(1, 2))


# --- attn_implementation="minilm" -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_attn_implementation_minilm_is_a_name_that_transformers_knows(family, tmp_path, ours_alone):
    names = kernels.register_with_transformers()
    assert names == ("minilm", "minilm_reference", "minilm_torch", "minilm_triton")
    model, ids = build(family), tokens(2, 6)
    model.save_pretrained(tmp_path)
    expected = model(ids).logits
    ours_alone()
    for name in ("minilm", "minilm_reference"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
        torch.testing.assert_close(loaded(ids).logits, expected)
        loaded.save_pretrained(tmp_path / name)
        assert "minilm" not in (tmp_path / name / "config.json").read_text()  # others can load what is saved


# --- beside transformers, and without it ------------------------------------------------------------------------------


def python(code: str, *path: Path, **environment: str) -> str:
    """What a fresh Python prints that finds packages in `path` first."""
    # not the working folder, whose egg-info would come before all of them
    paths = {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONSAFEPATH": "1"}
    environment = {**os.environ, **paths, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_patching_needs_no_transformers():
    code = """
import sys; sys.modules["transformers"] = None
import torch, kernels
print(kernels.patch(torch.nn.LayerNorm(4), "torch"))
try: kernels.register_with_transformers()
except kernels.BackendUnavailable as error: print(error)
"""
    swapped, refused = python(code, ROOT).splitlines()
    assert swapped == "1 x layer_norm by torch" and "pip install 'transformers" in refused


def installed_as(folder: Path, version: str) -> Path:
    """A folder of packages in which this one is installed, by its metadata, as minilm of some version."""
    metadata = folder / "minilm.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: minilm\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("kernels\nminilm\n")
    for package in ("kernels", "minilm"):
        (folder / package).symlink_to(ROOT / package)
    return folder


def test_transformers_does_not_take_our_kernels_for_those_of_hugging_face(tmp_path):
    """It asks for the version of whatever distribution ships a package `kernels`, which is minilm's own."""
    code = "from transformers.utils import is_kernels_available as f; print(f())"
    asked = transformers.utils.import_utils.KERNELS_MIN_VERSION  # other versions of transformers ask for others
    mistaken = python(code, installed_as(tmp_path / "mistaken", asked))
    assert mistaken == "True"  # so this test can see it: transformers would import what is not there
    code += """
import torch, kernels; from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(config)
print(kernels.patch(model, "torch"), bool(model(torch.ones(1, 3, dtype=torch.long)).logits.isfinite().all()))
"""
    lines = python(code, installed_as(tmp_path / "right", minilm.__version__)).splitlines()
    assert lines == ["False", "1 x swiglu, 3 x rms_norm, 1 x attention by torch True"]


def test_the_version_is_below_every_version_of_hugging_faces_kernels_that_transformers_asks_for():
    assert Version(minilm.__version__) < Version("0.9.0")  # what transformers 5.0 asks at least; 5.23 asks 0.18.2
    assert not hasattr(kernels, "__version__")  # which it falls back to where nothing is installed
