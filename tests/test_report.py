"""The lines to type next: they work as they stand."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_training, write_rows

import textdiff
from textdiff import report
from textdiff.commands import main
from textdiff.corpus import rows
from textdiff.report import plain

NASTY = """-n It's "5 > 3" & $HOME; `ls` \\n #!
\x1b[31mred {"a": 1} é 長い | cat"""


def next_line(out):
    """What a training told its reader to type first."""
    return out.partition("\nnext:\n")[2].splitlines()[0].strip()


def in_a_shell(line):
    """What the line prints in `sh`."""
    places = {"PATH": Path(sys.executable).parent, "PYTHONPATH": Path(textdiff.__file__).parent.parent}
    more = {name: f"{place}{os.pathsep}{os.environ.get(name, '')}" for name, place in places.items()}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=os.environ | more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_line_to_type_next_works(tmp_path, files, capsys):
    """A source that shells would read in their own way."""
    held = [{"source": NASTY, "target": "a"}, *rows("validation", 7)]
    files = files | {"data__validation_file": write_rows(tmp_path / "held.jsonl", held)}
    run_training(tmp_path / "a run", **files)
    said = capsys.readouterr().out
    line = next_line(said)
    assert line.startswith("echo 'n It") and line.endswith(
        f"| textdiff generate '{tmp_path}/a run/model' -"
    )
    written = textdiff.generate(tmp_path / "a run" / "model", [plain(NASTY)])
    assert in_a_shell(line) == " ".join(written[0].splitlines()) + "\n"
    assert f"textdiff summarize '{tmp_path}/a run/model' report.txt more.jsonl" in said
    assert "--config summarization" not in said, "that is what was done"


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"data__conditioning": "prefix"}, "model -"),
        ({"data__text_column": "target"}, "model --num_samples 4"),
    ],
)
def test_the_line_of_other_models(tmp_path, files, capsys, monkeypatch, options, end):
    run_training(tmp_path, **files, **options)
    line = next_line(capsys.readouterr().out)
    assert line.endswith(end)
    echo, _, command = line.rpartition(" | ")
    if echo:
        text = tmp_path / "source.txt"
        text.write_text(in_a_shell(echo))
        command = command.removesuffix("-") + str(text)
    main(command.split()[1:])
    assert len(capsys.readouterr().out.splitlines()) == (1 if echo else 4)


def test_a_plain_text():
    assert plain(NASTY) == """n It's "5 > 3" & $HOME; `ls` n #! [31mred {"a": 1} é 長い | cat"""
    assert len(plain("word " * 100_000)) <= 300
    assert plain("\\ --") == "A text."


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3, "3 seconds"),
        (119, "119 seconds"),
        (150, "2.5 minutes"),
        (3000, "50 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_a_duration_is_said_in_fitting_units(seconds, said):
    assert report.duration(seconds) == said


def test_how_long_it_takes_is_said_once(tmp_path, files, capsys, monkeypatch):
    """From the pace of the batches after the first, for those that are left."""
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(report, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(report, "WARM", 1)
    monkeypatch.setattr(report, "TIMED", 2)
    options = {"trainer__max_steps": 4, "trainer__accumulate_grad_batches": 2}
    run_training(tmp_path, **files, **options)
    said = [line for line in capsys.readouterr().out.splitlines() if " to go" in line]
    assert said == ["5 s a batch: about 30 seconds to go"]


def test_a_curve_has_one_point_a_step():
    """Of several batches that make a step the first."""
    curve, trainer = report.Report(), SimpleNamespace(global_step=10, callback_metrics={"loss": 3.0})
    for step, loss in ((10, 3.0), (10, 5.0), (20, 2.0), (20, 7.0)):
        trainer.global_step, trainer.callback_metrics["loss"] = step, loss
        curve.note(trainer, "loss")
    assert curve.curves["loss"] == [(10, 3.0), (20, 2.0)]


def test_texts_are_written_in_batches_no_larger_than_those_of_evaluation(tmp_path, files, monkeypatch):
    """At a validation and at the end: logits of a large vocabulary must fit the memory."""
    from textdiff import train

    sizes: dict[str, list[int]] = {"train": [], "report": []}
    for module in (train, report):
        whole, name = module.generate_texts, module.__name__.rpartition(".")[2]

        def counted(*args, whole=whole, name=name, **options):
            sizes[name].append(options["batch_size"])
            return whole(*args, **options)

        monkeypatch.setattr(module, "generate_texts", counted)
    few = {"data__eval_batch_size": 3, "report__examples": 4, "model__validation_examples": 4}
    run_training(tmp_path, **files, trainer__max_steps=2, **few)
    assert set(sizes["train"]) == set(sizes["report"]) == {3}
