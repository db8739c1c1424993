"""The loaders of ONNX decoders for Node.js, pages and C: the Python loader's tokens and text, and transformers' in float."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgekit.bundle.open import Bundle
from edgekit.errors import EdgekitError
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.tasks.text_generation import TEMPLATE
from tests.architectures.decoders import SPECIAL
from tests.artifacts import make_artifact
from tests.bundle.native_apps import WRITES, compile_app, decoder_bundle, lay_app, run_app
from tests.bundle.test_generate import TALK, shipped
from tests.bundle.test_web import visit
from tests.devices.chromium import need_chromium
from tests.devices.native import HERE, need_compiler
from tests.node_packages import need_node, node_modules

# Longer than one piece of a prompt and than the room of a cache; what the tokenizer finds special; then shorter again.
LONG = "turn the kitchen light on and the hall light off, please. " * 30
TEXTS = [
    "turn the light on",
    "turn the light on and",
    "",
    " \n\t",
    "\N{GRINNING FACE} é 漢字 \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
    "\N{ARABIC LETTER MEEM}\N{ARABIC LETTER REH} \u202eon\u202c",
    f"a {SPECIAL[1]} b{SPECIAL[3]}",
    LONG,
    LONG[:900],
    "jazz",
]
BUNDLES: Mapping[str, Mapping[str, Any]] = {
    "float": {"max_position_embeddings": 1024},
    "talks": {"family": "phi3", "chats": True},  # over the length where longrope changes its factors
    "int8": {"max_position_embeddings": 1024, "scheme": "int8-dynamic"},
    "half": {"max_position_embeddings": 1024, "scheme": "fp16"},
}
# Asks the bundle each of what asked.json has, and says the pieces of each answer.
ASK = """
import { readFileSync } from "node:fs";
import { open } from "./load.mjs";
const answer = await open("bundle"), answers = [];
for (const [said, most, choice] of JSON.parse(readFileSync("asked.json", "utf8"))) {
  const pieces = [];
  try {
    for await (const piece of answer(said, most, choice)) pieces.push(piece);
    answers.push({ pieces });
  } catch (failed) { answers.push({ pieces, failed: failed.message }); }
}
console.log(JSON.stringify({ answers, times: answer.times }));
await answer.close();
"""
# Ends answers early, and asks two at once.
TURNS = """
import { open } from "./load.mjs";
const answer = await open("bundle"), said = {};
const whole = async (text, most, choice) => {
  const tokens = [];
  for await (const { token } of answer(text, most, choice)) tokens.push(token);
  return tokens;
};
said.alone = [await whole("turn the light on", 24), await whole("jazz", 24)];
said.together = await Promise.all([whole("turn the light on", 24), whole("jazz", 24)]);
const ending = new AbortController();
said.before = [];
try {
  for await (const { token } of answer("jazz", 24, { signal: ending.signal })) {
    said.before.push(token);
    if (said.before.length === 3) ending.abort(new Error("enough"));
  }
} catch (failed) { said.ended = failed.message; }
for await (const { token } of answer("turn the light on")) { said.first = token; break; }
said.after = await whole("jazz", 24);
said.gone = await whole("jazz", 24, { signal: AbortSignal.abort(new Error("gone")) }).catch((failed) => failed.message);
console.log(JSON.stringify(said));
"""
# Tokens of some logits, of which the fourth is under minP; and how a tokenizer's words are told that takes first spaces away.
PARTS = """
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { Tokenizer } from "@huggingface/tokenizers";
import { createDecoder, createTokens, createWriter, pick } from "./decoder.mjs";
const { logits, tokenizer, answer } = JSON.parse(readFileSync("parts.json", "utf8")), said = { pieces: [] };
const takes = (choice) => Array.from({ length: 2000 }, () => pick(logits, { random: Math.random, ...choice }));
Object.assign(said, { warm: takes({ temperature: 1, minP: 0.1 }), cold: takes({ temperature: 0.25, minP: 0.001 }) });
said.likeliest = [...new Set([...takes({}), ...takes({ temperature: 2, minP: 1 })])];
const tokens = createTokens(Tokenizer, tokenizer, false);
const read = async (ids) => Array.from({ length: 7 }, (_, place) => Number(place === answer[ids.length - 1]));
const follow = createWriter({ context: 99, read }, { ...tokens, encode: () => [1] }, null, { settings: { stop: [] } });
for await (const { text } of follow.answer("time", 6)) said.pieces.push(text);
said.foreign = await createDecoder(ort, readFileSync("foreign.onnx"), {}, {}).catch((failed) => failed.message);
console.log(JSON.stringify(said));
"""

# Asks each bundle what asked.json has for it; then one as a visitor would, in the page to try it, twice at once.
PAGE = """<!doctype html><meta charset="utf-8"><iframe id="page"></iframe><script type="module">
import { open } from "./app.mjs";
const { bundles, tell } = await (await fetch("./asked.json")).json(), said = {};
const until = async (true_) => { while (!true_()) await new Promise((then) => setTimeout(then, 5)); };
try {
  for (const [name, threads, asked] of bundles) {
    const answer = await open(`./${name}/`, { threads });
    const { notes, times } = answer, answers = [];
    for (const [text, most, choice] of asked) {
      const pieces = [];
      try {
        for await (const piece of answer(text, most, choice)) pieces.push(piece);
        answers.push({ pieces });
      } catch (failed) { answers.push({ pieces, failed: failed.message }); }
    }
    said[name] = { notes, times, answers };
    if (name === "float") {
      const ending = new AbortController(), tokens = [];
      said.ended = "no";
      try {
        for await (const { token } of answer("jazz", 24, { signal: ending.signal })) {
          tokens.push(token);
          if (tokens.length === 3) ending.abort(new Error("enough"));
        }
      } catch (failed) { said.ended = failed.message; }
      for await (const { token } of answer("jazz")) { tokens.push(token); break; }
      said.begun = tokens;
    }
    answer.close();
  }
  const page = document.getElementById("page"), find = (id) => page.contentDocument?.getElementById(id);
  page.src = "./index.html";
  await until(() => find("answer")?.textContent.startsWith("ready"));
  const ask = (text) => { find("text").value = text; find("form").requestSubmit(); };
  ask("turn the light on");
  await until(() => find("answer").textContent.length > 2 && !find("answer").textContent.startsWith("ready"));
  ask(said.long = "jazz ".repeat(400));
  await until(() => find("answer").textContent.includes("do not fit"));
  said.refused = find("answer").textContent;
  ask("jazz");
  await until(() => find("answer").textContent.length > 40 && !find("answer").textContent.includes("do not fit"));
  said.shown = find("answer").textContent;
} catch (failed) { said.failed = failed.stack ?? failed.message; }
await fetch(tell, { method: "POST", mode: "no-cors", body: JSON.stringify(said) });
</script>"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {name: decoder_bundle(tmp_path_factory.mktemp(name) / "made", **made) for name, made in BUNDLES.items()}


@pytest.fixture(scope="module")
def wanted(bundles: Mapping[str, Bundle]) -> dict[str, list[dict[str, Any]]]:
    """What the Python loader says to each text, of each bundle."""
    return {name: say(bundle, asked_of(bundle)) for name, bundle in bundles.items()}


def asked_of(bundle: Bundle) -> list[Any]:
    """What is asked: texts, and of a model that talks a conversation, too."""
    return [*TEXTS, TALK] if bundle.manifest.chats else TEXTS


def say(bundle: Bundle, texts: Sequence[Any], most: int = 64, check: bool = True) -> list[dict[str, Any]]:
    """The Python loader's tokens and text behind each of some texts, in this order: in 8 bits what was read before moves the
    rounding, golden answers too (check); or what does not fit."""
    opened, other = (shipped().Bundle(bundle.folder, check=check) for _ in range(2))
    return [say_one(opened, said, most, other) for said in texts]


def say_one(opened: Any, said: Any, most: int, other: Any) -> dict[str, Any]:
    ids, tokens = opened.tokens(said), list[int]()
    if len(ids) >= opened.context:
        return {"failed": f"{len(ids)} tokens do not fit the context of {opened.context}"}
    while len(tokens) < most and len(ids) + len(tokens) < opened.context:
        token = int(opened.read([*ids, *tokens]).argmax())
        if token in opened.stops:
            break
        tokens.append(token)
    return {"tokens": tokens, "text": other(said, max_tokens=most), "asked": ids}


def lay(bundle: Bundle, app: Path, **scripts: str) -> Path:
    """An app in Node.js of a bundle, with some scripts."""
    lay_app(bundle, app, "node")
    (app / "node_modules").symlink_to(node_modules())
    for name, script in scripts.items():
        (app / f"{name}.mjs").write_text(script, encoding="utf-8")
    return app


def run(app: Path, script: str, asked: Sequence[Sequence[Any]] = ()) -> Any:
    (app / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    command = [need_node(), "--disallow-code-generation-from-strings", f"{script}.mjs"]
    ran = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return json.loads(ran.stdout)


def check(found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> None:
    """Of each text the same tokens and text, and no piece cuts a character."""
    for said, answer in zip(found, wanted, strict=True):
        if "failed" in answer:
            assert said == {"pieces": [], "failed": answer["failed"]}
            continue
        assert "failed" not in said, said
        assert [piece["token"] for piece in said["pieces"]] == answer["tokens"]
        assert "".join(piece["text"] for piece in said["pieces"]) == answer["text"]
        assert not any(piece["text"].endswith("\N{REPLACEMENT CHARACTER}") for piece in said["pieces"])


@pytest.mark.parametrize("name", ["float", "talks"])
def test_the_python_loader_says_what_transformers_says(
    bundles: Mapping[str, Bundle], wanted: Mapping[str, list[dict[str, Any]]], name: str
) -> None:
    """What the others are held against."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bundles[name].folder / "checkpoint").eval()
    answers = [answer for answer in wanted[name] if "failed" not in answer]
    for answer in answers:
        ids = answer["asked"]
        with torch.inference_mode():
            for token in answer["tokens"]:
                assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
                ids = [*ids, token]
    assert sum(len(answer["tokens"]) for answer in answers) > 200


@pytest.mark.parametrize("name", BUNDLES)
def test_node_says_what_the_python_loader_says(
    bundles: Mapping[str, Bundle], wanted: Mapping[str, list[dict[str, Any]]], tmp_path: Path, name: str
) -> None:
    """64 tokens behind each text, whatever was read before; what is longer than the context is refused."""
    asked = [*((said, 64) for said in asked_of(bundles[name])), (LONG * 9, 64)]
    found = run(lay(bundles[name], tmp_path / "app", ask=ASK), "ask", asked)
    assert all(found["times"][key] > 0 for key in ("open", "cold", "warm"))
    *answers, refused = found["answers"]
    check(answers, wanted[name])
    assert re.fullmatch(r"\d+ tokens do not fit the context of (1024|256)", refused["failed"])


def test_answers_end_early_and_two_are_asked_at_once(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    """And whatever else was asked, the tokens are the same."""
    said = run(lay(bundles["float"], tmp_path / "app", turns=TURNS), "turns")
    light, jazz = (found["tokens"] for found in say(bundles["float"], ["turn the light on", "jazz"], 24))
    assert said["alone"] == said["together"] == [light, jazz]
    assert (said["before"], said["ended"], said["first"]) == (jazz[:3], "enough", light[0])
    assert (said["after"], said["gone"]) == (jazz, "gone")


def test_a_temperature_samples(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    """A seed takes the same tokens again, and what is not as likely as minP says is not taken."""
    warm = {"temperature": 2.0}
    asked = [
        ("jazz", 16),
        *(("jazz", 16, warm | {"seed": seed}) for seed in (1, 2, 1)),
        ("jazz", 16, warm | {"minP": 1}),
    ]
    app = lay(bundles["float"], tmp_path / "app", ask=ASK)
    tokens = [tuple(one["token"] for one in said["pieces"]) for said in run(app, "ask", asked)["answers"]]
    greedy, first, other, again, least = tokens
    assert (first, greedy) == (again, least)
    assert len({greedy, first, other}) == 3


def test_the_parts_of_a_decoder(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    """Samples follow the softmax; words of SentencePiece keep the space before them; another tool's file is refused."""
    app, shares = lay(bundles["float"], tmp_path / "app", parts=PARTS), np.array([0.5, 0.3, 0.17, 0.03])
    words = {"<unk>": 0, "▁time": 1, "▁there": 2, "▁was": 3, "<0xE2>": 4, "<0x82>": 5, "<0xAC>": 6}
    spelled = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    spelled.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(" ", 1, 0)
    spelled.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    told = {"logits": np.log(shares).tolist(), "tokenizer": json.loads(spelled.to_str()), "answer": [2, 3, 4, 5, 6, 2]}
    (app / "parts.json").write_text(json.dumps(told), encoding="utf-8")
    make_artifact(tmp_path / "foreign")
    shutil.copyfile(tmp_path / "foreign" / "model.onnx", app / "foreign.onnx")
    said = run(app, "parts")
    np.testing.assert_allclose(np.bincount(said["warm"], minlength=4) / 2000, [*shares[:3] / 0.97, 0], atol=0.05)
    assert said["cold"].count(0) > 0.8 * 2000
    assert said["likeliest"] == [0]
    assert "".join(said["pieces"]) == " there was\N{EURO SIGN} there"
    assert [piece for piece in said["pieces"] if piece] == [" there", " was", "\N{EURO SIGN}", " there"]
    assert said["foreign"] == "it is no decoder that edgekit wrote"


def test_what_cannot_be_written_is_one_sentence(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    """A conversation without a template, or one that the template refuses; a bundle whose template is gone cannot be embedded."""
    asked = [(TALK, 4), (None, 4)]
    alone, refused = run(lay(bundles["float"], tmp_path / "app", ask=ASK), "ask", asked)["answers"]
    assert alone["failed"] == refused["failed"] == "this model has no chat template: give it one text to continue"
    talks = lay(bundles["talks"], tmp_path / "talks", ask=ASK)
    (nothing,) = run(talks, "ask", [([], 4)])["answers"]
    assert nothing["failed"] == "the chat template does not take this conversation: it has no message"
    shutil.copytree(bundles["talks"].folder, tmp_path / "gone")
    (tmp_path / "gone" / TEMPLATE).unlink()
    with pytest.raises(EdgekitError, match="writer: it has no chat template, and its manifest says it talks"):
        lay(replace(bundles["talks"], folder=tmp_path / "gone"), tmp_path / "none")


@pytest.fixture(scope="module")
def page(bundles: Mapping[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the app for browsers says of every bundle, with one thread and with two: one app, since the modules are the same."""
    need_chromium()
    app = lay_app(bundles["talks"], tmp_path_factory.mktemp("web") / "app", "web")
    for name, found in bundles.items():
        shutil.copytree(found.folder, app / name, ignore=shutil.ignore_patterns("checkpoint"))
    fetched = fetch_packages([*PACKAGES])
    for name in ("onnxruntime-web", "tokenizers"):
        shutil.copytree(fetched / name, app / "node_modules" / PACKAGES[name].package / "dist")
    (app / "node_modules" / "@huggingface" / "jinja").symlink_to(node_modules() / "@huggingface" / "jinja")
    asked = [
        (name, 1 + place % 2, [(said, 64) for said in asked_of(found)])
        for place, (name, found) in enumerate(bundles.items())
    ]
    said: dict[str, Any] = visit(app, PAGE, {"bundles": asked})
    assert "failed" not in said, said
    return said


@pytest.mark.parametrize("name", BUNDLES)
def test_a_page_says_what_the_python_loader_says(
    page: dict[str, Any], wanted: Mapping[str, list[dict[str, Any]]], name: str
) -> None:
    found = page[name]
    assert found["notes"] == []
    assert all(found["times"][key] > 0 for key in ("open", "cold", "warm"))
    check(found["answers"], wanted[name])


def test_a_page_ends_answers_early(page: dict[str, Any], wanted: Mapping[str, list[dict[str, Any]]]) -> None:
    """By a signal, and by leaving the loop; in the page to try a bundle the next question does."""
    jazz = wanted["float"][TEXTS.index("jazz")]["tokens"]
    assert (page["ended"], page["begun"]) == ("enough", [*jazz[:3], jazz[0]])
    assert re.fullmatch(r"\d+ tokens do not fit the context of 256", page["refused"])
    assert page["shown"].startswith(wanted["talks"][TEXTS.index("jazz")]["text"][:30])


@pytest.mark.parametrize("name", BUNDLES)
def test_a_program_in_c_writes_what_the_python_loader_writes(
    bundles: Mapping[str, Bundle], tmp_path: Path, name: str
) -> None:
    """Each text by itself, as the program reads it; bytes that are no text are left out of both."""
    need_compiler(HERE)
    bundle, app = bundles[name], tmp_path / "app"
    lay_app(bundle, app)
    (app / "main.c").write_text(WRITES, encoding="ascii")
    program = compile_app(app)
    texts = [text for text in TEXTS if len(text) < 300] if name == "talks" else TEXTS
    code, said, last = run_app(program, app / "bundle", *texts)
    assert (code, last) == (0, "")
    wanted = [say(bundle, [text], check=False)[0]["text"].replace("\N{REPLACEMENT CHARACTER}", "") for text in texts]
    assert said == "".join(f"{text}\0" for text in wanted)
    code, said, last = run_app(program, app / "bundle", LONG * 9)
    assert (code, said) == (1, "")
    assert re.fullmatch(r"\d+ tokens do not fit the context of (1024|256), of which one is for the answer", last)
