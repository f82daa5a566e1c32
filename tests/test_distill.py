"""The teacher's texts take the place of the targets, in the same order, once."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_rows

import textdiff
from textdiff import generation
from textdiff.corpus import rows

SCRIPT = Path(__file__).parent.parent / "scripts" / "distill.py"


def run(*args: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distill.py", *map(str, args)])
        runpy.run_path(str(SCRIPT), run_name="__main__")


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def file(tmp_path) -> Path:
    return write_rows(tmp_path / "train.jsonl", [*rows("train", 12)])


@pytest.mark.parametrize("options", [("--steps", 3), ("--steps", 3, "--candidates", 2)])
def test_targets_are_what_the_teacher_writes(tmp_path, file, trained, options):
    run(trained / "model", file, tmp_path / "out.jsonl", *options, "--batch_size", 5)
    made, given = read(tmp_path / "out.jsonl"), read(file)
    assert [row["source"] for row in made] == [row["source"] for row in given]
    how = dict(zip((name[2:] for name in options[::2]), options[1::2], strict=True))
    how |= {"dtype": "auto"}
    texts = textdiff.generate(trained / "model", [row["source"] for row in given], **how)
    assert [row["target"] for row in made] == texts


@pytest.mark.parametrize("seen", [0, 1, 7, 12])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, file, trained, seen, monkeypatch):
    """However many are written between two savings, as far as float32 goes."""
    monkeypatch.setattr(generation, "fast_dtype", lambda _: torch.float32)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    how = ("--steps", 2, "--candidates", 2)
    run(trained / "model", file, whole, *how)
    lines = whole.read_text().splitlines(keepends=True)
    parts.write_text("".join(lines[:seen]) + '{"source": "cut in the mid')
    run(trained / "model", file, parts, *how, "--chunk", 3)
    assert whole.read_text() == parts.read_text()


def test_what_is_there_is_not_written_again(tmp_path, file, trained):
    """Whole rows stay, whatever stands in them."""
    out, how = tmp_path / "out.jsonl", ("--steps", 2, "--chunk", 3)
    run(trained / "model", file, out, *how)
    rows = read(out)
    rows[4]["target"] = "kept"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    run(trained / "model", file, out, *how)
    assert read(out)[4]["target"] == "kept" and len(read(out)) == 12


def test_columns_keep_their_names_and_a_source_is_answered_once(tmp_path, trained):
    row = {"article": "The score was 5 to 4.", "highlights": "x\u2028y"}
    twice = write_rows(tmp_path / "twice.jsonl", [row, row, row | {"article": "Rain\u2028 tomorrow."}])
    for _ in range(2):  # the second time there is nothing to do
        run(trained / "model", twice, tmp_path / "out.jsonl")
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().split("\n")[:-1]]
    assert [row["article"] for row in made] == ["The score was 5 to 4.", "Rain\u2028 tomorrow."]
    assert all(set(row) == {"article", "highlights", "teacher"} for row in made)


@pytest.mark.parametrize("content", ['{"precious": 1}', "[1, 2]\n", '{"source": "x", "target": "y"}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path, file, trained, content):
    (tmp_path / "other.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=r"distill: .*other.jsonl holds rows of another file"):
        run(trained / "model", file, tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl").read_text() == content


def test_another_way_of_writing_is_another_file(tmp_path, file, trained):
    run(trained / "model", file, tmp_path / "out.jsonl", "--steps", 2)
    with pytest.raises(SystemExit, match="way of writing"):
        run(trained / "model", file, tmp_path / "out.jsonl", "--steps", 3)


def test_bad_input(tmp_path, file, trained):
    (tmp_path / "texts.txt").write_text("One two.\n")
    for args, message in (
        ((trained / "model", tmp_path / "texts.txt", "x"), "texts alone"),
        ((trained / "model", tmp_path / "none.jsonl", "x"), "no such file"),
        ((tmp_path / "no_model", file, "x"), "no model"),
        ((trained / "model", file, tmp_path / "x", "--decoding", "beam"), "decoding"),
    ):
        with pytest.raises(SystemExit, match=f"distill: .*{message}") as error:
            run(*args)
        assert "\n" not in str(error.value)
