"""What an interrupted or failed run leaves, and that the command which it prints goes on exactly."""

import errno
import shlex
import signal

import lightning as L
import pytest
import torch
import yaml
from conftest import TINY, run_line, run_training
from lightning.fabric.plugins.io import torch_io
from test_train import EXACT, checkpoint, differences

from textdiff import checkpoint as module
from textdiff.checkpoint import going_on


class CtrlC(L.Callback):
    """The user presses Ctrl-C so often within the step after `step` steps."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def stop(capfd, step, times=1, **options):
    """What a run says that Ctrl-C ends."""
    with pytest.raises(SystemExit) as end:
        run_training(callbacks=[CtrlC(step, times)], **options)
    said = capfd.readouterr()
    assert end.value.code == 1 and "stopping after this step" in said.err
    assert "Traceback" not in said.out + said.err
    return said.out


def advice(out):
    """The arguments of the training command that a run printed."""
    (line,) = [line for line in out.splitlines() if line.startswith("  python -m textdiff.train ")]
    return shlex.split(line)[3:]


def same(folder, other):
    whole, again = checkpoint(folder), checkpoint(other)
    return not [x for key in EXACT for x in differences(whole[key], again[key], key)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, files):
    """The run directory of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run_training(folder, **files, trainer__val_check_interval=2)
    return folder


def test_ctrl_c_says_how_to_go_on(tmp_path, files, capfd, whole):
    folder = tmp_path / "it's mine"
    out = stop(capfd, 2, folder=folder, **files, trainer__val_check_interval=2)
    assert "stopped at step 3; go on from step 3 with\n  python -m textdiff.train --data" in out
    assert advice(out)[-2:] == ["--ckpt_path", str(folder / "checkpoints" / "interrupted.ckpt")]
    run_line(advice(out))
    assert same(whole, folder)


def test_ctrl_c_twice_goes_on_from_the_last_whole_checkpoint(tmp_path, files, capfd, whole):
    """Not from within a step, whose batch would be lost."""
    out = stop(capfd, 3, times=2, folder=tmp_path, **files, trainer__val_check_interval=2)
    assert "stopped at step 3; go on from step 2 with" in out
    assert not (tmp_path / "checkpoints" / "interrupted.ckpt").exists()
    run_line(advice(out))
    assert same(whole, tmp_path)


def test_ctrl_c_twice_before_the_first_checkpoint(tmp_path, files, capfd):
    """That of an earlier run in the same place is none of this run."""
    run_training(tmp_path, **files)
    out = stop(capfd, 1, times=2, folder=tmp_path, **files)
    assert "stopped at step 1, before the first checkpoint: there is nothing to go on from" in out


def test_ctrl_c_twice_after_going_on(tmp_path, files, capfd):
    """The checkpoint that it began from is whole."""
    args = advice(stop(capfd, 0, folder=tmp_path, **files))
    with pytest.raises(SystemExit):
        run_line(args, [CtrlC(2, times=2)])
    out = capfd.readouterr().out
    assert "stopped at step 2; go on from step 1 with" in out and advice(out) == args


def test_ctrl_c_without_arguments(tmp_path, files, capfd, monkeypatch):
    """The implied configuration stands in the advice: with any argument it would be left out."""
    options = TINY | {name.replace("__", "."): str(path) for name, path in files.items()}
    tree = {}
    for name, value in options.items():
        *rooms, last = name.split(".")
        place = tree
        for room in rooms:
            place = place.setdefault(room, {})
        place[last] = yaml.safe_load(str(value))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text(yaml.safe_dump(tree))  # read in place of the package's own
    with pytest.raises(SystemExit):
        run_line([], [CtrlC(1)])
    args = advice(capfd.readouterr().out)
    path = "runs/textdiff/checkpoints/interrupted.ckpt"
    assert args == ["--config", "quickstart", "--ckpt_path", path]
    run_line(args)
    assert checkpoint(tmp_path / "runs" / "textdiff")["position"] == 4


def test_the_last_checkpoint_of_the_command_counts():
    for old in (["--ckpt_path", "old.ckpt"], ["--ckpt_path=old.ckpt"]):
        line = going_on(["fit", *old, "--config", "x.yaml"], "a b.ckpt")
        assert line == "python -m textdiff.train fit --config x.yaml --ckpt_path 'a b.ckpt'"


def full_after(count, monkeypatch):
    """The disk is full after so many checkpoints; as the system has it, no path is named."""
    write, left = torch_io._atomic_save, [count]

    def save(checkpoint, path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(checkpoint, path)

    monkeypatch.setattr(torch_io, "_atomic_save", save)


def test_full_disk_names_the_checkpoint_that_is_whole(tmp_path, files, capfd, monkeypatch, whole):
    options = {**files, "trainer__val_check_interval": 2}
    with monkeypatch.context() as patch:
        full_after(1, patch)
        with pytest.raises(
            SystemExit, match=r"checkpoints/step=4.ckpt, .*No space left on device"
        ) as end:
            run_training(tmp_path, **options)
    assert "\n" not in str(end.value)
    out = capfd.readouterr().out
    assert "stopped at step 4; go on from step 2 with" in out
    run_line(advice(out))
    assert same(whole, tmp_path)


def test_full_disk_after_ctrl_c(tmp_path, files, capfd, monkeypatch):
    full_after(1, monkeypatch)
    with pytest.raises(SystemExit, match=r"interrupted.ckpt, .*No space left on device"):
        run_training(tmp_path, callbacks=[CtrlC(2)], **files, trainer__val_check_interval=2)
    assert "stopped at step 3; go on from step 2 with" in capfd.readouterr().out


def test_the_best_weights_alone_are_nothing_to_go_on_from(tmp_path, files, capfd, monkeypatch):
    full_after(1, monkeypatch)
    with pytest.raises(SystemExit, match=r"/step=2.ckpt, .*No space left on device"):
        run_training(tmp_path, "--patience", "2", **files, trainer__val_check_interval=2)
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    assert "go on from" not in capfd.readouterr().out


def test_a_checkpoint_that_is_cut_short_is_not_named(tmp_path, whole, monkeypatch):
    trainer = module.Trainer(logger=False, enable_checkpointing=False)
    good, bad, weights = whole / "checkpoints" / "last.ckpt", tmp_path / "bad.ckpt", tmp_path / "w.ckpt"
    bad.write_bytes(good.read_bytes()[:1000])
    torch.save({"state_dict": {}}, weights)
    assert trainer.last_whole() is None
    trainer.kept = (str(good), bad, weights, tmp_path / "gone.ckpt")
    assert trainer.last_whole() == (str(good), 4)
