"""Imports go strictly downwards: a module imports only modules that stand before it in `ORDER`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "textdiff"
ORDER = """
noise packing fixed config hardware corpus classes metrics transformer optimizer tokenizer files
documents sizes batches rerank decoder schedule times process objective length encoder pointer denoiser
pretrained sampler testing likelihood control blocks storage model layout diffusion twin systems transfer
rescore options generation movie data evaluation checkpoint report train cli api commands __init__
""".split()
UPWARDS = {("train", "cli")}  # `python -m textdiff.train` is the command line
PARTS = ("denoiser.py", "train.py", "sampler/sampler.py", "objective.py", "blocks.py")
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """The room of a file: textdiff/process/gaussian.py belongs to `process`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Full names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [alias.name for alias in node.names]
            yield from [f"textdiff.{n}" for n in names] if node.module == "textdiff" else [node.module]
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms(path):
    """The rooms of this package that a file imports, its own left out."""
    own = [name.split(".")[1] for name in imports(path) if name.startswith("textdiff.")]
    return {room for room in own if room != name_of(path)}


def test_every_module_has_its_place():
    assert {name_of(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    name = name_of(path)
    above = set(ORDER[ORDER.index(name) :])
    assert not {room for room in rooms(path) & above if (name, room) not in UPWARDS}


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("transformer", {"hardware"}),
        ("schedule", set()),
        ("process", {"noise", "fixed", "packing", "schedule"}),
        ("metrics", set()),
        ("decoder", {"noise"}),
    ],
)
def test_what_the_lower_rooms_may_see(room, allowed):
    for path in FILES:
        if name_of(path) == room:
            assert rooms(path) <= allowed, path


def test_lightning_stays_in_training():
    for path in FILES:
        if name_of(path) not in ("data", "checkpoint", "report", "train", "cli"):
            assert not any(name.split(".")[0] == "lightning" for name in imports(path)), path


def test_processes_see_only_tensors():
    known = {"torch", "numpy", "math", "abc", "collections", "typing", "dataclasses", "textdiff"}
    for path in FILES:
        if name_of(path) in ("process", "schedule", "transformer"):
            assert {name.split(".")[0] for name in imports(path)} <= known, path


@pytest.mark.parametrize("name", PARTS)
def test_what_all_processes_share_knows_none_of_them(name):
    """Loop, denoiser and training: a new process or sampler is told to its registry alone."""
    from textdiff.process import PROCESSES
    from textdiff.sampler import SAMPLERS

    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    kinds = {kind.__name__ for kind in (*PROCESSES.values(), *SAMPLERS.values())} - own - {"Sampler"}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not used & kinds and not texts & (PROCESSES.keys() | SAMPLERS.keys())
