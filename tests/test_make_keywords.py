"""Keywords are content words of their own text."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from conftest import write_rows

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_keywords.py"
TEXTS = ["The mill by the river is old.", "The flood took the mill and the bridge.", "The the."]
LONG = "One two. The mill by the river is old. " + "word " * 100


def run(*args: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_keywords.py", *map(str, args)])
        runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def made(tmp_path) -> list[dict[str, str]]:
    (tmp_path / "my.txt").write_text("\n".join(TEXTS * 30) + "\n")
    run(tmp_path / "my.txt", tmp_path / "pairs.jsonl", "--count", 3)
    return [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]


def test_keywords_stand_in_their_text_and_say_something(made):
    assert len(made) == 60, "nothing is asked of a text without content words"
    for row in made:
        words = row["source"].split()
        assert 1 <= len(words) <= 3 and len(set(words)) == len(words)
        assert all(word in row["target"].replace(".", "").split() for word in words)
        assert not {"The", "the"} & set(words), "nearly half of all that is written"


def test_any_number_in_any_order(made):
    rivers = [row["source"] for row in made if row["target"] == TEXTS[0]]
    assert {len(words.split()) for words in rivers} == {1, 2, 3}
    as_written = [[TEXTS[0].index(word) for word in words.split()] for words in rivers]
    assert {places == sorted(places) for places in as_written if len(places) > 1} == {True, False}


def test_a_pair_of_every_sentence(tmp_path):
    """Of a long one the first words: keywords must not ask for what training cuts off."""
    (tmp_path / "my.txt").write_text("\n".join(["the the the the the the the word " * 20, LONG]) + "\n")
    run(tmp_path / "my.txt", tmp_path / "pairs.jsonl", "--words", 12)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [row["target"] for row in rows[-3:-1]] == ["One two.", TEXTS[0]]
    assert all(len(row["target"].split()) <= 12 for row in rows)


def test_columns_and_bad_input(tmp_path, capsys):
    write_rows(tmp_path / "rows.jsonl", [{"body": text} for text in TEXTS])
    run(tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl", "--text_column", "body", "--seed", 1)
    assert "2 pairs of 3 texts" in capsys.readouterr().out
    for args, message in (
        (("rows.jsonl", "x.jsonl"), "text"),
        (("none.txt", "x.jsonl"), "no such file"),
        (("rows.jsonl", "x.jsonl", "--text_column", "body", "--count", 0), "at least 1"),
    ):
        with pytest.raises(SystemExit, match=f"make_keywords: .*{message}"):
            run(tmp_path / args[0], tmp_path / args[1], *args[2:])
