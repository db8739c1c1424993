"""Hashed n-grams (Weinberger et al., arXiv:0902.2206): which row of a table an n-gram of tokens, or of characters, looks up.

A hash is (sum of factor * number) mod PRIME mod (buckets - 1), plus 1: Carter and Wegman's universal hashing (1979) of vectors.
Row 0 is no n-gram's. All of it is exact in int64: here, in torch (`tasks.ngrams`) and in onnxruntime (`formats.onnx.hashed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Grams = Sequence[Sequence[int]]
# A Mersenne prime: products of a token id (below 2^20) with factors below it, and their sums, stay below 2^53.
PRIME = 2**31 - 1


def factors(grams: Grams) -> list[list[int]]:
    """What the token at each distance is multiplied by in each kind of n-gram, [longest n-gram, grams]; 0 where it is not in it.

    They are the sequence of Knuth's MMIX generator (The Art of Computer Programming 2, 3.3.4), its upper 31 bits.
    """
    longest, state, table = 1 + max(map(max, grams)), 0, []
    for place in range(longest):
        row = []
        for gram in grams:
            state = (6364136223846793005 * state + 1442695040888963407) % 2**64
            row.append((state >> 33) % PRIME if place in gram else 0)
        table.append(row)
    return table


def columns(grams: Grams, spelling: Grams, characters: int) -> tuple[list[list[int]], list[int]]:
    """What hashes all kinds of n-grams in one product: factors [window + characters, kinds], and the row that ends each kind.

    They multiply, for each token, the numbers of those at each distance from it (as many as the longest n-gram has), and then the
    characters of the token itself. A kind of characters is a column for each place in a token where it can begin. An n-gram is
    there where the number at its end and that of its token (row 0) are.
    """
    words, letters = factors(grams), factors(spelling)
    window = len(words)
    found = [[*column, *([0] * characters)] for column in zip(*words, strict=True)]
    ends = [max(gram) for gram in grams]
    for gram, column in zip(spelling, zip(*letters, strict=True), strict=True):
        reach = 1 + max(gram)
        for begin in range(characters - reach + 1):
            before = window + begin
            found.append([*([0] * before), *column[:reach], *([0] * (characters - begin - reach))])
            ends.append(before + reach - 1)
    return [list(row) for row in zip(*found, strict=True)], ends


def rows_of(numbers: NDArray[np.int64], grams: Grams, buckets: int) -> NDArray[np.int64]:
    """The table's row of each n-gram of texts, [texts, longest] -> [texts, longest, grams]; 0 where there is none.

    numbers: token ids plus 1, or characters as `spell` tells them; 0 behind a text's end.
    """
    import numpy as np

    by, longest = factors(grams), numbers.shape[1]
    filled = np.pad(numbers, ((0, 0), (0, len(by) - 1)))
    places = [filled[:, place : place + longest, None] for place in range(len(by))]
    codes = np.zeros((*numbers.shape, len(grams)), np.int64)
    for place, row in zip(places, by, strict=True):
        codes += place * np.array(row)
    ends = np.concatenate([places[max(gram)] for gram in grams], axis=-1)
    return np.where((ends > 0) & (places[0] > 0), codes % PRIME % (buckets - 1) + 1, 0)


def spell(vocabulary: Mapping[str, int], size: int, prefix: str | None, characters: int) -> NDArray[np.uint8]:
    """The first characters of each token as numbers from 1, 0 behind its last, uint8 [size, characters].

    vocabulary: ids of tokens by how their tokenizer writes them, which marks where a word begins; or, with WordPiece's `prefix`,
    where it goes on: then what begins one is written with a mark. Characters of one remainder by 255 are one.
    """
    import numpy as np

    table = np.zeros((size, characters), np.uint8)
    for token, index in vocabulary.items():
        written = token
        if prefix is not None:
            written = token.removeprefix(prefix) if token.startswith(prefix) else f"^{token}"
        letters = [1 + ord(letter) % 255 for letter in written[:characters]]
        table[index, : len(letters)] = letters
    return table
