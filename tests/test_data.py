"""Data: every example once, in the same order whatever is resumed or distributed, and clear errors."""

import csv
import gzip
import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from textdiff import data as module
from textdiff.batches import arrange, pad, pieces, ranked
from textdiff.data import TextData
from textdiff.files import read

WORDS = [f"w{i}" for i in range(40)]


def make_rows(n, seed=0, longest=12):
    """Rows whose target starts with its own number, so that examples can be told apart."""
    rng = random.Random(seed)

    def words():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

    return [{"source": words(), "target": f"n{i} {words()}"} for i in range(n)]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.fixture
def said(monkeypatch):
    messages = []
    monkeypatch.setattr(module, "rank_zero_info", messages.append)
    return messages


@pytest.fixture
def files(tmp_path):
    return {
        "train_file": write(tmp_path / "train.jsonl", make_rows(300)),
        "validation_file": write(tmp_path / "validation.jsonl", make_rows(45, seed=1)),
    }


def ready(rank=0, world=1, position=0, **options):
    options = {"vocab_size": 300, "batch_size": 32, "eval_batch_size": 16} | options
    made = TextData(**options)
    made.position = position
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world) if world > 1 else None
    made.prepare_data()
    made.setup("fit")
    return made


def texts(data, batch):
    """(source, target) as text of every example in a batch."""
    targets = [row[keep] for row, keep in zip(batch["ids"], batch["mask"], strict=True)]
    if "source" not in batch:
        return [(None, text) for text in data.tokenizer.decode([t.tolist() for t in targets])]
    sources = data.tokenizer.decode(batch["source"])
    return list(zip(sources, data.tokenizer.decode([t.tolist() for t in targets]), strict=True))


def seen(data, loader):
    return [pair for batch in loader for pair in texts(data, batch)]


def same(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(two[key])), key


def stream(data, epochs=1):
    loader = data.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


# ---------------------------------------------------------------- the order


def pairs_of(n, seed=0):
    rng = random.Random(seed)
    return [([0] * rng.randint(1, 30), [0] * rng.randint(1, 30)) for _ in range(n)]


def test_batches_are_alike_in_length_and_a_pure_function_of_seed_and_epoch():
    pairs = pairs_of(4000)
    orders = [list(arrange(pairs, 16, np.random.default_rng(key))) for key in ((0, 0), (0, 0), (0, 1))]
    flat = [np.concatenate(order).tolist() for order in orders]
    assert flat[0] == flat[1] != flat[2]
    assert sorted(flat[0]) == list(range(4000))
    spread = [np.ptp([len(pairs[row][1]) for row in batch]) for batch in orders[0]]
    assert np.mean(spread) < 2
    firsts = [len(pairs[batch[0]][1]) for batch in orders[0][:50]]
    assert firsts != sorted(firsts)


def test_ranked_sorts_by_target_then_source():
    pairs = pairs_of(500)
    lengths = [(len(pairs[row][1]), len(pairs[row][0])) for row in ranked(pairs, np.arange(500))]
    assert lengths == sorted(lengths)


def test_what_is_left_out_is_random_and_not_the_longest():
    pairs = [([0], [0] * (1 + i)) for i in range(40)]
    left = [
        set(range(40)) - set(np.concatenate(list(arrange(pairs, 32, np.random.default_rng(seed)))))
        for seed in range(20)
    ]
    assert all(len(rows) == 8 for rows in left)
    assert len(set.union(*left)) > 30


def test_every_example_once_per_epoch_in_another_order(files):
    data = ready(**files, batch_size=30)
    one, two = seen(data, stream(data)), seen(data, stream(data, 2)[10:])
    rows = sorted((row["source"], row["target"]) for row in make_rows(300))
    assert sorted(one) == sorted(two) == rows
    assert one != two


def test_index_is_unique_over_epochs_and_position_counts_batches(files):
    data = ready(**files, batch_size=32)
    batches = stream(data, 3)
    assert [batch["position"] for batch in batches] == list(range(27))
    index = torch.cat([batch["index"] for batch in batches])
    assert index.tolist() == list(range(27 * 32))
    assert isinstance(batches[0]["position"], int)


@pytest.mark.parametrize("streaming", [False, True])
def test_resume_goes_on_exactly_even_over_epochs(files, streaming):
    options = {"streaming": streaming, "shuffle_buffer": 100, "batch_size": 32}
    whole = stream(ready(**files, **options), 3)
    for position in (0, 4, 8, 9, 10, 20):
        loader = ready(**files, **options, position=position).train_dataloader()
        rest = [batch for batch in loader]
        assert len(rest) == 9 - position % 9
        rest += [batch for batch in loader]
        for one, two in zip(whole[position:], rest, strict=False):
            same(one, two)


def test_an_abandoned_epoch_goes_on_where_it_stopped(files):
    loader = ready(**files).train_dataloader()
    taken = []
    for _ in range(5):
        for batch, _ in zip(loader, range(4), strict=False):
            taken.append(batch["position"])
    assert taken[:4] == [0, 1, 2, 3]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("streaming", [False, True])
def test_two_ranks_of_16_see_what_one_of_32_sees(files, streaming):
    options = {"streaming": streaming, "shuffle_buffer": 100}
    alone = ready(**files, **options)
    pair = [ready(**files, **options, batch_size=16, rank=r, world=2) for r in (0, 1)]
    loaders = [alone.train_dataloader(), *(data.train_dataloader() for data in pair)]
    for whole, *halves in zip(*loaders, strict=True):
        assert [len(half["ids"]) for half in halves] == [16, 16]
        assert {half["position"] for half in halves} == {whole["position"]}
        split = [dict(zip(h["index"].tolist(), texts(alone, h), strict=True)) for h in halves]
        assert split[0] | split[1] == dict(zip(whole["index"].tolist(), texts(alone, whole), strict=True))


@pytest.mark.parametrize("size", [1, 4])
def test_evaluation_has_every_row_once_on_any_number_of_ranks(files, size):
    for world in (1, 2, 3):
        ranks = [
            ready(**files, eval_batch_size=size, rank=r, world=world).val_dataloader()
            for r in range(world)
        ]
        batches = [list(loader) for loader in ranks]
        assert len({len(some) for some in batches}) == 1
        index = torch.cat([batch["index"] for some in batches for batch in some])
        assert sorted(index.tolist()) == list(range(45))
        assert all(len(batch["ids"]) for some in batches for batch in some)


def test_evaluation_index_is_the_row_of_examples(files):
    data = ready(**files)
    examples = data.examples("validation")
    for batch in data.val_dataloader():
        for row, (source, target) in zip(batch["index"].tolist(), texts(data, batch), strict=True):
            assert (examples[row].source, examples[row].target) == (source, target)


def test_a_data_set_smaller_than_the_batch_gives_one_batch(tmp_path):
    path = write(tmp_path / "few.jsonl", make_rows(5))
    for streaming in (False, True):
        data = ready(train_file=path, validation_file=path, streaming=streaming)
        assert [len(batch["ids"]) for batch in stream(data, 2)] == [5, 5]
    many = ready(train_file=path, validation_file=path, world=6)
    with pytest.raises(ValueError, match="5 examples are too few for 6 devices"):
        stream(many)


def test_workers_change_nothing(files):
    one, two = stream(ready(**files), 2), stream(ready(**files, num_workers=1), 2)
    assert len(one) == len(two) == 18
    for a, b in zip(one, two, strict=True):
        same(a, b)


# ---------------------------------------------------------------- what is in a batch


def test_targets_end_in_one_eos_and_masks_agree(files):
    data = ready(**files)
    tokenizer = data.tokenizer
    for batch in stream(data):
        ids, mask, valid = batch["ids"], batch["mask"], batch["valid"]
        assert torch.equal(mask, valid)
        assert (ids[~valid] == tokenizer.pad_id).all()
        assert ((ids == tokenizer.eos_id).sum(1) == 1).all()
        assert (ids.gather(1, valid.sum(1, keepdim=True) - 1) == tokenizer.eos_id).all()
        assert (batch["source"][~batch["source_mask"]] == tokenizer.pad_id).all()
        assert (batch["source"] != tokenizer.eos_id).all()
        assert {ids.dtype, batch["source"].dtype, batch["index"].dtype} == {torch.int64}
        assert {mask.dtype, valid.dtype, batch["source_mask"].dtype} == {torch.bool}


def test_prefix_puts_the_source_before_the_target_unmasked(files):
    cross, prefix = ready(**files), ready(**files, conditioning="prefix")
    assert (cross.conditioning, prefix.conditioning) == ("cross", "prefix")
    wanted = {target: source for source, target in seen(cross, stream(cross))}
    for batch in stream(prefix):
        assert "source" not in batch
        assert not (batch["mask"] & ~batch["valid"]).any()
        for ids, mask, valid in zip(batch["ids"], batch["mask"], batch["valid"], strict=True):
            (target,) = prefix.tokenizer.decode([ids[mask]])
            given = ids[valid & ~mask].tolist()
            assert given[-1] == prefix.tokenizer.sep_id
            assert prefix.tokenizer.decode([given]) == [wanted.get(target, target)]
            assert ids[mask][-1] == prefix.tokenizer.eos_id
    spread = [np.ptp(batch["valid"].sum(1).numpy()) for batch in stream(prefix)]
    assert np.mean(spread) < 6
    assert torch.equal(cross.token_counts(), prefix.token_counts())
    assert torch.equal(cross.length_counts(), prefix.length_counts())


def test_counts(files):
    data = ready(**files, max_target_length=20)
    targets = data.tokenizer.encode([row["target"] for row in make_rows(300)], 19)
    tokens, lengths = data.token_counts(), data.length_counts()
    assert tokens.shape == (len(data.tokenizer),)
    assert lengths.shape == (21,)
    assert tokens[data.tokenizer.eos_id] == lengths.sum() == 300
    assert tokens.sum() == sum(len(ids) + 1 for ids in targets)
    assert all(lengths[n] == sum(len(ids) + 1 == n for ids in targets) for n in range(21))


def test_cutting_is_counted_and_reported_once(tmp_path, said):
    rows = make_rows(20)
    rows[3]["source"] = "word " * 100_000
    rows[4]["target"] = "word " * 300
    path = write(tmp_path / "train.jsonl", rows)
    data = ready(train_file=path, validation_file=path, max_source_length=50, max_target_length=40)
    data.setup("fit")
    batches = stream(data, 2)
    assert max(batch["source"].shape[1] for batch in batches) == 50
    assert max(batch["ids"].shape[1] for batch in batches) == 40
    assert (batches[0]["ids"] == data.tokenizer.eos_id).sum() == 20
    source = "5 % of 20 train sources were cut to 50 tokens; raise --data.max_source_length"
    target = "5 % of 20 train targets were cut to 40 tokens; raise --data.max_target_length"
    assert said.count(source) == said.count(target) == 1


def test_unconditional_text_goes_on_in_pieces(tmp_path, said):
    lines = [" ".join(random.Random(i).choices(WORDS, k=60)) for i in range(30)]
    (tmp_path / "train.txt").write_text("\n\n".join(lines) + "\n")
    path = str(tmp_path / "train.txt")
    data = ready(train_file=path, validation_file=path, max_target_length=16)
    assert data.conditioning == "none"
    pieces = [example.target for example in data.examples("train")]
    table, eos = [[*ids] for _, ids in data.table("train")], data.tokenizer.eos_id
    whole = [index for ids in table for index in ids if index != eos]
    assert data.tokenizer.decode([whole]) == [" ".join(lines)]
    assert sum(eos in ids for ids in table) == len(lines), "every text ends"
    before_last = [ids for ids, after in itertools.pairwise(table) if after[-1] == eos]
    rest = [ids for ids in table if ids[-1] != eos and ids not in before_last]
    assert all(len(ids) == 16 for ids in rest) and all(len(ids) in (15, 16) for ids in before_last)
    assert all(len(ids) > 1 for ids in table)
    batch = next(iter(data.train_dataloader()))
    assert "source" not in batch
    assert ((batch["ids"] == data.tokenizer.eos_id).sum(1) <= 1).all()
    assert len(pieces) == int(data.length_counts().sum()) > 60
    assert any("100 % of 30 train targets were split into pieces of 16" in line for line in said)


def test_pad_takes_lists_and_arrays():
    ids, valid = pad([[5, 6], np.array([7], np.uint16), []], 9)
    assert ids.tolist() == [[5, 6], [7, 9], [9, 9]]
    assert valid.tolist() == [[True, True], [True, False], [False, False]]
    assert ids.dtype == torch.int64
    assert pad([], 0)[0].shape == pad([], 0)[1].shape == (0, 0)


# ---------------------------------------------------------------- where rows come from


def write_csv(path, rows, delimiter=","):
    opened = gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w", newline="")
    with opened as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(rows), path)


WRITERS = {
    "a.jsonl": write,
    "a.jsonl.gz": write,
    "a.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "lines.json": write,
    "a.csv": write_csv,
    "a.csv.gz": write_csv,
    "a.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    rows = [*make_rows(30), {"source": 'a "b", c\nd\u2028é\t日本', "target": "NA"}]
    WRITERS[name](tmp_path / name, rows)
    assert list(read(tmp_path / name)) == rows


def test_text_files_are_unconditional_lines(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\ufeffone\r\n\n two \nthree".encode()))
    assert [row["text"] for row in read(tmp_path / "a.txt.gz")] == ["one", " two ", "three"]


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (("src", "trg"), {}, ("src", "trg")),
        (("document", "summary", "id"), {}, ("document", "summary")),
        (("article", "highlights"), {}, ("article", "highlights")),
        (("text", "summary"), {}, ("text", "summary")),
        (("text",), {}, (None, "text")),
        (("source", "target"), {"text_column": "target"}, (None, "target")),
        (("a", "b", "source", "target"), {"text_column": "b", "summary_column": "a"}, ("b", "a")),
    ],
)
def test_columns(tmp_path, names, given, expected):
    rows = [{name: f"{name} {i}" for name in names} for i in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    data = ready(train_file=path, validation_file=path, **given)
    assert data.columns == expected
    source, target = expected
    assert data.examples("train")[7].target == f"{target} 7"
    assert data.examples("train")[7].source == (source and f"{source} 7")


def test_references(tmp_path):
    rows = [row | {"references": [row["target"], "other"]} for row in make_rows(3)]
    path = write(tmp_path / "a.jsonl", [*rows, *make_rows(1)])
    examples = ready(train_file=path, validation_file=path).examples("validation")
    assert [len(example.references) for example in examples] == [2, 2, 2, 1]
    assert examples[0].references[1] == "other"


@pytest.mark.parametrize("other", ["Smith 2003", ["Smith 2003"], 17, [["Smith"]]])
def test_a_column_that_only_has_the_name_of_references_is_refused(tmp_path, other):
    rows = [row | {"references": other} for row in make_rows(3)]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a.jsonl, row 1: 'references' must be a list.*rename"):
        ready(train_file=path, validation_file=path).examples("validation")
    texts = write(tmp_path / "b.jsonl", [{"text": row["target"], "references": other} for row in rows])
    assert ready(train_file=texts, validation_file=texts).examples("validation")


def test_source_prefix_is_read_by_the_model_and_not_part_of_the_text(files):
    data = ready(**files, source_prefix="sum: ")
    assert all(source.startswith("sum: w") for source, _ in seen(data, stream(data)))
    assert data.examples("train")[0].source == make_rows(1)[0]["source"]


@pytest.mark.parametrize("streaming", [False, True])
def test_without_validation_data_every_20th_row_is_kept(tmp_path, said, streaming):
    path = write(tmp_path / "a.jsonl", make_rows(100))
    data = ready(train_file=path, streaming=streaming, batch_size=5)
    held = [example.target for example in data.examples("validation")]
    assert held == [row["target"] for row in make_rows(100)[1::20]]
    train = {target for _, target in seen(data, stream(data))}
    assert len(train) == 95
    assert not train & set(held)
    assert sum("no validation data" in line for line in said) == 1
    assert data.has_split("train")
    assert not data.has_split("test")


def test_limits(files):
    data = ready(**files, max_train_examples=50, max_validation_examples=7)
    assert len(data.examples("train")) == len(data.table("train")) == 50
    assert len(data.examples("validation")) == 7


def test_built_in_corpus():
    data = ready(dataset_name="textdiff/reports", max_train_examples=100, max_validation_examples=20)
    assert [len(data.examples(split)) for split in ("train", "validation")] == [100, 20]
    assert [len(data.examples(split)) for split in ("test", "unseen_names")] == [500, 500]
    train = {example.source for example in data.examples("train")}
    assert not train & {example.source for example in data.examples("test")}


@pytest.mark.parametrize("streaming", [False, True])
def test_local_data_set_directory(tmp_path, files, monkeypatch, streaming):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = ready(dataset_name=str(tmp_path), streaming=streaming, batch_size=30)
    same_data = ready(**files, streaming=streaming, batch_size=30)
    assert len(data.examples("validation")) == 45
    for one, two in zip(stream(data), stream(same_data), strict=True):
        same(one, two)


def test_streaming_sees_every_example_once_without_length(files):
    data = ready(**files, streaming=True, shuffle_buffer=70, batch_size=30)
    loader = data.train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    for _ in range(2):
        rows = seen(data, loader)
        assert sorted(rows) == sorted((r["source"], r["target"]) for r in make_rows(300))
    assert int(data.length_counts().sum()) == 70
    assert rows[:60] != [(r["source"], r["target"]) for r in make_rows(60)]


def test_setup_twice_and_with_the_saved_tokenizer(files, tmp_path):
    data = ready(**files)
    tokenizer, table = data.tokenizer, data.table("train")
    data.setup("fit")
    assert data.tokenizer is tokenizer
    assert data.table("train") is table
    tokenizer.save(tmp_path / "saved")
    again = ready(**files, tokenizer=str(tmp_path / "saved"))
    for one, two in zip(stream(data), stream(again), strict=True):
        same(one, two)
    alone = TextData(test_file=files["validation_file"], tokenizer=str(tmp_path / "saved"))
    alone.setup("test")
    assert sum(len(batch["ids"]) for batch in alone.test_dataloader()) == 45


def test_lightning_trains_validates_and_command_line_options_arrive(files):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.cli import LightningCLI

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen, self.rows = torch.nn.Linear(1, 1), [], 0

        def training_step(self, batch, _):
            self.seen.append(batch["position"])
            return self.layer(batch["mask"].float().mean().view(1))

        def validation_step(self, batch, _):
            self.rows += len(batch["ids"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = {"max_epochs": 2, "accelerator": "cpu", "barebones": True}
    options = files | {"batch_size": 32, "vocab_size": 300, "max_target_length": 20}
    args = [f"--data.{name}={value}" for name, value in options.items()]
    options = {"run": False, "args": args, "save_config_callback": None}
    cli = LightningCLI(Module, TextData, trainer_defaults=trainer, **options)
    assert isinstance(cli.trainer, Trainer)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.model.seen == list(range(18))
    cli.trainer.validate(cli.model, cli.datamodule)
    assert cli.model.rows == 3 * 45
    assert cli.datamodule.hparams.max_target_length == 20


# ---------------------------------------------------------------- bad input

GOOD = json.dumps({"source": "a b", "target": "c"}) + "\n"
BAD_FILES = {
    "empty.jsonl": (b"", "no train rows"),
    "blank.txt": (b"\n \n\n", "no train rows"),
    "header.csv": (b"source,target\n", "no train rows"),
    "latin.jsonl": (GOOD.encode() + b'{"source": "caf\xe9"', r"latin.jsonl, line 2.*0xe9.*UTF-8"),
    "latin.txt": ("ok\nna\u00efve\n".encode("latin-1"), r"latin.txt, line 2.*0xef"),
    "broken.jsonl": (GOOD.encode() + b'{"source": \n', "broken.jsonl, line 2"),
    "broken.json": (b'[{"source": "a"', "broken.json, line 1"),
    "numbers.jsonl": (b'{"source": 3, "target": "a"}\n', "row 1: 'source' is int, not text"),
    "null.jsonl": (b'{"source": null, "target": "a"}\n', "row 1: 'source' is NoneType"),
    "list.jsonl": (b'["a", "b"]\n', "no known pair of columns among list"),
    "other.jsonl": (b'{"body": "a", "title": "b"}\n', r"among \['body', 'title'\]; set text_column"),
    "hole.jsonl": (GOOD.encode() + b'{"target": "a"}\n', r"row 2: no column 'source' among \['tar"),
    "short.csv": (b"source,target\na,b\nc\n", "row 2: 'target' is NoneType"),
    "half.jsonl": (b'{"source": "\\ud800", "target": "a"}\n', "row 1: 'source' has half a surr"),
    "spaces.jsonl": ((GOOD * 3 + GOOD.replace("a b", " \\n")).encode(), r"1 of 4 rows .* \[4\]"),
    "rows.gz": (b"", "unknown extension ''"),
    "rows.xlsx": (b"PK", "unknown extension '.xlsx'; use one of .jsonl"),
    "fake.parquet": (b"not parquet", r"fake.parquet: .*Parquet"),
    "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 1000)[:40], r"cut.jsonl.gz.*end-of-stream"),
    "plain.jsonl.gz": (GOOD.encode(), r"plain.jsonl.gz.*gzip"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_clear_line(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    path = str(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        ready(train_file=path, validation_file=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either dataset_name or train_file"),
        ({"train_file": "a.jsonl", "dataset_name": "b"}, "give either dataset_name or train_file"),
        ({"train_file": "no-such.jsonl"}, "no such file: no-such.jsonl"),
        ({"dataset_name": "no/such/data"}, "cannot load data set 'no/such/data'"),
        ({"train_file": "a.jsonl", "batch_size": 0}, "batch_size=0: give at least 1"),
        ({"train_file": "a.jsonl", "max_train_examples": -1}, "max_train_examples=-1: give at least 1"),
        (
            {"train_file": "a.jsonl", "max_validation_examples": 0},
            "max_validation_examples=0: give at",
        ),
        ({"test_file": "a.jsonl", "max_test_examples": 0}, "max_test_examples=0: give at least 1"),
        ({"train_file": "a.jsonl", "max_target_length": 1}, "max_target_length=1: give at least 2"),
        ({"train_file": "a.jsonl", "conditioning": "both"}, "choose cross or prefix"),
        ({"test_file": "GOOD"}, "no train data: give train_file"),
        ({"train_file": "GOOD", "validation_file": "GOOD", "text_column": "x"}, "no columns"),
        ({"train_file": "GOOD", "validation_file": "GOOD", "summary_column": "target"}, "no columns"),
        ({"train_file": "GOOD", "validation_file": "GOOD", "vocab_size": 9}, "vocab_size=9"),
        ({"train_file": "GOOD", "validation_file": "GOOD", "tokenizer": "no"}, "no tokenizer in no"),
        ({"train_file": "GOOD"}, "no validation rows; give a larger file or validation_file"),
    ],
)
def test_bad_options_are_one_clear_line(tmp_path, options, message):
    path = write(tmp_path / "good.jsonl", make_rows(1))
    options = {key: path if value == "GOOD" else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message) as caught:
        ready(**options)
    assert "\n" not in str(caught.value)


def test_few_empty_rows_are_dropped_and_reported(tmp_path, said):
    rows = make_rows(30)
    rows[4]["target"], rows[17]["source"] = " ", "\n"
    path = write(tmp_path / "a.jsonl", rows)
    data = ready(train_file=path, validation_file=path)
    assert len(data.table("train")) == len(data.examples("train")) == 28
    assert any("2 of 30 rows have an empty text, first [5, 18]: dropped" in line for line in said)


def test_a_missing_split_is_named(files):
    with pytest.raises(ValueError, match="no test data: give test_file"):
        ready(**files).test_dataloader()


def test_no_piece_of_a_text_is_its_end_alone():
    for size, length in itertools.product(range(2, 6), range(1, 20)):
        text = list(range(length))
        parts = list(pieces(text, size))
        assert [*itertools.chain(*parts)] == text and max(map(len, parts)) <= size
        assert len(parts[-1]) > 1 or length == 1
