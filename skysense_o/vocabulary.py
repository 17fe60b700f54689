"""Vocabularies (class names, synonyms, background classes) and the cache of text embeddings.

A phrase is one name or synonym of a class; a class with two synonyms has three phrases.
Alphabet: B images, T phrases, C classes, P templates, D embedding.
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

from skysense_o.words import check_words

if TYPE_CHECKING:
    from skysense_o.modeling.tower import Tower

ENCODE_BATCH = 256
HOW_TO_WRITE_WORDS = 'write them as "building,road" or, with synonyms, "building|house|roof,road"'


@dataclass(frozen=True)
class Vocabulary:
    """The classes to segment in one image.

    Attributes:
        classes: C names.
        phrases: for each class its name and synonyms.
        background: for each class whether it is a background class, for pixels of no other class.
        examples: phrase -> unit vector (D,), for phrases that mean a region of an image instead of words.
    """

    classes: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    background: tuple[bool, ...]
    examples: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, classes: Iterable[str | Sequence[str]], background: Iterable[str] = ()) -> Vocabulary:
        """Build a vocabulary from class names and check it.

        Args:
            classes: one entry per class: a name "road", synonyms "road|street", or a sequence of synonyms. The first
                synonym is the name of the class.
            background: names of background classes, in the same form; they come after the others.

        Raises:
            ValueError: no classes, a blank name, or the same word for two classes (case is ignored).

        >>> vocabulary = Vocabulary.of(["building|house", "road"], background=["field"])
        >>> vocabulary.classes
        ('building', 'road', 'field')
        >>> vocabulary.phrases[0], vocabulary.background
        (('building', 'house'), (False, False, True))
        """
        if isinstance(classes, str) or isinstance(background, str):
            raise ValueError("classes and background must be lists; for one line of text use Vocabulary.parse")
        phrases, flags = [], []
        for entries, flag in ((classes, False), (background, True)):
            for entry in entries:
                words = entry.split("|") if isinstance(entry, str) else list(entry)
                check_words(words)
                words = tuple(dict.fromkeys(" ".join(word.split()) for word in words))
                if not words or not all(words):
                    raise ValueError(f"a class name is blank in {entry!r}: {HOW_TO_WRITE_WORDS}")
                phrases.append(words)
                flags.append(flag)
        if not any(not flag for flag in flags):
            raise ValueError(f"no class names were given: {HOW_TO_WRITE_WORDS}")
        class_of: dict[str, str] = {}
        for words in phrases:
            for word in words:
                if word.lower() in class_of:
                    raise ValueError(
                        f"{word!r} stands for two classes ({class_of[word.lower()]!r} and {words[0]!r}):"
                        " give each class its own words"
                    )
            class_of.update((word.lower(), words[0]) for word in words)
        return cls(tuple(words[0] for words in phrases), tuple(phrases), tuple(flags))

    @classmethod
    def parse(cls, text: str, background: str = "") -> Vocabulary:
        """Build a vocabulary from text: commas between classes, bars between synonyms.

        Args:
            text: the classes, such as "building|house, road".
            background: background classes in the same form; "" for none.

        Raises:
            ValueError: see `of`.

        >>> Vocabulary.parse("building|house, road").classes
        ('building', 'road')
        """
        if not text.strip():
            raise ValueError(f"the class names {text!r} are empty: {HOW_TO_WRITE_WORDS}")
        return cls.of(text.split(","), background.split(",") if background.strip() else ())

    def with_words(self, words: dict[str, Sequence[str]]) -> Vocabulary:
        """Add phrases to the classes (SkySense-O, retrieval augmentation).

        The probability of a class is the maximum over its phrases.

        Args:
            words: class name -> more phrases. Names are compared without case, spaces, hyphens and underscores. Here
                two classes may share a word, as they do in the published lists.

        Raises:
            ValueError: words for a class that is not in the vocabulary.

        >>> Vocabulary.parse("road,Low vegetation").with_words({"low_vegetation": ["grass"]}).phrases
        (('road',), ('Low vegetation', 'grass'))
        """
        plain = {_plain(name): name for name in self.classes}
        unknown = [name for name in words if _plain(name) not in plain]
        if unknown:
            raise ValueError(f"words for {unknown}, which are not among the classes {list(self.classes)}")
        more = {plain[_plain(name)]: tuple(extra) for name, extra in words.items()}
        phrases = tuple(
            tuple(dict.fromkeys((*own, *more.get(name, ())))) for name, own in zip(self.classes, self.phrases)
        )
        return replace(self, phrases=phrases)

    def with_examples(self, examples: Mapping[str, Tensor]) -> Vocabulary:
        """Add classes at the end that mean "looks like this region".

        Args:
            examples: class name -> embedding (D,) of a region in the text space, see `PromptedImage.embed`.

        Raises:
            ValueError: the name is already a phrase of the vocabulary.
        """
        taken = {word.lower() for words in self.phrases for word in words}
        twice = [name for name in examples if name.lower() in taken]
        if twice:
            raise ValueError(f"{twice} are already phrases of this vocabulary: give the examples other names")
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
        """T class indices, ascending: the class of each phrase.

        >>> Vocabulary.parse("building|house,road").phrase_to_class
        [0, 0, 1]
        """
        return [c for c, words in enumerate(self.phrases) for _ in words]


def read_retrieval_words(path: str | Path) -> dict[str, list[str]]:
    """Read the published file of retrieval words (`o1.json`).

    Returns:
        class name -> words, without the key "except".

    Raises:
        ValueError: the file is not an object of class name -> list of words.
    """
    table = json.loads(Path(path).read_text())
    if not isinstance(table, dict) or not all(isinstance(words, list) for words in table.values()):
        raise ValueError(f"{path} is no table of retrieval words: expected an object of class name -> list of words")
    return {name: words for name, words in table.items() if name != "except"}


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


ENCODING = Lock()
"""Windows that run in parallel need the same strings: the first one encodes them, the others read the cache."""


class TextBank:
    """Cache of text embeddings: each string is encoded once per set of text tower weights.

    A text tower that is being trained is run on every call and nothing is cached. Code that loads or changes weights
    must call `weights_changed()`; the embeddings of the old weights are then dropped.

    >>> class Tower:  # any text tower
    ...     dim, pixel_mean = 2, torch.zeros(1)
    ...     def text_parameters(self): return [torch.ones(1)]
    ...     def encode_text(self, strings): return torch.tensor([[1.0, 0.0]] * len(strings))
    >>> text, valid = TextBank()(Tower(), [Vocabulary.parse("building|house,road")], ["a photo of {}"])
    >>> tuple(text.shape), valid.tolist()
    ((1, 3, 1, 2), [[True, True, True]])
    """

    def __init__(self) -> None:
        self._vectors: dict[tuple[str, str], Tensor] = {}
        self._single: dict[tuple[str, str], Tensor] = {}  # in training, see `_encode_singly`
        self._fingerprint: str | None = None

    def weights_changed(self) -> None:
        """Tell the cache that the text tower may have new weights; they are hashed before the next use."""
        self._fingerprint = None

    def __call__(
        self, tower: Tower, vocabularies: Sequence[Vocabulary], templates: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Encode the vocabularies of a batch, padded to the number of phrases of the longest one.

        Args:
            tower: the text tower.
            vocabularies: B.
            templates: P format strings with one "{}".

        Returns:
            text (B,T,P,D) unit vectors, zero where padded; valid (B,T) bool, False where padded.
        """
        flat = [[p for words in v.phrases for p in words] for v in vocabularies]
        most = max(len(phrases) for phrases in flat)
        examples = [v.examples for v in vocabularies]
        words = dict.fromkeys(p for phrases, own in zip(flat, examples) for p in phrases if p not in own)
        strings = list(dict.fromkeys(template.format(p) for p in words for template in templates))
        with ENCODING:
            table = self._table(tower, strings) if strings else {}
        some = next(iter(table.values()), tower.pixel_mean)
        text = some.new_zeros((len(flat), most, len(templates), tower.dim))
        valid = torch.zeros((len(flat), most), dtype=torch.bool, device=some.device)
        for b, (phrases, own) in enumerate(zip(flat, examples)):
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
            return self._encode_singly(tower, key, strings)
        device = tower.pixel_mean.device
        missing = sorted((s for s in strings if (key, s) not in self._vectors), key=len)  # less padding in a batch
        with torch.no_grad():
            for first in range(0, len(missing), ENCODE_BATCH):
                batch = missing[first : first + ENCODE_BATCH]
                for string, vector in zip(batch, tower.encode_text(batch)):
                    self._vectors[key, string] = vector
        return {s: self._vectors[key, s].to(device) for s in strings}

    def _encode_singly(self, tower: Tower, key: str, strings: list[str]) -> dict[str, Tensor]:
        """Encode each string in a batch of one, for training.

        The rounding errors of an embedding depend on the rest of its batch. A resumed run sees the words in another
        order, so with larger batches its weights would differ from those of an uninterrupted run.
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
        """Write all cached embeddings to a safetensors file, for another process to `load`."""
        keys = list(self._vectors)
        vectors = torch.stack([self._vectors[key] for key in keys]) if keys else torch.zeros(0, 0)
        save_file({"vectors": vectors.cpu().contiguous()}, str(path), metadata={"keys": json.dumps(keys)})

    def load(self, path: str | Path) -> None:
        """Add the embeddings of a file written by `export`. They are used only for a tower with the same weights."""
        with safe_open(str(path), "pt") as file:
            keys, vectors = json.loads(file.metadata()["keys"]), file.get_tensor("vectors")
        self._vectors.update((tuple(key), vector) for key, vector in zip(keys, vectors))
