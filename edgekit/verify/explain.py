"""What each check of a report proves: `edgekit explain CHECK` prints these texts, README and the report show them."""

from __future__ import annotations

from edgekit.errors import EdgekitError
from edgekit.schema import nearest

# At most ten lines of 80 columns each; the first line says it all in one sentence.
EXPLANATIONS: dict[str, str] = {
    "accuracy": """\
How many right answers the artifact loses against another model, on the same prompts.
accuracy_vs_student compares with the float student (what export cost), and
accuracy_vs_teacher with the teacher (what distillation and export cost). From
the prompts that flip both ways follows a bound that the true loss exceeds in 5
% of cases at most (Tango's score interval; of prompts in groups, one over
groups). pass: the upper bound is within the margin. fail: the lower one is
beyond it. not proven: the rest, and a reference no better than the most
frequent label. It takes prompts, or groups, for independent and like those of
real use. `accuracy` alone is the share of right answers, whose exact lower
bound must reach accuracy.at_least.""",
    "agreement": """\
How often the artifact answers otherwise than another model, where no right answers are known.
An answer that stays the same costs nothing, so the loss of accuracy is at most
the share of prompts whose answers differ, and the exact upper bound of that
share bounds it, too. pass: that bound is within the margin. It never fails: an
answer that differs may have become right. not proven: too many differ for a
proof, so label the prompts, or give more; or the reference gives nearly one
answer to all.""",
    "close": """\
How many prompts the artifact moves far away, which a mean does not show.
Of embeddings, those whose 1 - cosine to the float student's exceeds
accuracy.far_cosine (0.02); of a decoder, those whose KL divergence per token
exceeds accuracy.far_kl (ten times the limit of kl). Their share has an exact
bound (Clopper and Pearson). pass: it is within accuracy.far_share: 5 % of
embeddings, which 59 prompts prove where none is far, 1 % of a decoder's
prompts, which 300 prove. fail: the lower bound is beyond it.""",
    "cosine": """\
How far the artifact's embeddings point from the float student's, as 1 - cosine, on average.
It is shown, and judged only where the recipe has accuracy.cosine_margin: it
needs 598 prompts to prove 0.01 where nothing is lost. The bound holds for the
mean over prompts like these, whatever its distribution, with 95 % confidence.
Of single texts `close` says more. pass: the bound is within
accuracy.cosine_margin.""",
    "neighbours": """\
How often a prompt's nearest other prompt stays the nearest in the artifact's embeddings.
Search and clustering live from who is near whom, not from the vectors. For each
prompt the nearest of the others is found by the float student and by the
artifact; the share that differs is bounded with 95 % confidence. pass: the bound
is within accuracy.neighbour_margin. Among few prompts, neighbours are easier to
keep than among a million.""",
    "kl": """\
How far the artifact's next-token probabilities are from the float student's (KL divergence, nats a token).
0 is equal; 4-bit files of good quality have 0.01 to 0.1. A prompt is one
observation, all passages of a text and all texts of a group are one: their
tokens err together. Fewer than 100 bound nothing. Where few prompts have most
of the loss, others like them may be missing, and it is not proven; `close`
bounds how many are far off. Where the vocabulary is larger than 512 it is a
lower bound of the whole divergence: the likeliest 512 tokens count one by one,
the rest as one. pass: the upper bound is within accuracy.kl. fail: the lower
one is beyond it.""",
    "top1": """\
How often the artifact's likeliest next token is the float student's.
On the verify texts, token by token; the bound is over whole prompts, because
tokens of one prompt are not independent. Where the student itself is undecided
between two tokens a change of the likeliest one costs little, so read it beside
kl. pass: the bound of the share is at least accuracy.top1.""",
    "perplexity": """\
How much more surprised the artifact is by real text than the float student, as a ratio of perplexities.
1.00 is as the student; 1.05 means that each token costs 5 % more choices. Only
where prompts have wanted answers or are running texts does it say how well the
model knows the language; the bound is over prompts. pass: the bound is within
accuracy.perplexity.""",
    "answer_length": """\
Whether the artifact's own answers are as long as the float student's: what rambles or stops early shows here.
Both answer the same prompts greedily. The shorter of the two mean lengths is
divided by the longer; 1.0 is equal. Damaged models repeat themselves to the
limit or end at once long before kl tells. pass: the bound is at least
accuracy.answer_length.""",
    "out_of_scope_recall": """\
Whether enough of the texts that belong to no class are rejected (rejection.recall of the recipe).
The threshold was fitted on the calibrate prompts; here the verify prompts of no
class are counted. The bounds are exact for independent prompts (Clopper and
Pearson). pass: the lower bound of the share is at least the wanted one. fail:
the upper bound is below it. 100 such prompts leave about 8 points open.""",
    "contentless": """\
Whether texts that say nothing ("uh", a stuck key) are rejected rather than given a class.
A fixed list is asked of the artifact; none of it was taught. Texts without a
letter or a digit need no check: the loader rejects them by rule. not proven:
some of the list got a class; the report names them.""",
    "tokenizer": """\
Whether the tokenizer that ships, and the chat template, turn texts into the original's tokens.
A model that is fed other tokens than it was trained on is wrong with a perfect
file. Texts of many scripts, your prompts and whole conversations are read by the
runtime that ships and by the checkpoint's own tokenizer; the ids must be equal.
llama.cpp runs a chat template in an engine of its own: where llama-server is in
PATH (or EDGEKIT_LLAMA_SERVER names one) it writes them too, else Python does, and
what that engine has not is looked for: the report says which. fail: the first
text that differs is named.""",
    "device_tokenizer": """\
Whether the tokenizer that apps have on the device gives the ids that were judged.
Shown only where it is another one than here: in a browser the library that pages
use reads the verify prompts, of a GGUF file wllama's own llama.cpp. fail: the
first prompt that becomes other ids is named; such texts get answers that nobody
judged.""",
    "reference": """\
Whether the artifact was compared with the teacher that the recipe asks for.
Shown only where it was not: the record's teacher is another model, so the loss
against it would say nothing. The comparison with the float student stands;
against the teacher nothing is judged, the verdict is not proven, and `package`
refuses it. Record the right teacher, or name in the recipe the one that is.""",
    "finite_outputs": """\
Whether the artifact answers with numbers at all: no NaN and no infinity.
Shown only where it failed. 16-bit floats end at 65504; activations of some
models do not. It was seen on the verify prompts; other texts may overflow where
these did not.""",
    "bytes": """\
Whether what ships is within the target's size limit (budget.bytes).
The artifact's files are added, the tokenizer that lies beside an ONNX file and
the loader are not. An exact count: it passes or fails.""",
    "p50_ms": """\
Whether half of all calls are answered within the limit, on a machine that may vouch for the target.
Batch 1 at budget.sequence tokens; of a decoder, one new token. Eight processes
time up to 200 calls each, and a process is one observation: its calls are alike.
pass: the upper bound over processes is within the limit. fail: the lower one is
beyond it. not proven: processes disagree, other programs or heat slowed the
machine, or its CPU, features, cores or speed are not the target's (a speed may
differ by a factor of 2; how much faster the machine is, is multiplied in).
Every judged measurement of an artifact on a device is kept and judged with the
others: to measure again until it passes does not work.""",
    "p95_ms": """\
Whether 19 of 20 calls are answered within the limit, on a machine that may vouch for the target.
As p50_ms, of the slow end. The bound is of the p95 over all calls of all
processes: at the limit it passes in at most 5 % of cases, also where calls are
autocorrelated, come in slow phases, or each run is shifted by 5 %. A slow phase
that none of the processes met stays unseen; your app's own load, heat and power
saving come on top.""",
    "p99_ms": """\
Whether 99 of 100 calls are answered within the limit, on a machine that may vouch for the target.
As p95_ms, of the slowest call in a hundred. Each of eight processes then times
at least 99 calls: fewer have no 99th. Garbage collectors, schedulers and other
programs make most of such calls, so they are your app's more than the model's.""",
    "ttft_ms": """\
Whether the first token comes within the limit after a prompt of budget.sequence tokens.
The prompt is read in one go by the runtime that ships, with an empty cache. Each
of eight processes gives one observation, the median of its calls. As p50_ms it
can pass or fail only on a quiet machine that matches the target.""",
    "tokens_per_second": """\
Whether new tokens are written as fast as the target wants (budget.tokens_per_second).
The median time of a new token, turned round, behind a prompt of 256 tokens:
behind a longer one each token reads more cache and takes longer. Each of eight
processes gives one observation. As p50_ms it can pass or fail only on a quiet
machine that matches the target.""",
    "memory_mb": """\
Whether the whole process stays within the target's memory limit (budget.memory_mb).
The peak that the operating system tells of the process that answered: Python,
NumPy, runtime, weights, buffers and cache. The loader alone in your app needs
about the same; a runtime in C++ about 70 MB less. not proven: the machine may not
vouch for the target (see p50_ms), or its system does not tell.""",
    "as_original": """\
Whether the checkpoint was read as its owner reads it, before anything was quantized.
What the artifact is compared with is edgekit's own reading of the checkpoint. It
is held against transformers: the tokens of every verify prompt (through the chat
template, where there is one), and answers of the float model. The same weights
and settings give the same of both. fail: a setting of the checkpoint's files is
not applied, so all other checks are about another model.""",
    "plausibility": """\
Whether the measured times are possible at all on the machine that measured them.
Operations per call over the measured peak, and bytes per call over the measured
bandwidth, give a time that nothing can beat. A median below it means that a
clock, a cache or a measurement is wrong, and then no time of this report is to be
trusted: it is not proven.""",
    "provider": """\
Whether the execution provider that the target asks for really did the work (ONNX).
onnxruntime falls back to the CPU without a word where a provider lacks an
operator or cannot start. A profile tells: the given share of the matrix products,
and of attention, must have run on the provider. For the CPU it is always so.
A runtime that may take another precision than the one asked for (OpenVINO): all
products must be in that one, or in integers where the file has integers.
fail: a silent fallback; where the provider did not start, in onnxruntime's words.
not proven: this machine does not have the provider, or no known product was seen.""",
    "offload": """\
Whether as many layers as the target asks for really lie on the GPU (llama.cpp).
llama.cpp keeps layers on the CPU without an error where it was built without the
GPU's backend or the memory is full. The layers are counted where they lie.
0 of 0 is right for a target that asks for none.""",
    "as_on_host": """\
Whether the artifact answers on the device as it does on the machine that built it.
Shown where the device is another machine. The same file gets the same prompts
here and there, and both are held against the float student: the figure is the
device's mean error (squared distance; of a decoder KL divergence) by the one
here. Rounding moves single answers both ways and leaves it near 1. pass: its
upper bound is within 1.25. fail: the lower one is beyond it, so something there
computes otherwise: the cause is looked for (16-bit sums that saturate, numbers
that are not finite, denormals, half precision, a wrong kernel) and named.""",
    "arithmetic": """\
Whether the target's INT8 products give the sums that were judged here.
x86 CPUs without VNNI add pairs of products in 16 bits and saturate; ARM and CPUs
with VNNI do not. Where host and target differ, and weights of the artifact can
saturate, the accuracy measured here is not the target's: not proven. The share
of weight pairs that may exceed 16 bits is shown. pass: both are alike, or nothing
can saturate, or the session asks for exact sums.""",
}


def explain(check: str) -> str:
    """What a check proves, by its name in a report ("accuracy_vs_teacher", "p95_ms").

    Raises EdgekitError for a name that no check has.
    """
    name = check.partition("_vs_")[0]
    if name not in EXPLANATIONS:
        raise EdgekitError(
            f"{check}: no check of this name{nearest(name, EXPLANATIONS)}; `edgekit explain` lists them all"
        )
    return EXPLANATIONS[name]
