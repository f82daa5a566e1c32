"""`TextDiffusion`: the denoiser and the length, trained, sampled and saved as one model.

The training loss of one batch, with given tokens at t = 0:

    t ~ low-discrepancy uniform, one for the example or (token-wise noise) one for every token;
        1 where any tokens are given, as the sampler `confidence` has it
    x_t = where(mask, corrupt(x_0, t), x_0),   loss = -log p(ids | x_t, t, source) where mask

A share of the examples can be open blocks (`blocks.py`) instead of whole texts.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.blocks import BlockWriter, check_blocks, cut_blocks
from textdiff.classes import classes_of
from textdiff.config import Config, build, find, named
from textdiff.control import Control, refuse_short, steer
from textdiff.decoder import DECODERS
from textdiff.denoiser import Denoiser, GoesOn, Guided
from textdiff.hardware import precision
from textdiff.layout import Layout, check_given, lay_out, lay_text, partway, warn_idle
from textdiff.length import Length
from textdiff.likelihood import find_bound
from textdiff.model import Losses, Nats, Request, Statistics, TextModel, Written, join, log_unigram
from textdiff.noise import Noise, low_discrepancy
from textdiff.objective import cross_entropy, find_objective
from textdiff.packing import pick, places, put
from textdiff.pretrained import PretrainedDenoiser, open_network, tied
from textdiff.process import PROCESSES, Seen, keep
from textdiff.sampler import GIVEN, SAMPLERS, Sampler
from textdiff.schedule import SCHEDULES
from textdiff.times import TIMES
from textdiff.tokenizer import OPEN, Tokenizer
from textdiff.transformer import Context, for_each


def select(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some rows of a batch, `rows (B,)` bool."""
    return {key: value[rows] if isinstance(value, Tensor) else value for key, value in batch.items()}


class TextDiffusion(TextModel):
    """A text diffusion model.

    Args:
        config: shapes of everything.
        tokenizer: text <-> ids.
    """

    system = "diffusion"
    options = frozenset(
        {"steps", "sampler", "decoder", "temperature", "guidance_scale", "block_length", "controls"}
    ) | {"given", "noise", "length_quantile"}

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        network = embedding = None
        if config.backbone is not None:
            network, config = open_network(config, tokenizer)
            embedding = network.get_input_embeddings() if tied(config) else None
        if embedding is None:
            embedding = nn.Embedding(len(tokenizer), config.embedding_width)
        super().__init__(config, tokenizer)
        if config.prefix_rate + config.given_rate > 1:
            raise ValueError(
                f"prefix_rate {config.prefix_rate} and given_rate {config.given_rate} are shares of all "
                "examples: lower one of them, so that they add up to at most 1"
            )
        if config.source_window is not None and config.conditioning == "prefix":
            raise ValueError("source_window is for conditioning 'cross': a prefix is read with the text")
        process = build(PROCESSES, config.process, embedding, build(SCHEDULES, config.schedule))
        barred = tuple(i for i in tokenizer.special_ids if i != tokenizer.eos_id)
        common = {"max_length": config.max_length, "barred": barred, "blocks": config.block_rate > 0}
        if network is not None:
            if config.pointer:
                raise ValueError(
                    "pointer: a pretrained network reads its source with the text: leave it out"
                )
            process.normalised = False
            self.denoiser = PretrainedDenoiser(process, network, **common)
        else:
            self.denoiser = Denoiser(
                process,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                encoder_depth=config.encoder_depth if config.conditioning == "cross" else 0,
                max_source_length=config.max_source_length,
                source_window=config.source_window,
                dropout=config.dropout,
                pointer=config.pointer,
                **common,
            )
        self.objective = find_objective(config.objective, process)
        self.times = build(TIMES, config.times)
        width = config.embedding_width if self.denoiser.encoder is None else config.width
        self.length = Length(config.max_length, width)

    @property
    def network(self) -> nn.Module:
        return self.denoiser

    @property
    def process(self) -> nn.Module:
        return self.denoiser.process

    def fit_data(self, data: Statistics) -> None:
        self.process.log_prior.copy_(log_unigram(data.token_counts()))
        self.process.fit(lambda count: classes_of(data.neighbours(), len(self.tokenizer), count))
        self.fit_lengths(data)

    def fit_lengths(self, data: Statistics) -> None:
        self.length.fit(data.length_counts())

    def read(self, source: Tensor | None, source_mask: Tensor | None) -> Context | None:
        """Run the source encoder, or return None where there is none."""
        if self.denoiser.encoder is None:
            return None
        return self.denoiser.encode_source(source, source_mask)

    def loss(self, batch: dict[str, Tensor], seed: int) -> Losses:
        if not self.config.block_rate:
            return self.loss_of(batch, seed)
        size = (len(batch["ids"]),)
        draws = Noise(seed, batch["index"].tolist(), batch["valid"], step=1)
        coin, where, share = draws.uniform(size), draws.uniform(size), draws.uniform(size)
        chosen = coin < self.config.block_rate
        parts = [self.loss_of(select(batch, ~chosen), seed)] if not chosen.all() else []
        if chosen.any():
            tokens = 1 + (share[chosen] * self.config.block_length).long()
            ends = self.tokenizer.eos_id, self.config.max_length
            blocks = cut_blocks(select(batch, chosen), where[chosen], tokens, *ends)
            parts.append(self.loss_of(blocks, seed))
        return join(
            parts, [self.denoiser.open_end, self.denoiser.remaining.weight, *self.length.parameters()]
        )

    def loss_of(self, batch: dict[str, Tensor], seed: int) -> Losses:
        """Of whole texts, or of open blocks as `cut_blocks` makes them."""
        ids, valid = batch["ids"], batch["valid"]
        noise = Noise(seed, batch["index"].tolist(), valid)
        coins = noise.uniform((len(ids),)), noise.uniform((len(ids),)), noise.uniform((len(ids),))
        mask, settled = self.draw_mask(batch["mask"], noise)
        only = places(mask)
        own = (coins[0] < self.config.token_noise) & ~settled
        t, weight = self.times(low_discrepancy(seed, batch["index"]).to(ids.device))
        t = t.masked_fill(settled, 1.0)
        times = torch.where(own[:, None], noise.uniform(ids.shape), t[:, None]) * mask
        x_0 = self.process.encode(ids)
        x_t = keep(mask, self.process.corrupt(x_0, times, noise), x_0)
        context = self.read_training(batch, coins[1])
        chosen = coins[2] < self.config.self_conditioning
        inputs = {"mask": mask, "valid": valid}
        if "before" in batch:
            inputs["past"] = self.denoiser.remember(batch["before"], batch["before_valid"], context)
        seen = self.process.see_open(x_t, times, ids.masked_fill(mask, 0), only)
        previous = self.predict_first(x_t, times, ids, inputs, context, chosen, seen)
        inputs |= {"context": context, "previous": previous}
        logits = self.denoiser(x_t, times, seen=seen, only=only, **inputs)
        known = self.process, logits, *(pick(x, only) for x in (ids, x_t, times))
        nats = cross_entropy(*known)
        empty = nats.new_zeros(ids.shape)
        nll, objective = put(empty, only, nats), None
        if self.objective is not cross_entropy:
            objective = torch.where(settled[:, None], nll, put(empty, only, self.objective(*known)))
        # what is never written is not learned, such as unknown characters
        mask = mask & (self.denoiser.bar[ids] == 0)
        time = t.masked_fill(own | settled, torch.nan)
        weight = None if weight is None else weight.masked_fill(own | settled, 1.0)
        if "before" in batch:  # an open block knows no length
            return Losses(nll, mask, time, objective=objective, weight=weight)
        # any tokens would tell how many there are: a length is told from a source or a prefix
        open_ = torch.where(settled[:, None], batch["mask"], inputs["mask"])
        log_lengths = self.length(self.pool(context, ids, open_, valid))
        length = F.nll_loss(log_lengths, batch["mask"].sum(1), reduction="none")
        return Losses(nll, mask, time, length, objective, weight)

    def draw_mask(self, mask: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """`mask (B, L)` without what is given: a prefix or any tokens, both a random number of them.

        The second result, `(B,)`, says where it is any tokens.
        """
        coin, share = noise.uniform((len(mask),)), noise.uniform((len(mask),))
        prefix = coin < self.config.prefix_rate
        some = coin < self.config.prefix_rate + self.config.given_rate
        place = torch.where(prefix[:, None], mask.cumsum(1).float(), noise.uniform(mask.shape))
        rank = place.masked_fill(~mask, torch.inf).argsort(1).argsort(1)
        return mask & (rank >= (share * mask.sum(1) * some).long()[:, None]), some & ~prefix

    def read_training(self, batch: dict[str, Tensor], coin: Tensor) -> Context | None:
        """The source, hidden in a share of the examples."""
        if self.denoiser.encoder is None:
            return None
        seen = coin >= self.config.source_dropout
        return self.read(batch["source"], batch["source_mask"] & seen[:, None])

    @torch.no_grad()
    def predict_first(
        self,
        x_t: Tensor,
        t: Tensor,
        ids: Tensor,
        inputs: dict[str, Tensor],
        context: Context | None,
        chosen: Tensor,
        seen: Seen | None = None,
    ) -> Tensor:
        """A first prediction, reread `(B, L, E)`, for the `chosen` rows; zero elsewhere.

        `seen` is that of the open tokens of all rows, where it is known.
        """
        if not chosen.any():  # zeros, not None: every parameter takes part in every step (DDP)
            return self.process.table(ids) * 0
        rows = chosen.nonzero()[:, 0]
        some = {key: value[rows] for key, value in inputs.items()}
        part = None if context is None else context.select(rows)
        only = places(some["mask"])
        if seen is not None:
            asked = places(chosen[:, None].expand_as(ids)[inputs["mask"]])
            some["seen"] = Seen(pick(seen.log_posterior, asked), seen.features[rows])
        probs = torch.softmax(self.denoiser(x_t[rows], t[rows], context=part, only=only, **some), -1)
        guess = self.process.reread(probs)
        guess = put(self.process.table(ids[rows]).to(guess.dtype), only, guess)
        return guess.new_zeros(len(ids), *guess.shape[1:]).index_copy(0, rows, guess)

    def pool(self, context: Context | None, ids: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
        """What the length is told from: the source, or the mean of the given tokens; `(B, D)`."""
        if context is not None:
            return context.pooled
        given = (valid & ~mask)[..., None]
        embedded = self.process.table(ids) * given
        return embedded.sum(1) / given.sum(1).clamp(min=1)

    def nats(
        self,
        batch: dict[str, Tensor],
        seed: int,
        *,
        bound: str = "order",
        steps: int | None = None,
        evaluations: int | None = None,
    ) -> Nats:
        """Of texts and of their lengths.

        Args:
            bound: "order" (any order, as the sampler `confidence` writes), "diffusion" (the ELBO of
                `steps` ancestral steps) or "ode" (the density of the state; Gaussian processes), or
                "ode_exact": its trace without random directions, L * D backward passes an evaluation.
            steps: of "diffusion" alone; None = 1000.
            evaluations: terms of a bound for every text, or random directions for "ode"; None = 64.
                A model that is trained on its own predictions predicts twice for a term, the second time
                with the first in view: the bound is that of a sampler that does so, too; the density not.

        Raises:
            ValueError: an unknown bound, one that the process has not, counts that it does not take
                or below 1.
        """
        bounded = find_bound(bound, self.process, steps, evaluations)
        ids, valid = batch["ids"], batch["valid"]
        context = self.read(batch.get("source"), batch.get("source_mask"))
        mask = batch["mask"] & (self.denoiser.bar[ids] == 0)
        twice = self.config.self_conditioning > 0 and not bound.startswith("ode")

        def denoise(x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:
            inputs, every = {"mask": mask, "valid": valid}, torch.ones_like(mask[:, 0])
            first = self.predict_first(x_t, t, ids, inputs, context, every) if twice else None
            return self.denoiser(x_t, t, context=context, previous=first, **inputs)

        parts = bounded(denoise, self.process, ids, mask, Noise(seed, batch["index"].tolist(), valid))
        with torch.no_grad():
            lengths = self.length(self.pool(context, ids, batch["mask"], valid))
        parts["length"] = F.nll_loss(lengths, batch["mask"].sum(1), reduction="none").double().cpu()
        return Nats(parts, mask.sum(1).cpu(), f"bound: {bound}")

    @torch.no_grad()
    def write(self, request: Request) -> Written:
        options = request.options
        noise, usual = options.get("noise"), "ancestral" if partway(options) else "confidence"
        steps = [options["steps"]] if "steps" in options else []  # else the sampler's own
        sampler = build(SAMPLERS, options.get("sampler", usual), *steps)
        kind, around = find("given", options.get("given", "conditional"), GIVEN)
        check_given(sampler, options)
        sampler = around(sampler) if around else sampler
        # the likeliest answer to a source; drawn from nothing, or where a temperature is asked for
        drawn = self.config.conditioning == "none" or "temperature" in options
        usual = "sample" if drawn and sampler.draws else "softmax"
        spec = named(options.get("decoder", usual))
        decoder = build(DECODERS, {"temperature": options.get("temperature", 1.0), **spec})
        warn_idle(self.process, sampler, decoder)
        with precision(self.device, request.dtype):
            context = for_each(self.read(request.source, request.source_mask), request.reads)
        denoiser = self.guide(sampler, options.get("guidance_scale", 1.0), options.get("controls", ()))
        if noise is not None or any(OPEN in ids for ids in request.prompt):
            denoiser = GoesOn(denoiser, self.tokenizer.eos_id)
        if options.get("block_length") is not None:
            parts = {"denoiser": denoiser, "sampler": sampler, "decoder": decoder, "context": context}
            return self.write_blocks(request, **parts)
        ids, mask, valid = self.lay_out(request, context) if noise is None else lay_text(request, self)
        start = 1.0 if noise is None else self.process.time_of(noise)
        draws = Noise(request.seed, request.index, valid)
        frames: list[Tensor] = []
        watch = frames.append if request.watch else None
        inputs = (ids, mask, valid, context, draws, request.dtype)
        predict = kind(denoiser, decoder, *inputs, watch=watch, start=start)
        out = request.cut(sampler(predict), valid)
        return Written(out, predict.evaluations, [request.cut(frame, valid) for frame in frames])

    def guide(self, sampler: Sampler, scale: float, controls: Sequence[Control]) -> nn.Module:
        """The denoiser under guidance and controls, which are bound to the tokenizer."""
        if controls and self.config.conditioning == "prefix":
            raise ValueError(
                "controls: this model reads its source in the text itself, where controls would see it; "
                "train one with --data.conditioning cross"
            )
        denoiser = self.denoiser if scale == 1 else Guided(self.denoiser, scale)
        return steer(denoiser, controls, sampler)

    def write_blocks(self, request: Request, **parts: Any) -> Written:
        """Block by block, to EOS or to the length asked for; else to as much again as fits the model."""
        if any(OPEN in ids for ids in request.prompt):
            raise ValueError("block_length is for writing on; gaps are filled all together: leave it out")
        size, hidden = request.options["block_length"], request.hidden.tolist()
        given, most = [len(ids) for ids in request.prompt], self.config.max_length
        total = [n + most for n in given] if self.config.conditioning != "prefix" else [most] * len(given)
        if request.length:
            total = [n + request.length for n in hidden]
        check_blocks(self.config, size, total, given)
        refuse_short(request.options.get("controls", ()), torch.tensor(given), torch.tensor(total))
        writer = BlockWriter(
            **parts,
            size=size,
            max_length=most,
            eos_id=self.tokenizer.eos_id,
            seed=request.seed,
            index=request.index,
            dtype=request.dtype,
            watch=request.watch,
        )
        texts = writer(request.prompt, total, self.device)
        frames = [*texts.frames, texts.ids]
        own = [[ids[n:] for ids, n in zip(frame, hidden, strict=True)] for frame in frames]
        return Written(own[-1], texts.evaluations, own[:-1])

    def lay_out(self, request: Request, context: Context | None) -> Layout:
        """Given tokens and empty places; the length is told from the source or the first tokens."""

        def lengths(first: Tensor, shown: Tensor, least: Tensor) -> Tensor:
            pooled = self.pool(context, first, ~shown, shown)
            return self.length.quantile(pooled, request.quantile.to(self.device), least)

        return lay_out(request, self, lengths)
