"""Three splits that share nothing: what is twice, rare or in doubt is refused or left out, counted and told."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from edgekit.duplicates import Labelled, near_copies, normalized, repeats
from edgekit.errors import EdgekitError
from edgekit.prompts.prompt import JUDGING, RECOVER, SPLITS, Prompt
from edgekit.prompts.rows import Reading
from edgekit.recipe import Recipe
from edgekit.schema import nearest
from edgekit.stored import choose, derive

# Answers of more words are a way to say it, not the one right answer: two texts may share all but that.
_SHORT_ANSWER = 5
_DROP = 'data.near_duplicates = "drop"'
_NEARLY = "but for how they are written, a word or a letter, or numbers"


class Splits:
    """The rows of each split, and what was left out of which, why.

    `dropped` and `unusual` count rows by split and reason.
    """

    def __init__(self, readings: Mapping[str, Reading], recipe: Recipe, where: Mapping[str, str]) -> None:
        self.rows = {name: readings[name].prompts for name in (RECOVER, *SPLITS, "final") if name in readings}
        self.dropped = {name: Counter(reading.dropped) for name, reading in readings.items()}
        self.unusual = {
            name: Counter({f"converted from {kind}": count for kind, count in reading.converted.items()})
            for name, reading in readings.items()
        }
        self._recipe, self._where = recipe, where

    def clean(self) -> None:
        """Leave out, or refuse, what is in two splits or twice in verify; then check that what stays can be used.

        Raises EdgekitError for what `data.near_duplicates` refuses, and for splits without rows, classes or labels.
        """
        if self._recipe.data.group:
            self._separate_groups()
        for name in (name for name in (RECOVER, *JUDGING) if name in self.rows):
            self._drop_contradictions(name)
            self._drop_repeats(name)
        self._separate()
        self._count_contradictions()
        if self._recipe.data.label:
            self._drop_rare()
        for name in self.rows:
            self._check_split(name)
        if self._recipe.data.label:
            self._check_labels()

    def _refuses(self, name: str) -> bool:
        """Whether what a split has twice, or another has too, is refused; else it is left out."""
        return name != RECOVER and self._recipe.data.near_duplicates == "refuse"

    def notes(self) -> list[str]:
        """What was left out and what is unusual, a line for each split."""
        lines = []
        for name, counts in self.dropped.items():
            if counts.total():
                told = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
                lines.append(f"{name}: {counts.total()} rows left out ({told}); {len(self.rows[name])} stay")
        for name, counts in self.unusual.items():
            lines += [f"{name}: {count} rows {reason}" for reason, count in sorted(counts.items())]
        return lines

    def _keep(self, name: str, doomed: set[int], reason: str) -> None:
        """Leave out the rows of a split at these indices."""
        if doomed:
            self.dropped[name][reason] += len(doomed)
            rows = self.rows[name]
            self.rows[name] = choose(rows, (index for index in range(len(rows)) if index not in doomed))

    def _labelled(self, name: str) -> Sequence[Labelled]:
        """The texts of a split with what they must agree in to be nearly one: their label, or a short answer."""
        answers = self._recipe.task == "text-generation"
        return derive(self.rows[name], _by_answer if answers else _by_label)

    def _contradicting(self, name: str) -> list[list[tuple[int, Prompt]]]:
        """The rows of a split with the same text, together with their indices, where their labels differ.

        Of each row two hashes of 8 bytes are held, the texts of those alone that seem to differ by them.
        """
        texts, labels, groups = array("q"), array("q"), defaultdict[str, dict[str, list[tuple[int, Prompt]]]](dict)
        for text, label in self._labelled(name):
            texts.append(0 if label is None else hash(normalized(text)))
            labels.append(hash(label))
        twice = _of_several(texts, labels)
        for index, found in enumerate(texts if twice else ()):
            if found in twice and (label := self._labelled(name)[index][1]) is not None:
                row = self.rows[name][index]
                groups[normalized(row.text)].setdefault(label, []).append((index, row))
        return [[pair for rows in group.values() for pair in rows] for group in groups.values() if len(group) > 1]

    @property
    def _masks_unlabelled(self) -> bool:
        """Whether texts without a label that differ by numbers are one: not where the number may be what is asked."""
        return self._recipe.task != "text-generation"

    def _separate_groups(self) -> None:
        names = list(self.rows)
        for index, earlier in enumerate(names):
            later = {row.group for name in names[index + 1 :] for row in self.rows[name]} - {None}
            shared = [place for place, row in enumerate(self.rows[earlier]) if row.group in later]
            if shared and self._refuses(earlier):
                first = self.rows[earlier][shared[0]]
                raise EdgekitError(
                    f"{self._recipe.path}: data.group: {len(shared)} rows of {earlier} are of groups that a later split has"
                    f" too, such as row {first.row} of group {first.group!r}; keep each group in one split, or set {_DROP} to"
                    f" drop those rows from {earlier}"
                )
            self._keep(earlier, set(shared), "of groups that another split has")

    def _drop_contradictions(self, name: str) -> None:
        """Of a text of a split that judges whose copies have different labels none stays, as none is known right."""
        conflicts = self._contradicting(name)
        if conflicts and self._refuses(name):
            first = conflicts[0][0][1]
            second = next(row for _, row in conflicts[0] if row.label != first.label)
            raise EdgekitError(
                f"{self._where[name]}: {name} has {len(conflicts)} texts with two labels, such as row {first.row}"
                f" ({first.text!r}) and row {second.row} ({second.text!r}) with the labels {first.label!r} and"
                f" {second.label!r}; nobody knows which is right: mend them, or set {_DROP} to drop them"
            )
        self._keep(name, {index for group in conflicts for index, _ in group}, "with contradicting labels")

    def _drop_repeats(self, name: str) -> None:
        """Texts that a judging split has more than once would count as independent prompts in every bound: the first stays."""
        found = repeats(self._labelled(name), masks_unlabelled=self._masks_unlabelled)
        if found and self._refuses(name):
            later, earlier = next(iter(found.items()))
            first, second = self.rows[name][earlier], self.rows[name][later]
            raise EdgekitError(
                f"{self._where[name]}: {name} has {len(found)} texts that repeat another of its texts {_NEARLY}, such as"
                f" row {first.row} ({first.text!r}) and row {second.row} ({second.text!r}); repeated texts prove nothing twice:"
                f" remove them, or set {_DROP} to drop them"
            )
        self._keep(name, set(found), "near duplicates")

    def _separate(self) -> None:
        """Texts of earlier splits that a later one has too; the later keeps its own."""
        names = list(self.rows)
        for place, earlier in enumerate(names):
            for later in names[place + 1 :]:
                found = near_copies(
                    self._labelled(earlier), self._labelled(later), masks_unlabelled=self._masks_unlabelled
                )
                if found and self._refuses(earlier):
                    places = next(iter(found.items()))
                    first, second = self.rows[earlier][places[0]], self.rows[later][places[1]]
                    raise EdgekitError(
                        f"{self._recipe.path}: data: {len(found)} texts of {earlier} are (nearly) in {later} too, {_NEARLY}, the"
                        f" first: {first.text!r} (row {first.row}) and {second.text!r} (row {second.row}); remove them, or set"
                        f" {_DROP} to drop them from {earlier}"
                    )
                self._keep(earlier, set(found), "near duplicates")

    def _count_contradictions(self) -> None:
        """Texts that train or calibrate have with two labels stay: both are taught."""
        for name in self.rows:
            count = sum(len(group) for group in self._contradicting(name))
            if count:
                self.unusual[name]["whose text other rows have with another label"] += count

    def _drop_rare(self) -> None:
        """Labels of fewer rows than `data.min_per_label`, or that a split has none of, where that key is given; rows of the
        recovery split do not count, so that a file of them changes no other split."""
        least = self._recipe.data.min_per_label
        if least is None:
            return
        needed = [rows for name, rows in self.rows.items() if name != RECOVER]
        counts = Counter(row.label for rows in needed for row in rows)
        everywhere = set.intersection(*({row.label for row in rows} for rows in needed))
        found = {row.label for rows in self.rows.values() for row in rows}
        rare = {label for label in found if counts[label] < least or label not in everywhere}
        rare -= {self._recipe.data.out_of_scope}
        for name, rows in self.rows.items():
            self._keep(name, {index for index, row in enumerate(rows) if row.label in rare}, "of rare labels")

    def _check_split(self, name: str) -> None:
        rows, data, told = self.rows[name], self._recipe.data, self._told(name)
        where = self._where[name]
        if not rows:
            share = "data.recover" if name == RECOVER else "data.split"
            raise EdgekitError(f"{where}: the {name} split has no rows{told}; add some, or a larger share of {share}")
        if not data.label:
            return
        counts = Counter(row.label for row in rows if row.label != data.out_of_scope)
        if len(counts) < 2:
            only = f"only the class {next(iter(counts))!r}" if counts else "no class"
            raise EdgekitError(
                f"{where}: {data.label}: the {name} split has {only}{told}; a classifier needs at least two"
            )
        folded: dict[str, str] = {}
        for label in sorted(str(label) for label in counts):
            twin = folded.setdefault(label.casefold().strip(), label)
            if twin != label:
                raise EdgekitError(
                    f"{where}: labels {twin!r} and {label!r} differ by case or spaces only; make them one, here or with"
                    " data.labels"
                )

    def _told(self, name: str) -> str:
        count = self.dropped[name].total()
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self.dropped[name].items()))
        return f" after {count} rows were left out ({reasons})" if count else ""

    def _check_labels(self) -> None:
        """Every split has every label where something is trained; a rejected label is there where the recipe names one."""
        every = {name: {str(row.label) for row in part} for name, part in self.rows.items()}
        rejected = self._recipe.data.out_of_scope
        for name in (name for name in self.rows if name != RECOVER):
            if rejected is not None and rejected not in every[name]:
                known = nearest(rejected, every[name])
                raise EdgekitError(
                    f"{self._recipe.path}: data.out_of_scope: no row of the {name} split has the label"
                    f" {rejected!r}{self._told(name)}{known}"
                )
            for other in self.rows:
                missing = sorted(every[other] - every[name])
                if missing and "train" in self.rows:
                    raise EdgekitError(self._lacking(name, other, missing))

    def _lacking(self, name: str, other: str, missing: Sequence[str]) -> str:
        counts = Counter(row.label for rows in self.rows.values() for row in rows)
        shown = ", ".join(f"{label!r} {counts[label]}" for label in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return (
            f"{self._recipe.path}: data: the {name} split lacks the label {missing[0]!r} that {other} has{self._told(name)};"
            f" every split needs every label. Labels that it lacks, with their rows in all: {shown}{more}. Add rows, or set"
            f" data.min_per_label = {len(self.rows)} to leave out labels of fewer rows"
        )


def _by_label(row: Prompt) -> Labelled:
    return row.text, row.label


def _by_answer(row: Prompt) -> Labelled:
    return row.text, row.label if row.label is not None and len(row.label.split()) <= _SHORT_ANSWER else None


def _of_several(texts: array[int], labels: array[int]) -> set[int]:
    """The hashes of texts that are there with several labels, by the labels' hashes."""
    import numpy as np

    pairs = np.unique(np.stack([np.asarray(texts), np.asarray(labels)]), axis=1)[0]
    return set(pairs[1:][pairs[1:] == pairs[:-1]].tolist())
