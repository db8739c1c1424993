"""Images as a modality that is dropped in beside text: PNG files, a task that classifies them, and a tiny ViT of transformers."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.modalities.encoded import Encoded, Input
from edgekit.model import Model, load_model
from edgekit.prompts import Prompt
from edgekit.record.original_rows import Original
from edgekit.tasks import outputs, text_classification

TASK, SIDE = "image-classification", 16
PROCESSOR, PIXELS = "preprocessor_config.json", "pixel_values"
LABELS = ["dark", "green", "red"]
COLOURS = {"dark": (40, 40, 40), "green": (30, 200, 60), "red": (220, 40, 30)}


def write_png(path: Path, pixels: np.ndarray) -> None:
    """uint8 [height, width, 3] as a PNG without filters (RFC 2083)."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def read_png(path: Path) -> np.ndarray:
    """What `write_png` wrote."""
    content, start, found = path.read_bytes(), 8, {}
    while start < len(content):
        (size,) = struct.unpack(">I", content[start : start + 4])
        found[content[start + 4 : start + 8]] = content[start + 8 : start + 8 + size]
        start += size + 12
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    return rows[:, 1:].reshape(height, width, 3)


def make_images(folder: Path, counts: Mapping[str, int]) -> Path:
    """Prompts whose texts are the paths of noisy images of one colour."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        rows = []
        for index in range(count):
            label = LABELS[index % len(LABELS)]
            noisy = np.array(COLOURS[label]) + draw.integers(-30, 31, size=(SIDE, SIDE, 3))
            write_png(folder / f"{split}-{index}.png", noisy.clip(0, 255).astype(np.uint8))
            rows.append({"text": str(folder / f"{split}-{index}.png"), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def make_vit(folder: Path) -> Path:
    """A ViT of two layers with random weights, as transformers saves it, and its processor's file."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIDE, patch_size=4,
        id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)},
        attn_implementation="eager", initializer_range=0.2,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3], "rescale_factor": 1 / 255}
    (folder / PROCESSOR).write_text(json.dumps(processor), encoding="utf-8")
    return folder


def encode_files(folder: Path, paths: Sequence[str]) -> Encoded:
    """Images by the processor's file of a folder: float32 [3, height, width] each."""
    said = json.loads((folder / PROCESSOR).read_text(encoding="utf-8"))
    prompts = []
    for path in paths:
        scaled = read_png(Path(path)) * said["rescale_factor"]
        normal = (scaled - np.array(said["image_mean"])) / np.array(said["image_std"])
        prompts.append({PIXELS: np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)})
    return Encoded(inputs={PIXELS: Input()}, prompts=prompts, owners=range(len(prompts)))


class Classifier(nn.Module):
    """pixel_values -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """float32 [batch, 3, height, width] -> [batch, labels]."""
        return self.model(pixel_values=pixel_values, return_dict=True)[0]


def load(folder: Path) -> nn.Module:
    """The checkpoint as the task's module."""
    from transformers import ViTForImageClassification

    return Classifier(ViTForImageClassification.from_pretrained(folder, attn_implementation="eager")).eval()


def encode(model: Model, prompts: Sequence[Prompt], _max_length: int) -> Encoded:
    """The images that prompts name."""
    return encode_files(model.folder, [prompt.text for prompt in prompts])


def ship(model: Model, _max_length: int, out: Path) -> None:
    """The processor's file."""
    shutil.copy(model.folder / PROCESSOR, out)


def answer(logits: np.ndarray, settings: Mapping[str, object], classes: Sequence[str], _texts: Any = None) -> list[str]:
    """The labels."""
    return text_classification.answer(logits, settings, classes)


def ask_owner(folder: Path, paths: Sequence[str], _length: int, classes: Sequence[str], _progress: Any) -> Original:
    """transformers' own model on the owner's images."""
    encoded = encode_files(folder, paths)
    logits = outputs(load(folder), encoded, batch=1)
    assert len(classes) == logits.shape[1]
    softmax = text_classification.softmax(logits)
    return Original(by="transformers", prompts=encoded.prompts, answers=softmax, outputs=logits)


MODALITY = SimpleNamespace(
    NAME="image",
    TOKENIZER=None,
    WORDED=False,
    reads=lambda folder: (folder / PROCESSOR).is_file(),
    lacks=lambda _folder: None,
    read_shipped=lambda folder, paths, _settings, _pad_id: encode_files(folder, paths),
)
IMAGES = SimpleNamespace(
    NAME=TASK, MODALITY="image", OUTPUT="logits", CONTENTLESS=(), load=load, open_model=load_model, encode=encode, ship=ship,
    length=lambda _model, _max_length: 1, settings=lambda _model: {}, pad_id=lambda _model: 0,
    fit=text_classification.fit, answer=answer, score=text_classification.score,
)  # fmt: skip
