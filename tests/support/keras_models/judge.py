"""A drawn model is saved, converted, loaded by Keras and asked: right, refused or wrong."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np
import torch

import chkpt_channels
from chkpt_channels.core.errors import AmbiguousError, ChkptChannelsError
from tests.support.keras_models.wholes import Drawn, build

SUFFIXES = {".keras": 5, ".h5": 3, ".weights.h5": 2}
COUNTS = {3: 6, 1: 2.5, 4: 1, 6: 0.3}
LUMA = np.array([[0.2126, 0.7152, 0.0722]])
TOLERANCE = 2e-4
RING = 6
"""Pixels: what does not depend on so many at the border does not see the zeros of a padding."""


class Way(NamedTuple):
    """What is asked, in words of `convert`, and the old image as a mix of the new one."""

    words: dict[str, Any]
    matrix: np.ndarray

    @property
    def kind(self) -> str:
        """By which answers are counted."""
        old, new = self.matrix.shape
        return "toward gray" if new == 1 else "as many" if old == new else "toward more" if new > old else "toward fewer"

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.words.items())


class Question(NamedTuple):
    """The model of a seed, in the format of an ending, and what is asked of it."""

    seed: int
    channels: int
    suffix: str
    way: Way

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.channels} channels, {self.suffix}, {self.way}"


class Answer(NamedTuple):
    """right, refused or wrong, and the reason; `names` are of what was drawn."""

    question: Question
    word: str
    reason: str
    names: tuple[str, ...] = ()


def selection(old: int, chosen: list[int]) -> np.ndarray:
    """New channel j is one of the old."""
    return np.eye(old)[:, chosen]


def ways(old: int, chance: Random) -> list[Way]:
    """Two that differ, from so many channels."""
    repeat = {n: np.array([[old / n * (j % old == i) for j in range(n)] for i in range(old)]) for n in (2, 3, 4, 7)}
    gray = np.ones((old, 1))
    options: list[tuple[Way, float]] = []
    if old > 1:
        options += [(Way({"to": "gray"}, gray), 3), (Way({"to": "gray", "method": "sum"}, gray), 1)]
        options += [(Way({"to": "gray", "method": "stack"}, gray), 1), (Way({"to": 1, "method": "mean"}, gray / old), 0.5)]
        chosen = [chance.randrange(old) for _ in range(old)]
        options += (
            [(Way({"select": ",".join(map(str, chosen))}, selection(old, chosen)), 1)] if chosen != list(range(old)) else []
        )
        few = chance.sample(range(old), 2)
        options += [(Way({"select": ",".join(map(str, few))}, selection(old, few)), 0.7)]
    if old == 3:
        options += [(Way({"to": "bgr"}, selection(3, [2, 1, 0])), 2)]
    if old == 1:
        options += [(Way({"to": "rgb"}, LUMA), 3), (Way({"to": 3, "method": "mean"}, np.ones((1, 3)) / 1), 0.7)]
    for new, weight in ((2, 0.7), (3, 1), (4, 2), (7, 0.4)):
        if new != old and (old, new) != (1, 3):
            options += [(Way({"to": new}, repeat[new]), weight), (Way({"to": new, "method": "adapter"}, repeat[new]), 0.4)]
        if new > old:
            options.append((Way({"to": new, "method": "zero"}, np.eye(old, new)), 0.6))
    first = chance.choices(options, [weight for _, weight in options])[0]
    others = [option for option in options if option[0] is not first[0]]
    return [first[0], chance.choices(others, [weight for _, weight in others])[0][0]]


def questions(seed: int) -> list[Question]:
    chance = Random(-seed - 1)
    channels = chance.choices(list(COUNTS), list(COUNTS.values()))[0]
    suffix = chance.choices(list(SUFFIXES), list(SUFFIXES.values()))[0]
    return [Question(seed, channels, suffix, way) for way in ways(channels, chance)]


def fed(model: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inputs as the model takes them."""
    if isinstance(model, keras.Sequential):
        return arrays[model.inputs[0].name]
    return keras.tree.map_structure(lambda tensor: arrays[tensor.name], model._inputs_struct)


def answered(model: Any, arrays: dict[str, np.ndarray], training: bool = False) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = model(fed(model, arrays), training=training)
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


def images(model: Any, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        tensor.name: random.random([2, *(25 if n is None else n for n in tensor.shape[1:])], "float32") for tensor in model.inputs
    }


def mixed(array: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(np.moveaxis(array, axis, -1) @ matrix.T, -1, axis).astype("float32")


def disturbed(array: np.ndarray, axis: int, video: bool, seed: int, border: bool = True) -> np.ndarray:
    """The image, but for the pixels at its border, or for those inside."""
    inside = tuple(
        slice(None) if k in (0, axis) or (video and k == 1) else slice(min(RING, n // 3), -min(RING, n // 3))
        for k, n in enumerate(array.shape)
    )
    other = np.random.default_rng(seed).normal(size=array.shape).astype("float32") * 10**seed  # activations may saturate
    outer, inner = (other, array) if border else (array, other)
    made = outer.copy()
    made[inside] = inner[inside]
    return made


def compared(old: Any, new: Any, question: Question, drawn: Drawn, border: bool) -> str:
    """What is wrong with the answers of the new model, an empty text where nothing is."""
    arrays, mapped, changed = images(new, question.seed), {}, 0
    n, m = question.way.matrix.shape
    for before, after in zip(old.inputs, new.inputs, strict=True):
        image = len(before.shape) > 2 and before.shape[drawn.axis] == n
        expected = [m if image and k == drawn.axis else size for k, size in enumerate(before.shape)]
        if list(after.shape) != expected:
            return f"input {before.name} takes {list(after.shape)}, expected {expected}"
        mapped[before.name] = mixed(arrays[after.name], question.way.matrix, drawn.axis) if image else arrays[after.name]
        changed += image
    if not changed:
        return "no input changed"
    expected, found = answered(old, mapped), answered(new, arrays)
    masks: list[Any] = [True] * len(expected)
    for seed in (0, 1, 2, 3) if border else ():  # one alone may give the same answer by chance
        moved = {
            k: disturbed(v, drawn.axis, "video" in drawn.names, seed, seed > 0) if v.ndim > 2 else v for k, v in mapped.items()
        }
        same = [np.isclose(a, b, atol=1e-5) for a, b in zip(expected, answered(old, moved), strict=True)]
        masks = [mask & (s if seed else ~s) for mask, s in zip(masks, same, strict=True)]
    for number, (a, b, mask) in enumerate(zip(expected, found, masks, strict=True)):
        if a.shape != b.shape:
            return f"output {number} is {b.shape}, and was {a.shape}"
        if not np.isfinite(a).all():
            continue
        off = np.abs(a - b)[mask] if border else np.abs(a - b)
        if off.size and not off.max() <= TOLERANCE * max(np.abs(a).max(), 1e-3):
            return f"output {number} differs by {off.max():.3g} of {np.abs(a).max():.3g}{' inside the border' if border else ''}"
    return trained(old, new, mapped, arrays)


def trained(old: Any, new: Any, mapped: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> str:
    """Where the old model answers in training, the new one does, and where it goes on to be fitted."""
    weights = old.get_weights()
    try:
        answered(old, mapped, training=True)
    except Exception:  # whatever keeps the old one
        return ""
    finally:
        old.set_weights(weights)
    try:
        answered(new, arrays, training=True)
        if getattr(old, "optimizer", None) and len(new.outputs) == 1:
            # oneDNN's backward of some 1x1 convolutions never ends, or writes beyond its memory (torch 2.13, AVX2)
            with torch.backends.mkldnn.flags(enabled=False):
                new.fit(fed(new, arrays), answered(new, arrays)[0], verbose=0)
    except Exception as error:
        return f"in training: {error!r}"[:300]
    return ""


def saved(drawn: Drawn, folder: Path, suffix: str) -> tuple[Path, Any]:
    """The file, and what Keras loads of it. Keras cannot load all that it saves as .h5; it is a .keras then."""
    path = folder / f"old{suffix}"
    if suffix == ".weights.h5":
        drawn.model.save_weights(path)
        return path, drawn.model
    drawn.model.save(path)
    try:
        old = keras.models.load_model(path, compile=suffix == ".keras")
    except Exception:
        if suffix == ".h5":
            return saved(drawn, folder, ".keras")
        raise
    return path, old


def judged(question: Question, drawn: Drawn, source: Path, old: Any) -> Answer:
    names = tuple(dict.fromkeys(drawn.names))
    target = source.with_name("new" + source.name.removeprefix("old"))
    target.unlink(missing_ok=True)

    def answer(word: str, reason: str = "") -> Answer:
        return Answer(question, word, reason, names)

    words = question.way.words
    try:
        report = chkpt_channels.convert(source, target, **words)
    except ChkptChannelsError as error:
        refused = error.exit_code in (2, 4)
        return answer("refused" if refused else "wrong", f"{error}" + (f" | try: {error.hint}" if error.hint else " | no try"))
    except Exception:
        return answer("wrong", traceback.format_exc(limit=-3))
    if report.status != "converted":
        return answer("wrong", f"status {report.status}")
    try:
        new = loaded(question, target, report.load_lines[-1])
    except Exception as error:
        return answer("wrong", f"does not load: {error!r}"[:700])
    border = any(notice.code == "border_error" for notice in report.warnings)
    wrong = compared(old, new, question, drawn, border)
    if not wrong and not (verification := chkpt_channels.verify(source, target, **words)).ok:
        wrong = f"verify: {verification.differences[:2]}"
    wrong = wrong or mismatched(target, question.way.matrix.shape[1])
    kind = "border" if border else ",".join(sorted({kernel.method or "" for kernel in report.kernels}))
    return answer("wrong" if wrong else "right", wrong or kind)


def mismatched(target: Path, channels: int) -> str:
    """What `check` finds. It refuses weights alone where their names and shapes do not tell the first convolution."""
    try:
        check = chkpt_channels.check(target, channels)
    except AmbiguousError as error:
        return "" if ".weights" in target.name else f"check: {error}"
    return "" if check.ok else f"check: {check.mismatches[:2]}"


def loaded(question: Question, target: Path, line: str) -> Any:
    """By the line that the report names; weights into the model that the same code builds for the new count."""
    if ".weights" in target.name:
        new = build(question.seed, question.way.matrix.shape[1], plain=True).model
        new.load_weights(target)
        return new
    # Keras cannot compile what it saved as .h5 with the loss "mse"
    load = partial(keras.models.load_model, compile=target.suffix == ".keras")
    scope = {"keras": SimpleNamespace(models=SimpleNamespace(load_model=load))}
    exec(line, scope)
    return scope["model"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what Keras prints and logs on the way."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def verdicts(seed: int, folder: Path) -> list[Answer]:
    """Two of a seed; none where Keras itself does not build, save and load what was drawn, or its answers are not finite."""
    asked = questions(seed)
    plain = asked[0].suffix == ".weights.h5"
    with quiet():
        try:
            drawn = build(seed, asked[0].channels, plain)
            source, old = saved(drawn, folder, asked[0].suffix)
            finite = all(np.isfinite(values).all() for values in answered(old, images(old, seed)))
        except Exception as error:
            return [Answer(asked[0], "none", f"{error!r}"[:300])]
        if not finite:
            return [Answer(asked[0], "none", "answers are not finite")]
        suffix = ".weights.h5" if plain else source.suffix
        return [judged(question._replace(suffix=suffix), drawn, source, old) for question in asked]
