"""Decoding: the cache, the window, batches of different lengths and compiled steps change the time and never the text;
draws follow the distribution that the settings name."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from minilm.config import ModelConfig
from minilm.decoding import Decoder, KVCache, Sampling, compiled_step, step, window_start
from minilm.model import GPT

SMALL = {"n_layers": 2, "n_heads": 4, "d_model": 32, "vocab_size": 50, "context_length": 16}
KINDS = {
    "gpt": {},
    "gpt, no bias, untied": {"bias": False, "tie_embeddings": False},
    "llama": {"norm_type": "rmsnorm", "position": "rope", "activation": "swiglu", "n_kv_heads": 2, "bias": False},
    "post-norm, relu": {"norm": "post", "activation": "relu"},
    "dropout": {"dropout": 0.3},
}
ODD = {"a context of one": {"context_length": 1}, "a context of six": {"context_length": 6}}
GREEDY = Sampling(temperature=0.0)


def make(seed=0, ops="torch", **changes):
    """A model whose weights are large enough for its text to depend on what it has seen."""
    torch.manual_seed(seed)
    model = GPT(ModelConfig(**{**SMALL, **changes}), kernels.select(ops)).eval()
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    return model


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tokens(*shape, seed=2):
    return torch.randint(50, shape, generator=seeded(seed))


class TestCache:
    @pytest.mark.parametrize("kind", [*KINDS, *ODD])
    @pytest.mark.parametrize("ops", ["reference", "torch"])
    def test_it_changes_the_time_and_not_the_text(self, ops, kind):
        """Past the context length too, for several sequences, greedy and drawn."""
        model = make(ops=ops, **(KINDS | ODD)[kind])
        context = tokens(3, 5)
        for temperature in (0.0, 1.0):
            texts = [model.generate(context, 60, temperature, generator=seeded(3), cache=c) for c in (True, False)]
            assert torch.equal(*texts)
        assert len(texts[0].unique()) > 20  # no model that says the same thing whatever it sees

    def test_greedy_is_the_same_through_both_backends_past_the_context(self):
        model = make()
        texts = [model.use(kernels.select(o)).generate(torch.tensor([[1, 2]]), 40, 0.0) for o in ("reference", "torch")]
        assert torch.equal(*texts) and texts[0].shape == (1, 42)

    @pytest.mark.parametrize("cache", [True, False])
    def test_past_the_context_a_window_begins_anew_with_its_last_three_quarters(self, cache):
        model, sampling, seen = make(), Sampling(), []
        decoder = Decoder(model, torch.tensor([[1, 2]]), 30, cache=cache)
        for _ in range(30):
            seen.append(decoder.logits())
            decoder.append(sampling.draw(seen[-1], generator=seeded(len(seen))))
        starts = [window_start(n, 16) for n in range(2, 32)]
        assert [starts[n - 2] for n in (2, 16, 17, 20, 21, 31)] == [0, 0, 4, 4, 8, 16]
        for n, start, logits in zip(range(2, 32), starts, seen, strict=True):
            assert n - start <= 16
            torch.testing.assert_close(model(decoder.tokens[:, start:n])[:, -1], logits, rtol=1e-4, atol=1e-5)

    def test_it_counts_its_bytes(self):
        model = make(**KINDS["llama"])
        cache = KVCache(model, 3)
        # keys and values of 2 layers, 2 of 4 heads, 8 wide, 4 bytes each
        assert cache.bytes_per_token() == 2 * 2 * 2 * 8 * 4
        assert cache.keys.nbytes + cache.values.nbytes == 3 * 16 * cache.bytes_per_token()


class TestDifferentLengths:
    @pytest.mark.parametrize("cache", [True, False])
    @pytest.mark.parametrize("kind", [*KINDS, *ODD])
    def test_every_sequence_is_written_as_if_it_were_alone(self, kind, cache):
        """From beginnings shorter and longer than the context, on past several windows, which they fill at different
        times."""
        model, context, lengths = make(**(KINDS | ODD)[kind]), tokens(5, 21), [21, 1, 9, 16, 3]
        together = model.generate(context, 40, 0.0, lengths=lengths, cache=cache)
        assert together.shape == (5, 61)
        for row, n in enumerate(lengths):
            alone = model.generate(context[row : row + 1, :n], 40, 0.0)
            assert torch.equal(together[row, : n + 40], alone[0])
            assert (together[row, n + 40 :] == 0).all()

    def test_what_fills_a_row_up_is_never_seen(self):
        model, context, lengths = make(), tokens(2, 9), [4, 9]
        other = context.clone()
        other[0, 4:] = tokens(5, seed=9)
        assert torch.equal(*(model.generate(c, 20, 0.0, lengths=lengths) for c in (context, other)))

    def test_lengths_that_do_not_fit_are_refused(self):
        for lengths, words in (([0, 3], "the context is empty"), ([3], "lengths are"), ([3, 6], "lengths are")):
            with pytest.raises(ValueError, match=words):
                make().generate(tokens(2, 5), 1, lengths=lengths)

    def test_an_empty_context_is_refused(self):
        with pytest.raises(ValueError, match="empty"):
            make().generate(torch.zeros(1, 0, dtype=torch.int64), 1)


class TestCompiled:
    @pytest.mark.parametrize("kind", ["gpt", "llama"])
    def test_a_step_is_one_graph_that_is_never_compiled_again(self, kind):
        """Whatever the lengths are and however often a window begins anew."""
        model, context, lengths = make(**KINDS[kind]), tokens(3, 9), [9, 2, 5]
        compilations = []

        def backend(graph, inputs):
            compilations.append(len(inputs))
            return graph.forward

        torch.compiler.reset()
        compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
        texts = []
        for next_step in (step, compiled):
            decoder = Decoder(model, context, 40, lengths, next_step=next_step)
            for _ in decoder.write(GREEDY):
                pass
            texts.append(decoder.tokens)
        assert torch.equal(*texts) and len(compilations) == 1

    @pytest.mark.slow
    def test_inductor_writes_the_same_text(self):
        model, context = make(**KINDS["llama"]), tokens(3, 9)
        decoder = Decoder(model, context, 40, [9, 2, 5], next_step=compiled_step(model))
        for _ in decoder.write(GREEDY):
            pass
        assert torch.equal(decoder.tokens, model.generate(context, 40, 0.0, lengths=[9, 2, 5]))


class TestSampling:
    LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def shares(self, seen=None, **options):
        logits = self.LOGITS.repeat(40_000, 1)
        seen = None if seen is None else torch.tensor([seen]).expand_as(logits)
        drawn = Sampling(**options).draw(logits, seen, seeded(0))
        return torch.bincount(drawn[:, 0], minlength=4) / len(logits)

    def near(self, shares, p):
        return (shares - p / p.sum()).abs().max() < 0.015

    def test_draws_follow_the_softmax_and_its_cuts(self):
        p = self.LOGITS[0].softmax(-1)  # 0.64 0.24 0.09 0.03
        two, three = p * torch.tensor([1, 1, 0, 0]), p * torch.tensor([1, 1, 1, 0])
        assert self.near(self.shares(), p)
        assert self.near(self.shares(temperature=0.5), (2 * self.LOGITS[0]).softmax(-1))
        assert self.near(self.shares(top_k=2), two)
        assert self.near(self.shares(top_p=0.7), two)
        assert self.near(self.shares(min_p=0.1), three) and self.near(self.shares(min_p=0.2), two)
        assert self.near(
            self.shares(min_p=0.3, temperature=2.0), (self.LOGITS[0, :3] / 2).softmax(-1) @ torch.eye(3, 4)
        )
        assert self.shares(top_p=0.6).tolist() == [1, 0, 0, 0] == self.shares(temperature=0.0).tolist()

    def test_what_was_said_is_less_likely_again(self):
        """Positive logits are divided and negative ones multiplied: both fall."""
        penalised = torch.tensor([1.0, 1.0, 0.0, -2.0])
        seen = [True, False, True, True]
        assert self.near(self.shares(seen, repetition_penalty=2.0), penalised.softmax(-1))
        assert self.shares(seen, repetition_penalty=4.0, temperature=0.0).tolist() == [0, 1, 0, 0]

    @pytest.mark.parametrize("lengths", [None, [5, 2]])
    def test_a_penalty_counts_the_whole_text_and_nothing_else(self, lengths):
        """The beginning and what is new, but not what fills a row up."""
        model, context = make(context_length=64), tokens(2, 5)
        text = model.generate(context, 30, 0.0, repetition_penalty=3.0, lengths=lengths)
        for row, n in zip(text, lengths or [5, 5], strict=True):
            for end in range(n, n + 30):
                logits = model(row[None, :end])[0, -1]
                for token in set(row[:end].tolist()):
                    logits[token] *= 1 / 3 if logits[token] > 0 else 3
                assert row[end] == logits.argmax()

    def test_a_seed_decides_the_draw(self):
        model = make().train()
        a, b, c = (model.generate(torch.zeros(2, 1, dtype=torch.int64), 20, generator=seeded(s)) for s in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert model.training  # as it was before

    @pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Sampling)])
    @given(value=st.floats() | st.integers(-3, 3))
    @settings(max_examples=60)
    def test_a_setting_gives_a_token_or_is_refused_by_name(self, field, value):
        try:
            sampling = Sampling(**{field: int(value) if field == "top_k" and math.isfinite(value) else value})
        except ValueError as error:
            assert str(error).startswith(f"The {field.replace('_', ' ')} is ")
            return
        drawn = sampling.draw(self.LOGITS, torch.tensor([[True, False, True, True]]), seeded(0))
        assert drawn.shape == (1, 1) and 0 <= int(drawn) < 4
