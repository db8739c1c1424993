"""Fills README's generated tables from the code: `python tests/readme.py --write`. The test suite checks that they are current."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click

README = Path(__file__).resolve().parents[1] / "README.md"


def commands_table() -> str:
    """Every command with the first line of its help."""
    from edgekit.cli import cli

    rows = ["| command | what it does |", "|---|---|"]
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            verbs = "\\|".join(command.commands)
            rows.append(f"| `edgekit {name} {verbs}` | {first_sentence(command)} |")
        else:
            rows.append(f"| `edgekit {name}` | {first_sentence(command)} |")
    return "\n".join(rows)


def targets_table() -> str:
    """Every packaged target with what its file says of the hardware."""
    from edgekit.recipe import packaged
    from edgekit.target import load_target

    rows = ["| target | device | cores | features that matter | encoders | decoders |", "|---|---|---|---|---|---|"]
    for path in sorted(packaged("targets").glob("*.toml")):
        target = load_target(str(path))
        facts = target.hardware
        schemes = []
        for task in ("text-classification", "text-generation"):
            table = target.export_for(task)
            schemes.append(f"{table['format']} {table.get('scheme', 'auto')}")
        telling = [name for name in facts.features if name in TELLING] or ["none"]
        rows.append(
            f"| `{target.name}` | {target.title} | {facts.cores} | {', '.join(telling)} | {' | '.join(schemes)} |"
        )
    return "\n".join(rows)


def families_table() -> str:
    """Every family with what it can be built as."""
    from edgekit.architectures import ARCHITECTURES, is_decoder
    from edgekit.architectures.gguf import Gguf

    rows = ["| family (`model_type`) | what it is | tasks | ONNX | GGUF |", "|---|---|---|---|---|"]
    for name, module in sorted(ARCHITECTURES.items()):
        said = str(getattr(module, "__doc__", "")).strip().splitlines()[0].partition(": ")[0].rstrip(".")
        decoder, gguf = is_decoder(module), getattr(module, "GGUF", None)
        encoder = "text-classification, feature-extraction" if module.LAYERS else "text-classification"
        tasks = "text-generation" if decoder else encoder
        written = "yes" if isinstance(gguf, Gguf) else "no"
        rows.append(
            f"| `{name}` | {said} | {tasks} | yes | {written if decoder or written == 'no' else 'embeddings'} |"
        )
    return "\n".join(rows)


def checks_table() -> str:
    """What each check proves, as `edgekit explain` says it."""
    from edgekit.verify.explain import EXPLANATIONS

    told = []
    for name, text in EXPLANATIONS.items():
        first, _, rest = text.partition("\n")
        told.append(f"- `{name}`: **{first}** {' '.join(rest.split())}")
    return "\n".join(told)


def losses_table() -> str:
    """Every loss: what it is, what it is for, its weight by default and its source."""
    from edgekit.distill.losses import LOSSES

    kinds = {"logits": "classification", "embedding": "embeddings", "tokens": "generation"}
    rows = ["| loss | what it is | for | source | by default |", "|---|---|---|---|---|"]
    for name, loss in LOSSES.items():
        uses = ", ".join(kinds[output] for output in loss.weights)
        given = ", ".join(f"{kinds[output]} {weight:g}" for output, weight in loss.weights.items() if weight)
        rows.append(f"| `{name}` | {loss.formula} | {uses} | {loss.source} | {given} |")
    return "\n".join(rows)


def students_table() -> str:
    """Every kind of student: what it is made of, and what asks for it."""
    from edgekit.distill.students import STUDENTS

    asked = {
        "created": "`[teacher.create]`",
        "cut": "`[student]` with `layers` or `keep`, `intermediate`, `heads`, `hidden`",
        "hashed": '`student = "ngrams"`',
        "whole": "`[teacher.finetune]`, `[qad]`",
    }
    rows = ["| student | what it is | in the recipe |", "|---|---|---|"]
    rows += [f"| `{name}` | {first_line(kind.options)} | {asked[name]} |" for name, kind in STUDENTS.items()]
    return "\n".join(rows)


def signals_table() -> str:
    """Where a teacher's answers come from."""
    from edgekit.distill.teachers import TEACHERS

    asked = {
        "recorded": '`signals = "recorded"`; Sparse Logit Sampling, arXiv:2503.16870',
        "kept": "by itself",
        "live": "by itself; `[distill.on_policy]` (GKD, arXiv:2306.13649)",
    }
    rows = ["| teacher | what it is | when |", "|---|---|---|"]
    rows += [f"| `{name}` | {first_line(kind)} | {asked[name]} |" for name, kind in TEACHERS.items()]
    return "\n".join(rows)


def first_line(documented: object) -> str:
    """The first statement of what a class or function says of itself."""
    return str(documented.__doc__).strip().splitlines()[0].partition(";")[0].rstrip(".")


def platforms_table() -> str:
    """What apps are given by platform, and where it ran."""
    from edgekit.bundle.platforms import EMBEDDINGS, PLATFORMS

    said = {"logits": "classifiers", "embedding": "embedders", "tokens": "models that write"}
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (runtime, _, output, platform), found in EMBEDDINGS.items():
        rows.setdefault((platform, runtime, found.ran), []).append(said[output])
    lines = ["| `--for` | runtime | what | where it ran |", "|---|---|---|---|"]
    for platform in PLATFORMS:
        for (name, runtime, ran), kinds in rows.items():
            if name == platform:
                lines.append(f"| `{name}` | {runtime} | {', '.join(kinds)} | {ran} |")
    return "\n".join(lines)


# CPU features that decide how fast INT8 is.
TELLING = ("asimddp", "i8mm", "avx2", "avx_vnni", "avx512_vnni", "simd128")

TABLES: dict[str, Callable[[], str]] = {
    "commands": commands_table,
    "targets": targets_table,
    "families": families_table,
    "checks": checks_table,
    "losses": losses_table,
    "students": students_table,
    "signals": signals_table,
    "platforms": platforms_table,
}


def first_sentence(command: click.Command) -> str:
    """The first sentence of a command's help."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".") + "."


def fill(text: str) -> str:
    """README's text with every generated block as the code has it now."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- {name}: generated by make docs -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda m, make=make: m[1] + make() + "\n" + m[2], text, flags=re.DOTALL)
        assert found == 1, f"README.md needs one block for {name}"
    return text


if __name__ == "__main__":
    filled = fill(README.read_text(encoding="utf-8"))
    if "--write" in sys.argv:
        README.write_text(filled, encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(filled)
