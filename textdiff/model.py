"""`TextDiffusion`: tokenizer, denoiser and length, in one object that trains, samples, saves and loads.

The training loss of one batch, with given tokens at t = 0:

    t ~ low-discrepancy uniform, one for the example or (token-wise noise) one for every token;
        1 where any tokens are given, as the sampler `confidence` has it
    x_t = where(mask, corrupt(x_0, t), x_0),   loss = -log p(ids | x_t, t, source) where mask
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.batches import pad
from textdiff.config import Config, build, named
from textdiff.decoder import DECODERS
from textdiff.denoiser import Denoiser, Guided
from textdiff.length import Length
from textdiff.noise import Noise, low_discrepancy
from textdiff.process import PROCESSES
from textdiff.sampler import SAMPLERS, Predict, keep, precision
from textdiff.schedule import SCHEDULES
from textdiff.storage import find_folder, read_config, read_weights, write_folder
from textdiff.tokenizer import Tokenizer
from textdiff.transformer import Context


@dataclass
class Losses:
    """What one batch cost.

    Attributes:
        nll: `(B, L)` nats a token. mask: `(B, L)` tokens that count.
        t: `(B,)` time of the example, nan where tokens have their own; None without a time.
        length: `(B,)` nats for the length; None if the text pays for it itself (EOS).
    """

    nll: Tensor
    mask: Tensor
    t: Tensor | None = None
    length: Tensor | None = None


@dataclass
class Request:
    """One batch to write.

    Attributes:
        index: B global numbers of the texts; with `seed` they fix all randomness.
        source, source_mask: `(B, S)`, or None without a source.
        prompt: B lists of given first tokens, empty lists for none.
        hidden: `(B,)` how many of them are the source of a prefix model, not part of the text.
        quantile: `(B,)` place in the predicted length distribution.
        length: tokens of every text, EOS included; None = predicted.
        watch: keep the prediction of every step.
        dtype: precision inside the network.
        options: the system's own, such as steps, sampler, decoder, guidance_scale.
    """

    seed: int
    index: list[int]
    source: Tensor | None
    source_mask: Tensor | None
    prompt: list[list[int]]
    hidden: Tensor
    quantile: Tensor
    length: int | None = None
    watch: bool = False
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)

    def cut(self, ids: Tensor, valid: Tensor) -> list[list[int]]:
        """The tokens of `ids (B, L)` that belong to the texts: no padding, no hidden source."""
        place = torch.arange(valid.shape[1], device=valid.device)
        shown = valid & (place >= self.hidden.to(valid.device)[:, None])
        return [row[own].tolist() for row, own in zip(ids, shown, strict=True)]


@dataclass
class Written:
    """Ids of B texts, network evaluations spent, and ids of B texts for every step if watched."""

    ids: list[list[int]]
    evaluations: int
    trajectory: list[list[list[int]]]


class TextModel(nn.Module):
    """What both systems share: a config, a tokenizer, saving and loading."""

    system: ClassVar[str]
    options: ClassVar[frozenset[str]]  # of writing

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def network(self) -> nn.Module:
        """The part that is worth compiling."""
        raise NotImplementedError

    def fit_data(self, token_counts: Tensor, length_counts: Tensor) -> None:
        """Start from the unigrams `(V,)` and target lengths `(max_length + 1,)` of the data."""

    def loss(self, batch: dict[str, Tensor], seed: int) -> Losses:
        """Losses of a batch as `TextData` makes it; all randomness comes from `seed` and `index`."""
        raise NotImplementedError

    def write(self, request: Request) -> Written:
        """Write one batch of texts."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model directory; an older one in its place survives a failure half-way."""
        weights = {key: value.contiguous() for key, value in self.state_dict().items()}
        write_folder(Path(folder), self.config, weights, self.tokenizer)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a model directory, or one of the Hugging Face hub by its id.

        Raises:
            ValueError: no such directory, a file missing or damaged, another kind of model.
        """
        folder = find_folder(source)
        config = read_config(folder)
        if config.system != cls.system:
            raise ValueError(f"{source} holds a {config.system} model, not a {cls.system} one")
        model = cls(config, Tokenizer.load(folder / "tokenizer.json"))
        try:
            model.load_state_dict(read_weights(folder))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder}: weights and config.json do not match ({reason})") from None
        return model.eval().to(device)


def log_unigram(counts: Tensor) -> Tensor:
    """log p(token), `(V,)`, of `counts (V,)`; unseen tokens keep a little."""
    smoothed = counts.float() + 0.1
    return (smoothed / smoothed.sum()).log()


class TextDiffusion(TextModel):
    """A text diffusion model.

    Args:
        config: shapes of everything.
        tokenizer: text <-> ids.
    """

    system = "diffusion"
    options = frozenset({"steps", "sampler", "decoder", "temperature", "guidance_scale"})

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        if config.prefix_rate + config.given_rate > 1:
            raise ValueError(
                f"prefix_rate {config.prefix_rate} and given_rate {config.given_rate} are shares of all "
                "examples: lower one of them, so that they add up to at most 1"
            )
        embedding = nn.Embedding(len(tokenizer), config.embedding_width)
        process = build(PROCESSES, config.process, embedding, build(SCHEDULES, config.schedule))
        barred = tuple(i for i in tokenizer.special_ids if i != tokenizer.eos_id)
        self.denoiser = Denoiser(
            process,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            encoder_depth=config.encoder_depth if config.conditioning == "cross" else 0,
            max_length=config.max_length,
            max_source_length=config.max_source_length,
            dropout=config.dropout,
            barred=barred,
        )
        width = config.embedding_width if self.denoiser.encoder is None else config.width
        self.length = Length(config.max_length, width)

    @property
    def network(self) -> nn.Module:
        return self.denoiser

    @property
    def process(self) -> nn.Module:
        return self.denoiser.process

    def fit_data(self, token_counts: Tensor, length_counts: Tensor) -> None:
        self.process.log_prior.copy_(log_unigram(token_counts))
        self.length.fit(length_counts)

    def read(self, source: Tensor | None, source_mask: Tensor | None) -> Context | None:
        """Run the source encoder, or return None where there is none."""
        if self.denoiser.encoder is None:
            return None
        return self.denoiser.encode_source(source, source_mask)

    def loss(self, batch: dict[str, Tensor], seed: int) -> Losses:
        ids, valid = batch["ids"], batch["valid"]
        noise = Noise(seed, batch["index"].tolist(), valid)
        coins = noise.uniform((len(ids),)), noise.uniform((len(ids),)), noise.uniform((len(ids),))
        mask, settled = self.draw_mask(batch["mask"], noise)
        own = (coins[0] < self.config.token_noise) & ~settled
        t = low_discrepancy(seed, batch["index"]).to(ids.device).masked_fill(settled, 1.0)
        times = torch.where(own[:, None], noise.uniform(ids.shape), t[:, None]) * mask
        x_0 = self.process.encode(ids)
        x_t = keep(mask, self.process.corrupt(x_0, times, noise), x_0)
        context = self.read_training(batch, coins[1])
        chosen = coins[2] < self.config.self_conditioning
        inputs = {"mask": mask, "valid": valid}
        previous = self.predict_first(x_t, times, ids, inputs, context, chosen)
        logits = self.denoiser(x_t, times, context=context, previous=previous, **inputs)
        nll = self.process.loss(logits, ids, x_t, times)
        # any tokens would tell how many there are: a length is told from a source or a prefix
        open_ = torch.where(settled[:, None], batch["mask"], mask)
        log_lengths = self.length(self.pool(context, ids, open_, valid))
        length = F.nll_loss(log_lengths, batch["mask"].sum(1), reduction="none")
        return Losses(nll, mask, t.masked_fill(own | settled, torch.nan), length)

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
    ) -> Tensor:
        """A first prediction, reread `(B, L, E)`, for the `chosen` rows; zero elsewhere."""
        if not chosen.any():  # zeros, not None: every parameter takes part in every step (DDP)
            return self.process.table()[ids] * 0
        rows = chosen.nonzero()[:, 0]
        some = {key: value[rows] for key, value in inputs.items()}
        part = None if context is None else context.select(rows)
        probs = torch.softmax(self.denoiser(x_t[rows], t[rows], context=part, **some), -1)
        guess, given = self.process.reread(probs), self.process.table()[ids[rows]]
        guess = torch.where(some["mask"][..., None], guess, given.to(guess.dtype))
        return guess.new_zeros(len(ids), *guess.shape[1:]).index_copy(0, rows, guess)

    def pool(self, context: Context | None, ids: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
        """What the length is told from: the source, or the mean of the given tokens; `(B, D)`."""
        if context is not None:
            return context.pooled
        given = (valid & ~mask)[..., None]
        embedded = self.process.table()[ids] * given
        return embedded.sum(1) / given.sum(1).clamp(min=1)

    @torch.no_grad()
    def write(self, request: Request) -> Written:
        options = request.options
        sampler = build(SAMPLERS, options.get("sampler", "confidence"), options.get("steps", 16))
        # the likeliest answer to a source; drawn from nothing, or where a temperature is asked for
        drawn = self.config.conditioning == "none" or "temperature" in options
        usual = "sample" if drawn else "softmax"
        spec = named(options.get("decoder", usual))
        decoder = build(DECODERS, {"temperature": options.get("temperature", 1.0), **spec})
        guidance = options.get("guidance_scale", 1.0)
        with precision(self.device, request.dtype):
            context = self.read(request.source, request.source_mask)
        ids, mask, valid = self.lay_out(request, context)
        noise = Noise(request.seed, request.index, valid)
        denoiser = self.denoiser if guidance == 1 else Guided(self.denoiser, guidance)
        frames: list[Tensor] = []
        watch = frames.append if request.watch else None
        inputs = (ids, mask, valid, context, noise, request.dtype)
        predict = Predict(denoiser, decoder, *inputs, watch=watch)
        out = request.cut(sampler(predict), valid)
        return Written(out, predict.evaluations, [request.cut(frame, valid) for frame in frames])

    def lay_out(self, request: Request, context: Context | None) -> tuple[Tensor, Tensor, Tensor]:
        """Given tokens and empty places: ids, mask, valid, each `(B, L)`."""
        given, shown = pad(request.prompt, self.tokenizer.pad_id)
        given, shown = given.to(self.device), shown.to(self.device)
        pooled = self.pool(context, given, ~shown, shown)
        own = shown.sum(1) - request.hidden.to(self.device)  # prompt tokens that belong to the text
        count = torch.full_like(own, request.length or 0)
        if not request.length:
            count = self.length.quantile(pooled, request.quantile.to(self.device), own + 1)
        total = count + request.hidden.to(self.device)
        self.check_length(total, shown.sum(1))
        place = torch.arange(int(total.max()), device=self.device)
        valid = place < total[:, None]
        ids = torch.full(valid.shape, self.tokenizer.pad_id, device=self.device)
        ids[:, : given.shape[1]] = given[:, : ids.shape[1]]
        return ids, valid & (place >= shown.sum(1, keepdim=True)), valid

    def check_length(self, total: Tensor, given: Tensor) -> None:
        """Refuse what does not fit the positions of the model or leaves nothing to write."""
        if total.max() > self.config.max_length:
            raise ValueError(
                f"length {int(total.max())} is beyond the model's {self.config.max_length} positions; "
                "ask for a shorter text or train with a larger --data.max_target_length"
            )
        if (given >= total).any():
            raise ValueError(
                f"a prompt of {int(given.max())} tokens fills the whole length "
                f"{int(total[given.argmax()])}; shorten it or ask for a longer text"
            )
