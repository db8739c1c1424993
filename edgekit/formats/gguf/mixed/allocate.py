"""Bits per tensor by measured sensitivity: the types that lose least at a number of bytes.

Second order: where y = W x and only W is rounded, KL(float || quantized) grows by 1/2 E[(g . dW x)^2], g the gradient of the
log-likelihood at y (its Fisher information). With x and g taken as uncorrelated, and each by its diagonal, that is
1/2 sum_i g_i sum_j m_j dW_ij^2 nats a token, g_i and m_j the mean squares of output gradient and input (K-FAC's
factors, arXiv:1503.05671). Without gradients a measured loss per role stands in. Losses of tensors add up, so the best types
at a size are a knapsack with one choice per tensor, which dynamic programming solves; `refine` then asks the true KL.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.ggml import TYPES, dequantize, quantize, row_bytes
from edgekit.formats.gguf.schemes import TOKEN_EMBEDDING, Shape

# Types that multiply fast on the CPUs of an instruction set. Interleaved kernels: llama.cpp, ggml/src/ggml-cpu/repack.cpp,
# ggml_repack_get_optimal_repack_type. None has one for IQ4_XS, IQ3 and Q3_K, which therefore are in no row. AVX2 has none
# for Q5_K, Q6_K and Q8_0: COSTS says what they take. ARM's Q6_K costs 2-7 % of decoding on a Cortex-A76
# (llama.cpp pull request 19360); without dot products every bit that must be shifted out costs, so two types remain beside
# the plain ones.
TYPES_FOR: dict[str, tuple[str, ...]] = {
    "x86-avx2": ("q4_0", "iq4_nl", "q4_k", "q5_k", "q6_k", "q8_0"),
    "arm-i8mm": ("q4_0", "iq4_nl", "q4_k", "q5_k", "q6_k", "q8_0"),
    "arm-dotprod": ("q4_0", "iq4_nl", "q4_k", "q5_k", "q8_0"),
    "arm-neon": ("q4_0", "q4_k", "q5_k", "q8_0"),
    "other": ("q4_0", "q4_k", "q5_k", "q6_k", "q8_0"),
}
# What multiplying takes longer than in q4_k: (picoseconds a weight, nanoseconds a row), on one core of an AMD EPYC with AVX2 and
# without VNNI, in llama.cpp's ggml 0.25.3 (benchmarks/gguf_costs.py); for others with AVX2 they are a guess, better than none.
# A mixture is compared with a scheme on the same figures. No figures, no limit on time.
COSTS: dict[str, dict[str, tuple[float, float]]] = {
    "x86-avx2": {
        "q4_0": (-16.0, 4.1),
        "iq4_nl": (6.0, -2.6),
        "q4_k": (0.0, 0.0),
        "q5_k": (37.0, 14.5),
        "q6_k": (14.0, 10.9),
        "q8_0": (25.0, 10.1),
    },
}
# What llama.cpp itself takes for rows that fill no block of 256 (types.FALLBACKS).
NARROW = ("q5_0", "q5_1")
# Rows that are looked up, not multiplied: no kernel's speed matters.
LOOKED_UP = ("q3_k", "iq4_xs")
# Nats a token for a relative squared error of 1 in all tensors of a role, were losses linear that far: what errors of 1 %
# cost karpathy/tinyllamas' stories260K, a trained Llama of 5 layers, in each role alone. Only their ratios matter. A fused
# tensor is as delicate as the most delicate in it.
ROLE_LOSS = {
    "token_embd": 0.3,
    "attn_q": 0.5,
    "attn_k": 2.5,
    "attn_v": 0.8,
    "attn_qkv": 2.5,
    "attn_output": 0.35,
    "ffn_gate": 2.2,
    "ffn_up": 2.2,
    "ffn_down": 2.0,
    "output": 3.5,
}
_ROLE = re.compile(r"^(?:blk\.(\d+)\.)?(\w+)\.weight$")
# Sizes that the dynamic programming tells apart; the bytes of a model's shapes have a large common divisor, so that this is
# rarely reached and the result exact.
_SIZES = 1 << 16
# Steps of the search for the price of time.
_PRICES = 16
# A share of the loss that is no gain.
_NOTHING = 1e-9
# Of how many rows of a tensor the errors are measured: quantizing 10^9 weights to all types takes ten minutes on one core.
_ROWS = 1024
# Of a target's bandwidth, what decoding reaches (70-74 % were measured with 4-bit types on two x86 cores).
_ROOFLINE = 0.7
# A change must lower the measured KL by this share to be kept.
_WORTH = 0.002


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What each type that fits a tensor costs: bytes, and the predicted growth of the KL divergence in nats a token."""

    name: str
    bytes: Mapping[str, int]
    losses: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long decoding a token may take: no longer than with the types `like`.

    `shapes` are the tensors that are multiplied, by name: rows that are looked up take no time. `costs` is a row of COSTS; what
    has no figure there counts as the slowest, in `like` too.
    """

    costs: Mapping[str, tuple[float, float]]
    shapes: Mapping[str, Shape]
    like: Mapping[str, str]

    def time(self, name: str, kind: str) -> float:
        """Picoseconds that multiplying a tensor in a type takes longer than in q4_k."""
        if name not in self.shapes:
            return 0.0
        shape = self.shapes[name]
        if kind not in self.costs:
            return max(self.time(name, known) for known in self.costs)
        weight, row = self.costs[kind]
        return shape.rows * (shape.columns * weight + 1000 * row)

    def total(self, types: Mapping[str, str]) -> float:
        """Of all tensors."""
        return math.fsum(self.time(name, types[name]) for name in self.shapes)

    def excess(self, types: Mapping[str, str]) -> float:
        """Picoseconds a token by which these types take longer than `like`."""
        return self.total(types) - self.total(self.like)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A type for every tensor, their bytes, and the predicted KL divergence in nats a token."""

    types: Mapping[str, str]
    bytes: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Refined:
    """The mixture with the least measured KL, what was measured, and by what each group's predicted loss was corrected."""

    mixture: Mixture
    kl: float
    scales: Mapping[str, float]
    evaluations: int
    first_kl: float


def instruction_set(arch: str, features: Collection[str]) -> str:
    """The row of TYPES_FOR of a target's `[hardware]`: arch ("x86_64", "aarch64") and Linux's names of CPU features."""
    if arch in {"aarch64", "arm64"}:
        return "arm-i8mm" if "i8mm" in features else "arm-dotprod" if "asimddp" in features else "arm-neon"
    return "x86-avx2" if arch == "x86_64" and "avx2" in features else "other"


def candidates(tensor: Shape, instructions: str, *, tied: bool) -> tuple[str, ...]:
    """The types that this tensor may get on such a CPU, those whose blocks its rows fill; f16 where there is none."""
    kinds = TYPES_FOR[instructions]
    if tensor.name == TOKEN_EMBEDDING and not tied:
        kinds = (*LOOKED_UP, *kinds)
    if tensor.columns % 256:
        kinds = (*kinds, *NARROW)
    return tuple(kind for kind in kinds if tensor.columns % TYPES[kind].block == 0) or ("f16",)


def measure(
    tensor: Shape,
    blocks: Iterable[NDArray[np.float32]],
    kinds: Sequence[str],
    *,
    layers: int,
    importance: NDArray[np.float32] | None = None,
    gradient: NDArray[np.float32] | None = None,
) -> Sensitivity:
    """Quantize a tensor to each of some types and weigh the errors; of a large tensor, about _ROWS of its rows.

    `blocks` are its rows in order, float32 [n, columns], as many at once as the caller likes. `importance` is the mean square
    of each input channel, float32 [columns]; `gradient` the mean square, over tokens, of the gradient of a sequence's
    summed log-likelihood at each output channel, float32 [rows]. For an embedding, whose input is a token, `gradient`
    is each token's share of the text and `importance` the gradient's mean square, float32 [columns]. Both are in the order of
    the file's rows and columns (llama.cpp interleaves the rows of some heads). A head that is the embedding too counts as
    the head. Tensors are converted with the same `importance`.
    """
    weight = np.ones(tensor.columns, np.float32) if importance is None else importance
    share = np.ones(tensor.rows, np.float32) if gradient is None else gradient
    # An odd step meets both halves of a head's rows, which lie side by side.
    step = -(-tensor.rows // _ROWS) | 1 if tensor.rows > _ROWS else 1
    errors = dict.fromkeys(kinds, 0.0)
    signal, seen, row = 0.0, 0.0, 0
    for block in blocks:
        some = block[-row % step :: step]
        those = share[row : row + len(block)][-row % step :: step].astype(np.float64)
        row += len(block)
        if not len(some):
            continue
        signal += float(np.square(some, dtype=np.float64).sum(0) @ weight)
        seen += float(those.sum())
        for kind in kinds:
            rounded = dequantize(quantize(some, kind, importance), kind, tensor.columns)
            errors[kind] += float(np.square(some - rounded) @ weight @ those)
    assert row == tensor.rows, f"{tensor.name}: {row} of {tensor.rows} rows came"
    if gradient is not None:
        # The rows that were left out err as those that were measured, and matter as much as their gradients say.
        whole = float(share.sum(dtype=np.float64)) / max(seen, 1e-30)
        losses = {kind: whole * error / 2 for kind, error in errors.items()}
    else:
        among = layers if tensor.name.startswith("blk.") else 1
        # An embedding that something is multiplied with is the head as well.
        role = "output" if tensor.name == TOKEN_EMBEDDING and importance is not None else role_of(tensor.name)
        scale = ROLE_LOSS.get(role, 1.0) / among / max(signal, 1e-30)
        losses = {kind: scale * error for kind, error in errors.items()}
    sizes = {kind: tensor.rows * row_bytes(kind, tensor.columns) for kind in kinds}
    return Sensitivity(name=tensor.name, bytes=sizes, losses=losses)


def allocate(
    sensitivities: Sequence[Sensitivity], budget: int, *, free: Collection[str] = (), pace: Pace | None = None
) -> Mixture:
    """The types with the least predicted loss whose tensors take no more than `budget` bytes together, and no longer than `pace`.

    Time is bound by a price on it (a Lagrange multiplier, found by bisection), and what that leaves over is used up by exchanges;
    the result loses no more than the types of `pace.like`, where these are candidates and fit. Bytes of tensors in `free` do not
    count: of the token embedding, where the budget is the bytes read per token. Raises EdgekitError where not even the smallest
    types fit.
    """
    mixture = _cheapest(sensitivities, budget, free)
    if pace is None or pace.excess(mixture.types) <= 0:
        return mixture
    starts = [_priced(sensitivities, budget, free, pace, mixture)]
    if all(pace.like[tensor.name] in tensor.losses for tensor in sensitivities):
        starts.append(_mixture(sensitivities, pace.like))
    exchanged = [
        _exchanged(sensitivities, budget, free, pace, start)
        for start in starts
        if pace.excess(start.types) <= 0 and _counted(sensitivities, start.types, free) <= budget
    ]
    return min(exchanged, key=lambda mixture: mixture.loss, default=starts[0])


def _priced(
    sensitivities: Sequence[Sensitivity], budget: int, free: Collection[str], pace: Pace, mixture: Mixture
) -> Mixture:
    """The mixture of the lowest price on time that keeps the pace; `mixture` is the one of no price, which does not."""

    def priced(price: float) -> Mixture:
        dear = [
            replace(
                tensor,
                losses={kind: loss + price * pace.time(tensor.name, kind) for kind, loss in tensor.losses.items()},
            )
            for tensor in sensitivities
        ]
        return _mixture(sensitivities, _cheapest(dear, budget, free).types)

    low, high = 0.0, mixture.loss / pace.excess(mixture.types)
    for _ in range(_PRICES):
        mixture = priced(high)
        if pace.excess(mixture.types) <= 0:
            break
        low, high = high, 4 * high
    for _ in range(_PRICES):
        price = (low + high) / 2
        tried = priced(price)
        if pace.excess(tried.types) <= 0:
            mixture, high = min(mixture, tried, key=lambda mixture: mixture.loss), price
        else:
            low = price
    return mixture


def _exchanged(
    sensitivities: Sequence[Sensitivity], budget: int, free: Collection[str], pace: Pace, start: Mixture
) -> Mixture:
    """What one tensor's or two tensors' other types make better, until none does, within the bytes and the time."""
    types = dict(start.types)
    while True:
        # One that changes nothing makes single changes pairs, too.
        moves = [(-1, "", 0.0, 0.0, 0.0)]
        for index, tensor in enumerate(sensitivities):
            own, count = types[tensor.name], tensor.name not in free
            moves += [
                (
                    index,
                    kind,
                    tensor.losses[kind] - tensor.losses[own],
                    float(count * (tensor.bytes[kind] - tensor.bytes[own])),
                    pace.time(tensor.name, kind) - pace.time(tensor.name, own),
                )
                for kind in tensor.losses
                if kind != own
            ]
        indices = np.array([move[0] for move in moves])
        loss, cost, time = (np.add.outer(each, each) for each in np.array([move[2:] for move in moves]).T)
        large = cost > budget - _counted(sensitivities, types, free)
        loss[large | (time > -pace.excess(types)) | np.equal.outer(indices, indices)] = 0.0
        best = int(loss.argmin())
        if loss.flat[best] >= -_NOTHING * max(_mixture(sensitivities, types).loss, 0.0):
            return _mixture(sensitivities, types)
        for index, kind, *_ in (moves[best // len(moves)], moves[best % len(moves)]):
            if index >= 0:
                types[sensitivities[index].name] = kind


def _cheapest(sensitivities: Sequence[Sensitivity], budget: int, free: Collection[str]) -> Mixture:
    """The knapsack: the least loss within the bytes."""
    options = [_useful(tensor, tensor.name in free) for tensor in sensitivities]
    least = sum(types[0][0] for types in options)
    slack = budget - least
    if slack < 0:
        raise EdgekitError(
            f"mixed: {budget:,} bytes are too few: the smallest types that the target runs fast take {least:,};"
            " raise the budget or distil into a smaller student"
        )
    above = [[cost - types[0][0] for cost, _, _ in types] for types in options]
    unit = max(math.gcd(*(cost for costs in above for cost in costs)), -(-slack // _SIZES), 1)
    size = slack // unit + 1
    # best[s]: the least loss of the tensors so far within s units above their smallest types.
    best = np.zeros(size)
    taken: list[NDArray[np.uint8]] = []
    for ranked, costs in zip(options, above, strict=True):
        losses, choice = best + ranked[0][1], np.zeros(size, np.uint8)
        for index, cost in enumerate(costs[1:], 1):
            units = -(-cost // unit)
            if units >= size:
                break
            tried = best[: size - units] + ranked[index][1]
            better = tried < losses[units:]
            losses[units:][better] = tried[better]
            choice[units:][better] = index
        taken.append(choice)
        best = losses
    types: dict[str, str] = {}
    left = size - 1
    for tensor, ranked, costs, choice in reversed(list(zip(sensitivities, options, above, taken, strict=True))):
        index = int(choice[left])
        left -= -(-costs[index] // unit)
        types[tensor.name] = ranked[index][2]
    return _mixture(sensitivities, types)


def _counted(sensitivities: Sequence[Sensitivity], types: Mapping[str, str], free: Collection[str]) -> int:
    """The bytes that a budget is about."""
    return sum(tensor.bytes[types[tensor.name]] for tensor in sensitivities if tensor.name not in free)


def refine(
    sensitivities: Sequence[Sensitivity],
    budget: int,
    kl: Callable[[Mapping[str, str]], float],
    *,
    evaluations: int = 24,
    free: Collection[str] = (),
    pace: Pace | None = None,
) -> Refined:
    """The mixture whose measured KL is least, in at most `evaluations` calls of `kl(type by tensor)`, nats a token.

    First each group of tensors (by role, and by depth where the calls suffice) takes its smallest types while all others keep
    their largest: what that costs corrects the group's predicted losses. Then, while calls are left, the heaviest groups'
    losses are doubled or halved and the types chosen again; a mixture that measures better stays. `kl` must not see prompts
    that verify.
    """
    known: dict[tuple[str, ...], float] = {}

    def ask(types: Mapping[str, str]) -> float:
        key = tuple(types[tensor.name] for tensor in sensitivities)
        if key not in known:
            known[key] = kl(types)
        return known[key]

    groups = _groups(sensitivities, evaluations // 2)
    first = allocate(sensitivities, budget, free=free, pace=pace)
    chosen, least = first, ask(first.types)
    first_kl, scales = least, dict.fromkeys(sorted(set(groups.values())), 1.0)

    def attempt(tried: Mapping[str, float]) -> bool:
        nonlocal chosen, least, scales
        mixture = allocate(_scaled(sensitivities, groups, tried), budget, free=free, pace=pace)
        measured = ask(mixture.types)
        if measured < least * (1 - _WORTH):
            chosen, least, scales = mixture, measured, dict(tried)
            return True
        return False

    if len(scales) + 3 <= evaluations:
        probed = _probe(sensitivities, groups, ask)
        if not attempt(probed):
            # The geometric mean of what was predicted and what was measured.
            attempt({group: math.sqrt(scale) for group, scale in probed.items()})
    for group, factor in _steps(sensitivities, groups, chosen):
        if len(known) >= evaluations:
            break
        while attempt(scales | {group: scales[group] * factor}) and len(known) < evaluations:
            pass
    return Refined(
        mixture=_mixture(sensitivities, chosen.types),
        kl=least,
        scales=scales,
        evaluations=len(known),
        first_kl=first_kl,
    )


def read_budget(tokens_per_second: float, bandwidth_gbs: float) -> int:
    """Bytes that may be read per token for a decode rate at a memory bandwidth, in 10^9 bytes a second."""
    return int(bandwidth_gbs * 1e9 * _ROOFLINE / tokens_per_second)


def _useful(tensor: Sensitivity, free: bool) -> list[tuple[int, float, str]]:
    """(cost, loss, type) from the smallest up, without those that cost as much as a better one."""
    useful: list[tuple[int, float, str]] = []
    for cost, loss, kind in sorted(
        (0 if free else tensor.bytes[kind], tensor.losses[kind], kind) for kind in tensor.bytes
    ):
        if not useful or loss < useful[-1][1]:
            useful.append((cost, loss, kind))
    return useful


def _mixture(sensitivities: Sequence[Sensitivity], types: Mapping[str, str]) -> Mixture:
    return Mixture(
        types={tensor.name: types[tensor.name] for tensor in sensitivities},
        bytes=sum(tensor.bytes[types[tensor.name]] for tensor in sensitivities),
        loss=math.fsum(tensor.losses[types[tensor.name]] for tensor in sensitivities),
    )


def _scaled(
    sensitivities: Sequence[Sensitivity], groups: Mapping[str, str], scales: Mapping[str, float]
) -> list[Sensitivity]:
    return [
        replace(tensor, losses={kind: loss * scales[groups[tensor.name]] for kind, loss in tensor.losses.items()})
        for tensor in sensitivities
    ]


def _probe(
    sensitivities: Sequence[Sensitivity], groups: Mapping[str, str], ask: Callable[[Mapping[str, str]], float]
) -> dict[str, float]:
    """Measured over predicted growth of the KL, per group, when its tensors go from their best to their smallest types."""
    small = {tensor.name: _useful(tensor, False)[0][2] for tensor in sensitivities}
    large = {tensor.name: _useful(tensor, False)[-1][2] for tensor in sensitivities}
    floor, scales = ask(large), {}
    for group in sorted(set(groups.values())):
        members = [tensor for tensor in sensitivities if groups[tensor.name] == group]
        predicted = math.fsum(
            tensor.losses[small[tensor.name]] - tensor.losses[large[tensor.name]] for tensor in members
        )
        measured = ask(large | {tensor.name: small[tensor.name] for tensor in members}) - floor
        # What cannot be told from nothing keeps a little weight, so that bytes left over still go to it.
        scales[group] = max(measured, 1e-3 * predicted) / predicted if predicted > 0 else 1.0
    return scales


def _steps(
    sensitivities: Sequence[Sensitivity], groups: Mapping[str, str], chosen: Mixture
) -> Iterator[tuple[str, float]]:
    """Which group's losses to change next, and by what factor: the heaviest first, both ways."""
    heavy: dict[str, int] = {}
    for tensor in sensitivities:
        heavy[groups[tensor.name]] = heavy.get(groups[tensor.name], 0) + tensor.bytes[chosen.types[tensor.name]]
    for step in (2.0, 1.5):
        for group in sorted(heavy, key=lambda name: (-heavy[name], name)):
            yield group, step
            yield group, 1 / step


def _groups(sensitivities: Sequence[Sensitivity], most: int) -> dict[str, str]:
    """The group of each tensor: its role, and the third of the depth where that makes no more than `most` groups."""
    blocks = {
        tensor.name: int(match[1]) for tensor in sensitivities if (match := _ROLE.match(tensor.name)) and match[1]
    }
    depth = max(blocks.values(), default=0) + 1
    fine = {
        tensor.name: f"{role_of(tensor.name)}/{3 * blocks[tensor.name] // depth}"
        if tensor.name in blocks
        else role_of(tensor.name)
        for tensor in sensitivities
    }
    return fine if len(set(fine.values())) <= most else {tensor.name: role_of(tensor.name) for tensor in sensitivities}


def role_of(name: str) -> str:
    """A tensor's name without its layer and without "weight"."""
    match = _ROLE.match(name)
    return match[2] if match else name
