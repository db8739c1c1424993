"""Answers that a language model writes to the train prompts: asked once, sifted, and then the train split of what learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edgekit.errors import EdgekitError
from edgekit.inputs import Content
from edgekit.pipeline.origin import model_content, split_content, with_read
from edgekit.pipeline.plan import Session, is_made, run_step
from edgekit.progress import Progress
from edgekit.recipe import Answers, Recipe
from edgekit.workspace import Product, file_sha256, installed_version

if TYPE_CHECKING:
    from edgekit.written.answers import AnswersInputs
    from edgekit.written.endpoint import AskedInputs, Manners

# The keys of a product of prompts whose train split was written: the hash of the train split as it was given; who wrote it.
_GIVEN, _WRITTEN = "given", "written"


def answered(recipe: Recipe, teacher: Path, prompts: Product, session: Session) -> Product:
    """The prompts with the answers that the recipe asks for as their train split; as they are where it asks for none.

    Says how many answers teach, and why others do not. Raises EdgekitError where nobody answers, or no answer can teach.
    """
    if recipe.answers is None or _GIVEN in prompts.facts:
        return prompts
    from edgekit.written.sift import Sifting, describe, sift

    asked = recipe.answers
    _check_table(recipe, asked, f"{recipe.path}: answers")
    product = _written(recipe, asked, teacher, prompts, session)
    by = _name(recipe, asked, product)
    sifting = Sifting(**{key: getattr(asked, key) for key in Sifting.__dataclass_fields__})

    def make(out: Path) -> dict[str, object]:
        found = sift(prompts.folder, product.folder, sifting, out)
        (out / _GIVEN).mkdir()
        shutil.copyfile(prompts.folder / "train.jsonl", out / _GIVEN / "train.jsonl")
        note = describe(found, by)
        return {
            **prompts.facts,
            "rows": {**prompts.facts["rows"], "train": found["rows"]},
            "notes": [*prompts.facts["notes"], note],
            _GIVEN: prompts.manifest["files"]["train.jsonl"]["sha256"],
            _WRITTEN: {"by": by, **found},
            **({"read": product.facts["read"]} if "read" in product.facts else {}),
        }

    # Beside it lies the split as it was given: a teacher is trained on that, whoever asks for one.
    inputs = {"prompts": prompts.digest, "answers": product.digest, "sifting": vars(sifting), "by": by}
    made = session.workspace.once("answered", inputs, make)
    session.listener.say(f"data: {made.facts['notes'][-1]} (all: {product.folder / 'written.jsonl'})")
    return made


def as_given(prompts: Product) -> Content:
    """The train split as the data has it, which is what a teacher is trained on, as an input."""
    if _GIVEN in prompts.facts:
        return Content(path=prompts.folder / _GIVEN, digest={"train": str(prompts.facts[_GIVEN])})
    return split_content(prompts, "train")


def writer(prompts: Product) -> tuple[Product, ...]:
    """What has read texts of its own for a train split that was written: those who learn from it have read them, too."""
    return (prompts,) if "read" in prompts.facts else ()


def provenance(prompts: Product) -> str | None:
    """Who wrote how many answers of the train split; None where nobody did."""
    told = prompts.facts.get(_WRITTEN)
    return None if told is None else f"{told['kept']} answers by {told['by']}"


def check_answers(recipe: Recipe, prompts: Product, session: Session) -> None:
    """Refuse, before anything is made, what could not be asked: a key that is not there, a file that llama.cpp cannot run."""
    asked = recipe.answers
    if asked is None:
        return
    _check_table(recipe, asked, f"{recipe.path}: answers")
    if asked.by == "teacher":
        return
    if asked.is_endpoint:
        if not is_made(session, _endpoint_inputs(recipe, asked, prompts)):
            from edgekit.written.endpoint import is_open

            if _manners(recipe, asked).key is not None and is_open(asked.by):
                session.listener.say(f"note: {asked.by}: the key goes there unencrypted; https keeps it to itself")
        return
    check_writer(recipe.locate(asked.by), f"{recipe.path}: answers.by")


def _check_table(recipe: Recipe, answers: Answers, where: str) -> None:
    if recipe.task != "text-generation":
        raise EdgekitError(
            f"{where}: answers are written for text-generation, not for {recipe.task}; remove this table"
        )
    if recipe.student is None and recipe.qad is None:
        raise EdgekitError(f"{where}: nothing learns from them; add a [student] or [qad] table, or remove this one")
    if answers.samples > 1 and answers.temperature == 0:
        raise EdgekitError(
            f"{where}.temperature: 0 writes the same answer {answers.samples} times; give one above 0, or samples = 1"
        )
    if answers.longest is not None and answers.longest < answers.shortest:
        raise EdgekitError(f"{where}.longest: {answers.longest}: shorter than shortest ({answers.shortest})")
    if not answers.is_endpoint:
        for key in ("model", "key_variable"):
            if getattr(answers, key) is not None:
                raise EdgekitError(f"{where}.{key}: of an endpoint alone; remove it, or give its URL as answers.by")
        return
    if answers.model is None:
        raise EdgekitError(f"{where}.model: missing key; name the model that the endpoint is to answer with")
    if fault := _url_fault(answers.by):
        raise EdgekitError(f"{where}.by: {fault}")


def _url_fault(url: str) -> str | None:
    """What is wrong with an endpoint's URL, in words that show no secret of it; None where it can be used."""
    try:
        parts = urlsplit(url)
        named = parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        return "not a URL; expected one such as https://HOST/v1"
    if parts.scheme not in {"http", "https"} or not named:
        return "not the URL of an endpoint; expected one such as https://HOST/v1"
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        return (
            "a key does not belong into a URL, which is written to files: name an environment variable as key_variable, and"
            " leave out what comes before @ or behind ? and #"
        )
    return None


def check_writer(place: Path, where: str) -> None:
    """Refuse a place that holds no decoder."""
    from edgekit.architectures import find_architecture, is_decoder
    from edgekit.formats.gguf.file import read_gguf
    from edgekit.model import load_model

    if not place.exists():
        raise EdgekitError(
            f"{where}: no such file or folder: {place}; give a checkpoint's folder or a .gguf file (answers.by also takes"
            ' "teacher" or the URL of an endpoint)'
        )
    if place.is_file():
        read_gguf(place)
        return
    model = load_model(place)
    if not is_decoder(find_architecture(model.architecture, str(place / "config.json"))):
        raise EdgekitError(f"{where}: {place} is an encoder, which writes no text; name a decoder")


def _written(recipe: Recipe, asked: Answers, teacher: Path, prompts: Product, session: Session) -> Product:
    """All answers, as they were written."""
    note = f"{prompts.facts['rows']['train']} prompts by {asked.model or asked.by}"
    if asked.is_endpoint:
        from edgekit.written.endpoint import ask

        def make(given: AskedInputs, out: Path, progress: Progress) -> dict[str, object]:
            return ask(given, out, progress, manners=_manners(recipe, asked))

        return run_step(session, _endpoint_inputs(recipe, asked, prompts), make, note=note)
    from edgekit.written.answers import write

    place = teacher if asked.by == "teacher" else recipe.locate(asked.by)
    sources = [] if place.is_file() else [place]
    return run_step(
        session, _inputs(recipe, asked, place, prompts), with_read(write, prompts, "train", *sources), note=note
    )


def _inputs(recipe: Recipe, asked: Answers, place: Path, prompts: Product) -> AnswersInputs:
    from edgekit.written.answers import AnswersInputs

    is_file = place.is_file()
    return AnswersInputs(
        writer=Content(path=place, digest=file_sha256(place)) if is_file else model_content(place),
        prompts=split_content(prompts, "train"),
        samples=asked.samples,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=asked.max_tokens,
        begin=asked.begin,
        seed=recipe.seed,
        llama=installed_version("llama-cpp-python") if is_file else None,
    )


def _endpoint_inputs(recipe: Recipe, asked: Answers, prompts: Product) -> AskedInputs:
    from edgekit.written.endpoint import AskedInputs

    return AskedInputs(
        prompts=split_content(prompts, "train"),
        url=asked.by,
        model=str(asked.model),
        samples=asked.samples,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=asked.max_tokens,
        begin=asked.begin,
        seed=recipe.seed,
    )


def _manners(recipe: Recipe, asked: Answers) -> Manners:
    from edgekit.written.endpoint import Manners, read_key

    return Manners(
        timeout=asked.timeout,
        retries=asked.retries,
        wait=asked.wait,
        parallel=asked.parallel,
        failures=asked.failures,
        key=read_key(asked.key_variable, f"{recipe.path}: answers"),
    )


def _name(recipe: Recipe, asked: Answers, product: Product) -> str:
    """Who wrote the answers, for people."""
    if asked.is_endpoint:
        told = ", ".join(name for name in product.facts["models"] if name != asked.model)
        return f"{asked.model}{told and f' ({told})'} at {asked.by}"
    digest = str(product.manifest["inputs"]["writer"])[:12]
    return f"the teacher ({digest})" if asked.by == "teacher" else f"{recipe.locate(asked.by).name} ({digest})"
