"""What benchmarks ask and how they count, on tiny models."""

import inspect
import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, flags, run_training, write_rows
from lightning import Callback
from matplotlib.figure import Figure

import textdiff
from textdiff.config import Config
from textdiff.data import TextData
from textdiff.generation import generate_texts
from textdiff.tokenizer import Tokenizer
from textdiff.train import Training
from textdiff.twin import Twin

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import ablation
import characters
import common
import infilling
import latency
import summarization
import unconditional
import update_readme


@pytest.mark.parametrize("levers", [ablation.LEVERS, ablation.TWIN_LEVERS], ids=["diffusion", "twin"])
def test_levers_change_what_exists(levers):
    known = {f"model.network.{field.name}" for field in fields(Config)}
    known |= {f"model.{name}" for name in inspect.signature(Training).parameters}
    assert ablation.DEFAULT in levers
    assert {flag.split("=")[0] for flags in levers.values() for flag in flags} <= known
    assert len(ablation.LEVERS) == len(ablation.TWIN_LEVERS)  # as many trials


def test_levers_by_name_and_new_ones():
    options = SimpleNamespace(system="diffusion", levers=["pointer", "wide: model.network.width=256"])
    assert ablation.levers_of(options) == {
        "default": [],
        "pointer": ["model.network.pointer=true"],
        "wide": ["model.network.width=256"],
    }
    with pytest.raises(SystemExit, match="no lever 'none'"):
        ablation.levers_of(SimpleNamespace(system="diffusion", levers=["none"]))


@pytest.fixture(scope="module")
def twin(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    run_training(folder, **files, model__network__system="autoregressive", data__max_target_length=60)
    return textdiff.load(folder / "model")


@pytest.fixture(scope="module")
def writer(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    run_training(folder, **files, data__max_target_length=60)
    return textdiff.load(folder / "model")


@pytest.mark.parametrize("way", infilling.WAYS)
@pytest.mark.filterwarnings("ignore:.*tokens are read")
def test_gaps_are_as_large_as_what_is_missing(writer, files, way):
    examples = TextData(test_file=str(files["data__validation_file"])).examples("test")[:4]
    tasks = infilling.tasks(writer, examples)
    assert len(tasks) == len(examples)
    for task in tasks:
        assert f"{task.left} {task.missing} {task.right}" == " ".join(task.example.target.split())
        made, (gap,) = infilling.fill(writer, [task], steps=2, **infilling.WAYS[way])
        whole = writer.tokenizer.encode([f"{task.left} {task.missing} {task.right}"])[0]
        assert len(gap) == task.size and len(made.ids[0]) == len(whole) + 1
    row = infilling.score(writer, tasks, 2, steps=2, **infilling.WAYS[way])
    assert row["metrics"]["given_changed"]["mean"] == 0 and row["seeds"] == 2


@pytest.mark.filterwarnings("ignore:.*tokens are read")
def test_the_twin_writes_on_from_the_left_side(twin, files):
    examples = TextData(test_file=str(files["data__validation_file"])).examples("test")[:4]
    for task in infilling.tasks(twin, examples):
        made, (gap,) = infilling.go_on(twin, [task])
        left = twin.tokenizer.encode([task.left])[0]
        assert made.ids[0][: len(left)] == left and len(gap) <= task.size
        assert twin.tokenizer.eos_id not in gap


def test_a_character_is_a_token(tmp_path):
    tokenizer = Tokenizer.load(characters.write_tokenizer(tmp_path))
    assert len(tokenizer) == 29 and len(tokenizer.special_ids) == 2
    text = "a zebra at the zoo"
    (ids,) = tokenizer.encode([text])
    assert len(ids) == len(text) and len(set(ids)) == len(set(text))
    assert tokenizer.decode([[*ids, tokenizer.eos_id]]) == [text]


def test_words_of_samples_are_counted_whole():
    found = characters.spelling(["he of the tha ca", "x of is y"], {"of", "the", "is"})
    assert found["known_words"] == 80  # of, the, tha, of, is: the first and last of a text may be cut
    assert found["word_length"] == 12 / 5


def test_a_picture_of_text_from_nothing(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes))
    metrics = {name: {"mean": 2.0} for name in ("entropy", "judge_perplexity", "distinct_2")}
    rows = [{"system": "data", "metrics": metrics}]
    rows += [{"system": "embedding", "sampler": "ddim", "nfe": n, "metrics": metrics} for n in (4, 8)]
    parts = [{"part": i, "texts": 1, "metrics": metrics} for i in range(3)]
    for long in ({}, {"long": parts}):
        unconditional.plot({"rows": rows, **long}, tmp_path / "plot.png")
    assert [[len(panel.lines) for panel in panels] for panels in drawn] == [[2], [2, 3]]


def test_mauve_by_the_states_of_a_judge():
    """At the last token of every text alone; near 100 for the texts themselves, less for others."""
    texts = [f"the {word} rain of {i} days" for i in range(20) for word in ("late", "soft", "cold")]
    tokenizer = Tokenizer.train(texts, 300)
    torch.manual_seed(0)
    judge = Twin(Config(conditioning="none", width=32, heads=4, depth=1), tokenizer).eval()
    rows = tokenizer.encode(texts)
    found = unconditional.features(judge, rows)
    assert found.shape == (60, 32)
    assert np.array_equal(unconditional.features(judge, rows[7:8])[0], found[7])
    assert not np.allclose(unconditional.features(judge, [rows[7][:-1]])[0], found[7])
    others = [ids[: len(ids) // 2] for ids in rows]
    same, far = (unconditional.mauve_of(judge, some, rows) for some in (rows, others))
    assert same > 95 > 50 > far


def test_models_are_timed_as_their_quality_was_found(tmp_path):
    beam = {"name": "beam", "beams": 4, "length_penalty": 0.6}
    told = {"sampler": "confidence", "steps": 8, "length_quantile": 0.4}
    drawn = told | {"decoder": "sample", "temperature": 0.5, "utility": "rougeL"}
    rows = [
        {"system": "autoregressive", "decoding": "greedy"},
        {"system": "autoregressive", "decoding": beam},
        {"system": "autoregressive", "decoding": {"name": "sample"}, "candidates": 8},
        {"system": "embedding", **told},
        {"system": "embedding", **drawn, "candidates": 8},
        {"system": "embedding", **told, "training": "distilled"},
        {"system": "embedding", **told, "candidates": 3, "rescorer": "autoregressive"},
    ]
    rows = [
        {"candidates": 1, "seeds": 3, "nfe": 9, **row, "metrics": {"rougeL": {"mean": i}}}
        for i, row in enumerate(rows)
    ]
    (tmp_path / "result.json").write_text(json.dumps({"rows": [{"system": "lead"}, *rows]}))
    options = SimpleNamespace(candidates=8, nfe=[8], mbr_nfe=8, rescore=[3], rescore_nfe=[8])
    ways = {
        (name, way)
        for name, system in (("autoregressive", "autoregressive"), ("embedding", "diffusion"))
        for way in latency.ways(SimpleNamespace(system=system), options)
    }
    found = latency.quality(tmp_path / "result.json")
    assert set(found) == ways | {("embedding-distilled", "confidence, 8 steps")}
    assert [one["rougeL"] for one in found.values()] == list(range(7))
    assert [one["options"] for one in found.values()] == [
        {"decoding": "greedy"},
        {"decoding": beam},
        {"decoding": {"name": "sample"}, "candidates": 8},
        told,
        drawn | {"candidates": 8},
        told,
        told | {"candidates": 3, "rescorer": "autoregressive"},
    ]


def test_levers_of_several_seeds_on_one_line(monkeypatch):
    """Gains seed by seed; test texts of the last round alone."""

    def told(number, lever, seed, mean, **more):
        row = {"round": number, "lever": lever, "steps": 9, "seed": seed, "step_seconds": 1}
        return row | {"rougeL": {"4": mean + 1}, "bleu": {"4": mean - 1}, "mean": mean} | more

    test = {"rougeL": {"4": 7.0}, "bleu": {"4": 5.0}}
    rows = [told(1, "default", 0, 20.0), told(1, "wide", 0, 23.0)]
    rows += [told(2, "default", seed, 10.0 * seed, test=test) for seed in (1, 3)]
    rows += [told(2, "wide", seed, 10.0 * seed + seed, test=test) for seed in (1, 3)]
    both = "7.0 ± 0.0 / 5.0 ± 0.0"
    result = {"dataset": "x", "system": "diffusion", "texts": 2, "test_texts": 3, "rows": rows}
    monkeypatch.setattr(update_readme, "results", lambda _: [("stem", result)])
    monkeypatch.setattr(update_readme, "origin", lambda _: "origin")
    lines = update_readme.TABLES["ablations"]().splitlines()
    lines = [line for line in lines if line.startswith(("| d", "| w"))]
    assert lines == [
        "| default | 9 | 0 | 1.00 | 21.0 / 19.0 | +0.0 |  |",
        "| wide | 9 | 0 | 1.00 | 24.0 / 22.0 | +3.0 |  |",
        f"| default | 9 | 1, 3 | 1.00 | 21.0 ± 10.0 / 19.0 ± 10.0 | +0.0 | {both} |",
        f"| wide | 9 | 1, 3 | 1.00 | 23.0 ± 11.0 / 21.0 ± 11.0 | +2.0 (+1.0 to +3.0) | {both} |",
    ]


def test_a_budget_tells_the_steps_that_were_made(tmp_path, files, monkeypatch):
    """A limit of time ends a training early."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 13

    monkeypatch.setattr(common.cli, "EXTRA_CALLBACKS", [Stop()])
    told = {name.replace("__", "."): value for name, value in files.items()}
    budget = common.train_for(flags(TINY | told), 1, tmp_path / "x", 40)[1]
    assert budget["steps"] == 13 and budget["asked"]["steps"] == 40


def test_fewer_texts_alone(monkeypatch):
    """Time is counted by the texts that were written."""
    sizes = []

    def generate(model, sources, *, batch_size, **options):
        sizes.append((batch_size, len(sources)))
        return SimpleNamespace(nfe=1, seconds=3.0 * len(sources))

    data = SimpleNamespace(examples=lambda split: [SimpleNamespace(source="x")] * 6)
    model = SimpleNamespace(system="autoregressive", device=torch.device("cpu"))
    for name, value in {"load": lambda folder: model, "open_data": lambda *_, **__: data}.items():
        monkeypatch.setattr(latency, name, value)
    monkeypatch.setattr(latency, "generate_texts", generate)
    command = "latency.py --name x --test_file x --models runs/autoregressive/model --rounds 1 --texts 6"
    for more, alone in ((["--texts_alone", "2"], 2), ([], 6)):
        monkeypatch.setattr(sys, "argv", [*command.split(), *more])
        sizes.clear()
        result = latency.run(latency.arguments())
        assert set(sizes) == {(1, alone), (32, 6)}
        assert {row["seconds_per_text"]["median"] for row in result["rows"]} == {3.0}
        assert result["texts"] == 6 and result.get("texts_alone", 6) == alone
    sizes.clear()
    monkeypatch.setattr(sys, "argv", [*command.split(), "--candidates", "4"])
    latency.run(latency.arguments())
    assert {(4, 6), (128, 6)} <= set(sizes)  # all candidates of a text at once


def test_training_seeds_of_summaries_share_a_table(monkeypatch):
    """A row of every file on one line, with the lengths each model chose; the first run keeps its own."""

    def told(name, ahead, quantile):
        metrics = {key: {"mean": ahead} for key in ("rouge1", "rougeL", "bleu")}
        row = {"system": "embedding", "sampler": "confidence", "nfe": 4, "metrics": metrics}
        row["rougeL_ahead_of_greedy"] = {"difference": ahead, "low": ahead - 1, "high": ahead + 1}
        rows = [row | {"length_quantile": quantile}]
        result = {"dataset": name, "test_examples": 9, "train_steps": ["9"], "rows": rows}
        return f"summarization-{name}", result | {"budget": {"embedding": {"steps": 9}}}

    found = [
        told("x", 1.0, 0.4),
        told("x-seed10", -3.0, 0.5),
        told("x-seed4", 2.0, 0.3),
        told("y", 5.0, 0.4),
    ]
    monkeypatch.setattr(update_readme, "results", lambda _: found)
    monkeypatch.setattr(update_readme, "origin", lambda result: f"origin of {result['dataset']}")
    page = update_readme.summaries()
    assert re.findall(r"\*\*(.*?)\*\*", page) == ["x", "x", "y"]
    assert "seeds 4, 10:" in page
    assert re.findall("origin of (.*)", page) == ["x", "x-seed4", "x-seed10", "y"]
    ahead = "+2.0 [+1.0, +3.0] / -3.0 [-4.0, -2.0]"
    values = " | ".join(["2.0 / -3.0"] * 3)
    ways = "confidence, lengths at 0.3 / confidence"
    assert f"| embedding | {ways} | 4 | {values} | {ahead} |" in page
    assert re.findall("results/.*png", page) == [f"results/summarization-{name}.png" for name in "xy"]
    found[2][1]["rows"][0]["system"] = "masked"
    with pytest.raises(ValueError, match="x: the files of its seeds have other rows"):
        update_readme.summaries()


def test_quality_stands_beside_the_time_of_the_same_way(monkeypatch):
    """Single texts in few numbers of steps; several where they were timed."""
    singles = [("embedding", {}), ("embedding", {"training": "distilled"})]
    best = "confidence, best of 3 by the twin"
    rows: list[dict] = [{"system": "lead"}, {"system": "copy"}]
    rows += [{"system": "autoregressive", "decoding": "greedy", "nfe": 9, "candidates": 1}]
    rows += [{"system": "autoregressive", "decoding": "beam", "nfe": 9, "candidates": 1}]
    for system, more in singles:
        told = {"system": system, "sampler": "confidence", "nfe": 4, "candidates": 1, **more}
        rows += [told | {"steps": steps} for steps in (2, 4, 8, 16)]
        several = told | {"candidates": 3, "rescorer": "autoregressive"}
        rows += [several | {"steps": steps} for steps in (2, 4)]
    for i, row in enumerate(rows):
        row["metrics"] = {key: {"mean": i} for key in ("rougeL", "bleu")}
    ways = [("autoregressive", "greedy"), ("embedding-distilled", "confidence, 16 steps")]
    ways += [("embedding-distilled", f"confidence, {n} steps, best of 3 by the twin") for n in (4, 2)]
    times = [
        {"model": model, "how": way, "batch_size": size, "seconds_per_text": {"median": (i + 1) / size}}
        for size in (32, 1)
        for i, (model, way) in enumerate(ways)
    ]
    files = {"summarization-x-distilled": rows, "latency-x": times}
    monkeypatch.setattr(update_readme, "load", lambda name: {"rows": files[name]})
    lines = update_readme.headline("x").splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["lead", "", "", "0.0", "0.0", "", "", ""],
        ["autoregressive", "greedy", "", "2.0", "2.0", "", "1000", "31"],
        ["autoregressive", "beam", "", "3.0", "3.0", "", "", ""],
        ["embedding", "confidence", "4", "5.0", "5.0", "", "", ""],
        ["embedding", "confidence", "16", "7.0", "7.0", "", "", ""],
        ["embedding, distilled", "confidence", "4", "11.0", "11.0", "", "", ""],
        ["embedding, distilled", "confidence", "16", "13.0", "13.0", "", "2000", "62"],
        ["embedding, distilled", best, "2", "14.0", "14.0", "", "4000", "125"],
        ["embedding, distilled", best, "4", "15.0", "15.0", "", "3000", "94"],
    ]


@pytest.mark.parametrize("worth", [{}, {"rougeL": 50.0}], ids=["steps", "quality"])
def test_a_picture_of_time(tmp_path, monkeypatch, worth):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes))
    seconds = {"seconds_per_text": {"median": 0.2, "low": 0.1, "high": 0.3}}
    ways = (("embedding", "2 steps"), ("embedding", "4 steps"), ("autoregressive", "greedy"))
    rows = [
        {"system": system, "model": system, "how": how, "batch_size": size, "nfe": 2, **seconds, **worth}
        for system, how in ways
        for size in (1, 32)
    ]
    latency.plot({"rows": rows}, tmp_path / "plot.png")
    (panels,) = drawn
    assert [[len(group) for group in panel.containers] for panel in panels] == [[3, 3], [3, 3]]
    (curve, _, (bars,)), _ = panels[0].containers
    assert list(curve.get_xdata()) == [200, 200]
    assert np.allclose([segment[:, 0] for segment in bars.get_segments()], [[100, 300]] * 2)
    assert list(curve.get_ydata()) == ([50, 50] if worth else [2, 2])


def test_some_rows_from_everywhere():
    assert common.spaced(list(range(10)), 3) == [0, 3, 6] and common.spaced([1, 2], 5) == [1, 2]


def test_candidates_of_the_twin_are_drawn(twin, monkeypatch):
    made = generate_texts(twin, ["A rainy day."], candidates=4)
    assert len(set(made.candidates[0])) > 1
    cool = {"decoding": {"name": "sample", "temperature": 1e-3}}
    monkeypatch.setattr(twin.config, "generation", cool)
    made = generate_texts(twin, ["A rainy day."], candidates=4)
    assert len(set(made.candidates[0])) == 1  # as saved
    with pytest.raises(ValueError, match="written by beam are all alike"):
        generate_texts(twin, ["A rainy day."], candidates=2, decoding="beam")


def test_data_are_opened_before_anything_is_trained(tmp_path, monkeypatch):
    """With the columns that flags and configuration name; what is missing is said at once."""
    file = write_rows(tmp_path / "a.jsonl", [{"body": f"{i}", "headline": "b"} for i in range(40)])
    call = ["summarization.py", "--name", "x", "--runs", str(tmp_path)]
    call += [word for split in ("train", "test") for word in (f"--{split}_file", str(file))]
    named = ["data.text_column=body", "data.summary_column=headline"]
    monkeypatch.setattr(sys, "argv", [*call, "--set", *named])
    assert summarization.open_data(summarization.arguments()).examples("test")[1].source == "1"
    for wrong, message in ((call, "no known pair of columns"), (call[:-2], "no test data")):
        monkeypatch.setattr(sys, "argv", wrong if wrong is call else [*wrong, "--set", *named])
        with pytest.raises(SystemExit, match=f"summarization: .*{message}"):
            summarization.run(summarization.arguments())


FEW = ["--distill_only", "--from_twin", "--distill_twin"]
SLOW = pytest.param(["--distill_start"], marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", [FEW, SLOW], ids=["few", "all"])
def test_a_benchmark_of_summaries_run_whole(files, tmp_path, monkeypatch, kind):
    """Every system that was asked for is trained and has its rows, and says how it was trained."""
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "path", list(sys.path))
    told = {f"--{key.removeprefix('data__')}": path for key, path in files.items()}
    told |= {"--config": "arxiv_titles", "--name": "x", "--runs": tmp_path / "runs", "--steps": 4}
    told |= {"--nfe": 2, "--seeds": 1, "--samplers": "confidence", "--candidates": 1, "--rescore": 2}
    told |= {"--rescore_nfe": 2, "--test_file": files["data__validation_file"]}
    setting = TINY | {"data.max_train_examples": 8, "trainer.enable_progress_bar": "false"}
    del setting["report.examples"], setting["model.validation_examples"]
    words = [word for pair in told.items() for word in map(str, pair)] + ["--distill", *kind]
    words += ["--set", *(f"{key}={value}" for key, value in setting.items())]
    monkeypatch.setattr(sys, "argv", ["summarization.py", *words, "--distill_examples", "8"])
    summarization.main()
    result = json.loads((tmp_path / "results" / "summarization-x.json").read_text(encoding="utf-8"))
    ways = {(row["system"], row.get("training")) for row in result["rows"]}
    begun = [row.get("start") for row in result["rows"] if row["system"] == "embedding"]
    more = {"autoregressive-distilled"} if kind is FEW else {"embedding"}
    assert result["budget"].keys() == {"autoregressive", "embedding-distilled"} | more
    people = {("lead", None), ("copy", None), ("autoregressive", None)}
    others = {("autoregressive", "distilled")} if kind is FEW else {("embedding", None)}
    assert ways == people | {("embedding", "distilled")} | others
    # of every process one text, and the best of two
    assert begun == (["from the twin"] * 2 if kind is FEW else [None] * 4)
    assert all(one["steps"] == 4 for one in result["budget"].values())
