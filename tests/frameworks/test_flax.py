"""Flax and numpy judge: the output restores, answers on a gray image as the network did on it stacked, and is what they write."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState
from flax.traverse_util import flatten_dict, unflatten_dict

from chkpt_channels import convert, verify
from fixtures.generate.jax_files import ResNet, Vit

NETS = {"resnet": ResNet(), "vit": Vit()}
EXACT = 1e-6
"""Of the largest answer."""


def shapes(net, channels=3):
    """A tree of zeros: flax's own initial values take a minute to compile."""
    asked = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), asked)


def weights(net, channels=3):
    """Random weights, running statistics included."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(0.1 * random.standard_normal(leaf.shape)) + 0.01, leaf.dtype), shapes(net, channels)
    )


def distance(found, expected):
    return jnp.abs(found - expected).max() / jnp.abs(expected).max()


def gray_image():
    return jnp.asarray(np.random.default_rng(2).random((2, 32, 32, 1), np.float32))


@pytest.mark.parametrize("name", NETS)
def test_a_gray_image_gives_what_it_gave_stacked(name, tmp_path):
    net, tree = NETS[name], weights(NETS[name])
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(tree))
    convert(tmp_path / "a.msgpack", tmp_path / "b.msgpack", to="gray")
    new = serialization.from_bytes(shapes(net, 1), (tmp_path / "b.msgpack").read_bytes())
    image = gray_image()
    assert distance(net.apply(new, image), net.apply(tree, jnp.repeat(image, 3, -1))) < EXACT
    assert (
        serialization.to_bytes(serialization.msgpack_restore((tmp_path / "b.msgpack").read_bytes()))
        == (tmp_path / "b.msgpack").read_bytes()
    )
    convert(tmp_path / "b.msgpack", tmp_path / "c.msgpack", to=4)
    assert verify(tmp_path / "b.msgpack", tmp_path / "c.msgpack").ok
    serialization.from_bytes(shapes(net, 4), (tmp_path / "c.msgpack").read_bytes())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", NETS)
def test_numpy_reads_what_it_would_have_written(name, save, tmp_path):
    net, tree = NETS[name], weights(NETS[name])
    save(tmp_path / "a.npz", **{key: np.asarray(array) for key, array in flatten_dict(tree, sep="/").items()})
    convert(tmp_path / "a.npz", tmp_path / "b.npz", to="gray")
    with np.load(tmp_path / "b.npz") as arrays:
        new = {key: arrays[key] for key in arrays.files}
    again = io.BytesIO()
    save(again, **new)
    assert again.getvalue() == (tmp_path / "b.npz").read_bytes()
    image = gray_image()
    gray = net.apply(unflatten_dict(new, sep="/"), image)
    assert distance(gray, net.apply(tree, jnp.repeat(image, 3, -1))) < EXACT


@pytest.mark.parametrize("tx", [optax.adamw(1e-3), optax.sgd(0.1, momentum=0.9), optax.chain(optax.clip(1.0), optax.adam(1e-3))])
def test_training_goes_on(tx, tmp_path):
    net = NETS["vit"]

    def state(channels):
        return TrainState.create(apply_fn=net.apply, params=weights(net, channels)["params"], tx=tx)

    trained = state(3)
    trained = trained.apply_gradients(grads=jax.tree.map(jnp.ones_like, trained.params))
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(trained))
    report = convert(tmp_path / "a.msgpack", tmp_path / "b.msgpack", to="gray")
    assert len(report.changed) > 1
    new = serialization.from_bytes(state(1), (tmp_path / "b.msgpack").read_bytes())
    moments = [leaf for leaf in jax.tree.leaves(new.opt_state) if leaf.shape == (8, 8, 1, 24)]
    assert moments
    assert not any(leaf.any() for leaf in moments)
    after = new.apply_gradients(grads=jax.tree.map(jnp.ones_like, new.params))
    assert after.step == 2
    assert jnp.isfinite(net.apply({"params": after.params}, gray_image())).all()
