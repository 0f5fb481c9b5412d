"""What a trained student knows: the examples it was given, and nothing else.

It looks for the examples whose question resembles the one asked (TF-IDF over words, word pairs and pieces of words,
with an inverted index) and says what most of the nearest would say.  Where all examples answer with JSON objects of
the same fields it decides field by field.  Words that tell answers apart weigh more than words that do not, which it
sees from the examples alone; so garbage in the file is garbage in the answers."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

from sandbox.speech import last_user_text
from sandbox.store import Json

#: How many of the nearest examples have a say.
_VOTERS = 25
#: Below this likeness the question is foreign to the student, and it answers like its untrained base.
_FOREIGN = 0.02

Vector = dict[str, float]


class Example(msgspec.Struct, frozen=True):
    """asked: the last user message; said: the assistant's output."""

    asked: str
    said: str


def features(text: str) -> Iterator[str]:
    words = re.findall(r"[\w']+", text.lower())
    stems = [word[:6] for word in words]
    yield from stems
    yield from (f"{first} {second}" for first, second in pairwise(stems))
    for word in words:
        if len(word) > 4:
            yield from (f"~{word[at : at + 4]}" for at in range(len(word) - 3))


class _Index:
    """The examples' questions as weighted vectors, weighted for telling one set of labels apart."""

    def __init__(self, bags: Sequence[Counter[str]], labels: Sequence[str]) -> None:
        self._labels = labels
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for bag, label in zip(bags, labels, strict=True):
            for feature in bag:
                seen[feature][label] += 1
        prior = Counter(labels)
        self._weights = {
            feature: math.log((1 + len(bags)) / counts.total()) * _telling(counts, prior)
            for feature, counts in seen.items()
            # In a large set the commonest features tell nothing and cost most.
            if counts.total() <= max(100, len(bags) // 10) or len(prior) < 50
        }
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, bag in enumerate(bags):
            for feature, value in self._vector(bag).items():
                self._postings[feature].append((number, value))

    def _vector(self, bag: Counter[str]) -> Vector:
        weights = self._weights
        vector = {feature: (1 + math.log(n)) * weights[feature] for feature, n in bag.items() if feature in weights}
        norm = math.sqrt(sum(value * value for value in vector.values()))
        return {feature: value / norm for feature, value in vector.items()} if norm else {}

    def vote(self, bag: Counter[str]) -> str | None:
        likeness: dict[int, float] = defaultdict(float)
        for feature, value in self._vector(bag).items():
            for number, other in self._postings.get(feature, ()):
                likeness[number] += value * other
        nearest = sorted(likeness.items(), key=lambda item: (-item[1], item[0]))[:_VOTERS]
        if not nearest or nearest[0][1] < _FOREIGN:
            return None
        votes: dict[str, float] = defaultdict(float)
        for number, value in nearest:
            votes[self._labels[number]] += value
        return max(votes, key=lambda label: votes[label])


def _telling(counts: Counter[str], prior: Counter[str]) -> float:
    """How much seeing a feature says about the label: its surprise over the prior, shrunk when seldom seen."""
    total, everything = counts.total(), prior.total()
    surprise = sum(n / total * math.log(n / total * everything / prior[label]) for label, n in counts.items())
    return 0.01 + surprise * total / (total + 1.0)


class Mind:
    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        bags = [Counter(features(example.asked)) for example in examples]
        self._exact = {example.asked.strip(): example.said for example in examples}
        objects = [_object(example.said) for example in examples]
        names = tuple(objects[0]) if objects and objects[0] else ()
        if names and all(tuple(value) == names for value in objects):
            fields = {name: [msgspec.json.encode(value[name]).decode() for value in objects] for name in names}
            self._answer = _by_field({name: _Index(bags, labels) for name, labels in fields.items()})
        elif examples:
            self._answer = _Index(bags, [example.said for example in examples]).vote
        else:
            self._answer = lambda _: None

    @classmethod
    def of(cls, learned: bytes) -> Mind:
        return cls(decode_examples(learned))

    def answer(self, messages: list[Json]) -> str | None:
        """None when the question resembles nothing the student has seen."""
        asked = last_user_text(messages)
        if (said := self._exact.get(asked.strip())) is not None:
            return said
        return self._answer(Counter(features(asked)))


def _by_field(indexes: dict[str, _Index]) -> Callable[[Counter[str]], str | None]:
    def answer(bag: Counter[str]) -> str | None:
        chosen = {name: index.vote(bag) for name, index in indexes.items()}
        if any(value is None for value in chosen.values()):
            return None
        return "{" + ",".join(f"{msgspec.json.encode(name).decode()}:{value}" for name, value in chosen.items()) + "}"

    return answer


def _object(said: str) -> Json:
    try:
        value = msgspec.json.decode(said)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def encode_examples(examples: Sequence[Example]) -> bytes:
    return msgspec.json.encode(examples)


def decode_examples(learned: bytes) -> list[Example]:
    return msgspec.json.decode(learned, type=list[Example]) if learned else []
