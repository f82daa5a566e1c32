"""What users get wrong ends in one line that says what, where and what to do; nothing is lost."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from conftest import run_training
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import textdiff
from textdiff import commands, storage
from textdiff.control import Contain, SequenceClassifier
from textdiff.data import TextData
from textdiff.pretrained import read_network
from textdiff.tokenizer import Tokenizer

SOURCE = "Ashbury beat Norwick 34 to 12 in the final. The final was held in Tamford."


@pytest.fixture(scope="module")
def model(trained):
    return textdiff.load(trained / "model", device="cpu")


def refused(match, call, *args, **options):
    """The call ends the program with one line that matches."""
    with pytest.raises(SystemExit, match=match) as stop:
        call(*args, **options)
    message = str(stop.value)
    assert message.startswith("textdiff: ") and "\n" not in message and len(message) < 600


def refused_files(tmp_path, match, content, **options):
    """Training on a file of this content (bytes) is refused."""
    path = tmp_path / options.pop("name", "train.jsonl")
    path.write_bytes(content)
    refused(match, run_training, tmp_path / "run", data__train_file=path, **options)


ROWS = b'{"source": "a b c", "target": "a"}\n' * 30


@pytest.mark.parametrize(
    ("match", "content"),
    [
        (r"train.jsonl: no known pair of columns among \['text1'\]; set text_column", b'{"text1": "a"}'),
        ("train.jsonl.*no .*rows; give a larger file", b""),
        (r"train.jsonl, row 31: .*'target'.* is NoneType", ROWS + b'{"source": "a", "target": null}'),
        (r"train.jsonl, row 31: no column 'target' among \['source'\]", ROWS + b'{"source": "a"}'),
        (
            r"train.jsonl, line 31: .*utf-8.*; correct the file",
            ROWS + b'{"source": "\xff", "target": "a"}',
        ),
        (r"train.jsonl, line 31: .*; correct the file", ROWS + b"{'source"),
        (
            r"rows have an empty text, first \[1, 3, .*; remove",
            b'{"source": "", "target": "a"}\n' * 9,
        ),
    ],
)
def test_files(tmp_path, match, content):
    refused_files(tmp_path, match, content)


@pytest.mark.parametrize(
    ("name", "match", "line"),
    [
        ("train.csv", "train.csv, row 3: more fields than columns; put quotes", b"one, two, three\n"),
        ("train.csv", "train.csv, line 4: .*; correct the file", b'"Good" news,good\n'),
        ("train.tsv", "train.tsv, line 4: .*; correct the file", b'"Good" news\tgood\n'),
    ],
)
def test_tables(tmp_path, name, match, line):
    separator = b"," if name.endswith("csv") else b"\t"
    head, row = separator.join((b"text", b"summary")) + b"\n", separator.join((b"a b", b"a")) + b"\n"
    refused_files(tmp_path, match, head + row * 2 + line + row * 30, name=name)


def test_texts_alone_for_a_summarizer(tmp_path, capsys):
    """Said before a tokenizer is trained."""
    path = tmp_path / "my.txt"
    path.write_text("One two three four.\n" * 60)
    match = r"my.txt holds texts alone.*give pairs .*--data.text_column.*--config unconditional"
    refused(match, run_training, tmp_path, "--config", "summarization", data__train_file=path)
    assert "tokenizer" not in capsys.readouterr().out


def test_other_files(tmp_path):
    refused_files(tmp_path, "unknown extension '.docx'; use one of .jsonl", ROWS, name="train.docx")
    refused_files(tmp_path, r"no columns \('nope', None\) among", ROWS, data__text_column="nope")
    refused(
        "no such file: .*none.jsonl", run_training, tmp_path, data__train_file=tmp_path / "none.jsonl"
    )
    refused("data: give either dataset_name or train_file", run_training, tmp_path)
    refused(
        "cannot load data set 'no/such'.*check the name",
        run_training,
        tmp_path,
        data__dataset_name="no/such",
    )


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("data.nope", {"data__nope": 3}),
        ("model.network.depht", {"model__network__depht": 3}),
        ("trainer.max_steps.*three", {"trainer__max_steps": "three"}),
        ("'embeding'.*choose one of: embedding", {"model__network__process": "embeding"}),
        ("scal", {"model__network__process": "{name: embedding, scal: 2}"}),
        ("'gumble'.*choose one of: .*gumbel", {"model__network__schedule": "gumble"}),
        ("'adam'.*choose one of: adamw, muon", {"model__optimizer": "adam"}),
        ("'diffuse'.*diffusion, autoregressive", {"model__network__system": "diffuse"}),
        ("'ddpm'.*ancestral, ddim, renoise", {"model__generation": "{sampler: ddpm}"}),
        ("'topk'.*top_k", {"model__generation": "{decoder: topk}"}),
        ("unknown option sampller; .*sampler", {"model__generation": "{sampller: ddim}"}),
        ("steps must be at least 1, not 0", {"model__generation": "{steps: 0}"}),
        (
            "guidance_scale must be a finite .* nan",
            {"model__generation": "{guidance_scale: .nan}", "model__validation_examples": 0},
        ),
        ("steps must be a whole .* True", {"model__generation": "{steps: true}"}),
        ("width 32 must be a multiple of", {"model__network__heads": 3}),
        ("heads must be at least 1, not 0", {"model__network__heads": 0}),
        ("depth must be at least 1, not 0", {"model__network__depth": 0}),
        ("self_conditioning must be between 0 and 1, not 7", {"model__network__self_conditioning": 7}),
        ("dropout must be between 0 and 1, not -0.1", {"model__network__dropout": -0.1}),
        ("validation_examples must be at least 0, not -1$", {"model__validation_examples": -1}),
        ("report.examples must be at least 0, not -1$", {"report__examples": -1}),
        ("report.show must be at least 0, not -2$", {"report__show": -2}),
        ("max_train_examples=-1: give at least 1", {"data__max_train_examples": -1}),
        ("length_weight must be at least 0, not -1", {"model__network__length_weight": -1}),
        ("length_weight must be at least 0, not nan", {"model__network__length_weight": ".nan"}),
        ("ema_decay must be .* below 1, not 2.0", {"model__ema_decay": 2.0}),
        ("max_steps or max_epochs is 0: nothing would", {"trainer__max_steps": 0}),
        (
            "max_epochs: a stream does not say how many steps an epoch has, .*give --trainer.max_steps",
            {"data__streaming": "true", "trainer__max_steps": -1, "trainer__max_epochs": 2},
        ),
        ("val_check_interval is 0: .*limit_val_batches 0", {"trainer__val_check_interval": 0}),
        ("log_every_n_steps is -1: give 1 or more$", {"trainer__log_every_n_steps": -1}),
        ("vocab_size=100 is too small", {"data__vocab_size": 100}),
        ("batch_size=0: give at least 1", {"data__batch_size": 0}),
        ("max_target_length=1: give at least 2", {"data__max_target_length": 1}),
        ("data.conditioning", {"data__conditioning": "suffix"}),
        ("ckpt_path .*missing", {"ckpt_path": "no/such.ckpt"}),
    ],
)
def test_flags(tmp_path, files, match, options):
    """Before training: a misspelt sampler must not wait for the first validation."""
    options = {**files, "model__validation_examples": 2, **options}
    refused(match, run_training, tmp_path, **options)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("match", "text"),
    [
        ("model.*networks", "model: {networks: {width: 32}}"),
        ("modle", "modle: {network: {width: 3}}"),
        ("callbacks.*EarlyStoping", "trainer: {callbacks: [{class_path: EarlyStoping}]}"),
        ("config", "model: ["),
    ],
)
def test_config_files(tmp_path, files, match, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    refused(match, run_training, tmp_path, "--config", str(path), **files)


def test_unknown_config(tmp_path):
    refused("no configuration 'x.yml'; a file, or one of: ", run_training, tmp_path, "--config", "x.yml")


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("source 1 is empty", {"sources": ["a", " "]}),
        ("one string", {"sources": "a"}),
        ("writes from sources", {"num_samples": 2}),
        ("length must be at least 1, not 0", {"sources": ["a"], "length": 0}),
        ("length 99 is beyond the model's 24 positions", {"sources": ["a"], "length": 99}),
        ("steps must be at least 1, not 0", {"sources": ["a"], "steps": 0}),
        ("candidates must be at least 1", {"sources": ["a"], "candidates": 0}),
        ("batch_size must be at least 1", {"sources": ["a"], "batch_size": -1}),
        ("num_samples must be at least 1", {"num_samples": 0}),
        ("num_samples is for texts from nothing", {"sources": ["a"], "num_samples": 2}),
        ("seed must be between", {"sources": ["a"], "seed": -1}),
        ("seed must be between .* not 'x'", {"sources": ["a"], "seed": "x"}),
        ("steps must be a whole number, not 2.5", {"sources": ["a"], "steps": 2.5}),
        ("sources and prompts are texts, not None", {"sources": ["a", None]}),
        ("dtype 'int8': choose one of float32", {"sources": ["a"], "dtype": "int8"}),
        ("utility 'rouge' is unknown", {"sources": ["a"], "candidates": 2, "utility": "rouge"}),
        ("utility 'rouge' is unknown", {"sources": ["a"], "utility": "rouge"}),
        ("utility chooses among candidates: give candidates=2", {"sources": ["a"], "utility": "bleu"}),
        ("candidates must be a whole number, not None", {"candidates": None}),
        ("batch_size must be a whole number, not None", {"batch_size": None}),
        ("a list of texts, not dict", {"sources": {"a": "the text"}}),
        ("a list of texts, not DataFrame", {"sources": pandas.DataFrame({"text": ["a"]})}),
        ("a list of texts, not int", {"sources": 5}),
        ("a list of texts, not ndarray", {"sources": np.array("a")}),
        ("seed must be between .* not np.float64", {"sources": ["a"], "seed": np.float64(2)}),
        ("controls: give a list", {"controls": 5}),
        ("controls: give a list", {"controls": (one for one in [Contain("a")])}),
        ("'ddpm'.*ancestral", {"sources": ["a"], "sampler": "ddpm"}),
        ("'topk'.*top_k", {"sources": ["a"], "decoder": "topk"}),
        ("temperature must be finite and above 0", {"sources": ["a"], "temperature": 0}),
        ("temperature must be a finite number, not nan", {"sources": ["a"], "temperature": float("nan")}),
        ("guidance_scale must be a finite number, not nan", {"guidance_scale": float("nan")}),
        ("guidance_scale must be a finite number, not -inf", {"guidance_scale": -float("inf")}),
        ("guidance_scale must be a finite number, not None", {"guidance_scale": None}),
        ("length_quantile must be a finite number, not '0.5'", {"length_quantile": "0.5"}),
        ("length must be a whole number, not 2.5", {"length": 2.5}),
        ("batch_size must be a whole number, not 2.5", {"batch_size": 2.5}),
        ("steps must be a whole number, not True", {"steps": True}),
        (r"no name in \{'tau': 0.5\}", {"sources": ["a"], "sampler": {"tau": 0.5}}),
        ("unknown option step; this model takes", {"sources": ["a"], "step": 3}),
        ("2 prompts", {"sources": ["a"], "prompt": ["a", "b"]}),
        ("fills the whole length", {"sources": ["a"], "prompt": ["rain " * 9], "length": 5}),
    ],
)
def test_requests(model, match, options):
    options = options if "num_samples" in options else {"sources": ["a"]} | options
    with pytest.raises(ValueError, match=match) as error:
        textdiff.generate(model, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("candidates", [1, 2])
def test_an_unknown_utility_costs_no_text(model, monkeypatch, candidates):
    monkeypatch.setattr(model, "write", lambda _: pytest.fail("written in vain"))
    with pytest.raises(ValueError, match="utility 'meteor' is unknown; choose one of rougeL, bleu"):
        textdiff.generate(model, ["a"], candidates=candidates, utility="meteor")


def test_saved_options(model):
    """Of a config.json that somebody has edited."""
    changed = copy.copy(model)
    changed.config = replace(model.config, generation={"guidance_scale": float("nan")})
    with pytest.raises(ValueError, match="guidance_scale must be a finite number"):
        textdiff.generate(changed, ["a"])
    assert textdiff.generate(changed, ["a"], guidance_scale=2, seed=1)
    changed.config = replace(model.config, generation=model.config.generation | {"sampler": None})
    assert textdiff.generate(changed, ["a"], seed=1) == textdiff.generate(model, ["a"], seed=1)


def test_sources_for_a_model_without(unconditional):
    with pytest.raises(ValueError, match="trained without sources"):
        textdiff.generate(unconditional / "model", ["a"])
    with pytest.raises(ValueError, match="guidance_scale needs a model with a source encoder"):
        textdiff.generate(unconditional / "model", num_samples=1, guidance_scale=2.0)


def test_a_very_long_source(model):
    with pytest.warns(UserWarning, match="1 of 2 sources: only the first 48 tokens are read"):
        texts = textdiff.generate(model, [f"{SOURCE} " + "word " * 100_000, "Rain."])
    with pytest.warns(UserWarning):
        assert texts == textdiff.generate(model, [SOURCE + " and more" * 50, "Rain."])


def test_command_line(trained, tmp_path):
    model, file = str(trained / "model"), tmp_path / "file.txt"
    refused("No such file.*file.txt", commands.main, ["generate", model, str(file)])
    file.write_bytes(b"caf\xe9\n")
    refused("file.txt is not UTF-8 at byte 3; convert it", commands.main, ["generate", model, str(file)])
    file.write_bytes(b"\n \n")
    refused("file.txt holds no text", commands.main, ["generate", model, str(file)])
    file.write_bytes(b"one\n\nthree\n\n")
    refused("file.txt, line 2: empty; remove it", commands.main, ["generate", model, str(file)])
    table = tmp_path / "n.jsonl"
    for row, kind in ((b"5\n", "int"), (b"null\n", "NoneType")):
        table.write_bytes(row)
        for command in ("summarize", "generate"):
            refused(
                rf"n.jsonl, row 1: no known column among \['{kind}'\]",
                commands.main,
                [command, model, str(table)],
            )
    device = ["generate", model, str(file), "--device"]
    refused("device 'nowhere' is not here", commands.main, [*device, "nowhere"])
    nan = ["generate", model, str(table), "--guidance_scale", "nan"]
    table.write_text('{"source": "a"}\n')
    refused("guidance_scale must be a finite number, not nan", commands.main, nan)
    refused("give a FILE with one source per line", commands.main, ["generate", model])
    refused("no model at 'no/such'", commands.main, ["generate", "no/such", str(file)])
    refused("is not a textdiff model directory: config.json", commands.main, ["generate", str(tmp_path)])


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (
            r"--sampler: .*'\{name: renoise, tau: 0.3' is no YAML",
            ["--sampler", "{name: renoise, tau: 0.3"],
        ),
        (r"--decoding: .* is no YAML", ["--decoding", "{name: beam, beams: 2}}"]),
        (r"--decoder: .*: no name in", ["--decoder", "{k: 3}"]),
        (r"--sampler: .*: no name in", ["--sampler", "{name: [renoise]}"]),
        ("'tau:0.3'", ["--sampler", "{name: renoise, tau:0.3}"]),
        ("argument --steps: invalid int value: 'x'; see textdiff generate --help", ["--steps", "x"]),
        ("unrecognized arguments: --stepz 3; see textdiff generate --help", ["--stepz", "3"]),
        (
            "--control_weight is for --must_contain, --must_avoid .*: leave it out",
            ["--control_weight", "2"],
        ),
        ("--control_weight is for ", ["--control_weight", "1", "--min_length", "3"]),
    ],
)
def test_options_of_commands(trained, tmp_path, match, options):
    file = tmp_path / "a.txt"
    file.write_text("Rain.\n")
    refused(match, commands.main, ["generate", str(trained / "model"), str(file), *options])


def test_a_misspelt_local_path_is_not_asked_of_the_hub(trained, tmp_path, monkeypatch):
    def asked(*args, **options):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.chdir(trained)
    for name in (f"{trained}/modle", "./checkpoints/modle", str(trained / "model" / "config.json")):
        with pytest.raises(ValueError, match=f"no model at '{name}': no such directory in "):
            textdiff.load(name)
    for name in ("owner/name", "checkpoints/modle"):  # an owner may have the name of a folder here
        with pytest.raises(
            ValueError, match=f"no model at '{name}': not a local directory, and the hub says"
        ):
            textdiff.load(name)


CODE = """
from pathlib import Path
Path({trapped!r}).touch()
"""


@pytest.mark.parametrize(
    "load",
    [
        lambda path: SequenceClassifier(path, "good"),
        Tokenizer.load,
        lambda path: read_network(path, None),
    ],
)
def test_code_beside_weights_is_never_run(tmp_path, monkeypatch, load):
    """Nor is anybody asked on standard input, where a pipe could say yes."""
    own = {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Config", None]}
    own |= dict.fromkeys(("AutoModelForMaskedLM", "AutoModelForSequenceClassification"), "code.Config")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    (tmp_path / "code.py").write_text(CODE.format(trapped=str(tmp_path / "trapped")))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *args: asked.append(args) or "y")
    with pytest.raises(ValueError) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value) and "custom code" in str(error.value)
    assert not asked and not (tmp_path / "trapped").exists()


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_model_directories(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(weights)
    for change in ({"more": torch.zeros(2)}, {"length.log_histogram": None}):
        kept = {name: value for name, value in (tensors | change).items() if value is not None}
        save_file(kept, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"do not match \(1 weights, such as (more|length.log_hist)"):
            textdiff.load(folder, device="cpu")
    save_file(tensors, weights, metadata={"format": "pt"})
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*; copy or save it again"):
        textdiff.load(folder)
    weights.write_bytes(pickle.dumps({"weight": Trap(tmp_path / "trapped")}))
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or not a safetensors file"):
        textdiff.load(folder)
    torch.save({"weight": Trap(tmp_path / "trapped")}, weights)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or not a safetensors file"):
        textdiff.load(folder)
    assert not (tmp_path / "trapped").exists()
    weights.write_bytes(whole)
    config.write_text(config.read_text().replace('"width": 32', '"width": 64'))
    with pytest.raises(ValueError) as error:
        textdiff.load(folder)
    assert "\n" not in str(error.value)
    config.write_text('{"model_type": "bert"')
    with pytest.raises(ValueError, match=r"config.json is not a textdiff configuration"):
        textdiff.load(folder)


def test_checkpoints(trained, files, tmp_path):
    path = tmp_path / "x.ckpt"
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = run_training, tmp_path, "--ckpt_path", str(path)
    refused("ckpt_path .*x.ckpt: .*damaged.*; give a file of a run's checkpoints", *again, **files)
    path.write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    refused("x.ckpt: .*more than plain weights", *again, **files)
    torch.save({"position": Trap(tmp_path / "trapped")}, path)
    refused("x.ckpt: .*more than plain weights", *again, **files)
    refused("x.ckpt: .*more than plain weights", *again, "--weights_only", "false", **files)
    assert not (tmp_path / "trapped").exists()
    torch.save({"state_dict": {}}, path)
    refused("x.ckpt: not written by textdiff", *again, **files)


def test_loss_that_is_not_a_number(tmp_path, files):
    match = r"the loss is (nan|inf) at step \d+: lower --model.learning_rate"
    refused(match, run_training, tmp_path, **files, model__learning_rate=1e30, trainer__max_steps=40)


def full(weights, path, **_):
    """A disk that is full after some bytes, as the library has it."""
    with open(path, "wb") as file:
        file.write(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_full_disk_leaves_the_earlier_model(tmp_path, files, monkeypatch):
    run_training(tmp_path, **files)
    before = textdiff.generate(tmp_path / "model", [SOURCE])
    monkeypatch.setattr(storage, "save_file", full)
    refused("model.safetensors: .*No space left on device", run_training, tmp_path, **files)
    assert textdiff.generate(tmp_path / "model", [SOURCE]) == before


def test_data_module_directly():
    with pytest.raises(ValueError, match="conditioning='sideways': choose cross or prefix"):
        TextData(train_file="x.jsonl", conditioning="sideways")


def test_a_process_ends_with_one_line(tmp_path):
    """No usage, no traceback, exit code 1; and nothing was trained."""
    command = [sys.executable, "-m", "textdiff.train", "--config", "e2e", "--data.nope", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("textdiff: ") and "--data.nope" in done.stderr
