"""Hugging Face classifiers that steer, on small local directories with random weights."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from test_blocks import make_model
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from textdiff import commands
from textdiff.control import SequenceClassifier
from textdiff.generation import generate_texts
from textdiff.tokenizer import Tokenizer

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SHAPE["initializer_range"] = 0.5  # so that what is read matters
LABELS = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}


@pytest.fixture(scope="module")
def same(tmp_path_factory) -> str:
    """RoBERTa with the vocabulary of the model."""
    folder = tmp_path_factory.mktemp("same")
    tokenizer = make_model().tokenizer
    torch.manual_seed(0)
    special = {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 80}
    config = RobertaConfig(**sizes, **special, **SHAPE, **LABELS)
    RobertaForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """BERT with a vocabulary of its own, of single letters."""
    folder = tmp_path_factory.mktemp("other")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    backend.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=80, **SHAPE, **LABELS)
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return str(folder)


def shown(model, texts: list[str]) -> tuple[Tensor, Tensor]:
    """One-hot probabilities of texts with their EOS, and where they are."""
    rows = [[*ids, model.tokenizer.eos_id] for ids in model.tokenizer.encode(texts)]
    valid = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
    ids = torch.zeros(valid.shape, dtype=torch.int64)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    return F.one_hot(ids, len(model.tokenizer)).float() * valid[..., None], valid


def test_a_tokenizer_in_older_files_is_read(other, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(other, folder)
    words = Tokenizer.load(other).backend.get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    control = SequenceClassifier(str(folder), "good", pieces=True)
    assert control.own.backend.token_to_id("[SEP]") == 3 and control.frame() == ([2], [3])
    (folder / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"no sequence classifier at .*older"):
        SequenceClassifier(str(folder), "good", pieces=True)


@pytest.mark.parametrize("kind", ["same", "other"])
def test_of_a_text_too_long_for_it_the_last_tokens_are_read(kind, request):
    model, control = make_model(), SequenceClassifier(request.getfixturevalue(kind), 1, pieces=True)
    control.bind(model.tokenizer)
    texts = ["ab " * 60 + "a few words", "ab"]
    probs, valid = shown(model, texts)
    assert control.most < 80 < probs.shape[1]
    long = int(valid[0].sum()) - 1 - control.most
    found = control.read(probs, valid)
    assert torch.allclose(found[:1], control.read(probs[:1, long:], valid[:1, long:]), atol=1e-5)
    assert torch.allclose(found[1:], control.read(probs[1:, :9], valid[1:, :9]), atol=1e-5)
    made = generate_texts(model, num_samples=1, block_length=4, length=100, steps=1, controls=[control])
    assert len(made.ids[0]) > 1


def test_certain_texts_are_read_as_the_classifier_reads_them(same):
    """Same vocabulary: as by its own forward pass on ids with its special tokens."""
    model, control = make_model(), SequenceClassifier(same, "good")
    control.bind(model.tokenizer)
    texts = ["a few words", "ab"]
    found = control.read(*shown(model, texts))
    for text, log_prob in zip(texts, found, strict=True):
        encoding = Tokenizer.load(same).backend.encode(text, add_special_tokens=True)
        logits = control.network(input_ids=torch.tensor([encoding.ids])).logits
        assert log_prob.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item(), abs=1e-5)


def test_another_vocabulary_is_read_by_pieces(other):
    """Tokens of one byte are letters of the other vocabulary; [CLS] and [SEP] stand around the text."""
    model, control = make_model(), SequenceClassifier(other, 1, pieces=True)
    control.bind(model.tokenizer)
    probs, valid = shown(model, ["abc"])
    ids = Tokenizer.load(other).backend.encode(" abc", add_special_tokens=True).ids
    table = control.network.get_input_embeddings().weight
    space = model.tokenizer.encode(["abc"])[0][0]
    embedded = table[torch.tensor(ids)].clone()
    embedded[1] = control.table[space]
    logits = control.network(inputs_embeds=embedded[None]).logits
    found = control.read(probs, valid)
    assert found.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item(), abs=1e-5)
    token = model.tokenizer.encode(["b"])[0][1]
    assert torch.allclose(control.table[token], table[4 + 1])


def test_a_classifier_does_not_read_its_neighbours(same):
    model, control = make_model(), SequenceClassifier(same, "good")
    control.bind(model.tokenizer)
    together = control.read(*shown(model, ["a few words", "a"]))
    for row, text in enumerate(["a few words", "a"]):
        assert torch.allclose(control.read(*shown(model, [text])), together[row], atol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
def test_texts_move_to_the_label(same, shift):
    """By more with more weight; both labels from one model."""
    model, means = make_model(), {}
    judge = SequenceClassifier(same, "good")
    judge.bind(model.tokenizer)
    options = {"num_samples": 24, "steps": 9, "length": 10, "sampler": "ddim", "decoder": "softmax"}
    for label in ("good", "bad"):
        control = SequenceClassifier(same, label, weight=3.0, shift=shift)
        control.network = judge.network
        texts = generate_texts(model, controls=[control], **options).texts
        means[label] = judge.read(*shown(model, texts)).exp().mean().item()
    plain = judge.read(*shown(model, generate_texts(model, **options).texts)).exp().mean().item()
    assert means["bad"] < plain < means["good"]


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("has no label 'fine'; choose one of: bad, good", {"label": "fine"}),
        ("no sequence classifier at 'nowhere'", {"label": "good", "source": "nowhere"}),
    ],
)
def test_wrong_classifiers_are_refused(same, message, options):
    with pytest.raises(ValueError, match=message):
        SequenceClassifier(**({"source": same} | options))


def test_models_that_do_not_classify_or_read_embeddings_are_refused(same, tmp_path):
    config = RobertaConfig.from_pretrained(same)
    RobertaModel(config).save_pretrained(tmp_path / "headless")
    Tokenizer.load(same).save(tmp_path / "headless")
    with pytest.raises(ValueError, match="was not trained to classify: it has no classifier"):
        SequenceClassifier(tmp_path / "headless", 0)
    small = {
        "vocab_size": 260,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 64,
        "pad_token_id": 0,
    }
    GPT2ForSequenceClassification(GPT2Config(**small, **LABELS)).save_pretrained(tmp_path / "decoder")
    Tokenizer.load(same).save(tmp_path / "decoder")
    with pytest.raises(ValueError, match="GPT2ForSequenceClassification does not read embeddings"):
        SequenceClassifier(tmp_path / "decoder", 0)


def test_a_classifier_in_half_precision_steers(same, tmp_path):
    half = RobertaForSequenceClassification.from_pretrained(same).bfloat16()
    half.save_pretrained(tmp_path)
    make_model().tokenizer.save(tmp_path)
    controls = [SequenceClassifier(tmp_path, "good")]
    assert generate_texts(make_model(), num_samples=2, steps=2, length=8, controls=controls).texts


def test_another_vocabulary_must_be_allowed(other):
    with pytest.raises(ValueError, match="another vocabulary than the model; give pieces=True"):
        generate_texts(make_model(), num_samples=1, controls=[SequenceClassifier(other, "good")])


def test_the_command_steers_and_wants_leave_for_another_vocabulary(same, other, tmp_path, capsys):
    make_model().save_pretrained(tmp_path)
    command = ["generate", str(tmp_path), "--num_samples", "2", "--length", "6", "--steps", "2"]
    for classifier, more in ((same, []), (other, ["--pieces"])):
        commands.main([*command, "--classifier", classifier, "--label", "good", *more])
        assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(SystemExit, match=r"give pieces=True \(--pieces\) to"):
        commands.main([*command, "--classifier", other, "--label", "good"])
    with pytest.raises(SystemExit, match="--pieces is for --classifier: leave it out"):
        commands.main([*command, "--pieces"])
