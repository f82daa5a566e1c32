"""Checkpoints of a training: how they are written and read, and how an interrupted run goes on.

A run goes on bit for bit from any checkpoint that was written between two batches. What a failure, or an
impatient Ctrl-C, leaves within one is not kept: the last whole checkpoint is named instead.
"""

import os
import pickle
import shlex
import signal
from pathlib import Path
from tempfile import gettempdir
from threading import current_thread, main_thread
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class Trainer(L.Trainer):
    """Lightning's trainer; it knows from which checkpoints its run can go on."""

    kept: tuple[str | Path, ...] = ()  # paths, the latest last; some may be gone

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        try:
            super().save_checkpoint(filepath, bool(weights_only), storage_options)
        except OSError as error:  # of a full disk it tells no path, and it writes by way of another
            raise OSError(f"{filepath}, written by way of {gettempdir()}: {error}") from error
        if not weights_only:
            self.kept += (filepath,)

    def last_whole(self) -> tuple[str, int] | None:
        """The latest checkpoint of this run that can be read, and its step."""
        for path in map(str, reversed(self.kept)):
            try:
                return path, check_checkpoint(path)["global_step"]
            except ValueError:  # a later one has replaced it, or it is cut short
                continue
        return None


class Checkpoint(ModelCheckpoint):
    """Saved at every validation, and where training ends: a finished run can go on from there."""

    def on_train_end(self, trainer: Trainer, module: L.LightningModule) -> None:
        self.on_validation_end(trainer, module)


class Best(ModelCheckpoint):
    """Keeps the weights of the best validation for the end of training."""

    def restore(self, trainer: Trainer, module: L.LightningModule) -> None:
        """Give the module those weights."""
        if not self.best_model_path:
            print("\npatience: no validation before the end; the model is the last one")
            return
        found = torch.load(self.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(found["state_dict"])
        print(
            f"\npatience: after {trainer.global_step} steps the model is that of step "
            f"{found['global_step']}, with the best {self.monitor} ({self.best_model_score:.4f})"
        )


class Keep(L.Callback):
    """Ctrl-C ends training after the batch at hand; how to go on is said then, and after any failure.

    Args:
        args: of the command line that began the run.
    """

    def __init__(self, args: list[str]) -> None:
        self.args, self.asked, self.between, self.before = args, False, False, None

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.ckpt_path is not None:
            trainer.kept = (trainer.ckpt_path,)
        if current_thread() is main_thread():
            self.before = signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_: Any) -> None:
        """Note the wish; asked twice, stop at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # print may not reenter
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, at the last checkpoint\n")

    def on_train_end(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def on_train_batch_end(self, trainer: Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            self.between = True  # two batches: only here what is saved is exact
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, module: L.LightningModule, error: BaseException) -> None:
        self.on_train_end()
        if trainer.state.fn != "fit":
            return
        try:
            if self.between:
                trainer.save_checkpoint(
                    Path(trainer.default_root_dir) / "checkpoints" / "interrupted.ckpt"
                )
        finally:  # the disk may be full
            if trainer.is_global_zero:
                self.say(trainer, isinstance(error, KeyboardInterrupt))

    def say(self, trainer: Trainer, asked: bool) -> None:
        """Where the run stopped and the whole command that goes on."""
        where = f"\nstopped at step {trainer.global_step}"
        if found := trainer.last_whole():
            path, step = found
            print(f"{where}; go on from step {step} with\n  {going_on(self.args, path)}", flush=True)
        elif asked:
            print(f"{where}, before the first checkpoint: there is nothing to go on from", flush=True)


def going_on(args: list[str], path: str) -> str:
    """The command that goes on from a checkpoint with a run that these arguments began."""
    own = [
        arg
        for before, arg in zip(["", *args], args, strict=False)
        if before != "--ckpt_path" and arg.partition("=")[0] != "--ckpt_path"
    ]
    return shlex.join(["python", "-m", "textdiff.train", *own, "--ckpt_path", path])


def check_checkpoint(path: str) -> dict[str, Any]:
    """The checkpoint; one that is damaged, or not ours, is refused before anything is built.

    Raises:
        ValueError: no such file, cut short, holding code, or written by another program.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        reason = None if "position" in found else "not written by textdiff"
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: missing, damaged, or more than plain weights"
    if reason:
        raise ValueError(f"ckpt_path {path}: {reason}; give a file of a run's checkpoints directory")
    return found
