"""Text to token ids and back: byte-level byte-pair encoding, or any local fast tokenizer.

BPE merges the most frequent pair of adjacent symbols until the vocabulary is full (Sennrich,
Haddow & Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016,
arXiv:1508.07909, algorithm 1). Starting from the 256 bytes (Radford et al., "Language Models are
Unsupervised Multitask Learners", 2019, section 2.2), decode(encode(text)) == text for every text.
One space is put before each text and taken away again: a word is the same token first or later.
"""

import itertools
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("<pad>", "<eos>", "<sep>", "<mask>")
OPEN = -1  # among the ids of a text: words to be written here
STAND_IN = "word"  # in the place of such words while the text around them is read
# what other people's tokenizers call the same thing, most specific first
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
EOS_NAMES = ("<eos>", "</s>", "[EOS]", "[SEP]", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>")


class Tokenizer:
    """Token ids with a padding id and an end-of-text id; wraps a `tokenizers.Tokenizer`."""

    def __init__(self, backend: tokenizers.Tokenizer, pad: str, eos: str) -> None:
        # adds what is absent and marks both as special
        backend.add_special_tokens([pad, eos])
        # "<eos>" typed by a user is text, not the end of the text
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.pad, self.eos = backend, pad, eos
        self.pad_id, self.eos_id = backend.token_to_id(pad), backend.token_to_id(eos)
        sep = backend.token_to_id("<sep>")
        self.sep_id = self.eos_id if sep is None else sep  # between source and target
        added = backend.get_added_tokens_decoder().items()
        self.special_ids = sorted(index for index, token in added if token.special)
        self._length = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn byte-level BPE of at most `vocab_size` tokens, special tokens included."""
        if vocab_size < (least := 256 + len(SPECIAL)):
            raise ValueError(f"vocab_size={vocab_size} is too small: give at least {least}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = normalizers.Prepend(" ")
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        symbols = {"special_tokens": [*SPECIAL], "initial_alphabet": backend.pre_tokenizer.alphabet()}
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **symbols)
        backend.train_from_iterator(texts, trainer)
        return cls(backend, *SPECIAL[:2])

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read `tokenizer.json`, or the tokenizer of a Hugging Face directory or hub id."""
        file = Path(path) if str(path).endswith(".json") else Path(path, "tokenizer.json")
        try:
            if file.is_file() or str(path).endswith(".json"):
                backend = tokenizers.Tokenizer.from_file(str(file))
            else:
                backend = _convert(path)
        except Exception as error:  # the library raises bare Exception
            reason = str(error).partition("\n")[0]
            raise ValueError(f"no tokenizer in {path} ({reason}): give a tokenizer.json") from error
        eos = _special(backend, file, "eos_token", EOS_NAMES)
        pad = _special(backend, file, "pad_token", PAD_NAMES, taken=eos)
        return cls(backend, pad, eos)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` (and its directory); it alone restores `pad_id` and `eos_id`."""
        file = Path(path) if str(path).endswith(".json") else Path(path, "tokenizer.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        special = [(self.eos, self.eos_id)]
        template = processors.TemplateProcessing(single=["$A", self.eos], special_tokens=special)
        self.backend.post_processor = template
        self.backend.enable_padding(pad_id=self.pad_id, pad_token=self.pad)
        self.backend.save(str(file))
        self.backend.no_padding()

    def __len__(self) -> int:
        return self._length

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Ids without special tokens, at most the first `max_length` of each text."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids[:max_length] for encoding in encoded]

    def encode_gaps(self, texts: Sequence[str], gap: str) -> list[list[int]]:
        """Ids of whole texts, EOS included, with `OPEN` for every `gap`, which stands for some words.

        Raises:
            ValueError: a text without a gap, or with one inside a word.
        """
        return [[*self._around(text, gap), self.eos_id] for text in texts]

    def _around(self, text: str, gap: str) -> list[int]:
        """Ids of a text without EOS, `OPEN` for gaps: those of the text with a word in every gap."""
        parts = text.split(gap)
        if len(parts) == 1:
            raise ValueError(f"no gap {gap!r} in {text[:60]!r}: put it where words are to be written")
        touching = [*(part[-1:] for part in parts[:-1]), *(part[:1] for part in parts[1:])]
        inside = any(c.isdigit() or c.lower() != c.upper() or c in gap for c in touching if c)
        if not "".join(parts).strip():
            raise ValueError(f"{text[:60]!r} gives nothing to fill a gap between: use generate")
        if inside or "" in parts[1:-1]:
            raise ValueError(f"a gap inside a word of {text[:60]!r}: put spaces around {gap!r}")
        joined, starts = (
            STAND_IN.join(parts),
            [len(STAND_IN.join(parts[:i])) for i in range(1, len(parts))],
        )
        encoding = self.backend.encode(joined, add_special_tokens=False)
        ids, last = [], None
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            # the space before a gap comes with the word that is to be written
            begin = stop if joined[start:stop].strip(" ") else stop + 1
            found = [s for s in starts if start < s + len(STAND_IN) and begin > s]
            if not found:
                ids.append(index)
            elif found[0] != last:
                ids.append(OPEN)
            last = found[0] if found else None
        return ids

    def decode(self, batch: Iterable[Sequence[int]]) -> list[str]:
        """Texts up to the first EOS, without special tokens (rows of ids, or a (B, L) tensor)."""
        rows = batch.tolist() if hasattr(batch, "tolist") else batch
        kept = (itertools.takewhile(lambda index: index != self.eos_id, row) for row in rows)
        return [text.removeprefix(" ") for text in self.backend.decode_batch([*map(list, kept)])]


def _convert(source: str | Path) -> tokenizers.Tokenizer:
    """The fast form of a tokenizer that `transformers` knows, of a hub id or in older files."""
    from transformers import AutoTokenizer

    # without a word it would ask on standard input
    found = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return tokenizers.Tokenizer.from_str(found.backend_tokenizer.to_str())


def _special(
    backend: tokenizers.Tokenizer, file: Path, key: str, names: tuple[str, ...], taken: str = ""
) -> str:
    """The token that the files, the most explicit first, or else custom call `key`."""
    data = json.loads(backend.to_str())
    # the template ends in what the tokenizer itself puts at the end of a text
    template = ((data["post_processor"] or {}).get("single") or [{}])[-1]
    own = {**(data["padding"] or {}), "eos_token": template.get("SpecialToken", {}).get("id")}
    others = map(file.with_name, ("special_tokens_map.json", "tokenizer_config.json"))
    configs = [*(json.loads(other.read_text("utf-8")) for other in others if other.is_file()), own]
    said = [config[key] for config in configs if config.get(key)]
    known = [*(name["content"] if isinstance(name, dict) else name for name in said), *names]
    # GPT-style tokenizers pad with their EOS; here the two must differ
    found = [name for name in known if name != taken and backend.token_to_id(name) is not None]
    if not found:
        warnings.warn(f"{file} has no {key}: added {names[0]}", stacklevel=3)
    return [*found, names[0]][0]
