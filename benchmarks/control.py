"""Steer models of plain text to attributes and words: how often it works, and what it costs.

    python benchmarks/control.py --name e2e --minutes 10 --train_file train.jsonl \
        --validation_file validation.jsonl --test_file test.jsonl

The models are trained on the targets alone; a label is what the source says (`area[riverside]`) or none.
A guide for every attribute, a small ModernBERT of the `transformers` library, learns from the texts of
one half of the sources and steers; a judge, a convolutional network (Kim 2014, arXiv:1408.5882), learns
from the other half and says which label a text has. Fluency is the perplexity under an autoregressive
model trained with its own seed. As many texts are asked for every label, so that no label is easy by
being common. The weight is the smallest of which the worst attribute has at least 90 % by the judge with
one seed (the best, if none has); what it does is then measured with others.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unconditional import judged

from textdiff.batches import pad
from textdiff.control import Contain, Control, SequenceClassifier
from textdiff.files import read
from textdiff.generation import Generation, generate_texts
from textdiff.metrics import distinct
from textdiff.model import TextModel
from textdiff.tokenizer import Tokenizer

Row = dict[str, Any]
NONE = "none"
WANTED = 0.9
VARIED = 240
GUIDE = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 160,
    "classifier_pooling": "mean",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--test_file", required=True, help="for the accuracy of guides and judges")
    parser.add_argument("--attributes", nargs="+", default=["food", "area", "familyFriendly"])
    parser.add_argument("--processes", nargs="+", default=["embedding", "simplex"])
    common.add_budget(parser, minutes=10)
    parser.add_argument("--guide_steps", type=int, default=600)
    parser.add_argument("--weights", type=float, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--nfe", type=int, default=32, help="steps of generation")
    parser.add_argument("--samples", type=int, default=40, help="texts for every label or word")
    parser.add_argument("--words", type=int, default=20, help="words that must occur, one in a text")
    parser.add_argument("--seeds", type=int, default=2, help="generation seeds at the chosen weight")
    return parser.parse_args()


def label_of(source: str, attribute: str) -> str:
    """The value of an attribute in a source such as `name[The Mill], area[riverside]`."""
    found = re.search(rf"\b{re.escape(attribute)}\[([^\]]*)\]", source)
    return found[1] if found else NONE


class Judge(nn.Module):
    """Kim's convolutional network: windows of 1 to 3 tokens, their strongest answers, a linear layer."""

    def __init__(self, vocabulary: int, classes: int, width: int = 96) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.windows = nn.ModuleList(nn.Conv1d(width, width, n, padding=n - 1) for n in (1, 2, 3))
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(3 * width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = (self.table(input_ids) * attention_mask[..., None]).mT
        return self.out(self.drop(torch.cat([F.relu(w(x)).amax(-1) for w in self.windows], 1)))


def logits_of(network: nn.Module, rows: Sequence[list[int]]) -> Tensor:
    """Logits `(B, C)` of texts by their tokens, EOS included."""
    ids, valid = pad(rows, 0)
    where = next(network.parameters()).device
    found = network(input_ids=ids.to(where), attention_mask=valid.long().to(where))
    return getattr(found, "logits", found)


def learn(network: nn.Module, rows: list[list[int]], labels: list[int], steps: int, seed: int) -> None:
    """AdamW with linear decay, batches of 64."""
    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    network.train()
    for _ in range(steps):
        some = draw.sample(range(len(rows)), 64)
        logits = logits_of(network, [rows[i] for i in some])
        wanted = torch.tensor([labels[i] for i in some], device=logits.device)
        loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    network.eval()


@torch.no_grad()
def classify(network: nn.Module, rows: list[list[int]]) -> list[int]:
    """The likeliest class of every text."""
    parts = [rows[i : i + 128] for i in range(0, len(rows), 128)]
    return torch.cat([logits_of(network, part).argmax(-1) for part in parts]).tolist()


def train_pair(
    attribute: str, examples: dict[str, list[Row]], tokenizer: Tokenizer, steps: int, folder: Path
) -> tuple[Path, nn.Module, list[str], dict[str, float]]:
    """Guide (a directory) and judge of an attribute, its classes, their accuracies on test texts."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    halves: list[list[Row]] = [[], []]
    for row in examples["train"]:
        halves[crc32(row["source"].encode()) % 2].append(row)
    names = sorted({label_of(row["source"], attribute) for row in examples["train"]})

    def read_rows(rows: list[Row]) -> tuple[list[list[int]], list[int]]:
        ids = tokenizer.encode([row["target"] for row in rows])
        labels = [names.index(label_of(row["source"], attribute)) for row in rows]
        return [[*one, tokenizer.eos_id] for one in ids], labels

    torch.manual_seed(0)
    special = {f"{name}_token_id": tokenizer.eos_id for name in ("bos", "eos", "cls", "sep")}
    shape = GUIDE | special | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_id}
    known = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    guide = ModernBertForSequenceClassification(ModernBertConfig(**shape, **known))
    judge = Judge(len(tokenizer), len(names)).to(common.device())
    guide.to(common.device())
    rows, labels = read_rows(examples["test"])
    accuracy = {}
    for name, network, half in (("guide", guide, halves[0]), ("judge", judge, halves[1])):
        learn(network, *read_rows(half), steps, seed=len(accuracy))
        hits = [a == b for a, b in zip(classify(network, rows), labels, strict=True)]
        accuracy[name] = 100 * sum(hits) / len(hits)
    print(attribute, names, accuracy, flush=True)
    guide.save_pretrained(folder / attribute)
    tokenizer.save(folder / attribute)
    return folder / attribute, judge, names, accuracy


def shown(made: Generation, eos_id: int) -> list[list[int]]:
    """Tokens that a reader sees: up to the first EOS."""
    return [ids[: ids.index(eos_id) + 1] if eos_id in ids else ids for ids in made.ids]


def figures(made: Sequence[Generation], model: TextModel) -> dict[str, float]:
    """Fluency, variety and time of texts; variety of 240 of them, since it falls with their number."""
    rows = [ids for one in made for ids in shown(one, model.tokenizer.eos_id)]
    texts = [text for one in made for text in one.texts]
    some = texts[:: max(1, len(texts) // VARIED)][:VARIED]
    seconds = sum(one.seconds for one in made) / len(texts)
    told = {"perplexity": judged(model, rows), "distinct_2": distinct(some, 2)}
    return told | {"texts": len(texts), "seconds_per_example": seconds}


class Bench:
    """What all rows need: the fluency judge, guides and judges, and the texts of training."""

    def __init__(self, options: argparse.Namespace, fluency: TextModel) -> None:
        self.options, self.fluency = options, fluency
        files = {name: getattr(options, f"{name}_file") for name in ("train", "test")}
        examples = {name: list(read(path)) for name, path in files.items()}
        self.train = [row["target"] for row in examples["train"]]
        folder = options.runs / options.name / "guides"
        pairs = {
            name: train_pair(name, examples, fluency.tokenizer, options.guide_steps, folder)
            for name in options.attributes
        }
        self.guides = {name: pair[0] for name, pair in pairs.items()}
        self.judges = {name: pair[1] for name, pair in pairs.items()}
        self.names = {name: pair[2] for name, pair in pairs.items()}
        self.accuracy = {name: pair[3] for name, pair in pairs.items()}

    def write(self, model: TextModel, controls: list[Control], seed: int) -> Generation:
        """`samples` texts."""
        how = {"sampler": "confidence", "decoder": "sample", "steps": self.options.nfe}
        how |= {"controls": controls} if controls else {}
        count = self.options.samples
        return generate_texts(model, num_samples=count, seed=seed, dtype="auto", **how)

    def hits(self, made: Generation, attribute: str, label: str) -> float:
        """Share of texts that the judge gives the label, percent."""
        found = classify(self.judges[attribute], shown(made, self.fluency.tokenizer.eos_id))
        return 100 * found.count(self.names[attribute].index(label)) / len(found)

    def steered(self, model: TextModel, weight: float, seed: int) -> Row:
        """All labels of all attributes at one weight; 0 = not steered."""
        rates, every, examples = {}, [], {}
        for attribute, guide in self.guides.items():
            labels = [name for name in self.names[attribute] if name != NONE]
            rate = []
            for label in labels:
                controls = [SequenceClassifier(guide, label, weight)] if weight else []
                made = self.write(model, controls, seed + 1000 * len(every))
                every.append(made)
                rate.append(self.hits(made, attribute, label))
                examples[f"{attribute}={label}"] = made.texts[:2]
            rates[attribute] = sum(rate) / len(rate)
        result = {"weight": weight, "rates": rates, "worst": min(rates.values())}
        return result | figures(every, self.fluency) | {"examples_shown": examples}

    def together(self, model: TextModel, weight: float, seed: int) -> Row:
        """All attributes at once, each with one of its labels, as many texts for each combination."""
        draw, rates, made_all = random.Random(seed), [], []
        for i in range(6):
            wanted = {
                name: draw.choice([label for label in names if label != NONE])
                for name, names in self.names.items()
            }
            controls = [SequenceClassifier(self.guides[k], v, weight) for k, v in wanted.items()]
            made = self.write(model, controls, seed + 1000 * i)
            rows = shown(made, self.fluency.tokenizer.eos_id)
            found = [classify(self.judges[name], rows) for name in wanted]
            numbers = tuple(self.names[name].index(label) for name, label in wanted.items())
            columns = list(zip(*found, strict=True))
            rates.append(100 * columns.count(numbers) / len(columns))
            made_all.append(made)
        result = {"weight": weight, "all_right": sum(rates) / len(rates)}
        return result | figures(made_all, self.fluency)

    def contained(self, model: TextModel, seed: int) -> Row:
        """Texts that must contain a word, for words of 0.5 to 5 % of the training texts."""
        counts = Counter(word for text in self.train for word in {*re.findall(r"\b[a-z]{4,}\b", text)})
        share = {word: n / len(self.train) for word, n in counts.items()}
        known = sorted(word for word, x in share.items() if 0.005 <= x <= 0.05)
        words = random.Random(seed).sample(known, min(self.options.words, len(known)))
        made = [self.write(model, [Contain(word)], seed) for word in words]
        right = [
            [bool(re.search(rf"\b{word}\b", text, re.IGNORECASE)) for text in one.texts]
            for word, one in zip(words, made, strict=True)
        ]
        rate = 100 * sum(map(sum, right)) / sum(map(len, right))
        result = {"words": words, "contained": rate} | figures(made, self.fluency)
        return result | {"examples_shown": dict(zip(words[:5], (o.texts[0] for o in made), strict=False))}

    def rows(self, model: TextModel) -> Row:
        """The trade-off over weights, and what the chosen one does with other seeds."""
        curve = [self.steered(model, weight, 0) for weight in (0, *self.options.weights)]
        for row in curve:
            print({k: v for k, v in row.items() if k != "examples_shown"}, flush=True)
        enough = [row["weight"] for row in curve if row["worst"] >= 100 * WANTED]
        best = max(curve, key=lambda row: row["worst"])["weight"]
        weight = enough[0] if enough else best
        seeds = range(1, 1 + self.options.seeds)
        chosen = [[self.steered(model, w, seed) for seed in seeds] for w in (0, weight)]
        words = [self.contained(model, seed) for seed in seeds]
        joint = [self.together(model, weight, seed) for seed in seeds]
        free = common.span([row["perplexity"] for row in chosen[0]])["mean"]
        result = {
            "chosen_weight": weight,
            "reached": bool(enough),
            "curve": curve,
            "unguided_perplexity": free,
        }
        for name, rows, key in (
            ("unguided", chosen[0], "worst"),
            ("guided", chosen[1], "worst"),
            ("must_contain", words, "contained"),
            ("all_attributes", joint, "all_right"),
        ):
            keys = (key, "perplexity", "distinct_2", "texts", "seconds_per_example")
            told = {key: common.span([row[key] for row in rows]) for key in keys}
            told["perplexity_rise_percent"] = 100 * (told["perplexity"]["mean"] / free - 1)
            if "rates" in rows[0]:
                told["rates"] = {
                    key: common.span([row["rates"][key] for row in rows]) for key in self.guides
                }
            result[name] = told | {"examples_shown": rows[0].get("examples_shown", {})}
            print(name, {k: v for k, v in told.items() if k != "rates"}, flush=True)
        return result


def plot(result: Row, path: Path) -> None:
    """Success of the worst attribute against perplexity, over the weight."""
    with common.picture(path, 1, 6, 4.2) as (panel,):
        for name, told in result["processes"].items():
            curve = told["curve"]
            points = [(row["perplexity"], row["worst"]) for row in curve]
            panel.plot(*zip(*points, strict=True), marker="o", label=name)
            for row, point in zip(curve, points, strict=True):
                panel.annotate(
                    f"{row['weight']:g}", point, fontsize=7, xytext=(3, 3), textcoords="offset points"
                )
        panel.axhline(100 * WANTED, color="grey", lw=0.8, ls=":")
        panel.set(xlabel="perplexity under an autoregressive model", xscale="log")
        panel.set_ylabel(f"worst attribute, % by the judge ({result['dataset']})")
        panel.grid(alpha=0.3)
        panel.legend(title="numbers: weight", fontsize=8)


def run(options: argparse.Namespace) -> Row:
    """Train what is not trained yet, steer, measure."""
    start = time.perf_counter()
    result = common.header("control", options.name, "none: texts from nothing")
    flags = ["--config", "unconditional", "--data.text_column", "target", "--data.vocab_size", "1000"]
    for name in ("train_file", "validation_file"):
        flags += [f"--data.{name}", getattr(options, name)]
    flags += [f"--{flag}" for flag in options.set]
    systems = {}
    for name in (*options.processes, "fluency"):
        own = ["--model.network.process", name]
        if name == "fluency":
            own = ["--model.network.system", "autoregressive", "--model.seed", "1", "--data.seed", "1"]
            own += ["--model.learning_rate", "3e-3"]
        systems[name] = [*flags, *own]
    models, budgets = common.train_all(options, systems)
    bench = Bench(options, models["fluency"])
    test = [row["target"] for row in read(options.test_file)]
    tokenizer = models["fluency"].tokenizer
    size = models["fluency"].config.max_length
    rows = [[*ids, tokenizer.eos_id][:size] for ids in tokenizer.encode(test)]
    result |= {
        **common.asked(options),
        "budget": budgets,
        "note": common.budgets_in_words(budgets),
        "training_seeds": 1,
        "samples": options.samples,
        "data_perplexity": judged(models["fluency"], rows),
        "accuracy_on_test_texts": bench.accuracy,
        "processes": {name: bench.rows(models[name]) for name in options.processes},
    }
    return result | {"wall_seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Run, save, plot."""
    options = arguments()
    path = common.write(run(options), f"control-{options.name}")
    plot(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
