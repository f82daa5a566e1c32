"""Training: exact resume, averaging, schedules, fine-tuning, logs, several processes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from math import isfinite

import lightning as L
import pytest
import torch
from conftest import TINY, flags, run_training, write_rows
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from textdiff import cli, hardware, load
from textdiff.data import TextData
from textdiff.optimizer import linear_decay
from textdiff.train import Training

EXACT = ("state_dict", "optimizer_states", "lr_schedulers", "position", "epoch", "global_step")


class CtrlC(L.Callback):
    """The user stops the run during one of its batches, counted from 1."""

    def __init__(self, number):
        self.position = number - 1

    def on_train_batch_start(self, trainer, module, batch, _):
        if batch["position"] == self.position:
            signal.raise_signal(signal.SIGINT)


def checkpoint(folder, name="last"):
    """A checkpoint; with nothing but plain weights and numbers in it."""
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def differences(a, b, path=""):
    """Where two nested structures of tensors and numbers differ."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]


def interrupt(folder, number, **options):
    """Train until Ctrl-C in the given batch; the checkpoint that this leaves."""
    with pytest.raises(SystemExit):
        run_training(folder, callbacks=[CtrlC(number)], **options)
    return folder / "checkpoints" / "interrupted.ckpt"


# an epoch has 5 batches: the stops are within one, at its end, at a validation, and within a step
RUNS = {
    "muon": ({"model__optimizer": "muon"}, (2, 4, 5)),
    "adamw, accumulated": (
        {
            "model__optimizer": "adamw",
            "trainer__accumulate_grad_batches": 2,
            "trainer__val_check_interval": 7,
        },
        (1, 4, 6),
    ),
    "streaming": (
        {"data__streaming": "true", "data__shuffle_buffer": 24},
        (4,),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_resume_is_exact(tmp_path, files, name):
    options, stops = RUNS[name]
    options = {**files, **options, "model__network__dropout": 0.1, "trainer__max_steps": 8}
    run_training(tmp_path / "whole", **options)
    whole = checkpoint(tmp_path / "whole")
    assert whole["global_step"] == 8
    for number in stops:
        folder = tmp_path / f"{number}"
        path = interrupt(folder, number, **options)
        assert checkpoint(folder, "interrupted")["position"] == number
        run_training(folder, "--ckpt_path", str(path), **options)
        again = checkpoint(folder)
        assert not [x for key in EXACT for x in differences(whole[key], again[key], key)], number


def test_resume_from_a_validation_within_a_step(tmp_path, files):
    """Its checkpoint holds the gradients of the batches that no step has used yet."""
    steps = {"trainer__max_steps": 6, "trainer__accumulate_grad_batches": 2}
    options = {**files, **steps, "trainer__val_check_interval": 3}
    run_training(tmp_path / "whole", **options)
    interrupt(tmp_path / "part", 8, **options)
    saved = checkpoint(tmp_path / "part")
    assert saved["position"] == 6 and saved["global_step"] == 3 and saved["pending"]
    run_training(tmp_path / "part", "--ckpt_path", f"{tmp_path}/part/checkpoints/last.ckpt", **options)
    whole, again = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "part")
    assert not [x for key in EXACT for x in differences(whole[key], again[key], key)]
    models = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "part")]
    assert not differences(*models)
    assert {path.name for path in (tmp_path / "part").glob("*.csv")} == {"metrics-1.csv", "metrics.csv"}


def test_a_finished_run_goes_on_from_its_end(tmp_path, files):
    """Not from the last validation before it."""

    class First(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            self.steps = [*getattr(self, "steps", []), trainer.global_step]

    options, first = {**files, "trainer__val_check_interval": 3}, First()
    run_training(tmp_path, **options, trainer__max_steps=4)
    saved = checkpoint(tmp_path)
    assert saved["global_step"] == saved["position"] == 4
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    run_training(tmp_path, "--ckpt_path", last, **options, trainer__max_steps=6, callbacks=[first])
    assert first.steps == [4, 5] and checkpoint(tmp_path)["position"] == 6


def test_a_model_of_an_earlier_run_is_kept(tmp_path, files, capsys):
    for seed in (0, 1):
        run_training(tmp_path, **files, model__seed=seed)
    assert f"earlier run in {tmp_path} is now {tmp_path / 'model-1'}" in capsys.readouterr().out
    new, old = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "model-1"))
    assert differences(new, old)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    run_training(tmp_path, "--ckpt_path", str(checkpoint), **files, model__seed=1)
    assert (tmp_path / "model-1").exists() and not (tmp_path / "model-3").exists()


def test_a_model_of_an_earlier_run_outlives_a_run_in_two_parts(tmp_path, files):
    run_training(tmp_path, **files)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    path = interrupt(tmp_path, 3, **files, model__seed=1)
    run_training(tmp_path, "--ckpt_path", str(path), **files, model__seed=1)
    assert (tmp_path / "model-1" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before


def test_a_run_that_goes_on_keeps_one_model(tmp_path, files):
    path = interrupt(tmp_path, 3, **files)
    run_training(tmp_path, "--ckpt_path", str(path), **files)
    run_training(tmp_path, "--ckpt_path", str(path), **files)
    assert not (tmp_path / "model-1").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_takes_the_rates_that_it_is_told(tmp_path, files, optimizer):
    options = {**files, "model__optimizer": optimizer, "trainer__max_steps": 8, "model__warmup_steps": 2}
    path = interrupt(tmp_path, 4, **options, model__learning_rate=1e-2)
    options |= {"model__learning_rate": 1e-6, "model__weight_decay": 0.25}
    run_training(tmp_path, "--ckpt_path", str(path), **options)
    (saved,) = checkpoint(tmp_path)["optimizer_states"]
    groups = [group for part in saved.get("parts", [saved]) for group in part["param_groups"]]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.25}
    assert all(group["lr"] <= 1e-6 and group["initial_lr"] == 1e-6 for group in groups)


def test_resume_refuses_other_settings(tmp_path, files, trained):
    last = ["--ckpt_path", str(trained / "checkpoints" / "last.ckpt")]
    with pytest.raises(SystemExit, match=r"width was 32 .* now 64; .*init_from") as error:
        run_training(tmp_path, *last, **files, model__network__width=64)
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="optimizer was 'adamw'"):
        run_training(tmp_path, *last, **files, model__optimizer="muon")
    with pytest.raises(SystemExit, match="tokenizer was"):
        run_training(tmp_path, *last, **files, data__source_prefix="say: ", data__vocab_size=290)
    with pytest.raises(SystemExit, match="streaming was False"):
        run_training(tmp_path, *last, **files, data__streaming=True)


def test_resume_keeps_the_precision(tmp_path, files, trained, monkeypatch):
    """The checkpoint's, though this machine would choose another."""
    monkeypatch.setattr(hardware, "_bfloat16_wins", lambda: True)
    last = ["--ckpt_path", str(trained / "checkpoints" / "last.ckpt")]
    run_training(tmp_path, *last, **files, trainer__precision="null", trainer__max_steps=6)
    assert checkpoint(tmp_path)["settings"]["precision"] == "32-true"


def test_average_follows_the_weights(tmp_path, files):
    """average += (1 - decay) (weight - average) at every step, the decay rising from 2 / 11."""
    folder = tmp_path / "checkpoints"
    keep = ModelCheckpoint(folder, filename="s{step}", every_n_train_steps=1, save_top_k=-1)
    run_training(tmp_path, callbacks=[keep], **files, model__ema_decay=0.25)
    states = [checkpoint(tmp_path, f"sstep={step}")["state_dict"] for step in (1, 2, 3, 4)]
    names = [name for name in states[0] if name.startswith("model.") and name.endswith("weight")]
    expected = {name: states[0][name] for name in names}
    for count, state in enumerate(states[1:], 1):
        decay = min(0.25, (1 + count) / (10 + count))
        for name in names:
            expected[name] = torch.lerp(expected[name], state[name], 1 - decay)
    for name in names:
        average = states[-1]["average.module." + name.removeprefix("model.")]
        assert torch.allclose(average, expected[name], atol=1e-7), name


def test_the_average_is_saved_and_schedules_with_it(trained):
    state, saved = checkpoint(trained)["state_dict"], load_file(trained / "model" / "model.safetensors")
    assert saved.keys() == {name.removeprefix("model.") for name in state if name.startswith("model.")}
    for name, value in saved.items():
        assert torch.equal(value, state[f"average.module.{name}"]), name
    raw = {name: state[f"model.{name}"] for name in saved}
    assert any(not torch.equal(raw[name], saved[name]) for name in saved if name.endswith("weight"))
    name = "denoiser.process.schedule.parameters_"
    assert torch.equal(raw[name], saved[name])


def test_validation_is_of_the_model_that_is_saved(trained, files):
    """The loss of the last validation is that model's own, which is the average."""
    with (trained / "metrics.csv").open() as file:
        found = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]][-1]
    options = {"validation_file": files["data__validation_file"], "train_file": files["data__train_file"]}
    lengths = {"max_source_length": 48, "max_target_length": 24}
    data = TextData(**options, **lengths, tokenizer=str(trained / "model"))
    data.setup("validate")
    (batch,) = data.val_dataloader()
    losses = load(trained / "model", device="cpu").loss(batch, seed=0)
    own = ((losses.nll * losses.mask).sum() / losses.mask.sum()).item()
    assert found == pytest.approx(own, rel=1e-5)


def test_without_averaging_the_weights_are_saved(tmp_path, files):
    run_training(tmp_path, **files, model__ema_decay=0)
    state, saved = checkpoint(tmp_path)["state_dict"], load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in saved.items())


def test_learning_rate_rises_and_falls():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = linear_decay(optimizer, 4, 10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    rise = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert rates == pytest.approx([a * (1 - i / 10) for i, a in enumerate(rise)])
    assert schedule.get_last_lr()[0] == 0
    assert linear_decay(optimizer, 4, float("inf")).lr_lambdas[0](1_000) == 1


class StopValidation(L.Callback):
    def on_validation_batch_start(self, *_):
        raise KeyboardInterrupt


def test_validate_needs_a_model_and_leaves_the_run_as_it_is(tmp_path, files, trained):
    with pytest.raises(SystemExit, match="which model"):
        run_training(tmp_path, "validate", **files)
    shutil.copytree(trained, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    run_training(tmp_path / "run", "validate", "--ckpt_path", str(last), **files)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        options = {**files, "callbacks": [StopValidation()]}
        run_training(tmp_path / "run", "validate", "--ckpt_path", str(last), **options)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    start = {"model__init_from": trained / "model", "data__train_file": "null"}
    run_training(tmp_path / "run", "validate", **files | start)


def test_validate_a_checkpoint(tmp_path, files, trained, capsys):
    last = trained / "checkpoints" / "last.ckpt"
    run_training(tmp_path, "validate", "--ckpt_path", str(last), **files)
    with (trained / "metrics.csv").open() as file:
        loss = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]][-1]
    assert f"{loss:.3f}" in capsys.readouterr().out


def test_clipping_and_accumulation(tmp_path, files, monkeypatch):
    norms, clip = [], Training.configure_gradient_clipping

    def look(module, *args, **options):
        clip(module, *args, **options)
        grads = [p.grad.norm() for p in module.model.parameters() if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))

    monkeypatch.setattr(Training, "configure_gradient_clipping", look)
    options = {"trainer__gradient_clip_val": 0.01, "trainer__accumulate_grad_batches": 2}
    run_training(tmp_path, **files, **options, data__max_train_examples=48)
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["position"] == 8 and saved["global_step"] == 4 and not saved["pending"]


def test_early_stopping_from_a_config(tmp_path, files):
    config = tmp_path / "stop.yaml"
    config.write_text(
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStopping, "
        "init_args: {monitor: val_loss, patience: 1, min_delta: 100}}]}"
    )
    options = {"trainer__max_steps": 40, "trainer__val_check_interval": 2}
    run_training(tmp_path, "--config", str(config), **files, **options)
    assert checkpoint(tmp_path)["global_step"] == 4
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("system", ["diffusion", "autoregressive"])
def test_patience_ends_with_the_best_model(tmp_path, files, capsys, system):
    """A rate that destroys what the first steps have learned; going on is still possible."""
    options = {"trainer__max_steps": 40, "trainer__val_check_interval": 2, "model__ema_decay": 0}
    options |= {"model__learning_rate": 0.5, "model__warmup_steps": 20, "model__network__system": system}
    run_training(tmp_path, "--patience", "2", **files, **options)
    with (tmp_path / "metrics.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["val_loss"]]
    losses = {int(row["step"]) + 1: float(row["val_loss"]) for row in found}
    best = min(losses, key=losses.__getitem__)
    assert checkpoint(tmp_path)["global_step"] == max(losses) == best + 4 < 40
    assert f"the model is that of step {best}," in capsys.readouterr().out
    kept = checkpoint(tmp_path, "best")
    weights = {name.removeprefix("model."): x for name, x in kept["state_dict"].items()}
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert (
        kept["global_step"] == best
        and saved
        and all(torch.equal(x, weights[n]) for n, x in saved.items())
    )
    last = checkpoint(tmp_path)["state_dict"]
    assert any(not torch.equal(x, last[f"model.{name}"]) for name, x in saved.items())


def test_patience_before_the_first_validation(tmp_path, files, capsys):
    run_training(tmp_path, "--patience", "1", **files, trainer__val_check_interval=9)
    assert "no validation before the end" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_run_with_patience_goes_on_from_its_checkpoint(tmp_path, files):
    """Which knows the best so far, the validation just before it too; the best alone is only a model."""
    options = {"trainer__val_check_interval": 2, "model__learning_rate": 1e-3}
    run_training(tmp_path, "--patience", "3", **files, **options)
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    state = next(x for name, x in checkpoint(tmp_path)["callbacks"].items() if name.startswith("Best"))
    assert losses[1] < losses[0] and float(state["best_model_score"]) == pytest.approx(losses[1])
    with pytest.raises(SystemExit, match=r"it holds a model alone; to go on take last.ckpt"):
        run_training(tmp_path, "--ckpt_path", str(tmp_path / "checkpoints" / "best.ckpt"), **files)


def test_patience_needs_validation(tmp_path, files, capsys):
    with pytest.raises(SystemExit, match="patience: needs validation"):
        run_training(tmp_path, "--patience", "2", **files, trainer__limit_val_batches=0)
    with pytest.raises(SystemExit, match="patience"):
        run_training(tmp_path, "--patience", "0", **files)


def test_logs(tmp_path, files):
    options = {"model__validation_examples": 2, "report__examples": 2, "trainer__log_every_n_steps": 4}
    run_training(tmp_path, **files, **options)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    levels = {f"loss_t{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)}
    wanted = {"loss", "length_loss", "val_loss", "val_rougeL", "val_bleu"} | levels
    for name in wanted:
        values = [float(row[name]) for row in rows if row.get(name)]
        assert values and all(map(isfinite, values)), name
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert (tmp_path / "loss.png").stat().st_size > 1000
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert {"rouge1", "rouge2", "rougeL", "bleu", "lead1", "seconds", "train_seconds"} <= scores.keys()


def test_scores_of_another_script_while_training(tmp_path, monkeypatch):
    """Texts that are their references score 100 at every validation."""
    words = "кошка собака сидела бежала дома там тихо рано".split()
    texts = [" ".join(words[i % 8 :] + words[: i % 8]) for i in range(40)]
    rows = [{"source": text, "target": text} for text in texts]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr(Training, "write", lambda _, examples: [one.target for one in examples])
    options = {"data__train_file": file, "data__validation_file": file, "model__validation_examples": 3}
    run_training(tmp_path / "run", **options)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val_rougeL")]
    assert rows and all(float(row[name]) > 99.9 for row in rows for name in ("val_rougeL", "val_bleu"))


def test_fine_tuning_starts_from_the_model(tmp_path, files, trained):
    """With a learning rate of 0 the model that comes out is the one that went in."""
    start = trained / "model"
    options = {"model__learning_rate": 0, "model__network__width": 64, "trainer__max_steps": 1}
    run_training(tmp_path, **files, **options, model__init_from=start, data__vocab_size=290)
    before, after = (load_file(f / "model.safetensors") for f in (start, tmp_path / "model"))
    counted = ".schedule.", "log_histogram"
    learned = [name for name in before if not any(word in name for word in counted)]
    assert all(torch.equal(before[name], after[name]) for name in learned)
    for name in ("config.json", "tokenizer.json"):
        assert (start / name).read_text() == (tmp_path / "model" / name).read_text()


def last_loss(folder):
    """`val_loss` of the last validation of a run."""
    with (folder / "metrics.csv").open() as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]][-1]


def test_the_prefix_of_sources_stays_that_of_the_model(tmp_path, files, capsys):
    """In fine-tuning and in validation, unless another one is given, an empty one too."""
    first, steps = tmp_path / "first", {"trainer__max_steps": 1}
    run_training(first, **files, data__source_prefix="say: ")
    start, last = first / "model", str(first / "checkpoints" / "last.ckpt")
    for i, (prefix, wanted) in enumerate([({}, "say: "), ({"data__source_prefix": ""}, "")]):
        run_training(tmp_path / f"{i}", **files, **steps, **prefix, model__init_from=start)
        assert load(tmp_path / f"{i}" / "model", "cpu").config.source_prefix == wanted
    capsys.readouterr()
    run_training(tmp_path, "validate", **files, model__init_from=start)
    run_training(tmp_path, "validate", "--ckpt_path", last, **files)
    losses = [float(x) for x in re.findall(r"val_loss\s+│\s+([\d.]+)", capsys.readouterr().out)]
    assert losses == pytest.approx([last_loss(first)] * 2, rel=1e-5)
    run_training(first, "--ckpt_path", last, **files, trainer__max_steps=5)
    with pytest.raises(SystemExit, match=r"source_prefix was 'say: ' .* and is now ''"):
        run_training(first, "--ckpt_path", last, **files, data__source_prefix="")


def test_flags_of_the_network_that_fine_tuning_ignores_are_named(tmp_path, files, trained, monkeypatch):
    """Once; not those that are as in the model, nor what nobody gave."""
    said = []
    monkeypatch.setattr(cli, "rank_zero_info", said.append)
    config = tmp_path / "x.yaml"
    config.write_text("model: {network: {dropout: 0.1, process: {name: embedding}}}")
    flags = {
        "model__network__width": 64,
        "model__network__depth": 1,
        "model__init_from": trained / "model",
    }
    run_training(tmp_path, "--config", str(config), **files, **flags, trainer__max_steps=1)
    assert said == [
        f"model.init_from: the network is that of {trained / 'model'}; ignored: "
        "width 64 (it has 32), dropout 0.1 (it has 0.0)"
    ]
    said.clear()
    run_training(tmp_path, **files, model__init_from=trained / "model", trainer__max_steps=1)
    assert not said


def test_fine_tuning_counts_lengths_anew(tmp_path, files, trained):
    file = tmp_path / "short.jsonl"
    file.write_text('{"source": "a b c", "target": "a"}\n' * 40)
    options = {"data__train_file": file, "data__validation_file": file, "trainer__max_steps": 1}
    run_training(tmp_path, **files | options, model__init_from=trained / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")["length.log_histogram"].exp()
    assert found.argmax() < 4 and found.max() > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__text_column": "target"}, "conditioning 'cross', the data ask for 'none'"),
        ({"data__max_target_length": 25}, "max_length is 24, the data ask for 25"),
        ({"data__max_source_length": 49}, "max_source_length is 48, the data ask for 49"),
        ({"model__init_from": "no/such"}, "no model at 'no/such'|no tokenizer in no/such"),
    ],
)
def test_fine_tuning_refuses_what_does_not_fit(tmp_path, files, trained, change, message):
    with pytest.raises(SystemExit, match=message) as error:
        run_training(tmp_path, **{**files, "model__init_from": trained / "model", **change})
    assert "\n" not in str(error.value)


def losses(folder, *args):
    """The loss of every step, of a training in a process of its own."""
    options = TINY | {"trainer.max_steps": 3, "trainer.default_root_dir": folder}
    command = [sys.executable, "-m", "textdiff.train", *flags(options), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_two_processes_take_the_steps_of_one(tmp_path, files, share):
    """Also where a parameter has no gradient: self-conditioning never, or not on every process."""
    given = flags({name.replace("__", "."): value for name, value in files.items()})
    given += ["--model.network.self_conditioning", str(share)]
    one = losses(tmp_path / "one", *given, "--data.batch_size", "16")
    two = losses(tmp_path / "two", *given, "--trainer.devices", "2")
    assert len(one) == 3
    assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
def test_ctrl_c_on_the_command_line(tmp_path, files):
    """A real signal to a real process: exit code 1, a checkpoint, and how to go on."""
    given = flags({name.replace("__", "."): value for name, value in files.items()})
    options = TINY | {"trainer.max_steps": 100_000, "trainer.default_root_dir": tmp_path}
    command = [sys.executable, "-m", "textdiff.train", *flags(options), *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():  # the first validation is over
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert f"--ckpt_path {tmp_path}/checkpoints/interrupted.ckpt" in out
    assert checkpoint(tmp_path, "interrupted")["global_step"] > 0
