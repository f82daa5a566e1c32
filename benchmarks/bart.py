"""Is the autoregressive twin a fair opponent? It against BART of the `transformers` library.

    python benchmarks/bart.py --train_file train.jsonl --validation_file validation.jsonl \
        --test_file test.jsonl

Both have the same width, depth, heads, tokenizer, batches, number of steps, averaging of weights and
learning-rate schedule; every setting of `TRIALS` is trained, and that with the best BLEU on validation
is tested. A ratio to a weak twin would be worthless.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, count, islice
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import BartConfig, BartForConditionalGeneration

from textdiff.batches import pad, to_device
from textdiff.config import Config
from textdiff.data import TextData
from textdiff.generation import generate_texts
from textdiff.hardware import fast_dtype, precision, tune_allocator
from textdiff.metrics import bleu, bootstrap, rouge
from textdiff.optimizer import OPTIMIZERS, linear_decay, update_average
from textdiff.train import shape
from textdiff.twin import Twin

SHAPE = Config(width=128, depth=4, heads=4, encoder_depth=2)
TRIALS = (("muon", 3e-3), ("adamw", 1e-3), ("adamw", 3e-3))
Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]
DEVICE = common.device()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for split in ("train", "validation", "test"):
        parser.add_argument(f"--{split}_file", required=True)
    parser.add_argument("--steps", type=int, default=1000, help="of every training")
    parser.add_argument("--batch_size", type=int, default=128, help="of generation")
    return parser.parse_args()


def bart(data: TextData) -> nn.Module:
    """BART of the twin's shape, its weights at random."""
    eos, width = data.tokenizer.eos_id, SHAPE.width
    config = BartConfig(
        vocab_size=len(data.tokenizer),
        d_model=width,
        encoder_layers=SHAPE.encoder_depth,
        decoder_layers=SHAPE.depth,
        encoder_attention_heads=SHAPE.heads,
        decoder_attention_heads=SHAPE.heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=max(data.hparams.max_source_length, data.hparams.max_target_length) + 2,
        dropout=0.0,
        pad_token_id=data.tokenizer.pad_id,
        bos_token_id=eos,
        eos_token_id=eos,
        decoder_start_token_id=eos,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config)


def bart_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Nats a token, EOS included."""
    labels = batch["ids"].masked_fill(~batch["mask"], -100)
    return model(input_ids=batch["source"], attention_mask=batch["source_mask"], labels=labels).loss


def twin_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same of the twin."""
    losses = model.loss(batch, 0)
    return (losses.nll * losses.mask).sum() / losses.mask.sum()


def train(
    model: nn.Module, loss: Loss, data: TextData, steps: int, optimizer: str, rate: float
) -> nn.Module:
    """The averaged weights after `steps`."""
    chosen = OPTIMIZERS[optimizer](model.train(), rate, 0.01)
    schedule = linear_decay(chosen, 100, steps)
    average = AveragedModel(model, multi_avg_fn=partial(update_average, 0.999))
    data.position = 0
    epochs = (data.train_dataloader() for _ in count())
    for step, batch in enumerate(islice(chain.from_iterable(epochs), steps), 1):
        with precision(DEVICE, fast_dtype(DEVICE)):
            value = loss(model, to_device(batch, DEVICE))
        chosen.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        schedule.step()
        average.update_parameters(model)
        if step % 100 == 0:
            print(type(model).__name__, optimizer, rate, f"step {step}: {value.item():.3f}", flush=True)
    return average.module.eval()


@torch.no_grad()
def bart_write(
    model: nn.Module, data: TextData, sources: list[str], size: int
) -> tuple[list[str], float]:
    """Greedy texts and seconds, in batches of similar lengths, as the twin does it."""
    start, texts = time.perf_counter(), [""] * len(sources)
    ids = [one[: data.hparams.max_source_length] for one in data.tokenizer.encode(sources)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for begin in range(0, len(order), size):
        some = order[begin : begin + size]
        source, mask = pad([ids[i] for i in some], data.tokenizer.pad_id)
        with precision(DEVICE, fast_dtype(DEVICE)):
            made = model.generate(
                source.to(DEVICE),
                attention_mask=mask.long().to(DEVICE),
                num_beams=1,
                do_sample=False,
                max_new_tokens=data.hparams.max_target_length,
            )
        for i, text in zip(some, data.tokenizer.decode(made[:, 1:].tolist()), strict=True):
            texts[i] = text
    return texts, time.perf_counter() - start


def twin_write(model: nn.Module, _: TextData, sources: list[str], size: int) -> tuple[list[str], float]:
    """The same of the twin."""
    made = generate_texts(model, sources, batch_size=size, dtype="auto")
    return made.texts, made.seconds


def twin(data: TextData) -> nn.Module:
    """The twin as the other benchmarks train it."""
    model = Twin(shape(SHAPE, data), data.tokenizer)
    model.fit_data(data)
    return model


def system(name: str, data: TextData, options: argparse.Namespace) -> dict[str, Any]:
    """Train all trials of one system, test the best."""
    make, loss, write = SYSTEMS[name]
    held, examples = data.examples("validation")[:300], data.examples("test")
    models, scores = [], {}
    for optimizer, rate in TRIALS:
        torch.manual_seed(0)
        models.append(train(make(data).to(DEVICE), loss, data, options.steps, optimizer, rate))
        texts, _ = write(models[-1], data, [one.source for one in held], options.batch_size)
        scores[f"{optimizer} {rate:g}"] = bleu(texts, [one.references for one in held])
    best = models[max(range(len(models)), key=[*scores.values()].__getitem__)]
    sources, references = [one.source for one in examples], [one.references for one in examples]
    runs = [write(best, data, sources, options.batch_size) for _ in range(3)]
    texts = runs[0][0]
    seconds = statistics.median(second for _, second in runs) / len(sources)
    row = {
        "system": name,
        "decoding": "greedy",
        "parameters": sum(p.numel() for p in best.parameters()),
        "seconds_per_example": seconds,
        "validation_bleu": scores,
        "metrics": {
            "rougeL": bootstrap(rouge(texts, references)["rougeL"]),
            "bleu": {"mean": bleu(texts, references)},
        },
        "examples_shown": texts[:3],
    }
    print(row, flush=True)
    return row


SYSTEMS = {"autoregressive": (twin, twin_loss, twin_write), "bart": (bart, bart_loss, bart_write)}


def main() -> None:
    """Train, test, save."""
    options = arguments()
    tune_allocator()
    result = common.header("bart", "e2e", "test") | {"steps": options.steps, "training_seeds": 1}
    data = TextData(
        train_file=options.train_file,
        validation_file=options.validation_file,
        test_file=options.test_file,
        vocab_size=1000,
        max_source_length=96,
        max_target_length=80,
    )
    data.setup()
    rows = [system(name, data, options) for name in SYSTEMS]
    print(common.write(result | {"rows": rows}, "bart"))


if __name__ == "__main__":
    main()
