"""What a text model is: a config, a tokenizer, a loss and a way to write, saved in one directory.

The diffusion model (`diffusion.py`) and its autoregressive baseline (`twin.py`) keep this contract;
training, generation and evaluation know nothing else.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.config import Config
from textdiff.storage import find_folder, read_config, read_weights, upload, write_folder
from textdiff.tokenizer import Tokenizer


@dataclass
class Losses:
    """What one batch cost.

    Attributes:
        nll: `(B, L)` nats a token. mask: `(B, L)` tokens that count.
        t: `(B,)` time of the example, nan where tokens have their own; None without a time.
        length: `(B,)` nats for the length; None if the text pays for it itself (EOS).
        objective: `(B, L)` what training makes small, if that is not `nll`.
        weight: `(B,)` of the example in training, by its time; None = 1.
    """

    nll: Tensor
    mask: Tensor
    t: Tensor | None = None
    length: Tensor | None = None
    objective: Tensor | None = None
    weight: Tensor | None = None

    @property
    def cost(self) -> Tensor:
        """`(B, L)`: what training makes small, before weights."""
        return self.nll if self.objective is None else self.objective


def join(parts: list[Losses], parameters: list[Tensor]) -> Losses:
    """Losses of parts of a batch as those of all; every one of `parameters` takes part (DDP)."""
    width = max(part.nll.shape[1] for part in parts)

    def whole(found: list[Tensor | None]) -> Tensor | None:
        known = [F.pad(x, (0, width - x.shape[1])) if x.dim() > 1 else x for x in found if x is not None]
        return torch.cat(known) if known else None

    touch = 0 * sum(parameter.sum() for parameter in parameters)
    found = {f.name: whole([getattr(part, f.name) for part in parts]) for f in fields(Losses)}
    touched = {name: found[name] + touch for name in ("nll", "objective") if found[name] is not None}
    return Losses(**found | touched)


@dataclass
class Request:
    """One batch to write.

    Attributes:
        index: B global numbers of the texts; with `seed` they fix all randomness.
        source, source_mask: `(N, S)`, every source once, or None without a source.
        reads: `(B,)` which of them every text has; None = its own.
        prompt: B lists of given first tokens, empty lists for none; or of all tokens of a text, with
            `OPEN` where some are to be written.
        hidden: `(B,)` how many of them are the source of a prefix model, not part of the text.
        quantile: `(B,)` place in the predicted length distribution.
        length: tokens of every text, EOS included; None = predicted.
        gap_length: tokens for every `OPEN`; None = as many as the length leaves.
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
    gap_length: int | None = None
    watch: bool = False
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)
    reads: Tensor | None = None

    def cut(self, ids: Tensor, valid: Tensor) -> list[list[int]]:
        """The tokens of `ids (B, L)` that belong to the texts: no padding, no hidden source."""
        place = torch.arange(valid.shape[1], device=valid.device)
        shown = valid & (place >= self.hidden.to(valid.device)[:, None])
        rows = zip(ids.tolist(), shown.tolist(), strict=True)
        return [list(compress(row, own)) for row, own in rows]


@dataclass
class Written:
    """Ids of B texts, network evaluations spent, and ids of B texts for every step if watched."""

    ids: list[list[int]]
    evaluations: int
    trajectory: list[list[list[int]]]


@dataclass
class Nats:
    """-log p of B texts, or a bound on it.

    Attributes:
        parts: nats of every text, `(B,)`, by where they come from.
        tokens: `(B,)` tokens paid for. kind: "exact", or the name of the bound.
    """

    parts: dict[str, Tensor]
    tokens: Tensor
    kind: str


class Statistics(Protocol):
    """What a new model asks of the training texts."""

    def token_counts(self) -> Tensor:
        """`(V,)`: how often each token occurs."""

    def length_counts(self) -> Tensor:
        """`(max_length + 1,)`: how many texts have each length, EOS included."""

    def neighbours(self) -> Tensor:
        """`(N, 2)`: tokens that stand next to each other."""


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

    def source_ids(self, sources: Sequence[str]) -> list[list[int]]:
        """Ids of sources as in training; says so where they are longer than any was there."""
        ids = self.tokenizer.encode([self.config.source_prefix + text for text in sources])
        # some tokenizers see nothing in a text; training reads it so as well
        ids = [one or [self.tokenizer.sep_id] for one in ids]
        most, whole = self.config.max_source_length, self.config.source_window is not None
        if long := sum(len(one) > most for one in ids):
            fate = f"only the first {most} tokens are read"
            if whole:
                fate = f"read whole, but the model knows no order of parts after the first {most} tokens"
            warnings.warn(f"{long} of {len(ids)} sources: {fate}", stacklevel=4)
        return ids if whole else [one[:most] for one in ids]

    def fit_data(self, data: Statistics) -> None:
        """Start from what can be counted."""

    def fit_lengths(self, data: Statistics) -> None:
        """Count lengths anew, for texts of another kind."""

    def loss(self, batch: dict[str, Tensor], seed: int) -> Losses:
        """Losses of a batch as `TextData` makes it; all randomness comes from `seed` and `index`."""
        raise NotImplementedError

    def nats(self, batch: dict[str, Tensor], seed: int, **options: Any) -> Nats:
        """What the texts of a batch cost."""
        raise NotImplementedError

    def write(self, request: Request) -> Written:
        """Write one batch of texts."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model directory; an older one in its place survives a failure half-way."""
        tied = tied_names(self)
        state = self.state_dict().items()
        weights = {key: value.contiguous() for key, value in state if key not in tied}
        write_folder(Path(folder), self.config, weights, self.tokenizer)

    def push_to_hub(self, hub_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model directory with a short card; -> its address.

        Args:
            hub_id: `owner/name` on the Hugging Face hub, made if it is not there.
            private: for a new one.
            token: of the account; None = the one that `hf auth login` left.

        Raises:
            ValueError: the hub did not take it.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), hub_id, self.system, private, token)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a model directory, or one of the Hugging Face hub by its id.

        Raises:
            ValueError: no such directory, a file missing or damaged, another kind of model.
        """
        folder = find_folder(source)
        config = read_config(folder)
        if config.system != cls.system:
            raise ValueError(f"{source}: a model of the system {config.system}, not {cls.system}")
        model = cls(config, Tokenizer.load(folder / "tokenizer.json"))
        try:
            found = model.load_state_dict(read_weights(folder), strict=False)
            if lost := [*(set(found.missing_keys) - tied_names(model)), *found.unexpected_keys]:
                raise RuntimeError(f"{len(lost)} weights, such as {min(lost)}, are in one of them only")
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder}: weights and config.json do not match ({reason})") from None
        return model.eval().to(device)


def tied_names(model: nn.Module) -> set[str]:
    """Second and further names of tensors that stand in several places, as tied embeddings do."""
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return set(model.state_dict()) - own


def log_unigram(counts: Tensor) -> Tensor:
    """log p(token), `(V,)`, of `counts (V,)`; unseen tokens keep a little."""
    smoothed = counts.float() + 0.1
    return (smoothed / smoothed.sum()).log()
