"""Turn a checkpoint of SSD-LM or TESS into a model directory of this package.

    python scripts/import_checkpoint.py --format ssd-lm ssdlm/ runs/ssdlm
    python scripts/import_checkpoint.py --format tess --conditioning prefix tess/ runs/tess
    textdiff generate runs/ssdlm prompts.txt --length 50

The logits are those of the original computation (`tests/test_import_checkpoint.py`). What SOURCE holds,
beside `config.json` and the tokenizer's files:

    ssd-lm   pytorch_model.bin or model.safetensors, embed_sum_layer.pt, timestep_layer.pt
    tess     pytorch_model.bin or model.safetensors with vocab_to_hidden_dim_embed and timestep_embed

Files of `torch.save` are read as plain tensors; one that holds anything else is refused. Steps are
theirs, fresh noise around a top-p draw, but for two things. SSD-LM reads the text off the last logits,
the likeliest tokens; here the last tokens are drawn like all others (with `--multi_hot`, which draws
none, they are the likeliest). TESS visits t = (T-1)/T ... 0 in T steps, SSD-LM and this package 1 to
1/T. TESS puts <s> before the source, which this package does not.
"""

import argparse
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from textdiff.config import Config
from textdiff.denoiser import TIME_FEATURES
from textdiff.diffusion import TextDiffusion
from textdiff.model import tied_names
from textdiff.tokenizer import Tokenizer

FORMATS = ("ssd-lm", "tess")
LENGTHS = {"ssd-lm": (200, 25), "tess": (512, 120)}  # positions, and tokens written at once
UNUSED = ("position_ids", "token_type_ids", "pooler.")  # of older versions of `transformers`
# TESS's ways of reading the last prediction: factors of the noisy text's embedding and of its own
MIXTURES = {"logits_mean": (0.5, 0.5), "logits_addition": (1.0, 1.0)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--half_width", type=float, default=5.0, help="K of the simplex")
    parser.add_argument(
        "--multi_hot", type=float, help="p of SSD-LM's multi-hot projection; none: tokens are drawn"
    )
    parser.add_argument(
        "--conditioning", choices=("none", "prefix"), default="none", help="prefix: trained with sources"
    )
    parser.add_argument("--max_length", type=int, help="most tokens, source included")
    parser.add_argument("--length", type=int, help="tokens of a block (ssd-lm), or of a text (tess)")
    return parser.parse_args()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefix of distributed training; never anything but tensors."""
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        kind = type(error).__name__
        raise ValueError(f"{path}: {kind}: missing, damaged, or more than plain weights") from None
    return {name.removeprefix("module."): value.float() for name, value in found.items()}


def read_network(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors` or `pytorch_model.bin`."""
    files = [folder / "model.safetensors", folder / "pytorch_model.bin"]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    return read_tensors(path)


def take(tensors: dict[str, Tensor], name: str, where: str) -> Tensor:
    """Remove a tensor from the rest."""
    if name not in tensors:
        raise ValueError(f"{where} has no {name}: is it of this --format?")
    return tensors.pop(name)


def ssd_lm(folder: Path, shape: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network, and what is around it: table `(V, D)`, time, mixture."""
    table = read_tensors(folder / "embed_sum_layer.pt")
    time = read_tensors(folder / "timestep_layer.pt")
    width = shape["hidden_size"]
    around = {
        "table": take(table, "weight", "embed_sum_layer.pt").T,
        "time": take(time, "weight", "timestep_layer.pt"),
        "time_bias": take(time, "bias", "timestep_layer.pt"),
        "read": torch.eye(width),
        "previous": torch.zeros(width, width),
    }
    return read_network(folder), around | {"no_previous": torch.zeros(width)}


def tess(folder: Path, shape: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same."""
    network, width = read_network(folder), shape["hidden_size"]
    how = shape.get("self_condition")
    linear = not any(
        shape.get(key)
        for key in (
            "deepmind_conditional",
            "self_condition_mlp_projection",
            "self_condition_mix_logits_before_weights",
        )
    )
    if not linear or how not in (None, "logits", *MIXTURES):
        raise ValueError(
            f"self_condition {how!r} with these options is not linear in the last prediction; only "
            f"null, logits, {' and '.join(MIXTURES)} can be imported"
        )
    table = take(network, "vocab_to_hidden_dim_embed.weight", "the checkpoint").T
    eye = torch.eye(width)
    if how == "logits":
        name = "project_to_hidden_size.weight"
        read, previous = take(network, name, "the checkpoint").chunk(2, dim=1)
    else:
        read, previous = (factor * eye for factor in MIXTURES.get(how, (1.0, 0.0)))
    # before the first prediction TESS reads one of equal logits, the mean of all embeddings
    zeros = shape.get("self_condition_zeros_after_softmax")
    around = {
        "table": table,
        "time": take(network, "timestep_embed.weight", "the checkpoint"),
        "time_bias": take(network, "timestep_embed.bias", "the checkpoint"),
        "read": read,
        "previous": previous,
        "no_previous": torch.zeros(width) if zeros else previous @ table.mean(0),
    }
    return network, around


def configure(options: argparse.Namespace, shape: dict[str, Any], self_conditioned: bool) -> Config:
    """The config of the model directory."""
    most, size = LENGTHS[options.format]
    most, size = options.max_length or most, options.length or size
    if not 1 <= size < most:
        raise ValueError(f"--length {size} must be at least 1 and below --max_length {most}")
    drawn = {"name": "sample", "p": 0.95}  # of one token the multi-hot projection is that token
    decoder = drawn if options.multi_hot is None else "softmax"
    generation = {"sampler": "renoise", "decoder": decoder, "steps": 64}
    generation |= {"block_length": size} if options.format == "ssd-lm" else {}
    return Config(
        process={
            "name": "simplex",
            "half_width": options.half_width,
            "multi_hot": options.multi_hot,
        },
        # alpha_bar = cos^2(pi/2 t), its ends cut off where nothing is left to be seen
        schedule={"name": "cosine", "gamma_min": -17.0, "gamma_max": 17.0},
        backbone={"config": shape, "tied": False},
        conditioning=options.conditioning,
        max_length=most,
        max_source_length=max(1, most - size - 1),
        self_conditioning=0.5 if self_conditioned else 0.0,
        token_noise=0.0,
        given_rate=0.0,
        block_rate=1.0 if options.format == "ssd-lm" else 0.0,
        block_length=size,
        generation=generation,
    )


def fill(
    model: TextDiffusion, network: dict[str, Tensor], around: dict[str, Tensor], length: int
) -> None:
    """Copy the weights; `length` tokens are written unless told otherwise."""
    own = model.denoiser
    network = {name: value for name, value in network.items() if not any(part in name for part in UNUSED)}
    found = own.network.load_state_dict(network, strict=False)
    lost = {*found.missing_keys} - tied_names(own.network) | {*found.unexpected_keys}
    if lost:
        raise ValueError(f"{len(lost)} weights of the network do not match, such as {min(lost)}")
    width = own.process.embedding.embedding_dim
    with torch.no_grad():
        own.process.embedding.weight.copy_(around["table"])
        # features are the posterior mean, which the peers do not read, and the mean by softmax(K x_t)
        own.read.weight.copy_(torch.cat([torch.zeros(width, width), around["read"]], 1))
        own.time.weight[:, TIME_FEATURES:] = around["time"]
        own.time.bias.copy_(around["time_bias"])
        own.previous.weight.copy_(around["previous"])
        own.no_previous.copy_(around["no_previous"])
        own.skip.zero_()
        own.bar.zero_()
    counts = torch.zeros(model.config.max_length + 1)
    counts[length] = 1e6
    model.length.fit(counts)


def run(options: argparse.Namespace) -> None:
    """Read, check, write."""
    path = options.source / "config.json"
    if not path.is_file():
        raise ValueError(f"{options.source} has no config.json: give the directory of a checkpoint")
    shape = json.loads(path.read_text(encoding="utf-8"))
    if missing := {"model_type", "vocab_size", "hidden_size"} - set(shape):
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}: is it of a RoBERTa?")
    tokenizer = Tokenizer.load(options.source)
    if len(tokenizer) != shape["vocab_size"]:
        raise ValueError(
            f"{options.source}: the tokenizer has {len(tokenizer):,} tokens, the network "
            f"{shape['vocab_size']:,}; give the directory the tokenizer it was trained with"
        )
    network, around = {"ssd-lm": ssd_lm, "tess": tess}[options.format](options.source, shape)
    config = configure(options, shape, self_conditioned=bool(around["previous"].any()))
    model = TextDiffusion(config, tokenizer)
    fill(model, network, around, config.block_length)
    model.save_pretrained(options.target)
    print(f"{options.target}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)


def main() -> None:
    """A mistake ends in one line."""
    try:
        run(arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"import_checkpoint: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
