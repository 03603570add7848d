"""Forms for classes, flash cards, and what the command refuses."""

import contextlib
import html
import io
import json
import sys

import pytest

from minilm.cli import main
from minilm.quiz.anki import make_cards
from minilm.quiz.grading import Free, Number, Question
from minilm.quiz.multihead import Code
from minilm.quiz.progress import progress_path, record
from minilm.quiz.questions import draw_questions


def quiz(*arguments):
    """(exit code, standard output, standard error) of minilm quiz, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["minilm", "quiz", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, out.getvalue(), err.getvalue()


@pytest.fixture
def form(tmp_path):
    """A form of seed 3, filled in with the key, whose free answers nobody has read; save(form) writes it."""
    path = tmp_path / "form.json"
    assert quiz("--write-answers", path, "--seed", 3)[0] == 0
    form = json.loads(path.read_text(encoding="utf-8"))
    parts = {part.id: part for q in draw_questions(3) for part in q.parts}
    for entry in form["answers"]:
        part = parts[entry["id"]]
        if not isinstance(part, Code):
            entry["answer"] = "in my words" if isinstance(part, Free) else part.key()

    def save(form=form):
        path.write_text(json.dumps(form), encoding="utf-8")
        return path

    return form, save


def entry(form, name):
    return next(entry for entry in form["answers"] if entry["id"] == name)


def marks(path, *arguments):
    code, out, err = quiz("--non-interactive", "--answers", path, "--json", *arguments)
    assert code == 0, err
    return json.loads(out)


class TestForms:
    def test_the_key_scores_all_but_what_is_to_be_read_and_run(self, form):
        filled, save = form
        said = marks(save())
        assert said["of"] == 46 and said["seed"] == 3
        assert said["to_read"] == ["1a", "2f", "3f", "4e", "5h", "6f"] and said["score"] == 46 - 6 - 1
        unread = next(part for part in said["parts"] if part["id"] == "1a")
        assert unread["score"] is None and len(unread["rubric"]) == 5
        assert "--code" in next(part["hint"] for part in said["parts"] if part["id"] == "8d")
        entry(filled, "1a")["points"] = [True, True, False, True, True]
        entry(filled, "2a")["answer"] = 4  # a number is as good as its text
        said = marks(save(), "--only", "1,2")
        assert said["of"] == 10 and said["to_read"] == ["2f"]
        assert next(part for part in said["parts"] if part["id"] == "1a")["score"] == 0.8

    def test_the_table_has_every_part_and_nothing_is_kept(self, form):
        filled, save = form
        entry(filled, "3a")["answer"] = "1111 1111 1111 1111"
        entry(filled, "3c")["answer"] = ""
        code, out, err = quiz("--non-interactive", "--answers", save(), "--only", "3")
        assert code == 0 and not err and not progress_path().exists()
        assert "hides nothing" in " ".join(out.split()) and "Left out." in out
        assert "3 of 6, seed 3" in out and "1 answers are to be read" in out
        assert max(map(len, out.splitlines())) <= 80

    def test_only_a_file_named_on_the_command_line_is_run(self, form, tmp_path):
        filled, save = form
        evidence = tmp_path / "ran"
        (tmp_path / "mine.py").write_text(f"open({str(evidence)!r}, 'w').close()\n")
        entry(filled, "8d")["answer"] = str(tmp_path / "mine.py")
        code, _, err = quiz("--non-interactive", "--answers", save())
        assert code == 2 and "Question 8d" in err and "--code" in err and not evidence.exists()
        entry(filled, "8d")["answer"] = ""
        code, out, err = quiz("--non-interactive", "--answers", save(), "--code", tmp_path / "mine.py", "--only", 8)
        assert code == 0 and evidence.exists() and "no function" in " ".join(out.split())
        assert "run as a program, with your rights" in err

    def test_what_a_form_leaves_out_counts_nothing(self, form):
        filled, save = form
        filled["answers"] = [e for e in filled["answers"] if e["id"] in ("2a", "2b")]
        said = marks(save())
        assert said["score"] == 2 and said["of"] == 6

    def test_a_form_of_ones_own_text_is_graded_on_it(self, tmp_path):
        path = tmp_path / "own.json"
        assert quiz("--write-answers", path, "--seed", 1, "--only", 6, "--text", "ab ab cd cd")[0] == 0
        filled = json.loads(path.read_text(encoding="utf-8"))
        entry(filled, "6a")["answer"] = "c d"
        path.write_text(json.dumps(filled), encoding="utf-8")
        assert next(p for p in marks(path)["parts"] if p["id"] == "6a")["score"] == 1


class TestMalformed:
    @pytest.mark.parametrize(
        ("part", "answer", "words"),
        [("2a", "about four", "is no number"), ("1b", "two", "is no shape"), ("3a", "1000", "is no such mask"),
         ("5g", "z", "is no choice"), ("7a", "a b", "is no matching"), ("6a", "e", "is no pair"),
         ("2a", True, "write a number"), ("2a", {"x": 1}, "write a number"), ("5d", [["a"]], "a letter each")],
    )  # fmt: skip
    def test_an_answer_is_one_sentence_that_names_its_question(self, form, part, answer, words):
        filled, save = form
        entry(filled, part)["answer"] = answer
        code, out, err = quiz("--non-interactive", "--answers", save())
        assert code == 2 and not out
        assert err.startswith(f"minilm: Question {part}: ") and words in err and err.count("\n") == 1

    @pytest.mark.parametrize("points", ["yes", [1, 0, 1, 0], [True]])
    def test_points_are_true_and_false_one_a_point(self, form, points):
        filled, save = form
        entry(filled, "3f")["points"] = points
        code, _, err = quiz("--non-interactive", "--answers", save())
        assert code == 2 and "Question 3f" in err and err.count("\n") == 1

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"seed": "three"}, "seed is 'three'"),
            ({"seed": True}, "seed is"),
            ({"text": 5}, "text is"),
            ({"text": "x"}, "teaches fewer"),
            ({"minilm_quiz": 9}, "no form of this quiz"),
            ({"answers": {}}, "no form of this quiz"),
            ({"answers": [5]}, "has no id"),
            ({"answers": [{"id": "9z"}]}, "no question '9z'"),
            ({"answers": [{"id": "1a"}, {"id": "1a"}]}, "1a is answered twice"),
        ],
    )
    def test_a_form_that_is_none_is_one_sentence(self, form, change, words):
        filled, save = form
        code, _, err = quiz("--non-interactive", "--answers", save(filled | change))
        assert code == 2 and words in err and err.count("\n") == 1

    @pytest.mark.parametrize("data", [b"", b"\xff\xff", b"[" * 100_000, b"5"])
    def test_a_file_that_is_no_json_is_one_sentence(self, tmp_path, data):
        (tmp_path / "f.json").write_bytes(data)
        code, _, err = quiz("--non-interactive", "--answers", tmp_path / "f.json")
        assert code == 2 and "f.json is no" in err and err.count("\n") == 1


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--only", "9"], "numbers from 1 to 8"),
            (["--only", "3,,5"], "numbers from 1 to 8"),
            (["--non-interactive"], "--answers FILE"),
            (["--answers", "f.json"], "--answers has no use"),
            (["--json"], "--json has no use"),
            (["--non-interactive", "--answers", "f.json", "--seed", "1"], "a form holds its seed"),
            (["--progress", "--seed", "1"], "--seed has no use with --progress"),
            (["--template", "a", "--export", "anki", "b"], "choose one"),
            (["--only", "3", "--text", "abab"], "--text is for question 6"),
            (["--code", "nowhere.py"], "is no file"),
            (["--non-interactive", "--answers", "nowhere.json"], "cannot be read"),
            (["--export", "anki", "/nowhere/at/all"], "cannot be written"),
        ],
    )
    def test_what_does_not_go_together_is_refused_in_one_sentence(self, arguments, words, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, _, err = quiz(*arguments)
        assert code == 2 and words in err and err.startswith("minilm: ") and err.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_help_says_that_the_file_is_run(self):
        code, out, _ = quiz("--help")
        said = " ".join(out.split())
        assert code == 0 and "run as a program, with your rights" in said and "minilm quiz --only 3,5" in said

    def test_progress_is_told_weakest_first(self):
        assert "Nothing answered yet" in quiz("--progress")[1]
        record("1a", "the attention equation", 1)
        record("2b", "variance after the division", 0.5)
        code, out, _ = quiz("--progress")
        assert code == 0 and out.index("2b") < out.index("1a") and "1 weak of 2 answered" in out


class TestCards:
    def test_they_read_back_one_a_part(self, tmp_path):
        text = 'a<b>&"tab\there" a<b>&"tab\there"'
        assert quiz("--export", "anki", tmp_path / "cards.txt", "--seed", 3, "--text", text)[0] == 0
        lines = (tmp_path / "cards.txt").read_bytes().decode("utf-8").splitlines()
        headers = [line for line in lines if line.startswith("#")]
        assert {"#separator:tab", "#html:true", "#tags column:3"} <= set(headers)
        cards = [line.split("\t") for line in lines[len(headers) :]]
        parts = [part for q in draw_questions(3, None, text) for part in q.parts]
        assert len(cards) == len(parts) == 46 and {len(card) for card in cards} == {3}
        for part, (front, back, tags) in zip(parts, cards, strict=True):
            assert not front.startswith('"') and '"' not in front.replace('""', "")  # Anki reads a quote as a bracket
            assert f"{part.id}. {part.prompt}" in html.unescape(front)
            assert html.unescape(back.replace("<br>", "\n")).replace("\t", " ").endswith(part.why)
            shown = part.key() if isinstance(part, Code) else part.solution()
            assert shown in html.unescape(back.replace("<br>", "\n")) and f"::{part.id[0]}" in tags
        assert "a&lt;b&gt;&amp;&quot;" in cards[[part.id for part in parts].index("6a")][0]

    def test_tabs_and_line_ends_stay_within_their_field(self):
        part = Number(id="1a", topic="t", prompt="a\tb\nc", why="d\r\n\te", answer=1)
        lines = make_cards([Question(1, "title", (part,), list)]).splitlines()
        assert lines[-1].split("\t") == ["1a. a b<br>c", "1<br><br>d<br> e", "minilm-quiz minilm-quiz::1"]

    def test_nothing_is_overwritten(self, tmp_path):
        (tmp_path / "cards.txt").write_text("mine")
        for arguments in (["--export", "anki"], ["--write-answers"], ["--template"]):
            code, _, err = quiz(*arguments, tmp_path / "cards.txt")
            assert code == 2 and "exists already" in err
        assert (tmp_path / "cards.txt").read_text() == "mine"
