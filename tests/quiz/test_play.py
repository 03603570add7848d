"""The quiz at a terminal: asks again what cannot be read, hints once, shows the evidence, and is left without loss."""

import builtins
import os
import subprocess
import sys

import pytest

from minilm.errors import UserError
from minilm.quiz.grading import Free
from minilm.quiz.multihead import TEMPLATE, Code
from minilm.quiz.play import Game, write_template
from minilm.quiz.progress import progress_path, read_progress, record
from minilm.quiz.questions import draw_questions
from tests.waiting import PATIENCE


def keys(seed, numbers, file, text=""):
    """What a person types who knows everything."""
    lines = []
    for number in numbers:
        lines += [text] if number == 6 else []
        for part in draw_questions(seed, [number], text or None)[0].parts:
            if isinstance(part, Free):
                lines += ["my own words", *["y"] * len(part.points)]
            else:
                lines.append(str(file) if isinstance(part, Code) else part.key())
    return lines


@pytest.fixture
def played(monkeypatch, capsys):
    """play(lines, ...) types the lines and says (exit code, what was on the screen); an exception is raised in turn."""

    def play(lines, numbers=(3,), seed=1, text=None):
        left = iter(lines)

        def typed(prompt=""):
            print(prompt, end="")
            line = next(left, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", typed)
        code = Game(list(numbers), seed, text).play()
        return code, " ".join(capsys.readouterr().out.split())

    return play


class TestThroughout:
    def test_all_eight_played_without_a_terminal_by_who_knows_everything(self, tmp_path, data_folder):
        key = next(p for p in draw_questions(1, [8])[0].parts if isinstance(p, Code)).key()
        (tmp_path / "mine.py").write_text(key, encoding="utf-8")
        lines = keys(1, range(1, 9), "mine.py", "peter piper picked a peck of pickled peppers")
        done = subprocess.run(
            [sys.executable, "-m", "minilm", "quiz", "--seed", "1"],
            input="\n".join(lines) + "\n", capture_output=True, text=True, encoding="utf-8",
            cwd=tmp_path, timeout=PATIENCE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
        )  # fmt: skip
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "46 of 46 in all." in done.stdout and "✗" not in done.stdout and "\x1b" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 82  # the longest is an echo of what was typed
        assert "run as a program, with your rights" in done.stdout
        assert len(read_progress().entries) == 46 and not read_progress().weak()

    def test_one_question_with_every_kind_of_slip(self, played):
        parts = draw_questions(1, [3])[0].parts
        code, screen = played(
            ["nonsense", "0000 1000 1100 1110", parts[0].key(),  # unreadable, wrong, right: half a point
             parts[1].key(),
             "64", "65",  # wrong twice
             "",  # not known
             parts[4].key(),
             "in my words", "perhaps", "y", "y", "n", "yes"],
        )  # fmt: skip
        assert code == 0
        assert "'nonsense' is no such mask" in screen and "the diagonal is 1" in screen and "Once more." in screen
        assert "The answer: 21 pairs" in screen and parts[3].solution() in screen
        assert "y or n, please" in screen and "3 of 4 points" in screen
        assert "✓ Token 3 of 6 changed" in screen and "Question 3: 3.25 of 6." in screen
        last = {part: entry.last for part, entry in read_progress().entries.items()}
        assert last == {"3a": 0.5, "3b": 1, "3c": 0, "3d": 0, "3e": 1, "3f": 0.75}

    def test_a_part_of_a_matching_counts(self, played):
        parts = draw_questions(1, [7])[0].parts
        one, two, three = parts[0].key().split()
        played([f"{one} {three} {two}", f"{one} {three} {two}"], numbers=[7])
        assert read_progress().entries["7a"].last == pytest.approx(1 / 3, abs=1e-3)


class TestLeaving:
    @pytest.mark.parametrize(("how", "code"), [(EOFError(), 0), (KeyboardInterrupt(), 130)])
    def test_what_was_answered_is_kept(self, played, how, code):
        said, screen = played([draw_questions(1, [3])[0].parts[0].key(), how])
        assert said == code and "Leaving." in screen and "1 of 1 in all." in screen
        assert list(read_progress().entries) == ["3a"]

    def test_a_progress_file_that_cannot_be_written_does_not_end_the_quiz(self, played, data_folder):
        data_folder.write_text("in the way")
        code, screen = played(keys(1, [3], None))
        assert code == 0 and screen.count("Progress cannot be kept") == 1 and "6 of 6 in all." in screen
        assert "Kept in" not in screen

    def test_a_damaged_one_is_spoken_of(self, played, data_folder):
        data_folder.mkdir()
        progress_path().write_text("{")
        assert "damaged" in played([])[1]


class TestOrder:
    def test_the_weak_come_first_then_the_unasked(self, played):
        record("3a", "known", 1)
        record("7f", "how many tokens teach", 0)
        record("2a", "not asked for today", 0)
        screen = played([EOFError()], numbers=[3, 5, 7])[1]
        assert "Weak last time, so first: 7f how many tokens teach." in screen and "GPT, BERT, T5 (1 of 3)" in screen
        parts = draw_questions(1, [7])[0].parts
        screen = played([*(p.key() for p in parts), EOFError()], numbers=[3, 5, 7])[1]
        assert screen.index("GPT, BERT, T5") < screen.index("Chinchilla (2 of 3)")


class TestOwnText:
    def test_a_text_that_teaches_nothing_is_asked_for_again(self, played):
        screen = played(["hello", "the theme of the thesis"], numbers=[6])[1]
        assert "teaches fewer than two merges" in screen and "The text: the theme of the thesis" in screen

    def test_signs_that_a_terminal_would_obey_are_not_printed(self, played):
        screen = played([], numbers=[6], text="\x1b[31mred \x1b[31mred [bold]b[/bold]")[1]
        assert "\x1b" not in screen and "[bold]b[/bold]" in screen and "⟨1B⟩" in screen


class TestOwnFile:
    def test_a_missing_file_is_offered_as_template_and_tries_are_free(self, played, tmp_path, monkeypatch):
        file = tmp_path / "mine.py"
        verdicts = iter([False, True])
        monkeypatch.setattr(Game, "_run", lambda self, part, path: file.read_text() == TEMPLATE and next(verdicts))

        def run(self, part, path):
            return part.run(path) if not file.exists() else next(verdicts)

        monkeypatch.setattr(Game, "_run", run)
        lines = keys(1, [8], "")[:-1]
        screen = played([*lines, str(file), "y", str(file), str(file)], numbers=[8])[1]
        assert "is no file" in screen and file.read_text(encoding="utf-8") == TEMPLATE
        assert "Mend the file" in screen and read_progress().entries["8d"].last == 1

    def test_the_template_overwrites_nothing(self, tmp_path):
        file = tmp_path / "mine.py"
        file.write_text("an evening's work")
        with pytest.raises(UserError, match="exists already"):
            write_template(file)
        assert file.read_text() == "an evening's work"
