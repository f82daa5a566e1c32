"""Minimum Bayes risk: against the definition, against the scoring packages, and its invariances."""

import inspect
import random
import time
from itertools import permutations

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from textdiff import metrics, rerank
from textdiff.rerank import UTILITIES, mbr

WORDS = "the a cat dog sat ran on under mat road 7".split()


def random_groups(count, size, seed=0):
    draw = random.Random(seed)
    return [
        [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(size)] for _ in range(count)
    ]


def by_definition(candidates, utility):
    """Mean utility of each candidate against the others, two plain loops."""
    u, n = UTILITIES[utility], len(candidates)
    return [
        sum(u(candidates[i], candidates[j]) for j in range(n) if j != i) / max(1, n - 1) for i in range(n)
    ]


@pytest.mark.parametrize(("utility", "name"), [("rougeL", "rougeL"), ("unigram_f1", "rouge1")])
def test_utilities_are_rouge_score(utility, name):
    scorer = RougeScorer([name])
    for h, r in random_groups(200, 2):
        assert UTILITIES[utility](h, r) == pytest.approx(scorer.score(r, h)[name].fmeasure, abs=1e-12)


def test_longest_common_subsequence_of_long_texts():
    h, r = (" ".join(random.Random(seed).choices(WORDS, k=300)) for seed in (1, 2))
    assert rerank.rouge_l(h, r) == pytest.approx(RougeScorer(["rougeL"]).score(r, h)["rougeL"].fmeasure)


def test_bleu_utility_by_hand_and_by_sacrebleu():
    smoothed = (5 / 6 * (3 + 1) / (5 + 1) * (2 + 1) / (4 + 1) * (1 + 1) / (3 + 1)) ** 0.25
    assert rerank.bleu("the cat sat on the mat", "the cat sat on a mat") == pytest.approx(smoothed)
    scorer = sacrebleu.BLEU(smooth_method="add-k", effective_order=True)
    for h, r in random_groups(100, 2):
        assert rerank.bleu(h, r) == pytest.approx(scorer.sentence_score(h, [r]).score / 100)


@pytest.mark.parametrize("utility", UTILITIES)
def test_utilities_end_at_zero_and_one(utility):
    u = UTILITIES[utility]
    assert u("A cat sat.", "a cat sat") == pytest.approx(1)
    assert u("a cat", "the dogs ran") == u("", "a cat") == u("a cat", "") == u("", "") == 0


def test_choice_by_hand():
    assert mbr(["x y z", "a b c", "a b d"]) == 1, "ties go to the first"
    assert mbr(["x y z", "a b d", "a b c", "a b c e"]) == 2
    assert mbr(["alone"]) == 0
    assert mbr(["a b", "c d"]) == 0
    assert mbr(["", "a b", "a c"]) == 1


@pytest.mark.parametrize("utility", UTILITIES)
def test_choice_is_the_definition_with_and_without_duplicates(utility):
    for seed, group in enumerate(random_groups(40, 5)):
        candidates = random.Random(seed).choices(group, k=8)
        gains = by_definition(candidates, utility)
        chosen = mbr(candidates, utility)
        assert gains[chosen] == pytest.approx(max(gains), abs=1e-12)
        assert candidates.index(candidates[chosen]) == chosen, "the first of equals"


@pytest.mark.parametrize("utility", UTILITIES)
def test_order_does_not_matter(utility):
    for group in random_groups(10, 4):
        gains = by_definition(group, utility)
        best = {text for text, gain in zip(group, gains, strict=True) if gain > max(gains) - 1e-12}
        chosen = {order[mbr(order, utility)] for order in permutations(group)}
        assert chosen <= best and (len(best) > 1 or chosen == best)


@pytest.mark.parametrize("utility", UTILITIES)
def test_duplicating_everything_changes_nothing(utility):
    for group in random_groups(30, 6):
        assert (group * 3)[mbr(group * 3, utility)] == group[mbr(group, utility)]


@pytest.mark.parametrize("utility", UTILITIES)
def test_votes_count(utility):
    assert mbr(["a b c d", "a b c e", "x y z w"], utility) == 0
    assert mbr(["a b c d", "a b c e", *["x y z w"] * 3], utility) == 2


def test_every_distinct_pair_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setitem(UTILITIES, "counted", lambda h, r: calls.append((h, r)) or float(h == r))
    assert mbr(["c", "a", "a", "b", "a"], "counted") == 1
    assert len(calls) == len(set(calls)) <= 9


def test_a_candidate_does_not_vote_for_itself(monkeypatch):
    monkeypatch.setitem(UTILITIES, "vain", lambda h, r: 9.0 if h == r == "me" else float(h != "me"))
    assert mbr(["me", "you", "them"], "vain") == 1


def test_rounding_does_not_break_ties(monkeypatch):
    rows = {"first": (0.3, 0.2, 0.1), "second": (0.1, 0.2, 0.3)}
    assert sum(rows["first"]) < sum(rows["second"])
    table = {(h, r): u for h, row in rows.items() for r, u in zip("abc", row, strict=True)}
    monkeypatch.setitem(UTILITIES, "table", lambda h, r: table.get((h, r), 0.0))
    assert mbr(["first", "second", "a", "b", "c"], "table") == 0


def test_other_scripts():
    assert mbr(["狗在跑。", "猫坐在垫子上。", "猫坐在椅子上。"]) == 1
    assert mbr(["собака бежит", "кошка спит дома", "кошка спит там"]) == 1


def test_rerank_takes_each_group_by_itself():
    groups = [["x", "a b", "a b"], ["q r"]]
    assert rerank.rerank(groups) == ["a b", "q r"]
    assert rerank.rerank([]) == []


def test_a_reference_cannot_get_in():
    assert list(inspect.signature(mbr).parameters) == ["candidates", "utility"]
    assert list(inspect.signature(rerank.rerank).parameters) == ["groups", "utility"]
    others = {name for name in vars(metrics) if vars(rerank).get(name) is vars(metrics)[name]}
    assert "rouge" not in others and "bleu" not in others, "only words, not scores against references"
    group, twin = random_groups(2, 6)
    alone = rerank.rerank([group])
    assert rerank.rerank([twin, group, twin])[1:2] == alone, "nothing is carried between examples"


@pytest.mark.parametrize("call", [lambda: mbr([]), lambda: mbr("a b"), lambda: mbr(["a"], "meteor")])
def test_mistakes_are_named_in_one_line(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)


def test_default_utility_is_fast():
    groups = random_groups(300, 8)
    start = time.perf_counter()
    rerank.rerank(groups)
    assert time.perf_counter() - start < 3
