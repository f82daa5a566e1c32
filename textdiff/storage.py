"""Model directories: `config.json`, `model.safetensors`, `tokenizer.json`; nothing is pickled."""

import json
from dataclasses import asdict
from itertools import count
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from textdiff.config import Config
from textdiff.tokenizer import Tokenizer

FILES = ("config.json", "model.safetensors", "tokenizer.json")
CARD = """---
library_name: textdiff
tags: [text-diffusion]
---

A {system} model of textdiff.

```python
import textdiff

model = textdiff.load("{hub_id}")
```
"""


def find_folder(source: str | Path) -> Path:
    """The local folder of a model directory or of a hub id (`owner/name`).

    Raises:
        ValueError: nothing there, or no model.
    """
    folder = Path(source)
    if not folder.is_dir():
        hub = str(source).count("/") == 1 and str(source)[0] not in "./~"  # could be `owner/name`
        if not hub and folder.parent != Path() and folder.parent.is_dir():
            raise ValueError(
                f"no model at {str(source)!r}: no such directory in {folder.parent}; "
                f"give a folder that holds {', '.join(FILES)}"
            )
        folder = download(str(source))
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a textdiff model directory: {', '.join(missing)} missing")
    return folder


def download(hub_id: str) -> Path:
    """Fetch the three files of a model from the Hugging Face hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(FILES)))
    except Exception as error:  # the hub client raises many kinds, all meaning: not there
        raise ValueError(
            f"no model at {hub_id!r}: not a local directory, and the hub says "
            f"{type(error).__name__}; give a folder that holds {', '.join(FILES)}"
        ) from None


def upload(folder: Path, hub_id: str, system: str, private: bool, token: str | None) -> str:
    """Put a model directory and a card on the Hugging Face hub; -> its address."""
    from huggingface_hub import HfApi

    (folder / "README.md").write_text(CARD.format(hub_id=hub_id, system=system), encoding="utf-8")
    hub = HfApi(token=token)
    try:
        address = hub.create_repo(hub_id, private=private, exist_ok=True)
        hub.upload_folder(repo_id=hub_id, folder_path=folder, allow_patterns=[*FILES, "README.md"])
    except Exception as error:  # the hub client raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{hub_id}: the hub did not take it ({type(error).__name__}: {reason})"
        ) from None
    return str(address)


def set_aside(path: Path) -> Path | None:
    """Give what an earlier run left in a place another name, which is returned."""
    if not path.exists():
        return None
    names = (path.with_stem(f"{path.stem}-{i}") for i in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def read_config(folder: Path) -> Config:
    """The config.json of a model directory."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values.pop("model_type")
        return Config(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / 'config.json'} is not a textdiff configuration ({error})") from None


def write_folder(folder: Path, config: Config, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write a model directory; an older one in its place survives a failure half-way."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f".part-{name}" for name in FILES}
    values = {"model_type": "textdiff", **asdict(config)}
    parts["config.json"].write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    path = parts["model.safetensors"]
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what it calls a full disk
        raise OSError(f"{path}: {error}") from error
    path.chmod(parts["config.json"].stat().st_mode)  # the library lets nobody else read it
    tokenizer.save(parts["tokenizer.json"])
    for name, part in parts.items():
        part.replace(folder / name)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a model directory.

    Raises:
        ValueError: cut short, or not a safetensors file.
    """
    path = folder / "model.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({reason}); copy or save it again"
        ) from None
