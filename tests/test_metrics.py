"""Scores against hand-computed values and against rouge-score and sacrebleu themselves."""

import math
import random
import socket
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from textdiff import metrics

FOREIGN = {
    "Russian": "Кошка сидела на коврике",
    "Greek": "Η γάτα κάθισε στο χαλί",
    "Chinese": "猫坐在垫子上。",
    "Hindi": "बिल्ली चटाई पर बैठी",
    "Thai": "แมวนั่งบนเสื่อ",
}
WORDS = "the a cat dog sat ran on under mat road 7 3.5 It's well-known".split()


def random_texts(count, seed, most=14):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, most))) for _ in range(count)]


def only(prediction, references, **options):
    return {
        name: values[0] for name, values in metrics.rouge([prediction], [references], **options).items()
    }


def test_rouge_by_hand():
    row = only("the cat sat", "The cat sat on the mat.")
    assert row == pytest.approx(
        {"rouge1": 200 / 3, "rouge2": 400 / 7, "rougeL": 200 / 3, "rougeLsum": 200 / 3}
    )
    row = only("mat the cat", "the cat mat")
    assert row == pytest.approx({"rouge1": 100, "rouge2": 50, "rougeL": 200 / 3, "rougeLsum": 200 / 3})


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_is_rouge_score(stem):
    predictions, references = random_texts(60, 1), random_texts(60, 2)
    scorer = RougeScorer(metrics.ROUGE, use_stemmer=stem)
    expected = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    scores = metrics.rouge(predictions, references, use_stemmer=stem)
    for name in metrics.ROUGE:
        assert scores[name] == [100 * e[name].fmeasure for e in expected]
    assert metrics.ROUGE_SCORER.startswith("rouge-score 0.")


def test_stemmer_joins_word_forms():
    assert only("cats running", "cat runs")["rouge1"] == 0
    assert only("cats running", "cat runs", use_stemmer=True)["rouge1"] == 100


def test_each_metric_takes_its_best_reference():
    row = only("a b c d", ["d c b a", "a b"])
    assert row == pytest.approx({"rouge1": 100, "rouge2": 50, "rougeL": 200 / 3, "rougeLsum": 200 / 3})
    assert row == only("a b c d", ["a b", "d c b a"])
    assert only("a b", ["a b"]) == only("a b", "a b")


def test_lsum_reads_lines_or_else_sentences():
    lines = only("d e f\na b c", "a b c\nd e f")
    assert (lines["rougeL"], lines["rougeLsum"]) == (50, 100)
    assert only("d e f. a b c.", "a b c! D e f?") == lines
    assert only("d e f. a b c.", "a b c\nd e f") == lines
    assert only("丁戊己。甲乙丙。", "甲乙丙！丁戊己？", tokenizer="unicode") == lines
    assert only("d e f.a b c", "a b c.d e f")["rougeLsum"] == 50, "3.5 is one sentence"
    assert only("d e f. a b.\nx", "a b. d e f.\nx")["rougeLsum"] == pytest.approx(200 / 3), "lines win"


@pytest.mark.parametrize("language", FOREIGN)
def test_other_scripts_need_the_option(language):
    text = FOREIGN[language]
    assert set(only(text, text).values()) == {0.0}
    for tokenizer in ("unicode", "characters"):
        assert only(text, text, tokenizer=tokenizer)["rouge1"] == 100
    report = metrics.summarization_report([text], [text], tokenizer="unicode")
    assert (report["rouge1"], report["length_ratio"], report["empty_rate"]) == (100, 1, 0)


@pytest.mark.parametrize("language", FOREIGN)
def test_the_tokenizer_of_other_scripts_is_found(language):
    """A text that is its reference scores 100, with a name and a number of English in it, too."""
    text = FOREIGN[language]
    tokenizer = metrics.tokenizer_for([text, [text, f"{text} {text} IBM"]])
    assert only(text, text, tokenizer=tokenizer)["rouge1"] == 100
    assert tokenizer == ("characters" if language == "Thai" else "unicode")
    assert metrics.tokenizer_for([f"{text} in a text of many more words of English"]) == "default"


def test_a_changed_word_of_a_script_without_spaces_is_a_part_of_the_text():
    text, other = FOREIGN["Thai"], FOREIGN["Thai"].replace("แมว", "หมา")
    tokenizer = metrics.tokenizer_for([text])
    assert 50 < only(other, text, tokenizer=tokenizer)["rougeL"] < 100


@pytest.mark.parametrize(
    "text", ["À l'été où il a été à Nîmes", "Ở đâu cũng có người ấy", "Où? À 3", "źdźbło ją ĄĘ", "", "?!"]
)
def test_latin_script_keeps_the_default_tokenizer(text):
    assert metrics.tokenizer_for([text]) == metrics.tokenizer_for([[text]]) == "default"


def test_unicode_words_by_hand():
    assert metrics.words("Été, ÉTÉ! e\u0301te\u0301 Straße_2") == ["été", "été", "été", "strasse", "2"]
    assert metrics.words("我有2只猫 и кот") == ["我", "有", "2", "只", "猫", "и", "кот"]
    assert metrics.words("हिन्दी") == ["हिन्दी"], "vowel signs belong to the word"
    assert metrics.words("£30 – … 🙂") == ["30"]
    assert metrics.characters("ab 1!") == ["a", "b", "1"]


def test_unicode_equals_default_on_ascii():
    draw = random.Random(0)
    texts = ["".join(map(chr, draw.choices(range(32, 127), k=60))) for _ in range(200)]
    pairs = texts[:100], texts[100:]
    assert metrics.rouge(*pairs) == metrics.rouge(*pairs, tokenizer="unicode")


def test_empty_texts_score_zero():
    assert set(only("", "a b").values()) == {0.0}
    assert set(only("...", "a b").values()) == {0.0}
    report = metrics.summarization_report(["", "a b"], ["a b", "a b"], ["a", "a"])
    assert (report["rouge1"], report["length_ratio"], report["empty_rate"]) == (50, 0.5, 50)
    assert report["copy_rate"] == 50
    nothing = metrics.summarization_report([""], ["a b"], ["a"])
    assert all(math.isfinite(value) for value in nothing.values())
    assert nothing["empty_rate"] == 100


@pytest.fixture
def offline(monkeypatch):
    calls = []

    def refuse(*arguments, **options):
        calls.append(arguments)
        raise OSError("the network is closed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not calls


def test_rouge_metric_is_an_evaluate_metric_and_needs_no_network(offline, tmp_path):
    metric = metrics.rouge_metric(cache_dir=str(tmp_path))
    import evaluate

    assert isinstance(metric, evaluate.Metric)
    predictions, references = random_texts(20, 3), random_texts(20, 4)
    means = {name: np.mean(v) for name, v in metrics.rouge(predictions, references).items()}
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(means)
    several = metric.compute(predictions=["a b c d", "x"], references=[["d c b a", "a b"], ["x"]])
    assert several == pytest.approx(
        {"rouge1": 100, "rouge2": 25, "rougeL": 250 / 3, "rougeLsum": 250 / 3}
    )
    metric.add_batch(predictions=["кот"], references=["кот"])
    metric.add(prediction="нет", reference="кот")
    assert metric.compute(tokenizer="unicode")["rouge1"] == 50


def test_import_is_light():
    code = (
        "import sys, textdiff.metrics, textdiff.rerank;"
        "print(*{'nltk', 'evaluate', 'datasets', 'sacrebleu', 'rouge_score'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_bleu_by_hand():
    score = metrics.bleu(["the cat sat on the mat"], ["the cat sat on a mat"])
    assert score == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    short = metrics.bleu(["a b c d"], ["a b c d e f"])
    assert short == pytest.approx(100 * math.exp(1 - 6 / 4)), "brevity penalty"


def test_bleu_is_sacrebleu():
    predictions, references = random_texts(50, 5), [random_texts(50, 6), random_texts(50, 7)]
    pairs = list(zip(*references, strict=True))
    assert metrics.bleu(predictions, pairs) == sacrebleu.corpus_bleu(predictions, references).score > 0
    assert metrics.BLEU_SCORER == f"sacrebleu {sacrebleu.__version__}"


def test_bleu_takes_any_number_of_references():
    predictions = ["the cat sat on the mat", "a dog ran on the road"]
    one, two, three = "the cat sat on a mat", "a dog ran", "one dog ran on the road"
    ragged = metrics.bleu(predictions, [one, [two, three]])
    assert ragged == pytest.approx(metrics.bleu(predictions, [[one, one], [two, three]]))
    assert 0 < metrics.bleu(predictions, [one, two]) < ragged
    assert metrics.bleu(["a b c d"], [["x", "a b c d"]]) == pytest.approx(100)


def test_bleu_tokenizers():
    chinese = "猫坐在垫子上", "狗坐在垫子上"
    assert metrics.bleu([chinese[0]], [chinese[1]]) == 0
    by_hand = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert metrics.bleu([chinese[0]], [chinese[1]], "unicode") == pytest.approx(by_hand)
    assert metrics.bleu([chinese[0]], [chinese[1]], "characters") == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.rouge(["a"], ["a", "b"]),
        lambda: metrics.rouge([], []),
        lambda: metrics.rouge("a", "a"),
        lambda: metrics.rouge(["a"], [[]]),
        lambda: metrics.rouge([None], ["a"]),
        lambda: metrics.bleu(["a", "b"], ["a", None]),
        lambda: metrics.bleu(["a"], [["a", 3]]),
        lambda: metrics.rouge(["a"], ["a"], tokenizer="spaces"),
        lambda: metrics.bleu(["a"], ["a"], tokenizer="spaces"),
        lambda: metrics.rouge(["a"], ["a"], tokenizer="unicode", use_stemmer=True),
        lambda: metrics.bootstrap([]),
        lambda: metrics.bootstrap([[], []]),
        lambda: metrics.bootstrap([[1.0, 2.0], [1.0]]),
        lambda: metrics.paired_bootstrap([1.0], [1.0, 2.0]),
        lambda: metrics.self_bleu(["alone"]),
        lambda: metrics.copy_rate(["a"], ["a", "b"]),
    ],
)
def test_mistakes_are_named_in_one_line(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_bad_example_is_named():
    with pytest.raises(ValueError, match="example 1"):
        metrics.rouge(["a", "b", "c"], ["a", [], "c"])


def test_bootstrap_interval_is_the_normal_one():
    scores = np.random.default_rng(0).normal(40, 10, size=2000)
    row = metrics.bootstrap(scores, resamples=2000)
    half = 1.96 * scores.std() / math.sqrt(len(scores))
    assert row["mean"] == pytest.approx(scores.mean())
    assert row["mean"] - row["low"] == pytest.approx(half, rel=0.1)
    assert row["high"] - row["mean"] == pytest.approx(half, rel=0.1)


def test_bootstrap_averages_seeds_and_resamples_examples():
    a, b = np.random.default_rng(1).normal(size=(2, 300))
    assert metrics.bootstrap([a, b]) == metrics.bootstrap(list((a + b) / 2))
    assert metrics.bootstrap([a, a]) == metrics.bootstrap(a), "seeds are no examples"
    assert metrics.bootstrap([7.0] * 9) == {"mean": 7, "low": 7, "high": 7}
    assert metrics.bootstrap(a, seed=1) == metrics.bootstrap(a, seed=1) != metrics.bootstrap(a, seed=2)


def test_paired_bootstrap():
    rng = np.random.default_rng(2)
    examples = rng.normal(50, 20, size=400)
    better = examples + rng.normal(1, 2, size=400)
    row = metrics.paired_bootstrap(better, examples)
    assert row["difference"] == pytest.approx((better - examples).mean())
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15), (
        "pairing removes the spread"
    )
    assert row["p"] == pytest.approx(2 / 1001)
    back = metrics.paired_bootstrap(examples, better)
    assert [back["difference"], back["low"], back["high"], back["p"]] == pytest.approx(
        [-row["difference"], -row["high"], -row["low"], row["p"]]
    )
    same = metrics.paired_bootstrap(examples, [examples, examples])
    assert same == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_paired_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(3)
    pairs = rng.normal(size=(200, 2, 100))
    p = [metrics.paired_bootstrap(a, b, seed=i, resamples=200)["p"] for i, (a, b) in enumerate(pairs)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.11
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_word_statistics_by_hand():
    assert metrics.repetition(["a a b b b"]) == 75
    assert metrics.repetition(["a", "a"]) == 0, "neighbours are within a text"
    assert metrics.repetition(["The the"]) == 100
    assert metrics.distinct(["a b a b"], 1) == 50
    assert metrics.distinct(["a b", "a b a"], 2) == pytest.approx(200 / 3)
    assert metrics.distinct(["a"], 2) == 0
    assert metrics.empty_rate(["", "?!", "a", "b"]) == 50
    assert metrics.length_ratio(["a b c", "a"], [["a b"], ["a b c d e f", "a"]]) == 0.5
    assert metrics.copy_rate(["a b x", "y"], ["b a", "a"]) == 50
    assert metrics.copy_rate(["a", "b"], ["b", "a"]) == 0, "each against its own source"
    assert metrics.copy_rate(["a a a b"], ["A!"]) == 75
    assert metrics.coverage(["The dog ran.", "x"], ["dog park ran", "y"]) == 50


def test_invented_words_stand_nowhere():
    """Neither in the source nor in a reference; of numbers the source alone counts."""
    texts, sources = ["A cat of 15 ran.", "Rain in 2 days"], ["The cat, 15.", "It will rain 20 mm."]
    references = [["A cat"], ["Rain soon", "rain in days"]]
    assert metrics.invented(texts, sources, references) == pytest.approx(100 * 3 / 9)  # of, ran, 2
    assert metrics.invented(texts, sources, [["a cat of"], ["x"]]) == pytest.approx(100 * 4 / 9)
    assert metrics.invented_numbers(texts, sources) == 50
    assert metrics.invented_numbers(["none"], ["none"]) == 0


def test_entropy():
    assert metrics.entropy(["a b", "c d"]) == pytest.approx(2)
    assert metrics.entropy(["a a", "a"]) == 0
    assert metrics.entropy(["a a b", "c"]) == pytest.approx(1.5)


def test_memorisation():
    assert metrics.memorisation(["a b c d e"], ["x a b c d"]) == 50
    assert metrics.memorisation(["a b c d", "a b c d", "e f g h"], (t for t in ["A b, c d"] * 2)) == (
        pytest.approx(200 / 3)
    )
    assert metrics.memorisation(["a b c d"], ["a b", "c d"]) == 0, "no n-gram spans two texts"
    assert metrics.memorisation(["a b c"], ["a b c"]) == 0
    assert metrics.memorisation(["a b c"], ["b c d"], n=2) == 50


def test_self_bleu():
    assert metrics.self_bleu(["a b c d e"] * 3) == pytest.approx(100)
    assert metrics.self_bleu(["a b c d", "e f g h", "i j k l"]) == 0
    texts = [text + " end" for text in random_texts(9, 10)]
    expected = [sacrebleu.sentence_bleu(t, texts[:i] + texts[i + 1 :]).score for i, t in enumerate(texts)]
    assert metrics.self_bleu(texts) == pytest.approx(np.mean(expected))
    assert metrics.self_bleu(texts, sample=4) == metrics.self_bleu(texts, sample=4)
    assert metrics.self_bleu(["a b c d e"] * 5 + ["v w x y z"], sample=2) in (0, pytest.approx(100))


def test_reports_gather_the_scores():
    predictions, sources = random_texts(6, 11), random_texts(6, 12)
    references = [[r, s] for r, s in zip(random_texts(6, 13), random_texts(6, 14), strict=True)]
    row = metrics.summarization_report(predictions, references, sources)
    assert row["bleu"] == metrics.bleu(predictions, references)
    assert row["rougeL"] == np.mean(metrics.rouge(predictions, references)["rougeL"])
    assert row["distinct_2"] == metrics.distinct(predictions, 2)
    assert row["copy_rate"] == metrics.copy_rate(predictions, sources)
    more = row.keys() - metrics.summarization_report(predictions, references).keys()
    assert more == {"copy_rate", "coverage", "invented", "invented_numbers"}
    other = metrics.unconditional_report(predictions, sources)
    assert other["distinct_4"] == metrics.distinct(predictions, 4)
    assert other["memorisation"] == metrics.memorisation(predictions, sources)
    assert other["mean_length"] == np.mean([len(metrics.words(text)) for text in predictions])
    paired = metrics.paired_bootstrap([1.0, 2.0], [2.0, 1.0])
    assert {type(value) for value in (*row.values(), *other.values(), *paired.values())} == {float}
