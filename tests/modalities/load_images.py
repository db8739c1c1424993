"""Labels of images from an edgekit bundle: `Bundle("folder")("photo.png")`. Needs onnxruntime, numpy."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Bundle:
    """An open bundle of an image classifier."""

    def __init__(self, folder: Path, *, threads: int | None = None, check: bool = True) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 1
        for key, value in self.manifest["runtime"]["config_entries"].items():
            options.add_session_config_entry(key, value)
        off = self.manifest["runtime"]["disabled_optimizers"]
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, disabled_optimizers=off)

    def __call__(self, path: str) -> list[tuple[str, float]]:
        """[(label, score), ...], the answer first."""
        content = Path(path).read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        size = struct.unpack(">I", content[33:37])[0]
        rows = np.frombuffer(zlib.decompress(content[41 : 41 + size]), np.uint8).reshape(height, 1 + 3 * width)
        scaled = rows[:, 1:].reshape(height, width, 3) * self.processor["rescale_factor"]
        normal = (scaled - np.array(self.processor["image_mean"])) / np.array(self.processor["image_std"])
        pixels = np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)[None]
        logits = self.session.run(None, {"pixel_values": pixels})[0][0]
        scores = (powers := np.exp(logits - logits.max())) / powers.sum()
        return [(self.manifest["labels"][index], float(scores[index])) for index in np.argsort(-scores, kind="stable")]
