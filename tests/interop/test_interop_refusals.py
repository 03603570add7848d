"""What cannot be mapped, read or trusted is refused in a sentence that names it, and nothing is left behind."""

import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm.errors import UserError
from minilm.interop.export import export
from minilm.interop.intake import import_model, read_start
from tests.interop.interop_models import ROTARY, byte_pairs, make_run

UNMAPPED = {
    "norm post": {"norm": "post"},
    "norm_type rmsnorm": {"norm_type": "rmsnorm"},
    "norm_type layernorm": {**ROTARY, "norm_type": "layernorm"},
    "activation swiglu": {"activation": "swiglu"},
    "activation gelu": {**ROTARY, "activation": "gelu"},
    "position rope": {"position": "rope"},
    "n_kv_heads 2": {"n_kv_heads": 2},
    "activation relu2": {"activation": "relu2"},
    "learned qk_norm True": {"qk_norm": True},
    "qk_norm True": {**ROTARY, "qk_norm": True},
    "rotary norm post": {**ROTARY, "norm": "post"},
}


@pytest.mark.parametrize("case", UNMAPPED)
def test_a_model_that_no_layout_can_say_is_refused_by_the_name_of_what_it_is(case, tmp_path):
    make_run(tmp_path / "run", **UNMAPPED[case])
    field, value = case.split()[-2:]
    with pytest.raises(UserError, match=rf"fits no layout.*model\.{field} \S.* and this one {value}"):
        export(tmp_path / "run", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_export_replaces_an_export_and_nothing_else(tmp_path):
    make_run(tmp_path / "run")
    out = export(tmp_path / "run", tmp_path / "out")
    first = (out / "model.safetensors").read_bytes()
    export(tmp_path / "run", out, "safetensors")
    assert not (out / "generation_config.json").exists() and (out / "model.safetensors").read_bytes() != first
    (out / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UserError, match=r"holds other things, such as thesis\.txt"):
        export(tmp_path / "run", out)
    assert (out / "thesis.txt").read_text() == "ten years of work" and sorted(p.name for p in tmp_path.iterdir()) == [
        "out",
        "run",
    ]
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match="is a link"):
        export(tmp_path / "run", tmp_path / "link")


def test_an_export_that_fails_leaves_the_one_before_as_it_was(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    out = export(tmp_path / "run", tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    replace = os.replace

    def full_at_last(source, target):
        return full() if source.name == "new" else replace(source, target)

    for where, fault in (("minilm.interop.export.model_card", full), ("minilm.files.os.replace", full_at_last)):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
            patch.setattr(where, fault)
            export(tmp_path / "run", out, "safetensors")
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]


def test_numbers_that_a_dtype_has_not_are_refused(tmp_path):
    gpt = make_run(tmp_path / "run")
    from minilm.training import checkpoint

    path = tmp_path / "run/checkpoints/best.pt"
    with torch.no_grad():
        gpt.blocks[0].mlp.up.weight[0, 0] = 1e5
    checkpoint.save(path, {**checkpoint.load(path), "model": gpt.state_dict()})
    with pytest.raises(UserError, match=r"mlp\.c_fc\.weight has numbers too large for float16"):
        export(tmp_path / "run", tmp_path / "out", dtype="float16")
    export(tmp_path / "run", tmp_path / "out", dtype="bfloat16")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One folder of each layout, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("exported")
    make_run(folder / "g")
    make_run(folder / "l", **ROTARY, bias=False, n_kv_heads=2)
    for name in "gl":
        export(folder / name, folder / f"{name}-hf")
        export(folder / name, folder / f"{name}-own", "safetensors")
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    def make(name):
        return shutil.copytree(exported / name, tmp_path / name)

    return make


def refused(path, sentence):
    """No run, no start for a training, and no folder left behind."""
    out = path.parent / "imported"
    with pytest.raises(UserError, match=sentence):
        import_model(path, out)
    with pytest.raises(UserError, match=sentence):
        read_start(path)
    assert not out.exists() and not list(path.parent.glob(".imported*"))


THEIR_SETTINGS = [
    ("g-hf", {"layer_norm_epsilon": 0}, "model.norm_eps is 0.0; it must be above 0"),
    ("g-hf", {"activation_function": "silu"}, "activation_function silu"),
    ("g-hf", {"scale_attn_weights": False}, "scale_attn_weights False"),
    ("g-hf", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    ("g-hf", {"add_cross_attention": True}, "add_cross_attention True"),
    ("g-hf", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("g-hf", {"model_type": "gpt_neox"}, "model_type 'gpt_neox'; what can be read is gpt2 and llama"),
    ("g-hf", {"model_type": ["gpt2"]}, "model_type"),
    ("g-hf", {"n_head": 5}, "multiple of model.n_heads"),
    ("g-hf", {"n_embd": -32}, "n_embd -32; it must be a whole number above 0"),
    ("g-hf", {"n_embd": "32"}, "n_embd '32'; it must be a whole number"),
    ("g-hf", {"n_layer": 9999}, "9999 layers, and there are 28 tensors"),
    ("g-hf", {"n_layer": 3}, r"lack transformer\.h\.2\."),
    ("g-hf", {"n_layer": 1}, r"hold transformer\.h\.1\."),
    ("g-hf", {"n_embd": 2**19}, "is 40x32 and its configuration asks for 40x524288"),
    ("g-hf", {"n_inner": None, "n_positions": 2**24}, "its configuration asks for 16777216x32"),
    ("g-hf", {"tie_word_embeddings": False}, r"lack lm_head\.weight"),
    ("g-hf", {"vocab_size": 30}, "asks for 30x32"),
    ("l-hf", {"rms_norm_eps": "1e-6"}, "model.norm_eps is '1e-6'; it must be a number"),
    ("l-hf", {"rope_theta": "5e5"}, "model.rope_base is '5e5'"),
    ("l-hf", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type linear"),
    ("l-hf", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type llama3"),
    ("l-hf", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ("l-hf", {"head_dim": 16}, "head_dim 16"),
    ("l-hf", {"hidden_act": "gelu"}, "hidden_act gelu"),
    ("l-hf", {"attention_bias": True}, r"lack model\.layers\.0\.self_attn\.\w_proj\.bias"),
    ("l-hf", {"num_key_value_heads": 4}, "self_attn.k_proj.weight is 16x32"),
    ("l-hf", {"num_key_value_heads": 3}, "divisor of model.n_heads"),
    ("g-own", {"version": 2}, "in version 2"),
    ("g-own", {"model": {"n_layers": 2}}, "no model.vocab_size"),
    ("g-own", {"model": {"wings": 2}}, "no key model.wings"),
    ("g-own", {"train": None}, "no configuration of a model"),
    ("g-own", {"step": "last"}, "says step 'last'"),
    ("g-own", {"data_meta": [1]}, "says data_meta"),
]


@pytest.mark.parametrize(("name", "changes", "sentence"), THEIR_SETTINGS, ids=lambda x: str(x)[:60])
def test_a_setting_that_cannot_be_mapped_is_refused_by_its_name(name, changes, sentence, copy):
    folder = copy(name)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | changes))
    refused(folder, sentence)


def test_files_that_may_run_what_they_hold_are_not_opened(copy):
    folder = copy("g-hf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"in pytorch_model\.bin, a kind of file that is not opened")
    refused(folder / "pytorch_model.bin", "is no .safetensors file")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", r"has no config\.json"),
        ("tokenizer.json", r"no tokenizer\.json.*tokenizer\.save_pretrained"),
        ("model.safetensors", "has no model.safetensors"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(missing, sentence, copy):
    folder = copy("l-hf")
    (folder / missing).unlink()
    refused(folder, sentence)


def test_a_file_whose_header_lies_is_refused_before_memory_is_taken(copy):
    folder = copy("g-hf")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    header["transformer.wte.weight"]["shape"] = [2**40, 2**20]
    lie = json.dumps(header).encode()
    unreadable = "is no safetensors file that can be read"
    path.write_bytes(struct.pack("<Q", len(lie)) + lie + whole[8 + size :])
    refused(folder, unreadable)
    for spoilt in (whole[:-1], whole + b"\0", whole[:100], b"", struct.pack("<Q", 2**62) + whole[8:]):
        path.write_bytes(spoilt)
        refused(folder, unreadable)


def test_tensors_too_many_too_few_or_of_another_kind_are_refused_by_name(copy):
    folder = copy("l-hf")
    path = folder / "model.safetensors"
    whole = load_file(path)
    norm = "model.norm.weight"
    for tensors, sentence in (
        ({k: v for k, v in whole.items() if k != norm}, r"lack model\.norm\.weight"),
        (whole | {"model.extra.weight": torch.zeros(2)}, r"hold model\.extra\.weight"),
        (whole | {norm: whole[norm].double()}, r"model\.norm\.weight is of F64"),
        (whole | {norm: whole[norm].to(torch.int8)}, r"model\.norm\.weight is of I8"),
        (whole | {norm: whole[norm][None]}, r"model\.norm\.weight is 1x32 .* asks for 32"),
        (whole | {"lm_head.weight": torch.ones(40, 32)}, r"ties the head .* lm_head\.weight holds other numbers"),
    ):
        save_file(tensors, path)
        refused(folder, sentence)
    save_file(whole | {"lm_head.weight": whole["model.embed_tokens.weight"].clone()}, path)
    import_model(folder, folder.parent / "imported")  # the same numbers twice are no other model


def test_an_index_leads_nowhere_else(copy, exported):
    folder = copy("g-hf")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    elsewhere = str(exported / "g-hf" / "model.safetensors")
    for weight_map, sentence in (
        ({name: elsewhere for name in names}, "which is no safetensors file beside it"),
        ({name: "../g-hf/a.safetensors" for name in names}, "which is no safetensors file beside it"),
        ({name: "b.safetensors" for name in names}, r"b\.safetensors is missing"),
        ({**{name: "a.safetensors" for name in names}, "more": "a.safetensors"}, r"lacks more, which"),
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(folder, sentence)
    (folder / "b.safetensors").symlink_to(elsewhere)
    index.write_text(json.dumps({"weight_map": {name: "b.safetensors" for name in names}}))
    refused(folder, "is a link")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(copy):
    folder = copy("g-hf")
    (folder / "tokenizer.json").write_text(byte_pairs().to_json())
    refused(folder, r"tokenizer\.json has 300 tokens and the model 40")


def test_an_import_goes_into_no_folder_that_holds_anything(exported, tmp_path):
    (tmp_path / "run").mkdir()
    import_model(exported / "g-hf", tmp_path / "run")
    with pytest.raises(UserError, match="holds other things"):
        import_model(exported / "g-hf", tmp_path / "run")


def test_what_is_not_there_is_said(tmp_path):
    for act in (lambda p: import_model(p, tmp_path / "out"), read_start):
        with pytest.raises(UserError, match="There is no .*nowhere"):
            act(tmp_path / "nowhere")
    with pytest.raises(UserError, match="There is no run folder"):
        export(tmp_path / "nowhere", tmp_path / "out")
