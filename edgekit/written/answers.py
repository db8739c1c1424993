"""Answers of a decoder that is asked on this machine: the teacher, a checkpoint, or a GGUF file."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgekit.errors import EdgekitError, Unfinished
from edgekit.inputs import Content
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt
from edgekit.written.decoders import Sampling, check_file, open_decoder, say
from edgekit.written.journal import Journal, Written
from edgekit.written.questions import read_questions

ANSWERING = "answers"


@dataclass(frozen=True, kw_only=True)
class AnswersInputs:
    """What `write` is given: a writer (a checkpoint's folder, or a .gguf file), and the questions of the train split, each of
    which it answers `samples` times."""

    STEP: ClassVar[str] = "answers"
    writer: Content
    prompts: Content
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    begin: float
    seed: int
    llama: str | None = None
    """The version of llama.cpp, where that reads the writer."""


def write(inputs: AnswersInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Have the writer answer each question, into `out`; answers that are there already are kept.

    Every answer is drawn by its own number, so that a kill changes no byte. Raises EdgekitError where the writer cannot be run,
    and Unfinished where it cannot answer a prompt.
    """
    place, journal = inputs.writer.path, Journal(out, Written)
    questions = read_questions(inputs.prompts.path, inputs.begin)[0]
    places = [(index, sample) for index in range(len(questions)) for sample in range(inputs.samples)]
    sampling = Sampling(temperature=inputs.temperature, top_p=inputs.top_p, max_tokens=inputs.max_tokens)
    left = [one for one in places if one not in journal.found]
    progress(len(journal.found), len(places), ANSWERING)
    if left and place.is_file():
        check_file(place)
    if left:
        with closing(open_decoder(place)) as decoder:
            for index, sample in left:
                prompt = Prompt(**vars(questions[index]))
                try:
                    written = say(decoder, prompt, sampling, (inputs.seed, index, sample))
                except EdgekitError as failed:
                    kept = f"{len(journal.found)} of {len(places)} answers are kept"
                    raise Unfinished(f"{place}: {failed.message}; {kept}") from failed
                journal.add((index, sample), written)
                progress(len(journal.found), len(places), ANSWERING)
    journal.finish()
    return {"asked": len(questions), "answers": len(places)}
