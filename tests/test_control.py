"""Controls against enumeration, steering against the exact oracle, and both from texts to texts."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from test_blocks import LONG, make_model
from test_oracle import OneStream, make_process
from torch import Tensor

from textdiff.control import (
    AtLeast,
    Avoid,
    Classifier,
    Contain,
    Control,
    Shifted,
    Steered,
    TextScore,
    View,
    WordAt,
)
from textdiff.control.steering import least_length
from textdiff.control.words import patterns
from textdiff.decoder import DECODERS
from textdiff.denoiser import Continued
from textdiff.generation import generate_texts
from textdiff.process import PROCESSES, Gaussian
from textdiff.sampler import SAMPLERS, Predict
from textdiff.testing import MarkovLanguage, OracleDenoiser
from textdiff.tokenizer import Tokenizer

V, M = 5, 4
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=M)))
GAUSSIAN = [name for name in PROCESSES if issubclass(PROCESSES[name], Gaussian)]


def make_view(rows: int = 2, sharpness: float = 1.0) -> View:
    torch.manual_seed(0)
    probs = torch.softmax(sharpness * torch.randn(rows, M, V), -1)
    return View(
        probs, torch.ones(rows, M, dtype=torch.bool), torch.zeros(rows, M, 3), torch.ones(rows, M)
    )


def enumerated(probs: Tensor, has: Tensor) -> Tensor:
    """log p(y | w_i = v), `(M, V)`, over all texts of independent tokens; `has (T,)` = y holds."""
    each = probs[torch.arange(M), TEXTS].double()  # (T, M)
    out = torch.empty(M, V).double()
    for i, v in itertools.product(range(M), range(V)):
        others = each.clone()
        others[:, i] = (TEXTS[:, i] == v).double()
        out[i, v] = (others.prod(1) * has).sum()
    return out.clamp(min=1e-30).log().float()


def contains(ids: list[int], anywhere: bool = False) -> Tensor:
    """Which of all texts hold this sequence, before their EOS or anywhere."""
    alive = F.pad((TEXTS != EOS).long().cumprod(1), (1, 0), value=1)[:, : M - len(ids) + 1]
    windows = TEXTS.unfold(1, len(ids), 1)
    return ((windows == torch.tensor(ids)).all(-1) & ((alive > 0) | anywhere)).any(1)


EOS = 4


def bound(kind: type, words: list[list[int]], **options: float) -> Control:
    control = kind(["x"] * len(words), **options)
    control.patterns, control.eos_id = patterns(words), EOS
    return control


def same(found: Tensor, expected: Tensor, error: float = 1e-4) -> bool:
    """As distributions, up to a constant a token."""
    return torch.allclose(found.softmax(-1), expected.softmax(-1), atol=error)


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
@pytest.mark.parametrize("ids", [[[2]], [[2], [3]], [[0], [1], [3]], [[0, 1, 2, 3]]])
def test_words_of_one_token_or_one_place_are_exact(ids, sharpness):
    view, has = make_view(sharpness=sharpness), sum(map(contains, ids)) > 0
    for row in range(2):
        exact = enumerated(view.probs[row], has)
        assert same(bound(Contain, ids).per_token(view)[row], exact)
        exact = enumerated(view.probs[row], sum(contains(one, anywhere=True) for one in ids) == 0)
        assert same(bound(Avoid, ids).per_token(view)[row], exact)


@pytest.mark.parametrize("ids", [[[1, 3]], [[1, 1]], [[2], [1, 3]]])
def test_longer_words_and_several_are_nearly_exact(ids):
    view, has = make_view(), sum(map(contains, ids)) > 0
    for row in range(2):
        ratio = bound(Contain, ids).per_token(view)[row] - enumerated(view.probs[row], has)
        assert ratio.exp().sub(1).abs().max() < 0.35
        assert abs((view.probs[row] * ratio).sum(-1)).max() < 0.1


def test_a_word_that_is_there_asks_for_nothing_and_one_that_cannot_be_is_no_nan():
    view = make_view()
    view.probs[0] = F.one_hot(torch.tensor([0, 2, 1, 0]), V)
    there = bound(Contain, [[2, 1]]).per_token(view)[0]
    assert there[0, :EOS].abs().max() < 1e-5 and there[3].abs().max() < 1e-5
    assert there[0, EOS] < -60, "nothing is there after the end"
    for control in (bound(Contain, [[3]]), bound(Avoid, [[2]]), bound(Contain, [[0] * 9])):
        assert control.per_token(view).isfinite().all()


def test_word_at_a_place():
    view, control = make_view(), WordAt("x", 1)
    control.ids, control.eos_id = [3, 0], EOS
    found = control.per_token(view)
    assert found[:, 1].argmax(-1).eq(3).all() and found[:, 2].argmax(-1).eq(0).all()
    assert (found[:, 3] == 0).all() and (found[:, 0, :EOS] == 0).all()
    assert (found[:, 0, EOS] < -60).all(), "the text must not end before the word"
    exact = enumerated(view.probs[0], (TEXTS[:, 1] == 3) & (TEXTS[:, 2] == 0))
    assert same(found[0, 1], exact[1], 1e-4)


EXACT = {  # p(y | probs) of independent tokens, and the texts that have y
    "ends in 1 or 4": (lambda p: p[:, -1, [1, 4]].sum(-1), (TEXTS[:, -1] == 1) | (TEXTS[:, -1] == 4)),
    "holds a 2": (lambda p: 1 - (1 - p[..., 2]).prod(1), (TEXTS == 2).any(1)),
    "begins with a double": (lambda p: (p[:, 0] * p[:, 1]).sum(-1), TEXTS[:, 0] == TEXTS[:, 1]),
}


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_classifier_tells_the_exact_posterior(name, sharpness):
    """Beside the tokens' own probabilities, by enumeration of all texts."""
    view, (prob, has) = make_view(3, sharpness), EXACT[name]
    told = Classifier(lambda probs, valid: prob(probs).log(), exact=True).per_token(view)
    for row in range(3):
        exact, prior = enumerated(view.probs[row], has), view.probs[row].log()
        assert same(told[row] + prior, exact + prior, 1e-3)


def test_a_linear_classifier_is_told_exactly():
    view, weight = make_view(3), torch.randn(M, V)
    control = Classifier(lambda probs, valid: (probs * weight).sum((1, 2)))
    assert same(control.per_token(view)[1], weight)


def test_a_classifier_that_is_far_from_exact_rules_nothing_out():
    """Its slope says less than no probability: finite, and in its order."""
    view, weight = make_view(3), torch.randn(M, V)
    control = Classifier(lambda probs, valid: 40 * (probs * weight).sum((1, 2)), exact=True)
    told = control.per_token(view)
    assert told.isfinite().all() and told.min() < -9.0 and told.max() < 6.0
    assert torch.equal(told.argsort(-1), weight.argsort(-1).expand(3, -1, -1))


def test_scores_of_drawn_texts_come_near_the_exact_answer(monkeypatch):
    """A score that no gradient reaches: how often the token 2 stands in a text."""
    view = make_view()

    class Letters:
        def decode(self, rows: list[list[int]]) -> list[str]:
            return ["".join(map(str, row)) for row in rows]

    control = TextScore(lambda texts: [2.0 * text.count("2") for text in texts], samples=8000)
    control.bind(Letters())
    gain = torch.exp(2.0 * (TEXTS == 2).sum(1))
    for row in range(2):
        exact = enumerated(view.probs[row], gain / gain.max())
        assert same(control.per_token(view)[row], exact, 0.05)
    few = TextScore(control.score, samples=16)
    few.bind(Letters())
    alone = few.per_token(View(view.probs[1:], view.valid[1:], view.x_t[1:], view.t[1:]))
    assert torch.equal(few.per_token(view)[1:], alone)


# The exact oracle


class Ending(Control):
    """y = the last word is one of `words`; knows the exact posterior of a language."""

    def __init__(self, oracle: OracleDenoiser, words: list[int], before: Tensor | None = None) -> None:
        super().__init__()
        self.oracle, self.words, self.before = oracle, words, before

    def posteriors(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """log p(w_i | x_t), log p(w_i | x_t, y) and log p(y | x_t)."""
        language, process = self.oracle.language, self.oracle.process
        emissions = process.log_likelihood(view.x_t, view.t).double()
        plain = language.log_posterior(emissions, self.before)
        barred = torch.full((language.vocabulary,), -1e4).double()
        barred[self.words] = 0.0
        ending = torch.cat([emissions[:, :-1], emissions[:, -1:] + barred], 1)
        return plain, language.log_posterior(ending, self.before), plain[:, -1, self.words].logsumexp(-1)

    def per_token(self, view: View) -> Tensor:
        plain, told, evidence = self.posteriors(view)
        per_token = told + evidence[:, None, None] - plain
        return F.pad(per_token, (0, 0, view.probs.shape[1] - plain.shape[1], 0)).float()

    def evidence(self, view: View) -> Tensor:
        return self.posteriors(view)[2]


def oracle_state(
    process: str, time: float, **options: float
) -> tuple[OracleDenoiser, Tensor, Tensor, dict[str, Tensor]]:
    oracle = OracleDenoiser(make_process(process).double(), MarkovLanguage(**options))
    ids = oracle.language.sample(3, seed=4)
    t = torch.full(ids.shape, time).double()
    x_t = oracle.process.corrupt(oracle.process.encode(ids), t, OneStream(3))
    x_t = x_t.double() if x_t.is_floating_point() else x_t
    whole = torch.ones_like(ids, dtype=torch.bool)
    return oracle, x_t, t, {"mask": whole, "valid": whole}


@pytest.mark.parametrize("time", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_exact_classifier_gives_the_exact_posterior(process, time):
    oracle, x_t, t, inputs = oracle_state(process, time)
    control = Ending(oracle, [1, 4])
    steered = Steered(oracle, [control])(x_t, t, **inputs)
    exact = control.posteriors(View(x_t, inputs["valid"], x_t, t))[1]
    assert torch.allclose(steered.softmax(-1).double(), exact.exp(), atol=1e-4)
    assert (steered.softmax(-1) - oracle(x_t, t, **inputs).softmax(-1)).abs().max() > 0.05


@pytest.mark.parametrize("process", PROCESSES)
def test_an_exact_classifier_of_independent_words_gives_the_denoiser_of_the_class(process):
    """By its slope alone, where `Ending` is told the answer; twice the weight is the square."""
    oracle, x_t, t, inputs = oracle_state(process, 0.6, sharpness=0.0)
    exact = OracleDenoiser(oracle.process, oracle.language, last=[1, 4])(x_t, t, **inputs).softmax(-1)
    prior = oracle(x_t, t, **inputs).softmax(-1)
    for weight, odds in ((1.0, exact), (2.0, exact**2 / prior)):
        control = Classifier(lambda probs, _: probs[:, -1, [1, 4]].sum(-1).log(), weight, exact=True)
        found = Steered(oracle, [control])(x_t, t, **inputs).softmax(-1).double()
        assert (found - odds / odds.sum(-1, keepdim=True)).abs().max() < 1e-3
    assert (exact - prior).abs().max() > 0.05


@pytest.mark.parametrize("time", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("process", GAUSSIAN)
def test_the_exact_classifier_shifts_to_the_exact_conditional_mean(process, time):
    """For one token; all positions move together, as the evidence is of the whole text."""
    oracle, x_t, t, inputs = oracle_state(process, time)
    control = Ending(oracle, [1, 4])
    shifted = Shifted(oracle, [control])
    probs = shifted(x_t, t, **inputs).softmax(-1).double()
    exact = control.posteriors(View(x_t, inputs["valid"], x_t, t))[1].exp()
    expected = oracle.process.mean(exact)
    assert torch.allclose(oracle.process.mean(probs) + shifted.shift, expected, atol=1e-4)
    assert (oracle.process.mean(probs) - expected).abs().max() > 0.02


def test_weights_add_up_and_a_control_of_weight_zero_is_none():
    oracle, x_t, t, inputs = oracle_state("embedding", 0.7)
    plain = oracle(x_t, t, **inputs).float()
    controls = [Ending(oracle, [1, 4]), Ending(oracle, [0, 1])]
    both = Steered(oracle, controls)(x_t, t, **inputs)
    each = [Steered(oracle, [control])(x_t, t, **inputs) - plain for control in controls]
    assert torch.allclose(both, plain + sum(each), atol=1e-4)
    controls[0].weight, controls[1].weight = 0.0, 2.0
    assert torch.allclose(Steered(oracle, controls)(x_t, t, **inputs), plain + 2 * each[1], atol=1e-4)


@pytest.mark.parametrize("wrapper", [Steered, Shifted])
def test_a_steered_step_does_not_depend_on_the_batch(wrapper):
    oracle, x_t, t, inputs = oracle_state("embedding", 0.7)
    weight = torch.randn(6)
    control = Classifier(
        lambda probs, valid: -((probs.mean(1) * weight).sum(1) ** 2), shift=wrapper is Shifted
    )
    together, alone = wrapper(oracle, [control]), wrapper(oracle, [control])
    logits = together(x_t, t, **inputs)
    for row in range(3):
        some = {key: value[row : row + 1] for key, value in inputs.items()}
        assert torch.allclose(
            alone(x_t[row : row + 1], t[row : row + 1], **some)[0], logits[row], atol=1e-6
        )
        if wrapper is Shifted:
            assert torch.allclose(alone.shift[0], together.shift[row], atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "decoder", "steps"), [("ancestral", "softmax", 60), ("confidence", "sample", 8)]
)
@pytest.mark.parametrize("process", PROCESSES)
def test_steered_texts_of_the_language_have_the_property(process, sampler, decoder, steps):
    """The exact classifier at weight 1: conditional frequencies of the words before the last one."""
    language, count = MarkovLanguage(), 2500
    oracle = OracleDenoiser(make_process(process), language)
    whole = torch.ones(count, language.length, dtype=torch.bool)
    ids = torch.zeros(whole.shape, dtype=torch.int64)
    steered = Steered(oracle, [Given(oracle, [1, 4])])
    predict = Predict(steered, DECODERS[decoder](), ids, whole, whole, None, OneStream(0))
    made = SAMPLERS[sampler](steps)(predict)
    assert torch.isin(made[:, -1], torch.tensor([1, 4])).float().mean() >= 0.99
    nothing = torch.zeros(1, language.length, 6).double()
    nothing[0, -1] = torch.tensor([-1e4, 0, -1e4, -1e4, 0, -1e4])
    exact = language.log_posterior(nothing)[0].exp()
    found = F.one_hot(made, 6).double().mean(0)
    assert ((found - exact).abs().sum(-1) / 2).max() <= 0.04


class Given(Ending):
    """The same where some words are settled, as `confidence` leaves them."""

    def posteriors(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        settled = (view.t == 0)[..., None]
        known = torch.where(settled, (view.probs > 0.5).double().log().clamp(min=-1e4), 0.0)
        language, process = self.oracle.language, self.oracle.process
        emissions = torch.where(settled, known, process.log_likelihood(view.x_t, view.t).double())
        plain = language.log_posterior(emissions)
        barred = torch.full((6,), -1e4).double()
        barred[self.words] = 0.0
        ending = torch.cat([emissions[:, :-1], emissions[:, -1:] + barred], 1)
        return plain, language.log_posterior(ending), plain[:, -1, self.words].logsumexp(-1)


def test_a_control_sees_the_text_before_a_block_without_a_gap():
    oracle, x_t, t, inputs = oracle_state("embedding", 0.7)
    seen = []

    class Watch(Control):
        def per_token(self, view: View) -> Tensor:
            seen.append(view)
            place = torch.arange(view.probs.shape[1]).float()[None, :, None]
            return place.expand_as(view.probs) * F.one_hot(torch.tensor(2), 6)

    steered = Steered(oracle, [Watch()])
    before, known = (
        torch.tensor([[1, 2, 3], [4, 0, 0], [0, 0, 0]]),
        torch.arange(3) < torch.tensor([[3], [1], [0]]),
    )
    past = steered.remember(before, known, None)
    inputs["valid"] = inputs["mask"] = torch.arange(8) < torch.tensor([[8], [5], [2]])
    logits = Continued(steered, past)(x_t, t, **inputs)
    plain = Continued(oracle, past[0])(x_t, t, **inputs)
    (view,) = seen
    for row, (start, size) in enumerate([(3, 8), (1, 5), (0, 2)]):
        assert view.probs[row, :start].argmax(-1).tolist() == before[row, :start].tolist()
        assert view.valid[row].sum() == start + size and view.valid[row, : start + size].all()
        block = view.probs[row, start : start + size]
        assert torch.allclose(block.double(), plain[row, :size].softmax(-1), atol=1e-5)
        told = (logits - plain)[row, :size, 2].float()
        assert torch.allclose(told, torch.arange(start, start + size).float(), atol=1e-4)


def test_controls_see_given_words_as_they_are():
    """Whatever the network says of them."""
    model, seen = make_model(), []

    class Watch(Control):
        def per_token(self, view: View) -> Tensor:
            seen.append(view.probs)
            return torch.zeros_like(view.probs)

    ids, whole = torch.arange(40, 48)[None], torch.ones(1, 8, dtype=torch.bool)
    mask = torch.arange(8)[None] != 2
    x_t = torch.where(mask[..., None], torch.randn(1, 8, 8), model.process.encode(ids))
    Steered(model.denoiser, [Watch()])(x_t, mask.float(), mask=mask, valid=whole)
    assert torch.equal(seen[0][:, 2], F.one_hot(ids[:, 2], 260).float())
    assert (seen[0][:, [1, 3]].amax(-1) < 1).all()


# From texts to texts


@pytest.mark.parametrize("sampler", ["confidence", "ancestral"])
def test_generated_texts_hold_and_avoid_words(sampler):
    model = make_model(vocabulary=275)
    assert [len(ids) for ids in model.tokenizer.encode(["few", "words", "wordy"])] == [1, 1, 3]
    plain = {"num_samples": 8, "steps": 9, "decoder": "sample", "sampler": sampler, "length": 10}
    free = generate_texts(model, **plain).texts
    assert sum("few" in text or "words" in text for text in free) < 4
    held = generate_texts(model, controls=[Contain(["few", "words"])], **plain).texts
    # tokens that are drawn at once can all leave a word to the others
    least = {"confidence": 8, "ancestral": 4}[sampler]
    assert sum("few" in text or "words" in text for text in held) >= least and len(set(held)) == 8
    long = generate_texts(model, controls=[Contain("wordy")], **plain).texts
    assert sum("wordy" in text for text in long) >= least - 3
    first = generate_texts(model, controls=[WordAt("few", 0)], **plain).texts
    assert all(text.startswith("few") for text in first)
    loud = Classifier(lambda probs, valid: 90 * probs[..., model.tokenizer.encode(["few"])[0][0]].sum(1))
    assert all("few" in text for text in generate_texts(model, controls=[loud], **plain).texts)
    quiet = generate_texts(model, controls=[loud, Avoid("few", 9.0)], **plain).texts
    assert not any("few" in text for text in quiet)


def test_steered_texts_do_not_depend_on_their_batch():
    model = make_model()
    options = {"steps": 4, "decoder": "sample", "block_length": 4, "length": 14}
    controls = [Contain("few"), TextScore(lambda texts: [-0.1 * len(text) for text in texts])]
    made = [
        generate_texts(model, prompt=["a", "", "few wor"], controls=controls, batch_size=n, **options).ids
        for n in (3, 1)
    ]
    assert made[0] == made[1]


def test_a_shift_changes_texts_and_needs_a_sampler_that_steps():
    model = make_model()
    control = Classifier(lambda probs, valid: probs[..., 100].sum(1), 1e4, shift=True)
    options = {"num_samples": 2, "steps": 6, "decoder": "softmax", "length": 8, "controls": [control]}
    for sampler in ("ancestral", "ddim", "renoise"):
        some = options | {"sampler": sampler}
        assert generate_texts(model, **some).ids != generate_texts(model, **(some | {"controls": []})).ids
    with pytest.raises(ValueError, match="needs a sampler that steps from it, such as ancestral"):
        generate_texts(model, sampler="confidence", **options)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("wor must occur and must not", lambda: [Contain("wor"), Avoid(["few", "wor"])]),
        ("Wor must occur and must not", lambda: [Contain("Wor"), Avoid("wor")]),
        ("a few must occur and must not", lambda: [Contain("a few"), Avoid("few")]),
        ("'few' at token 2 must occur and must not", lambda: [WordAt("few", 2), Avoid("few")]),
        ("'wor' at token 3 stands where another", lambda: [WordAt("few", 2), WordAt("wor", 3)]),
        ("a weight must be a finite number, not nan", lambda: [Contain("few", math.nan)]),
        ("a weight must be a finite number, not inf", lambda: [Avoid("few", math.inf)]),
        ("give a list of textdiff.control's", lambda: Contain("few")),
        ("give a list of textdiff.control's", lambda: [lambda texts: 0.0]),
        ("one number a text", lambda: [TextScore(lambda texts: 3)]),
        ("one finite number a text, 1 of them, not", lambda: [Classifier(lambda p, v: p.sum())]),
        ("one finite number a text", lambda: [Classifier(lambda p, v: p.sum((1, 2)) * math.nan)]),
        ("has no gradient", lambda: [Classifier(lambda p, v: p.detach().sum((1, 2)))]),
        ("'few' at token 9 needs 14 tokens, EOS included, but a text has 10", lambda: [WordAt("few", 9)]),
        ("one of zzzzzzzzzzz needs 13 tokens", lambda: [Contain("zzzzzzzzzzz")]),
        ("one number a text, not nan", lambda: [TextScore(lambda texts: [math.nan for _ in texts])]),
        ("one number a text, not nan", lambda: [TextScore(lambda texts: [1.0])]),
        ("give words that are not empty", lambda: [Contain(" ")]),
        ("samples must be at least 2, not 1", lambda: [TextScore(len, samples=1)]),
        ("Avoid has no gradient to shift", lambda: [moved(Avoid("few"))]),
    ],
)
def test_impossible_controls_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        generate_texts(make_model(), num_samples=1, length=10, steps=2, sampler="ddim", controls=make())


def test_controls_reach_all_of_a_long_text():
    """Beyond the positions of the model: a place is a place of the text."""
    model = make_model(vocabulary=275)
    options = {"block_length": 4, "length": 40, "steps": 4, "decoder": "sample", "num_samples": 4}
    few = model.tokenizer.encode(["a few"])[0][-1]
    made = generate_texts(model, controls=[WordAt("few", 25)], **options)
    for ids in made.ids:
        assert ids[25] == few
    once = generate_texts(model, controls=[Contain("few")], **options)
    assert all(ids[:4].count(few) >= 1 for ids in once.ids), "of the first block"
    seen = []

    class Watch(Control):
        def per_token(self, view: View) -> Tensor:
            seen.append(int(view.valid.sum(1).max()))
            return torch.zeros_like(view.probs)

    generate_texts(model, controls=[Watch(), WordAt("few", 38)], **options)
    assert max(seen) == 40 > LONG


def test_lengths_leave_room_for_what_is_asked_and_prompts_are_respected():
    model = make_model(vocabulary=275)
    made = generate_texts(model, num_samples=20, steps=3, controls=[WordAt("few", 9)])
    assert all(len(ids) >= 11 for ids in made.ids)
    with pytest.raises(ValueError, match="'few' at token 1 lies within a prompt of 2 tokens"):
        generate_texts(model, prompt=["a few"], steps=3, controls=[WordAt("few", 1)])
    with pytest.raises(ValueError, match="'few' at token 90 needs 92 tokens"):
        generate_texts(model, num_samples=1, block_length=4, length=40, controls=[WordAt("few", 90)])
    with pytest.raises(ValueError, match="reads its source in the text itself"):
        generate_texts(make_model("prefix"), ["ab"], controls=[Avoid("few")])


def test_several_words_need_room_for_all():
    model = make_model(vocabulary=275)
    controls = [Contain("few"), Contain("a"), Contain(["words", "few"]), Contain("few")]
    for control in controls:
        control.bind(model.tokenizer)
    words = sum(control.size for control in controls[:3])  # the last is the first again
    assert least_length(controls, torch.tensor([0, 3])).tolist() == [words + 1, words + 4]
    made = generate_texts(model, num_samples=20, steps=3, controls=controls)
    assert min(map(len, made.ids)) == words + 1
    both = [Contain("few"), Contain("words")]  # words that are given need no room
    made = generate_texts(
        model, prompt=["few ___ words"], gap="___", gap_length=1, steps=2, controls=both
    )
    assert made.texts[0].startswith("few") and made.texts[0].endswith("words")


@pytest.mark.parametrize("options", [{}, {"block_length": 4, "length": 40}])
def test_no_text_ends_too_soon(options):
    model = make_model(vocabulary=275)
    free = generate_texts(model, num_samples=20, steps=3, **options)
    made = generate_texts(model, num_samples=20, steps=3, controls=[AtLeast(9)], **options)
    assert min(map(len, free.ids)) < 10 <= min(map(len, made.ids))
    assert all(model.tokenizer.eos_id not in ids[:9] for ids in made.ids)


def test_controls_of_places_alone_do_not_look_at_the_text(monkeypatch):
    """Else a block of a long text would cost by all that stands before it."""
    model = make_model(vocabulary=275)
    options = {"block_length": 4, "length": 40, "steps": 2, "num_samples": 2}
    alone = generate_texts(model, controls=[AtLeast(39)], **options)
    both = generate_texts(model, controls=[AtLeast(39), Contain("few", 0.0)], **options)
    assert alone.ids == both.ids
    monkeypatch.setattr(Steered, "look", None)
    assert generate_texts(model, controls=[AtLeast(39), WordAt("few", 25)], **options).ids[0]
    with pytest.raises(TypeError):
        generate_texts(model, controls=[Contain("few")], **options)


def test_one_of_several_words_may_be_barred():
    model = make_model(vocabulary=275)
    controls = [Contain(["few", "words"], 2.0), Avoid("few", 2.0)]
    texts = generate_texts(model, num_samples=8, steps=9, length=10, controls=controls).texts
    assert all("words" in text and "few" not in text for text in texts)


def forbids(control: Control, view: View, ids: list[int]) -> bool:
    """Whether some token of a certain text is barred by all the others."""
    open_ = view.probs * 0.9 + 0.1 / view.probs.shape[-1]
    told = control.per_token(View(open_, view.valid, view.x_t, view.t))[0]
    own = told[torch.arange(len(ids)), torch.tensor(ids)]
    return bool((own - told.amax(-1)).min() < -0.5)


def test_a_word_of_the_prompt_is_avoided_from_then_on():
    model = make_model(vocabulary=275)
    loud = Classifier(lambda probs, valid: 90 * probs[..., model.tokenizer.encode(["few"])[0][0]].sum(1))
    options = {"prompt": ["a few few"] * 4, "steps": 20, "length": 12}
    assert all(text.count("few") > 2 for text in generate_texts(model, controls=[loud], **options).texts)
    quiet = generate_texts(model, controls=[loud, Avoid("few", 9.0)], **options).texts
    assert all(text.count("few") == 2 for text in quiet)


def test_many_likely_places_do_not_drown_a_word():
    """Forty places of even odds: each still knows what to avoid."""
    probs = torch.zeros(1, 40, V)
    probs[..., 2], probs[..., 0] = 0.5, 0.5
    view = View(probs, torch.ones(1, 40, dtype=torch.bool), torch.zeros(1, 40, 3), torch.ones(1, 40))
    found = bound(Avoid, [[2]]).per_token(view)[0]
    assert (found[:, 0] - found[:, 2] > 20).all()


@pytest.mark.parametrize("name", ["own", "gpt2"])
def test_words_are_found_where_texts_hold_them(name, tmp_path):
    """With a tokenizer that puts a space before a text, and with one that does not."""
    tokenizer = Tokenizer.train(["a few words"], 275)
    if name == "gpt2":
        tokenizer.backend.normalizer = None
    else:
        assert tokenizer.encode(["few"]) == [[tokenizer.backend.token_to_id("Ġfew")]]
    for text in ("few words", "a few words", "a (few)", "Few words"):
        (ids,) = tokenizer.encode([text])
        view = make_view(1)
        view.probs = F.one_hot(torch.tensor([ids]), len(tokenizer)).float()
        control = Avoid("few")
        control.bind(tokenizer)
        assert forbids(control, view, ids), text
    (ids,) = tokenizer.encode(["a word"])
    view.probs = F.one_hot(torch.tensor([ids]), len(tokenizer)).float()
    assert not forbids(control, view, ids)


def test_an_impossible_score_tells_nothing():
    model = make_model()
    plain = {"num_samples": 2, "steps": 3, "length": 8}
    never = TextScore(lambda texts: [-math.inf for _ in texts])
    assert generate_texts(model, controls=[never], **plain).ids == generate_texts(model, **plain).ids


def moved(control: Control) -> Control:
    control.shift = True
    return control


def test_bits_of_control():
    """Contain at weight 1 raises the odds of the word by the known factor, nothing else."""
    view = make_view(1)
    view.probs[..., EOS] = 0.0
    found = bound(Contain, [[2]]).per_token(view)[0]
    p = view.probs[0, :, 2]
    for i in range(M):
        absent = math.prod(float(1 - p[k]) for k in range(M) if k != i)
        assert float(found[i, 2] - found[i, 0]) == pytest.approx(-math.log(1 - absent), abs=1e-4)
