"""Training: `python -m textdiff.train` trains the quickstart; `--config x.yaml` anything else.

A `LightningModule` of few parts: the model's own loss, AdamW or Muon with warm-up and linear decay, an
exponential moving average of the weights, the loss per noise level, generation on the validation set.
All randomness of a step is keyed by (seed, example number), so that an interrupted and resumed run, or
one spread over several processes, takes the same steps.
"""

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import Any
from zlib import crc32

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from textdiff import sizes
from textdiff.config import Config, build, find
from textdiff.data import Example, TextData
from textdiff.generation import generate_texts
from textdiff.metrics import bleu, rouge, tokenizer_for
from textdiff.model import Losses, TextModel
from textdiff.optimizer import OPTIMIZERS, linear_decay, update_average
from textdiff.options import check_options
from textdiff.storage import find_folder
from textdiff.systems import SYSTEMS, open_model
from textdiff.transfer import shaped, transfer

BUCKETS = 5
DEFAULT = Config()


class Training(L.LightningModule):
    """Trains a text model.

    Args:
        network: shape of the model. Lengths and conditioning are set from the data.
        optimizer: "adamw" or "muon".
        learning_rate: peak rate; about 0.5 divided by the width does for AdamW.
        warmup_steps: steps until the peak; then linear decay to zero at the last step.
        weight_decay: on matrices only.
        ema_decay: of the averaged weights, which are evaluated and saved; 0 = no averaging.
        init_from: model directory to fine-tune: its config (not `network`), weights and tokenizer. Of a
            model of the other system the tokenizer, the shapes, and the weights that both have.
        compile: compile the network with `torch.compile`.
        validation_examples: how many texts to write at every validation.
        generation: options of writing, kept with the model: steps, sampler, temperature, ...
        seed: of all randomness in training.
    """

    def __init__(
        self,
        network: Config = DEFAULT,
        *,
        optimizer: str = "adamw",
        learning_rate: float = 2e-3,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        ema_decay: float = 0.999,
        init_from: str | None = None,
        compile: bool = False,
        validation_examples: int = 64,
        generation: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= ema_decay < 1:
            raise ValueError(f"model.ema_decay must be at least 0 and below 1, not {ema_decay}")
        if validation_examples < 0:
            raise ValueError(f"model.validation_examples must be at least 0, not {validation_examples}")
        self.network, self.optimizer, self.learning_rate = network, optimizer, learning_rate
        self.warmup_steps, self.weight_decay = warmup_steps, weight_decay
        self.ema_decay, self.init_from, self.use_compile = ema_decay, init_from, compile
        self.validation_examples = validation_examples
        self.generation = check_options(generation or {})
        self.seed, self.position, self.model = seed, 0, None
        self.pending: dict[str, Tensor] = {}
        self.register_buffer("buckets", torch.zeros(2, BUCKETS))

    def configure_model(self) -> None:
        """Build the network once the data are known."""
        if self.model is not None:
            return
        data: TextData = self.trainer.datamodule
        self.choose_steps(data)
        torch.manual_seed(self.seed)
        network = shape(self.network, data)
        kind = find("system", network.system, SYSTEMS)
        if self.init_from:
            self.model = self.start(kind, network, data)
        else:
            self.model = kind(network, data.tokenizer)
            self.model.fit_data(data)
        self.model.train()
        if self.generation:
            self.model.config.generation = self.generation
        if self.use_compile:
            self.model.network.compile(dynamic=True)
        self.average = AveragedModel(self.model, multi_avg_fn=partial(update_average, self.ema_decay))
        self.average.requires_grad_(False)

    def start(self, kind: type[TextModel], network: Config, data: TextData) -> TextModel:
        """The model of `init_from`, or one of `kind` from what a model of the other system shares."""
        fits = self.trainer.state.fn == "fit"
        found = open_model(find_folder(self.init_from))
        if type(found) is kind:
            check_fit(found, network, data)
            found.config.source_prefix = network.source_prefix
            if fits:
                found.fit_lengths(data)
            return found
        wanted = shaped(network, found.config)
        check_fit(found, network, data)
        model = kind(wanted, data.tokenizer)
        if fits:
            model.fit_data(data)
        transfer(found, model)
        rank_zero_info(
            f"model.init_from: {self.init_from} is of the system {found.system}; what both have goes "
            "on from there, the rest is new (to fine-tune it as it is: --model.network.system "
            f"{found.system})"
        )
        return model

    def choose_steps(self, data: TextData) -> None:
        """As the data need, unless `max_steps` or `max_epochs` is given.

        Raises:
            ValueError: epochs of a stream.
        """
        trainer = self.trainer
        if not trainer.training or trainer.max_steps != -1:
            return
        if trainer.max_epochs == -1:
            epoch = data.batches_of(trainer.world_size)
            epoch = epoch and max(1, epoch // trainer.accumulate_grad_batches)
            trainer.fit_loop.epoch_loop.max_steps = sizes.steps(epoch)
        elif data.hparams.streaming:
            raise ValueError(
                "trainer.max_epochs: a stream does not say how many steps an epoch has, and the learning "
                "rate falls to the last one; give --trainer.max_steps"
            )

    @property
    def evaluated(self) -> TextModel:
        """The model to evaluate and to save: the averaged one."""
        return self.average.module if self.ema_decay else self.model

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build(OPTIMIZERS, self.optimizer, self.model, self.learning_rate, self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        schedule = linear_decay(optimizer, self.warmup_steps, steps)
        self.told = [(group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        # a misspelt option of `generation` must not wait for the first validation
        if self.validation_examples:
            self.write(self.trainer.datamodule.examples("validation")[:1])

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        torch.manual_seed(self.seed * 1_000_003 + batch["position"])  # dropout
        self.position = batch["position"] + 1
        losses = self.model.loss(batch, self.seed)
        count = total(losses.mask.sum())
        cost = losses.cost if losses.weight is None else losses.cost * losses.weight[:, None]
        loss = (cost * losses.mask).sum() / count * self.trainer.world_size
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        if losses.t is not None:
            self.observe(losses)
        if losses.length is not None:
            length = losses.length.mean()
            self.log("length_loss", length.detach())
            loss = loss + self.model.config.length_weight * length
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step}: lower --model.learning_rate "
                "or lengthen --model.warmup_steps, and go on from the last checkpoint"
            )
        return loss

    @torch.no_grad()
    def observe(self, losses: Losses) -> None:
        """Tell the schedule, and log, the loss by noise level of examples with a single time."""
        mask, seen = losses.mask, ~losses.t.isnan() & losses.mask.any(1)
        example, cost = (
            ((nats * mask).sum(1) / mask.sum(1).clamp(min=1))[seen].float()
            for nats in (losses.nll, losses.cost)
        )
        t = losses.t[seen]
        self.model.process.schedule.observe(t, example)
        self.model.times.observe(t, cost)
        bucket = (t * BUCKETS).long().clamp(max=BUCKETS - 1)
        self.buckets[0].index_add_(0, bucket, example)
        self.buckets[1].index_add_(0, bucket, torch.ones_like(example))
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            means = (self.buckets[0] / self.buckets[1]).tolist()
            for i in self.buckets[1].nonzero()[:, 0].tolist():
                self.log(f"loss_t{(i + 0.5) / BUCKETS:.1f}", means[i])
            self.buckets.zero_()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # so that gradients that a checkpoint finds are those of a step that is not complete
        self.zero_grad()
        # here, so that a checkpoint written right after the step holds the new average
        if self.ema_decay:
            self.average.update_parameters(self.model)

    def settings(self) -> dict[str, Any]:
        """What must not change when training goes on from a checkpoint."""
        vocabulary = self.model.tokenizer.backend.to_str()
        own = {"optimizer": self.optimizer, "seed": self.seed, "tokenizer": crc32(vocabulary.encode())}
        own["precision"] = self.trainer.precision
        if self.trainer.state.fn == "fit":  # validation may take any data
            own |= self.order()
        shape = {k: v for k, v in asdict(self.model.config).items() if k != "generation"}
        if shape["backbone"] is not None:
            shape["backbone"] = shape["backbone"]["config"]  # wherever it came from
        return own | shape

    def order(self) -> dict[str, Any]:
        """What decides which examples come when."""
        trainer, data = self.trainer, self.trainer.datamodule
        return {
            "data.seed": data.hparams.seed,
            "global batch": data.hparams.batch_size * trainer.world_size,
            "streaming": data.hparams.streaming,
            "shuffle_buffer": data.hparams.shuffle_buffer,
            "batches an epoch": data.batches_of(trainer.world_size),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["position"], checkpoint["settings"] = self.position, self.settings()
        parameters = self.model.named_parameters()
        checkpoint["pending"] = {name: p.grad for name, p in parameters if p.grad is not None}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before, now = checkpoint["settings"], self.settings()
        for name in (name for name in now if now[name] != before.get(name)):
            raise ValueError(
                f"ckpt_path: {name} was {before.get(name)!r} when the checkpoint was written and is now "
                f"{now[name]!r}; keep the settings and the data, or fine-tune with --model.init_from"
            )
        self.position = self.trainer.datamodule.position = checkpoint["position"]
        self.pending = checkpoint["pending"]

    def on_train_start(self) -> None:
        # a checkpoint brings the rates of its run; those that this run was told hold
        scheduler = self.lr_schedulers()
        scheduler.base_lrs = [rate for rate, _ in self.told]
        rules = zip(scheduler.optimizer.param_groups, self.told, scheduler.lr_lambdas, strict=True)
        for group, (rate, decay), rule in rules:
            group |= {"initial_lr": rate, "weight_decay": decay, "lr": rate * rule(scheduler.last_epoch)}
        for name, parameter in self.model.named_parameters():
            if name in self.pending:
                parameter.grad = self.pending[name].to(parameter.device)

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        self.evaluated.eval()
        losses = self.evaluated.loss(batch, self.seed)
        loss = (losses.nll * losses.mask).sum() / losses.mask.sum()
        size = int(losses.mask.sum())
        self.log("val_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        examples = self.trainer.datamodule.examples("validation")[: self.validation_examples]
        if self.trainer.sanity_checking or not examples:
            return
        texts = self.write(examples)
        self.print(f"\nstep {self.global_step}: {texts[0]}")
        if examples[0].source is not None:
            references = [example.references for example in examples]
            tokenizer = tokenizer_for(references)
            scores = rouge(texts, references, tokenizer)["rougeL"]
            self.log("val_rougeL", sum(scores) / len(scores), prog_bar=True, sync_dist=True)
            self.log("val_bleu", bleu(texts, references, tokenizer), sync_dist=True)

    def write(self, examples: list[Example]) -> list[str]:
        """Texts for the sources of some examples, or a few samples."""
        sources = [example.source for example in examples]
        known = {"num_samples": min(4, len(examples))} if sources[0] is None else {"sources": sources}
        size = self.trainer.datamodule.writing_size
        return generate_texts(self.evaluated, **known, dtype="auto", batch_size=size).texts


def shape(network: Config, data: TextData) -> Config:
    """The config with what the data decide: conditioning and lengths."""
    told = replace(
        network,
        conditioning=data.conditioning,
        max_source_length=data.hparams.max_source_length,
        source_prefix=data.hparams.source_prefix,
    )
    return replace(told, max_length=told.prefix_length + data.hparams.max_target_length)


def check_fit(start: TextModel, wanted: Config, data: TextData) -> None:
    """Fine-tuning: the data must fit the model that it starts from."""
    model = start.config
    if data.tokenizer.backend.to_str() != start.tokenizer.backend.to_str():
        raise ValueError("init_from: the data have another tokenizer; leave out --data.tokenizer")
    if model.conditioning != wanted.conditioning:
        raise ValueError(
            f"init_from: the model has conditioning {model.conditioning!r}, the data ask for "
            f"{wanted.conditioning!r}; use data of the same kind"
        )
    for name in ("max_length", "max_source_length"):
        if getattr(wanted, name) > getattr(model, name):
            raise ValueError(
                f"init_from: the model's {name} is {getattr(model, name)}, the data ask for "
                f"{getattr(wanted, name)}; lower --data.max_source_length or --data.max_target_length"
            )


def total(count: Tensor) -> Tensor:
    """Sum of a number over all processes."""
    if dist.is_available() and dist.is_initialized():
        count = count.clone()
        dist.all_reduce(count)
    return count


def main(args: list[str] | None = None) -> None:
    """The command line; see `textdiff.cli`."""
    from textdiff.cli import run

    run(sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    main()
