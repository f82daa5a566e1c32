"""What shapes a model, and how names in a configuration become objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
Spec = str | dict[str, Any]
LEAST = {"width": 1, "depth": 1, "heads": 1, "embedding_width": 1, "encoder_depth": 0, "block_length": 1}
LEAST |= {"length_weight": 0}
RATES = ("self_conditioning", "token_noise", "prefix_rate", "given_rate", "block_rate", "source_dropout")
RATES += ("dropout", "label_smoothing")


def named(spec: Spec) -> dict[str, Any]:
    """A name alone, or a mapping, as a mapping."""
    return {"name": spec} if isinstance(spec, str) else dict(spec)


def find(what: str, name: str, known: Mapping[str, T]) -> T:
    """What is `known` by this name.

    Raises:
        ValueError: nothing is.
    """
    if name not in list(known):  # a list has no hash
        raise ValueError(f"unknown {what} {name!r}; choose one of: {', '.join(known)}")
    return known[name]


def build(registry: dict[str, type], spec: Spec, *args: Any) -> Any:
    """The object named by `spec`: a name, or `{"name": ..., **keyword arguments}`.

    Raises:
        ValueError: unknown name, or arguments that its constructor does not take.
    """
    options = named(spec)
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"no name in {options}: say whose options these are")
    kind = find("name", name, registry)
    try:
        return kind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


@dataclass
class Config:
    """Everything that shapes a model.

    Attributes:
        system: "diffusion", or "autoregressive" for the baseline of the same transformer.
        process: name of the diffusion process, or a mapping with `name` and its arguments.
        schedule: name of the noise schedule, likewise.
        backbone: directory or hub id of a pretrained masked language model (RoBERTa, BERT, ModernBERT)
            to be the network; shapes below are then its own. None = a new one.
        width, depth, heads, dropout: of the transformer.
        conditioning: "cross" (source encoder), "prefix" (source and text in one sequence, only the
            text noised) or "none" (no source); set from the data.
        encoder_depth: blocks of the source encoder, with conditioning "cross".
        pointer: tokens of the source can be copied, with conditioning "cross".
        embedding_width: width of the token embeddings, which the noise lives on.
        max_length: longest text in tokens, EOS (and prefix) included; set from the data.
        max_source_length: most source tokens; set from the data.
        source_window: tokens of the source that are read together, with conditioning "cross"; longer ones
            are read in parts, in training up to `max_source_length`, afterwards of any length. None = all
            tokens together.
        source_prefix: text put before every source; set from the data.
        objective: what training makes small: "cross_entropy", "variational", "mean_square" or "anchor";
            always cross_entropy where tokens are given and all others pure noise.
        times: which times training looks at, "even" or "importance", likewise by name or mapping.
        self_conditioning: share of examples trained on their own first prediction.
        prefix_rate: share of examples with a clean prefix of random length.
        given_rate: share of examples with any tokens given, a random number, and all others pure noise.
        token_noise: share of all other examples whose tokens each draw their own time.
        block_rate: share of examples cut to an open block that follows their first tokens, for writing
            texts of any length block by block; then all of the above holds for the block.
        block_length: most tokens of such a block.
        source_dropout: share of examples trained without their source (for guidance).
        length_weight: weight of the length loss.
        label_smoothing: of the autoregressive baseline.
        generation: how the model writes unless told otherwise: steps, sampler, decoder, ...
    """

    system: str = "diffusion"
    process: Spec = "embedding"
    schedule: Spec = "gumbel"
    backbone: Spec | None = None
    width: int = 192
    depth: int = 4
    heads: int = 6
    dropout: float = 0.0
    conditioning: str = "cross"
    encoder_depth: int = 2
    pointer: bool = False
    embedding_width: int = 128
    max_length: int = 64
    max_source_length: int = 256
    source_window: int | None = None
    source_prefix: str = ""
    objective: str = "cross_entropy"
    times: Spec = "even"
    self_conditioning: float = 0.5
    token_noise: float = 0.5
    prefix_rate: float = 0.1
    given_rate: float = 0.5
    block_rate: float = 0.0
    block_length: int = 32
    source_dropout: float = 0.1
    length_weight: float = 0.1
    label_smoothing: float = 0.0
    generation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:  # nan, too
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in RATES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")

    @property
    def prefix_length(self) -> int:
        """Positions that the longest source takes from those of the text."""
        return self.max_source_length + 1 if self.conditioning == "prefix" else 0
