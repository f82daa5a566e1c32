"""The teacher's texts take the place of the targets, in the same order, once."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from conftest import write_rows

import textdiff
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
    texts = textdiff.generate(trained / "model", [row["source"] for row in given], **how)
    assert [row["target"] for row in made] == texts


@pytest.mark.parametrize("seen", [0, 4, 12])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, file, trained, seen):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    run(trained / "model", file, whole)
    if seen:
        run(trained / "model", file, parts, "--max_examples", seen)
        assert len(read(parts)) == seen
    with parts.open("a") as out:
        out.write('{"source": "cut in the mid')
    run(trained / "model", file, parts)
    assert whole.read_text() == parts.read_text()


def test_bad_input(tmp_path, file, trained):
    other = write_rows(tmp_path / "other.jsonl", [{"source": "x", "target": "y"}])
    for args, message in (
        ((trained / "model", file, other), "other.jsonl holds rows of another file"),
        ((trained / "model", tmp_path / "none.jsonl", "x"), "no such file"),
        ((tmp_path / "no_model", file, "x"), "no model"),
        ((trained / "model", file, tmp_path / "x", "--decoding", "beam"), "decoding"),
    ):
        with pytest.raises(SystemExit, match=f"distill: .*{message}") as error:
            run(*args)
        assert "\n" not in str(error.value)
