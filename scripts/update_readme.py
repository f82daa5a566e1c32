"""Write the tables of README and of the pages beside the benchmarks from `benchmarks/results/*.json`.

python scripts/update_readme.py

A table stands between markers, `<!--name-->` and `<!--/name-->`; all else in a page is written by hand.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import binomtest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from ablation import gains  # noqa: E402
from common import RESULTS, how  # noqa: E402
from latency import key_of  # noqa: E402

BESIDE = ("summarization", "summarization_tables", "time", "training", "generation")
PAGES = ("README.md", *(f"benchmarks/{name}.md" for name in BESIDE))
HEADLINES = ("e2e", "arxiv_titles-from_twin-longer")
SEED = re.compile(r"(.*?)(?:-seed(\d+))?")  # a name, and the training seed that it may end in
FEW = (4, 16)  # numbers of steps in README
FREELY = {"length_quantile": 0.5, "decoder": ""}  # what validation chose for every model by itself
TIMES = {1: "ms alone", 32: "ms in batches of 32"}  # of sizes of batch
NAMES = {
    "fact_accuracy": "facts %",
    "fact_accuracy_unseen_names": "facts %, unseen names",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "length_ratio": "length ratio",
    "repetition": "repeated %",
    "distinct_2": "distinct-2 %",
    "invented": "invented %",
    "copy_rate": "copied %",
    "empty_rate": "empty %",
    "invented_numbers": "invented numbers %",
    "judge_perplexity": "perplexity",
    "entropy": "entropy",
    "mauve": "MAUVE",
    "self_bleu": "self-BLEU",
    "memorisation": "4-grams of training %",
    "gap_rougeL": "gap ROUGE-L",
    "gap_bleu": "gap BLEU",
    "gap_exact": "gap exact %",
    "known_words": "known words %",
    "given_changed": "given words changed %",
    "right_before": "right %",
    "right_after": "right after %",
    "mended": "mended % of wrong",
    "broken": "broken % of right",
    "word_length": "letters a word",
}
SUMMARY = ("rouge1", "rouge2", "rougeL", "bleu", "length_ratio", "repetition", "distinct_2", "invented")
SUMMARY += ("invented_numbers", "copy_rate")
FREE = (
    "judge_perplexity",
    "mauve",
    "entropy",
    "distinct_2",
    "self_bleu",
    "memorisation",
    "repetition",
    "empty_rate",
)
GAPS = ("gap_rougeL", "gap_bleu", "gap_exact", "rougeL", "bleu", "given_changed")
REPAIRS = ("right_before", "right_after", "mended", "broken")
FACTS = ("rouge1", "rouge2", "rougeL", "fact_accuracy", "fact_accuracy_unseen_names")
WORDS = ("known_words", "entropy", "distinct_2", "word_length")


def cell(metric: dict[str, float]) -> str:
    """A mean, with half the width of its interval where there is one."""
    half = f"{(metric.get('high', metric['mean']) - metric.get('low', metric['mean'])) / 2:.1f}"
    return f"{metric['mean']:.1f}" + f" ± {half}" * (half != "0.0")


def paired(row: dict[str, Any]) -> str:
    """How far a row is ahead of the twin's greedy texts, text by text, with its interval."""
    found = row.get("rougeL_ahead_of_greedy")
    if found is None or found["low"] == found["high"]:
        return ""
    return "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**found)


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def head(names: list[str], words: int) -> list[str]:
    """The first lines of a Markdown table: `words` columns of text, numbers on the right."""
    return [line(names), "|" + "---|" * words + "---:|" * (len(names) - words)]


def results(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All result files of a benchmark, by name."""
    for path in sorted(RESULTS.glob(f"{kind}-*.json")):
        yield path.stem, load(path.stem)


def table(result: dict[str, Any], columns: tuple[str, ...]) -> str:
    """A Markdown table and, below it, where its numbers come from."""
    columns = tuple(name for name in columns if any(name in row["metrics"] for row in result["rows"]))
    heads = ["system", "how", "NFE", "s / text", *(NAMES.get(name, name) for name in columns)]
    heads.append("ROUGE-L ahead of greedy")
    rows: list[list[str]] = []
    for row in result["rows"]:
        seconds = f"{row['seconds_per_example']:.3f}" if "seconds_per_example" in row else ""
        nfe = f"{round(row['nfe'], 1):g}" if "nfe" in row else ""  # a mean, where texts differ
        cells = [row["system"], how(row), nfe, seconds]
        for name in columns:
            found = row["metrics"].get(name)
            ratio = found is not None and name == "length_ratio"
            cells.append(f"{found['mean']:.2f}" if ratio else cell(found) if found else "")
        cells.append(paired(row))
        # steps beyond one a token change nothing; a record has no sentences, its lead is all of it
        same = [one for one in rows if one[1:3] == cells[1:3] and one[4:] == cells[4:]]
        rows += [] if same else [cells]
    kept = [i for i, name in enumerate(heads) if any(cells[i] for cells in rows)]
    words = sum(i < 2 for i in kept)
    lines = head([heads[i] for i in kept], words) + [line([cells[i] for i in kept]) for cells in rows]
    return "\n".join([*lines, "", origin(result)])


def folded(text: str) -> str:
    """A table and its origin, which open by a click: a page of many is read by its plots."""
    return f"<details><summary>table, command and notes</summary>\n\n{text}\n\n</details>"


def origin(result: dict[str, Any]) -> str:
    """Where figures come from."""
    told = f"`{result['command']}`, commit {result['commit']}, {result['hardware']}, {result['date']}."
    return f"{told} {result.get('note', '')}".strip()


def load(name: str) -> dict[str, Any] | None:
    """A result file, if it is there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def headlines() -> str:
    """Quality and time of ours beside the twin's, in few rows."""
    return "\n\n".join(f"**{data}**\n\n{headline(data)}" for data in HEADLINES)


def headline(data: str) -> str:
    """Single texts of every system, of diffusion in few steps; of several texts what was timed."""
    rows = load(f"summarization-{data}-distilled")["rows"]
    times: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for row in load(f"latency-{data}")["rows"]:
        milliseconds = 1000 * row["seconds_per_text"]["median"]
        digits = 0 if milliseconds >= 20 else 1
        times[row["model"], row["how"]][row["batch_size"]] = f"{milliseconds:.{digits}f}"
    heads = ["system", "how", "steps", "ROUGE-L", "BLEU", "ROUGE-L ahead of greedy", *TIMES.values()]
    lines = head(heads, 2)
    for row in rows:
        many, steps = row.get("candidates", 1) > 1, row.get("steps", FEW[0])
        timed = times[key_of(row)] if "nfe" in row else {}
        if row["system"] == "copy" or (many and not timed):
            continue
        if steps not in FEW and not many:
            continue
        system = ", ".join(row[key] for key in ("system", "training") if key in row)
        cells = [system, how(row | {"training": ""}), str(row.get("steps", ""))]
        cells += [cell(row["metrics"][key]) for key in ("rougeL", "bleu")]
        lines.append(line([*cells, paired(row), *(timed.get(size, "") for size in TIMES)]))
    return "\n".join(lines)


def summaries() -> str:
    """All summarization results, one after the other; those of a name with -seedN in one table."""
    groups: dict[str, dict[int | None, dict[str, Any]]] = defaultdict(dict)
    for _, result in results("summarization"):
        name, seed = SEED.fullmatch(result["dataset"]).groups()
        groups[name][seed and int(seed)] = result
    parts = []
    for name, seeds in groups.items():
        if (result := seeds.pop(None, None)) is not None:
            title = f"**{name}**: {budget(result)}, "
            title += f"{result['test_examples']} test examples, one training seed."
            plot = f"![quality against steps](results/summarization-{name}.png)"
            parts.append(f"{title}\n\n{plot}\n\n{folded(table(result, SUMMARY))}")
        if seeds:
            parts.append(repetitions(name, dict(sorted(seeds.items()))))
    return "\n\n".join(parts) or "No figures yet."


def repetitions(name: str, seeds: dict[int, dict[str, Any]]) -> str:
    """The same systems of several training seeds, row by row: figures of each, seed after seed."""
    found = list(seeds.values())
    title = f"**{name}**, trained anew with the seeds {', '.join(map(str, seeds))}: {budget(found[0])}, "
    title += f"{found[0]['test_examples']} test examples; where several figures stand, seed after seed."
    columns = ("rouge1", "rougeL", "bleu")
    heads = ["system", "how", "NFE", *(NAMES[key] for key in columns), "ROUGE-L ahead of greedy"]
    lines = head(heads, 2)
    for rows in zip(*(one["rows"] for one in found), strict=True):
        kinds = {(row["system"], how(row | FREELY), row.get("steps")) for row in rows}
        if len(kinds) > 1:
            raise ValueError(f"{name}: the files of its seeds have other rows: {kinds}")
        if rows[0]["system"] == "copy":  # of records it is their lead, of texts it is in the first table
            continue
        cells = []
        for row in rows:
            means = [f"{row['metrics'][key]['mean']:.1f}" for key in columns]
            cells.append([row["system"], how(row), str(row.get("nfe", "")), *means, paired(row)])
        lines.append(line([each(column) for column in zip(*cells, strict=True)]))
    told = "\n\n".join(["\n".join(lines), *map(origin, found)])
    return f"{title}\n\n{folded(told)}"


def each(values: Sequence[str]) -> str:
    """What all have alike once, else every one."""
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def unconditional(stem: str, result: dict[str, Any]) -> str:
    """Text from nothing, with samples, and of texts written block by block."""
    title = f"**{result['dataset']}**, written from nothing: {budget(result)}, one training seed."
    parts = [title, table(result, FREE), f"![perplexity against entropy](results/{stem}.png)"]
    last = {row["system"]: row for row in result["rows"] if "examples_shown" in row}
    shown = [f"> {name}, {how(row)}: {row['examples_shown'][0]}" for name, row in last.items()]
    parts += ["Samples, the first of the last row of every system:", "\n>\n".join(shown)]
    parts += long_texts(result["long"]) if "long" in result else []
    return "\n\n".join(parts)


def long_texts(rows: list[dict[str, Any]]) -> list[str]:
    """Time a token by the length of a text; figures of its parts."""
    whole = [row for row in rows if "length" in row]
    told = whole[0]
    title = (
        f"Long texts of `{told['system']}`, in blocks of {told['block_length']} tokens, {told['steps']} "
    )
    title += "steps a block:"
    lines = head(["tokens", "NFE", "ms a token of a text"], 0)
    for row in whole:
        milliseconds = f"{1000 * row['seconds_per_token']:.1f}"
        lines.append(line([f"{row['mean_length']:,.0f}", f"{row['nfe']:,}", milliseconds]))
    names = [name for name in FREE if name in rows[-2]["metrics"]]
    more = head(["part", "texts", *(NAMES[name] for name in names)], 0)
    for row in (row for row in rows if "part" in row):
        cells = [str(row["part"] + 1), str(row["texts"])]
        more.append(line([*cells, *(cell(row["metrics"][name]) for name in names)]))
    return [title, "\n".join(lines), "The same texts, part by part of 64 tokens:", "\n".join(more)]


def share(percent: float, count: int) -> str:
    """A rate with Wilson's interval (95 %), of so many texts."""
    low, high = binomtest(round(percent / 100 * count), count).proportion_ci(method="wilson")
    return f"{percent:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def control_row(
    process: str, free: float, what: str, rates: list[tuple[Any, int]], row: dict[str, Any]
) -> str:
    """A line of `control`: rates, and of how many texts.

    `free` is the perplexity of texts that are not steered, of the same seed.
    """
    keys = ("perplexity", "distinct_2")
    mean, distinct, *found = (
        one["mean"] if isinstance(one, dict) else one
        for one in (*(row[key] for key in keys), *(rate for rate, _ in rates))
    )
    counts = [count for _, count in rates]
    cells = [process, what, *map(share, found, counts)]
    return line([*cells, f"{mean:.1f} ({100 * (mean / free - 1):+.0f} %)", f"{distinct:.1f}"])


def control(stem: str, result: dict[str, Any]) -> str:
    """Steering: by classifiers at every weight, all together, by words; samples."""
    names = list(result["accuracy_on_test_texts"])
    shared = ["process", "controls"], ["perplexity", "distinct-2 %"]
    lines = head([*shared[0], *(f"{name} %" for name in names), *shared[1]], 2)
    more, samples = head([*shared[0], "success %", *shared[1]], 2), []
    for process, told in result["processes"].items():
        rows = [(row, f"one, weight {row['weight']:g}") for row in told["curve"][1:]]
        rows = [(told["curve"][0], "none"), *rows, (told["unguided"], "none, other seed")]
        rows.append((told["guided"], f"one, weight {told['chosen_weight']:g}, other seed"))
        first = len(told["curve"])
        for i, (row, what) in enumerate(rows):
            free = told["curve"][0]["perplexity"] if i < first else told["unguided_perplexity"]
            labels = [wanted.split("=")[0] for wanted in row["examples_shown"]]
            rates = [(row["rates"][name], labels.count(name) * result["samples"]) for name in names]
            lines.append(control_row(process, free, what, rates, row))
        free = told["unguided_perplexity"]
        everything = f"all attributes at once, weight {told['chosen_weight']:g}"
        row = told["all_attributes"]
        texts = round(row["texts"]["mean"])
        more.append(control_row(process, free, everything, [(row["all_right"], texts)], row))
        row = told["must_contain"]
        rates = [(row["contained"], round(row["texts"]["mean"]))]
        more.append(control_row(process, free, "a word that must occur", rates, row))
        shown = list(told["guided"]["examples_shown"].items())[::3]
        samples += [f"> {wanted}: {texts[0]}" for wanted, texts in shown]
    title = f"**{result['dataset']}**, steered to labels and words that the model was not trained "
    title += f"for; {budget(result)}, one training seed. "
    title += f"Perplexity of the test texts: {result['data_perplexity']:.1f}. "
    title += "The judge (the guide) is right on "
    judged = result["accuracy_on_test_texts"]
    title += ", ".join(
        f"{judged[name]['judge']:.0f} ({judged[name]['guide']:.0f}) % ({name})" for name in names
    )
    title += " of the test texts. In brackets: 95 % intervals (Wilson) of the texts made, one seed."
    plot = f"![success against perplexity](results/{stem}.png)"
    parts = [title, "\n".join(lines), "\n".join(more), origin(result), plot]
    parts += ["Samples, the first of every third label steered to:", "\n>\n".join(samples)]
    return "\n\n".join(parts)


def samplers(stem: str, result: dict[str, Any]) -> str:
    """ROUGE-L of every sampler at every number of evaluations."""
    steps = list(result["rows"][0]["rougeL"])
    lines = head(["sampler", "temperature", *(f"{n} steps" for n in steps)], 1)
    for row in result["rows"]:
        scores = [f"{row['rougeL'][n]:.1f} / {row['bleu'][n]:.1f}" for n in steps]
        name = "any" if row["how"] == "confidence" else f"{row['temperature']:g}"
        lines.append(line([row["how"], name, *scores]))
    title = f"ROUGE-L / BLEU of {result['texts']} validation texts of {result['dataset']}, model of "
    title += f"process `{result['rows'][0]['system']}`:"
    return "\n\n".join([title, "\n".join(lines), origin(result)])


def guide() -> str:
    """ROUGE-L of every sampler, of the file that has most of them."""
    _, result = max(results("samplers"), key=lambda found: len(found[1]["rows"]))
    steps = list(result["rows"][0]["rougeL"])
    lines = head(["sampler", *(f"{n} steps" for n in steps)], 1)
    lines += [line([row["how"], *(f"{row['rougeL'][n]:.1f}" for n in steps)]) for row in result["rows"]]
    title = f"ROUGE-L of {result['texts']} validation texts of {result['dataset']}, process "
    return "\n".join([f"{title}`{result['rows'][0]['system']}`:", "", *lines])


def likelihoods(stem: str, result: dict[str, Any]) -> str:
    """Bits a token of every model under every bound."""
    lines = head(["system", "kind", "bits a token", "bits a character"], 2)
    for row in result["rows"]:
        bits = f"{row['bits_per_token']:.3f} ± {2 * row['standard_error']:.3f}"
        lines.append(line([row["system"], row["kind"], bits, f"{row['bits_per_character']:.3f}"]))
    title = f"**{result['dataset']}**, likelihood of {result['rows'][0]['texts']} test texts given their "
    title += "sources, end of text and length included (± two standard errors over texts)."
    return "\n\n".join([title, "\n".join(lines), origin(result)])


def characters(stem: str, result: dict[str, Any]) -> str:
    """Bits a character of every system on one stream, and what they write from nothing."""
    lines = head(["system", "kind", "bits a character"], 2)
    for row in result["rows"]:
        bits = f"{row['bits_per_token']:.3f} ± {2 * row['standard_error']:.3f}"
        lines.append(line([row["system"], row["kind"], bits]))
    first = result["rows"][0]
    title = f"**{result['dataset']}**: {budget(result)}, one training seed; {first['tokens']:,} "
    title += f"characters of {result['split']} text in {first['texts']:,} pieces, "
    title += "end of text and lengths included (± two standard errors over pieces)."
    plot = f"![bits a character](results/{stem}.png)"
    written = table(result | {"rows": result["samples"]}, WORDS)
    shown = result["samples"][-1]["examples_shown"][:2]
    quoted = "\n>\n".join(f"> {text}" for text in shown)
    parts = [title, "\n".join(lines), plot, "Written from nothing:", written]
    parts += ["Samples of the last row:", quoted]
    return "\n\n".join(parts)


def infillings(stem: str, result: dict[str, Any]) -> str:
    """Every way to write missing words."""
    title = f"**{result['dataset']}**, a third of the words of {result['texts']} test texts missing:"
    plot = f"![quality against steps](results/{stem}.png)"
    return f"{title}\n\n{table(result, GAPS)}\n\n{plot}"


def repairs(stem: str, result: dict[str, Any]) -> str:
    """Wrong tokens mended, by share of them."""
    texts = result["rows"][0]["texts"]
    title = f"**{result['dataset']}**, {texts} test texts, tokens replaced at random:"
    return f"{title}\n\n{table(result, REPAIRS)}"


def latencies(stem: str, result: dict[str, Any]) -> str:
    """Milliseconds a text of every model at every size of batch."""
    sizes = sorted({row["batch_size"] for row in result["rows"]})
    worth = "quality" in result
    heads = ["model", "how", "NFE", *(["ROUGE-L"] if worth else [])]
    lines = head([*heads, *(f"ms a text, batch {size}" for size in sizes)], 2)
    for row in result["rows"]:
        if row["batch_size"] == sizes[0]:
            key = row["model"], row["how"]
            same = [one for one in result["rows"] if (one["model"], one["how"]) == key]
            times = {one["batch_size"]: one["seconds_per_text"] for one in same}
            cells = [row["model"], row["how"], str(row["nfe"])]
            cells += [f"{row['rougeL']:.1f}" if "rougeL" in row else ""] if worth else []
            for size in sizes:
                low, middle, high = (1000 * times[size][name] for name in ("low", "median", "high"))
                cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f})")
            lines.append(line(cells))
    title = f"**{result['dataset']}**, {result['texts']} texts, median (range) of {result['rounds']} "
    title += f"rounds, {result['dtype']}"
    title += f", ROUGE-L of `{Path(result['quality']).stem}`:" if worth else ":"
    plot = f"![{'quality' if worth else 'steps'} against time](results/{stem}.png)"
    return "\n\n".join([title, "\n".join(lines), origin(result), plot])


def long_sources() -> str:
    """Memory and time against the length of a document, and against their number."""
    parts = []
    for result in filter(None, map(load, ("long_sources", "long_sources-files"))):
        files = any("file" in row for row in result["rows"])
        heads = ["file", "work"] if files else ["work"]
        heads += ["source read", "words", "tokens", *["longest"] * files]
        heads += ["documents", "peak MB", "s a document"]
        lines = head(heads, 3 if files else 2)
        for row in result["rows"]:
            read = f"parts of {row['window']} tokens" if row["window"] else "whole"
            cells = [row["file"], row["work"]] if files else [row["work"]]
            cells += [read, f"{row['words']:,}", f"{row['tokens']:,.0f}"]
            cells += [f"{row['most_tokens']:,}"] if files else []
            cells += [f"{row['documents']:,}", f"{row['peak_bytes'] / 1e6:,.0f}"]
            seconds = row.get("seconds_per_document")
            lines.append(line([*cells, "" if seconds is None else f"{seconds:.2f}"]))
        parts += ["\n".join(lines), origin(result)]
    return "\n\n".join([*parts, "![memory and time against words](results/long_sources.png)"])


def memories() -> str:
    """Peak memory and tokens a second of every process, by size of the vocabulary."""
    result = load("memory")
    sizes = sorted({row["vocabulary"] for row in result["rows"]})
    timed = sorted({row["vocabulary"] for row in result["rows"] if "tokens_per_second" in row["metrics"]})
    heads = ["process", "work"]
    heads += [f"MB, {size:,} tokens" for size in sizes] + [f"tokens / s, {size:,}" for size in timed]
    lines = head(heads, 2)
    for name, work in dict.fromkeys((row["system"], row["work"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["system"], row["work"]) == (name, work)]
        by_size = {row["vocabulary"]: row["metrics"] for row in rows}
        cells = [f"{by_size[size]['peak_bytes'] / 1e6:,.0f}" for size in sizes]
        cells += [f"{by_size[size]['tokens_per_second']:,.0f}" for size in timed]
        lines.append(line([name, work, *cells]))
    title = f"Batches of {result['batch_size']} texts of {result['length']} tokens, width "
    title += f"{result['width']}, {result['dtype']}; memory above what weights take; tokens a second of "
    title += "one forward and backward pass, or of one evaluation of a sampler:"
    return "\n\n".join([title, "\n".join(lines), origin(result)])


def checks() -> str:
    """The training loop beside a bare one, the twin beside BART, the oracle."""
    parts = []
    if result := load("speed"):
        found = result["rows"][0]["metrics"]["throughput_of_plain_loop"]
        words = (
            "**Training throughput**: {mean:.2f} ({low:.2f} to {high:.2f}) of that of a bare PyTorch loop"
        )
        parts += [words.format(**found) + f" with the same network. {origin(result)}"]
    if result := load("bart"):
        rows = [f"{row['system']} {row['metrics']['rougeL']['mean']:.1f}" for row in result["rows"]]
        words = f"**The twin beside BART**: test ROUGE-L on {result['dataset']} of greedy texts after "
        words += f"{result['steps']:,} steps, the best of three settings on validation: "
        parts += [words + f"{', '.join(rows)} (`transformers`' BART of the same size). {origin(result)}"]
    if result := load("oracle"):
        held = [row for row in result["rows"] if row["threshold"] is not None]
        met = sum(row["passed"] for row in held)
        words = (
            f"**Against exact answers**: {met} of {len(held)} figures of samplers, bounds and kernels are"
        )
        parts += [f"{words} within their limits. {origin(result)}"]
    return "\n\n".join(parts)


def ablations(stem: str, result: dict[str, Any]) -> str:
    """Every lever of every round, its seeds together, beside the default of its round."""
    columns, tested = list(result["rows"][0]["rougeL"]), any("test" in row for row in result["rows"])
    heads = ["lever", "steps", "seeds", "s / step"]
    heads += [f"{key} ROUGE-L / BLEU" for key in columns] + ["mean above default"]
    heads += [f"test: {key} ROUGE-L / BLEU" for key in columns if tested]
    lines, groups = head(heads, 1), defaultdict(list)
    for row in result["rows"]:
        groups[row["round"], row["lever"]].append(row)
    rounds = {number for number, _ in groups}
    gained = {n: gains([row for row in result["rows"] if row["round"] == n]) for n in rounds}
    for (number, lever), rows in groups.items():
        above = gained[number][lever]
        told = f"{mean(above):+.1f}"
        if len(rows) > 1 and lever != "default":
            told += f" ({min(above):+.1f} to {max(above):+.1f})"
        seeds = ", ".join(str(row["seed"]) for row in rows)
        pace = f"{mean(row['step_seconds'] for row in rows):.2f}"
        cells = [lever, f"{rows[0]['steps']:,}", seeds, pace, *scores(rows, columns), told]
        if tested:
            wrote = "test" in rows[0]  # those of the last round alone
            cells += scores([row["test"] for row in rows], columns) if wrote else [""] * len(columns)
        lines.append(line(cells))
    title = f"**{result['dataset']}**, {result['system']}, {result['texts']} validation texts"
    title += f" (and {result['test_texts']} test texts):" if tested else ":"
    plot = f"![gain of every lever](results/{stem}.png)"
    parts = [title, plot, folded("\n".join([*lines, "", origin(result)]))]
    return "\n\n".join(parts)


def scores(rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    """ROUGE-L and BLEU of several seeds in every column, with half of their range."""
    cells = []
    for key in columns:
        values = [[row[name][key] for row in rows] for name in ("rougeL", "bleu")]
        spans = [f" ± {(max(v) - min(v)) / 2:.1f}" if len(v) > 1 else "" for v in values]
        cells.append(" / ".join(f"{mean(v):.1f}{span}" for v, span in zip(values, spans, strict=True)))
    return cells


def budget(result: dict[str, Any]) -> str:
    """How long the systems were trained."""
    if "train_minutes" in result:
        return f"{result['train_minutes']:g} minutes of training a system"
    steps = sorted({one["steps"] for one in result["budget"].values()})
    return f"{' to '.join(f'{n:,}' for n in (steps[:1] + steps[1:][-1:]))} training steps a system"


def replace(text: str, marker: str, content: str) -> str:
    """Put `content` between the markers."""
    pattern = rf"(<!--{marker}-->\n).*?(<!--/{marker}-->)"
    return re.sub(pattern, lambda found: found[1] + content + "\n" + found[2], text, flags=re.DOTALL)


def every(kind: str, show: Callable[[str, dict[str, Any]], str]) -> Callable[[], str]:
    """All results of a benchmark, one after the other."""
    return lambda: "\n\n".join(show(stem, result) for stem, result in results(kind))


TABLES: dict[str, Callable[[], str]] = {
    "headlines": headlines,
    "summaries": summaries,
    "ablations": every("ablation", ablations),
    "latencies": every("latency", latencies),
    "long_sources": long_sources,
    "samplers": every("samplers", samplers),
    "guide": guide,
    "likelihoods": every("likelihood", likelihoods),
    "characters": every("characters", characters),
    "unconditional": every("unconditional", unconditional),
    "infillings": every("infilling", infillings),
    "repairs": every("repair", repairs),
    "control": every("control", control),
    "memories": memories,
    "checks": checks,
    "quickstart": lambda: "\n" + table(load("quickstart"), FACTS),
}


def page(name: str) -> str:
    """A page with its tables as the result files have them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for marker in (marker for marker in TABLES if f"<!--{marker}-->" in text):
        text = replace(text, marker, TABLES[marker]() or "Not measured yet.")
    return text


if __name__ == "__main__":
    for one in PAGES:
        (ROOT / one).write_text(page(one), encoding="utf-8")
