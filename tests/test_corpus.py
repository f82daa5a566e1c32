"""The practice corpus: splits do not leak, facts are checked exactly, shortcuts do not win."""

import random
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from statistics import mean
from time import process_time

import pytest
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from textdiff import corpus
from textdiff.corpus import Report, fact_accuracy, generate, names, rows

SPLITS = tuple(corpus.BUCKETS)
KINDS = {kind.name: kind for kind in corpus._KINDS}
NAME = re.compile(r"\b[A-Z][a-z]+\b")
NUMBERS = {str(number) for number in range(100)}
FILLINGS = corpus._words(corpus.FILLINGS) | {
    "number": ["3", "31", "99"],
    "name": ["Norbrook", "Torwick", "Zanzell"],
}
reports = cache(generate)


def mentioned(text: str, inventory: set[str]) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in inventory]


def pair(report: Report) -> frozenset[str]:
    return frozenset(report.facts[slot] for slot in KINDS[report.kind].key)


def fill(report: Report, **facts: str) -> str:
    return KINDS[report.kind].target.format_map(report.facts | facts)


def swapped(report: Report, one: str, two: str) -> str:
    return fill(report, **{one: report.facts[two], two: report.facts[one]})


def types(report: Report) -> dict[str, list[str]]:
    """The fact slots of a report by type."""
    slots = KINDS[report.kind].slots.items()
    return {type_: [slot for slot in group if slot in report.facts] for type_, group in slots}


def rouge(predictions: list[str], references: list[Report]) -> float:
    scorer = RougeScorer(["rougeL"])
    pairs = zip(predictions, references, strict=True)
    return 100 * mean(scorer.score(r.target, text)["rougeL"].fmeasure for text, r in pairs)


def facts_right(predictions: list[str], references: list[Report]) -> float:
    pairs = zip(predictions, references, strict=True)
    return 100 * mean(fact_accuracy(text, report) for text, report in pairs)


# --- generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_same_seed_same_reports_and_a_longer_corpus_starts_the_same(split: str):
    assert generate(split, 50, seed=3) == generate(split, 200, seed=3)[:50]
    assert generate(split, 50, seed=3) != generate(split, 50, seed=4)


def test_the_corpus_does_not_change_between_versions():
    text = "".join(r.source + r.target for split in SPLITS for r in reports(split, 300))
    assert sha256(text.encode()).hexdigest()[:16] == "f7b70d1082e10301"


def test_generation_is_fast():
    start = process_time()
    generate("train", 5_000, seed=1)
    assert process_time() - start < 2


def test_rows_are_the_reports():
    expected = [{"source": r.source, "target": r.target} for r in generate("test", 20, seed=1)]
    assert rows("test", 20, seed=1) == expected


@pytest.mark.parametrize(("split", "n", "word"), [("dev", 1, "'dev'"), ("test", -1, "-1")])
def test_user_mistakes_are_named_in_one_line(split: str, n: int, word: str):
    with pytest.raises(ValueError, match=word) as error:
        generate(split, n)
    assert "\n" not in str(error.value)


def test_lengths_and_vocabulary():
    everything = reports("train", 5_000)
    sources = [len(report.source.split()) for report in everything]
    targets = [len(report.target.split()) for report in everything]
    assert 40 <= mean(sources) <= 50
    assert min(sources) >= 30
    assert max(sources) <= 60
    assert 9 <= min(targets) <= max(targets) <= 13
    text = " ".join(report.source + " " + report.target for report in everything)
    words = set(re.findall(r"[A-Za-z]+", text)) - set(names())
    assert len(words) <= 400
    assert not {word.lower() for word in words} & {name.lower() for name in names()}


@pytest.mark.parametrize("split", SPLITS)
def test_every_fact_is_in_the_source_beside_other_names_and_numbers(split: str):
    everyone = {*names(), *names(unseen=True)}
    for report in reports(split, 500):
        words = re.findall(r"\w+", report.source)
        assert all(value in words for value in report.facts.values())
        for inventory in (everyone, NUMBERS):
            assert set(mentioned(report.source, inventory)) - set(report.facts.values())


def read(sentence: str, kind: str) -> list[dict[str, str]]:
    """Every way to read a sentence by the grammar of its kind."""
    templates = [template for group in KINDS[kind].sentences for template in group]
    patterns = [re.sub(r"\{(\w+)\}", r"(?P<\1>\\w+)", text.rstrip(".")) for text in templates]
    found = [re.fullmatch(pattern, sentence.rstrip(".")) for pattern in patterns]
    return [match.groupdict() for match in found if match]


def test_the_facts_can_be_read_from_the_source_in_one_way_only():
    for report in reports("test", 500):
        readings = [read(text, report.kind) for text in report.source.split(". ")]
        assert [len(reading) for reading in readings] == [1] * 5
        values = {slot: value for (reading,) in readings for slot, value in reading.items()}
        assert {slot: values.get(slot) for slot in report.facts} == report.facts


def test_winners_win_in_every_paraphrase_and_have_the_higher_score():
    verbs = {"won": "winner", "beat": "winner", "defeated": "winner"}
    verbs |= {"lost": "loser", "lose": "loser"}
    for kind in KINDS.values():
        for subject, verb in re.findall(r"\{(winner|loser)\} (\w+)", str(kind.sentences)):
            assert verbs.get(verb, subject) == subject
    scored = [report.facts for report in reports("test", 500) if "high" in report.facts]
    assert scored
    assert all(int(facts["high"]) > int(facts["low"]) for facts in scored)


def test_names_are_about_two_pieces_shared_by_seen_and_unseen_names():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    texts = (text for row in rows("train", 5000) for text in row.values())
    tokenizer.train_from_iterator(texts, trainer)
    seen, unseen = ([tokenizer.encode(n).tokens for n in names(flag)] for flag in (False, True))
    assert mean(map(len, seen)) < 2.2
    assert mean(map(len, unseen)) < 2.2
    pieces = {piece for name in seen for piece in name}
    assert mean(piece in pieces for name in unseen for piece in name) > 0.99


# --- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_pair_of_facts_is_shared_with_training(split: str):
    train = {pair(report) for report in reports("train", 20_000)}
    assert not train & {pair(report) for report in reports(split, 20_000)}


def test_unseen_names_are_in_no_other_split_and_the_only_ones_in_theirs():
    reserved, known = set(names(unseen=True)), set(names())
    assert len(reserved | known) == 1600
    assert not reserved & known
    assert 0.15 <= len(reserved) / 1600 <= 0.2
    for split in SPLITS:
        text = " ".join(r.source + " " + r.target for r in reports(split, 20_000))
        allowed, forbidden = (reserved, known) if split == "unseen_names" else (known, reserved)
        words = set(NAME.findall(text))
        assert words & allowed
        assert not words & forbidden


def test_every_name_of_the_other_splits_occurs_in_training():
    train = set(NAME.findall(" ".join(r.source for r in reports("train", 20_000))))
    assert set(names()) <= train


# --- fact accuracy ------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_references_are_right_whatever_their_surface(split: str):
    for report in reports(split, 300):
        text = report.target
        surfaces = (text, text.upper(), f"  {text}.\n", re.sub(r"[,:]", " ;", text), "\ufffd" + text)
        assert all(fact_accuracy(surface, report) for surface in surfaces)


def drop(report: Report, slot: str) -> str:
    return " ".join(fill(report, **{slot: ""}).split())


PLANTED: dict[str, Callable[[Report], list[str]]] = {
    "swapped names": lambda r: [swapped(r, *t) for t in _pairs(r, "name")],
    "swapped numbers": lambda r: [swapped(r, *t) for t in _pairs(r, "number")],
    "swapped words": lambda r: [swapped(r, *t) for t in _pairs(r, "vehicle")],
    "another filler": lambda r: [
        fill(r, **{slot: other})
        for type_, slots in types(r).items()
        for slot in slots
        for other in FILLINGS[type_]
        if other != r.facts[slot]
    ],
    "missing fact": lambda r: [drop(r, slot) for slot in r.facts],
    "extra name": lambda r: [f"{r.target} Norbrook", f"Norbrook {r.target}", f"{r.target} Москва"],
    "extra number": lambda r: [f"{r.target} 7", f"7 {r.target}"],
    "longer number": lambda r: [re.sub(r"(\d+)", r"\g<1>0", r.target, count=1)],
    "half a name": lambda r: [r.target.replace(next(iter(names_of(r))), "Nor")],
    "repeated fact": lambda r: [f"{r.target} {value}" for value in r.facts.values()],
    "denied": lambda r: [f"not {r.target}"],
    "nothing": lambda r: ["", "the"],
    "the source": lambda r: [r.source],
}


def names_of(report: Report) -> list[str]:
    return [report.facts[slot] for slot in types(report)["name"]]


def _pairs(report: Report, type_: str) -> list[tuple[str, str]]:
    slots = types(report).get(type_, [])
    return [(one, two) for one in slots for two in slots if one < two]


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_are_wrong(error: str):
    wrong = [(text, r) for r in reports("test", 100) for text in PLANTED[error](r)]
    assert wrong
    assert not [text for text, report in wrong if fact_accuracy(text, report)]


# --- shortcuts ----------------------------------------------------------------------------------


def by_position(report: Report, last: bool, backwards: bool) -> str:
    """Fill the summary with the first or last mentioned fillers of each type, in either order."""
    facts: dict[str, str] = {}
    inventories = FILLINGS | {"number": NUMBERS, "name": names()}
    for type_, slots in types(report).items():
        found = mentioned(report.source, set(inventories[type_]))
        distinct = list(dict.fromkeys(found[::-1] if last else found))[: len(slots)]
        facts |= zip(slots, distinct[::-1] if backwards else distinct, strict=True)
    return fill(report, **facts)


def medoid(candidates: list[Report]) -> str:
    return max((r.target for r in candidates), key=lambda t: rouge([t] * len(candidates), candidates))


def test_shortcuts_do_not_win():
    test, train = reports("test", 300), reports("train", 20_000)
    rng = random.Random(0)
    same_kind = {name: [r.target for r in train if r.kind == name] for name in KINDS}
    summaries = {
        "LEAD-1": [r.source.split(". ")[0] for r in test],
        "most typical training summary": [medoid(train[:50])] * len(test),
        "random training summary": [r.target for r in rng.sample(train, len(test))],
        "right kind, random facts": [rng.choice(same_kind[r.kind]) for r in test],
    }
    for last in (False, True):
        for backwards in (False, True):
            name = f"{'last' if last else 'first'} mentioned{' in reverse' * backwards}"
            summaries[name] = [by_position(r, last, backwards) for r in test]
    scores = {n: (rouge(texts, test), facts_right(texts, test)) for n, texts in summaries.items()}
    for name, (score, right) in scores.items():
        print(f"{name:32s} ROUGE-L {score:5.1f}  facts {right:5.1f} %")
    assert scores["LEAD-1"][0] <= 40
    assert max(scores[name][0] for name in scores if "random" in name or "typical" in name) <= 50
    assert max(right for _, right in scores.values()) <= 30
