"""What GGUF files can be: the schemes by output, and the options of a target's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, cast, get_args

from annotated_types import Gt

from edgekit.formats.source import Gentler
from edgekit.outputs.rows import EMBEDDING
from edgekit.outputs.tokens import TOKENS

Scheme = Literal[
    "auto",
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
    "mixed",
]  # fmt: skip

# No logits: llama.cpp's classifiers are rerankers.
SCHEMES: Mapping[str, tuple[str, ...]] = {TOKENS.name: get_args(Scheme), EMBEDDING.name: get_args(Scheme)[1:]}
# Those of llama.cpp's schemes that are worth their bytes, and run fast on every CPU.
AUTO: Mapping[str, tuple[str, ...]] = {TOKENS.name: ("q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0")}
BY_BITS: tuple[str, ...] = (
    "iq4_xs",
    "iq4_nl",
    "q4_0",
    "q4_k_s",
    "q4_k_m",
    "q4_1",
    "q5_k_m",
    "q6_k",
    "q8_0",
    "bf16",
    "f16",
    "f32",
)
# Of few enough bits that another type for some tensors is felt.
MIXED_LIKE = frozenset({"q4_0", "q4_k_s", "q4_k_m", "q4_1", "iq4_nl", "iq4_xs", "q5_k_m"})
FLOATS = frozenset({"f32", "f16", "bf16"})
# Of an embedding every number counts, and encoders are small: at 4 bits MiniLM finds other neighbours for 12 % of texts.
SCHEME_FOR: Mapping[str, str] = {EMBEDDING.name: "q8_0"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """A target's `[export.<task>]` table for this format."""

    scheme: Scheme = "auto"
    """auto: of AUTO the smallest file that keeps the recipe's limits on the calibrate prompts (text-generation)."""
    imatrix: bool = True
    """Weigh errors by the calibrated importance of each input channel (llama.cpp's importance matrix)."""
    through: Literal["none", "f16", "bf16"] = "none"
    """Round weights to this type before they are quantized, as llama.cpp's two steps do; none keeps the checkpoint's."""
    like: Scheme = "q4_k_m"
    """mixed: no more bytes than this scheme takes."""
    bytes: Annotated[int, Gt(0)] | None = None
    """mixed: no more bytes than these, instead of `like`."""
    tokens_per_second: Annotated[float, Gt(0)] | None = None
    """mixed: no more bytes read per token than the target's bandwidth gives at this rate, instead of `like`."""

    feedback: bool = True
    """mixed: round columns one after another, the later making up for the earlier (GPTQ); some thousand tokens run again."""

    def gentler(self, scheme: str) -> list[Gentler]:
        """What loses less than these options at as many bits a weight, of an artifact that became `scheme`."""
        found = []
        if not self.imatrix and scheme not in FLOATS:
            told = "errors are weighed by what the calibrate prompts use"
            found.append(Gentler(name="importance matrix", options={"imatrix": True}, gain=told))
        if scheme in MIXED_LIKE:
            told = "the same bytes, more of them for the tensors that lose most (in llama.cpp's pull request 15550: 30 % less KL)"
            found.append(Gentler(name="mixed types", options={"scheme": "mixed", "like": scheme}, gain=told))
        return found

    def outcomes(self, output: str) -> tuple[str, ...]:
        """The schemes that an artifact with these options may become, for models of an output."""
        return AUTO[output] if self.scheme == "auto" and output in AUTO else (self.scheme,)

    def sample(self, scheme: str) -> Options:
        """Options that make a file of a scheme quickly which runs as fast as theirs: of a mixture the scheme that it is like."""
        plain = self.like if scheme == "mixed" else cast("Scheme", scheme)
        return Options(scheme=plain, imatrix=False, through=self.through)

    def __post_init__(self) -> None:
        """Refuse what is right key by key and not together."""
        from pydantic_core import PydanticCustomError

        if self.like in {"mixed", "auto"}:
            raise PydanticCustomError("like", f"like = '{self.like}' is no size; name another scheme, or give bytes")
        if self.tokens_per_second is not None and (self.scheme != "mixed" or self.bytes is not None):
            raise PydanticCustomError("rate", "tokens_per_second is for scheme = 'mixed', and without bytes")
        if self.bytes is not None and self.scheme != "mixed":
            raise PydanticCustomError(
                "bytes", "bytes is for scheme = 'mixed' alone: the others' sizes follow from them"
            )
