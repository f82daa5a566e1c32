"""Tokenizer: lossless on every text, EOS and PAD apart, the same after saving and loading."""

import json
import random
import subprocess
import sys
import warnings

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from textdiff.tokenizer import Tokenizer

TEXTS = [f"The red team {verb} the blue team in Ashford." for verb in ("beat", "met", "lost to")]
HARD = [
    "plain",
    " leading",
    "  two",
    "trailing ",
    "\ttab\r\nline\n\n",
    "日本語 é e\u0301 🙂 \u200b",
    "<pad> <eos> the <sep> red<mask>",
    "\x00\x7f",
    "a" * 5000,
    "",
    " ",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 10, 300)


def words(vocab, template=None, **extra):
    """A foreign word-level tokenizer with the given vocabulary."""
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        token = (template, vocab.index(template))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{template} $A {template}", special_tokens=[token]
        )
    return backend


def test_every_text_survives(tokenizer):
    assert tokenizer.decode(tokenizer.encode(HARD)) == HARD
    rng = random.Random(0)
    noise = ["".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(40)) for _ in range(50)]
    assert tokenizer.decode(tokenizer.encode(noise)) == noise


def test_special_ids_come_first_and_never_from_text(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.sep_id) == (0, 1, 2)
    assert tokenizer.special_ids == [0, 1, 2, 3]
    for ids in tokenizer.encode(HARD):
        assert not set(ids) & set(tokenizer.special_ids)
        assert all(0 <= index < len(tokenizer) for index in ids)


def test_a_separator_may_be_the_first_token():
    backend = Backend(models.WordLevel({"<sep>": 0, "a": 1}, unk_token="a"))
    assert Tokenizer(backend, "<pad>", "<eos>").sep_id == 0


def test_a_word_is_the_same_token_first_and_in_the_middle(tokenizer):
    first, middle = tokenizer.encode(["team", "red team"])
    assert len(first) == 1
    assert middle[-1] == first[0]


def test_truncation_keeps_the_first_tokens(tokenizer):
    (whole,) = tokenizer.encode(TEXTS[:1])
    assert tokenizer.encode(TEXTS[:1], 3) == [whole[:3]]
    assert len(whole) > 3


def test_decode_stops_at_the_first_eos_and_drops_specials(tokenizer):
    red, team = (ids[0] for ids in tokenizer.encode(["red", "team"]))
    rows = [[red, 0, 3, team, 1, red, 1], [1, red, team, team, 0, 0, 0], [red] * 7]
    expected = ["red team", "", " ".join(["red"] * 7)]
    assert tokenizer.decode(rows) == expected
    assert tokenizer.decode(torch.tensor(rows)) == expected


def test_training_is_deterministic_across_processes(tokenizer):
    code = (
        "from textdiff.tokenizer import Tokenizer as T; import sys; "
        f"sys.stdout.write(T.train({TEXTS!r} * 10, 300).backend.to_str())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout == tokenizer.backend.to_str().encode()


def test_vocabulary_size_is_the_limit_and_too_small_is_refused(tokenizer):
    assert len(Tokenizer.train(TEXTS, 270)) == 270
    assert len(Tokenizer.train([], 260)) == 260
    with pytest.raises(ValueError, match=r"vocab_size=259 .* at least 260"):
        Tokenizer.train(TEXTS, 259)


@pytest.mark.parametrize("name", ["", "tokenizer.json", "own-name.json"])
def test_save_and_load(tokenizer, tmp_path, name):
    path = tmp_path / "new" / name if name else tmp_path / "new"
    before = tokenizer.encode(HARD)
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert tokenizer.encode(HARD) == before == again.encode(HARD)
    assert again.decode(before) == HARD
    assert vars(again) | {"backend": 0} == vars(tokenizer) | {"backend": 0}


def test_foreign_names_are_found_and_survive(tmp_path):
    words(["a", "b", "</s>", "END", "FILL", "x"]).save(str(tmp_path / "tokenizer.json"))
    names = {"pad_token": {"content": "FILL"}, "eos_token": "END"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = Tokenizer.load(tmp_path)
        assert (tokenizer.pad_id, tokenizer.eos_id) == (4, 3)
        tokenizer.save(tmp_path / "alone.json")
        (tmp_path / "special_tokens_map.json").unlink()
        again = Tokenizer.load(tmp_path / "alone.json")
    assert (again.pad_id, again.eos_id) == (4, 3)
    assert again.decode([[0, 4, 1, 3, 5]]) == ["a b"]


def test_bert_and_gpt_styles(tmp_path):
    words(["[PAD]", "a", "[CLS]", "[SEP]"], "[SEP]").save(str(tmp_path / "bert.json"))
    bert = Tokenizer.load(tmp_path / "bert.json")
    assert (bert.pad_id, bert.eos_id, bert.encode(["a a"])) == (0, 3, [[1, 1]])
    words(["a", "<|endoftext|>"]).save(str(tmp_path / "tokenizer.json"))
    shared = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(shared))
    with pytest.warns(UserWarning, match="no pad_token: added <pad>"):
        gpt = Tokenizer.load(tmp_path)
    assert (gpt.pad_id, gpt.eos_id, len(gpt)) == (2, 1, 3)


def test_missing_specials_are_added_loudly(tmp_path):
    words(["a", "b"]).save(str(tmp_path / "tokenizer.json"))
    with pytest.warns(UserWarning) as caught:
        tokenizer = Tokenizer.load(tmp_path)
    assert len(caught) == 2
    assert {tokenizer.pad_id, tokenizer.eos_id} == {2, 3}
    assert len(tokenizer) == 4


def test_foreign_truncation_and_padding_are_switched_off(tmp_path):
    backend = words(["a", "<pad>", "</s>"])
    backend.enable_truncation(2)
    backend.enable_padding(pad_id=1, pad_token="<pad>")
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(["a a a", "a"]) == [[0, 0, 0], [0]]


@pytest.mark.parametrize("content", [None, "", "{", '{"model": 1}', b"\x80\x04pickle"])
def test_no_tokenizer_is_one_clear_error(tmp_path, content):
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"no tokenizer in .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
