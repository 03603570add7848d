"""The same model here and in transformers: logits, text and bits, both ways, in both layouts."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402

from minilm.interop.export import export  # noqa: E402
from minilm.interop.intake import import_model  # noqa: E402
from minilm.sampling.generate import Writer, sampling_of  # noqa: E402
from minilm.training import checkpoint  # noqa: E402
from tests.interop.interop_models import (  # noqa: E402
    ROTARY,
    TEXT,
    byte_pairs,
    characters,
    load_ours,
    load_theirs,
    logits,
    make_run,
    save_theirs,
    some_ids,
)

SAME = 1e-5  # of float32 logits, of a few units in size

OURS = {
    "gelu": {},
    "gelu-tanh-untied": {"activation": "gelu_tanh", "tie_embeddings": False, "d_ff": 56},
    "relu-no-bias": {"activation": "relu", "bias": False, "n_layers": 3, "n_heads": 2},
    "dropout": {"dropout": 0.3},
    "llama": {**ROTARY, "bias": False},
    "llama-grouped-untied": {**ROTARY, "bias": False, "n_kv_heads": 2, "tie_embeddings": False, "d_ff": 40},
    "llama-other-epsilon": {**ROTARY, "bias": False, "norm_eps": 1e-3},
    "gpt2-other-epsilon": {"norm_eps": 1e-2},
    "llama-other-base": {**ROTARY, "bias": False, "rope_base": 500_000.0},
    "llama-one-kv-head-biases": {**ROTARY, "bias": True, "n_kv_heads": 1, "n_layers": 1},
}

GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 48, "vocab_size": 70}
LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 56,
    "max_position_embeddings": 48,
    "vocab_size": 70,
    "rms_norm_eps": 1e-5,
}
THEIRS = {
    "gpt2": (GPT2, {}),
    "gpt2-relu-untied": (GPT2 | {"activation_function": "relu", "n_inner": 40, "tie_word_embeddings": False}, {}),
    "gpt2-exact-gelu-shards": (GPT2 | {"activation_function": "gelu", "n_layer": 3, "n_head": 2}, {"shard": "8KB"}),
    "gpt2-other-name-of-tanh": (GPT2 | {"activation_function": "gelu_pytorch_tanh"}, {}),
    "gpt2-without-head": (GPT2, {"base": True}),
    "llama": (LLAMA, {}),
    "llama-grouped-tied": (LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True}, {}),
    "llama-shards": (LLAMA | {"num_key_value_heads": 1, "num_hidden_layers": 3}, {"shard": "8KB"}),
    "llama-other-base": (LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}, {}),
    "llama-other-epsilon": (LLAMA | {"rms_norm_eps": 1e-2}, {}),
    "gpt2-other-epsilon": (GPT2 | {"layer_norm_epsilon": 1e-2}, {}),
    "llama-attention-biases": (LLAMA | {"attention_bias": True}, {}),
    "llama-mlp-biases": (LLAMA | {"mlp_bias": True}, {}),
    "llama-both-biases": (LLAMA | {"attention_bias": True, "mlp_bias": True}, {}),
}


def their_config(case):
    values, how = THEIRS[case]
    kind = transformers.GPT2Config if "n_layer" in values else transformers.LlamaConfig
    return kind(**values), how


@pytest.mark.parametrize("case", OURS)
def test_transformers_gives_the_logits_and_the_greedy_text_of_the_run(case, tmp_path):
    tokenizer = byte_pairs() if "untied" in case else characters()
    gpt = make_run(tmp_path / "run", tokenizer, **OURS[case])
    model, theirs = load_theirs(export(tmp_path / "run", tmp_path / "hf"))
    ids = some_ids(tokenizer.vocab_size)
    expected = logits(gpt, ids)
    assert expected.std() > 0.3  # else a small difference proves nothing
    assert (logits(model, ids) - expected).abs().max() <= SAME
    assert theirs.decode(theirs(TEXT).input_ids) == TEXT and not theirs.clean_up_tokenization_spaces
    prompt = 'A crow. "'
    writer = Writer(gpt, tokenizer, [prompt], 30, sampling_of(temperature=0.0))
    list(writer)
    written = model.generate(theirs(prompt, return_tensors="pt").input_ids, max_new_tokens=30)
    assert theirs.decode(written[0]) == prompt + writer.texts[0]


@pytest.mark.parametrize("case", THEIRS)
def test_a_model_that_transformers_saved_gives_the_same_logits_here(case, tmp_path):
    config, how = their_config(case)
    model = save_theirs(tmp_path / "hf", config, **how)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > (1 if how.get("shard") else 0)
    imported = import_model(tmp_path / "hf", tmp_path / "run")
    assert imported.config.model.tie_embeddings == config.tie_word_embeddings
    gpt, ids = load_ours(tmp_path / "run"), some_ids(70)
    assert logits(model, ids).std() > 0.3
    assert (logits(gpt, ids) - logits(model, ids)).abs().max() <= SAME


@pytest.mark.parametrize("case", OURS)
def test_out_and_in_again_is_the_same_model_to_the_last_bit(case, tmp_path):
    gpt = make_run(tmp_path / "run", **OURS[case])
    imported = import_model(export(tmp_path / "run", tmp_path / "hf"), tmp_path / "again")
    ids, again = some_ids(40), load_ours(tmp_path / "again")
    assert torch.equal(logits(again, ids), logits(gpt, ids))
    for name, tensor in again.state_dict().items():
        expected = gpt.state_dict().get(name, torch.zeros_like(tensor))  # GPT-2 cannot leave biases out
        assert torch.equal(tensor, expected), name
    wanted = vars(gpt.config) | ({"bias": True} if case == "relu-no-bias" else {})
    dropout = {} if "llama" in case else {"dropout": gpt.config.dropout}
    assert vars(imported.config.model) == wanted | dropout


@pytest.mark.parametrize("case", [case for case in THEIRS if case != "gpt2-without-head"])
def test_in_and_out_again_is_the_same_model_to_the_last_bit(case, tmp_path):
    config, how = their_config(case)
    model = save_theirs(tmp_path / "hf", config, **how)
    import_model(tmp_path / "hf", tmp_path / "run")
    again, _ = load_theirs(export(tmp_path / "run", tmp_path / "out"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() <= after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before.get(name, torch.zeros_like(tensor))), name


@pytest.mark.parametrize(
    "model",
    [
        {"norm": "post"},
        {"position": "rope"},
        {"activation": "swiglu", "bias": False, "tie_embeddings": False},
        {**ROTARY, "n_kv_heads": 2},
    ],
    ids=str,
)
def test_safetensors_in_our_names_come_back_bit_for_bit_whatever_the_model(model, tmp_path):
    gpt = make_run(tmp_path / "run", byte_pairs(), **model)
    folder = export(tmp_path / "run", tmp_path / "out", "safetensors")
    for number, path in enumerate((folder, folder / "model.safetensors")):
        imported = import_model(path, tmp_path / f"again-{number}")
        again = load_ours(tmp_path / f"again-{number}")
        assert again.config == gpt.config and imported.origin["step"] == 7
        assert again.state_dict().keys() == gpt.state_dict().keys()
        assert all(torch.equal(again.state_dict()[name], t) for name, t in gpt.state_dict().items())
        one, other = (tmp_path / name / "tokenizer.json" for name in ("run", f"again-{number}"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("form", ["hf", "safetensors"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_stored_once(form, tied, tmp_path):
    make_run(tmp_path / "run", tie_embeddings=tied)
    folder = export(tmp_path / "run", tmp_path / "out", form)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        heads = [name for name in file.keys() if "head" in name]  # noqa: SIM118 (it is no dictionary)
        tables = [n for n in file.keys() if "token_embedding" in n or "wte" in n]  # noqa: SIM118
    assert (len(tables), len(heads)) == (1, 0 if tied else 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_half_precision_are_the_nearest_there_are(dtype, tmp_path):
    gpt = make_run(tmp_path / "run", **ROTARY, bias=False)
    folder = export(tmp_path / "run", tmp_path / "hf", dtype=dtype)
    model, _ = load_theirs(folder)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    import_model(folder, tmp_path / "again")
    for name, tensor in load_ours(tmp_path / "again").state_dict().items():
        assert torch.equal(tensor, gpt.state_dict()[name].to(getattr(torch, dtype)).float())


def test_a_padded_vocabulary_keeps_its_padding_and_writes_the_same_text(tmp_path):
    tokenizer = characters()
    gpt = make_run(tmp_path / "run", tokenizer, vocab_size=tokenizer.vocab_size + 7)
    with torch.no_grad():  # a padded id is drawn now and then, and stands for nothing
        gpt.token_embedding.weight[tokenizer.vocab_size :] *= 6
    state = checkpoint.load(tmp_path / "run/checkpoints/best.pt")
    checkpoint.save(tmp_path / "run/checkpoints/best.pt", {**state, "model": gpt.state_dict()})
    model, theirs = load_theirs(export(tmp_path / "run", tmp_path / "hf"))
    assert model.config.vocab_size == tokenizer.vocab_size + 7 and len(theirs) == tokenizer.vocab_size
    written = model.generate(theirs(TEXT[:4], return_tensors="pt").input_ids, max_new_tokens=40)
    assert (written >= tokenizer.vocab_size).any()
    writer = Writer(gpt, tokenizer, [TEXT[:4]], 40, sampling_of(temperature=0.0))
    list(writer)
    assert theirs.decode(written[0]) == TEXT[:4] + writer.texts[0]
    assert import_model(tmp_path / "hf", tmp_path / "again").config.model.vocab_size == tokenizer.vocab_size + 7
