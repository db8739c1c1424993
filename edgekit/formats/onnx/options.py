"""What ONNX files can be: the schemes by output, their bits, and the options of a target's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast, get_args

from annotated_types import Ge

from edgekit.formats.source import Gentler
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS

Scheme = Literal["auto", "int8-static", "int8-dynamic", "w8", "w4", "fp16", "fp32"]

SCHEMES: Mapping[str, tuple[str, ...]] = {
    LOGITS.name: get_args(Scheme),
    EMBEDDING.name: get_args(Scheme),
    TOKENS.name: ("auto", "int8-dynamic", "w8", "w4", "fp16", "fp32"),
}
BY_BITS: tuple[str, ...] = ("w4", "int8-static", "int8-dynamic", "w8", "fp16", "fp32")
# Of encoders, auto decides by other means (see `choose`).
AUTO: Mapping[str, tuple[str, ...]] = {TOKENS.name: ("w4", "int8-dynamic", "w8")}
# The default of Options is for every output.
SCHEME_FOR: Mapping[str, str] = {}
SMALLEST_BLOCK = 16
# Bits of a weight, scales included, of what decoders can be (blocks of 32 weights share a 16-bit scale).
DECODER_BITS = {"fp32": 32.0, "fp16": 16.0, "int8-dynamic": 8.0, "w8": 8.5, "w4": 4.5}


@dataclass(frozen=True, kw_only=True)
class Options:
    """A target's `[export.<task>]` table for this format."""

    scheme: Scheme = "auto"
    activation: Literal["uint8", "int8"] = "uint8"
    """int8-static: uint8 for x86, int8 for ARM and NPUs (onnxruntime's quantization guide)."""
    reduce_range: bool = True
    """int8: weights that no CPU's 16-bit sums of two products saturate on (x86 without VNNI); off gains a third of a bit."""
    layout: Literal["operators", "qdq"] = "operators"
    """onnxruntime's own CPU operators, or ONNX's (int8-static: Quantize/Dequantize pairs) for other execution providers.

    With qdq, auto tries int8-static only: onnxruntime fuses no dynamic pair, so that its products would be float."""
    smoothing: bool = True
    float_layers: Annotated[int, Ge(0)] = 1
    """int8: how many Linears may stay float, where that brings the answers clearly nearer to the float ones."""
    block: Literal[16, 32, 64, 128, 256] = 32
    """w8, w4: how many weights share a scale (the sizes that onnxruntime's MatMulNBits has)."""
    feedback: bool = True
    """w4: round columns one after another, the later making up for the earlier (GPTQ), where that loses less on calibrate prompts
    that it has not seen; some thousand tokens run again."""
    inputs: Literal["int8", "float"] = "int8"
    """w8, w4: what products read. int8 rounds inputs at run time, on a CPU about twice as fast; with float every engine's answers
    are alike to 1e-5, where those of int8 differ by as much as that rounding does (WebAssembly against x86: 1e-2)."""
    table_bits: Literal[8, 4] = 8
    """Of an encoder's embedding tables, in schemes of integers. 4 halves what is most of a small encoder's file, of a
    multilingual one nearly all."""
    container: Literal["onnx", "ort"] = "onnx"
    """The file that ships: of ONNX, or of onnxruntime's own format (see `ort`), for phones; of encoders."""
    cache: Literal["f32", "f16"] = "f32"
    """Of decoders: how keys and values are kept, and attention computes. CUDA's GroupQueryAttention takes 16-bit floats; with the
    scheme fp16 they are so always."""

    @property
    def half_cache(self) -> bool:
        """Whether a decoder's keys and values are 16-bit floats."""
        return self.cache == "f16" or self.scheme == "fp16"

    @property
    def fitted(self) -> bool:
        """Whether weights are rounded with feedback."""
        return self.scheme == "w4" and self.feedback

    def gentler(self, scheme: str) -> list[Gentler]:
        """What loses less than these options at as many bits a weight, of an artifact that became `scheme`."""
        found = []
        if scheme == "w4" and not self.feedback:
            told = "the same bytes; columns are rounded one after another, the later making up for the earlier (GPTQ)"
            found.append(Gentler(name="rounding with feedback", options={"feedback": True}, gain=told))
        if scheme in {"w8", "w4"} and self.block > SMALLEST_BLOCK:
            few = f"a scale for {SMALLEST_BLOCK} weights instead of {self.block}: smaller steps"
            found.append(Gentler(name=f"blocks of {SMALLEST_BLOCK}", options={"block": SMALLEST_BLOCK}, gain=few))
        if not scheme.startswith("int8"):
            return found
        most = max(4, 2 * self.float_layers)
        told = f"most of the loss where few layers have it; at most {most} stay float, those that the calibrate prompts name"
        found.append(Gentler(name="keep the worst layers float", options={"float_layers": most}, gain=told))
        if not self.smoothing:
            even = "outliers of activations move to the weights (SmoothQuant, arXiv:2211.10438)"
            found.insert(0, Gentler(name="smoothing", options={"smoothing": True}, gain=even))
        return found

    def outcomes(self, output: str) -> tuple[str, ...]:
        """The schemes that an artifact with these options may become, for models of an output."""
        if self.scheme != "auto":
            return (self.scheme,)
        both = ("int8-static",) if self.layout == "qdq" else ("int8-static", "int8-dynamic")
        return AUTO.get(output, both)

    def sample(self, scheme: str) -> Options:
        """Options that make a file of a scheme quickly which runs as fast as theirs: nothing in it is chosen by what it loses."""
        return replace(self, scheme=cast("Scheme", scheme), smoothing=False, float_layers=0, feedback=False)

    def __post_init__(self) -> None:
        """Refuse what is right key by key and not together."""
        from pydantic_core import PydanticCustomError

        if self.inputs == "float" and self.scheme not in {"w8", "w4"}:
            raise PydanticCustomError(
                "inputs",
                "inputs = 'float' is for products of float inputs with blocks of integers; use scheme = 'w8' or 'w4', or"
                " leave inputs out",
            )
        if self.layout == "qdq" and self.scheme == "int8-dynamic":
            raise PydanticCustomError(
                "layout",
                "scheme = 'int8-dynamic' with layout = 'qdq' has no integer products; use scheme = 'int8-static' or"
                " layout = 'operators'",
            )
        if self.layout == "qdq" and self.table_bits == 4:
            raise PydanticCustomError(
                "table_bits",
                "table_bits = 4 with layout = 'qdq': ONNX itself has no operator that looks rows up in 4 bits; use"
                " table_bits = 8 or layout = 'operators'",
            )
        if self.container == "ort" and self.scheme == "fp16":
            raise PydanticCustomError(
                "container",
                "scheme = 'fp16' with container = 'ort' would keep the casts that this computer's CPU needs; use"
                " container = 'onnx' or another scheme",
            )
