"""Conversions of drawn graphs, and whether onnxruntime finds them right: what the old file makes of the mapped image."""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from chkpt_channels import UnsupportedError, UsageError, check, convert, verify
from chkpt_channels.api.report import Report
from tests.support.graphs.draw import Graph, Image, size
from tests.support.graphs.grammar import drawn

Feeds = dict[str, np.ndarray]
LUMA = (0.2126, 0.7152, 0.0722)
NOT_DECLARED = "--from, with their number"
"""A hint that is followed."""
BORDER = {"border_error", "black_padding"}
GRAPH_METHODS = ("broadcast", "stack", "adapter", "gather")
TOGETHER = 3
"""Conversions of one graph."""
ort.set_default_logger_severity(4)


class Question(NamedTuple):
    """A graph of a seed, and how it is converted."""

    seed: int
    to: str | int
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"seed {self.seed} to {self.to} {self.options or ''}"


class Verdict(NamedTuple):
    """right, refused or wrong; what was said or differs; and what is in the graph."""

    word: str
    why: str
    features: frozenset[str]
    old: int


TO_GRAY = (
    ({}, 5),
    ({"method": "sum"}, 1),
    ({"method": "stack"}, 1),
    ({"method": "broadcast"}, 0.5),
    ({"method": "adapter"}, 0.7),
    ({"method": "mean"}, 0.5),
    ({"method": "luma"}, 0.5),
)
TO_MORE = (({}, 3), ({"method": "zero"}, 1), ({"method": "repeat"}, 0.5), ({"method": "adapter"}, 1))


def questions(seed: int, graph: Graph) -> list[Question]:
    """Of a graph: a few targets, each with its methods."""
    chance, channels = Random(-seed - 1), graph.images[0].channels
    targets = {1: ["rgb", 4], 3: ["gray", "gray", 4, "bgr", 2], 4: ["gray", "rgb", 6], 6: ["gray", 3, 13]}[channels]
    return [Question(seed, to, options(to, graph, chance)) for to in chance.choices(targets, k=TOGETHER)]


def options(to: str | int, graph: Graph, chance: Random) -> dict[str, Any]:
    channels = graph.images[0].channels
    if to == "bgr":
        return {"method": "adapter"} if chance.random() < 0.2 else {}
    if to == 2 or (to == "rgb" and channels == 4):
        columns = chance.sample(range(channels), 2 if to == 2 else 3)
        return (
            {"select": ",".join(map(str, columns))}
            if chance.random() < 0.7
            else {"matrix": noise_matrix(channels, len(columns), chance)}
        )
    rows = [row for row in (TO_GRAY if to == "gray" else TO_MORE) if channels == 3 or row[0].get("method") != "luma"]
    if not any(feature.startswith("constants") for feature in graph.features):
        rows = [row for row in rows if row[0].get("method") != "broadcast"]
    if count(to) < channels and to != "gray":
        rows = [({}, 1)]
    return dict(chance.choices([row for row, _ in rows], [share for _, share in rows])[0])


def noise_matrix(old: int, new: int, chance: Random) -> list[list[float]]:
    return [[chance.choice((0.0, 0.25, 0.5, 1.0)) for _ in range(new)] for _ in range(old)]


def count(to: str | int) -> int:
    return {"gray": 1, "rgb": 3, "bgr": 3}.get(to, to) if isinstance(to, str) else to


def mixing(old: int, question: Question) -> np.ndarray:
    """A of the conversion, [old, new], from what the documents say."""
    new, said = count(question.to), question.options
    if "matrix" in said:
        return np.array(said["matrix"])
    if "select" in said:
        return np.eye(old)[:, [int(k) for k in said["select"].split(",")]]
    if question.to == "bgr":
        return np.eye(3)[::-1]
    method = said.get("method", "auto")
    if new == 1 and method in ("auto", "sum", *GRAPH_METHODS):
        return np.ones((old, 1))
    if method == "mean":
        return np.full((old, new), 1 / old)
    if method == "luma" or (method in ("auto", "adapter") and (old, new) == (1, 3)):
        return np.array([LUMA]) if old == 1 else np.array([LUMA]).T
    if method == "zero":
        return np.eye(old, new)
    return np.array([[old / new * (i == j % old) for j in range(new)] for i in range(old)])


def mapped(image: Image, value: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A · x along the channels, wherever they are."""
    letters = "".join(image.groups)
    apart = value.reshape([size(letter, matrix.shape[1]) for letter in letters]).astype("f8")
    at = letters.index("C")
    return np.moveaxis(np.tensordot(matrix, apart, (1, at)), 0, at).reshape(image.shape(matrix.shape[0]))


def fed(graph: Graph, channels: dict[str, int]) -> Feeds:
    """An image for each input that is one: whole multiples of four, as bytes or as parts of 64."""
    chance = np.random.default_rng(7)
    values = {image.name: 4 * chance.integers(1, 16, image.shape(channels[image.name])) for image in graph.images}
    return {image.name: values[image.name] / (1 if image.dtype == "u1" else 64) for image in graph.images}


def run(model: bytes, feeds: Feeds) -> list[np.ndarray]:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": "f4", "tensor(uint8)": "u1", "tensor(float16)": "f2", "tensor(double)": "f8", "tensor(bool)": "?"}
    return session.run(None, {given.name: feeds[given.name].astype(types[given.type]) for given in session.get_inputs()})


def inside(value: np.ndarray, spatial: int) -> np.ndarray:
    """Without a quarter at each side, or one, where padding reaches."""
    cut = tuple(slice(max(n // 4, 1), n - max(n // 4, 1)) for n in value.shape[value.ndim - spatial :])
    return value[(..., *cut)]


def judged(question: Question, graph: Graph, source: Path, out: Path) -> Verdict:
    """The verdict on one conversion."""
    features, old = frozenset(graph.features), graph.images[0].channels

    def verdict(word: str, why: str = "") -> Verdict:
        return Verdict(word, why, features, old)

    try:
        report = convert(source, out, question.to, **question.options)
    except (UnsupportedError, UsageError) as refusal:
        if refusal.hint == NOT_DECLARED and "from_channels" not in question.options and len(graph.images) == 1:
            stated = question._replace(options={**question.options, "from_channels": old})
            return judged(stated, graph, source, out)
        return verdict("wrong", "refused, and written") if out.exists() else verdict("refused", str(refusal))
    except Exception:  # whatever it is, it is what is looked for
        return verdict("wrong", traceback.format_exc())
    try:
        difference = differs(question, graph, report, source, out)
    except Exception:
        return verdict("wrong", traceback.format_exc())
    return verdict("wrong", difference) if difference else verdict("right")


def differs(question: Question, graph: Graph, report: Report, source: Path, out: Path) -> str:
    """What is wrong with a result; empty where all is right."""
    before, after = report.in_channels
    if report.status == "unchanged" and after in [image.channels for image in graph.images[1:]]:
        return ""  # another image has them already, and this one is not known to be an image
    if report.status != "converted" or after != count(question.to):
        return f"{report.status} from {before} to {after}"
    if before not in {image.channels for image in graph.images}:
        return f"no image has {before} channels"
    if not verify(source, out, question.to, **question.options).ok:
        return "verify calls it different"
    if not check(source).ok:
        return f"check of the original: {check(source).mismatches}"
    if not check(out).ok:
        return f"check: {check(out).mismatches}"
    matrix = mixing(before, question)
    record = report.result()
    if record["method"] in GRAPH_METHODS and not np.allclose(record["matrix"], matrix):
        return f"the report's matrix is {record['matrix']}"
    return outputs_differ(graph, question, report, matrix, out)


def outputs_differ(graph: Graph, question: Question, report: Report, matrix: np.ndarray, out: Path) -> str:
    """The old graph on the mapped image, and the new file on the image."""
    before = report.in_channels[0]
    left = [w.message for w in report.warnings if w.code == "image_left"]
    images = [image for image in graph.images if not any(repr(image.name) in message for message in left)]
    converted = [image for image in images if image.channels == before]
    new = fed(graph, {image.name: matrix.shape[1] if image in converted else image.channels for image in graph.images})
    old = new | {image.name: mapped(image, new[image.name], matrix) for image in converted}
    whole = all(np.array_equal(value, np.round(value)) for name, value in old.items())
    reference = graph if whole or all(image.dtype != "u1" for image in graph.images) else drawn(question.seed, dtype="f4")
    codes = {warning.code for warning in report.warnings}
    plain = set(np.unique(matrix)) <= {0, 1} and (matrix.sum(1) <= 1).all()
    loose = graph.quantized and ("requantised" in codes or not plain)
    tolerance = (
        0.12
        if loose
        else 2e-2
        if any(image.dtype == "f2" for image in graph.images) or graph.features & {"cast", "kernel: cast"}
        else 2e-4
    )
    for chosen in [True, False] if graph.others.get("chosen") is not None else [True]:
        others = graph.others | {"chosen": np.array(chosen)}
        pairs = zip(run(reference.model().SerializeToString(), old | others), run(out.read_bytes(), new | others), strict=True)
        for (a, b), (name, spatial) in zip(pairs, graph.outputs.items(), strict=True):
            if a.shape != b.shape:
                return f"{name} has the shape {b.shape}, not {a.shape}"
            if codes & BORDER:
                if not spatial:
                    continue
                a, b = inside(a, spatial), inside(b, spatial)
            far, scale = np.abs(a - b).max(initial=0), max(np.abs(a).max(initial=0), 1e-3)
            if not far <= tolerance * scale and np.isfinite(a).all():
                return f"{name} differs by {far:.3g} of {scale:.3g}{' inside' if codes & BORDER else ''}; {sorted(codes)}"
    return ""


def verdicts(seed: int) -> list[tuple[Question, Verdict]]:
    """The conversions of a seed; that onnxruntime runs the graph is checked on the way."""
    graph = drawn(seed)
    model = graph.model()
    feeds = fed(graph, {image.name: image.channels for image in graph.images})
    run(model.SerializeToString(), feeds | graph.others)
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.onnx")
        onnx.save(model, source)
        for k, question in enumerate(questions(seed, graph)):
            answers.append((question, judged(question, graph, source, Path(folder, f"{k}.onnx"))))
    return answers
