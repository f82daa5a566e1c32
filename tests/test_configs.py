"""Every configuration that comes with the package builds and trains, on small files of its columns."""

import shutil
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from conftest import run_training, write_rows
from test_pretrained import write_network

from textdiff import cli, hardware
from textdiff.corpus import rows

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DATA = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["data"] for path in CONFIGS}


def local_files(folder, data, name):
    """Flags that put local files of the same columns in the place of a hub data set."""
    if data.get("dataset_name") == "textdiff/reports":
        return {}
    unconditional = name == "unconditional"
    source = data.get("text_column", "text" if unconditional else "source")
    target = data.get("summary_column", "target")
    pairs = rows("train", 40)
    table = [{source: r["source"]} | ({} if unconditional else {target: r["target"]}) for r in pairs]
    files = {f"data__{s}_file": write_rows(folder / f"{s}.jsonl", table) for s in ("train", "validation")}
    if name == "pretrained":
        files["model__network__backbone"] = write_network(
            folder / "network", "roberta", max_position_embeddings=90
        )
    return {"data__dataset_name": "null", **files}


@pytest.mark.parametrize("name", DATA)
def test_config_trains(name, tmp_path):
    files = local_files(tmp_path, DATA[name], name)
    short = {"trainer__max_steps": 2, "trainer__val_check_interval": 2, "trainer__limit_val_batches": 1}
    run_training(tmp_path / "run", "--config", name, **files, **short, model__ema_decay=0.9)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    expected = {"lm1b": "none", "unconditional": "none", "pretrained": "prefix"}
    assert saved["settings"]["conditioning"] == expected.get(name, "cross")
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for key in ("text_column", "summary_column", "streaming"):
        assert used["data"][key] == (DATA[name].get(key) or used["data"][key])


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_is_the_fast_one_unless_told(fast, precision, tmp_path, files, monkeypatch):
    monkeypatch.setattr(hardware, "_bfloat16_wins", lambda: fast)
    run_training(tmp_path / "auto", **files, trainer__precision="null", trainer__max_steps=1)
    run_training(tmp_path / "told", **files, trainer__max_steps=1)
    found = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["settings"]
        for name in ("auto", "told")
    ]
    assert [settings["precision"] for settings in found] == [precision, "32-true"]


def test_no_arguments_mean_the_quickstart():
    assert cli.complete([]) == ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml")]
    assert "quickstart" in DATA


def test_named_configs_and_subcommands():
    e2e = str(ROOT / "configs" / "e2e.yaml")
    assert cli.complete(["--config", "e2e", "--x", "1"]) == ["fit", "--config", e2e, "--x", "1"]
    assert cli.complete(["fit", "--config=e2e.yaml"]) == ["fit", "--config", e2e]
    assert cli.complete(["validate", "--config", "e2e"])[0] == "validate"
    with pytest.raises(ValueError, match=r"no configuration 'e3e'; .* arxiv_titles, .*xsum"):
        cli.complete(["--config", "e3e"])


@pytest.mark.parametrize(
    "name", ["/nowhere/e2e.yaml", "experimnts/summarization.yml", "e2e.yml", "./e2e"]
)
def test_a_path_without_a_file_is_no_name(name):
    """Else a misspelt folder would train the configuration of the package."""
    with pytest.raises(ValueError, match=f"no configuration {name!r}; a file, or one of: "):
        cli.find_config(name)


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    (tmp_path / "e2e").write_text("seed_everything: 1")
    monkeypatch.chdir(tmp_path)
    assert cli.find_config("e2e") == "e2e"


def test_configs_travel_in_the_wheel(tmp_path, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "textdiff/configs"}
    shutil.copytree(ROOT / "configs", tmp_path / "textdiff" / "configs")
    monkeypatch.setattr(cli, "HERE", tmp_path / "textdiff")
    monkeypatch.chdir(tmp_path)
    assert Path(cli.find_config("quickstart")).parent == tmp_path / "textdiff" / "configs"
