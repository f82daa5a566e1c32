"""The autoregressive twin: its decoding against plain loops, its losses, its size."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch

from textdiff import twin
from textdiff.config import Config
from textdiff.diffusion import TextDiffusion
from textdiff.model import Request
from textdiff.tokenizer import Tokenizer
from textdiff.twin import Twin, Writer

PAD, EOS = 0, 1


class Symbols:
    """The ids of a tokenizer without its text."""

    pad_id, eos_id, special_ids = PAD, EOS, (PAD, EOS)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def make(vocabulary: int = 12, sharpness: float = 1.0, **config) -> Twin:
    """A small random model."""
    shape = {"width": 32, "depth": 2, "heads": 2, "encoder_depth": 1, "embedding_width": 16}
    sizes = {"max_length": 10, "max_source_length": 9}
    torch.manual_seed(0)
    model = Twin(Config(**{**shape, **sizes, **config}), Symbols(vocabulary)).eval()
    model.out.weight.data *= sharpness
    return model


def fit(model: Twin, data: dict[str, torch.Tensor], steps: int) -> Twin:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(steps):
        losses = model.loss(data, 0)
        losses.nll[losses.mask].mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def copier() -> Twin:
    """A model that copies sources of one to nine tokens, not very surely.

    In float64, so that every machine trains the same one.
    """
    sources, rng = ragged(64, seed=2), random.Random(3)
    noisy = [[t if rng.random() < 0.7 else rng.randrange(2, 12) for t in s] for s in sources]
    return fit(make().double(), batch([[*text, EOS] for text in noisy], sources), 60)


@pytest.fixture(scope="module")
def babbler() -> Twin:
    """The same without a source: texts of one to nine random tokens."""
    return fit(make(conditioning="none").double(), batch([[*text, EOS] for text in ragged(64)]), 20)


def ragged(count: int, vocabulary: int = 12, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, vocabulary) for _ in range(rng.randint(1, 9))] for _ in range(count)]


def pad(rows: list[list[int]]) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def write(
    model: Twin,
    sources: list[list[int]] | int,
    index: list[int] | None = None,
    prompts: list[list[int]] | None = None,
    **options,
):
    """Ids, for sources or for so many texts from nothing."""
    count = sources if isinstance(sources, int) else len(sources)
    source = None if isinstance(sources, int) else pad(sources)
    request = Request(
        seed=7,
        index=index or list(range(count)),
        source=source,
        source_mask=None if source is None else source != PAD,
        prompt=prompts or [[]] * count,
        hidden=torch.zeros(count, dtype=torch.long),
        quantile=torch.zeros(count),
        options=options,
    )
    return model.write(request).ids


def batch(targets: list[list[int]], sources: list[list[int]] | None = None) -> dict[str, torch.Tensor]:
    ids = pad(targets)
    out = {"ids": ids, "mask": ids != PAD, "valid": ids != PAD, "index": torch.arange(len(ids))}
    if sources is not None:
        out |= {"source": pad(sources), "source_mask": pad(sources) != PAD}
    return out


@torch.no_grad()
def next_log_probs(model: Twin, text: list[int], source: list[int] | None) -> torch.Tensor:
    """log p(token | text, source), `(V,)`, without cache, batch or padding."""
    ids = torch.tensor([[EOS] * twin.WINDOW + text])
    read = None if source is None else torch.tensor([source])
    context = model.encode_source(read, None if read is None else read != PAD)
    return model(ids, context)[0][0, -1].log_softmax(-1)


def greedy_by_hand(model: Twin, source: list[int] | None, prompt: list[int] | None = None) -> list[int]:
    text = [*(prompt or [])]
    while EOS not in text and len(text) < model.config.max_length:
        text.append(int(next_log_probs(model, text, source).argmax()))
    return text


def beam_by_hand(
    model: Twin, source: list[int] | None, k: int, penalty: float, prompt: list[int] | None = None
) -> list[int]:
    """Beam search as the module describes it, one hypothesis at a time; the prompt costs nothing."""
    prompt = prompt or []
    running, finished = [(0.0, prompt)], []
    for length in range(1, model.config.max_length - len(prompt) + 1):
        longer = []
        for score, text in running:
            log_probs = next_log_probs(model, text, source).tolist()
            longer += [(score + p, [*text, token]) for token, p in enumerate(log_probs)]
        longer.sort(reverse=True)
        last = length == model.config.max_length - len(prompt)
        for score, text in longer[:k]:
            if text[-1] == EOS or last:
                finished.append((score / length**penalty, text))
        finished = sorted(finished, reverse=True)[:k]
        running = [(score, text) for score, text in longer if text[-1] != EOS][:k]
        if len(finished) == k and finished[-1][0] >= running[0][0] / length**penalty:
            break
    return finished[0][1]


def scores(model: Twin, texts: list[list[int]], sources: list[list[int]], penalty: float) -> torch.Tensor:
    """log p(text) / length^penalty, `(B,)`."""
    losses = model.loss(batch(texts, sources), 0)
    return -(losses.nll * losses.mask).sum(1) / losses.mask.sum(1) ** penalty


DECODINGS = [
    {"decoding": "greedy"},
    {"decoding": {"name": "sample", "temperature": 0.7}},
    {"decoding": {"name": "beam", "beams": 3, "length_penalty": 2.0}},
]


def test_cached_greedy_is_the_argmax_at_every_step(copier, babbler):
    sources = ragged(12)
    expected = [greedy_by_hand(copier, source) for source in sources]
    assert write(copier, sources) == expected
    assert len({len(text) for text in expected}) > 3
    assert write(babbler, 2) == [greedy_by_hand(babbler, None)] * 2


@pytest.mark.parametrize("options", DECODINGS, ids=str)
def test_a_text_does_not_depend_on_its_batch(options, copier):
    sources = ragged(12)
    together = write(copier, sources, **options)
    alone = [write(copier, [source], [i], **options)[0] for i, source in enumerate(sources)]
    assert together == alone
    assert len(set(map(tuple, together))) > 9


def test_texts_from_nothing(babbler):
    texts = write(babbler, 12, decoding="sample")
    assert texts == [write(babbler, 1, [i], decoding="sample")[0] for i in range(12)]
    assert len({len(text) for text in texts}) > 3
    assert write(babbler, 2, decoding="beam") == [beam_by_hand(babbler, None, 4, 1.0)] * 2


@pytest.mark.parametrize("options", DECODINGS, ids=str)
def test_rows_that_leave_change_nothing(options, copier, monkeypatch):
    model, sources, sizes = copier, ragged(12), []
    original = Writer.logits
    monkeypatch.setattr(Writer, "logits", lambda self: sizes.append(len(self.texts)) or original(self))
    monkeypatch.setattr(twin, "CROWD", 0.0)
    kept = write(model, sources, **options)
    assert len(set(sizes)) == 1
    monkeypatch.setattr(twin, "CROWD", 1.0)
    assert write(model, sources, **options) == kept
    assert len(set(sizes)) > 3


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_one_beam_is_greedy(penalty, copier, monkeypatch):
    model, sources = copier, ragged(12)
    options = {"decoding": {"name": "beam", "beams": 1, "length_penalty": penalty}}
    monkeypatch.setattr(twin, "CROWD", 0.0)  # a finished search waits for the others, unchanged
    assert write(model, sources, **options) == write(model, sources)


@pytest.mark.parametrize(("beams", "penalty"), [(2, 0.0), (4, 0.0), (4, 0.6), (4, 1.0), (5, 2.0)])
def test_beam_search_is_the_plain_one(beams, penalty, copier):
    model, sources = copier, ragged(12)
    expected = [beam_by_hand(model, source, beams, penalty) for source in sources]
    options = {"decoding": {"name": "beam", "beams": beams, "length_penalty": penalty}}
    assert write(model, sources, **options) == expected
    greedy = write(model, sources)
    gain = scores(model, expected, sources, penalty) - scores(model, greedy, sources, penalty)
    assert gain.sum() > 0.1 and (gain < -1e-5).sum() <= 1


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_wide_beam_finds_the_best_of_all_texts(penalty):
    model, sources = make(vocabulary=5, sharpness=6.0, max_length=4), ragged(4, 5)
    whole = [[*w, EOS] for n in range(4) for w in itertools.product((2, 3, 4), repeat=n)]
    whole += [list(w) for w in itertools.product((2, 3, 4), repeat=4)]  # cut at max_length
    of_all = [scores(model, whole, [source] * len(whole), penalty) for source in sources]
    best = [whole[int(of_one.argmax())] for of_one in of_all]
    options = {"decoding": {"name": "beam", "beams": 5**4, "length_penalty": penalty}}
    assert write(model, sources, **options) == best


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_frequencies_of_the_model(temperature):
    model = make(vocabulary=6, sharpness=1.0, conditioning="none", max_length=1)
    count = 20_000
    texts = write(model, count, decoding={"name": "sample", "temperature": temperature})
    seen = torch.bincount(torch.tensor(texts)[:, 0], minlength=6) / count
    expected = (next_log_probs(model, [], None) / temperature).softmax(-1)
    assert seen[PAD] == 0 and expected[PAD] == 0
    assert ((seen - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_samples_are_new_at_every_step_and_for_every_text():
    model = make(vocabulary=200, sharpness=0.0, conditioning="none")
    model.bias.data[EOS] = -1e4
    texts = write(model, 50, decoding="sample")
    assert len({token for text in texts for token in text}) > 150
    assert len(set(map(tuple, texts))) == 50


@pytest.mark.parametrize("pointer", [False, True])
def test_the_loss_is_the_sum_over_prefixes(pointer):
    model = make(label_smoothing=0.1, pointer=pointer)  # no smoothing in evaluation
    sources, targets = ragged(5), [[*text[:6], EOS] for text in ragged(5, seed=1)]
    read = []
    model.out.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[:2].numel()))
    losses = model.loss(batch(targets, sources), 0)
    assert read == [sum(map(len, targets))]  # padding has no logits
    for row, (text, source) in enumerate(zip(targets, sources, strict=True)):
        for i, token in enumerate(text):
            expected = -next_log_probs(model, text[:i], source)[token]
            assert losses.nll[row, i].item() == pytest.approx(expected.item(), abs=1e-4)
        assert losses.mask[row].sum() == len(text)


def test_label_smoothing_mixes_in_the_tokens_that_may_occur():
    model = make(label_smoothing=0.1)
    data = batch([[*text[:6], EOS] for text in ragged(5, seed=1)], ragged(5))
    plain = model.loss(data, 0)
    smooth = model.train().loss(data, 0)
    for row, source in enumerate(ragged(5)):
        for i in range(int(data["mask"][row].sum())):
            after = next_log_probs(model, data["ids"][row, :i].tolist(), source)
            expected = 0.9 * plain.nll[row, i] - 0.1 * after[1:].mean()  # id 0 is barred
            assert smooth.nll[row, i].item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_loss_sees_no_future_and_only_its_own_source():
    model = make(max_length=12)
    text = [[*range(2, 11), EOS]]
    changed = [[*text[0][:5], 11, *text[0][6:]]]
    before, after = (model.loss(batch(t, [[3, 4]]), 0).nll[0] for t in (text, changed))
    assert torch.equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).all()  # also far behind the window
    other = model.loss(batch(text, [[4, 3]]), 0).nll[0]
    assert (other != before).all()


def test_it_learns_to_copy():
    model = make(sharpness=1.0, width=64, max_length=7, label_smoothing=0.05)
    sources = [random.Random(i).choices(range(2, 12), k=3 + i % 4) for i in range(32)]
    data = batch([[*text, EOS] for text in sources], sources)
    fit(model, data, 120)
    losses = model.loss(data, 0)
    assert losses.nll[losses.mask].mean() < 0.2
    expected = [[*text, EOS] for text in sources]
    assert write(model, sources) == expected
    assert write(model, sources, decoding="beam") == expected


@pytest.mark.parametrize("vocabulary", [600, 2000, 8192])
@pytest.mark.parametrize("conditioning", ["cross", "none"])
def test_it_has_the_parameters_of_the_diffusion_model(vocabulary, conditioning):
    config = Config(conditioning=conditioning)
    sizes = [
        sum(p.numel() for p in system(config, Symbols(vocabulary)).parameters())
        for system in (Twin, TextDiffusion)
    ]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


@pytest.mark.parametrize("decoding", ["greedy", {"name": "beam", "beams": 1}])
def test_it_writes_on_from_prompts_of_any_length(copier, decoding):
    sources = ragged(6, seed=3)
    prompts = [[], [5], [7, 2, 9], [3, 3], [11, 4, 6, 8], [2]]
    made = write(copier, sources, prompts=prompts, decoding=decoding)
    assert made == [greedy_by_hand(copier, *pair) for pair in zip(sources, prompts, strict=True)]
    assert all(text[: len(prompt)] == prompt for text, prompt in zip(made, prompts, strict=True))


@pytest.mark.parametrize("penalty", [0.3, 1.0, 2.0])
def test_beams_from_a_prompt_are_those_by_hand(copier, penalty):
    """Its tokens have no part in the length that is favoured."""
    sources, prompts = ragged(5, seed=6), [[4, 5, 8], [], [7, 7, 7, 3], [9], [2, 11]]
    decoding = {"name": "beam", "beams": 3, "length_penalty": penalty}
    made = write(copier, sources, prompts=prompts, decoding=decoding)
    for text, source, prompt in zip(made, sources, prompts, strict=True):
        assert text == beam_by_hand(copier, source, 3, penalty, prompt)


@pytest.mark.parametrize("decoding", ["sample", {"name": "beam", "beams": 3}])
def test_what_follows_a_prompt_does_not_depend_on_the_batch(copier, decoding):
    sources, prompts = ragged(4, seed=5), [[4, 5], [], [7, 7, 7], [9]]
    together = write(copier, sources, prompts=prompts, decoding=decoding)
    for i, (source, prompt) in enumerate(zip(sources, prompts, strict=True)):
        assert together[i][: len(prompt)] == prompt
        assert write(copier, [source], [i], [prompt], decoding=decoding) == [together[i]]


def test_prompts_that_it_cannot_take(copier):
    with pytest.raises(ValueError, match="no length=, no gaps"):
        write(copier, [[3, 4]], prompts=[[3, -1, 4]])
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens fills"):
        write(copier, [[3, 4]], prompts=[[3] * copier.config.max_length])


def test_it_starts_from_the_unigrams_of_the_data():
    model = make(sharpness=0.0)
    model.out.bias.data.zero_()
    counts = torch.tensor([5, 50, *range(10)])
    model.fit_data(SimpleNamespace(token_counts=lambda: counts))
    probs = next_log_probs(model, [2, 3], [4]).exp()
    assert probs[PAD] == 0
    assert torch.allclose(probs[1:], (counts[1:] + 0.1) / (counts[1:] + 0.1).sum())


def test_saving_and_loading(tmp_path):
    tokenizer = Tokenizer.train(["a small text to learn from"], 270)
    config = Config(system="autoregressive", width=32, depth=1, heads=2, encoder_depth=1)
    model = Twin(config, tokenizer).eval()
    model.fit_data(SimpleNamespace(token_counts=lambda: torch.arange(len(tokenizer))))
    model.save_pretrained(tmp_path)
    again = Twin.from_pretrained(tmp_path)
    sources = tokenizer.encode(["a text", "learn"])
    data = batch([[*ids, tokenizer.eos_id] for ids in sources], sources)
    assert torch.equal(model.loss(data, 0).nll, again.loss(data, 0).nll)
    assert write(model, sources) == write(again, sources)
    with pytest.raises(ValueError, match="autoregressive"):
        TextDiffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"decoding": "beams"},
        {"decoding": {"name": "beam", "beams": 0}},
        {"decoding": {"name": "sample", "temperature": 0}},
        {"decoding": {"name": "greedy", "beams": 4}},
    ],
    ids=str,
)
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=r"beam|sample|greedy"):
        write(make(), [[3]], **options)
