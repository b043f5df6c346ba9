"""Does a row of one split stand in another: word for word, but for case and punctuation, or nearly?

Compared is what a row asks, without system messages, and what it asks with its answer; of plain text, the text.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, pairwise
from typing import NamedTuple
from zlib import crc32

from datasketch import MinHash, MinHashLSH

from finetune.config.schema import OverlapPolicy
from finetune.data.splits import Example, Splits, normalise_text, question_of
from finetune.errors import UserError

SPLITS = ("train", "validation", "test")
EXAMPLES_SHOWN = 3
NEAR = 0.5  # least Jaccard similarity of words and pairs of neighbouring words: of ten words, two may differ
ESTIMATED_NEAR = NEAR - 0.1  # the index estimates similarities, and some texts that are near look less so
PERMUTATIONS = 128
LEAKS = ("prompt", "text", "group")  # what a test row may not have in common with a training row
COMMON_SHARE = 0.5  # what more than this share of all texts hold says nothing about two of them
FEWEST_COMMON = 10  # texts
KINDS = {"exact": "word for word", "normalised": "but for case, punctuation and whitespace", "near": "nearly"}


class SharedRows(NamedTuple):
    """How many rows of the split `second` stand in `first`, compared `by` prompt or group, with the places of some."""

    kind: str
    by: str
    first: str
    second: str
    rows: int
    examples: list[tuple[str, str]]

    def __str__(self) -> str:
        places = ", ".join(f"{theirs} (as {ours})" for ours, theirs in self.examples)
        return f"{self.rows:,} {self.second} rows stand in {self.first} {KINDS[self.kind]}, by {self.by}: {places}"


def check_overlap(splits: Splits, policy: OverlapPolicy) -> Splits:
    """The splits with what they share; with `drop`, held-out prompts are taken out of train, and test's of validation.

    Raises UserError where a test prompt is trained on, but for case, punctuation and whitespace, unless allowed.
    """
    if policy is OverlapPolicy.drop:
        splits = _drop_shared(splits)
    shared = list(_find_shared(splits))
    tested = [rows for rows in shared if (rows.first, rows.second) == ("train", "test")]
    leaks = [rows for rows in tested if rows.by in LEAKS and rows.kind != "near"]
    if leaks and policy is OverlapPolicy.error:
        raise UserError(
            f"{leaks[0].examples[0][1]}: this test {leaks[0].by} is trained on: {'; '.join(map(str, leaks))}. "
            "Take them out of one of the two, write data.overlap=drop to leave them out of training, or "
            "data.overlap=allow."
        )
    return replace(splits, shared=[str(rows) for rows in shared])


def _whole_text(example: Example) -> str:
    return f"{question_of(example)}\n{example.completion}" if example.prompt else example.completion


def _drop_shared(splits: Splits) -> Splits:
    """Without the rows of train whose prompt or group is held out, and those of validation whose is in test."""

    def without(examples: list[Example], held_out: list[Example]) -> list[Example]:
        prompts = {normalise_text(question_of(example)) for example in held_out}
        groups = {example.group for example in held_out} - {None}
        others = (example for example in examples if example.group not in groups)
        return [example for example in others if normalise_text(question_of(example)) not in prompts]

    validation = without(splits.validation, splits.test)
    train = without(splits.train, [*splits.test, *validation])
    if not train or not validation:
        name = "validation" if train else "train"
        raise UserError(f"data.overlap=drop leaves no {name} rows: every prompt is held out in another split.")
    dropped = len(splits.train) - len(train) + len(splits.validation) - len(validation)
    counts = {"train": len(train), "validation": len(validation)} | ({"overlapping": dropped} if dropped else {})
    return replace(splits, train=train, validation=validation, counts=splits.counts | counts)


def _find_shared(splits: Splits) -> Iterator[SharedRows]:
    examples: dict[str, list[Example]] = {name: getattr(splits, name) for name in SPLITS}

    def describe(kind: str, by: str, first: str, second: str, pairs: dict[int, int]) -> Iterator[SharedRows]:
        shown = [(examples[first][i].place, examples[second][j].place) for j, i in pairs.items()][:EXAMPLES_SHOWN]
        if pairs:
            yield SharedRows(kind, by, first, second, len(pairs), shown)

    for first, second in combinations(SPLITS, 2):
        groups = [[example.group for example in examples[name]] for name in (first, second)]
        yield from describe("exact", "group", first, second, _pair_equal(*groups))
    texts: dict[str, Callable[[Example], str]] = {"text": question_of}
    if splits.train[0].prompt:
        texts = {"prompt": question_of, "prompt and answer": _whole_text}
    for by, text_of in texts.items():
        exact = {name: [text_of(example) for example in split] for name, split in examples.items()}
        normalised = {name: [normalise_text(text) for text in split] for name, split in exact.items()}
        hashed = _hash_texts(normalised)
        for first, second in combinations(SPLITS, 2):
            same = _pair_equal(exact[first], exact[second])
            equal = _pair_equal(normalised[first], normalised[second])
            near = _pair_near(hashed[first], hashed[second])
            yield from describe("exact", by, first, second, same)
            yield from describe("normalised", by, first, second, {j: i for j, i in equal.items() if j not in same})
            yield from describe("near", by, first, second, {j: i for j, i in near.items() if j not in equal})


def _pair_equal(first: Sequence[str | None], second: Sequence[str | None]) -> dict[int, int]:
    """For the index of each text of `second` that stands in `first`, that of the first such text."""
    indices = {text: i for i, text in reversed(list(enumerate(first)))}
    return {j: indices[text] for j, text in enumerate(second) if text is not None and text in indices}


Hashed = list[tuple[frozenset[bytes], MinHash]]  # the shingles of each text with their MinHash


def _hash_texts(texts: dict[str, list[str]]) -> dict[str, Hashed]:
    """By split its texts as shingles, but for those that most texts hold, such as an instruction's."""
    shingles = {name: [_shingles(text) for text in split] for name, split in texts.items()}
    frequency = Counter(chain.from_iterable(chain.from_iterable(shingles.values())))
    most = max(COMMON_SHARE * sum(map(len, texts.values())), FEWEST_COMMON)
    common = {shingle for shingle, count in frequency.items() if count > most}
    hashed = {}
    for name, split in shingles.items():
        rare = [frozenset(text - common) for text in split]
        hashed[name] = list(zip(rare, MinHash.generator(rare, num_perm=PERMUTATIONS, hashfunc=crc32), strict=True))
    return hashed


def _pair_near(first: Hashed, second: Hashed) -> dict[int, int]:
    """For the index of each text of `second` that is like one of `first`, that of the most similar."""
    index = MinHashLSH(threshold=ESTIMATED_NEAR, num_perm=PERMUTATIONS)
    for j, (ours, minhash) in enumerate(second):
        if ours:
            index.insert(j, minhash)
    best: dict[int, tuple[float, int]] = {}
    for i, (theirs, minhash) in enumerate(first):
        for j in index.query(minhash):
            ours = second[j][0]
            similarity = len(theirs & ours) / len(theirs | ours)
            if similarity >= NEAR and similarity > best.get(j, (0.0, 0))[0]:
                best[j] = (similarity, i)
    return {j: i for j, (_, i) in sorted(best.items())}


def _shingles(text: str) -> set[bytes]:
    words = text.split()
    return {shingle.encode() for shingle in (*words, *(f"{a} {b}" for a, b in pairwise(words)))}
