"""Does a row of one split stand in another: as it is, in other clothes, or nearly?

What is compared is what a row asks, without system messages, and what it asks together with its answer; of plain text,
the text. Examples in few-shot prompts are training rows, so what holds for these holds for them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, pairwise
from typing import Any
from zlib import crc32

from datasketch import MinHash, MinHashLSH

from finetune.config.schema import OverlapPolicy
from finetune.data.splits import Example, Splits, normalise_text, question_of
from finetune.errors import UserError

SPLITS = ("train", "validation", "test")
EXAMPLES = 3
# Near: the words and pairs of neighbouring words of two texts have at least this Jaccard similarity. Of ten words, two
# may differ.
NEAR = 0.5
PERMUTATIONS = 128
LEAKS = ("prompt", "text", "group")  # what a test row may not have in common with a training row
COMMON = 0.5  # what more than this share of all texts hold says nothing about two of them


@dataclass(frozen=True)
class SharedRows:
    """How many rows of the split `second` stand in `first`, compared `by` prompt or prompt and answer, and some of
    them with their places in both.
    """

    kind: str
    by: str
    first: str
    second: str
    rows: int
    examples: list[tuple[str, str]]

    def __str__(self) -> str:
        how = {"exact": "word for word", "normalised": "but for case, punctuation and whitespace", "near": "nearly"}
        places = ", ".join(f"{theirs} (as {ours})" for ours, theirs in self.examples)
        return f"{self.rows:,} {self.second} rows stand in {self.first} {how[self.kind]}, by {self.by}: {places}"


def check_overlap(splits: Splits, policy: OverlapPolicy) -> Splits:
    """The splits with what they share; with `drop`, held-out prompts are taken out of train, and test's of validation.

    Raises UserError where a test prompt is trained on, but for case, punctuation and whitespace, unless allowed.
    """
    dropped = 0
    if policy is OverlapPolicy.drop:
        splits, dropped = _drop(splits)
    shared = list(_find(splits))
    counts = splits.counts | {"overlapping": dropped} if dropped else splits.counts
    leaked = [one for one in shared if (one.first, one.second) == ("train", "test") and one.by in LEAKS]
    leaked = [one for one in leaked if one.kind != "near"]
    if leaked and policy is OverlapPolicy.error:
        raise UserError(
            f"{leaked[0].examples[0][1]}: this test {leaked[0].by} is trained on: {'; '.join(map(str, leaked))}. "
            "Take them out of one of the two, write data.overlap=drop to leave them out of training, or "
            "data.overlap=allow."
        )
    return replace(splits, counts=counts, shared=[str(one) for one in shared])


def _whole(example: Example) -> str:
    return f"{question_of(example)}\n{example.completion}" if example.prompt else example.completion


def _belongs(example: Example, prompts: set[str], groups: set[str | None]) -> bool:
    return normalise_text(question_of(example)) in prompts or (example.group is not None and example.group in groups)


def _drop(splits: Splits) -> tuple[Splits, int]:
    """Without the rows of train whose prompt or group is held out, and those of validation whose is in test."""
    prompts, groups = (
        {normalise_text(question_of(example)) for example in splits.test},
        {one.group for one in splits.test},
    )
    validation = [example for example in splits.validation if not _belongs(example, prompts, groups)]
    prompts |= {normalise_text(question_of(example)) for example in validation}
    groups |= {example.group for example in validation}
    train = [example for example in splits.train if not _belongs(example, prompts, groups)]
    if not train or not validation:
        name = "validation" if train else "train"
        raise UserError(f"data.overlap=drop leaves no {name} rows: every prompt is held out in another split.")
    dropped = len(splits.train) - len(train) + len(splits.validation) - len(validation)
    counts = splits.counts | {"train": len(train), "validation": len(validation)}
    return replace(splits, train=train, validation=validation, counts=counts), dropped


def _find(splits: Splits) -> Iterator[SharedRows]:
    examples = {name: getattr(splits, name) for name in SPLITS}
    for first, second in combinations(SPLITS, 2):
        same = _equal(*([example.group for example in examples[name]] for name in (first, second)))
        if same:
            yield _shared("exact", "group", (first, second), examples, same)
    kinds = {"prompt": question_of, "prompt and answer": _whole} if splits.train[0].prompt else {"text": question_of}
    for by, text in kinds.items():
        exact = {name: [text(example) for example in some] for name, some in examples.items()}
        plain = {name: [normalise_text(one) for one in texts] for name, texts in exact.items()}
        hashed = _hash(plain)
        for first, second in combinations(SPLITS, 2):
            same, alike = _equal(exact[first], exact[second]), _equal(plain[first], plain[second])
            dressed = {j: i for j, i in alike.items() if j not in same}
            near = {j: i for j, i in _near(hashed[first], hashed[second]).items() if j not in alike}
            for kind, pairs in (("exact", same), ("normalised", dressed), ("near", near)):
                if pairs:
                    yield _shared(kind, by, (first, second), examples, pairs)


def _shared(
    kind: str, by: str, names: tuple[str, str], examples: dict[str, list[Example]], pairs: dict[int, int]
) -> SharedRows:
    """What two splits have in common, by the index in the second of each such row its index in the first."""
    first, second = names
    shown = [(examples[first][i].place, examples[second][j].place) for j, i in pairs.items()][:EXAMPLES]
    return SharedRows(kind, by, first, second, len(pairs), shown)


def _equal(first: Sequence[str | None], second: Sequence[str | None]) -> dict[int, int]:
    """For the index of each text of `second` that stands in `first`, that of the first such text."""
    places = {text: i for i, text in reversed(list(enumerate(first)))}
    return {j: places[text] for j, text in enumerate(second) if text is not None and text in places}


Hashed = list[tuple[frozenset[bytes], Any]]
"""The shingles of each text with their MinHash."""


def _hash(texts: dict[str, list[str]]) -> dict[str, Hashed]:
    """By split its texts as shingles, but for those that most texts hold, such as an instruction's."""
    shingles = {name: [_shingles(text) for text in some] for name, some in texts.items()}
    frequency = Counter(chain.from_iterable(chain.from_iterable(shingles.values())))
    most = max(COMMON * sum(map(len, texts.values())), 10)
    common = {shingle for shingle, count in frequency.items() if count > most}
    hashed = {}
    for name, some in shingles.items():
        kept = [frozenset(one - common) for one in some]
        hashed[name] = list(zip(kept, MinHash.generator(kept, num_perm=PERMUTATIONS, hashfunc=crc32), strict=True))
    return hashed


def _near(first: Hashed, second: Hashed) -> dict[int, int]:
    """For the index of each text of `second` that is like one of `first`, that of the likest."""
    index = MinHashLSH(threshold=NEAR - 0.1, num_perm=PERMUTATIONS)  # an estimate: some that are near look farther
    for j, (ours, minhash) in enumerate(second):
        if ours:
            index.insert(j, minhash)
    best: dict[int, tuple[float, int]] = {}
    for i, (theirs, minhash) in enumerate(first):
        for j in index.query(minhash):
            ours = second[j][0]
            alike = len(theirs & ours) / len(theirs | ours)
            if alike >= NEAR and alike > best.get(j, (0.0, 0))[0]:
                best[j] = (alike, i)
    return {j: i for j, (_, i) in sorted(best.items())}


def _shingles(text: str) -> set[bytes]:
    words = text.split()
    return {one.encode() for one in (*words, *(f"{a} {b}" for a, b in pairwise(words)))}
