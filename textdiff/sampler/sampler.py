"""One loop from noise to text; a sampler is how it steps.

    x_1 ~ prior;   for t, s along 1 ... 0:  p = predict(x_t, t),  x_s = step(x_t, p);   text = argmax p

`Predict` is built once per generation: it owns given positions, source, decoder, self-conditioning, the
time of every token and the count of network evaluations (NFE). Given tokens stand at t = 0 throughout,
so infilling, prefixes and partial noising are one `where`. `steps` counts evaluations: the last
prediction is read, not stepped.

Tokens leave the noise together (`Sampler` and those that change its one step), or one after another
(`Confidence`): a token that is settled is given from then on.
"""

from collections.abc import Callable
from itertools import pairwise
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.decoder import Decoder, one_hot
from textdiff.hardware import precision
from textdiff.noise import Noise
from textdiff.packing import PickedNoise, pick, places, put
from textdiff.process import Seen
from textdiff.schedule import Schedule
from textdiff.transformer import Context


class Predict:
    """x_t, t -> probs, for one batch of one generation.

    Args:
        denoiser: a `Denoiser` or a wrapper with its signature.
        decoder: logits -> probs.
        ids, mask, valid: `(B, L)` given tokens, True = to be generated, False = padding.
        context: the source, or None.
        noise: random streams of the batch.
        dtype: precision inside the denoiser.
        watch: called with the text `(B, L)` of every prediction.
        start: time at which `ids` are the text as it is, to be repaired where `mask`; 1 = from noise.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        decoder: Decoder,
        ids: Tensor,
        mask: Tensor,
        valid: Tensor,
        context: Context | None,
        noise: Noise,
        dtype: torch.dtype = torch.float32,
        watch: Callable[[Tensor], None] | None = None,
        start: float = 1.0,
    ) -> None:
        self.denoiser, self.decoder, self.process = denoiser, decoder, denoiser.process
        self.valid, self.context, self.start = valid, context, start
        self.noise, self.dtype, self.watch = noise, dtype, watch
        self.hold(ids, mask)
        self.previous: Tensor | None = None
        self.latest: Tensor | None = None
        self.shift: Tensor | None = None  # of the clean mean, as controls want it
        self.seen: Seen | None = None  # of a state that stays
        self.evaluations = 0

    def hold(self, ids: Tensor, mask: Tensor) -> None:
        """What is given: the tokens of `ids (B, L)` outside `mask (B, L)`."""
        self.ids, self.mask, self.open = ids, mask, places(mask)
        self.told = ids.masked_fill(mask, 0)  # what is noise still need not be a word
        self.known = (~mask).nonzero(as_tuple=True)

    def clear(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`x_t` at `t (B, L)` with given tokens clean, in place: a simplex is too large to hold twice."""
        x_t[self.known] = self.process.encode(self.ids[self.known]).to(x_t.dtype)
        return x_t

    def times(self, t: float | Tensor) -> Tensor:
        """Time of every token, `(B, L)`, at the time `t`, of all or `(B, 1)` of each; 0 where given."""
        return t * self.mask.float()

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Decoded probabilities `(B, L, V)` at the times `t (B, L)`."""
        return self.fill(self.guess(x_t, t))

    def guess(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The same of the N tokens to be generated alone, `(1, N, V)`."""
        logits = self.read(x_t, t)
        if getattr(self.decoder, "plain", False):
            return self.latest
        return self.decoder(logits, PickedNoise(self.noise, self.mask.shape, self.open))

    def fill(self, probs: Tensor) -> Tensor:
        """`probs (1, N, V)` as `(B, L, V)`, with all mass on the given tokens."""
        whole = one_hot(self.told, probs)
        whole.flatten(0, 1)[self.open] = probs[0]  # in place: it is as large as all that a step computes
        return whole

    def look(self, x_t: Tensor, t: Tensor) -> None:
        """See a state for all predictions that follow: what is open stays as it is."""
        with precision(x_t.device, self.dtype):
            self.seen = self.process.see_open(x_t, t, self.told, self.open)

    def read(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits `(1, N, V)` of the tokens to be generated; their own probabilities are `latest` then."""
        with precision(x_t.device, self.dtype):
            logits = self.denoiser(
                x_t,
                t,
                mask=self.mask,
                valid=self.valid,
                context=self.context,
                previous=self.previous,
                seen=self.seen,
                only=self.open,
            ).float()
        self.evaluations += self.denoiser.evaluations
        self.shift = getattr(self.denoiser, "shift", None)
        self.latest = torch.softmax(logits, -1)
        return logits

    def give(self, chosen: Tensor, probs: Tensor) -> None:
        """From now on `chosen (B, L)` of the open tokens are given, as `probs (1, N, V)` has them.

        The state was seen by `look`.
        """
        leaves = chosen.flatten()[self.open]
        gone, stays = places(leaves), places(~leaves)
        place, ids = self.open[gone], pick(probs, gone).argmax(-1)
        with precision(ids.device, self.dtype):
            features = put(self.seen.features, place, self.process.given_features(ids))
        self.seen = Seen(pick(self.seen.log_posterior, stays), features)
        self.latest = pick(self.latest, stays)
        self.hold(put(self.ids, place, ids), self.mask & ~chosen)

    def first(self) -> Tensor:
        """The state to start from."""
        t = self.times(self.start)
        if self.start < 1:
            return self.clear(self.process.taken(self.ids, t, self.noise), t)
        return self.clear(self.process.prior(self.ids.shape, self.noise), t)

    def answer(self, probs: Tensor) -> Tensor:
        """The text `(B, L)` with the likeliest of `probs (1, N, V)`."""
        return put(self.ids, self.open, probs.argmax(-1))

    def advance(self, step: int) -> None:
        """End of a step: its last raw prediction conditions the next one, with fresh noise."""
        self.previous = put(self.process.table(self.told), self.open, self.process.reread(self.latest))
        self.noise = self.noise.at(step)
        self.show(self.latest)

    def show(self, probs: Tensor) -> None:
        """The text of a prediction `(1, N, V)` to who watches."""
        if self.watch is not None:
            self.watch(self.answer(probs))


class Sampler:
    """Ancestral sampling with the process's own posterior; works for every process.

    Args:
        steps: network evaluations; the most, where a sampler can end earlier.
    """

    tau: float | None = None  # share of fresh noise; None = the posterior's
    shifts = True  # steps from a clean mean, which controls can move
    gaussian = False  # needs a Gaussian process
    draws = True  # works with drawn tokens; False = steps along the mean of all
    midway = True  # can begin at any time, and be mixed with noise put back
    many = False  # its own number of steps is hundreds, whatever a model was saved with
    cost = 1  # network evaluations a step

    def __init__(self, steps: int = 16) -> None:
        if isinstance(steps, bool) or not isinstance(steps, Integral):
            raise ValueError(f"sampler: steps must be a whole number, not {steps!r}")
        if steps < 1:
            raise ValueError(f"sampler: steps must be at least 1, not {steps}")
        self.steps = int(steps)

    def times(self, schedule: Schedule) -> Tensor:
        """The grid 1 ... 0; even in t, so the schedule places the noise levels.

        The last prediction is made at the last but one of these times.
        """
        return torch.linspace(1, 0, (self.steps - 1) // self.cost + 2)

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """x_t -> x_s ~ q(x_s | x_t, x_0 ~ probs); what a new sampler writes.

        Args:
            t, s: `(B, L)`, 0 where given.
            history: the sampler's own memory between steps.
        """
        probs = predict(x_t, t)
        moved = {} if predict.shift is None else {"shift": predict.shift}
        return predict.process.step(x_t, probs, t, s, predict.noise, tau=self.tau, **moved), history

    def solve(self, predict: Predict, x_1: Tensor) -> Tensor:
        """The loop; returns the last decoded probabilities `(1, N, V)` of the tokens to be generated."""
        x_t, history = x_1, []
        times = [predict.times(predict.start * t) for t in self.times(predict.process.schedule).tolist()]
        for i, (t, s) in enumerate(pairwise(times[:-1])):
            x_s, history = self.step(predict, x_t, t, s, history)
            x_t = predict.clear(x_s, s)
            predict.advance(i + 1)
        probs = predict.guess(x_t, times[-2])
        predict.show(probs)
        return probs

    @torch.no_grad()
    def __call__(self, predict: Predict) -> Tensor:
        """ids `(B, L)`: the given tokens and the generated ones."""
        if self.gaussian and not predict.process.gaussian:
            name = type(predict.process).__name__
            raise ValueError(
                f"{type(self).__name__} follows the equations of a Gaussian process, {name} has none: "
                "use the sampler ancestral or confidence"
            )
        return predict.answer(self.solve(predict, predict.first()))


class DDIM(Sampler):
    """Deterministic steps (Song et al. 2021, arXiv:2010.02502); Gaussian processes only."""

    tau, gaussian, draws = 0.0, True, False


class Renoise(Sampler):
    """Fresh noise at every step, so that what was wrong can be put right; works for every process.

    Of a Gaussian process all noise (SSD-LM, Han et al. 2023, arXiv:2210.17432, algorithm 2), of token
    processes all tokens (for masks: remasking, ReMDM, Wang et al. 2025, arXiv:2503.00307).

    Args:
        tau: the share that is fresh, 0 to 1.
    """

    def __init__(self, steps: int = 16, *, tau: float = 1.0) -> None:
        super().__init__(steps)
        if not 0 <= tau <= 1:
            raise ValueError(f"renoise: tau is the share of fresh noise, 0 to 1, not {tau}")
        self.tau = tau


class Confidence(Sampler):
    """Tokens leave the noise one after another, the surest first.

    Every token is pure noise (t = 1) or given (t = 0). After step i of N, n (1 - i / N) of n tokens are
    still noise; the others became given, for good, when the network's highest probability for them was
    among the highest. Beside a surer token it counts with that one's: settled together, both must be
    right. Where there are more steps than tokens, a step settles one token and the others are not spent.
    Time per token makes any process a masked one, written as by MaskGIT (Chang et al. 2022,
    arXiv:2202.04200), whose order depends on the drawn token, however, and who adds noise to it.

    With the decoder `sample` and a step for every token it is exact, up to what is left of the signal at
    t = 1: each token is drawn given those before it, and the order depends on what may be drawn, not on
    what is. With `softmax`, as with `greedy`, tokens are the likeliest and a temperature changes nothing.
    """

    shifts, midway = False, False

    def solve(self, predict: Predict, x_1: Tensor) -> Tensor:
        count = predict.mask.sum(1, keepdim=True)
        pace = count.clamp(1, self.steps)
        last = int(pace.max())
        for i in range(1, last + 1):
            start = predict.times(1.0)
            x_t = predict.clear(x_1, start)
            if i == 1:  # from then on `give` keeps what is seen
                predict.look(x_t, start)
            probs = predict.guess(x_t, start)
            if i == last:  # all that is left is settled, in whatever order
                predict.show(probs)
                break
            left = (count * (1 - i / pace)).clamp(min=0).round()
            rank = self.sureness(predict).argsort(dim=1, descending=True, stable=True).argsort(1)
            leaving = predict.mask.sum(1, keepdim=True) - left
            chosen = predict.mask & (rank < leaving)
            predict.give(chosen, probs)
            predict.advance(i)
        return probs

    def sureness(self, predict: Predict) -> Tensor:
        """`(B, L)`: highest probability of every token that is still noise, times a surer neighbour's."""
        nothing = torch.full(predict.mask.shape, -1.0, device=predict.mask.device)
        sure = put(nothing, predict.open, predict.latest.amax(-1))
        beside = F.max_pool1d(sure, 3, stride=1, padding=1)
        return torch.where(predict.mask & (beside > sure), sure * beside, sure)
