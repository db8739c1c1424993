"""The command that uses a bundle: `run`, answers to texts or a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.options import json_option
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.bundle.open import Speaker
    from edgekit.pipeline import Conversation


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1)
@click.option(
    "--file", "file", type=click.Path(path_type=Path), help="A file with one text a line; - for standard input."
)
@click.option("--prompt", help="Of a model that embeds: which of its prompts comes before each text, by name.")
@click.option(
    "--suffix", help="Of a code model in a GGUF file: what comes behind; it fills in what is missing between."
)
@click.option("--system", help="What a model that talks is told before the conversation.")
@click.option("--most", type=click.IntRange(min=1), help="The most tokens of an answer that is generated.")
@click.option("--temperature", type=click.FloatRange(min=0.0), default=0.0, show_default=True,
              help="Of generated answers; 0 takes the likeliest token each time.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Threads, in place of the bundle's own.")
@click.option("--tuning/--no-tuning", default=True,
              help="Whether to take the best setting where NAME.tuning.json beside the bundle is of this machine.")  # fmt: skip
@json_option
def run(
    bundle: Path, text: tuple[str, ...], file: Path | None, prompt: str | None, suffix: str | None, system: str | None,
    most: int | None, temperature: float, threads: int | None, tuning: bool, as_json: bool,
) -> None:  # fmt: skip
    """Answer texts with a bundle, through the loader that ships in it; a model that generates streams its answers.

    On a terminal and without a text, a model that generates talks with you; an empty line or Ctrl-D ends it.

    \b
    Examples:
      edgekit run dist/assistant-raspberrypi "turn on the kitchen light"
      edgekit run dist/assistant-raspberrypi --file texts.txt --json
      edgekit run dist/search-raspberrypi --prompt query "where is my parcel"
      edgekit run dist/stories-raspberrypi "Once upon a time" --most 100
      edgekit run dist/code-laptop-cpu "def add(a, b):" --suffix "    return total"
    """
    from edgekit import pipeline as spine
    from edgekit.cli.terminal import print_json

    if text and file:
        raise click.UsageError("Give texts or --file, not both.")
    for given in (*text, system or "", suffix or ""):
        _check_utf8(given)
    speaker = spine.open_speaker(bundle, threads=threads, tuned=tuning)
    _check_options(speaker, prompt, system, generates=most is not None or bool(temperature))
    _check_suffix(speaker, suffix, system)
    if speaker is None:
        texts = _texts(text, file)
        answers = spine.run(bundle, texts, prompt=prompt, threads=threads, tuned=tuning)
        if not as_json:
            for asked, answer in zip(texts, answers, strict=True):
                click.echo(f"{_format_answer(answer)}\t{asked}")
    else:
        options: dict[str, object] = {"temperature": temperature, **({"max_tokens": most} if most else {})}
        if not (text or file or as_json or suffix) and sys.stdin.isatty():
            _talk(speaker, system, options)
            return
        texts = _texts(text, file)
        answers = []
        for asked in texts:
            if len(texts) > 1 and not as_json:
                click.echo(_quoted(asked, first=not answers))
            said = _asked(speaker, asked, system) if suffix is None else spine.between(speaker, asked, suffix)
            answers.append(_say(speaker, said, options, quiet=as_json))
    if as_json:
        print_json(
            {"answers": [{"text": asked, "answer": answer} for asked, answer in zip(texts, answers, strict=True)]}
        )


def _check_options(speaker: Speaker | None, prompt: str | None, system: str | None, *, generates: bool) -> None:
    """Whether the options are for such a model: `speaker` is None of one that does not generate."""
    if speaker is None and (system is not None or generates):
        raise click.UsageError("--system, --most and --temperature are for models that generate; this one does not.")
    if speaker is not None and prompt is not None:
        raise click.UsageError("--prompt is for models that embed; this one generates.")
    if speaker is not None and system is not None and not speaker.chats:
        raise click.UsageError("--system is for models with a chat template; this one continues a text.")


def _check_suffix(speaker: Speaker | None, suffix: str | None, system: str | None) -> None:
    """Whether what is behind a missing middle can be given: to a GGUF file, whose loader knows the tokens for it."""
    if suffix is None:
        return
    if speaker is None or not hasattr(speaker, "llama"):
        raise click.UsageError("--suffix is for models that generate, in a GGUF file; this is no such bundle.")
    if system is not None:
        raise click.UsageError("Give --suffix or --system, not both: what is missing in a text is no conversation.")


def _asked(speaker: Speaker, text: str, system: str | None) -> str | Conversation:
    if not speaker.chats:
        return text
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": text}]


def _quoted(text: str, *, first: bool) -> str:
    """A text above its answer, with an empty line to the answer before."""
    return ("" if first else "\n") + click.style("\n".join(f"> {line}" for line in text.split("\n")), bold=True)


def _say(speaker: Speaker, asked: str | Conversation | list[int], options: dict[str, object], *, quiet: bool) -> str:
    """The answer, written piece by piece as it comes."""
    from edgekit.pipeline import speak

    pieces = []
    for piece in speak(speaker, asked, options):
        pieces.append(piece)
        if not quiet:
            click.echo(piece, nl=False)
    if not quiet:
        click.echo()
    return "".join(pieces)


def _talk(speaker: Speaker, system: str | None, options: dict[str, object]) -> None:
    """A conversation on the terminal; each answer sees all that was said before."""
    conversation = [{"role": "system", "content": system}] if system is not None else []
    while True:
        try:
            text = click.prompt(click.style("you", bold=True), prompt_suffix="> ", default="", show_default=False)
        except click.Abort:
            text = ""
        if not text:
            return
        if not speaker.chats:
            click.echo(text, nl=False)
            _say(speaker, text, options, quiet=False)
            continue
        conversation.append({"role": "user", "content": text})
        conversation.append({"role": "assistant", "content": _say(speaker, conversation, options, quiet=False)})


def _texts(text: tuple[str, ...], file: Path | None) -> list[str]:
    from edgekit.schema import read_text

    if text:
        return list(text)
    if file and str(file) != "-":
        return _lines(read_text(file))
    if not sys.stdin.isatty() or file:
        return _lines(_read_input())
    raise click.UsageError("Give a text, --file, or texts on standard input.")


def _check_utf8(text: str) -> None:
    """Python gives bytes of the command line that are no UTF-8 as halves of characters, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as bad:
        byte = ord(bad.object[bad.start]) & 0xFF
        shown = text.encode("utf-8", "replace").decode()
        raise EdgekitError(f"{shown}: byte 0x{byte:02x} is not UTF-8; give UTF-8, or texts in a file (--file)") from bad


def _read_input() -> str:
    """Standard input as UTF-8, whatever the locale; on Windows sys.stdin would decode it by the code page."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        byte = bad.object[bad.start]
        raise EdgekitError(f"standard input: byte {bad.start} (0x{byte:02x}) is not UTF-8; send UTF-8") from bad


def _lines(text: str) -> list[str]:
    """The texts of a file, one a line. Not splitlines: a text may hold U+2028 or U+0085."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _format_answer(answer: object) -> str:
    if isinstance(answer, dict) and "label" in answer:
        return f"{answer['label']}\t{answer['score']:.3f}"
    assert isinstance(answer, list)
    values = answer
    return f"[{', '.join(f'{value:.4f}' for value in values[:4])}, ...] ({len(values)} numbers)"
