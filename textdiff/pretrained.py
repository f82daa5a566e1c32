"""A pretrained masked language model as the denoiser's network, as in SSD-LM and TESS.

    h      = A features(x_t, t) + B time(t) + C previous     where there is noise
             E[word]                                         where words are given
    logits = network(h + ending) + skip log p(token | x_t)                                        (1)

Everything but A = [I, 0] starts at zero: a new denoiser reads the posterior mean of every token with the
network's own embeddings, given words as the network always read them. The models of the peers are of the
same form: SSD-LM (Han et al. 2023, arXiv:2210.17432) has A = [0, I], which reads softmax(K x_t), a linear
B in t, C = 0 and no skip; TESS (Karimi Mahabadi et al. 2024, arXiv:2305.08379) takes the mean of the
noisy text and the last prediction. `scripts/import_checkpoint.py` writes them.

The source, if any, is part of the text; an open block is read together with what comes before it.
"""

import json
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.config import Config, named
from textdiff.denoiser import TIME_FEATURES, Past, bar_of, last, time_features, tokens_left
from textdiff.hardware import steady_attention
from textdiff.packing import pick
from textdiff.process import Process, Seen
from textdiff.tokenizer import Tokenizer
from textdiff.transformer import Context


class PretrainedDenoiser(nn.Module):
    """Equation (1), with the signature of `Denoiser`.

    Args:
        process: what noisy text is; its table is read at the scale it has.
        network: a masked language model of the `transformers` library, see `open_network`.
        max_length: longest text, EOS and prefix included.
        barred: ids that are never generated.
        blocks: also write open blocks.
    """

    evaluations = 1
    encoder = None

    def __init__(
        self,
        process: Process,
        network: nn.Module,
        *,
        max_length: int,
        barred: tuple[int, ...] = (),
        blocks: bool = False,
    ) -> None:
        super().__init__()
        vocabulary, width = process.embedding.weight.shape
        self.process, self.network, self.max_length = process, network, max_length
        self.read = nn.Linear(process.feature_width, width, bias=False)
        self.time = nn.Linear(TIME_FEATURES + 1, width)
        self.previous = nn.Linear(width, width, bias=False)
        self.no_previous = nn.Parameter(torch.zeros(width))
        self.remaining = nn.Embedding(max_length, width)
        self.open_end = nn.Parameter(torch.zeros(width)) if blocks else None
        for part in (self.time.weight, self.time.bias, self.previous.weight, self.remaining.weight):
            nn.init.zeros_(part)
        nn.init.eye_(self.read.weight)
        self.register_buffer("bar", bar_of(vocabulary, barred))
        self.register_buffer("skip", torch.ones(()))

    def words(self, ids: Tensor) -> Tensor:
        """Clean tokens as the network reads them, `(B, L, D)`."""
        return self.network.get_input_embeddings()(ids)

    def remember(
        self, ids: Tensor, valid: Tensor, context: Context | None = None, window: Tensor | None = None
    ) -> Past:
        """The text before a block, embedded; see `Denoiser.remember`."""
        if window is not None:
            ids, valid = last(ids, valid, window)
        return Past([(self.words(ids) + self.open_end,)], valid)

    def embed(
        self, x_t: Tensor, t: Tensor, mask: Tensor, features: Tensor, previous: Tensor | None
    ) -> Tensor:
        """What the network reads of every token, `(B, L, D)`, but for the end of the text."""
        t = t.expand(mask.shape)
        h = self.read(features)
        h = h + self.time(torch.cat([time_features(self.process.schedule, t), t[..., None]], -1))
        if previous is None:
            previous = torch.zeros_like(h)
        h = h + self.previous(previous) + self.no_previous * (previous == 0).all(-1, keepdim=True)
        return torch.where(mask[..., None], h, self.words(self.known(x_t, mask)).to(h.dtype))

    @torch.no_grad()
    def known(self, x_t: Tensor, mask: Tensor) -> Tensor:
        """`(B, L)` ids of clean states where not `mask`, 0 elsewhere."""
        ids = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
        with torch.autocast(x_t.device.type, enabled=False):  # near words must not become one
            ids[~mask] = self.process.round(x_t[~mask])
        return ids

    def ending(self, valid: Tensor, past: Past | None) -> Tensor:
        """What tells of the end of the text, `(B or 1, L or 1, D)`."""
        if past is not None:
            return self.open_end[None, None]
        return self.remaining(tokens_left(valid))

    def run(self, h: Tensor, valid: Tensor) -> Tensor:
        """Logits `(B, L, V)` of `h (B, L, D)`, whose padding may lie anywhere."""
        # padding goes last: the network counts places by itself; what all rows have of it is left out
        order = (~valid).long().argsort(dim=1, stable=True)
        shown = order[:, : int(valid.sum(1).max())]
        x = h.gather(1, shown[..., None].expand(-1, -1, h.shape[-1]))
        with steady_attention(x.device):
            logits = self.network(inputs_embeds=x, attention_mask=valid.gather(1, shown).long()).logits
        logits = F.pad(logits, (0, 0, 0, h.shape[1] - shown.shape[1]))
        return logits.gather(1, order.argsort(1)[..., None].expand_as(logits))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        mask: Tensor,
        valid: Tensor,
        context: Context | None = None,
        previous: Tensor | None = None,
        past: Past | None = None,
        seen: Seen | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """Token logits `(B, L, V)`, or `(1, N, V)`; see `Denoiser.forward`. There is no `context`."""
        seen = self.process.see(x_t, t, only) if seen is None else seen
        h = self.embed(x_t, t, mask, seen.features, previous) + self.ending(valid, past)
        if past is not None:
            (before,) = past.states[0]
            h, valid = torch.cat([before.to(h.dtype), h], 1), torch.cat([past.mask, valid], 1)
        logits = self.run(h, valid)[:, -x_t.shape[1] :]
        return pick(logits, only) + self.bar + self.skip * seen.log_posterior


def open_network(config: Config, tokenizer: Tokenizer) -> tuple[nn.Module, Config]:
    """The network of `config.backbone`, and the config with all that is needed to build it again.

    A name is a directory or a hub id, read with its weights; a mapping with its `config`, as it stands in
    a saved model, is a network of that shape with random weights, and one with `tied: false` has another
    table for noisy tokens.

    Raises:
        ValueError: no masked language model there, one that does not read embeddings, another tokenizer,
            too few positions, or a conditioning that it cannot have.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    told = named(config.backbone)
    if not {"name", "config"} & set(told):
        raise ValueError("backbone: give the directory or hub id of a masked language model")
    if config.conditioning == "cross":
        raise ValueError(
            "backbone: a pretrained network reads the source in the text itself; add "
            "--data.conditioning prefix"
        )
    if "config" in told:
        made = AutoConfig.for_model(**told["config"])
        network = AutoModelForMaskedLM.from_config(made, trust_remote_code=False)
    else:
        # Lightning builds models on the device, which `transformers` would need another library for
        with torch.device("cpu"):
            network = read_network(told["name"], tokenizer)
        told["config"] = json.loads(network.config.to_json_string())
        told["config"].pop("transformers_version", None)
    positions = count_positions(network)
    if config.max_length > positions:
        raise ValueError(
            f"backbone: its {positions} positions are fewer than the {config.max_length} of the text"
            f"{' with its source' if config.conditioning == 'prefix' else ''}; lower "
            "--data.max_source_length or --data.max_target_length"
        )
    shape = {"depth": network.config.num_hidden_layers, "heads": network.config.num_attention_heads}
    shape["width"] = network.config.hidden_size
    width = network.get_input_embeddings().embedding_dim
    return network, replace(config, backbone=told, embedding_width=width, **shape)


def tied(config: Config) -> bool:
    """Whether noisy tokens are read with the embeddings of clean ones; the peers learn two tables."""
    return named(config.backbone).get("tied", True)


def read_network(source: str, tokenizer: Tokenizer) -> nn.Module:
    """A pretrained masked language model with a row for every token of `tokenizer`."""
    from transformers import AutoModelForMaskedLM

    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    options["trust_remote_code"] = False  # without a word it would ask on standard input
    try:
        network, found = AutoModelForMaskedLM.from_pretrained(source, **options)
        own = Tokenizer.load(source)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"backbone: no masked language model at {source!r} ({reason})") from None
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise ValueError(f"backbone: {source} was not trained to fill in words: it has no {missing}")
    if own.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise ValueError("backbone: the data have another tokenizer; leave out --data.tokenizer")
    if not reads_embeddings(network, torch.tensor([own.encode(["a b"])[0]])):
        kind = type(network).__name__
        raise ValueError(f"backbone: {kind} does not read embeddings; give an encoder such as RoBERTa")
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return network


def reads_embeddings(network: nn.Module, ids: Tensor) -> bool:
    """Whether embeddings with padding give a network of `transformers` what `ids (1, L)` give.

    Decoders, which read the last place, and encoder-decoders do not.
    """
    embedded = network.get_input_embeddings()(ids)
    padded = torch.cat([embedded, torch.zeros_like(embedded)], 1)
    mask = torch.ones_like(ids)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            plain = network(input_ids=ids, attention_mask=mask).logits
            mask = torch.cat([mask, 0 * mask], 1)
            found = network(inputs_embeds=padded, attention_mask=mask).logits[:, : plain.shape[1]]
        return torch.allclose(found, plain, atol=1e-3)
    except (NotImplementedError, ValueError, TypeError):
        return False
    finally:
        network.train(training)


def count_positions(network: nn.Module) -> int:
    """Tokens of the longest text that a network of `transformers` reads."""
    for name, part in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            # RoBERTa counts from the row after that of padding
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    return network.config.max_position_embeddings
