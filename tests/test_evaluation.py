"""Likelihood and ROUGE of trained models on files, from Python and from the command line."""

import argparse
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import write_rows
from test_metrics import FOREIGN

from textdiff import evaluation, load, report
from textdiff.commands import WRITING, add_writing, main
from textdiff.corpus import rows
from textdiff.evaluation import likelihood, open_data
from textdiff.likelihood import find_bound
from textdiff.metrics import summarization_report
from textdiff.testing import exact_process


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("held") / "held.jsonl", rows("test", 12))


def run(capsys, *args):
    capsys.readouterr()  # what a fixture's training printed
    main(["evaluate", *map(str, args)])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("bound", ["order", "diffusion", "ode"])
def test_bounds_of_an_untrained_summarizer_are_near_the_unigrams(trained, held, bound):
    model = load(trained / "model", "cpu")
    # the terms of the ELBO are too unlike for few of them: 9 bits of all 50, 3 to 19 of four
    some = 50 if bound == "diffusion" else 4
    steps = {"steps": 50} if bound == "diffusion" else {}
    found = likelihood(model, open_data(model, str(held)), bound=bound, evaluations=some, **steps)
    assert found["kind"] == f"bound: {bound}" and found["texts"] == 12
    assert sum(found["parts"].values()) == pytest.approx(found["bits_per_token"])
    assert 4 < found["bits_per_token"] < 40
    assert found["bits_per_character"] < found["bits_per_token"]
    assert found["standard_error"] > 0


def test_the_same_seed_gives_the_same_bits_whatever_the_batch(trained, held):
    model = load(trained / "model", "cpu")
    one, two = (
        likelihood(model, open_data(model, str(held), eval_batch_size=size), evaluations=3)
        for size in (2, 12)
    )
    assert one["bits_per_token"] == pytest.approx(two["bits_per_token"], rel=1e-5)


def test_the_twin_is_exact(tmp_path, files, held):
    from conftest import run_training

    run_training(tmp_path, **files, model__network__system="autoregressive")
    model = load(tmp_path / "model", "cpu")
    data = open_data(model, str(held))
    found = likelihood(model, data)
    total = count = 0.0
    for batch in data.test_dataloader():
        with torch.no_grad():
            losses = model.loss(batch, 0)
        total, count = total + float((losses.nll * losses.mask).sum()), count + int(losses.mask.sum())
    with pytest.raises(SystemExit, match="its likelihood is exact"):
        main(["evaluate", str(tmp_path / "model"), str(held), "--evaluations", "4"])
    assert found["kind"] == "exact" and set(found["parts"]) == {"tokens"}
    assert found["bits_per_token"] == pytest.approx(total / count / math.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", ["unconditional", "prefixed"])
def test_texts_alone_and_prefix_models(request, held, kind, capsys):
    folder = request.getfixturevalue(kind)
    columns = ["--text_column", "target"] if kind == "unconditional" else []
    found = run(capsys, folder / "model", held, *columns, "--evaluations", 2, "--max_examples", 5)
    assert found["bits_per_token"] > 1 and found["parts"]["length"] > 0


def test_rouge_on_the_command_line(trained, held, capsys):
    found = run(capsys, trained / "model", held, "--metric", "rouge", "--steps", 2)
    assert {"rougeL", "bleu", "length_ratio"} <= set(found)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--text_column", "target"], "it holds texts alone, the model wants texts with sources"),
        (["--bound", "best"], "unknown bound 'best'"),
        (["--decoding", "beam"], "--decoding is for --metric rouge, not nll"),
        (["--metric", "rouge", "--bound", "ode"], "--bound is for --metric nll, not rouge"),
        (["--evaluations", "0"], "evaluations must be at least 1, not 0"),
        (["--steps", "50"], "steps is for bound diffusion, not order: leave it out"),
        (["--bound", "diffusion", "--evaluations", "1"], "at least 2: one is for the reconstruction"),
        (["--bound", "diffusion", "--steps", "-2"], "must be at least 1, not -2"),
        (["--text_column", "nothing"], "no columns"),
    ],
)
def test_mistakes_end_in_one_line(trained, held, args, message):
    with pytest.raises(SystemExit, match=message):
        main(["evaluate", str(trained / "model"), str(held), *args])


def test_texts_are_evaluated_as_they_would_be_written(trained, held, capsys):
    """Every option of writing is one of evaluating texts, with the same meaning, and of nothing else."""
    model, asked = str(trained / "model"), ["--steps", "3", "--temperature", "0.5", "--candidates", "2"]
    asked += ["--length_quantile", "0.4", "--decoder", "sample", "--seed", "5", "--dtype", "float32"]
    main(["evaluate", model, str(held), "--metric", "rouge", *asked])
    found = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in held.read_text().splitlines()]
    main(["summarize", model, str(held), *asked])
    texts = capsys.readouterr().out.splitlines()
    expected = summarization_report(texts, [r["target"] for r in rows], [r["source"] for r in rows])
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found["nfe"] == 6
    for name in WRITING:
        with pytest.raises(SystemExit, match=f"--{name} is for --metric rouge, not nll"):
            main(["evaluate", model, str(held), f"--{name}", "2"])
    writing = argparse.ArgumentParser()
    add_writing(writing)
    both = {"help", "steps", "batch_size", "seed", "device"}
    assert {action.dest for action in writing._actions} == {*WRITING, *both}


@pytest.mark.parametrize("metric", ["nll", "rouge"])
def test_batches_of_evaluation_are_as_large_as_asked_for(trained, held, capsys, monkeypatch, metric):
    sizes, kind = [], type(load(trained / "model", "cpu"))
    for name in ("nats", "write"):
        whole = getattr(kind, name)

        def counted(model, batch, *args, whole=whole, **options):
            sizes.append(len(batch["ids"]) if isinstance(batch, dict) else len(batch.index))
            return whole(model, batch, *args, **options)

        monkeypatch.setattr(kind, name, counted)
    args = ["--metric", metric, "--batch_size", "5", *["--evaluations", "1"] * (metric == "nll")]
    main(["evaluate", str(trained / "model"), str(held), *args])
    assert sum(sizes) == 12 and max(sizes) <= 5


@pytest.mark.parametrize("language", [*FOREIGN, "English", "French"])
def test_a_text_that_is_its_reference_scores_100_in_any_script(
    trained, tmp_path, capsys, monkeypatch, language
):
    """On file and after training; the tokenizer is told where it is not the usual one."""
    latin = {"English": "A cat sat on the mat.", "French": "Où est-il allé à l'été?"}
    text = (latin | FOREIGN)[language]
    file = write_rows(tmp_path / "held.jsonl", [{"source": text, "target": text}] * 3)
    made = SimpleNamespace(texts=[text] * 3, nfe=4)
    for module in (evaluation, report):
        monkeypatch.setattr(module, "generate_texts", lambda *_, **__: made)
    model = load(trained / "model", "cpu")
    data = open_data(model, str(file))
    rows = [evaluation.written(model, data), report.evaluate(model, data, 3, 0)]
    said = capsys.readouterr().out
    name = {"Thai": "characters"}.get(language, "unicode")
    assert "3 examples, 4 steps" in said and (f"tokenizer {name}\n" in said) == (language in FOREIGN)
    rows.append(rows[1]["lead1"])
    assert [row["rougeL"] for row in rows] == pytest.approx([100] * 3)
    assert all(row["bleu"] > 99 for row in rows)
    told = {"tokenizer": name} if language in FOREIGN else {}
    assert all({key: row[key] for key in row if key == "tokenizer"} == told for row in rows[:2])


def test_a_missing_file_is_named(trained):
    with pytest.raises(SystemExit, match="nowhere"):
        main(["evaluate", str(trained / "model"), "nowhere.jsonl"])


def batch_of(model):
    ids = torch.full((1, 2), model.tokenizer.eos_id)
    whole = torch.ones_like(ids, dtype=torch.bool)
    return {"ids": ids, "mask": whole, "valid": whole, "index": torch.zeros(1, dtype=torch.long)}


@pytest.mark.parametrize("bound", ["ode", "ode_exact"])
def test_processes_on_tokens_have_no_density(bound):
    from test_blocks import make_model

    model = make_model(process="masked")
    with pytest.raises(ValueError, match=f"bound {bound}: Masked has no density"):
        model.nats(batch_of(model), 0, bound=bound)


@pytest.mark.parametrize(
    ("bound", "counts", "message"),
    [
        ("order", {"steps": 9}, "steps is for bound diffusion, not order"),
        ("ode", {"steps": 9, "evaluations": 2}, "steps is for bound diffusion, not ode"),
        (
            "ode_exact",
            {"evaluations": 2},
            "evaluations is for bound order or diffusion or ode, not ode_",
        ),
    ],
)
def test_counts_that_a_bound_does_not_take_are_refused(bound, counts, message):
    from test_blocks import make_model

    model = make_model(embedding_width=2)
    with pytest.raises(ValueError, match=message):
        model.nats(batch_of(model), 0, bound=bound, **counts)


@pytest.mark.parametrize(
    ("bound", "counts"),
    [
        ("order", {"evaluations": 64}),
        ("diffusion", {"steps": 1000, "evaluations": 64}),
    ],
)
def test_the_counts_of_a_bound_that_is_given_none(bound, counts):
    from test_blocks import make_model

    model = make_model(embedding_width=2)
    usual, told = (model.nats(batch_of(model), 3, bound=bound, **some) for some in ({}, counts))
    assert all(torch.equal(usual.parts[name], nats) for name, nats in told.parts.items())
    other = {name: count - 1 for name, count in counts.items()}
    found = model.nats(batch_of(model), 3, bound=bound, **other)
    assert any(not torch.equal(found.parts[name], nats) for name, nats in told.parts.items())


def test_the_directions_of_a_density_that_is_given_none():
    """64 of them, which take a minute: they are not followed here."""
    process = exact_process("embedding")
    usual, told = (find_bound("ode", process, evaluations=some) for some in (None, 64))
    assert usual.keywords["evaluations"] == told.keywords["evaluations"] == 64


def test_a_density_without_chance_is_near_that_of_eight_directions():
    from test_blocks import make_model

    model = make_model(embedding_width=2)
    some, exact = (
        float(model.nats(batch_of(model), 1, bound=bound, **counts).parts["ode"])
        for bound, counts in (("ode", {"evaluations": 8}), ("ode_exact", {}))
    )
    assert some != exact and some == pytest.approx(exact, abs=0.1)
