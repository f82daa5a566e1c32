"""Tiny data and tiny trained models, shared by the tests of training, generation and bad input."""

import json
import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tiny models gain nothing from threads, which wait for each other for ever on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

TINY = {
    "data.vocab_size": 300,
    "data.max_source_length": 48,
    "data.max_target_length": 24,
    "data.batch_size": 8,
    "data.max_train_examples": 40,
    "model.network.width": 32,
    "model.network.depth": 1,
    "model.network.heads": 2,
    "model.network.encoder_depth": 1,
    "model.network.embedding_width": 16,
    "model.warmup_steps": 2,
    "model.validation_examples": 0,
    "model.generation": "{steps: 2}",
    "report.examples": 0,
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 4,
    "trainer.log_every_n_steps": 1,
    "trainer.precision": "32-true",
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def flags(options: dict) -> list[str]:
    """`--name value` of every option."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_training(folder: Path, *args: str, callbacks=(), **options) -> None:
    """Train in this process; `options` replace those of `TINY` (with `__` for a dot)."""
    given = {name.replace("__", "."): value for name, value in options.items()}
    run_line([*args, *flags(TINY | given | {"trainer.default_root_dir": folder})], callbacks)


def run_line(args: list[str], callbacks=()) -> None:
    """The training command line in this process."""
    from textdiff import cli

    handler = signal.getsignal(signal.SIGINT)
    cli.EXTRA_CALLBACKS[:] = callbacks
    try:
        cli.run(args)
    finally:
        cli.EXTRA_CALLBACKS.clear()
        signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C ignored after an interruption


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict:
    """Flags that name a training and a validation file of source and target."""
    from textdiff.corpus import rows

    folder = tmp_path_factory.mktemp("data")
    return {
        "data__train_file": write_rows(folder / "train.jsonl", rows("train", 60)),
        "data__validation_file": write_rows(folder / "validation.jsonl", rows("validation", 8)),
    }


@pytest.fixture(scope="session")
def trained(tmp_path_factory, files) -> Path:
    """The run directory of a tiny summarizer."""
    folder = tmp_path_factory.mktemp("trained")
    run_training(folder, **files)
    return folder


@pytest.fixture(scope="session")
def prefixed(tmp_path_factory, files) -> Path:
    """The run directory of a tiny summarizer whose source is a prefix of the text."""
    folder = tmp_path_factory.mktemp("prefixed")
    run_training(folder, **files, data__conditioning="prefix")
    return folder


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory, files) -> Path:
    """The run directory of a tiny model of texts without sources."""
    folder = tmp_path_factory.mktemp("unconditional")
    run_training(folder, **files, data__text_column="target")
    return folder
