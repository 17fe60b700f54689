"""Words: class names, synonyms, background words, templates, and the one cache of text embeddings.

Alphabet: B images, T phrases (a name with three synonyms is three phrases), C classes, P templates, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from skysense_o.modeling.tower import Tower

ENCODE_BATCH = 256
HOW_TO_WRITE_WORDS = 'write them as "building,road" or, with synonyms, "building|house|roof,road"'


@dataclass(frozen=True)
class Vocabulary:
    """What is asked of one image: C classes, the phrases of each, and which names only stand for the rest.

    examples: phrases that are no words but regions seen somewhere, each with its unit vector (D,).
    """

    classes: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    background: tuple[bool, ...]
    examples: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, classes: Iterable[str | Sequence[str]], background: Iterable[str] = ()) -> Vocabulary:
        """Check and build. Each entry is a name "road", synonyms "road|street", or a sequence of synonyms.

        The first synonym is the name. `background` names are added at the end.

        Raises:
            ValueError: no classes, a blank one, or the same one twice (upper and lower case are not told apart).
        """
        if isinstance(classes, str) or isinstance(background, str):
            raise ValueError("names and background are lists of words; one line of words is for Vocabulary.parse")
        phrases, flags = [], []
        for entries, flag in ((classes, False), (background, True)):
            for entry in entries:
                words = entry.split("|") if isinstance(entry, str) else list(entry)
                words = tuple(dict.fromkeys(" ".join(word.split()) for word in words))
                if not words or not all(words):
                    raise ValueError(f"a class name is blank in {entry!r}: {HOW_TO_WRITE_WORDS}")
                phrases.append(words)
                flags.append(flag)
        if not any(not flag for flag in flags):
            raise ValueError(f"no class names were given: {HOW_TO_WRITE_WORDS}")
        seen: dict[str, str] = {}
        for words in phrases:
            for word in words:
                if word.lower() in seen:
                    raise ValueError(
                        f"{word!r} stands for two classes ({seen[word.lower()]!r} and {words[0]!r}): give each class"
                        " its own words"
                    )
            seen.update((word.lower(), words[0]) for word in words)
        return cls(tuple(words[0] for words in phrases), tuple(phrases), tuple(flags))

    @classmethod
    def parse(cls, text: str, background: str = "") -> Vocabulary:
        """From one line, as people type it: names with commas between, synonyms with bars.

        >>> Vocabulary.parse("building|house, road").classes
        ('building', 'road')
        """
        if not text.strip():
            raise ValueError(f"the class names {text!r} are empty: {HOW_TO_WRITE_WORDS}")
        return cls.of(text.split(","), background.split(",") if background.strip() else ())

    def with_words(self, words: dict[str, Sequence[str]]) -> Vocabulary:
        """More phrases for the classes, the best of which counts (the paper's retrieval augmentation).

        Matched by name, whatever its case, spaces, hyphens or underscores, and never by position. A word may serve
        several names here, as it does in the published lists.

        Raises:
            ValueError: words for a name that is not in the vocabulary.
        """
        plain = {_plain(name): name for name in self.classes}
        unknown = [name for name in words if _plain(name) not in plain]
        if unknown:
            raise ValueError(f"words were given for {unknown}, which are not among the classes {list(self.classes)}")
        more = {plain[_plain(name)]: tuple(extra) for name, extra in words.items()}
        phrases = tuple(
            tuple(dict.fromkeys((*own, *more.get(name, ())))) for name, own in zip(self.classes, self.phrases)
        )
        return replace(self, phrases=phrases)

    def with_examples(self, examples: Mapping[str, Tensor]) -> Vocabulary:
        """More names, at the end, that mean "what looks like this".

        Args:
            examples: name -> embedding (D,) of a region in the text space, see `PromptedImage.embed`.

        Raises:
            ValueError: a name that is asked for already.
        """
        taken = {word.lower() for words in self.phrases for word in words}
        twice = [name for name in examples if name.lower() in taken]
        if twice:
            raise ValueError(f"{twice} are words that are asked for already: give the examples other names")
        return Vocabulary(
            (*self.classes, *examples),
            (*self.phrases, *((name,) for name in examples)),
            (*self.background, *(False for _ in examples)),
            {**self.examples, **examples},
        )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def phrase_to_class(self) -> list[int]:
        """T numbers, ascending: the name that each phrase belongs to, all phrases in a row."""
        return [c for c, words in enumerate(self.phrases) for _ in words]


def read_retrieval_words(path: str | Path) -> dict[str, list[str]]:
    """The published form of retrieval words (`o1.json`): name -> words, "except" aside."""
    table = json.loads(Path(path).read_text())
    if not isinstance(table, dict) or not all(isinstance(words, list) for words in table.values()):
        raise ValueError(f"{path} is no table of retrieval words: expected an object of name -> list of words")
    return {name: words for name, words in table.items() if name != "except"}


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


ENCODING = Lock()
"""Windows that are run side by side ask for the same words: the first encodes them, the others find them."""


class TextBank:
    """Unit vectors of rendered strings, each computed once per weights of the text tower. The only cache.

    It holds only what was computed without gradient; a text tower that trains is run on each call. Whoever loads,
    steps or swaps weights calls `weights_changed()`; vectors of other weights are dropped then.
    """

    def __init__(self) -> None:
        self._vectors: dict[tuple[str, str], Tensor] = {}
        self._single: dict[tuple[str, str], Tensor] = {}  # in training, see `_alone`
        self._fingerprint: str | None = None

    def weights_changed(self) -> None:
        """The text tower may hold other weights now: look again before the next use."""
        self._fingerprint = None

    def __call__(
        self, tower: Tower, vocabularies: Sequence[Vocabulary], templates: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Encode the vocabularies of a batch.

        Returns:
            text (B,T,P,D) unit vectors, zero where invalid; valid (B,T) bool, True then False. T is the most phrases
            that a vocabulary of the batch has; `Vocabulary.phrase_to_class` says which name each belongs to.
        """
        flat = [[p for words in v.phrases for p in words] for v in vocabularies]
        most = max(len(phrases) for phrases in flat)
        given = [v.examples for v in vocabularies]
        words = dict.fromkeys(p for phrases, own in zip(flat, given) for p in phrases if p not in own)
        strings = list(dict.fromkeys(template.format(p) for p in words for template in templates))
        with ENCODING:
            table = self._table(tower, strings) if strings else {}
        some = next(iter(table.values()), tower.pixel_mean)
        text = some.new_zeros((len(flat), most, len(templates), tower.dim))
        valid = torch.zeros((len(flat), most), dtype=torch.bool, device=some.device)
        for b, (phrases, own) in enumerate(zip(flat, given)):
            vectors = [
                own[p].to(text) if p in own else table[template.format(p)] for p in phrases for template in templates
            ]
            text[b, : len(phrases)] = torch.stack(vectors).view(len(phrases), len(templates), -1)
            valid[b, : len(phrases)] = True
        return text, valid

    def _table(self, tower: Tower, strings: list[str]) -> dict[str, Tensor]:
        if torch.is_grad_enabled() and any(p.requires_grad for p in tower.text_parameters()):
            return dict(zip(strings, tower.encode_text(strings)))
        key = self._weights_of(tower)
        if torch.is_grad_enabled():
            return self._alone(tower, key, strings)
        device = tower.pixel_mean.device
        missing = sorted((s for s in strings if (key, s) not in self._vectors), key=len)  # less padding in a batch
        with torch.no_grad():
            for first in range(0, len(missing), ENCODE_BATCH):
                batch = missing[first : first + ENCODE_BATCH]
                for string, vector in zip(batch, tower.encode_text(batch)):
                    self._vectors[key, string] = vector
        return {s: self._vectors[key, s].to(device) for s in strings}

    def _alone(self, tower: Tower, key: str, strings: list[str]) -> dict[str, Tensor]:
        """For training: each string encoded by itself. In a batch its last bits depend on what else is in it, and a
        resumed run, which meets the words in another order, would not end with the same weights.
        """
        for string in strings:
            if (key, string) not in self._single:
                with torch.no_grad():
                    self._single[key, string] = tower.encode_text([string])[0]
        return {s: self._single[key, s].to(tower.pixel_mean.device) for s in strings}

    def _weights_of(self, tower: Tower) -> str:
        if self._fingerprint is None:
            digest = xxhash.xxh3_128()  # gigabytes of weights: SHA-256 would take seconds
            for parameter in tower.text_parameters():
                digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy())
            self._fingerprint = digest.hexdigest()
            for table in (self._vectors, self._single):
                for key in [key for key in table if key[0] != self._fingerprint]:
                    del table[key]
        return self._fingerprint

    def export(self, path: str | Path) -> None:
        """Write all vectors held to a safetensors file, so that another process need not encode them again."""
        keys = list(self._vectors)
        vectors = torch.stack([self._vectors[key] for key in keys]) if keys else torch.zeros(0, 0)
        save_file({"vectors": vectors.cpu().contiguous()}, str(path), metadata={"keys": json.dumps(keys)})

    def load(self, path: str | Path) -> None:
        """Add the vectors of a file that `export` wrote. They serve only a tower with the same weights."""
        with safe_open(str(path), "pt") as file:
            keys, vectors = json.loads(file.metadata()["keys"]), file.get_tensor("vectors")
        self._vectors.update((tuple(key), vector) for key, vector in zip(keys, vectors))
