"""README's commands are run, shrunk; its code is executed; its files exist."""

import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from test_distill import run as distill
from test_import_checkpoint import run as import_checkpoint
from test_import_checkpoint import write_ssd_lm
from test_make_keywords import run as make_keywords
from test_pretrained import write_network

from textdiff import cli
from textdiff.commands import main
from textdiff.objective import OBJECTIVES
from textdiff.sampler import SAMPLERS
from textdiff.times import TIMES

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import ablation

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("textdiff/process", "textdiff/sampler")
SHRUNK = {
    "--trainer.max_steps": "3",
    "--trainer.val_check_interval": "2",
    "--trainer.enable_progress_bar": "false",
    "--model.network.width": "32",
    "--model.network.heads": "2",
    "--model.network.depth": "1",
    "--model.network.embedding_width": "32",
    "--data.vocab_size": "300",
    "--data.max_train_examples": "200",
    "--data.max_validation_examples": "8",
    "--model.validation_examples": "4",
    "--report.examples": "4",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def lines() -> list[str]:
    return [
        line for block in blocks("bash") for part in block.splitlines() for line in part.split(" && ")
    ]


def commands(start: str) -> list[list[str]]:
    return [shlex.split(line)[len(start.split()) :] for line in lines() if line.startswith(start)]


def shorter(args: list[str]) -> list[str]:
    """Two steps of generation, where there are steps."""
    return args if "--decoding" in args else [*args, "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which every training command of README ran, and the scripts, in their order."""
    folder = tmp_path_factory.mktemp("readme")
    row = '{"source": "One two three four. Five six.", "target": "one five"}\n'
    rows = [row.replace("six", f"six {i}") for i in range(100)]
    (folder / "my.jsonl").write_text("".join(rows))
    (folder / "report.txt").write_text("A text about one.\nAnd of two.\n")
    (folder / "more.jsonl").write_text(row)
    (folder / "my.txt").write_text("One two three four. Five six.\n" * 40)
    (folder / "prompts.txt").write_text("One two\nFive\n")
    (folder / "noisy.txt").write_text("One two tree four.\nFive sox.\n")
    (folder / "gaps.txt").write_text("One ___ three.\n___ six.\n")
    write_network(folder / "FacebookAI" / "roberta-base", "roberta", max_position_embeddings=514)
    write_ssd_lm(folder / "ssdlm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines():
            program, args = line.split()[:3], shlex.split(line)
            if program == ["python", "-m", "textdiff.train"] and "--help" not in args:
                cli.run(cli.complete(args[3:]) + [part for option in SHRUNK.items() for part in option])
            elif line.startswith("awk"):
                subprocess.run(line, shell=True, check=True)
                parts = [Path(f"{name}.jsonl").read_text() for name in ("test", "held_out", "train")]
                assert [part.count("\n") for part in parts] == [5, 5, 90]
                assert sorted("".join(parts).splitlines(keepends=True)) == sorted(rows)
            elif line.startswith("python scripts/make_keywords.py"):
                make_keywords(*args[2:])
            elif line.startswith("python scripts/distill.py"):
                distill(*args[2:], "--max_examples", "20")
                assert len(Path(args[4]).read_text().splitlines()) == 20
    return folder


def test_training_commands_leave_models(folder: Path) -> None:
    runs = ("quickstart", "summarization", "unconditional", "expand", "pretrained")
    for run in (*runs, "baseline", "distilled"):
        names = {path.name for path in (folder / "runs" / run).iterdir()}
        assert {"model", "loss.png", "metrics.json", "checkpoints"} <= names


def test_generate_commands(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    for args in commands("python scripts/import_checkpoint.py"):
        import_checkpoint(*args)
        assert "parameters" in capsys.readouterr().out
    for args in commands("textdiff summarize"):
        main(["summarize", *shorter(args)])
        assert len(capsys.readouterr().out.splitlines()) == 2
    (said,) = [line for line in lines() if line.startswith("echo")]
    text, command = (shlex.split(part) for part in said.split(" | "))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text[1].encode())))
    main(shorter(command[1:]))
    assert len(capsys.readouterr().out.splitlines()) == 1
    for args in commands("textdiff infill"):
        main(["infill", *args, "--steps", "2"])
        assert len(capsys.readouterr().out.splitlines()) == 2
    for args in commands("textdiff denoise"):
        main(["denoise", *args, "--steps", "2"])
        assert len(capsys.readouterr().out.splitlines()) == 2
    for args in commands("textdiff evaluate"):
        main(["evaluate", *args, "--max_examples", "3"])
        assert {"bits_per_token", "rougeL"} & set(json.loads(capsys.readouterr().out))
    (args,) = commands("python benchmarks/ablation.py")  # hours: what it is asked for is understood
    monkeypatch.setattr("sys.argv", ["ablation.py", *args])
    asked = ablation.arguments()
    assert ablation.levers_of(asked) == {"default": [], "mine": ["model.network.process=mine"]}
    assert commands("textdiff generate")
    for args in commands("textdiff generate"):
        main(["generate", *args, "--steps", "2"])
        assert len(capsys.readouterr().out.splitlines()) == 2


def test_python_code(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    with mock.patch.dict(SAMPLERS):  # one of them registers a sampler
        for block in blocks("python"):
            exec(block, {})


def test_files_named_exist() -> None:
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|txt))`", README):
        found = [(ROOT / part / name).exists() for part in ("", "textdiff", *ROOMS)]
        assert any(found) or name in (
            "report.txt",
            "prompts.txt",
            "gaps.txt",
            "noisy.txt",
            "my.txt",
        ), name
    for name in re.findall(r"^\| `([\w`, ]+)` \|", README, flags=re.MULTILINE):
        for config in re.findall(r"\w+", name):
            known = (ROOT / "configs" / f"{config}.yaml").exists()
            assert known or any((ROOT / "textdiff").glob(f"**/{config}*")) or config == "py", config


def test_every_module_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`\w+[./].*?) \|", README, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)(?:\.py|/)`", row)}
    files = {path.relative_to(ROOT / "textdiff").parts[0] for path in (ROOT / "textdiff").rglob("*.py")}
    assert {name.removesuffix(".py") for name in files} - {"__init__"} == named


def test_options_of_training_that_are_named_exist() -> None:
    for name, known in (("objective", OBJECTIVES), ("times", TIMES)):
        (line,) = [line for line in README.splitlines() if f"`--model.network.{name}`" in line]
        assert set(known) <= set(re.findall(r"`(\w+)`", line)), name


def test_ci_installs_as_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for part in blocks("bash")[1].strip().split(" && ")[:2]:
        pieces = part.replace("pip install", "").split()
        assert all(piece.strip('"') in script for piece in pieces), part


def test_tables_are_those_of_the_result_files() -> None:
    writer = runpy.run_path(str(ROOT / "scripts" / "update_readme.py"))
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in writer["PAGES"]}
    for name, text in texts.items():
        assert text == writer["page"](name), f"{name}: run scripts/update_readme.py"
        plots = re.findall(r"\]\(((?:benchmarks/)?results/\S+)\)", text)
        assert all((ROOT / name).parent.joinpath(plot).is_file() for plot in plots)
    for marker in writer["TABLES"]:
        assert "".join(texts.values()).count(f"<!--{marker}-->") == 1, marker
