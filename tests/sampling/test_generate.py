"""Text from a model: whole characters, an end where one was asked for, the same draws for the same seed."""

import builtins
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from minilm.config import ModelConfig
from minilm.corpus.tokenizer import BYTES, BPETokenizer, CharTokenizer
from minilm.decoding import Sampling
from minilm.errors import UserError
from minilm.model import GPT
from minilm.sampling.console import Conversation, Settings, write
from minilm.sampling.generate import Writer, bandwidth_share, unescaped

LETTERS = CharTokenizer("\n abcdefghijklmnop")
GREEDY = Sampling(temperature=0.0)


def make(tokenizer, padding=0):
    torch.manual_seed(0)
    config = ModelConfig(
        n_layers=1, n_heads=2, d_model=16, context_length=12, vocab_size=tokenizer.vocab_size + padding
    )
    model = GPT(config, kernels.select("torch")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.5)
    return model


@pytest.fixture(scope="module")
def letters():
    return make(LETTERS)


@pytest.fixture(scope="module")
def bytes_of_text():
    return BPETokenizer.train(["größe 🙂 naïve <|endoftext|> größer 🙂🙂 " * 20], 300)


def written(writer):
    """What the pieces add up to, by text."""
    return ["".join(pieces) for pieces in zip(*writer, strict=True)]


class TestWholeCharacters:
    def test_the_byte_alphabet_is_the_librarys(self):
        from tokenizers import pre_tokenizers

        assert set(BYTES) == set(pre_tokenizers.ByteLevel.alphabet()) and sorted(BYTES.values()) == list(range(256))

    @given(data=st.data())
    @settings(max_examples=300)
    def test_pieces_add_up_to_the_whole_and_never_end_within_a_character(self, data, bytes_of_text):
        """Any tokens at all, those too that no text gives."""
        size = bytes_of_text.vocab_size
        odd = list(bytes_of_text.encode("ö🙂"))  # tokens that hold a part of a character are then often neighbours
        ids = data.draw(st.lists(st.integers(0, size - 1) | st.sampled_from(odd), max_size=30))
        decode = bytes_of_text.incremental()
        pieces = [decode(i) for i in ids]
        assert "".join(pieces) + decode(None) == bytes_of_text.decode(ids)

    def test_a_character_of_several_tokens_comes_with_its_last(self, bytes_of_text):
        ids = bytes_of_text.encode("é")  # never seen: one token a byte
        decode = bytes_of_text.incremental()
        assert [decode(i) for i in ids] == ["", "é"]

    def test_a_streamed_text_is_the_decoded_one(self, bytes_of_text):
        model = make(bytes_of_text)
        ids = model.generate(torch.tensor([bytes_of_text.encode("größe").tolist()]), 60, generator=torch.manual_seed(5))
        writer = Writer(model, bytes_of_text, ["größe"], 60, Sampling(), seed=5)
        assert "größe" + written(writer)[0] == bytes_of_text.decode(ids[0].tolist())
        assert "\ufffd" in writer.texts[0]  # an untrained model writes broken characters; they are shown, once whole

    def test_ids_past_the_vocabulary_give_nothing(self):
        writer = Writer(make(LETTERS, padding=40), LETTERS, ["a"], 50, Sampling(), seed=1)
        (text,) = written(writer)
        assert 0 < len(text) < 50


class TestStop:
    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_a_text_ends_before_the_string_and_never_shows_a_part_of_it(self, letters, width):
        whole = written(Writer(letters, LETTERS, ["a"], 60, Sampling(), seed=2))[0]
        at = next(i for i in range(20, 60) if whole.find(whole[i : i + width]) == i)  # its first occurrence
        writer = Writer(letters, LETTERS, ["a"], 60, Sampling(), seed=2, stop=["zzz", whole[at : at + width]])
        assert written(writer) == [whole[:at]] == writer.texts
        assert writer.ends == [whole[at : at + width]]

    def test_what_only_began_like_it_is_shown(self, letters):
        whole = written(Writer(letters, LETTERS, ["a"], 60, GREEDY))[0]
        writer = Writer(letters, LETTERS, ["a"], 60, GREEDY, stop=[whole[-3:] + "never", whole[10:14] + "no"])
        assert written(writer) == [whole] and writer.ends == [None]

    def test_the_first_of_several_counts(self, letters):
        whole = written(Writer(letters, LETTERS, ["a"], 60, Sampling(), seed=2))[0]
        first, second = whole[30:35], whole[40:45]
        assert whole.find(first) == 30 and whole.find(second) == 40
        assert written(Writer(letters, LETTERS, ["a"], 60, Sampling(), seed=2, stop=[second, first])) == [whole[:30]]

    def test_others_go_on(self, letters):
        prompts = ["a", "b", "ponmlkj"]
        whole = written(Writer(letters, LETTERS, prompts, 40, Sampling(), seed=4))
        stop = next(whole[0][i : i + 4] for i in range(8, 20) if all(whole[0][i : i + 4] not in w for w in whole[1:]))
        writer = Writer(letters, LETTERS, prompts, 40, Sampling(), seed=4, stop=[stop])
        assert written(writer) == [whole[0].split(stop)[0], *whole[1:]]
        assert writer.ends == [stop, None, None]

    def test_it_ends_when_all_have_ended(self, letters):
        steps = list(Writer(letters, LETTERS, ["a", "b"], 500, Sampling(), seed=4, stop=list(LETTERS.vocabulary)))
        assert len(steps) == 1


class TestPrompts:
    def test_together_they_are_written_as_alone(self, letters):
        prompts = ["a", "hello cabman".replace("r", "p"), "", "no"]
        prompts = ["".join(c for c in p if c in LETTERS.vocabulary) for p in prompts]
        together = written(Writer(letters, LETTERS, prompts, 30, GREEDY))
        assert together == [written(Writer(letters, LETTERS, [p], 30, GREEDY))[0] for p in prompts]
        assert len(set(together)) > 2

    def test_a_seed_decides(self, letters):
        a, b, c = (written(Writer(letters, LETTERS, ["a"], 30, Sampling(), seed=s)) for s in (1, 1, 2))
        assert a == b != c

    def test_unknown_characters_are_refused_or_replaced(self, letters):
        with pytest.raises(UserError, match="'€' at position 1"):
            Writer(letters, LETTERS, ["a€"])
        assert len(written(Writer(letters, LETTERS, ["a€"], 3, unknown="replace"))[0]) == 3


class TestSpeed:
    def test_tokens_of_texts_that_have_ended_do_not_count(self, letters):
        writer = Writer(letters, LETTERS, ["a", "b"], 40, Sampling(), seed=4)
        assert writer.speed() == ""
        written(writer)
        assert writer.tokens == 2 * 39 and writer.speed().endswith(" tokens/s")  # the first token reads the prompt
        stopped = Writer(letters, LETTERS, ["a", "b"], 40, Sampling(), seed=4, stop=[writer.texts[0][10]])
        lengths = [len(text) + (end is not None) for text, end in zip(written(stopped), stopped.ends, strict=True)]
        assert stopped.tokens == sum(lengths) - 2

    def test_the_share_of_the_bandwidth_counts_matrices_and_cache(self, letters):
        writer = Writer(letters, LETTERS, ["a", "abcde"], 6, Sampling(), seed=4)
        written(writer)
        decoder = writer._decoder  # 7 and 11 tokens: on average over five steps 4.5 and 8.5
        c = letters.config
        matrices = 4 * (c.vocab_size * 16 + 16 * 48 + 16 * 16 + 2 * 16 * c.d_ff)
        expected = (matrices + (4.5 + 8.5) * 2 * 16 * 4) * 5 / 2.0 / 1e6
        assert bandwidth_share(decoder, 5, 2.0, 1e6) == pytest.approx(expected)


class TestConsole:
    OPTIONS = {f.name: f.default for f in dataclasses.fields(Sampling)} | {
        "prompts": (),
        "samples": 1,
        "stream": False,
        "interactive": False,
        "stop": (),
        "max_new_tokens": 20,
        "seed": 3,
    }

    def settings(self, **changes):
        return Settings.of(self.OPTIONS | changes)

    def test_line_ends_are_typed_as_they_are_in_programs(self):
        assert unescaped(r"a\nb\tc\\n\\\n") == "a\nb\tc\\n\\\n"
        assert self.settings(stop=(r"\n\n",)).writing["stop"] == ["\n\n"]

    def test_options_that_exclude_each_other_are_refused(self):
        for changes, words in (
            ({"interactive": True, "prompts": ("a",)}, "leave out --prompt"),
            ({"stream": True, "samples": 2}, "2 were asked for"),
            ({"temperature": float("nan")}, "The temperature is nan"),
        ):
            with pytest.raises(UserError, match=words):
                self.settings(**changes)

    @pytest.mark.parametrize("stream", [True, False])
    def test_one_text_is_printed_with_its_prompt(self, letters, stream, capsys):
        write(letters, LETTERS, self.settings(prompts=("abc",), stream=stream))
        printed = capsys.readouterr()
        assert printed.out == "abc" + written(Writer(letters, LETTERS, ["abc"], 20, Sampling(), seed=3))[0] + "\n"
        assert printed.err.endswith("tokens/s\n")

    def test_several_are_numbered(self, letters, capsys):
        write(letters, LETTERS, self.settings(prompts=("abc", "d"), samples=2))
        printed = capsys.readouterr().out
        assert [line[:7] for line in printed.splitlines() if line.startswith("---")] == [f"--- {i} o" for i in "1234"]
        parts = printed.split(" of 4 ---\n")[1:]
        assert [part[:1] for part in parts] == ["a", "a", "d", "d"] and len(set(parts)) == 4

    def talk(self, letters, monkeypatch, capsys, *lines, interrupt=False):
        typed = iter(lines)

        def read(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", read)
        conversation = Conversation(letters, LETTERS, **self.settings(interactive=True).writing)
        conversation.run()
        return conversation, capsys.readouterr().out.split("\n")

    def test_a_conversation_goes_on_with_an_empty_line(self, letters, monkeypatch, capsys):
        conversation, _ = self.talk(letters, monkeypatch, capsys, "/temperature 0", "abc", "")
        assert conversation.text == "abc" + written(Writer(letters, LETTERS, ["abc"], 40, GREEDY))[0]

    def test_settings_are_changed_and_undone(self, letters, monkeypatch, capsys):
        lines = ("/top-k 3", "/tokens 7", "/stop d", "/stop off", "/seed 9", "/min-p 0.1", "/top-k off", "abc")
        conversation, _ = self.talk(letters, monkeypatch, capsys, *lines)
        assert conversation.sampling == Sampling(min_p=0.1)
        again = Writer(letters, LETTERS, ["abc"], 7, Sampling(min_p=0.1), seed=9)
        assert conversation.text == "abc" + written(again)[0]

    def test_what_is_wrong_is_said_and_nothing_lost(self, letters, monkeypatch, capsys):
        lines = ("/top-k x", "/top-k 0", "/nonsense", "/tokens 0", "a€", "abc")
        conversation, printed = self.talk(letters, monkeypatch, capsys, *lines)
        wrong = ("is 'x'", "must be a number at least 1", "no command", "is 0", "'€'")
        for words, said in zip(wrong, printed[1:6], strict=True):
            assert words in said
        assert conversation.text.startswith("abc")

    def test_ctrl_c_ends_the_text_and_not_the_conversation(self, letters, monkeypatch, capsys):
        original, drawn = Sampling.draw, []

        def draw(*arguments):
            drawn.append(1)
            if len(drawn) == 5:
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(Sampling, "draw", draw)
        conversation, _ = self.talk(letters, monkeypatch, capsys, "abc", "/tokens 3", "de")
        assert len(conversation.text) == 5 and conversation.text.startswith("de")
