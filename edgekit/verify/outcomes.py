"""What verify keeps of each prompt's answer, for `edgekit diff`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.evidence import finite
from edgekit.outcomes import FILE, Outcomes
from edgekit.prompts import Prompt
from edgekit.verify import clusters
from edgekit.workspace import fingerprint, write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.verify.generation import Judged
    from edgekit.verify.recorded import Recorded
    from edgekit.verify.run import Run

# 64 bits: among a million prompts two are alike by chance once in 4e7 sets.
_DIGITS = 16


def keep_labels(run: Run, prompts: Sequence[Prompt], labels: Sequence[str]) -> None:
    """Write outcomes.json of a classifier; nothing of what gives no labels."""
    if not labels:
        return
    right = [None if row.label is None else row.label == label for row, label in zip(prompts, labels, strict=True)]
    _write(run, prompts, right, answers=tuple(labels))


def keep_tokens(
    run: Run, prompts: Sequence[Prompt], recorded: Recorded, arrays: Mapping[str, NDArray[Any]], judged: Judged
) -> None:
    """Write outcomes.json of a decoder; a prompt of several passages has the sums of all."""
    import numpy as np

    lengths = np.diff(recorded.arrays["offsets"]) - recorded.arrays["starts"]
    owners = np.repeat(recorded.arrays["prompts"], lengths)
    nats = np.bincount(owners, weights=arrays["nll"][: len(owners)].astype(np.float64), minlength=len(prompts))
    counts = np.bincount(owners, minlength=len(prompts))
    answered = dict(zip(judged.asked, judged.right, strict=True))
    _write(
        run,
        prompts,
        [answered.get(index) for index in range(len(prompts))],
        nats=tuple(finite(round(float(value), 6)) for value in nats),
        tokens=tuple(counts.tolist()),
    )


def _write(run: Run, prompts: Sequence[Prompt], right: Sequence[bool | None], **more: Any) -> None:
    said = [json.dumps({**prompt.facts(), "group": None}, sort_keys=True) for prompt in prompts]
    # Each is there once in what `gather` made; of other folders a prompt may come again, and is then another one.
    before = Counter[str]()
    hashes = []
    for text in said:
        hashes.append(fingerprint([text, before[text]])[:_DIGITS])
        before[text] += 1
    groups = clusters.indices([prompt.group for prompt in prompts]).tolist()
    outcomes = Outcomes(
        artifact=run.artifact.file.sha256, prompts=tuple(hashes), groups=tuple(groups), right=tuple(right), **more
    )
    write_atomically(run.out / FILE, outcomes.to_json())
