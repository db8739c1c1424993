"""Answers of an endpoint that speaks OpenAI's chat completions, over the standard library's HTTP.

The request and the answer are those of https://platform.openai.com/docs/api-reference/chat, as llama.cpp's server, vLLM and
Ollama speak them too. Nothing but the URL that the recipe names is asked: a redirect is an error, since it would send the key on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from threading import Event
from typing import ClassVar
from urllib.parse import urlsplit

from edgekit.errors import EdgekitError, Unfinished
from edgekit.inputs import Content
from edgekit.progress import Progress, silent
from edgekit.written.journal import Journal, Place, Written
from edgekit.written.questions import Question, read_questions

ASKING = "answers"
_PATH = "/chat/completions"
# An answer is text: what is larger is none. The longest pause between two tries, and the longest that a server may ask for.
_MOST_BYTES, _MOST_PAUSE, _MOST_ASKED_PAUSE = 16 << 20, 60.0, 300.0
# Statuses that another try may end otherwise: too early, too many requests, and what is the server's fault.
_AGAIN = frozenset({408, 409, 425, 429})
_SHOWN = 200
_FAILED = Written(answer=None, end="failed")


@dataclass(frozen=True, kw_only=True)
class AskedInputs:
    """What an endpoint is asked: each question of the train split `samples` times, with these settings."""

    STEP: ClassVar[str] = "asked"
    prompts: Content
    url: str
    model: str
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    begin: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How an endpoint is asked, which changes no answer: see `recipe.Answers`. key: the key itself, None where there is none."""

    timeout: float
    retries: int
    wait: float
    parallel: int
    failures: int
    key: str | None = field(default=None, repr=False)


class _Again(Exception):
    """A request that failed and may be tried again: why, and how many seconds the server asked to wait."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class _Stopped(Exception):
    """Another request has ended the step."""


def read_key(variable: str | None, where: str) -> str | None:
    """The key in an environment variable; EdgekitError, which never shows it, where there is none or it cannot be sent."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EdgekitError(
            f"{where}.key_variable: the environment variable {variable} is not set; set it to the endpoint's key"
        )
    if not key.isascii() or not key.isprintable():
        raise EdgekitError(
            f"{where}.key_variable: {variable} holds what no HTTP header can (line breaks, other letters than ASCII)"
        )
    return key


def ask(inputs: AskedInputs, out: Path, progress: Progress = silent, *, manners: Manners) -> dict[str, object]:
    """Ask an endpoint for every answer, into `out`; those that are there already are kept.

    Raises EdgekitError for what no other try would mend (a wrong key, an unknown model), and Unfinished, which keeps what was
    answered, where a request failed for good.
    """
    journal = Journal(out, Written)
    questions = read_questions(inputs.prompts.path, inputs.begin)[0]
    places = [(index, sample) for index in range(len(questions)) for sample in range(inputs.samples)]
    endpoint = _Endpoint(inputs, manners)
    # What failed before may be answered now.
    left = [place for place in places if journal.found.get(place, _FAILED).end == "failed"]

    def answer(place: Place) -> None:
        journal.add(place, endpoint.answer(questions[place[0]], place))

    def tell(done: int) -> None:
        progress(len(places) - len(left) + done, len(places), ASKING)

    try:
        _each(left, answer, tell, parallel=manners.parallel, stop=endpoint.stop)
    except EdgekitError as failed:
        count = sum(written.end != "failed" for written in journal.found.values())
        kept = f"{count} of {len(places)} answers are kept, and the same command goes on from there"
        raise Unfinished(f"{inputs.url}: {failed.message}; {kept}") from failed
    journal.finish()
    models = {written.model for written in journal.found.values() if written.model}
    return {"asked": len(questions), "answers": len(places), "models": sorted(models)}


def _each(
    places: list[Place],
    answer: Callable[[Place], None],
    tell: Callable[[int], None],
    *,
    parallel: int,
    stop: Callable[[], None],
) -> None:
    """Call `answer` for each place, so many at once; the first error ends it, once those that run have been answered."""
    waiting, answered = iter(places), 0
    tell(answered)
    with ThreadPoolExecutor(parallel) as pool:
        try:
            running: set[Future[None]] = {pool.submit(answer, place) for place in islice(waiting, parallel)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    one.result()
                answered += len(done)
                tell(answered)
                running |= {pool.submit(answer, place) for place in islice(waiting, len(done))}
        except BaseException:
            stop()
            raise


class _Endpoint:
    """Requests to one URL, with retries."""

    def __init__(self, inputs: AskedInputs, manners: Manners) -> None:
        self._inputs, self._manners = inputs, manners
        url = inputs.url.rstrip("/")
        self._url = url if url.endswith(_PATH) else url + _PATH
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if _is_here(str(urlsplit(self._url).hostname)):
            # No proxy knows this machine by that name.
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self._stopped, self._failed = Event(), 0

    def stop(self) -> None:
        """Have those that wait for another try give up."""
        self._stopped.set()

    def answer(self, question: Question, place: Place) -> Written:
        """One answer. One that fails for good has none, as long as so few do; else EdgekitError."""
        manners = self._manners
        body = json.dumps(self._body(question, place)).encode()
        for tried in range(manners.retries + 1):
            try:
                return self._request(body)
            except _Again as failed:
                why = failed
            if tried < manners.retries:
                pause = max(min(manners.wait * 2**tried, _MOST_PAUSE), why.pause)
                if self._stopped.wait(pause):
                    raise _Stopped from why
        self._failed += 1
        if self._failed > manners.failures:
            more = f" (and {self._failed - 1} others before)" if manners.failures else ""
            raise EdgekitError(
                f"no answer to prompt {place[0] + 1}{more} after {manners.retries + 1} tries: {why}; see whether the endpoint"
                " runs and what its log says, or change timeout, retries, wait, parallel or failures in [answers]"
            ) from why
        return _FAILED

    def _body(self, question: Question, place: Place) -> dict[str, object]:
        inputs = self._inputs
        # The same for the same place, so that servers that draw by it draw alike; of 31 bits, which all of them take.
        drawn = hashlib.sha256(f"{inputs.seed}:{place[0]}:{place[1]}".encode()).digest()
        body: dict[str, object] = {
            "model": inputs.model,
            "messages": question.conversation,
            "max_tokens": inputs.max_tokens,
            "temperature": inputs.temperature,
            "top_p": inputs.top_p,
            "seed": int.from_bytes(drawn[:4], "big") >> 1,
            "stream": False,
        }
        return body | ({"tools": question.tools} if question.tools else {})

    def _request(self, body: bytes) -> Written:
        """What the endpoint answers; _Again where another try may, EdgekitError where none will."""
        key, timeout = self._manners.key, self._manners.timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "edgekit"}
        request = urllib.request.Request(self._url, body, headers)  # noqa: S310 - the recipe's URL, of http or https
        if key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        end = time.monotonic() + timeout
        try:
            with self._opener.open(request, timeout=timeout) as response:
                content = _read(response, end)
        except urllib.error.HTTPError as refused:
            raise self._refusal(refused, end) from None
        except TimeoutError:
            raise _Again(f"no answer within {timeout:g} s") from None
        except (OSError, HTTPException, ValueError) as failed:
            reason = getattr(failed, "reason", failed)
            why = f"no answer within {timeout:g} s" if isinstance(reason, TimeoutError) else self._shown(str(reason))
            raise _Again(why or type(failed).__name__) from None
        return _read_answer(content, self._shown)

    def _refusal(self, refused: urllib.error.HTTPError, end: float) -> Exception:
        """The error that a status other than 200 is."""
        said = b""
        with suppress(OSError, HTTPException, ValueError, TimeoutError), refused:
            said = _read(refused, end)
        told = f"status {refused.code} ({self._shown(_message(said) or str(refused.reason))})"
        if 300 <= refused.code < 400:
            return EdgekitError(
                f"{told}: it sends requests elsewhere, where the key does not go; name the right URL as answers.by"
            )
        if refused.code in _AGAIN or refused.code >= 500:
            return _Again(told, _asked_pause(refused.headers.get("Retry-After")))
        remedy = {
            401: "see whether the environment variable of answers.key_variable holds its key",
            403: "see whether the environment variable of answers.key_variable holds its key",
            404: "see answers.by and answers.model",
        }
        return EdgekitError(
            f"{told}; {remedy.get(refused.code, 'what it says is wrong with the request, [answers] must mend')}"
        )

    def _shown(self, text: str) -> str:
        """What a server says, short and without the key, which some repeat."""
        line = " ".join(text.split())
        return (line.replace(self._manners.key, "***") if self._manners.key else line)[:_SHOWN]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the error that its status is."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Never goes there."""


def is_open(url: str) -> bool:
    """Whether what is sent to a URL may be read on its way: no TLS, and not to this machine."""
    return urlsplit(url).scheme == "http" and not _is_here(str(urlsplit(url).hostname))


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _read(response: HTTPResponse | urllib.error.HTTPError, end: float) -> bytes:
    """All that is sent, until a moment of the monotonic clock: a server that sends a byte now and then is as slow as one that
    sends none."""
    content = bytearray()
    while piece := response.read1(1 << 16):
        content += piece
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES >> 20} MB, which is no answer")
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(content)


def _read_answer(content: bytes, shown: Callable[[str], str]) -> Written:
    """The answer in what an endpoint sent; _Again where there is none in it."""
    try:
        said = json.loads(content)
    except ValueError:
        raise _Again(f"what it sent is no JSON: {shown(content[:_SHOWN].decode('utf-8', 'replace'))!r}") from None
    choices = said.get("choices") if isinstance(said, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(first, Mapping) or not isinstance(message, Mapping):
        raise _Again(f"what it sent has no choices with a message: {shown(json.dumps(said))!r}")
    answer, model = message.get("content"), said.get("model")
    end = "length" if first.get("finish_reason") == "length" else "stop"
    return Written(
        answer=answer if isinstance(answer, str) else "", end=end, model=model if isinstance(model, str) else None
    )


def _message(content: bytes) -> str:
    """The message of an error as OpenAI writes it, else the beginning of what was sent."""
    with suppress(ValueError):
        said = json.loads(content)
        error = said.get("error", said) if isinstance(said, Mapping) else said
        return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
    return content[:_SHOWN].decode("utf-8", "replace")


def _asked_pause(header: str | None) -> float:
    """The seconds of a Retry-After header; its dates are not read."""
    with suppress(TypeError, ValueError):
        return min(max(float(str(header)), 0.0), _MOST_ASKED_PAUSE)
    return 0.0
