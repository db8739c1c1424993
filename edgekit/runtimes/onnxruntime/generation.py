"""onnxruntime: a decoder with its key/value cache, fed token by token or many at once.

The cache lives in buffers that the graph reads and writes in place (onnxruntime's GroupQueryAttention does where past and
present are one buffer), so that a token costs no copy of what was said before; on a GPU they lie in its own memory. The buffers
grow by doubling, up to the model's context.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.onnxruntime.library import CPU, Value, as_value, held, read_back, read_options, start
from edgekit.runtimes.onnxruntime.profile import count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Work

    Ids = Sequence[int] | NDArray[np.int64]

# In the file's metadata: the context in tokens, and the length above which a model rotates all its keys otherwise (longrope).
CONTEXT, SWITCH = "edgekit.context", "edgekit.rope_switch"
KEEP = "num_logits_to_keep"
# A prefill is fed in pieces of this many tokens: attention's scores take heads * piece * context floats.
PIECE = 512
SMALLEST_CACHE = 256
# Types of caches, as onnxruntime calls them.
FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16"}
# Tokens before the step that is profiled.
PROFILED = 8


class Generator:
    """A loaded decoder and what it was fed so far."""

    vocabulary: int
    """How many logits a token has."""
    context: int
    """How many tokens it can be fed."""
    provider: str

    def __init__(self, file: Path, options: Mapping[str, object], *, profile: Path | None = None) -> None:
        """Raises what onnxruntime raises for a file that it does not load, ValueError for one that is no decoder of edgekit.

        profile: a file prefix for onnxruntime's profile.
        """
        self._file, self._options = file, options
        started = start(file, read_options(options), profile=profile)
        self._session, self.words = started.session, started.words
        facts = self._session.get_modelmeta().custom_metadata_map
        if CONTEXT not in facts:
            raise ValueError(f"{file}: not a decoder that edgekit wrote: its metadata has no {CONTEXT}")
        self.context = int(facts[CONTEXT])
        self.provider = self._session.get_providers()[0]
        self._switch = int(facts[SWITCH]) if SWITCH in facts else None
        self._pasts = [value for value in self._session.get_inputs() if len(value.shape) == 4]
        self._logits, *self._presents = self._session.get_outputs()
        self.vocabulary = int(self._logits.shape[-1])
        self._binding = self._session.io_binding()
        self._binding.bind_output(self._logits.name)  # the first to be bound is the first of its outputs
        self._caches: list[Value] = []
        self._capacity = 0
        self._fed: list[int] = []

    def clear(self) -> None:
        """Forget what was fed; the buffers stay."""
        self._fed = []

    def logits(self, ids: Ids, wanted: slice | None = None) -> NDArray[np.float32]:
        """Feed ids behind what was fed before; returns float32 [n, vocabulary], the logits behind the wanted ones of them.

        wanted: a slice of `ids`, all of them where it is None. Raises ValueError where they do not fit the context.
        """
        import numpy as np

        fresh = [int(one) for one in ids]
        places = range(len(fresh))[wanted if wanted is not None else slice(None)]
        before = len(self._fed)
        if before + len(fresh) > self.context:
            raise ValueError(f"{before + len(fresh)} tokens do not fit the model's context of {self.context}")
        if not fresh:
            return np.zeros((0, self.vocabulary), np.float32)
        if self._switch is not None and before <= self._switch < before + len(fresh):
            # All keys are rotated otherwise from here on: they are made anew, in one piece, as transformers does.
            past, self._fed = self._fed, []
            rows = [self._feed([*past, *fresh], keep=len(fresh) - min(places, default=len(fresh)))]
            first = len(fresh) - len(rows[0])
        else:
            rows, first = [], min(places, default=len(fresh))
            for begin in range(0, len(fresh), PIECE):
                piece = fresh[begin : begin + PIECE]
                rows.append(self._feed(piece, keep=min(len(piece), max(0, begin + len(piece) - first))))
        found = np.concatenate([row for row in rows if len(row)] or [rows[0]])
        return found[[place - first for place in places]]

    def work(self) -> Work:
        """Where it runs; of another provider than the CPU what one step does and where, by a profile of it, opened anew.

        The last thing that it may be asked: it is closed then.
        """
        if self.provider == CPU:
            return {"provider": CPU, **({"warnings": list(self.words)} if self.words else {})}
        ids = self._fed[-PROFILED:] or [0]
        self.close()
        with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
            again = Generator(self._file, self._options, profile=Path(scratch) / "profile")
            again.logits(ids)
            again.logits(ids[-1:])
            events = json.loads(Path(again._session.end_profiling()).read_text(encoding="utf-8"))
            again.close()
        return count(events, again.provider, again.words)

    def close(self) -> None:
        """Free the session and the cache."""
        self._caches = []
        self._binding = self._session = None

    def _feed(self, ids: list[int], *, keep: int) -> NDArray[np.float32]:
        """The last `keep` rows of logits, at least one of which is computed: a graph without rows has no meaning."""
        import numpy as np

        total = len(self._fed) + len(ids)
        self._grow(total)
        binding = self._binding
        binding.bind_cpu_input("input_ids", np.array([ids], dtype=np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, total), dtype=np.int64))
        # An input with a default: bind_cpu_input does not know it.
        rows_wanted = as_value(np.array(max(keep, 1), dtype=np.int64))
        binding.bind_ortvalue_input(KEEP, rows_wanted)
        binding.bind_output(self._logits.name)
        self._session.run_with_iobinding(binding)
        self._fed += ids
        rows: NDArray[np.float32] = binding.get_outputs()[0].numpy()[0].astype(np.float32, copy=False)
        return rows[len(rows) - keep :]

    def _grow(self, total: int) -> None:
        """Make the buffers hold `total` tokens, with what they hold now."""
        import numpy as np

        if total <= self._capacity:
            return
        old, self._caches = self._caches, []
        capacity = min(self.context, max(SMALLEST_CACHE, 2 * self._capacity, total))
        for place, (past, present) in enumerate(zip(self._pasts, self._presents, strict=True)):
            _, heads, _, width = past.shape
            kind = FLOATS[past.type]
            cache = np.zeros((1, heads, capacity, width), kind)
            if old:
                cache[:, :, : self._capacity] = read_back(old[place], kind, self.provider)
            value = held(cache, self._session, self.provider)
            self._caches.append(value)
            self._binding.bind_ortvalue_input(past.name, value)
            self._binding.bind_ortvalue_output(present.name, value)
        self._capacity = capacity
