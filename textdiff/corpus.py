"""The built-in practice corpus: short reports with distractors and one-line summaries to copy.

The grammar below writes every report, so the corpus is free of licences, the same everywhere, and
its facts are known. A report has the three fact sentences of its kind and two of three distractors
(other names, numbers and words of the same types), one paraphrase of each, in random order. Its
summary is the one template of its kind filled with the facts, so a prediction can be checked
exactly: `fact_accuracy` says about copying what ROUGE cannot.

Names are a stem and an ending, so subword tokenizers share the pieces between all names. With h a
fixed hash, the splits are disjoint for any number of reports:

    train, validation, test    names with h(name) % 6 > 0; the key pair of facts has h(pair) % 4
                               in {2, 3}, {1}, {0}, whatever its order and its kind
    unseen_names               all names, distractors too, with h(name) % 6 = 0
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from random import Random

# A block is a kind: name, key pair and summary; then three facts and three distractors, whose
# paraphrases "|" parts. The digit of a slot only tells it from others of its type.
GRAMMAR = """\
match winner loser {winner} beat {loser} {high} to {low} in {town} final
{winner} won the final against {loser}. | {loser} lost the final to {winner}.
| In the final {winner} were too strong for {loser}. | The final saw {loser} lose to {winner}.
The score of the final was {high} to {low}. | The final ended at {high} to {low}.
| The losers of the final had {low} points, the winners {high}.
The final was held in {town}. | Many fans came to {town} for the final.
In the first round {name1} beat {name2} by {high1} to {low1}.
| In the first round {name2} lost to {name1}, {high1} to {low1}.
The cup of last year was won by {name3} in {name4}. | Last year {name3} won the cup in {name4}.
Next month {name5} will play {name6} before {number1} guests.
| {number1} guests will see {name5} play {name6} next month.

weather town degrees {town} expects {sky} on {day}, {degrees} degrees, winds {wind}
The forecast for {town} is {sky}. | Experts expect {sky} in {town}.
| People in {town} should prepare for {sky}.
The change comes on {day} with {degrees} degrees. | It will be {degrees} degrees on {day}.
| On {day} the air will reach {degrees} degrees.
Winds will blow at {wind} miles an hour. | The wind will reach a speed of {wind}.
Yesterday {name1} had {sky1} and {number1} degrees.
| In {name1} it was {number1} degrees yesterday with {sky1}.
Last {day1} the wind in {name2} was {number2} miles an hour.
| Last {day1} {name2} saw winds of {number2} miles an hour.
The record of {name3} is {number3} degrees, set on a {day2}.
| A year ago {sky2} came to {name3} and it was {number3} degrees.

company company percent {company} sales in {town} {move} {percent} percent in {month}
Sales of {company} {move} by {percent} percent. | By {percent} percent sales at {company} {move}.
| The firm {company} said its sales {move} by {percent} percent.
The figures are for the shops of the firm in {town}.
| The firm spoke only about its shops in {town}.
The new report covers the month of {month}. | The month in question is {month}.
At its rival {name1} sales {move1} by {number1} percent.
| Its rival {name1} said sales {move1} by {number1} percent in {month1}.
The head office in {name2} has {number2} rooms.
| There are {number2} rooms in the head office in {name2}.
A bank in {name3} will open {number3} shops in {month2}.
| In {month2} a bank will open {number3} shops in {name3}.

traffic town road {town}: {vehicle} hits {other}, route {road} shut {delay} minutes
A {vehicle} hit a {other} this morning. | This morning a {other} was hit by a {vehicle}.
The crash was on route {road} near {town}. | Near {town} the crash blocked route {road}.
| Police went to the crash near {town} on route {road}.
The road was shut for {delay} minutes. | It took {delay} minutes to clear the road.
Last week a {vehicle1} burned on route {number1} near {name1}.
| Near {name1} a {vehicle1} burned on route {number1} last week.
Road work on route {number2} near {name2} goes on.
| Work near {name2} goes on along route {number2}.
A {vehicle2} from {name3} to {name4} was {number3} minutes late.
| It was {number3} minutes before a {vehicle2} from {name3} came to {name4}.

election winner loser {town} elects {winner} over {loser}, {high} votes to {low}
{winner} defeated {loser} in the race for mayor. | The new mayor is {winner} and not {loser}.
| In the race for mayor {loser} lost to {winner}.
The count was {high} votes to {low}. | The rival had {low} votes, the mayor {high}.
The council of {town} met today to choose. | Today the council of {town} voted.
Four years ago {name1} beat {name2} by {high1} votes to {low1}.
| Four years ago {name2} lost to {name1}, {high1} votes to {low1}.
{name3} did not run again after {number1} years.
| After {number1} years {name3} did not run again.
The council of {name4} will choose {name5} or {name6} next week.
| Next week {name5} or {name6} will be the choice of {name4}.

auction buyer artist {buyer} pays {price} million for {artist} {object} in {town}
{buyer} bought a {object} by {artist}. | A {object} by {artist} went to {buyer}.
The price paid was {price} million. | The sale was closed at {price} million.
The auction was held in a hotel in {town}. | {town} was the place of the auction.
No one wanted a {object1} by {name1} for {number1} million.
| For {number1} million a {object1} by {name1} was not wanted.
An offer of {number2} million by {name2} was too low.
| {name2} went home after an offer of {number2} million.
A museum in {name3} owns a {object2} and {number3} works by {name4}.
| {number3} works and a {object2} by {name4} are in a museum in {name3}."""
FILLINGS = """\
day Monday Tuesday Wednesday Thursday Friday Saturday Sunday
month January February March April June July August October November
move rose fell
sky rain snow fog hail storms sun frost thunder
vehicle van bus truck tram taxi tractor coach train
object painting vase statue drawing portrait clock mask print"""
TYPES = """\
name winner loser town company buyer artist
number high low degrees wind percent road delay price
vehicle other"""
STEMS = """\
Ash Bal Bren Cal Cor Dal Dun Elm Esk Fal Fen Gar Gil Hal Hob Ing Jas Kel Kin Lam
Lun Mag Mar Ned Nor Oak Pel Pem Quin Rad Ros Sel Sil Tam Tib Tor Vos Wes Yar Zan"""
ENDINGS = """\
bach beck bert brook bury by cliff combe croft dale field ford gard gate ham haven hill holm hurst
man mere mont moor mouth ness pool port ridge sett shaw stead stow thorpe vale vik wick wood
worth wyn zell"""
BUCKETS = {"train": (2, 3), "validation": (1,), "test": (0,), "unseen_names": (0, 1, 2, 3)}
FILLERS = {"a", "an", "and", "at", "by", "for", "in", "of", "on", "percent", "the", "to", "with"}


@dataclass(frozen=True)
class Report:
    """A source text, its one-line summary, and the facts of the summary by slot name."""

    source: str
    target: str
    kind: str
    facts: dict[str, str]


@dataclass(frozen=True)
class _Kind:
    name: str
    key: tuple[str, str]
    target: str
    sentences: list[list[str]]
    slots: dict[str, list[str]]


def names(unseen: bool = False) -> list[str]:
    """The names of `train`, `validation` and `test`, or those reserved for `unseen_names`."""
    joined = (stem + ending for stem, ending in product(STEMS.split(), ENDINGS.split()))
    return [name for name in joined if (_hash(name) % 6 == 0) == unseen]


def generate(split: str, n: int, seed: int = 0) -> list[Report]:
    """The first `n` reports of a split; the same split and seed always give the same reports."""
    if split not in BUCKETS:
        raise ValueError(f"unknown corpus split {split!r}: use one of {', '.join(BUCKETS)}")
    if n < 0:
        raise ValueError(f"cannot generate {n} reports: n must be 0 or more")
    rng = Random(f"{split} {seed}")
    pools = _words(FILLINGS) | {"number": [str(number) for number in range(2, 100)]}
    pools["name"] = names(unseen=split == "unseen_names")
    return [_report(rng.choice(_KINDS), pools, BUCKETS[split], rng) for _ in range(n)]


def rows(split: str, n: int, seed: int = 0) -> list[dict[str, str]]:
    """The same reports as training rows with the columns `source` and `target`."""
    return [{"source": r.source, "target": r.target} for r in generate(split, n, seed)]


def fact_accuracy(prediction: str, report: Report) -> bool:
    """Whether every fact stands in its role and nothing else is claimed.

    Case, punctuation, spacing and `FILLERS` are free. All other words must be those of the
    reference in its order: a swapped role, a changed, missing or added word is an error.
    """
    return _claims(prediction) == _claims(report.target)


def _claims(text: str) -> list[str]:
    words = re.findall(r"\d+|[^\W\d_]+", text.lower())
    return [word for word in words if word not in FILLERS]


def _hash(text: str) -> int:
    return sha256(text.encode()).digest()[0]


def _words(table: str) -> dict[str, list[str]]:
    """Lines of a key and its words."""
    return {key: words for key, *words in map(str.split, table.splitlines())}


def _slots(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"\{(\w+)\}", text)))


def _parse(block: str) -> _Kind:
    head, *groups = block.replace("\n|", "|").split("\n")
    name, first, second, target = head.split(maxsplit=3)
    sentences = [[sentence.strip() for sentence in group.split("|")] for group in groups]
    types = {slot: type_ for type_, slots in _words(TYPES).items() for slot in slots}
    slots = defaultdict(list)
    for slot in _slots(block):
        stem = slot.rstrip("0123456789")
        slots[types.get(stem, stem)].append(slot)
    return _Kind(name, (first, second), target, sentences, dict(slots))


_KINDS = [_parse(block) for block in GRAMMAR.split("\n\n")]


def _draw(
    kind: _Kind, pools: dict[str, list[str]], buckets: tuple[int, ...], rng: Random
) -> dict[str, str]:
    """Different fillers for all slots of a type; of two scores `high` is the larger."""
    values: dict[str, str] = {}
    for type_, slots in kind.slots.items():
        values |= zip(slots, rng.sample(pools[type_], len(slots)), strict=True)
    for low, high in (("low", "high"), ("low1", "high1")):
        if low in values:
            values[low], values[high] = sorted((values[low], values[high]), key=int)
    pair = " ".join(sorted(values[slot] for slot in kind.key))
    return values if _hash(pair) % 4 in buckets else _draw(kind, pools, buckets, rng)


def _report(kind: _Kind, pools: dict[str, list[str]], buckets: tuple[int, ...], rng: Random) -> Report:
    values = _draw(kind, pools, buckets, rng)
    chosen = [*kind.sentences[:3], *rng.sample(kind.sentences[3:], 2)]
    rng.shuffle(chosen)
    source = " ".join(map(rng.choice, chosen)).format_map(values)
    facts = {slot: values[slot] for slot in _slots(kind.target)}
    return Report(source, kind.target.format_map(values), kind.name, facts)
