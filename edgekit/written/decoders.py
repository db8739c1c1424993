"""Decoders that are asked here: a checkpoint through torch, a GGUF file through llama.cpp.

A file that somebody brings may end the process of the engine that reads it: `check_file` opens it in another one first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.apart import apart
from edgekit.chat_template import SPECIAL_TOKENS, converse
from edgekit.errors import EdgekitError, require
from edgekit.formats.gguf.file import read_gguf
from edgekit.formats.gguf.parity import Vocabulary
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.runtimes import llamacpp
from edgekit.runtimes.llamacpp.branches import Branches
from edgekit.runtimes.llamacpp.generation import Generator
from edgekit.tasks import text_generation
from edgekit.written.journal import Written

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LAST = slice(-1, None)
# Keys, values and attention in float32, so that a token's logits do not hang on what is read beside it.
_EXACT = {"kv_k": "f32", "kv_v": "f32"}
# What GGUF calls the tokens that a chat template may write.
_NAMED = {name: f"tokenizer.ggml.{name}_id" for name in SPECIAL_TOKENS}


class Decoder(Protocol):
    """A model that is asked token by token, and keeps what it was fed."""

    @property
    def context(self) -> int | None:
        """How many tokens it takes at most; None where nothing says."""

    @property
    def stops(self) -> Collection[int]:
        """The tokens that end an answer."""

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""

    def asked(self, prompt: Prompt, begun: str = "") -> list[int]:
        """The ids of what it is given before its answer: a conversation through its chat template, or the text; with the
        beginning of an answer."""

    def text(self, ids: Sequence[int]) -> str:
        """What ids say."""

    def logits(self, ids: Sequence[int], wanted: slice | None = None) -> NDArray[np.float32]:
        """Feed ids behind what was fed before; the logits [n, vocabulary] at the wanted ones of them (None: at all)."""

    def branches(self, prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """Of each branch the log-probability, in nats, of each of its tokens behind the prefix, which is read once for all."""

    def clear(self) -> None:
        """Forget what was fed."""

    def close(self) -> None:
        """Free its memory."""


class Checkpoint:
    """A checkpoint's decoder, in float32."""

    def __init__(self, folder: Path) -> None:
        """Raises EdgekitError as `tasks.text_generation.load` does."""
        import torch

        self._model = load_model(folder)
        self._voice = text_generation.Voice(self._model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        module: Any = text_generation.load(folder)
        self.module: Any = module.model.to(self._device)
        self._cache: Any = None
        self.context, self.stops = self._model.max_positions, frozenset(self._model.stops)

    @property
    def chats(self) -> bool:
        """See `Decoder`."""
        return self._voice.template is not None

    def asked(self, prompt: Prompt, begun: str = "") -> list[int]:
        """See `Decoder`. Raises EdgekitError for a conversation without a template."""
        if not self.chats and prompt.messages:
            raise EdgekitError(f"{self._model.folder}: no chat template in it, so it cannot answer conversations")
        return self._voice.asked(prompt, begun=begun)

    def text(self, ids: Sequence[int]) -> str:
        """See `Decoder`."""
        return str(self._tokenizer.decode(list(ids)))

    @cached_property
    def _tokenizer(self) -> Any:
        return self._model.tokenizer()

    def logits(self, ids: Sequence[int], wanted: slice | None = None) -> NDArray[np.float32]:
        """See `Decoder`."""
        import torch

        feed = torch.tensor([list(ids)], device=self._device)
        with torch.inference_mode():
            told = self.module(input_ids=feed, past_key_values=self._cache, use_cache=True)
        self._cache = told.past_key_values
        found: NDArray[np.float32] = told.logits[0, wanted or slice(None)].float().cpu().numpy()
        return found

    def branches(self, prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """See `Decoder`: the prefix's keys and values are read by a batch of all branches, padded on the right."""
        import torch

        with torch.inference_mode():
            feed = torch.tensor([list(prefix)], device=self._device)
            told = self.module(input_ids=feed, use_cache=True)
            first = told.logits[0, -1].double().log_softmax(-1)
            width = max(map(len, branches)) - 1
            after = None
            if width:
                cache = told.past_key_values
                cache.batch_repeat_interleave(len(branches))
                rows = [[*branch[:-1], *[0] * (width - len(branch) + 1)] for branch in branches]
                fed = torch.tensor(rows, device=self._device)
                after = self.module(input_ids=fed, past_key_values=cache, use_cache=True).logits
            found = []
            for index, branch in enumerate(branches):
                logs = [first[branch[:1]]]
                if after is not None and len(branch) > 1:
                    each = after[index, : len(branch) - 1].double().log_softmax(-1)
                    logs.append(each[torch.arange(len(branch) - 1), branch[1:]])
                found.append(torch.cat(logs).cpu().numpy())
        return found

    def clear(self) -> None:
        """See `Decoder`."""
        self._cache = None

    def close(self) -> None:
        """See `Decoder`."""
        self.module = self._cache = None


class File:
    """A GGUF file's decoder, with the file's own tokenizer and chat template."""

    def __init__(self, path: Path) -> None:
        """Raises EdgekitError for a file that is no decoder, or that llama.cpp does not load."""
        require(llamacpp.PACKAGE.module, extra=llamacpp.PACKAGE.extra)
        self._path, self._metadata = path, read_gguf(path).metadata
        self._vocabulary = Vocabulary(path)
        self.stops = frozenset(self._vocabulary.stops)
        longest = self._metadata.get(f"{self._metadata.get('general.architecture')}.context_length")
        self.context = longest if isinstance(longest, int) else None

    @cached_property
    def _generator(self) -> Generator:
        try:
            return llamacpp.generator(self._path, _EXACT)
        except llamacpp.LlamaError as refused:
            raise EdgekitError(str(refused)) from refused

    @cached_property
    def _branches(self) -> Branches:
        try:
            return Branches(self._path, _EXACT)
        except llamacpp.LlamaError as refused:
            raise EdgekitError(str(refused)) from refused

    @property
    def chats(self) -> bool:
        """See `Decoder`."""
        return self._template is not None

    @cached_property
    def _template(self) -> str | None:
        found = self._metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    @cached_property
    def _special(self) -> dict[str, str]:
        named = {name: self._metadata.get(key) for name, key in _NAMED.items()}
        return {name: self._vocabulary.text(token) for name, token in named.items() if isinstance(token, int)}

    def asked(self, prompt: Prompt, begun: str = "") -> list[int]:
        """See `Decoder`; the first token is the file's own where neither text nor template write it, as in llama.cpp's server.

        Raises EdgekitError for a conversation without a template.
        """
        if self._template is None:
            if prompt.messages:
                raise EdgekitError(f"{self._path}: no chat template in it, so it cannot answer conversations")
            return self._vocabulary.encode(prompt.text + begun, special=False, add=True)
        messages = text_generation.conversation(prompt)
        text = converse(
            self._template, messages, tools=prompt.tools, generation_prompt=True, special_tokens=self._special
        )
        ids = self._vocabulary.encode(text + begun, special=True, add=False)
        begin = self._vocabulary.bos
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def text(self, ids: Sequence[int]) -> str:
        """See `Decoder`."""
        return self._vocabulary.decode(ids)

    def logits(self, ids: Sequence[int], wanted: slice | None = None) -> NDArray[np.float32]:
        """See `Decoder`."""
        try:
            return self._generator.logits(ids, wanted)
        except llamacpp.LlamaError as refused:
            raise EdgekitError(str(refused)) from refused

    def branches(self, prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """See `Decoder`: one step of llama.cpp, in which the prefix's cells belong to all branches."""
        try:
            return self._branches.log_probabilities(prefix, branches)
        except llamacpp.LlamaError as refused:
            raise EdgekitError(str(refused)) from refused

    def clear(self) -> None:
        """See `Decoder`."""
        self._generator.clear()

    def close(self) -> None:
        """See `Decoder`."""
        for opened in ("_generator", "_branches"):
            if opened in vars(self):
                vars(self)[opened].close()
        self._vocabulary.close()


def open_decoder(place: Path) -> Decoder:
    """The decoder in a checkpoint's folder or a .gguf file. Raises EdgekitError where it is neither."""
    return File(place) if place.is_file() else Checkpoint(place)


def check_file(path: Path) -> None:
    """Have llama.cpp read a file and say one token, in a process of its own. Raises EdgekitError where it does not."""
    remedy = "see what `edgekit inspect` says of the file, or name another"
    apart("edgekit.written.decoders:say_one", what=f"{path}: llama.cpp cannot run it", remedy=remedy, path=str(path))


def say_one(path: str) -> int:
    """How many numbers a file's decoder gives for a token."""
    decoder = File(Path(path))
    return int(decoder.logits(decoder.asked(Prompt(text="Hello")), _LAST).shape[1])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are taken: temperature 0 takes the likeliest, else a draw among the likeliest that sum to top_p."""

    temperature: float
    top_p: float
    max_tokens: int


def say(decoder: Decoder, prompt: Prompt, sampling: Sampling, seed: Sequence[int]) -> Written:
    """A decoder's answer to a prompt; the same seed draws the same.

    Raises EdgekitError where the prompt leaves no room in the model's context, and for logits that are no numbers.
    """
    import numpy as np

    ids, random = decoder.asked(prompt), np.random.default_rng(list(seed))
    room = sampling.max_tokens if decoder.context is None else min(sampling.max_tokens, decoder.context - len(ids))
    if not ids or room < 1:
        raise EdgekitError(
            f"the prompt {prompt.text[:60]!r} has {len(ids)} tokens, and the model's context {decoder.context}: there is no room"
            " for an answer; take it out of the train rows, or shorten it (answers.begin)"
        )
    decoder.clear()
    answer, feed, end = list[int](), ids, "length"
    while len(answer) < room:
        scores = decoder.logits(feed, _LAST)[0].astype(np.float64)
        if not np.isfinite(scores).any() or np.isnan(scores).any():
            raise EdgekitError(
                f"the model gives NaN or infinite logits behind {prompt.text[:60]!r}; its weights are damaged"
            )
        token = _take(scores, sampling, random)
        if token in decoder.stops:
            end = "stop"
            break
        answer.append(token)
        feed = [token]
    # A token's text may depend on the one before it.
    said = decoder.text([*ids[-1:], *answer])[len(decoder.text(ids[-1:])) :]
    # The limit may fall between the bytes of a character.
    return Written(answer=said.rstrip("\N{REPLACEMENT CHARACTER}") if end == "length" else said, end=end)


def _take(scores: NDArray[np.float64], sampling: Sampling, random: np.random.Generator) -> int:
    """A token by its logits. top_p: nucleus sampling (Holtzman et al., arXiv:1904.09751)."""
    import numpy as np

    if sampling.temperature == 0:
        return int(scores.argmax())
    scaled = (scores - scores.max()) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    shares = np.exp(scaled[order])
    sums = (shares / shares.sum()).cumsum()
    # All up to the first with which they sum to top_p, of which one is drawn by its share.
    kept = sums[: min(int(np.searchsorted(sums, sampling.top_p)) + 1, len(sums))]
    drawn = int(np.searchsorted(kept, random.random() * kept[-1], side="right"))
    return int(order[min(drawn, len(kept) - 1)])
