"""Gaps are filled, what stands around them stays."""

import pytest
import torch
from test_blocks import make_model
from test_pretrained import NAMES, write_tokenizer

import textdiff
from textdiff import commands
from textdiff.control import Contain, WordAt
from textdiff.decoder import DECODERS
from textdiff.diffusion import TextDiffusion
from textdiff.generation import generate_texts
from textdiff.process import PROCESSES
from textdiff.process.discrete import MaskAndReplace
from textdiff.sampler import (
    SAMPLERS,
    DPMSolver,
    Heun,
    Predict,
    PredictorCorrector,
    Replacing,
    Resampling,
)
from textdiff.schedule import Cosine
from textdiff.testing import MarkovLanguage, OneStream, OracleDenoiser, check_sampler, exact_process
from textdiff.tokenizer import OPEN, Tokenizer

TEXTS = ["The ___ sat on the ___.", "___ and so on", "It goes on ___"]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train(["The cat sat on the mat. A word, and so on; it goes on."] * 3, 300)


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("letters")
    write_tokenizer(folder, NAMES["bert"])
    return Tokenizer.load(folder)


# What is read of a text with gaps


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The ___ sat on the ___.", ["The", None, " sat on the", None, "."]),
        ("___, and", [None, ", and"]),
        ("The cat ___", ["The cat", None]),
        ("The ___ ___ on", ["The", None, None, " on"]),
        ("(___) sat", ["(", None, ") sat"]),
    ],
)
def test_text_around_gaps_is_read_as_in_a_whole_text(bpe, text, parts):
    """The tokens are those of the text with a word in the gap, without the word's."""
    (found,) = bpe.encode_gaps([text], "___")
    assert found[-1] == bpe.eos_id and found.count(OPEN) == parts.count(None)
    groups, group = [], []
    for index in found[:-1]:
        if index == OPEN:
            groups, group = [*groups, group, None], []
        else:
            group.append(index)
    groups = [g for g in [*groups, group] if g is None or g]
    known = [None if g is None else bpe.backend.decode(g) for g in groups]
    first = [part if part is None or i else f" {part}" for i, part in enumerate(parts)]
    assert known == first


def test_any_tokenizer_and_any_mark(letters):
    lines = Tokenizer.train(["a\n b\t c"], 260).encode_gaps(["a:\n___ b"], "___")[0]
    assert len(lines) == 8 and lines[4] == OPEN, "a line's end before a gap is text"
    (found,) = letters.encode_gaps(["ab <gap> c"], "<gap>")
    before, after = letters.encode(["ab"])[0], letters.encode(["c"])[0]
    assert found == [*before, OPEN, *after, letters.eos_id]
    with pytest.raises(ValueError, match=r"no gap '___' in 'ab <gap> c'"):
        letters.encode_gaps(["ab <gap> c"], "___")
    for text in ("___", " ___ ___ "):
        with pytest.raises(ValueError, match="gives nothing to fill a gap between: use generate"):
            letters.encode_gaps([text], "___")


@pytest.mark.parametrize("text", ["un___able to", "The c___ sat", "a ______ b", "a ____ b", "4___ b"])
def test_gaps_inside_words_are_refused(bpe, text):
    with pytest.raises(ValueError, match="inside a word"):
        bpe.encode_gaps([text], "___")


# What is written


@pytest.mark.parametrize("process", ["embedding", "simplex", "linear_simplex"])
@pytest.mark.parametrize("sampler", ["confidence", "ancestral", "renoise"])
def test_given_tokens_stay_and_gaps_have_their_length(process, sampler):
    model = make_model(process=process, max_length=40)
    made = textdiff.infill(
        model, ["a few ___ are", "___ words"], gap_length=2, steps=3, sampler=sampler, return_dict=True
    )
    for ids, text in zip(made.ids, ["a few ___ are", "___ words"], strict=True):
        known = model.tokenizer.encode_gaps([text], "___")[0]
        place = known.index(OPEN)
        assert ids[:place] == known[:place] and ids[place + 2 :] == known[place + 1 :]
        assert len(ids) == len(known) + 1


def test_length_of_a_text_and_the_predicted_one_are_shared_by_its_gaps():
    model = make_model(max_length=40)
    known = model.tokenizer.encode_gaps(["a ___ b ___ c"], "___")[0]
    made = textdiff.infill(model, ["a ___ b ___ c"], length=len(known) + 3, steps=2, return_dict=True)
    ids, (first, second) = made.ids[0], [i for i, one in enumerate(known) if one == OPEN]
    assert len(ids) == len(known) + 3  # five tokens in two gaps
    assert ids[first + 2 : second + 1] == known[first + 1 : second]
    counts = torch.zeros(model.config.max_length + 1)
    counts[len(known) + 4] = 1e6
    model.length.fit(counts)
    torch.nn.init.zeros_(model.length.head[2].weight)
    torch.nn.init.zeros_(model.length.head[2].bias)
    predicted = textdiff.infill(model, ["a ___ b ___ c"], steps=2, return_dict=True)
    assert len(predicted.ids[0]) == len(known) + 4
    counts = torch.zeros(model.config.max_length + 1)
    counts[len(known) - 2] = 1e9
    model.length.fit(counts)
    least = textdiff.infill(model, ["a ___ b ___ c"], steps=2, return_dict=True)
    assert len(least.ids[0]) >= len(known), "every gap has a token at least"


def test_the_length_is_told_from_the_first_words(monkeypatch):
    """As in training; what follows the first gap would tell something else."""
    model, seen = make_model(max_length=40), []
    monkeypatch.setattr(
        model, "pool", lambda *args: seen.append(args) or TextDiffusion.pool(model, *args)
    )
    textdiff.infill(model, ["a few ___ words"], steps=1)
    (_, ids, _, valid), first = seen[0], model.tokenizer.encode(["a few"])[0]
    assert ids[valid].tolist() == first


def test_a_text_does_not_depend_on_its_batch():
    model = make_model(max_length=40)
    texts = ["a ___", "few words ___ a few", "___ a ___"]
    made = [textdiff.infill(model, texts, gap_length=3, steps=3, batch_size=n) for n in (1, 2, 3)]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("conditioning", ["cross", "prefix"])
def test_sources_and_candidates(conditioning):
    model = make_model(conditioning, max_length=40)
    given = (["a few ___"] * 2, ["words", "a few words"])
    made = textdiff.infill(model, *given, gap_length=2, steps=2, candidates=3, return_dict=True)
    known = model.tokenizer.encode_gaps(["a few ___"], "___")[0]
    assert len(made.ids) == 6
    assert all(ids[: len(known) - 2] == known[:-2] and ids[-1] == known[-1] for ids in made.ids)


def test_gaps_are_written_with_what_follows_them():
    """Other ends of the text change the words of a gap before them, drawn by the same noise."""
    model = make_model(max_length=40)
    options = {"gap_length": 6, "steps": 6, "decoder": "sample", "return_dict": True}
    texts = [f"___ {end}" for end in ("a few words", "words", "xyz", "0123 words", "are few")]
    made = [tuple(textdiff.infill(model, [text], **options).ids[0][:6]) for text in texts]
    assert len(set(made)) == len(texts)


def test_a_text_does_not_end_before_given_words():
    """An EOS in a gap would hide them; at the end of the text it stands."""
    model = make_model(max_length=40)
    with torch.no_grad():
        model.denoiser.bias[model.tokenizer.eos_id] = 1e3
    for sampler in ("confidence", "ancestral"):
        options = {"gap_length": 5, "steps": 3, "sampler": sampler, "return_dict": True}
        made = textdiff.infill(model, ["a ___ few"], **options)
        assert made.texts[0].endswith(" few")
        assert made.ids[0].count(model.tokenizer.eos_id) == 1


def test_controls_count_open_places():
    """A word fits into gaps as long as itself."""
    model = make_model(max_length=40)
    size = len(model.tokenizer.encode(["few"])[0])
    options = {"steps": 4, "controls": [Contain("few", 50.0)]}
    (text,) = textdiff.infill(model, ["a ___ words"], gap_length=size, **options)
    assert text == "a few words"
    with pytest.raises(ValueError, match="needs"):
        textdiff.infill(model, ["a ___ words"], gap_length=size - 1, **options)
    (text,) = textdiff.infill(model, ["a ___ words"], **options)
    assert "few" in text
    with pytest.raises(ValueError, match="write it into the text"):
        textdiff.infill(model, ["a ___ words"], controls=[WordAt("few", 1)], steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap_length": 2, "length": 9}, "gap_length is for texts with gaps whose length is not given"),
        ({"gap_length": 0}, "gap_length must be at least 1, not 0"),
        ({"gap_length": 500}, "is beyond the model's"),
        ({"length": 3}, "fills the whole length 3"),
        ({"block_length": 2}, "leave it out"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        textdiff.infill(make_model(max_length=40), ["a ___ words ___"], steps=2, **options)


def test_the_text_that_is_full_is_the_one_named():
    from textdiff.layout import check_length

    total, given = torch.tensor([60, 15]), torch.tensor([53, 17])
    with pytest.raises(ValueError, match="a prompt of 17 tokens fills the whole length 15"):
        check_length(total, given, 64)


def test_gap_options_need_texts_with_gaps():
    model = make_model(max_length=40)
    with pytest.raises(ValueError, match="gap_length is for texts with gaps"):
        generate_texts(model, num_samples=1, gap_length=2)
    with pytest.raises(ValueError, match="give the texts with gaps as prompt"):
        generate_texts(model, num_samples=1, gap="___")


def test_the_command(unconditional, trained, tmp_path, capsys):
    texts, sources = tmp_path / "texts.txt", tmp_path / "sources.txt"
    texts.write_text("Ashbury ___ the final.\nThe ___ were ___.\n")
    sources.write_text("Ashbury beat Norwick.\nThe roads were closed.\n")
    commands.main(
        ["infill", str(unconditional / "model"), str(texts), "--gap_length", "3", "--steps", "2"]
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Ashbury") and first.endswith(" the final.")
    assert second.startswith("The") and " were" in second and second.endswith(".")
    options = ["--sources", str(sources), "--steps", "2", "--gap_length", "2"]
    commands.main(["infill", str(trained / "model"), str(texts), *options])
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(SystemExit, match=r"textdiff: this model writes from sources"):
        commands.main(["infill", str(trained / "model"), str(texts)])


# Words given in other ways, and texts to be repaired


@pytest.mark.parametrize("given", ["replace", "repaint"])
@pytest.mark.parametrize("process", ["embedding", "masked"])
def test_words_given_as_noise_stay(process, given):
    model = make_model(process=process)
    made = [
        generate_texts(model, prompt=["b ___ c"], gap="___", length=8, given=how, steps=7, seed=3)
        for how in ("conditional", given)
    ]
    for one in made:
        assert one.texts[0].startswith("b") and one.texts[0].endswith("c")
    assert made[0].texts != made[1].texts
    assert made[1].nfe == (7 if given == "replace" else 6)


@pytest.mark.parametrize("kind", [Predict, Replacing])
def test_what_the_network_sees_of_given_words(kind):
    """Clean at t = 0, or like all others at the time of all others."""
    process, seen = exact_process("embedding"), []

    class Watching(OracleDenoiser):
        def forward(self, x_t, t, **inputs):
            seen.append((x_t.clone(), t, inputs["mask"]))
            return super().forward(x_t, t, **inputs)

    ids = MarkovLanguage().sample(400, seed=0)
    mask = torch.arange(8).expand(ids.shape) > 3
    whole = torch.ones_like(mask)
    denoiser = Watching(process, MarkovLanguage())
    predict = kind(denoiser, DECODERS["softmax"](), ids, mask, whole, None, OneStream(0))
    made = SAMPLERS["ancestral"](5)(predict)
    assert torch.equal(made[~mask], ids[~mask])
    for x_t, t, open_ in seen:
        same = torch.equal(x_t[~mask], process.encode(ids)[~mask])
        if kind is Predict:
            assert same and (t[~mask] == 0).all() and torch.equal(open_, mask)
            continue
        assert not same and (t == t[0, 0]).all() and open_.all()
        alpha, sigma = process.schedule(t[..., None])
        draw = ((x_t - alpha * process.encode(ids)) / sigma)[~mask]
        assert draw.var().item() == pytest.approx(1, abs=0.05) and draw.mean().abs() < 0.03


def test_resampling_lessens_the_bias_of_replacement():
    language = MarkovLanguage()
    truth = language.sample(1, seed=3)
    mask = (torch.arange(8) > 1) & (torch.arange(8) < 6)
    known = torch.full((1, 8, 6), -1e4).double().scatter(2, truth[..., None], 0.0)
    known[:, mask] = 0.0
    exact = language.log_posterior(known)[0].exp()
    distance = []
    for sampler in (SAMPLERS["ancestral"](30), Resampling(SAMPLERS["ancestral"](151), 5)):
        ids = truth.expand(1000, -1)
        many = mask.expand(1000, -1)
        made = check_sampler("embedding", sampler, ids=ids, mask=many, kind=Replacing).ids
        found = torch.nn.functional.one_hot(made, 6).double().mean(0)
        distance.append(float(((found - exact).abs().sum(-1) / 2).max()))
    assert distance[1] < 0.7 * distance[0]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_repaired_text_has_its_length_and_its_end(process):
    model = make_model(process=process)
    texts = ["b c b c b", "c c", "b"]
    usual, told = (textdiff.denoise(model, texts, steps=3, **how) for how in ({}, {"decoder": "greedy"}))
    assert usual == told
    made = textdiff.denoise(model, texts, noise=0.3, steps=4, seed=1, return_dict=True)
    whole = [[*model.tokenizer.encode([text])[0], model.tokenizer.eos_id] for text in texts]
    assert [len(ids) for ids in made.ids] == [len(ids) for ids in whole]
    eos = model.tokenizer.eos_id
    assert all(ids[-1] == eos and eos not in ids[:-1] for ids in made.ids)


@pytest.mark.parametrize("process", ["uniform", "embedding"])
def test_a_model_that_knows_the_language_repairs_it(process):
    """A process with random words mends wrong ones; others leave all at little noise, not at much."""
    language, noisy = MarkovLanguage(sharpness=3.0), exact_process("uniform")
    ids = language.sample(500, seed=1)
    wrong = noisy.corrupt(ids, torch.tensor(0.3), OneStream(2))
    oracle, whole = (
        OracleDenoiser(exact_process(process), language),
        torch.ones_like(ids, dtype=torch.bool),
    )
    same, right = {}, {}
    for start in (0.05, 0.3, 0.6):
        predict = Predict(
            oracle, DECODERS["greedy"](), wrong, whole, whole, None, OneStream(0), start=start
        )
        made = SAMPLERS["ancestral"](12)(predict)
        same[start], right[start] = ((made == one).double().mean() for one in (wrong, ids))
        predict = Predict(
            oracle, DECODERS["softmax"](), wrong, whole, whole, None, OneStream(0), start=start
        )
        drawn = (SAMPLERS["ancestral"](12)(predict) == ids).double().mean()
        assert start < 0.1 or drawn < right[start], "why repairing is greedy"
    assert process == "uniform" or same[0.05] > 0.97 > same[0.6]
    if process == "uniform":
        assert right[0.3] > (wrong == ids).double().mean() + 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"given": "told"}, "unknown given 'told'"),
        ({"given": "replace", "sampler": "confidence"}, "samplers that go step by step"),
        ({"given": "repaint", "controls": [Contain("b")]}, "no controls"),
        ({"noise": 1.5}, "above 0 and at most 1"),
        ({"noise": 0.1, "sampler": "ode"}, "samplers that go step by step"),
        ({"noise": 0.1, "length": 3}, "its own length"),
        ({"noise": 0.1, "gap": "___"}, "no gaps"),
        ({"given": "repaint", "sampler": "langevin"}, "samplers that go step by step"),
        ({"given": "repaint", "sampler": "ddim", "process": "masked"}, "Gaussian"),
    ],
)
def test_ways_that_do_not_go_together(options, message):
    gap = {} if "noise" in options else {"gap": "___"}
    with pytest.raises(ValueError, match=message):
        process = options.pop("process", "embedding")
        generate_texts(make_model(process=process), prompt=["b ___ c"], **gap, **options)


def test_a_text_longer_than_the_model_is_not_repaired():
    with pytest.raises(ValueError, match="positions: split it"):
        textdiff.denoise(make_model(), ["b c " * 400])


def test_what_a_model_was_saved_with_does_not_stand_in_the_way():
    model = make_model()
    model.config.generation = {"block_length": 3, "sampler": "confidence", "steps": 4}
    assert len(textdiff.denoise(model, ["b c"])) == 1
    assert len(generate_texts(model, prompt=["b ___ c"], gap="___", length=7, given="replace").texts) == 1
    with pytest.raises(ValueError, match="none of them empty"):
        generate_texts(model, num_samples=2, noise=0.1)


@pytest.mark.parametrize("replace", [0.1, 0.5, 1.0])
def test_noise_is_the_share_of_wrong_words_among_those_seen(replace):
    process = MaskAndReplace(torch.nn.Embedding(50, 4), Cosine(), replace=replace)
    ids = torch.randint(50, (2000, 10), generator=torch.Generator().manual_seed(0))
    t = torch.full(ids.shape, process.time_of(0.15))
    seen = process.corrupt(ids, t, OneStream(0))
    words = seen != process.mask_id
    assert (seen != ids)[words].double().mean().item() == pytest.approx(0.15, abs=0.02)


KINDS = "gaussian", "draws", "shifts"


@pytest.mark.parametrize(
    "sampler",
    [Heun(31), PredictorCorrector(31, corrections=2), DPMSolver(31), DPMSolver(31, order=3)],
    ids=["heun", "corrector", "dpm", "dpm, order 3"],
)
def test_resampling_writes_what_its_sampler_writes_within_its_budget(sampler):
    """The predictions that a multistep solver remembers are not of the state after noise was put back."""
    found = check_sampler("embedding", Resampling(sampler, 3), count=1000)
    assert found.distance < 0.05 and abs(found.excess) < 0.06
    assert 20 < found.evaluations <= 31
    assert all(getattr(Resampling(sampler), name) == getattr(sampler, name) for name in KINDS)


def test_denoise_on_the_command_line(unconditional, tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_text("Rain is expected in Oslo.\nSunny.\n", encoding="utf-8")
    commands.main(["denoise", str(unconditional / "model"), str(file), "--noise", "0.2", "--steps", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 2
