"""What a user does not say is chosen from the data, and said."""

import json
import random

import lightning as L
import pytest
from conftest import run_training, write_rows

from textdiff import data as module
from textdiff import sizes
from textdiff.data import TextData

ROWS = [{"source": "word " * (20 + i % 10), "target": "word " * (3 + i % 3)} for i in range(200)]
ROWS += [{"source": "word " * 3000, "target": "word " * 300}]  # one in two hundred: not worth its cost


@pytest.fixture
def said(monkeypatch):
    messages = []
    monkeypatch.setattr(module, "rank_zero_info", messages.append)
    return messages


def opened(path, **options):
    made = TextData(train_file=str(path), **options)
    made.setup("fit")
    return made


def test_a_word_is_worth_a_token_when_it_is_seen_often():
    words = [f"w{i}" for i in range(1000)]
    seen = [" ".join(words)] * (sizes.SEEN - 1)
    assert sizes.vocabulary(seen) == sizes.FEWEST
    assert sizes.vocabulary([*seen, " ".join(words[:700])]) == 700
    many = " ".join(f"w{i}" for i in range(2 * sizes.MOST))
    assert sizes.vocabulary([many] * sizes.SEEN) == sizes.MOST


def test_text_without_spaces_has_words_too():
    """Characters and pairs of them: else all of it would be bytes."""
    draw = random.Random(0)
    texts = ["".join(chr(0x4E00 + int(600 * draw.random() ** 3)) for _ in range(200)) for _ in range(300)]
    assert 600 < sizes.vocabulary(texts) < sizes.MOST
    assert sizes.vocabulary(["word " * 100] * 300) == sizes.FEWEST


@pytest.mark.parametrize(("epoch", "steps"), [(None, 10_000), (1, 1000), (100, 5000), (300, 10_000)])
def test_steps_are_epochs_within_bounds(epoch, steps):
    assert sizes.steps(epoch) == steps


@pytest.mark.parametrize("seed", range(3))
def test_all_but_one_in_a_hundred_fit(seed):
    lengths = [(17 * seed + 31 * i) % 97 + 1 for i in range(97 * 3)]
    chosen = sizes.length(lengths, 1000)
    assert sum(n <= chosen for n in lengths) >= 0.99 * len(lengths)
    assert sum(n <= chosen - sizes.STEP for n in lengths) < 0.99 * len(lengths)
    assert sizes.length(lengths, 50) == 50 and sizes.length([1], 50) == sizes.STEP


def test_training_data_choose_lengths_and_vocabulary(tmp_path, said):
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    found = opened(path)
    assert found.hparams.vocab_size == sizes.FEWEST
    assert (found.hparams.max_source_length, found.hparams.max_target_length) == (32, 8)
    assert max(len(ids) for _, ids in found.table("train")) == 8
    for what in ("512 tokens (--data.vocab_size)", "sources of at most 32", "targets of at most 8"):
        assert any(what in message for message in said), what
    assert any("sources were cut to 32" in message for message in said), "the long one"


def test_the_end_of_a_text_is_a_token_too(tmp_path, said):
    path = write_rows(tmp_path / "train.jsonl", [{"source": "word", "target": "word " * 7 + "word"}] * 40)
    found = opened(path)
    assert {len(ids) for _, ids in found.table("train")} == {9}
    assert found.hparams.max_target_length == 16


def test_what_is_given_stays_and_says_nothing(tmp_path, said):
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    found = opened(path, vocab_size=300, max_source_length=50, max_target_length=9)
    assert (found.hparams.max_source_length, found.hparams.max_target_length) == (50, 9)
    assert len(found.tokenizer) <= 300 and not any("s of at most" in message for message in said)


@pytest.mark.parametrize(("conditioning", "most"), [("cross", (1024, 256)), ("prefix", (256, 128))])
def test_long_texts_are_cut_where_cost_would_explode(tmp_path, conditioning, most):
    path = write_rows(tmp_path / "train.jsonl", [ROWS[-1]] * 21)
    found = opened(path, conditioning=conditioning)
    assert (found.hparams.max_source_length, found.hparams.max_target_length) == most


def test_texts_alone_are_split(tmp_path, said):
    (tmp_path / "train.txt").write_text("\n".join(["word " * 200] * 21))
    assert opened(tmp_path / "train.txt").hparams.max_target_length == 64
    assert not any("sources of" in message for message in said)


def test_a_source_prefix_counts(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    assert opened(path, source_prefix="word " * 40).hparams.max_source_length == 72


def test_fine_tuning_takes_the_lengths_of_its_model(tmp_path, trained):
    """Longer texts would have no positions."""
    path = write_rows(tmp_path / "train.jsonl", ROWS[-30:])
    unset = dict.fromkeys(
        ("data__vocab_size", "data__max_source_length", "data__max_target_length"), "null"
    )
    start = {"model__init_from": trained / "model", "data__train_file": path}
    run_training(tmp_path / "run", **start, **unset, trainer__max_steps=1)
    before, after = (
        json.loads((f / "model" / "config.json").read_text()) for f in (trained, tmp_path / "run")
    )
    assert before == after


class Stop(L.Callback):
    """Ends a training when its number of steps is known."""

    def on_train_start(self, trainer, module):
        self.steps = trainer.max_steps
        (schedule,) = trainer.lr_scheduler_configs
        self.last = schedule.scheduler.lr_lambdas[0](self.steps)
        trainer.should_stop = True
        trainer.fit_loop.epoch_loop.max_steps = 1


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({}, 1000),
        ({"data__batch_size": 1}, 50 * 40),
        ({"data__batch_size": 1, "trainer__accumulate_grad_batches": 2}, 1000),
        ({"trainer__max_steps": 7}, 7),
        ({"data__streaming": "true"}, 10_000),
    ],
)
def test_steps_are_chosen_and_the_learning_rate_ends_with_them(tmp_path, files, asked, steps):
    stop = Stop()
    unset = {"trainer__max_steps": -1, "trainer__max_epochs": -1}
    run_training(tmp_path, **files, **(unset | asked), callbacks=[stop])
    assert stop.steps == steps and stop.last < 0.01


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_brings_its_lengths(tmp_path, files, trained, command):
    """They are not chosen anew, from other texts; else the checkpoint would be refused."""
    path = write_rows(tmp_path / "train.jsonl", ROWS[-30:])
    unset = dict.fromkeys(("data__max_source_length", "data__max_target_length"), "null")
    unset |= {"data__tokenizer": trained / "model"}
    run_training(tmp_path / "a", data__train_file=path, **unset, trainer__max_steps=1)
    start = str(tmp_path / "a" / "checkpoints" / "last.ckpt")
    rows = {"data__max_train_examples": 24}  # as many batches as before
    run_training(
        tmp_path / "b", command, "--ckpt_path", start, **files, **unset, **rows, trainer__max_steps=2
    )


def test_a_stream_without_text_is_refused(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", [{"source": " ", "target": " "}] * 30)
    with pytest.raises(ValueError, match="no text"):
        opened(path, streaming=True, vocab_size=300)


@pytest.mark.parametrize(("longest", "size"), [(10, 64), (256, 64), (576, 28), (1280, 16), (10_000, 16)])
def test_long_texts_have_small_batches(longest, size):
    assert sizes.batch(longest) == size


def test_a_batch_is_as_large_as_its_lengths_allow(tmp_path, said):
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    found = opened(path, batch_size=None, max_source_length=500, max_target_length=76)
    assert found.hparams.batch_size == 28 and found.batches_of(1) == len(found.table("train")) // 28
    assert any("batches of 28 examples (--data.batch_size)" in message for message in said)
    assert opened(path).hparams.batch_size == 64
