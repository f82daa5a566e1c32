"""`load`, `generate`, `pipeline` and the `textdiff` command on tiny trained models."""

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from itertools import count
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from conftest import run_training, write_rows

import textdiff
from textdiff import commands, corpus, generation, hardware
from textdiff.generation import Generation, generate_texts
from textdiff.movie import write_movie
from textdiff.rerank import UTILITIES, mbr
from textdiff.sampler import SAMPLERS

# the tiny models read 48 tokens
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens are read")
SOURCES = [report.source for report in corpus.generate("test", 7)]
SOURCES[2] = SOURCES[2].split(".")[0]  # sources of very different lengths
SOURCES[5] = "Rain."


@pytest.fixture(scope="module")
def model(trained):
    return textdiff.load(trained / "model", device="cpu")


@pytest.fixture(scope="module")
def free(unconditional):
    return textdiff.load(unconditional / "model", device="cpu")


@pytest.fixture(scope="module")
def joined(prefixed):
    return textdiff.load(prefixed / "model", device="cpu")


def test_import_is_light():
    """`import textdiff` loads nothing heavy, and using it loads neither Lightning nor data sets."""
    code = (
        "import sys, textdiff; assert 'torch' not in sys.modules; textdiff.load; "
        "heavy = {'lightning', 'datasets', 'evaluate', 'matplotlib', 'transformers', 'sacrebleu'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    assert set(textdiff.__all__) <= set(dir(textdiff))
    assert all(getattr(textdiff, name) is getattr(textdiff.api, name) for name in textdiff.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = textdiff.nothing


def test_docstrings_name_the_options():
    """Those of `generate` all, those of the others their own."""
    told = textdiff.generate.__doc__ + textdiff.infill.__doc__ + textdiff.denoise.__doc__
    assert all(f"`{name}`" in textdiff.generate.__doc__ for name in ("controls", "block_length"))
    assert "`gap_length`" in textdiff.infill.__doc__ and "noise: " in textdiff.denoise.__doc__
    assert "textdiff.generation.generate_texts" in textdiff.generate.__doc__
    named = set(re.findall(r"`(\w+)`|^ +(\w+): ", told, flags=re.MULTILINE))
    words = {word for pair in named for word in pair}
    assert textdiff.TextDiffusion.options <= words, textdiff.TextDiffusion.options - words


@pytest.mark.parametrize("name", ["model", "joined"])
def test_same_seed_same_text_whatever_the_batch(name, request):
    model = request.getfixturevalue(name)
    made = [
        textdiff.generate(model, SOURCES, batch_size=size, candidates=2, seed=3, return_dict=True)
        for size in (1, 3, 64)
    ]
    assert made[0].ids == made[1].ids == made[2].ids
    assert made[0].texts == made[1].texts == made[2].texts
    assert made[0].ids != textdiff.generate(model, SOURCES, candidates=2, seed=4, return_dict=True).ids


def test_a_text_does_not_depend_on_the_later_ones(model):
    assert textdiff.generate(model, SOURCES)[:3] == textdiff.generate(model, SOURCES[:3])


def test_one_text_a_source_in_order(model):
    texts = textdiff.generate(model, SOURCES)
    assert len(texts) == len(SOURCES) and all(isinstance(text, str) for text in texts)
    assert textdiff.generate(model, []) == []


def test_from_a_path(trained, model):
    assert textdiff.generate(trained / "model", SOURCES[:1]) == textdiff.generate(model, SOURCES[:1])


def test_candidates_are_reranked(model):
    made = textdiff.generate(model, SOURCES[:3], candidates=4, return_dict=True)
    assert [len(group) for group in made.candidates] == [4, 4, 4] and len(made.ids) == 12
    assert made.texts == [group[mbr(group)] for group in made.candidates]
    assert len({tuple(ids) for ids in made.ids[:4]}) > 1


def test_the_utility_chooses(model):
    options = {"candidates": 6, "seed": 2, "return_dict": True}
    for utility in UTILITIES:
        made = textdiff.generate(model, SOURCES, utility=utility, **options)
        assert made.texts == [group[mbr(group, utility)] for group in made.candidates]
    usual = textdiff.generate(model, SOURCES, utility=None, **options).texts
    assert usual == textdiff.generate(model, SOURCES, **options).texts


@pytest.mark.parametrize("kind", [np.array, pandas.Series, tuple, iter])
def test_lists_and_counts_of_numpy_are_those_of_python(model, free, kind):
    """Of eight bits, too, which the numbers of the texts overflow."""
    counts = {"seed": 3, "steps": 3, "length": 9, "candidates": 100, "batch_size": 200}
    numpys = {name: np.uint8(count) for name, count in counts.items()}
    assert textdiff.generate(model, kind(SOURCES[:3]), **numpys) == textdiff.generate(
        model, SOURCES[:3], **counts
    )
    prompts = ["the", "a game"]
    assert textdiff.generate(free, prompt=kind(prompts)) == textdiff.generate(free, prompt=prompts)
    some, two = (textdiff.generate(free, num_samples=n, steps=n) for n in (np.int64(2), 2))
    assert some == two


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_of_samplers_are_counts_as_everywhere(name):
    """Also where they are given with the sampler: numpy's do, True does not."""
    for kind in (np.int64, np.uint8):
        assert vars(SAMPLERS[name](kind(200))) == vars(SAMPLERS[name](200))
    with pytest.raises(ValueError, match="steps must be a whole number, not True"):
        SAMPLERS[name](True)


def test_an_option_that_is_none_is_not_given(model):
    nothing = dict.fromkeys(("controls", "sampler", "decoder", "given", "utility", "length"))
    assert textdiff.generate(model, SOURCES[:2], **nothing) == textdiff.generate(model, SOURCES[:2])


@pytest.mark.parametrize(("options", "nfe"), [({}, 5), ({"guidance_scale": 2.0}, 10)])
def test_steps_count_evaluations(model, options, nfe):
    made = textdiff.generate(model, SOURCES[:2], steps=5, return_dict=True, **options)
    assert made.nfe == nfe and made.seconds > 0


@pytest.mark.parametrize("steps", [4, 64])
def test_trajectory_ends_in_the_text(model, steps):
    """Every text has as many frames, also where a batch of short ones took fewer steps."""
    made = textdiff.generate(model, SOURCES, steps=steps, trajectory=True, batch_size=1, return_dict=True)
    assert made.nfe == min(steps, max(map(len, made.ids)))
    assert [len(frames) for frames in made.trajectory] == [made.nfe] * len(SOURCES)
    assert [frames[-1] for frames in made.trajectory] == made.texts


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("decoder", ["softmax", "greedy", "sample", {"name": "top_k", "k": 3}, "top_p"])
def test_samplers_and_decoders(model, sampler, decoder):
    options = {"sampler": sampler, "decoder": decoder, "steps": 600 if sampler == "ode" else 2}
    assert len(textdiff.generate(model, SOURCES[:2], **options)) == 2


def test_length_is_kept(model, free):
    assert [len(ids) for ids in textdiff.generate(model, SOURCES, length=9, return_dict=True).ids] == [
        9
    ] * 7
    assert len(textdiff.generate(free, num_samples=1, length=24, return_dict=True).ids[0]) == 24


def lengths(model, *args, **options):
    return [len(ids) for ids in textdiff.generate(model, *args, steps=1, return_dict=True, **options).ids]


@pytest.mark.parametrize("name", ["model", "joined"])
def test_a_length_quantile_is_the_median_of_the_lengths(name, request):
    """Ten candidates have the quantiles 0.05, 0.15, ...; a single text has the one asked for."""
    model = request.getfixturevalue(name)
    spread = torch.tensor(lengths(model, SOURCES, candidates=10)).view(-1, 10)
    for place in (0, 3, 6, 9):
        assert lengths(model, SOURCES, length_quantile=(place + 0.5) / 10) == spread[:, place].tolist()
    shorter = torch.tensor(lengths(model, SOURCES, candidates=9, length_quantile=0.25)).view(-1, 9)
    assert shorter[:, 4].tolist() == spread[:, 2].tolist()
    assert (shorter[:, 0] < shorter[:, 8]).all()


def test_lengths_from_nothing_by_their_quantile(free):
    short, usual = (lengths(free, num_samples=20, length_quantile=q) for q in (0.2, 0.5))
    assert usual == lengths(free, num_samples=20) and sum(short) < sum(usual)
    assert all(a <= b for a, b in zip(short, usual, strict=True))


@pytest.mark.parametrize("other", [{"length": 9}, {"block_length": 4}])
def test_a_length_quantile_beside_a_length(free, other):
    with pytest.raises(ValueError, match="length_quantile is for predicted lengths"):
        textdiff.generate(free, num_samples=1, length_quantile=0.4, **other)
    for wrong in (0, 1, -0.5):
        with pytest.raises(ValueError, match="length_quantile must be above 0 and below 1"):
            textdiff.generate(free, num_samples=1, length_quantile=wrong)


def test_precision_inside_the_network(model, monkeypatch):
    texts = {name: textdiff.generate(model, SOURCES[:2], dtype=name) for name in ("float32", "bfloat16")}
    for fast, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(hardware, "_bfloat16_wins", lambda fast=fast: fast)
        assert textdiff.generate(model, SOURCES[:2], dtype="auto") == texts[name]


@pytest.mark.parametrize(("speed", "wins"), [(4, True), (1.6, True), (1.2, False), (0.01, False)])
def test_a_busy_machine_does_not_decide_the_precision(monkeypatch, speed, wins):
    """Wherever it is busy for one or four of the eight timings in a row."""
    for busy in (range(start, start + length) for length in (1, 4) for start in range(9 - length)):
        calls = count()

        def timing(dtype, calls=calls, busy=busy):
            return (50 if next(calls) in busy else 1) / (speed if dtype is torch.bfloat16 else 1)

        monkeypatch.setattr(hardware, "_seconds", timing)
        assert hardware._bfloat16_wins.__wrapped__() == wins


def test_texts_from_nothing_are_drawn_and_answers_are_not(model, free):
    drawn = textdiff.generate(free, num_samples=3, steps=6)
    assert drawn == textdiff.generate(free, num_samples=3, steps=6, decoder="sample")
    assert textdiff.generate(model, SOURCES) == textdiff.generate(model, SOURCES, decoder="greedy")
    options = {"steps": 6, "length": 12, "return_dict": True}
    cool, warm = (textdiff.generate(model, SOURCES, temperature=t, **options).texts for t in (0.01, 2.0))
    assert cool == textdiff.generate(model, SOURCES, **options).texts != warm


def test_unconditional(free):
    texts = textdiff.generate(free, num_samples=5, seed=1)
    assert len(texts) == 5 and len(set(texts)) > 1
    assert texts[:3] == textdiff.generate(free, num_samples=3, seed=1, batch_size=1)
    assert len(textdiff.generate(free)) == 1


def test_prompt_begins_the_text(free, joined):
    prompt = ["Rain in", "Ashbury beat", ""]
    texts = textdiff.generate(free, prompt=prompt, length=20)
    assert all(text.startswith(start) for text, start in zip(texts, prompt, strict=True))
    assert textdiff.generate(joined, SOURCES[:1], prompt=["Rain"], length=9)[0].startswith("Rain")


def test_the_prefix_is_not_part_of_the_text(joined):
    made = textdiff.generate(joined, SOURCES, length=8, return_dict=True, trajectory=True)
    assert [len(ids) for ids in made.ids] == [8] * len(SOURCES)
    assert not any(made.texts[i].startswith(SOURCES[i][:8]) for i in range(len(SOURCES)))


def test_autoregressive(tmp_path, files, capsys):
    run_training(tmp_path, **files, model__network__system="autoregressive")
    twin = textdiff.load(tmp_path / "model")
    assert twin.system == "autoregressive"
    made = [textdiff.generate(twin, SOURCES, batch_size=size) for size in (1, 64)]
    assert made[0] == made[1]
    beam = textdiff.generate(twin, SOURCES[:2], decoding={"name": "beam", "beams": 2})
    table = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in SOURCES[:2]])
    call = ["summarize", str(tmp_path / "model"), str(table), "--decoding"]
    capsys.readouterr()
    commands.main([*call, "{name: beam, beams: 2}"])
    assert capsys.readouterr().out.splitlines() == [" ".join(text.splitlines()) for text in beam]
    commands.main([*call, "greedy"])
    assert capsys.readouterr().out.splitlines() == [" ".join(text.splitlines()) for text in made[0][:2]]


def test_pipeline(model, free):
    summarize = textdiff.pipeline("summarization", model, steps=2)
    texts = textdiff.generate(model, SOURCES[:2], steps=2)
    assert summarize(SOURCES[:2]) == [{"summary_text": text} for text in texts]
    assert summarize(SOURCES[0]) == [{"summary_text": texts[0]}]
    assert summarize(SOURCES[:2], seed=9) != summarize(SOURCES[:2])
    write = textdiff.pipeline("text-generation", free)
    assert write("Rain", length=9)[0]["generated_text"].startswith("Rain")
    with pytest.raises(ValueError, match="unknown task 'translation'; choose one of: summarization"):
        textdiff.pipeline("translation", model)
    with pytest.raises(ValueError, match="device: this model is on cpu; move it"):
        textdiff.pipeline("summarization", model, device="cuda")
    assert textdiff.pipeline("summarization", model, device="cpu", steps=2)(SOURCES[0])


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    again = textdiff.TextDiffusion.from_pretrained(tmp_path / "copy")
    assert textdiff.generate(again, SOURCES) == textdiff.generate(model, SOURCES)
    assert not again.training


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_command_reads_a_file(trained, model, tmp_path, capsys):
    file = tmp_path / "documents.txt"
    file.write_text("\n".join(SOURCES) + "\n\n", encoding="utf-8")
    commands.main(["generate", str(trained / "model"), str(file), "--steps", "3", "--seed", "2"])
    texts = textdiff.generate(model, SOURCES, steps=3, seed=2)
    # a line for every source, whatever bytes a tiny model writes
    assert capsys.readouterr().out.split("\n")[:-1] == [" ".join(text.splitlines()) for text in texts]


def test_command_reads_standard_input(trained, model, monkeypatch, capsys):
    stdin(monkeypatch, "\ufeffRain in Ashbury\u2028and snow.\r\n".encode())
    commands.main(["generate", str(trained / "model"), "-", "--candidates", "2", "--json"])
    made = textdiff.generate(model, ["Rain in Ashbury\u2028and snow."], candidates=2, return_dict=True)
    line = json.loads(capsys.readouterr().out)
    assert line == {"text": made.texts[0], "candidates": made.candidates[0]}


def test_command_without_sources(unconditional, free, tmp_path, capsys):
    commands.main(["generate", str(unconditional / "model"), "--num_samples", "3"])
    assert len(capsys.readouterr().out.split("\n")) == 4
    file = tmp_path / "prompts.txt"
    file.write_text("Rain\n")
    commands.main(["generate", str(unconditional / "model"), str(file), "--temperature", "0.5"])
    assert capsys.readouterr().out.startswith("Rain")


def test_rows_of_a_table_are_read_as_texts(trained, unconditional, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"source": "Rain in Ashbury.", "target": "x"}\n{"source": "Snow.", "target": "y"}\n')
    commands.main(["generate", str(trained / "model"), str(file), "--steps", "2"])
    made = textdiff.generate(trained / "model", ["Rain in Ashbury.", "Snow."], steps=2)
    assert capsys.readouterr().out.splitlines() == made
    commands.main(["generate", str(unconditional / "model"), str(file), "--steps", "2"])
    assert capsys.readouterr().out.startswith("Rain in Ashbury.")


def test_the_column_of_a_table_can_be_named(trained, unconditional, tmp_path, capsys):
    rows = [
        {"body": "Rain in Ashbury.", "noisy": "Rain ___ falls."},
        {"body": "Snow.", "noisy": "A ___."},
    ]
    table, steps = str(write_rows(tmp_path / "rows.jsonl", rows)), ["--steps", "2"]
    commands.main(["generate", str(trained / "model"), table, "--text_column", "body", *steps])
    wanted = textdiff.generate(trained / "model", [row["body"] for row in rows], steps=2)
    assert capsys.readouterr().out.splitlines() == wanted
    texts = [row["noisy"] for row in rows]
    for command, write in (("denoise", textdiff.denoise), ("infill", textdiff.infill)):
        commands.main([command, str(unconditional / "model"), table, "--text_column", "noisy", *steps])
        wanted = [" ".join(text.splitlines()) for text in write(unconditional / "model", texts, steps=2)]
        assert capsys.readouterr().out.splitlines() == wanted
    both = ["--text_column", "noisy", "--sources", table, "--source_column", "body", *steps]
    commands.main(["denoise", str(trained / "model"), table, *both])
    wanted = textdiff.denoise(trained / "model", texts, [row["body"] for row in rows], steps=2)
    assert capsys.readouterr().out.splitlines() == [" ".join(text.splitlines()) for text in wanted]


def test_json_lines_on_standard_input_are_rows_for_all_commands(trained, monkeypatch, capsys):
    stdin(monkeypatch, b'{"source": "Rain.", "target": "x"}\n')
    commands.main(["generate", str(trained / "model"), "-", "--steps", "2"])
    assert capsys.readouterr().out.splitlines() == textdiff.generate(
        trained / "model", ["Rain."], steps=2
    )


@pytest.mark.parametrize(
    ("command", "content", "options", "message"),
    [
        (
            "generate",
            '{"body": "a"}',
            [],
            r"row 1: no known column among \['body'\]; name it by --text_col",
        ),
        (
            "generate",
            '{"body": "a"}',
            ["--text_column", "text"],
            r"no column 'text' among .*; name another",
        ),
        ("generate", "", [], "a.jsonl holds no rows"),
        ("infill", "", [], "a.jsonl holds no rows"),
        ("denoise", '{"body": "a"}', [], r"row 1: no known column .*; name it by --text_column"),
        (
            "denoise",
            '{"source": "a", "target": "b"}',
            [],
            "'source' or 'target'. name .* by --text_column",
        ),
        ("infill", '{"text": "a", "summary": "b"}', [], "'text' or 'summary'. name .* by --text_column"),
        (
            "denoise",
            '{"target": "b"}',
            ["--text_column", "target", "--sources", "FILE"],
            r"no known column among \['target'\]; name it by --source_column",
        ),
        ("denoise", '{"text": "b"}', ["--source_column", "text"], "--source_column is for --sources"),
    ],
)
def test_columns_that_could_be_wrong_are_refused(trained, tmp_path, command, content, options, message):
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    options = [str(file) if word == "FILE" else word for word in options]
    with pytest.raises(SystemExit, match=message) as stop:
        commands.main([command, str(trained / "model"), str(file), *options])
    assert "\n" not in str(stop.value)


def test_columns_of_plain_text_are_refused(trained, tmp_path, monkeypatch):
    """In place of doing nothing; beside a table the column is the table's."""
    (tmp_path / "a.txt").write_text("Rain.")
    write_rows(tmp_path / "b.jsonl", [{"body": "Snow."}])
    model, text, table = (
        str(path) for path in (trained / "model", tmp_path / "a.txt", tmp_path / "b.jsonl")
    )
    for command in ("summarize", "generate", "denoise"):
        with pytest.raises(
            SystemExit, match=r"a.txt: plain text has no columns; leave out --text_column"
        ):
            commands.main([command, model, text, "--text_column", "body"])
    stdin(monkeypatch, b"Rain.")
    with pytest.raises(SystemExit, match=r"-: plain text has no columns; leave out --text_column"):
        commands.main(["summarize", model, "-", "--text_column", "body"])
    with pytest.raises(SystemExit, match="--text_column is for a FILE"):
        commands.main(["generate", model, "--text_column", "body"])
    commands.main(["summarize", model, text, table, "--text_column", "body", "--steps", "2"])


@pytest.mark.parametrize("options", [{"length": 9}, {"gap": "___", "gap_length": 4}])
def test_candidates_of_one_length_differ(options):
    from test_blocks import make_model

    prompt = ["a ___ b"] if "gap" in options else None
    model = make_model("cross", process="masked")
    made = generate_texts(model, ["ab"], prompt=prompt, candidates=4, **options)
    assert len(set(made.candidates[0])) > 1


def test_a_decoder_that_is_named_keeps_its_temperature():
    """Candidates of one length are drawn, but as they were asked for."""
    from test_blocks import make_model

    model, asked = make_model("cross", process="masked"), {"length": 9, "candidates": 4}
    made = generate_texts(model, ["ab"], decoder="sample", **asked)
    assert made.ids == generate_texts(model, ["ab"], decoder="sample", temperature=1.0, **asked).ids
    cool = generate_texts(model, ["ab"], **asked)
    assert cool.ids == generate_texts(model, ["ab"], temperature=0.3, **asked).ids != made.ids


def test_command_steers(unconditional, capsys):
    command = ["generate", str(unconditional / "model"), "--num_samples", "3", "--length", "20"]
    commands.main([*command, "--must_contain", "zq", "--must_avoid", "e", "--control_weight", "2"])
    assert sum("zq" in line for line in capsys.readouterr().out.splitlines()) >= 2
    with pytest.raises(SystemExit, match="--classifier and --label go together"):
        commands.main([*command, "--label", "good"])


def test_command_makes_a_movie(trained, tmp_path, capsys):
    file, page = tmp_path / "documents.txt", tmp_path / "movie.html"
    file.write_text("\n".join(SOURCES))
    commands.main(["generate", str(trained / "model"), str(file), "--steps", "3", "--movie", str(page)])
    held = re.search(r"const texts = (.*);", page.read_text(encoding="utf-8"))[1]
    frames = json.loads(held)
    assert [len(text) for text in frames] == [3] * len(SOURCES)
    assert "<" not in held, "text must not end the script"
    printed = capsys.readouterr().out.split("\n")[:-1]
    assert [" ".join(text[-1].splitlines()) for text in frames] == printed


def test_no_movie_without_steps(tmp_path):
    made = Generation(["a"], [[5]], [["a"]], [[]], 1, 0.1)
    with pytest.raises(ValueError, match="a movie needs a diffusion model"):
        write_movie(made, tmp_path / "movie.html")


class Hub:
    """Stands for the Hugging Face hub: keeps what is uploaded, or refuses it."""

    def __init__(self, folder, refuse=False):
        self.folder, self.refuse, self.made = folder, refuse, []

    def __call__(self, token=None):
        return self

    def create_repo(self, hub_id, private, exist_ok):
        if self.refuse:
            raise RuntimeError("401 Unauthorized\nlog in first")
        self.made.append((hub_id, private, exist_ok))
        return f"https://huggingface.co/{hub_id}"

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        shutil.copytree(folder_path, self.folder)
        assert {path.name for path in self.folder.iterdir()} == {*allow_patterns}


def test_a_model_is_shared_on_the_hub(model, tmp_path, monkeypatch):
    """What is uploaded is a model directory with a card; a refusal is one line."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    assert model.push_to_hub("me/mine", private=True) == "https://huggingface.co/me/mine"
    assert hub.made == [("me/mine", True, True)]
    assert 'textdiff.load("me/mine")' in (tmp_path / "hub" / "README.md").read_text()
    again = textdiff.load(tmp_path / "hub", device="cpu")
    assert textdiff.generate(again, SOURCES) == textdiff.generate(model, SOURCES)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(tmp_path, refuse=True))
    with pytest.raises(ValueError, match=r"me/mine: the hub did not take it .*401 Unauthorized log in"):
        model.push_to_hub("me/mine")


def test_summarize_reads_documents_rows_and_standard_input(trained, tmp_path, capsys, monkeypatch):
    report, table = tmp_path / "report.txt", tmp_path / "rows.jsonl"
    report.write_text("Ashbury beat\nNorwick.\n\nThe score was 3 to 1.\n")
    write_rows(table, [{"article": "Rain fell in Ashbury."}, {"article": "Norwick won."}])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"The roads\nwere closed.")))
    model = str(trained / "model")
    commands.main(["summarize", model, str(report), str(table), "-", "--json", "--steps", "2"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["document"] for row in found] == [
        str(report),
        f"{table}, row 1",
        f"{table}, row 2",
        "-",
    ]
    texts = ["Ashbury beat Norwick. The score was 3 to 1.", "Rain fell in Ashbury.", "Norwick won."]
    texts.append("The roads were closed.")
    assert [row["text"] for row in found] == textdiff.generate(model, texts, steps=2)
    commands.main(["summarize", model, str(table), "--text_column", "article", "--length", "5"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_samplers_and_decoders_by_mapping(trained, tmp_path, capsys):
    """As README writes them, and as in a configuration."""
    table = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in SOURCES])
    call = ["generate", str(trained / "model"), str(table), "--steps", "4"]
    for sampler in ({"name": "renoise", "tau": 0.3}, {"name": "renoise", "tau": 0.9}, "renoise"):
        wanted = textdiff.generate(trained / "model", SOURCES, steps=4, sampler=sampler)
        commands.main([*call, "--sampler", str(sampler).replace("'", "")])
        assert capsys.readouterr().out.splitlines() == [" ".join(text.splitlines()) for text in wanted]
    wanted = textdiff.generate(trained / "model", SOURCES, steps=4, decoder={"name": "top_k", "k": 1})
    commands.main([*call, "--decoder", "{name: top_k, k: 1}"])
    assert capsys.readouterr().out.splitlines() == [" ".join(text.splitlines()) for text in wanted]


def test_numbers_of_a_mapping_are_those_of_a_configuration():
    """YAML 1.1 itself takes 1e-3 for a text."""
    assert commands.spec("{name: ode, tolerance: 1e-3}") == {"name": "ode", "tolerance": 0.001}
    assert commands.spec("top_k") == "top_k"


def test_the_column_is_that_of_training(trained, tmp_path, capsys):
    """Where a table also says where its documents come from."""
    rows = [
        {"id": i, "source": "BBC", "text": text, "summary": "x"} for i, text in enumerate(SOURCES[:2])
    ]
    table, model = write_rows(tmp_path / "rows.jsonl", rows), str(trained / "model")
    commands.main(["summarize", model, str(table), "--steps", "2"])
    assert capsys.readouterr().out.splitlines() == textdiff.generate(model, SOURCES[:2], steps=2)


def test_json_lines_on_standard_input_and_gzipped_text(trained, tmp_path, capsys, monkeypatch):
    lines = "".join(json.dumps({"document": text}) + "\n" for text in SOURCES[:2])
    stdin(monkeypatch, lines.encode())
    (tmp_path / "report.txt.gz").write_bytes(gzip.compress(SOURCES[3].encode()))
    model = str(trained / "model")
    commands.main(["summarize", model, "-", str(tmp_path / "report.txt.gz"), "--steps", "2"])
    wanted = textdiff.generate(model, [*SOURCES[:2], SOURCES[3]], steps=2)
    assert capsys.readouterr().out.splitlines() == wanted
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(SOURCES[3].encode())[:-9])
    with pytest.raises(SystemExit, match=r"cut.txt.gz: .*; not a whole gzip file"):
        commands.main(["summarize", model, str(tmp_path / "cut.txt.gz")])
    stdin(monkeypatch, (" ".join(["{{Infobox}}", SOURCES[3]])).encode())
    commands.main(["summarize", model, "-", "--steps", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 1
    stdin(monkeypatch, b'{"document": "a"}\n{"document"\n')
    with pytest.raises(SystemExit, match=r"standard input, line 2: .*; the first is JSON"):
        commands.main(["summarize", model, "-"])


@pytest.mark.parametrize("options", [[], ["--candidates", "3"]])
def test_parts_of_many_texts_and_what_is_left_of_them(trained, tmp_path, capsys, monkeypatch, options):
    """The same texts as at once; Ctrl-C keeps those that are done."""
    table = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in SOURCES])
    call = ["summarize", str(trained / "model"), str(table), "--steps", "2", *options]
    commands.main(call)
    whole = capsys.readouterr().out
    monkeypatch.setattr(commands, "PART", 3)
    commands.main(call)
    assert capsys.readouterr().out == whole and len(whole.splitlines()) == 7
    write = commands.generate_texts

    def stopped(*args, first, **options):
        if first == 6:
            raise KeyboardInterrupt
        return write(*args, first=first, **options)

    monkeypatch.setattr(commands, "generate_texts", stopped)
    with pytest.raises(SystemExit) as stop:
        commands.main(call)
    found = capsys.readouterr()
    assert stop.value.code == 130 and "stopped; lines that are written are complete" in found.err
    assert found.out == "".join(line + "\n" for line in whole.splitlines()[:6])


def test_texts_from_nothing_go_on_where_the_first_end(free):
    whole = textdiff.generate(free, num_samples=4, steps=2)
    assert textdiff.generate(free, num_samples=2, first=2, steps=2) == whole[2:]
    with pytest.raises(ValueError, match="first must be at least 0"):
        textdiff.generate(free, num_samples=2, first=-1)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", " \n", [], "a.txt holds no text"),
        ("a.jsonl", '{"text": ""}\n', [], "a.jsonl, row 1: empty; remove it or"),
        ("a.jsonl", '{"body": "b"}\n', [], "a.jsonl, row 1: no known column among"),
        ("a.jsonl", '{"text": "b"}\n', ["--text_column", "c"], "row 1: no column 'c' among"),
        ("a.csv", "text\n", [], "a.csv holds no rows"),
    ],
)
def test_documents_that_cannot_be_summarized(trained, tmp_path, name, content, options, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=message):
        commands.main(["summarize", str(trained / "model"), str(tmp_path / name), *options])


def test_sources_longer_than_any_in_training_are_read_whole(tmp_path, files):
    """In parts; what stands at the end of a text twenty times as long as those changes its summary."""
    run_training(tmp_path, **files, model__network__source_window=16)
    model = textdiff.load(tmp_path / "model")
    long = "Ashbury beat Norwick by 3 to 1. " * 60
    with pytest.warns(UserWarning, match="2 of 2 sources: read whole, but the model knows no order"):
        textdiff.generate(model, [long, long + "Rain."], length=8)
    assert len(model.tokenizer.encode([long])[0]) > 10 * model.config.max_source_length
    context = [
        model.read(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)).pooled
        for ids in model.tokenizer.encode([long, long + "Rain."])
    ]
    assert not torch.allclose(*context, atol=1e-6)


def test_batches_of_long_sources_are_small(trained):
    """As much as `batch_size` of the longest sources of training, or one text."""
    sources = [[5] * n for n in (10, 48, 48, 96, 96, 480)]
    task = generation.Task(sources, [[]] * 6, [0] * 6)
    assert generation.batches(task, 4, 48, False) == [[0, 1, 2], [3, 4], [5]]
    hidden = [49, 2, 49, 2, 4, 4]  # sources of a prefix model, the longest of 48 tokens and <sep>
    task = generation.Task(None, [[1]] * 6, hidden, 1)
    assert generation.batches(task, 2, 48, False) == [[1, 3], [4, 5], [0, 2]]
