"""Every family: load, answer alike with and without padding, calibrate, cut a student, read both config versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.architectures import ARCHITECTURES, find_architecture
from edgekit.calibration import load_calibration
from edgekit.errors import EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.tasks import TASKS, outputs
from edgekit.tasks.encoders import dimensions
from tests.architectures.decoders import DECODERS
from tests.architectures.families import MORE, make_family, save_as_v4
from tests.conftest import LABELS, make_data
from tests.steps import calibrate, distill

TEXTS = ["please turn the kitchen light on", "jazz", "some jazz on the hall speaker would be nice", "", "hall lamp"]
FAMILIES = sorted(MORE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {family: make_family(family, place / family, LABELS) for family in FAMILIES}


def test_every_family_has_a_configuration_here() -> None:
    # edgekit's own has no blocks: tests/tasks/test_ngrams.py.
    assert sorted({**MORE, **DECODERS, "ngrams": {}}) == sorted(ARCHITECTURES)


def test_an_unknown_family_is_no_misspelling() -> None:
    with pytest.raises(
        EdgekitError, match=r"config.json: model_type: edgekit has no family 'albert'; it has bert, deberta"
    ):
        find_architecture("albert", "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str, folders: dict[str, Path]) -> None:
    module = TASKS["text-classification"].load(folders[family])
    ids = load_model(folders[family]).encode(TEXTS, 32)
    together, alone = outputs(module, of_tokens(ids, 0), batch=8), outputs(module, of_tokens(ids, 0), batch=1)
    assert together.shape == (len(TEXTS), len(LABELS))
    assert together.dtype == np.float32
    assert np.abs(together[0] - together[1]).max() > 1e-3, "the logits do not depend on the text"
    np.testing.assert_allclose(together, alone, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_encoder_gives_embeddings(family: str, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / "encoder")
    module = TASKS["feature-extraction"].load(folder)
    ids = load_model(folder).encode(TEXTS, 32)
    np.testing.assert_allclose(
        outputs(module, of_tokens(ids, 0), batch=8), outputs(module, of_tokens(ids, 0), batch=1), atol=2e-5
    )
    with pytest.raises(EdgekitError, match="no trained classifier"):
        TASKS["text-classification"].load(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_of_transformers_4_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / "new", LABELS)
    ids = load_model(folder).encode(TEXTS, 32)
    new = outputs(TASKS["text-classification"].load(folder), of_tokens(ids, 0))
    save_as_v4(folder)
    np.testing.assert_array_equal(outputs(TASKS["text-classification"].load(folder), of_tokens(ids, 0)), new)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_is_calibrated(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from torch import nn

    data = make_data(tmp_path / "data")
    for batch in (1, 6):
        out = tmp_path / str(batch)
        out.mkdir()
        calibrate(folders[family], data, task="text-classification", max_length=32, out=out, batch=batch)
    one, six = load_calibration(tmp_path / "1"), load_calibration(tmp_path / "6")
    module = TASKS["text-classification"].load(folders[family])
    paths = {path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    assert {key.partition("#")[0] for key in one.stats} == paths
    assert sorted(one.stats) == sorted(six.stats)
    # Relative positions enter DeBERTa's projections once per batch, not once per text: only their counts differ.
    for key, stats in one.stats.items():
        np.testing.assert_allclose(stats.minimum, six.stats[key].minimum, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(stats.maximum, six.stats[key].maximum, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(stats.mean_square, six.stats[key].mean_square, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_cut_and_taught(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "student"
    out.mkdir()
    facts = distill(
        folders[family],
        make_data(tmp_path / "data"),
        task="text-classification",
        layers=2,
        options={"epochs": 2, "batch": 4},
        max_length=32,
        out=out,
    )
    assert facts["keep"] == [0, 3]
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.jsonl",
    ]
    student = load_model(out)
    assert student.layers == 2
    assert student.labels == LABELS
    assert str(tmp_path) not in json.dumps(student.config)
    module = TASKS["text-classification"].load(out)
    assert dimensions(module.model.config).layers == 2
    answers = outputs(module, of_tokens(student.encode(TEXTS, 32), 0))
    assert np.isfinite(answers).all()
    assert set(student.tensors) == set(module.model.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_all_layers_is_the_teacher(family: str, folders: dict[str, Path]) -> None:
    from edgekit.distill.students import cut

    ids = load_model(folders[family]).encode(TEXTS, 32)
    module = TASKS["text-classification"].load(folders[family])
    before = outputs(module, of_tokens(ids, 0))
    cut(module, [0, 1, 2, 3])
    np.testing.assert_array_equal(outputs(module, of_tokens(ids, 0)), before)
