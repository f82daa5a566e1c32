"""The autoregressive twin: what the same transformer does when it writes from left to right.

    p(w | source) = prod_i p(w_i | w_<i, source),   w_i = EOS for i <= 0                            (1)

An encoder-decoder (Vaswani et al. 2017, arXiv:1706.03762) of the diffusion model's own parts: encoder,
transformer, initialisation, normalised and tied embeddings, positions, unigram bias. With what the
denoiser spends on noise, time, self-conditioning and length (4 % of its parameters) it reads the last
`WINDOW` tokens at every position, not only the last. That lowers its loss; a hidden layer of that
size before the output did not.

Keys and values of both attentions are cached; finished texts leave the batch. Beam search ranks by

    score(w) = sum_i log p(w_i | w_<i, source) / length^penalty,   EOS counts in the length         (2)

as the `transformers` library does. Like there an EOS counts if it is among the K best continuations,
and a search ends when K texts are finished and none scores below the best unfinished one as it stands.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.batches import pad
from textdiff.config import Config, build
from textdiff.denoiser import bar_of
from textdiff.encoder import Encoder
from textdiff.fixed import once
from textdiff.hardware import precision
from textdiff.model import Losses, Nats, Request, Statistics, TextModel, Written, log_unigram
from textdiff.noise import Noise, clocks, race
from textdiff.objective import token_nats
from textdiff.packing import pick, places, put
from textdiff.pointer import Pointer
from textdiff.process.process import scaled
from textdiff.tokenizer import OPEN, Tokenizer
from textdiff.transformer import Context, KeyValue, Transformer, for_each

Cache = list[KeyValue] | None
WINDOW = 5
CROWD = 0.8  # finished rows leave together, once fewer than this share still runs


class Twin(TextModel):
    """The autoregressive baseline of a `TextDiffusion` with the same `config` and `tokenizer`."""

    system = "autoregressive"
    options = frozenset({"decoding"})

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(replace(config, system=self.system), tokenizer)
        if config.conditioning == "prefix":
            raise ValueError(
                "conditioning 'prefix' is for diffusion; the twin reads its source by 'cross'"
            )
        if config.backbone is not None:
            raise ValueError("backbone: a pretrained network is for diffusion; the twin has its own")
        vocabulary, embedding, width = len(tokenizer), config.embedding_width, config.width
        depth = config.encoder_depth if config.conditioning == "cross" else 0
        shape = {"heads": config.heads, "dropout": config.dropout}
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.read = nn.Linear(WINDOW * embedding, width)
        self.position = nn.Embedding(config.max_length, width)
        self.transformer = Transformer(width, config.depth, cross=depth > 0, causal=True, **shape)
        self.out = nn.Linear(width, embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        shape |= {"max_length": config.max_source_length, "window": config.source_window}
        self.encoder = Encoder(embedding, width, depth, **shape) if depth else None
        if config.pointer and not depth:
            raise ValueError("pointer: copies from a source, and here is none")
        self.pointer = Pointer(width) if config.pointer else None
        barred = (i for i in tokenizer.special_ids if i != tokenizer.eos_id)
        self.register_buffer("bar", bar_of(vocabulary, barred))
        self.register_buffer("log_prior", torch.zeros(vocabulary))
        nn.init.normal_(self.position.weight, std=0.5)
        # reads the last token alone at first: an equal start for all of the window gains nothing
        nn.init.zeros_(self.read.weight[:, :-embedding])
        nn.init.uniform_(self.read.weight[:, -embedding:], -(embedding**-0.5), embedding**-0.5)

    @property
    def network(self) -> nn.Module:
        return self.transformer

    def fit_data(self, data: Statistics) -> None:
        self.log_prior.copy_(log_unigram(data.token_counts()))

    def table(self, ids: Tensor | None = None) -> Tensor:
        """`(V, E)`: the embeddings, read and written, unit variance a coordinate; or those of `ids`."""
        return self.whole_table() if ids is None else scaled(self.embedding(ids))

    @once
    def whole_table(self) -> Tensor:
        return scaled(self.embedding.weight)

    def encode_source(self, source: Tensor | None, source_mask: Tensor | None) -> Context | None:
        """Read `source (B, S)` once, or return None where there is no encoder."""
        if self.encoder is None:
            return None
        memory, mask = self.encoder(self.table(source), source_mask)
        context = self.transformer.remember(memory, mask)
        return context if self.pointer is None else self.pointer.remember(context, memory, source)

    def forward(
        self, ids: Tensor, context: Context | None, past: Cache = None, only: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Logits `(B, L, V)` of the token after each window of `ids (B, WINDOW - 1 + L)`.

        `past` holds the caches of the positions before, which the second result continues. With `only
        (N,)`, places among the B x L tokens, logits of these alone, `(1, N, V)`.
        """
        start, table = 0 if past is None else past[0][0].shape[2], self.table()
        h = self.read(table[ids.unfold(1, WINDOW, 1)].flatten(2))
        h = h + self.position.weight[start : start + h.shape[1]]
        h, past = self.transformer(h, None, context, past)
        logits = F.linear(self.out(pick(h, only)) * table.shape[1] ** -0.5, table)
        logits = logits + (self.bias + self.log_prior + self.bar)
        if self.pointer is not None:
            logits = self.pointer(h, logits, context, only) + self.bar
        return logits, past

    def loss(self, batch: dict[str, Tensor], seed: int) -> Losses:
        """Nats a token of (1), EOS included; in training with the config's label smoothing."""
        ids, smoothing = batch["ids"], self.config.label_smoothing
        context = self.encode_source(batch.get("source"), batch.get("source_mask"))
        context = for_each(context, batch.get("reads"))
        inputs = F.pad(ids[:, :-1], (WINDOW, 0), value=self.tokenizer.eos_id)
        mask = batch["mask"] & (self.bar[ids] == 0)
        only = places(mask)
        logits = self(inputs, context, only=only)[0].float()
        nll = token_nats(logits, pick(ids, only))
        if self.training and smoothing:
            even = logits.logsumexp(-1) - logits[..., self.bar == 0].mean(-1)  # barred: 1e4 nats
            nll = (1 - smoothing) * nll + smoothing * even
        return Losses(put(nll.new_zeros(ids.shape), only, nll), mask)

    @torch.no_grad()
    def nats(self, batch: dict[str, Tensor], seed: int, **options: Any) -> Nats:
        """Exact.

        Raises:
            ValueError: options of a bound.
        """
        if options:
            raise ValueError(
                f"{', '.join(options)}: an autoregressive model needs no bound, its likelihood is exact: "
                "leave it out"
            )
        losses = self.loss(batch, seed)
        nats = (losses.nll * losses.mask).double().sum(1).cpu()
        return Nats({"tokens": nats}, losses.mask.sum(1).cpu(), "exact")

    @torch.no_grad()
    def write(self, request: Request) -> Written:
        """At most `max_length` tokens a text; `decoding` names a class below, or maps its arguments.

        Raises:
            ValueError: gaps or a length, which this baseline does not take; a prompt that leaves no room
                for another token; a wrong option.
        """
        if request.length or any(OPEN in ids for ids in request.prompt):
            raise ValueError("the autoregressive baseline writes on from a prompt: no length=, no gaps")
        if (longest := max(map(len, request.prompt))) >= self.config.max_length:
            raise ValueError(
                f"a prompt of {longest} tokens fills the model's {self.config.max_length} positions: "
                "shorten it"
            )
        decoding = build(DECODINGS, request.options.get("decoding", "greedy"))
        with precision(self.device, request.dtype):
            writer = Writer(self, request)
            return Written(decoding(writer, request), writer.evaluations, [])


class Writer:
    """Rows being written: `texts (N, length so far)` and the caches that the next token needs."""

    def __init__(self, twin: Twin, request: Request) -> None:
        self.twin = twin
        context = twin.encode_source(request.source, request.source_mask)
        self.context = for_each(context, request.reads)
        self.eos, self.limit = twin.tokenizer.eos_id, twin.config.max_length
        self.texts = torch.zeros(len(request.index), 0, dtype=torch.long, device=twin.device)
        self.prompt = pad(request.prompt, OPEN, twin.device)[0]
        self.past: Cache = None
        self.evaluations = 0

    def logits(self) -> Tensor:
        """Of the next token, `(N, V)` float32; to be followed by `append`."""
        self.evaluations += 1
        window = F.pad(self.texts[:, -WINDOW:], (WINDOW, 0), value=self.eos)[:, -WINDOW:]
        logits, self.past = self.twin(window, self.context, self.past)
        return self.given(logits[:, 0].float())

    def given(self, logits: Tensor) -> Tensor:
        """`logits (N, V)`; where the prompt goes on, its token is certain, whatever the decoding."""
        place = self.texts.shape[1]
        if place >= self.prompt.shape[1]:
            return logits
        token = self.prompt[:, place, None]
        other = (token != OPEN) & (torch.arange(logits.shape[1], device=logits.device) != token)
        return logits.masked_fill(other, -torch.inf)

    def append(self, tokens: Tensor) -> None:
        self.texts = torch.cat([self.texts, tokens[:, None]], 1)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, int64; as many as before may only move within their source."""
        if self.context is not None and len(rows) != len(self.texts):
            self.context = self.context.select(rows)
        self.texts, self.prompt = self.texts[rows], self.prompt[rows]
        self.past = self.past and [(key[rows], value[rows]) for key, value in self.past]


def staying(ended: Tensor) -> Tensor:
    """Which of N rows to keep: all while most still run, because leaving copies every cache."""
    return (~ended | ((~ended).sum() > CROWD * len(ended))).nonzero()[:, 0]


class Greedy:
    """The likeliest token at every step."""

    def pick(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """The next tokens `(N,)` of the texts `rows (N,)` from `logits (N, V)`."""
        return logits.argmax(-1)

    def __call__(self, writer: Writer, request: Request) -> list[list[int]]:
        rows = torch.arange(len(writer.texts), device=writer.texts.device)
        out = torch.full((len(rows), writer.limit), writer.eos, device=rows.device)
        for step in range(writer.limit):
            out[rows, step] = tokens = self.pick(writer.logits(), rows, step)
            writer.append(tokens)
            stay = staying((writer.texts == writer.eos).any(1))
            if not len(stay):
                break
            if len(stay) < len(rows):
                writer.select(stay)
                rows = rows[stay]
        return [ids[: [*ids, writer.eos].index(writer.eos) + 1] for ids in out.tolist()]


class Sample(Greedy):
    """Every token drawn from softmax(logits / `temperature`)."""

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"sample: temperature must be finite and above 0, not {temperature}")
        self.temperature = temperature

    def __call__(self, writer: Writer, request: Request) -> list[list[int]]:
        shape = len(request.index), writer.limit, clocks(len(writer.twin.tokenizer))
        self.draws = Noise(request.seed, request.index).uniform(shape).to(writer.texts.device)
        return super().__call__(writer, request)

    def pick(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return race(torch.softmax(logits / self.temperature, -1), self.draws[rows, step])


class Beam:
    """The best text by (2) that K `beams` find; `length_penalty` above 0 favours long texts."""

    def __init__(self, beams: int = 4, length_penalty: float = 1.0) -> None:
        if beams < 1:
            raise ValueError(f"beam: beams must be at least 1, not {beams}")
        self.beams, self.length_penalty = beams, length_penalty

    def __call__(self, writer: Writer, request: Request) -> list[list[int]]:
        k, rows = self.beams, torch.arange(len(writer.texts), device=writer.texts.device)
        first = rows * k
        writer.select(rows.repeat_interleave(k))
        pool = torch.full((len(rows), k), -torch.inf, device=rows.device)  # finished, best first
        scores = pool.clone()
        scores[:, 0] = 0.0  # the beams start equal: only one may count
        texts = [[]] * len(rows)
        for step in range(writer.limit):
            log_probs = writer.logits().log_softmax(-1)
            total = (scores.view(-1, 1) + log_probs).view(len(rows), -1)
            top, flat = total.topk(2 * k)  # at most k of them end
            tokens = flat % log_probs.shape[1]
            parents = flat // log_probs.shape[1] + first[: len(rows), None]
            own = step + 1 - (writer.prompt[::k] != OPEN).sum(1, keepdim=True)  # as in `transformers`
            ended, divisor = tokens == writer.eos, own.clamp(min=1) ** self.length_penalty
            unfinished = ~ended & (step + 1 < writer.limit)
            final = (top / divisor).masked_fill(unfinished, -torch.inf)[:, :k]
            for n in (final.amax(1) > pool[:, 0]).nonzero()[:, 0].tolist():
                best = int(final[n].argmax())
                texts[rows[n]] = [*writer.texts[parents[n, best]].tolist(), int(tokens[n, best])]
            pool = torch.cat([pool, final], 1).topk(k).values
            scores, place = top.masked_fill(ended, -torch.inf).topk(k)
            done = pool[:, -1] >= scores[:, 0] / divisor[:, 0]
            scores = scores.masked_fill(done[:, None], -torch.inf)  # finds no more while it waits
            stay = staying(done)
            if not len(stay):
                break
            writer.select(parents.gather(1, place)[stay].flatten())
            writer.append(tokens.gather(1, place)[stay].flatten())
            rows, scores, pool = rows[stay], scores[stay], pool[stay]
        return texts


DECODINGS: dict[str, type] = {"greedy": Greedy, "sample": Sample, "beam": Beam}
