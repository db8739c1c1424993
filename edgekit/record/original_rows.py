"""What a checkpoint's owner gets: the ids of AutoTokenizer and the answers of transformers' `pipeline`, or of
sentence-transformers' `encode`, on the verify prompts, compared with what edgekit's own float model read and answered.

Texts of like length are asked together, so that nothing is padded: a text is answered as it is alone. Where both read the
same, the owner's answers are the reference, and edgekit's own model need not answer every prompt again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import first_line
from edgekit.modalities.encoded import same_reading
from edgekit.modalities.text import IDS, of_tokens
from edgekit.model import load_model
from edgekit.owners_tokenizer import quiet
from edgekit.reference import OwnersRows
from edgekit.tasks.padding import find_pad_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.modalities.encoded import Arrays

    Floats = NDArray[np.float32]

# Scores, and distances of embeddings as shares of their length, that differ by less differ by rounding: float32 has 1.2e-7, and
# another order of the sums of a dozen blocks makes 1e-6 to 1e-5 of it.
TOLERANCE = 1e-3
# How many prompts edgekit's own model answers too, where the owner's answers are recorded: of all lengths that there are.
COMPARED = 64
# How much of a text a message shows.
_SHOWN = 60
# What the libraries raise where they cannot read a checkpoint.
_REFUSALS = (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, IndexError)


@dataclass(frozen=True, kw_only=True)
class Original:
    """What the owner's library reads and answers: inputs per prompt, answers [n, width] (None where only inputs are known).

    outputs: what edgekit's module of the task should give, [n, width]: the logits behind the answers, or the embeddings. failed:
    why the library could not be asked; then there are no prompts.
    """

    by: str | None = None
    prompts: Sequence[Arrays] = ()
    answers: Floats | None = None
    outputs: Floats | None = None
    limits: str | None = None
    failed: str | None = None


def ask(
    folder: Path,
    task: str,
    texts: Sequence[str],
    *,
    max_length: int,
    classes: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> Original:
    """The owner's library on the texts; progress: called with the number of texts that are answered."""
    try:
        with quiet():
            return OWNERS[task](folder, texts, max_length, classes, progress)
    except _REFUSALS as refused:
        return Original(failed=f"{type(refused).__name__}: {first_line(refused)[:300]}")


def spread(sizes: Sequence[int]) -> list[int]:
    """The indices of at most COMPARED prompts of these sizes, evenly from the largest to the smallest."""
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    if len(order) <= COMPARED:
        return order
    return [order[step * (len(order) - 1) // (COMPARED - 1)] for step in range(COMPARED)]


def stand_in(found: Original, prompts: Sequence[Arrays], places: Sequence[int], outputs: Floats) -> Floats | None:
    """The owner's outputs, where both read all prompts alike and so are edgekit's outputs at `places`; else None."""
    if (
        found.outputs is None
        or len(prompts) != len(found.prompts)
        or not all(map(same_reading, prompts, found.prompts))
    ):
        return None
    return found.outputs if all(_alike(outputs, found.outputs[list(places)])) else None


def compare(
    found: Original, texts: Sequence[str], *, prompts: Sequence[Arrays], answers: Floats, compared: int
) -> OwnersRows:
    """How what edgekit reads of the texts and answers differs from the owner's.

    answers: of text-classification probabilities [n, classes], of feature-extraction embeddings [n, width]; compared: on how many
    texts they are edgekit's own.
    """
    if found.failed is not None:
        return OwnersRows(
            by=None,
            rows=len(texts),
            ids_equal=None,
            answers_equal=None,
            first=None,
            failed=found.failed,
            limits=None,
            compared=compared,
        )
    same_ids = [same_reading(ours, theirs) for ours, theirs in zip(prompts, found.prompts, strict=True)]
    same = [True] * len(texts) if found.answers is None else _alike(answers, found.answers)
    differs = next((index for index in range(len(texts)) if not (same_ids[index] and same[index])), None)
    return OwnersRows(
        by=found.by,
        rows=len(texts),
        ids_equal=sum(same_ids),
        answers_equal=None if found.answers is None else sum(same),
        first=None
        if differs is None
        else _difference(texts[differs], prompts[differs], found, answers, differs, same_ids[differs]),
        failed=None,
        limits=found.limits,
        compared=compared,
    )


def _alike(ours: Floats, theirs: Floats) -> list[bool]:
    """Of each row whether it differs by no more than rounding."""
    import numpy as np

    if ours.shape != theirs.shape:
        return [False] * len(theirs)
    apart = np.linalg.norm(ours - theirs, axis=1)
    return [
        bool(one <= TOLERANCE * max(float(size), 1e-6))
        for one, size in zip(apart, np.linalg.norm(theirs, axis=1), strict=True)
    ]


def _difference(text: str, prompt: Arrays, found: Original, answers: Floats, place: int, same: bool) -> str:
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    if not same:
        return f"{shown}: edgekit reads {_short(prompt)}, {found.by} {_short(found.prompts[place], named=False)}"
    assert found.answers is not None
    ours, theirs = answers[place], found.answers[place]
    if ours.shape != theirs.shape:
        return f"{shown}: edgekit gives {len(ours)} numbers, {found.by} {len(theirs)}"
    worst = int(abs(ours - theirs).argmax())
    return f"{shown}: number {worst} of the answer is {ours[worst]:.4f}, of {found.by} {theirs[worst]:.4f}"


def _short(prompt: Arrays, *, named: bool = True) -> str:
    """The first values of a prompt's first input."""
    name, array = next(iter(prompt.items()))
    values = array.ravel().tolist()
    shown = str(values) if len(values) <= 12 else f"[{', '.join(map(str, values[:12]))}, ...] ({len(values)})"
    return f"{'the ids' if name == IDS else name} {shown}" if named else shown


def _classified(
    folder: Path, texts: Sequence[str], max_length: int, classes: Sequence[str], progress: Callable[[int], None] | None
) -> Original:
    """`pipeline(..., truncation=True, max_length=...)`: the probability of each class, and the logits of its model."""
    import numpy as np
    import torch
    import transformers

    from edgekit.tasks import ngrams

    ngrams.register()
    here: dict[str, object] = {"local_files_only": True, "trust_remote_code": False}
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, **here
    )
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **here)
    asked: Any = transformers.pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None
    )
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"] if texts else []
    logits: list[Floats] = []
    model.register_forward_hook(lambda _module, _inputs, given: logits.append(given.logits.float().numpy()))

    def answer(some: list[str]) -> Floats:
        logits.clear()
        told = asked(some, truncation=True, max_length=max_length, batch_size=32)
        scores = [{entry["label"]: entry["score"] for entry in one} for one in told]
        probabilities = np.array([[one.get(name, np.nan) for name in classes] for one in scores], dtype=np.float32)
        return np.concatenate([probabilities, *([np.concatenate(logits)] if logits else [])], axis=1)

    both = _together(texts, ids, answer, progress)
    return Original(
        by=f"transformers {transformers.__version__}",
        prompts=_prompts(folder, ids),
        answers=both[:, : len(classes)],
        outputs=both[:, len(classes) :],
    )


def _embedded(
    folder: Path, texts: Sequence[str], max_length: int, _classes: Sequence[str], progress: Callable[[int], None] | None
) -> Original:
    """`SentenceTransformer.encode`, where the library is installed; else AutoTokenizer's ids, behind the prompt."""
    from edgekit.embedding_files import read_embedding
    from edgekit.tasks import feature_extraction

    if importlib.util.find_spec("sentence_transformers") is None:
        import transformers

        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        length = feature_extraction.length(feature_extraction.open_model(folder), max_length)
        before = read_embedding(folder).prompt
        ids = tokenizer([before + text for text in texts], truncation=True, max_length=length)["input_ids"]
        limits = (
            "sentence-transformers is not installed: of the embeddings, edgekit's own reading of modules.json is used"
        )
        by = f"transformers {transformers.__version__}"
        return Original(by=by, prompts=_prompts(folder, ids), answers=None, limits=limits)
    import sentence_transformers
    import torch

    model: Any = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, trust_remote_code=False, model_kwargs={"dtype": torch.float32}
    )
    model.max_seq_length = min(model.max_seq_length or max_length, max_length)
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    ids = [model.preprocess([text], prompt=prompt)["input_ids"][0].tolist() for text in texts]
    answer: Callable[[list[str]], Floats] = lambda some: model.encode(some, batch_size=32, show_progress_bar=False)  # noqa: E731
    named = f"sentence-transformers {sentence_transformers.__version__}"
    answers = _together(texts, ids, answer, progress)
    return Original(by=named, prompts=_prompts(folder, ids), answers=answers, outputs=answers)


def _prompts(folder: Path, ids: Sequence[Sequence[int]]) -> Sequence[Arrays]:
    """Token ids as a checkpoint's model is given them."""
    return of_tokens(ids, find_pad_id(load_model(folder))).prompts


def _together(
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    answer: Callable[[list[str]], Floats],
    progress: Callable[[int], None] | None,
) -> Floats:
    """Answers [n, width] in the order of the texts, asked in groups that have as many tokens each."""
    import numpy as np

    groups: dict[int, list[int]] = {}
    for place, tokens in enumerate(ids):
        groups.setdefault(len(tokens), []).append(place)
    rows: dict[int, Floats] = {}
    for _, places in sorted(groups.items()):
        rows |= zip(places, answer([texts[place] for place in places]), strict=True)
        if progress:
            progress(len(rows))
    return (
        np.stack([rows[place] for place in range(len(texts))]).astype(np.float32)
        if rows
        else np.zeros((0, 0), np.float32)
    )


# The owner's library of a checkpoint, by task.
OWNERS: dict[str, Callable[[Path, Sequence[str], int, Sequence[str], Callable[[int], None] | None], Original]] = {
    "text-classification": _classified,
    "feature-extraction": _embedded,
}
