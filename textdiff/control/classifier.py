"""Differentiable classifiers of token probabilities, and those of the `transformers` library.

A classifier f(p) = log p(y | p) of token probabilities p knows what `control.py` asks by its slope,

    log p(y | x_t, w_i = v) = f(p) + log(1 + df/dp_i . (e_v - p_i)),                                  (1)

exactly where p(y | p) is the mean of p(y | text) over texts of independent tokens, as that is linear in
each p_i. Others know it to first order, without the logarithm. One of the `transformers` library reads p
as mean embeddings p @ E, so that its gradient reaches them (SSD-LM, Han et al. 2023, arXiv:2210.17432,
section 3.3). Where its vocabulary is not the model's, the tokens of the model are read as mean embeddings
of the pieces that their text has there.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from textdiff.control.control import Control, View
from textdiff.pretrained import count_positions, reads_embeddings
from textdiff.tokenizer import Tokenizer

LEAST = 1e-4  # of p(y | ...) before: a slope that says less is not taken at its word


class Classifier(Control):
    """A differentiable classifier of token probabilities, by equation (1).

    Args:
        log_prob: `probs (B, M, V)`, `valid (B, M)` -> log p(y | probs), `(B,)`.
        shift: move the clean mean instead of the logits.
        exact: `log_prob` is that of texts of independent tokens: (1) with its logarithm.
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        weight: float = 1.0,
        *,
        shift: bool = False,
        exact: bool = False,
    ) -> None:
        super().__init__(weight)
        self.log_prob, self.shift, self.exact = log_prob, shift, exact

    def per_token(self, view: View) -> Tensor:
        with torch.enable_grad():
            free = replace(view, probs=view.probs.detach().requires_grad_())
            value = self.evidence(free)
            if not value.requires_grad:
                raise ValueError(
                    "control: a classifier's answer has no gradient in the probabilities; use TextScore"
                )
            (slope,) = torch.autograd.grad(value.sum(), free.probs)
        if not self.exact:
            return slope
        ratio = 1 + slope - (slope * view.probs).sum(-1, keepdim=True)
        # never below zero but by rounding, or where it is not exact: tokens are worse then, not ruled out
        return ratio.clamp(min=LEAST).log() + (ratio - LEAST).clamp(max=0)

    def evidence(self, view: View) -> Tensor:
        value = self.log_prob(view.probs, view.valid)
        # a mean over the batch would steer every text by the number of its neighbours
        if value.shape != view.probs.shape[:1] or not value.isfinite().all():
            raise ValueError(
                f"control: a classifier must give one finite number a text, {len(view.probs)} of them, "
                f"not {value.detach().flatten()[:3].tolist()} of shape {tuple(value.shape)}"
            )
        return value


class SequenceClassifier(Classifier):
    """log p(label | text) by a sequence classifier of the `transformers` library.

    Args:
        source: local directory or hub id, with weights as safetensors and a tokenizer.
        label: name or number of the wanted class.
        weight: 1 is Bayes' rule, more insists.
        pieces: allow a classifier of another vocabulary.
        shift: move the clean mean instead of the logits. exact: as if it were; weaker, and nearer to
            Bayes' rule.

    Raises:
        ValueError: no such classifier or label.
    """

    def __init__(
        self,
        source: str | Path,
        label: str | int,
        weight: float = 1.0,
        *,
        pieces: bool = False,
        shift: bool = False,
        exact: bool = False,
    ) -> None:
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import cached_file

        try:
            network, told = AutoModelForSequenceClassification.from_pretrained(
                source,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                trust_remote_code=False,  # without a word it would ask on standard input
            )
            file = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
            self.own = Tokenizer.load(file or source)
            if len(self.own) < network.config.get_text_config().vocab_size // 2:  # made of nothing
                raise ValueError(f"its tokenizer has {len(self.own)} tokens")
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"no sequence classifier at {str(source)!r} ({reason})") from None
        if told["missing_keys"]:
            missing = ", ".join(sorted(told["missing_keys"])[:3])
            raise ValueError(f"{source} was not trained to classify: it has no {missing}")
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.source, self.pieces = source, pieces
        self.label = self.number_of(label)
        super().__init__(self.read, weight, shift=shift, exact=exact)
        self.check()

    def check(self) -> None:
        """Embeddings and padding must give what ids give: decoders, which read the last place, do not."""
        before, after = self.frame()
        ids = torch.tensor([[*before, *self.own.encode(["a b"])[0], *after]])
        if not reads_embeddings(self.network, ids):
            kind = type(self.network).__name__
            raise ValueError(
                f"{self.source}: {kind} does not read embeddings; give an encoder classifier"
            )

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """Logits of all classes."""
        return self.network(inputs_embeds=embedded, attention_mask=mask).logits

    def number_of(self, label: str | int) -> int:
        """Number of a class."""
        names = {name: int(number) for number, name in self.network.config.id2label.items()}
        numbers = {str(number): number for number in names.values()}
        known = names | numbers
        if str(label) not in known:
            raise ValueError(f"{self.source} has no label {label!r}; choose one of: {', '.join(names)}")
        return known[str(label)]

    def bind(self, tokenizer: Tokenizer) -> None:
        """Fix what the classifier reads for every token of the model, `(V, D)`."""
        table = self.network.get_input_embeddings().weight
        same = vocabulary(tokenizer) == vocabulary(self.own)
        if not same and not self.pieces:
            raise ValueError(
                f"{self.source} has another vocabulary than the model; give pieces=True (--pieces) to "
                "read every token of the model as the pieces of its text, or one of the same vocabulary"
            )
        if not same:
            warnings.warn(f"{self.source} reads the model's tokens as pieces of its own", stacklevel=2)
        rows = [[i] for i in range(len(tokenizer))] if same else self.spell(tokenizer)
        self.table = torch.stack([table[ids].mean(0) if ids else 0 * table[0] for ids in rows])
        before, after = self.frame()
        self.before, self.after, self.eos_id = table[before], table[after], tokenizer.eos_id
        self.most = count_positions(self.network) - len(before) - len(after)

    def spell(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The classifier's pieces of every token of the model; none of special ones."""
        every = [[i] for i in range(len(tokenizer))]
        return self.own.encode(tokenizer.backend.decode_batch(every, skip_special_tokens=True))

    def frame(self) -> tuple[list[int], list[int]]:
        """Special tokens that stand before and after every text."""
        encoding = self.own.backend.encode("a", add_special_tokens=True)
        text = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]

    def read(self, probs: Tensor, valid: Tensor) -> Tensor:
        """log p(label | probs `(B, M, V)`), `(B,)`; texts end before the first likely EOS.

        Of a text that is longer than what the network reads, its last tokens are read.
        """
        self.network.to(probs.device)
        shown = (valid & (probs[..., self.eos_id] < 0.5)).long().cumprod(1)
        probs, shown = ends(probs, shown, self.most)
        count, length = len(probs), shown.sum(1)
        size = len(self.before) + probs.shape[1] + len(self.after)
        embedded = (probs @ self.table.to(probs)) * shown[..., None]
        pad = embedded.new_zeros(count, len(self.after), embedded.shape[-1])
        before = self.before.to(embedded).expand(count, -1, -1)
        embedded = torch.cat([before, embedded, pad], 1)
        place = torch.arange(size, device=probs.device) - len(self.before) - length[:, None]
        for i, one in enumerate(self.after.to(embedded)):
            embedded = torch.where((place == i)[..., None], one, embedded)
        mask = (place < len(self.after)).long()
        logits = self.classify(embedded, mask)
        return logits.float().log_softmax(-1)[:, self.label]


def ends(probs: Tensor, shown: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most the last `most` tokens that are `shown (B, M)`, and their `probs (B, M, V)`."""
    if shown.shape[1] <= most:
        return probs, shown
    start = (shown.sum(1, keepdim=True) - most).clamp(min=0)
    place = start + torch.arange(most, device=shown.device)
    return probs.gather(1, place[..., None].expand(-1, -1, probs.shape[-1])), shown.gather(1, place)


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Token to id, special tokens included."""
    return tokenizer.backend.get_vocab(with_added_tokens=True)
