"""What a recipe may say about training; read without torch, so that a bad key is told in a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import cos, pi
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from edgekit.distill import losses
from edgekit.distill.augment import Augment, TaughtAugment, check_augment
from edgekit.distill.divergences import LossOptions
from edgekit.distill.rewards import Reward, check_reward
from edgekit.distill.splice import check_spliced
from edgekit.errors import EdgekitError
from edgekit.inputs import BESIDE, LATER
from edgekit.outputs.tokens import TOKENS
from edgekit.schema import nearest, parse

# Above this much memory the teacher answers each batch anew instead of once per text.
SIGNAL_BYTES = 2 << 30
# What teaches a student on a grid where a recipe does not say: what it answers, and no more.
ON_GRID_LOSSES = ("embedding", "logits")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train. `holdout` is the share of train texts kept aside for the early stop; `patience` counts epochs.

    `device` is where: "auto" takes the accelerator that torch finds, else the CPU. `micro_batch` rows of a batch go through the
    models at once, without it all: less memory, the same loss. `tensorboard`: whether what is told of each step is written for
    TensorBoard too. `processes` share each batch's rows on this machine: on CUDA each has a GPU of its own. `packing`: of a
    decoder, texts of a batch share rows of max_length, with the same loss.

    Without `learning_rate`: 2e-4 at 384 channels, falling as 1 / width (Adam's rate for hidden weights under maximal update
    parametrisation, arXiv:2203.03466, table 3).
    """

    epochs: Annotated[int, Gt(0)] = 10
    learning_rate: Annotated[float, Gt(0)] | None = None
    batch: Annotated[int, Gt(0)] = 32
    micro_batch: Annotated[int, Gt(0)] | None = None
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.1
    weight_decay: Annotated[float, Ge(0)] = 0.01
    clip: Annotated[float, Gt(0)] = 1.0
    holdout: Annotated[float, Ge(0), Lt(0.5)] = 0.05
    patience: Annotated[int, Gt(0)] = 3
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    tensorboard: bool = field(default=False, metadata=BESIDE)
    processes: Annotated[int, Gt(0)] = field(default=1, metadata=BESIDE)
    packing: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class CreateOptions(TrainingOptions):
    """A decoder made from nothing: its size, and how to train it.

    `vocabulary` is the most tokens that its tokenizer may have (special tokens included), `kv_heads` are as many as `heads`
    where not given, and `intermediate` is three times `hidden`. For llama.cpp's K-quants `hidden` and `intermediate` must be
    multiples of 256. `tokens` are texts that are one token each and no part of any word, as `<|fim_prefix|>` is to code models.
    Without `learning_rate`: 2e-3 at 256 channels, falling as 1 / width. A small `batch` makes the most of few
    tokens: on the stories, 2,280 steps of 2 texts ended at a held-out perplexity of 2.5, 912 steps of 4 at 4.2.
    """

    family: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    vocabulary: Annotated[int, Ge(300)] = 4096
    hidden: Annotated[int, Gt(0)] = 256
    layers: Annotated[int, Gt(0)] = 4
    heads: Annotated[int, Gt(0)] = 4
    kv_heads: Annotated[int, Gt(0)] | None = None
    intermediate: Annotated[int, Gt(0)] | None = None
    context: Annotated[int, Gt(1)] = 512
    tied: bool = True
    tokens: Sequence[Annotated[str, Len(1)]] | None = field(default=None, metadata=LATER)
    batch: Annotated[int, Gt(0)] = 4
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.05
    weight_decay: Annotated[float, Ge(0)] = 0.1


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number that goes from `start` to `end` over a training's steps, in a line or along half a cosine."""

    start: Annotated[float, Ge(0)]
    end: Annotated[float, Ge(0)]
    shape: Literal["linear", "cosine"] = "linear"


def at(value: float | Schedule, share: float) -> float:
    """A number, or what a schedule says after this share of the steps."""
    if not isinstance(value, Schedule):
        return value
    gone = share if value.shape == "linear" else (1 - cos(pi * share)) / 2
    return value.start + (value.end - value.start) * gone


@dataclass(frozen=True, kw_only=True)
class Taid(Schedule):
    """The teacher's share t in a teacher between student and teacher (`divergences.interpolate`), over a training's steps.

    The paper's: from 0.4 to 1 in a line. adaptive: its alpha (5e-4 there), how much faster t may rise while the loss falls; 0
    keeps to the schedule. TAID, Shing et al. (arXiv:2501.16937), sections 3 and 5.
    """

    start: Annotated[float, Ge(0), Le(1)] = 0.4
    end: Annotated[float, Gt(0), Le(1)] = 1.0
    adaptive: Annotated[float, Ge(0), Le(1)] = 0.0


Share = Annotated[float, Gt(0), Lt(1)]
Weight = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Of a decoder: how often the student's own words are what its teacher answers (GKD, arXiv:2306.13649).

    share: with which probability a step's tokens are not the data's but sampled from the student as it then is, behind the
    prompts of the same rows; of running text the first part of each passage, `prompt` of its tokens. It writes at most
    `new_tokens` a row, and no passage longer than data.max_length; temperature: of the sampling, 0 for the likeliest token.
    reward: what its answers are worth beside the losses, which keep it near its teacher.
    """

    share: Annotated[float, Gt(0), Le(1)] | Schedule = 0.5
    new_tokens: Annotated[int, Gt(0)] = 128
    temperature: Annotated[float, Ge(0)] = 1.0
    prompt: Share = 0.5
    reward: Reward | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class Assistant:
    """A student of so many of its teacher's blocks that teaches the next one. Mirzadeh et al. (arXiv:1902.03393)."""

    layers: Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainingOptions):
    """How to teach a student. `losses` maps names in LOSSES to weights; {"labels": 1.0} alone is a run without a teacher.

    A weight, and the temperature, may be a Schedule. `per`: of a decoder, whether the mean is over tokens or over texts first.
    `jensen_shannon`, `skew` and `alpha_beta` are the parameters of the losses of that name, `correct_teacher`, `confidence` and
    `label_smoothing` what `LossOptions` says. `control`: whether the same student is trained without its teacher too. `signals`:
    whether the teacher answers while the student learns, or once, on disk (`recorded`): each further student, or a longer
    training, then needs no teacher. `taid`: whether losses of logits see a teacher that begins near the student.
    `augment`: of encoders, how the texts are changed in each epoch. `on_policy`: of a decoder, whether it learns from what it
    writes itself too. `assistants`: students between the teacher and this one, the largest first, each taught by the one before.
    `spliced`: of encoders, how many new texts of each the teacher answers too (`splice`).
    """

    temperature: Annotated[float, Gt(0)] | Schedule = 2.0
    losses: dict[str, Weight | Schedule] | None = None
    per: Literal["token", "sequence"] = "token"
    jensen_shannon: Share = 0.5
    skew: Share = 0.1
    alpha_beta: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.2, 0.7)
    correct_teacher: Share | None = None
    confidence: Annotated[float, Ge(0)] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    control: bool = False
    signals: Literal["live", "recorded"] = "live"
    taid: Taid | None = field(default=None, metadata=LATER)
    augment: TaughtAugment | None = field(default=None, metadata=LATER)
    on_policy: OnPolicy | None = field(default=None, metadata=LATER)
    assistants: tuple[Assistant, ...] = field(default=(), metadata=LATER)
    spliced: Annotated[int, Ge(0), Le(100)] = field(default=0, metadata=LATER)


def loss_options(options: TrainingOptions, share: float) -> LossOptions:
    """What losses are told after this share of the steps."""
    if not isinstance(options, DistillOptions):
        return LossOptions()
    return LossOptions(
        temperature=at(options.temperature, share),
        jensen_shannon=options.jensen_shannon,
        skew=options.skew,
        alpha=options.alpha_beta[0],
        beta=options.alpha_beta[1],
        correct_teacher=options.correct_teacher,
        confidence=options.confidence,
        label_smoothing=options.label_smoothing,
        taid=1.0 if options.taid is None else at(options.taid, share),
    )


def answers_anew(options: TrainingOptions) -> bool:
    """Whether a teacher is asked in each epoch, since the texts that it answers to change, or are what its student writes."""
    if not isinstance(options, DistillOptions):
        return False
    return options.on_policy is not None or (options.augment is not None and options.augment.answers == "asked")


@dataclass(frozen=True, kw_only=True)
class NgramsOptions(DistillOptions):
    """How to teach a student of n-grams, by the same keys. Each of its weights is learned from few texts: steps are large."""

    epochs: Annotated[int, Gt(0)] = 15
    learning_rate: Annotated[float, Gt(0)] | None = 0.01
    batch: Annotated[int, Gt(0)] = 128
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Ngrams:
    """A student of hashed n-grams: its table's rows and their width; of each kind of n-gram the tokens' distances from the first.

    spelling: the same of the characters within a token, of which so many are read. dropout: the share of a text's n-grams that
    are left out while it learns, others each time.
    """

    FAMILY: ClassVar[str] = "ngrams"
    buckets: int = 20000
    width: int = 32
    characters: int = 8
    dropout: float = 0.3
    grams: Sequence[Sequence[int]] = ((0,), (0, 1), (0, 2))
    spelling: Sequence[Sequence[int]] = ((0, 1, 2), (0, 1, 2, 3))


# The keys of a [distill] table, by the kind of student, and whether such a student has blocks, which some losses compare.
TAUGHT: dict[str, tuple[type[DistillOptions], bool]] = {"cut": (DistillOptions, True), "ngrams": (NgramsOptions, False)}


@dataclass(frozen=True, kw_only=True)
class QadOptions(DistillOptions):
    """How to train a student on the grid of its file (quantization-aware distillation).

    By default the teacher's answers alone teach: what rounding broke is measured against them. Without `learning_rate`: 5e-5 at
    384 channels (a quarter of that for "both"), falling as 1 / width.

    `train`: the weights, whose scales then follow from them as in a plain export; the scales of the file's blocks alone, which is
    quick; or both, each for itself. Scales that are learned begin, of GGUF and of ONNX w4, where
    rounding with feedback (GPTQ) ends.
    """

    train: Literal["weights", "scales", "both"] = field(default="weights", metadata=LATER)
    epochs: Annotated[int, Gt(0)] = 3
    temperature: Annotated[float, Gt(0)] | Schedule = 1.0


def read_qad_options(
    table: Mapping[str, object], output: str, where: str
) -> tuple[QadOptions, dict[str, float | Schedule]]:
    """A recipe's [qad] table, and the weights of the losses that count: see `read_distill_options`."""
    _check_schedules(table, where)
    options = parse(QadOptions, table, where)
    if options.assistants:
        raise EdgekitError(f"{where}.assistants: they are between teacher and float student; write them in [distill]")
    if options.control:
        raise EdgekitError(f"{where}.control: a control is of the float student; write control = true in [distill]")
    if options.signals == "recorded":
        raise EdgekitError(f"{where}.signals: only [distill] learns from a recorded teacher; remove this key")
    if options.on_policy is not None:
        raise EdgekitError(f"{where}.on_policy: only [distill] learns from what its student writes; remove this table")
    defaults = default_losses(output, blocks=False)
    own = {name: weight for name, weight in defaults.items() if name in ON_GRID_LOSSES}
    return options, _choose_losses(replace(options, losses=options.losses or dict(own)), defaults, output, "qad", where)


def read_distill_options(
    table: Mapping[str, object], output: str, where: str, kind: str = "cut"
) -> tuple[DistillOptions, dict[str, float | Schedule]]:
    """A recipe's [distill] table, and the weights of the losses that count, for a kind of output (logits, embedding, tokens).

    kind: of student, a key of TAUGHT. Raises EdgekitError for unknown keys and losses, for a loss or an option that has no use
    here, and for a micro-batch with losses that compare the rows of a batch.
    """
    _check_schedules(table, where)
    keys, blocks = TAUGHT[kind]
    options = parse(keys, table, where)
    defaults = default_losses(output, blocks=blocks)
    if options.signals == "recorded":
        _check_recorded(options, output, where)
        own = {name: weight for name, weight in defaults.items() if _can_be_recorded(losses.LOSSES[name], output)}
        options = replace(options, losses=options.losses or dict(own))
    return options, _choose_losses(options, defaults, output, output if blocks else kind, where)


def why_no_control(output: str, chosen: Mapping[str, object]) -> str | None:
    """Why a student has no control, one that is taught by the data's labels or next tokens alone; None where it has.

    output: of the task; chosen: the losses that teach the student, by name.
    """
    if not any(losses.LOSSES[name].teacher for name in chosen):
        return "its losses read no teacher: this student is its own control"
    if output not in losses.LOSSES["labels"].weights:
        return f"without a teacher nothing teaches such a student: its texts have no labels to learn from ({output})"
    return None


def _can_be_recorded(loss: losses.Loss, output: str) -> bool:
    """Whether a loss needs no more of the teacher than was recorded: of tokens draws, of rows all of its outputs."""
    if not loss.teacher:
        return True
    return loss.recorded is not None if output == TOKENS.name else loss.needs == {"output"}


def _check_recorded(options: DistillOptions, output: str, where: str) -> None:
    """Refuse what a recorded teacher cannot say: draws of its probabilities at one temperature are right on average only, and
    of a row nothing is there but the row."""
    able = [name for name, loss in losses.LOSSES.items() if output in loss.weights and _can_be_recorded(loss, output)]
    inside = "it is not linear in the teacher's probabilities"
    if output != TOKENS.name:
        inside = "it reads what is inside the teacher, and its outputs alone are recorded"
    for name in options.losses or {}:
        if name in losses.LOSSES and name not in able:
            raise EdgekitError(
                f"{where}.losses.{name}: a recorded teacher cannot teach it: {inside}; use {' and '.join(able)}, or signals ="
                ' "live"'
            )
    if output != TOKENS.name:
        if options.augment is not None and options.augment.answers == "asked":
            raise EdgekitError(
                f'{where}.augment.answers: a recorded teacher is asked nothing; take answers = "kept", or signals = "live"'
            )
        return
    if isinstance(options.temperature, Schedule):
        raise EdgekitError(
            f'{where}.temperature: a teacher is recorded at one temperature; give a number, or signals = "live"'
        )
    for key, given in (
        ("correct_teacher", options.correct_teacher is not None),
        ("confidence", options.confidence > 0),
        ("taid", options.taid is not None),
    ):
        if given:
            raise EdgekitError(
                f'{where}.{key}: needs all of the teacher\'s probabilities; remove it, or signals = "live"'
            )


def _choose_losses(
    options: DistillOptions, defaults: Mapping[str, float], output: str, of: str, where: str
) -> dict[str, float | Schedule]:
    """The losses that count, by name. defaults: all that make sense; of: what others do not apply to."""
    weights: Mapping[str, float | Schedule] = defaults if options.losses is None else options.losses
    for name in weights:
        if name not in defaults:
            problem = f"does not apply to {of}" if name in losses.LOSSES else "unknown loss"
            raise EdgekitError(f"{where}.losses.{name}: {problem}{nearest(name, defaults)}")
    chosen = {name: weight for name, weight in sorted(weights.items()) if max(at(weight, 0.0), at(weight, 1.0)) > 0}
    if not chosen:
        raise EdgekitError(f"{where}.losses: every weight is zero; give at least one of {', '.join(sorted(defaults))}")
    _check_use(options, chosen, output, where)
    return chosen


def _check_schedules(table: Mapping[str, object], where: str) -> None:
    """The tables where a number may be one, each read by itself, so that an error names its key."""
    weights = table.get("losses")
    named = {f"losses.{key}": value for key, value in weights.items()} if isinstance(weights, Mapping) else {}
    written = table.get("on_policy")
    share = written.get("share") if isinstance(written, Mapping) else None
    for key, value in ({"temperature": table.get("temperature"), "on_policy.share": share} | named).items():
        if not isinstance(value, Mapping):
            continue
        schedule = parse(Schedule, value, f"{where}.{key}")
        if key == "on_policy.share" and max(schedule.start, schedule.end) > 1:
            raise EdgekitError(f"{where}.{key}: start and end must be at most 1")
        if key == "temperature" and min(schedule.start, schedule.end) <= 0:
            raise EdgekitError(f"{where}.{key}: start and end must be greater than 0")


def _check_use(options: DistillOptions, chosen: Mapping[str, object], output: str, where: str) -> None:
    """Refuse what would change nothing, and micro-batches of losses that compare rows with each other."""
    entries = {name: losses.LOSSES[name] for name in chosen}
    pairs = [name for name, loss in entries.items() if loss.pairs]
    if pairs and options.micro_batch is not None:
        raise EdgekitError(
            f"{where}.micro_batch: {', '.join(pairs)} compares all rows of a batch with each other; remove one of them,"
            " or make batch smaller"
        )
    if pairs and options.processes > 1:
        raise EdgekitError(
            f"{where}.processes: {', '.join(pairs)} compares all rows of a batch with each other, and each process has some;"
            " train in one, or without this loss"
        )
    taught = [loss for loss in entries.values() if loss.teacher and loss.divergence is not None]
    alike = [loss for loss in taught if not loss.any_width]
    for key, given, of in (
        ("correct_teacher", options.correct_teacher is not None, alike),
        ("confidence", options.confidence > 0, taught),
        ("taid", options.taid is not None, alike),
    ):
        if given and not of:
            raise EdgekitError(
                f"{where}.{key}: no loss compares logits with the teacher's; add one to losses (logits, ...)"
            )
    if options.taid is not None and options.taid.start > options.taid.end:
        raise EdgekitError(
            f"{where}.taid: start ({options.taid.start:g}) is above end ({options.taid.end:g}); swap them"
        )
    if options.label_smoothing and "labels" not in chosen:
        raise EdgekitError(f"{where}.label_smoothing: the loss labels is not among losses; add it, or remove this key")
    if options.augment is not None:
        refuse_augment(options.augment, output, f"{where}.augment")
        inner = [name for name, loss in entries.items() if loss.teacher and loss.needs != {"output"}]
        if options.augment.answers == "kept" and inner:
            raise EdgekitError(
                f"{where}.augment.answers: {', '.join(inner)}: of a changed text's tokens a teacher that read the text as it was"
                ' says nothing; remove them from losses, or take answers = "asked"'
            )
    if options.spliced:
        check_spliced(output, options.signals, f"{where}.spliced", teacher=any(one.teacher for one in entries.values()))
    if options.on_policy is not None:
        _check_on_policy(options, entries, output, where)
    if options.per == "sequence" and output != TOKENS.name:
        raise EdgekitError(f"{where}.per: a text has one output here ({output}); remove this key")


def refuse_augment(asked: Augment | None, output: str, where: str) -> None:
    """Refuse (EdgekitError) texts that are changed where each token is learned, and a table that changes nothing."""
    check_augment(asked, where)
    if asked is not None and output == TOKENS.name:
        raise EdgekitError(f"{where}: a model that writes would learn to write the mistakes; remove this table")


def _check_on_policy(options: DistillOptions, entries: Mapping[str, losses.Loss], output: str, where: str) -> None:
    """Refuse a student's own words where there are none, and where no teacher answers them."""
    if output != TOKENS.name:
        raise EdgekitError(
            f"{where}.on_policy: is for text-generation: other students write nothing; remove this table"
        )
    if options.signals == "recorded":
        raise EdgekitError(
            f'{where}.on_policy: what a student will write is in no recording; use signals = "live", or remove this table'
        )
    if not any(loss.teacher for loss in entries.values()):
        raise EdgekitError(
            f"{where}.on_policy: none of the losses reads the teacher: what the student writes would teach it nothing; add one to"
            " losses (logits, reverse_kl, ...)"
        )
    if options.on_policy is not None and options.on_policy.reward is not None:
        check_reward(options.on_policy.reward, options.on_policy.temperature, f"{where}.on_policy")


def default_losses(output: str, *, blocks: bool = True) -> dict[str, float]:
    """The losses that make sense for a kind of output, and their weights where a recipe names none.

    blocks: whether the student has any, whose outputs and attention can be compared.
    """
    return {
        name: loss.weights[output]
        for name, loss in losses.LOSSES.items()
        if output in loss.weights and (blocks or loss.needs == {"output"})
    }


def read_create_options(table: Mapping[str, object], max_length: int, where: str) -> CreateOptions:
    """A recipe's [teacher.create] table; EdgekitError for unknown keys and for sizes that do not fit together.

    `max_length` is how many tokens the model sees at once in training.
    """
    options = parse(CreateOptions, table, where)
    kv_heads = options.kv_heads or options.heads
    if options.hidden % options.heads or (options.hidden // options.heads) % 2:
        raise EdgekitError(
            f"{where}.heads: {options.heads}: hidden ({options.hidden}) must be heads times an even number of channels"
        )
    if options.heads % kv_heads:
        raise EdgekitError(f"{where}.kv_heads: {kv_heads}: must divide heads ({options.heads})")
    if max_length > options.context:
        raise EdgekitError(
            f"{where}.context: {options.context}: shorter than data.max_length ({max_length}); raise it, or shorten the texts"
        )
    return options


def choose_blocks(depth: int, layers: int | None, keep: Sequence[int] | None, where: str) -> list[int]:
    """Which of the teacher's blocks (0 is the first) the student keeps.

    `keep` names them; `layers` takes that many, evenly spaced from the first to the last. For 12 to 6 that is
    [0, 2, 4, 7, 9, 11], as DistilBERT does (arXiv:1910.01108; scripts/extract_distilbert.py); evenly spaced blocks beat the
    last ones in patient knowledge distillation too (PKD-Skip, arXiv:1908.09355).
    Raises EdgekitError (beginning with `where`) for a number or an index that the teacher does not have.
    """
    if keep is not None and layers is not None:
        raise EdgekitError(f"{where}: give either layers or keep, not both")
    if not depth:
        raise EdgekitError(f"{where}: the teacher has no layers to cut a student from; take another teacher")
    if keep is not None:
        if not keep or sorted(set(keep)) != list(keep) or keep[0] < 0 or keep[-1] >= depth:
            raise EdgekitError(f"{where}.keep: {list(keep)}: expected rising indices from 0 to {depth - 1}")
        return list(keep)
    if layers is None:
        raise EdgekitError(
            f"{where}.layers: missing; how many of the teacher's {depth} layers should the student have?"
        )
    if not 1 <= layers <= depth:
        raise EdgekitError(f"{where}.layers: {layers}: the teacher has {depth} layers; choose from 1 to {depth}")
    if layers == 1:
        return [0]
    # Halves go down, in integers: round((depth - 1) * index / (layers - 1)).
    return [(2 * (depth - 1) * index + layers - 2) // (2 * (layers - 1)) for index in range(layers)]
