"""Keras 2 loads what was converted of its files. It needs TensorFlow, in an environment of its own: `make test-keras2`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("tf_keras", reason="Keras 2 is not in this environment")

import chkpt_channels  # noqa: E402
from fixtures.generate import keras_files as make_keras  # noqa: E402

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

WHOLE = [f for f in make_keras.FIXTURES if f.keras2 and f.save is make_keras.save]


@pytest.mark.parametrize("method", ["auto", "sum", "stack"])
@pytest.mark.parametrize("fixture", WHOLE, ids=lambda f: f.file)
def test_a_gray_image_gives_what_the_stacked_one_gave(fixture: make_keras.Fixture, method: str, tmp_path: Path):
    source, target = FIXTURES / fixture.file, tmp_path / f"new{Path(fixture.file).suffix}"
    made = chkpt_channels.convert(source, target, to="gray", method=method).kernels[0].method
    before, after = (keras.models.load_model(path, compile=False) for path in (source, target))
    gray = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 1)).astype("float32")
    expected, found = before.predict(np.repeat(gray, 3, -1), verbose=0), after.predict(gray, verbose=0)
    folded = made == "sum" and "normalised" in fixture.file  # zero padding cannot be three colors at the border
    assert np.abs(found - expected).max() <= (0.2 if folded else 1e-4) * np.abs(expected).max()


@pytest.mark.parametrize("fixture", WHOLE, ids=lambda f: f.file)
def test_four_channels_load_and_train(fixture: make_keras.Fixture, tmp_path: Path):
    target = tmp_path / f"new{Path(fixture.file).suffix}"
    chkpt_channels.convert(FIXTURES / fixture.file, target, to=4)
    model = keras.models.load_model(target, compile=bool(fixture.optimizer))
    if fixture.optimizer:
        model.fit(np.zeros((2, 16, 16, 4)), np.zeros((2, 5)), verbose=0)
    assert model.predict(np.zeros((1, 16, 16, 4)), verbose=0).shape == (1, 5)


def test_weights_fit_the_model_of_one_channel(tmp_path: Path):
    chkpt_channels.convert(FIXTURES / "keras_h5/keras2_weights.h5", tmp_path / "gray.h5", to="gray")
    make_keras.plain(1).load_weights(tmp_path / "gray.h5")
