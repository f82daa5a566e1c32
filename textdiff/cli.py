"""The training command line: LightningCLI on jsonargparse, with the defaults of this package.

    python -m textdiff.train                                   the quickstart
    python -m textdiff.train --config summarization --data.train_file my.jsonl
    python -m textdiff.train --config x.yaml --trainer.max_steps 100
    python -m textdiff.train fit --help                        every flag

`--config` takes a file or the name of a configuration that comes with the package. A missing subcommand
means `fit`.
"""

import logging
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from textdiff.checkpoint import Best, Checkpoint, Keep, Trainer, check_checkpoint
from textdiff.config import Config, named
from textdiff.data import TextData
from textdiff.hardware import fast_dtype, tune_allocator
from textdiff.report import Report
from textdiff.storage import find_folder, read_config, set_aside
from textdiff.transfer import SHARED

SUBCOMMANDS = ("fit", "validate")
IMPLIED = ["--config", "quickstart"]  # no arguments
HERE = Path(__file__).parent
TRAINER = {
    "gradient_clip_val": 1.0,
    "max_steps": -1,  # both: as the data need, see `Training.choose_steps`
    "max_epochs": -1,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,
    "use_distributed_sampler": False,
    "default_root_dir": "runs/textdiff",
    "enable_model_summary": False,
}
EVERY = ("val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "accumulate_grad_batches")
MISTAKES = (ValueError, OSError, ArgumentError, MisconfigurationException)
NOISE = ("exists and is not empty", "LeafSpec", "does not have many workers", "logging interval")
NOISE += ("💡 Tip", "TPU available", "resuming from a checkpoint that ended", "module.s. in eval mode")
NOISE += ("to estimate number of stepping batches",)
NOISE += ("tokens are read", "no order of parts")  # said once, of all examples, when the data are read
EXTRA_CALLBACKS: list[L.Callback] = []  # of programs that train through `run`, such as benchmarks


class CLI(LightningCLI):
    """LightningCLI with our data, module, callbacks and loggers."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Report, "report")
        parser.add_argument(
            "--patience",
            type=int | None,
            help="stop after so many validations without a better val_loss, with the model of the best",
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning's that this package serves."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in SUBCOMMANDS}

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.typed = args or IMPLIED
        self.config = parser.parse_args(complete(self.typed))
        config = self.config[self.config.subcommand]
        config.weights_only = True  # nothing pickled is ever loaded
        if config.trainer.accelerator == "auto" and training_device("auto").type == "mps":
            config.trainer.accelerator = "cpu"  # schedules need float64
        if self.config.subcommand != "fit":
            if not (config.ckpt_path or config.model.init_from):
                raise ValueError("validate: which model? give --ckpt_path or --model.init_from")
            self.save_config_callback = None  # of a training, which stays
        if config.ckpt_path:
            found = check_checkpoint(config.ckpt_path)
            if self.config.subcommand == "fit" and "optimizer_states" not in found:
                raise ValueError(
                    f"ckpt_path {config.ckpt_path}: it holds a model alone; to go on take last.ckpt"
                )
            saved = found["settings"]
            config.trainer.precision = config.trainer.precision or saved.get("precision")
            known = {field.name for field in fields(Config)} & saved.keys()
            adopt(config.data, Config(**{name: saved[name] for name in known}))

    def before_instantiate_classes(self) -> None:
        """A model to start from brings its network, tokenizer and lengths; precision is the fast one."""
        config = self.config[self.subcommand]
        if config.trainer.precision is None:
            fast = fast_dtype(training_device(config.trainer.accelerator))
            config.trainer.precision = "bf16-mixed" if fast == torch.bfloat16 else "32-true"
        start, backbone = config.model.init_from, config.model.network.backbone
        if start:
            folder = find_folder(start)
            found, system = read_config(folder), config.model.network.system
            if found.system != system and self.subcommand != "fit" and not config.ckpt_path:
                raise ValueError(
                    f"model.init_from: {start} is of the system {found.system}, not {system}; "
                    f"give --model.network.system {found.system}"
                )
            adopt(config.data, found)
            if lost := ignored(config.model.network.as_dict(), found, self.typed):
                what = "network is that" if found.system == system else "shapes are those"
                rank_zero_info(f"model.init_from: the {what} of {start}; ignored: {', '.join(lost)}")
            config.data.tokenizer = config.data.tokenizer or str(folder)
        elif backbone is not None and config.data.tokenizer is None:
            config.data.tokenizer = named(backbone).get("name")

    def before_fit(self) -> None:
        """Before all rows are read: a network that copies from sources must have them."""
        data, model = self.datamodule, self.model
        if model.network.pointer and not model.init_from and data.columns[0] is None:
            raise ValueError(
                f"{data.hparams.train_file or data.hparams.dataset_name} holds texts alone, and this "
                "configuration learns targets from sources: give pairs (two columns of a .jsonl or .csv; "
                "see --data.text_column), or train on texts alone with --config unconditional"
            )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        root = Path(config["default_root_dir"])
        if 0 in (config["max_steps"], config["max_epochs"]):
            raise ValueError(
                "trainer.max_steps or max_epochs is 0: nothing would be trained; give 1 or more"
            )
        for name in EVERY:
            if isinstance(config[name], int | float) and config[name] <= 0:
                hint = " (or --trainer.limit_val_batches 0 for no validation)" * ("val_" in name)
                raise ValueError(f"trainer.{name} is {config[name]}: give 1 or more{hint}")
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif config["logger"] is None:
            rank_zero_only(set_aside)(root / "metrics.csv")
            kwargs["logger"] = [CSVLogger(root, "", ""), TensorBoardLogger(root, "tensorboard", "")]
        callbacks = [*(config["callbacks"] or []), Keep(self.typed), *EXTRA_CALLBACKS]
        callbacks += self.stopping(root / "checkpoints", config)  # first, for the other to save its state
        if config["enable_checkpointing"] is not False:
            options = {"save_last": "link", "enable_version_counter": False}
            callbacks.append(Checkpoint(root / "checkpoints", filename="{step}", **options))
        if config["enable_progress_bar"] is not False and not has_bar(callbacks):
            callbacks.append(TQDMProgressBar())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def stopping(self, folder: Path, config: Any) -> list[L.Callback]:
        """What `--patience` asks for."""
        patience = self._get(self.config, "patience")
        if self.subcommand != "fit" or patience is None:
            return []
        if patience < 1:
            raise ValueError(f"patience must be at least 1 validation, not {patience}")
        if 0 in (config["limit_val_batches"], config["enable_checkpointing"]):
            raise ValueError("patience: needs validation and checkpoints, which are switched off")
        options = {"save_weights_only": True, "enable_version_counter": False}
        best = Best(folder, filename="best", monitor="val_loss", **options)
        return [EarlyStopping("val_loss", patience=patience), best]


def adopt(data: Any, model: Config) -> None:
    """Give the lengths and the source prefix that the data settings leave open as a model has them."""
    known = {"source_prefix": model.source_prefix, "max_source_length": model.max_source_length}
    known["max_target_length"] = model.max_length - model.prefix_length
    for name, value in known.items():
        if data[name] is None:
            data[name] = value


def ignored(network: dict[str, Any], model: Config, typed: Sequence[str]) -> list[str]:
    """What was given of a network, by flag or in a file, but is otherwise in the model to start from."""

    def full(value: Any) -> Any:
        return named(value) if isinstance(value, str) else value

    flags = {arg.removeprefix("--model.network.").partition("=")[0].partition(".")[0] for arg in typed}
    usual, own = asdict(Config()), asdict(model)
    if network["system"] != model.system:  # of another system, what both have
        network = {name: network[name] for name in SHARED}
    if own["backbone"] is not None:
        own["backbone"] = {k: v for k, v in named(own["backbone"]).items() if k != "config"}
    return [
        f"{name} {value} (it has {own[name]})"
        for name, value in network.items()
        if full(value) != full(own[name]) and (name in flags or full(value) != full(usual[name]))
    ]


def training_device(accelerator: str) -> torch.device:
    """What Lightning will train on."""
    backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name, available in backends.items():
        if available and accelerator in ("auto", "gpu", name):
            return torch.device(name)
    return torch.device("cpu")


def has_bar(callbacks: list[L.Callback]) -> bool:
    """Whether the user brings a progress bar."""
    return any(isinstance(callback, ProgressBar) for callback in callbacks)


def find_config(name: str) -> str:
    """The file of a configuration given by path or by name, with or without `.yaml`.

    Raises:
        ValueError: neither a file nor one of the package's own.
    """
    if Path(name).is_file():
        return name
    folder = next(p for p in (HERE / "configs", HERE.parent / "configs") if p.is_dir())
    known = {path.stem: path for path in folder.glob("*.yaml")}
    stem = name.removesuffix(".yaml")  # of a path nothing is taken away: a misspelt one is no name
    if stem not in known:
        raise ValueError(f"no configuration {name!r}; a file, or one of: {', '.join(sorted(known))}")
    return str(known[stem])


def complete(args: list[str]) -> list[str]:
    """Fill in the quickstart, the subcommand `fit` and the paths of named configurations."""
    args = args or IMPLIED
    if args[0] not in (*SUBCOMMANDS, "-h", "--help"):
        args = ["fit", *args]
    joined = [part for arg in args for part in split_option(arg)]
    return [
        find_config(arg) if i and joined[i - 1] == "--config" else arg for i, arg in enumerate(joined)
    ]


def split_option(arg: str) -> list[str]:
    """`--config=x` as two words; anything else as it is."""
    return ["--config", arg.removeprefix("--config=")] if arg.startswith("--config=") else [arg]


def quiet() -> None:
    """Leave out what Lightning says and a user of this package can do nothing about."""
    for words in NOISE:
        warnings.filterwarnings("ignore", f".*{words}")
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: not any(words in record.getMessage() for words in NOISE))


def run(args: list[str]) -> None:
    """Train as the arguments say; a user's mistake ends in one line."""
    from textdiff.train import Training

    tune_allocator()
    quiet()
    strict = {"exit_on_error": False}
    try:
        CLI(
            Training,
            TextData,
            args=args,
            trainer_class=Trainer,
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs=strict | dict.fromkeys(SUBCOMMANDS, strict),
        )
    except MISTAKES as error:
        sys.exit(f"textdiff: {brief(str(error))}")


def brief(message: str, most: int = 400) -> str:
    """One line; of a long one the beginning, which names the place, and the end, with the cause."""
    line = " ".join(message.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"
