"""Rescoring by an autoregressive model: against its likelihood of single texts, and what it refuses."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import run_training, write_rows

import textdiff
from textdiff import commands, corpus
from textdiff.evaluation import likelihood, open_data
from textdiff.generation import generate_texts
from textdiff.rescore import log_probs, rescore

# the tiny models read 48 tokens
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens are read")
SOURCES = [report.source for report in corpus.generate("test", 4)]
SOURCES[1] = "Rain."  # of another length
GROUPS = [
    ["A short text.", "Nobody was hurt when it came down again.", "A short text."],
    ["Rain.", "Rain and no end of it, said the mayor."],
    ["", "x"],
    ["The bridge is closed.", "Closed the is bridge.", "The bridge"],
]


@pytest.fixture(scope="module")
def model(trained):
    return textdiff.load(trained / "model", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, files):
    """A tiny autoregressive model with other lengths and another vocabulary than `model`."""
    folder = tmp_path_factory.mktemp("autoregressive")
    other = {"data__vocab_size": 280, "data__max_target_length": 60, "data__max_source_length": 40}
    run_training(folder, **files, **other, model__network__system="autoregressive", seed_everything=3)
    return folder / "model"


@pytest.fixture(scope="module")
def twin(folder):
    return textdiff.load(folder, device="cpu")


def count_rows(forward, read, memory, mask):
    read.append(len(memory))
    return forward(memory, mask)


def alone(twin, source, text, tmp_path):
    """log p a token of one text, as `textdiff evaluate` has it."""
    file = write_rows(tmp_path / "one.jsonl", [{"source": source, "target": text}])
    found = likelihood(twin, open_data(twin, str(file)))
    return -found["bits_per_token"] * torch.tensor(2.0).log().item()


@pytest.mark.parametrize("size", [1, 4, 64])
def test_scores_are_likelihoods_of_single_texts(twin, tmp_path, size):
    """Whatever is read beside them, and in whatever order."""
    scores = log_probs(twin, SOURCES, GROUPS, batch_size=size)
    for source, group, known in zip(SOURCES, GROUPS, scores, strict=True):
        assert known.keys() == set(group)
        for text in filter(None, known):  # a file holds no empty text
            assert known[text] == pytest.approx(alone(twin, source, text, tmp_path), abs=1e-5)
    assert len({round(score, 5) for known in scores for score in known.values()}) == 9


def test_the_likeliest_is_chosen(twin):
    scores = log_probs(twin, SOURCES, GROUPS)
    best = rescore(twin, SOURCES, GROUPS)
    for text, group, known in zip(best, GROUPS, scores, strict=True):
        assert text in group and all(known[text] >= known[other] for other in group)


def test_what_is_too_long_comes_last(twin):
    long = "one two three " * 20
    (known,) = log_probs(twin, SOURCES[:1], [[long, "zq xj kv"]])
    assert known[long] == -torch.inf < known["zq xj kv"]
    assert rescore(twin, SOURCES[:1], [[long, "zq xj kv"]]) == ["zq xj kv"]
    with pytest.warns(UserWarning, match="1 of 1 texts: all candidates are longer than"):
        assert rescore(twin, SOURCES[:1], [[long, long]]) == [long]


def test_given_words_are_not_judged(twin, tmp_path):
    """A likelihood of the rest, given them: their number does not dilute it."""
    start, ends = "The mayor of the town said that", [" no.", " it rains again, and more."]
    (known,) = log_probs(twin, SOURCES[:1], [[start + end for end in ends]], [start])
    prefix = len(twin.tokenizer.encode([start])[0])
    for text in known:
        count = len(twin.tokenizer.encode([text])[0]) + 1
        whole = alone(twin, SOURCES[0], text, tmp_path) * count
        ids = torch.tensor([[*twin.tokenizer.encode([text])[0], twin.tokenizer.eos_id]])
        source = torch.tensor([twin.source_ids(SOURCES[:1])[0]])
        batch = {"ids": ids, "source": source, "source_mask": torch.ones_like(source).bool()}
        first = torch.arange(count)[None] < prefix
        nats = twin.nats(batch | {"mask": first}, seed=0).parts["tokens"].item()
        assert known[text] == pytest.approx((whole + nats) / (count - prefix), abs=1e-4)
    other = log_probs(twin, SOURCES[:1], [[start + ends[0]]], ["Nobody"])[0]
    assert other == log_probs(twin, SOURCES[:1], [[start + ends[0]]])[0]


def test_generation_takes_the_likeliest_candidate(model, twin):
    plain = textdiff.generate(model, SOURCES, candidates=5, return_dict=True)
    made = textdiff.generate(model, SOURCES, candidates=5, rescorer=twin, return_dict=True)
    assert made.ids == plain.ids and made.candidates == plain.candidates
    scores = log_probs(twin, SOURCES, made.candidates)
    assert [known[text] for text, known in zip(made.texts, scores, strict=True)] == [
        max(known.values()) for known in scores
    ]
    assert made.texts != plain.texts  # not the one of least risk
    assert made.nfe == plain.nfe + 1


def test_a_folder_does_for_a_model(model, twin, folder, monkeypatch):
    options = {"candidates": 4, "seed": 1}
    texts = textdiff.generate(model, SOURCES, rescorer=twin, **options)
    assert textdiff.generate(model, SOURCES, rescorer=folder, **options) == texts
    summarize = textdiff.pipeline("summarization", model, rescorer=folder, **options)
    monkeypatch.delattr(textdiff.api, "load")  # it was loaded once, not at every call
    assert [row["summary_text"] for row in summarize(SOURCES)] == texts


def test_every_source_is_read_once(model, twin, monkeypatch):
    """Not once for every candidate: of both models."""
    read = []
    for one in (model.denoiser.encoder, twin.encoder):
        counted = partial(count_rows, one.forward, read)
        monkeypatch.setattr(one, "forward", counted)
    textdiff.generate(model, SOURCES, candidates=6, rescorer=twin)
    assert read == [4, 4]
    read.clear()
    textdiff.generate(twin, SOURCES, candidates=3, batch_size=6)
    assert read == [2, 2]


def test_texts_without_sources(unconditional, tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("babbler")
    run_training(folder, **files, data__text_column="target", model__network__system="autoregressive")
    babbler, free = (textdiff.load(one / "model", device="cpu") for one in (folder, unconditional))
    made = textdiff.generate(free, num_samples=3, candidates=4, rescorer=babbler, return_dict=True)
    scores = log_probs(babbler, None, made.candidates)
    assert [known[text] for text, known in zip(made.texts, scores, strict=True)] == [
        max(known.values()) for known in scores
    ]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "rescorer chooses among candidates: give candidates=2"),
        ({"candidates": 2, "utility": "bleu"}, "utility and rescorer both choose"),
    ],
)
def test_refused_requests(model, twin, options, match):
    with pytest.raises(ValueError, match=match):
        textdiff.generate(model, SOURCES, rescorer=twin, **options)


def test_refused_models(model, twin, unconditional):
    with pytest.raises(ValueError, match="know but a bound of a likelihood; give an autoregressive one"):
        textdiff.generate(model, SOURCES, candidates=2, rescorer=model)
    with pytest.raises(ValueError, match="trained with sources, the model that writes without them"):
        textdiff.generate(unconditional / "model", num_samples=2, candidates=2, rescorer=twin)
    with pytest.raises(ValueError, match="rescorer: give a loaded model, not 'twin'"):
        generate_texts(model, SOURCES, candidates=2, rescorer="twin")
    with pytest.raises(ValueError, match="rescorer is for texts that are written on"):
        textdiff.infill(model, ["The ___ ."], SOURCES[:1], candidates=2, rescorer=twin)
    with pytest.raises(ValueError, match="no_such_model"):
        textdiff.generate(model, SOURCES, candidates=2, rescorer="no_such_model")


def test_command_line(trained, model, twin, folder, tmp_path, capsys):
    file = write_rows(tmp_path / "test.jsonl", [{"source": s, "target": "Rain."} for s in SOURCES])
    asked = [str(trained / "model"), str(file), "--candidates", "4", "--rescorer", str(folder)]
    commands.main(["summarize", *asked])
    texts = textdiff.generate(model, SOURCES, candidates=4, rescorer=twin)
    assert capsys.readouterr().out.splitlines() == [" ".join(text.splitlines()) for text in texts]
    commands.main(["evaluate", *asked, "--metric", "rouge"])
    assert json.loads(capsys.readouterr().out)["rougeL"] >= 0
    with pytest.raises(SystemExit, match="textdiff: rescorer chooses among candidates"):
        commands.main(["summarize", *asked[:2], *asked[4:]])
    with pytest.raises(SystemExit, match="--rescorer is for --metric rouge, not nll"):
        commands.main(["evaluate", *asked[:2], *asked[4:]])


def test_a_source_prefix_of_its_own(twin, monkeypatch):
    """Each model reads sources as it was trained to."""
    bare = log_probs(twin, SOURCES, GROUPS)
    monkeypatch.setattr(twin, "config", replace(twin.config, source_prefix="tell: "))
    assert log_probs(twin, [f"tell: {s}" for s in SOURCES], GROUPS) != bare
    told = log_probs(twin, SOURCES, GROUPS)
    monkeypatch.setattr(twin, "config", replace(twin.config, source_prefix=""))
    assert told == log_probs(twin, [f"tell: {s}" for s in SOURCES], GROUPS)
