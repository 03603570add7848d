"""Question 8: a person's file runs in a process of its own, and each way of being wrong gets a hint of its own."""

import itertools
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from minilm.quiz import flaws, trial
from minilm.quiz.multihead import TEMPLATE, Code
from minilm.quiz.questions import draw_questions
from tests.waiting import LONG

RIGHT = """
def NAME(x, w_qkv, w_out, n_heads):
    B, T, C = x.shape
    D = C // n_heads
    q, k, v = (x @ w_qkv.T).split(C, dim=-1)
    q, k, v = [t.view(B, T, n_heads, D).transpose(1, 2) for t in (q, k, v)]
    scores = q @ k.transpose(2, 3)
    scores = scores / D**0.5
    scores = scores.masked_fill(torch.ones(T, T).triu(1) == 1, float("-inf"))
    weights = scores.softmax(dim=-1)
    y = weights @ v
    y = y.transpose(1, 2).reshape(B, T, C)
    return y @ w_out.T
"""
SPLIT = "t.view(B, T, n_heads, D).transpose(1, 2)"
MASKED = '    scores = scores.masked_fill(torch.ones(T, T).triu(1) == 1, float("-inf"))\n'
# name: (what of RIGHT is replaced, by what, words of the hint)
WRONG = {
    "no_scale": ("    scores = scores / D**0.5\n", "", "not divided by √D"),
    "scale_by_the_model": ("D**0.5", "C**0.5", "divided by √C"),
    "scale_without_root": ("D**0.5", "D", "divided by D;"),
    "scale_upside_down": ("/ D**0.5", "* D**0.5", "multiplied by √D"),
    "no_mask": (MASKED, "", "no causal mask"),
    "mask_strict": ("triu(1)", "triu(0)", "a token must see itself"),
    "mask_strict_finite": ('triu(1) == 1, float("-inf")', "triu(0) == 1, -1e9", "a token must see itself"),
    "mask_loose": ("triu(1)", "triu(2)", "sees the next one"),
    "mask_reversed": ("triu(1)", "tril(-1)", "wrong way round"),
    "mask_after_softmax": (
        MASKED + "    weights = scores.softmax(dim=-1)\n",
        "    weights = scores.softmax(dim=-1) * torch.ones(T, T).tril().to(x)\n",
        "after the softmax",
    ),
    "mask_of_zeros": ('float("-inf")', "0.0", "e^0 = 1"),
    "heads_not_split": (SPLIT, "t[:, None]", "heads are not split"),
    "heads_split_by_view": (SPLIT, "t.reshape(B, n_heads, T, D)", "view(B, H, T, D) mixes"),
    "heads_interleaved": (SPLIT, "t.view(B, T, D, n_heads).permute(0, 3, 1, 2)", "every H-th column"),
    "heads_merged_by_view": ("y.transpose(1, 2).reshape", "y.reshape", "First transpose(1, 2)"),
    "scores_transposed": ("q @ k.transpose(2, 3)", "k @ q.transpose(2, 3)", "K Qᵀ"),
    "values_first": ("q, k, v = (x @", "v, k, q = (x @", "Queries and values are exchanged"),
    "softmax_over_queries": ("dim=-1)\n    y", "dim=-2)\n    y", "over the queries"),
    "softmax_over_heads": ("dim=-1)\n    y", "dim=1)\n    y", "over the heads"),
    "softmax_over_the_batch": ("dim=-1)\n    y", "dim=0)\n    y", "over the batch"),
    "no_output": ("return y @ w_out.T", "return y", "output projection is missing"),
    "output_transposed": ("w_out.T", "w_out", "wrong transpose"),
    "residual": ("return y", "return x + y", "residual"),
    "two_at_once": ("    scores = scores / D**0.5\n" + MASKED, "", "Two things at once"),
    "returned_weights": ("    y = weights @ v\n", "    return weights\n", "returned the attention weights"),
    "not_merged": ("y = y.transpose(1, 2).reshape(B, T, C)\n    return y @ w_out.T", "return y", "not merged"),
    "other_shape": ("return y @ w_out.T", "return (y @ w_out.T)[:, :2]", "The shape is wrong: (2, 2, 24)"),
    "wrong_dtype": ("return y @ w_out.T", "return (y @ w_out.T).double()", "float64 for an x of float32"),
    "float32_only": ("return y @ w_out.T", "return (y @ w_out.T).float()", "not in float64"),
    "with_weights": ("return y @ w_out.T", "return y @ w_out.T, weights", "leave out the weights"),
    "nothing_returned": ("return y", "y", "is the return missing"),
    "raises": ("B, T, C = x.shape", "B, T = x.shape", "ValueError, line"),
    "wrong_product": ("x @ w_qkv.T", "x @ w_qkv", "a linear layer is x @ w.T"),
    "view_after_transpose": ("transpose(1, 2).reshape", "transpose(1, 2).view", "use reshape"),
    "exits": ("B, T, C = x.shape", "raise SystemExit(0)", "SystemExit"),
    "sizes_as_numbers": ("D**0.5", "8**0.5", "is a size written as a number"),
    "only_three_heads": (SPLIT, "t.view(B, T, 3, -1).transpose(1, 2)", "3 heads only"),
    "dropout": ("y = weights @ v", "y = torch.dropout(weights, 0.5, True) @ v", "leave out dropout"),
    "changes_x": ("B, T, C = x.shape", "B, T, C = x.shape; x0 = x.clone(); x.mul_(2); x = x0", "inputs in place"),
    "unforeseen_scores": ("q @ k.transpose(2, 3)", "(q @ k.transpose(2, 3)).tanh()", "The first token is right"),
    "unforeseen_values": ("y = weights @ v", "y = weights @ v.tanh()", "The first token is wrong already"),
    "silent": ("B, T, C = x.shape", f"open(BEGUN, 'w').close(); time.sleep({LONG})", "not come to an end within 20"),
}  # fmt: skip


def still_until(begun):
    """The clock of minilm.quiz.trial: it stands still until the file `begun` is there; from the third look on each is a
    second more than the limit later. (Two looks belong to what was read before the file was there.)"""
    looks = itertools.count(-1)
    step = trial.TO_ANSWER + 1
    return SimpleNamespace(monotonic=lambda: step * max(0, next(looks)) if begun.exists() else 0, sleep=time.sleep)


def replaced(name, old, new):
    assert RIGHT.count(old) == 1, name
    return RIGHT.replace(old, new).replace("NAME", name)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """One child process for all functions, the one that hangs last."""
    file, begun = tmp_path_factory.mktemp("answers") / "answers.py", tmp_path_factory.mktemp("begun") / "silent"
    functions = {name: replaced(name, old, new) for name, (old, new, _) in WRONG.items()}
    functions = {"right": RIGHT.replace("NAME", "right"), "template": template(), **functions}
    head = f"import time, torch\nprint('hello from the file')\nBEGUN = {str(begun)!r}\n"
    file.write_text(head + "\n".join(functions.values()), encoding="utf-8")
    cases = trial.draw_cases(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # it is the quiz that leaves nothing behind
        patch.setattr(trial, "time", still_until(begun))
        results, printed = trial.run(file, [*list(functions)[:-1], "forgotten", "silent"], cases)
    return {name: trial.judge(result, cases) for name, result in results.items()}, printed, file


def template():
    return TEMPLATE[TEMPLATE.index("def ") :].replace("multi_head_attention", "template")


class TestVerdicts:
    def test_a_right_function_passes(self, tried):
        assert tried[0]["right"].right

    @pytest.mark.parametrize("name", WRONG)
    def test_each_way_of_being_wrong_has_its_hint(self, tried, name):
        verdict = tried[0][name]
        assert verdict.score == 0 and WRONG[name][2] in verdict.hint, verdict.hint

    def test_the_unwritten_template_and_a_missing_function_are_named(self, tried):
        assert "not written yet" in tried[0]["template"].hint
        assert "no function" in tried[0]["forgotten"].hint

    def test_a_line_number_is_of_the_persons_file(self, tried):
        line = int(tried[0]["raises"].hint.partition("line ")[2].partition(":")[0])
        assert "B, T = x.shape" in tried[2].read_text().splitlines()[line - 1]

    def test_what_the_file_prints_is_passed_on_and_nothing_is_left_beside_it(self, tried):
        assert tried[1].startswith("hello from the file")
        assert [p.name for p in tried[2].parent.iterdir()] == ["answers.py"]

    def test_a_file_that_cannot_be_loaded_says_where(self, tmp_path):
        (tmp_path / "mine.py").write_text("import torch\ndef multi_head_attention(:\n")
        verdict, _ = trial.try_file(tmp_path / "mine.py", 1)
        assert "cannot be loaded: SyntaxError, line 2" in verdict.hint

    def test_a_process_that_ends_is_no_answer(self, tmp_path):
        (tmp_path / "mine.py").write_text("import os\ndef multi_head_attention(*a):\n    os._exit(3)\n")
        verdict, _ = trial.try_file(tmp_path / "mine.py", 1)
        assert "exit status 3" in verdict.hint


class TestSeparation:
    def test_nothing_of_the_file_enters_this_process(self, tried):
        assert "answer" not in sys.modules and str(tried[2].parent) not in sys.path

    @pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
    def test_what_a_hanging_file_started_is_stopped_with_it(self, tmp_path, monkeypatch):
        """A grandchild would go on for a day; it is gone when run() returns."""
        monkeypatch.setattr(trial, "time", still_until(tmp_path / "begun"))
        (tmp_path / "mine.py").write_text(
            "import subprocess, sys\n"
            f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({LONG})'])\n"
            "open('pid', 'w').write(str(p.pid))\n"
            "def multi_head_attention(*a):\n    open('begun', 'w').close()\n    p.wait()\n"
        )
        results, _ = trial.run(tmp_path / "mine.py", ["multi_head_attention"], trial.draw_cases(1)[:1])
        assert results["multi_head_attention"] == {"hung": trial.TO_ANSWER}
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", (tmp_path / "pid").read_text()], capture_output=True, text=True
        ).stdout.strip()
        assert state in ("", "Z", "Z+", "Zs", "ZN"), state  # gone, or dead and not yet collected by init


class TestFlaws:
    def test_no_two_look_alike_on_the_main_case(self):
        case = trial.draw_cases(5)[0]
        arguments = (case.x.double(), case.w_qkv.double(), case.w_out.double(), case.n_heads)
        outputs = {"right": case.right()}
        for name, ((option, value), _) in flaws.FLAWS.items():
            outputs[name] = flaws.flawed(*arguments, **{option: value})
        names = list(outputs)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                assert not trial._same(outputs[one], outputs[other], "float32"), (one, other)

    def test_without_a_flaw_it_is_the_shown_function_and_the_reference(self):
        for case in trial.draw_cases(6):
            arguments = (case.x.double(), case.w_qkv.double(), case.w_out.double(), case.n_heads)
            right = case.right()
            assert torch.allclose(flaws.flawed(*arguments), right, rtol=0, atol=1e-12)
            assert torch.allclose(flaws.multi_head_attention(*arguments), right, rtol=0, atol=1e-12)

    def test_the_key_passes_as_a_file(self, tmp_path):
        part = next(p for p in draw_questions(2, [8])[0].parts if isinstance(p, Code))
        (tmp_path / "key.py").write_text(part.key(), encoding="utf-8")
        assert part.check(str(tmp_path / "key.py")).right
