"""New texts of old ones, for a teacher to answer: behind a word a text goes on as another one does behind the same word.

So each word follows one that it follows in some text: a new text is a walk of a bigram model of all texts that mostly stays in
one. What it then means only the teacher says. That small students gain most where their teacher answers many more texts than
there are is what TinyBERT (arXiv:1909.10351, section 4.4) and GAL (arXiv:2106.06168) report, whose texts a language model
changed or wrote.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from random import Random

from edgekit.duplicates import near_copies
from edgekit.errors import EdgekitError
from edgekit.outputs.tokens import TOKENS
from edgekit.prompts import Prompt
from edgekit.stored import Lazy, choose, derive

# The share of words behind which a text goes on as another one: on rows held out of BANKING77's train split, which its teacher
# knew, students of n-grams had a cross-entropy of 0.248 at 0.3 and 0.260 at 0.15, those of one layer the same (0.268, 0.265).
# Then how often a new text is tried for.
JUMPS = 0.3
_TRIES = 4
# Texts whose words are held in memory; of more than these, as many of them in even steps.
_MATERIAL = 50_000


class Splicer:
    """The words of texts, and where each is that has another behind it. Words are what stands between spaces."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = [_words(text) for text in texts]
        self._longest = max(map(len, self._texts), default=0)
        self._places: dict[str, array[int]] = {}
        for text, words in enumerate(self._texts):
            for place, word in enumerate(words[:-1]):
                self._places.setdefault(_key(word), array("q")).extend((text, place))

    @property
    def joins(self) -> bool:
        """Whether any text can go on as another one does."""
        return any(len({*places[::2]}) > 1 for places in self._places.values())

    def splice(self, text: str, random: Random) -> str:
        """A text that begins with the first word of this one, and has no more words than the longest; this text itself where no
        other goes on behind its words."""
        for _ in range(_TRIES):
            if (made := self._walk(_words(text), random)) != text.strip():
                break
        return made

    def _walk(self, words: Sequence[str], random: Random) -> str:
        place, said = 0, list[str]()
        while place < len(words) and len(said) < self._longest:
            said.append(words[place])
            found = self._places.get(_key(words[place]))
            if found is not None and place + 1 < len(words) and random.random() < JUMPS:
                chosen = random.randrange(len(found) // 2)
                words, place = self._texts[found[2 * chosen]], found[2 * chosen + 1]
            place += 1
        return "".join(said).strip()


def check_spliced(output: str, signals: str, where: str, *, teacher: bool) -> None:
    """Refuse new texts (EdgekitError, beginning with `where`) of models that write, and where nobody says what they mean.

    output: of the task; signals: see `DistillOptions`; teacher: whether any loss reads one.
    """
    if output == TOKENS.name:
        raise EdgekitError(
            f"{where}: a model that writes would learn to write texts that nobody wrote; remove this key"
        )
    if signals == "recorded":
        raise EdgekitError(f'{where}: no recording has what a teacher says of new texts; give signals = "live"')
    if not teacher:
        raise EdgekitError(f"{where}: what new texts mean only a teacher says, and no loss reads one; remove this key")


def splice(
    texts: Sequence[Prompt], rows: Sequence[int], count: int, seed: int, apart: Sequence[Prompt] = ()
) -> Sequence[Prompt]:
    """`count` new texts for each of these rows of texts, made of these rows alone; nobody knows their labels.

    Those that are nearly one of `apart` are left out (`near_copies`). The same for the same texts, rows and seed; of texts that
    lie in a file each is made when it is asked for. Raises EdgekitError where no word that another follows is in two texts.
    """
    step = -(-len(rows) // _MATERIAL) or 1
    splicer = Splicer(row.text for row in choose(texts, rows[::step]))
    if not splicer.joins:
        raise EdgekitError(
            "distill.spliced: no train text goes on behind a word of another one, as where no spaces are between words; remove"
            " this key"
        )

    def make(index: int) -> Prompt:
        copy, row = divmod(index, len(rows))
        return Prompt(text=splicer.splice(texts[rows[row]].text, Random(f"splice:{seed}:{copy}:{row}")))

    lazy = Lazy(count * len(rows), make)
    made = list(lazy) if isinstance(texts, list) else lazy
    near = near_copies(*(derive(part, lambda row: (row.text, None)) for part in (made, apart)))
    return choose(made, (index for index in range(len(made)) if index not in near))


def _words(text: str) -> list[str]:
    """A text's words, each with the space behind it; the first with that before it."""
    return re.findall(r"^\s*\S+\s*|\S+\s*", text)


def _key(word: str) -> str:
    return word.strip().casefold()
