"""Small programs of the benchmarks: what makes the files, and the scripts that everyone writes to convert them."""

MAKE_SMALL = """
import sys, torch
from fixtures.catalogue.libraries import torchvision_operators
operators = torchvision_operators()
from transformers import ResNetConfig, ResNetForImageClassification
from safetensors.torch import save_file
state = ResNetForImageClassification(ResNetConfig()).state_dict()
torch.save(state, sys.argv[1]); save_file(state, sys.argv[2])
"""
MAKE_LARGE = """
import sys, torch
from safetensors.torch import save_file
state = {"conv1.weight": torch.randn(64, 3, 7, 7)} | {f"blocks.{i}.weight": torch.randn(4096, 6144) for i in range(44)}
torch.save(state, sys.argv[1]); save_file(state, sys.argv[2])
"""
MAKE_SIZED = """
import sys, torch
from safetensors.torch import save_file
state, rest = {"conv1.weight": torch.randn(64, 3, 7, 7)}, int(sys.argv[3]) * 1_000_000 // 4
while rest:
    count = min(rest, 1 << 23)
    state[f"blocks.{len(state)}.weight"], rest = torch.randn(count), rest - count
torch.save(state, sys.argv[1]); save_file(state, sys.argv[2])
"""
KERNEL = "next(k for k, v in s.items() if v.ndim == 4 and v.shape[1] == 3)"
TORCH_SCRIPT = f"""
import sys, torch
s = torch.load(sys.argv[1]); k = {KERNEL}
s[k] = s[k].sum(1, keepdim=True); torch.save(s, sys.argv[2])
"""
SAFETENSORS_SCRIPT = f"""
import sys
from safetensors.numpy import load_file, save_file
s = load_file(sys.argv[1]); k = {KERNEL}
s[k] = s[k].sum(1, keepdims=True); save_file(s, sys.argv[2])
"""
ONNX_SCRIPT = """
import sys, onnx
from onnx import numpy_helper
m = onnx.load(sys.argv[1])
for t in m.graph.initializer:
    if len(t.dims) == 4 and t.dims[1] == 3:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).sum(1, keepdims=True), t.name))
m.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
onnx.save(m, sys.argv[2])
"""
MAKE_ONNX = """
import sys, torch
from fixtures.catalogue.libraries import torchvision_operators
operators = torchvision_operators()
from transformers import ResNetConfig, ResNetForImageClassification
model = ResNetForImageClassification(ResNetConfig()).eval()
torch.onnx.export(model, (torch.rand(1, 3, 64, 64),), sys.argv[1], dynamo=False, input_names=["image"])
"""
MAKE_H5 = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras
keras.applications.ResNet50(weights=None).save(sys.argv[1])
"""
H5_SCRIPT = """
import shutil, sys, h5py
shutil.copy(sys.argv[1], sys.argv[2])
with h5py.File(sys.argv[2], "r+") as f:
    k = f.visititems(lambda name, d: name if isinstance(d, h5py.Dataset) and d.ndim == 4 and d.shape[2] == 3 else None)
    new = f[k][()].sum(2, keepdims=True)
    del f[k]
    f[k] = new
"""
MAKE_LARGE_ONNX = """
import sys, numpy as np, onnx
from onnx import TensorProto, helper
path, elements = sys.argv[1], 1 << 30
stem = helper.make_tensor("stem", TensorProto.FLOAT, [64, 3, 7, 7], np.random.rand(64 * 147).astype(np.float32))
big = TensorProto(data_type=TensorProto.FLOAT, dims=[elements], name="big", data_location=TensorProto.EXTERNAL)
for key, value in (("location", "big.bin"), ("offset", "0"), ("length", str(4 * elements))):
    big.external_data.add(key=key, value=value)
nodes = [
    helper.make_node("Conv", ["image", "stem"], ["f"]),
    helper.make_node("ReduceMean", ["big"], ["m"], keepdims=0),
    helper.make_node("Add", ["f", "m"], ["out"]),
]
infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("image", [1, 3, 64, 64]), ("out", None))]
model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], [stem, big]))
open(path, "wb").write(model.SerializeToString())
with open(path.rpartition("/")[0] + "/big.bin", "wb") as file:
    for _ in range(64):
        file.write(np.random.bytes(elements // 16))
"""
MAKE_MANY = """
import json, pathlib, struct, sys
shapes = {"conv1.weight": [64, 3, 7, 7], "fc.weight": [1000, 24000]}
for i in range(160):
    shapes |= {f"layer.{i}.conv.weight": [64, 64, 3, 3], f"layer.{i}.bn.weight": [64]}
header, at = {}, 0
for name, shape in shapes.items():
    size = 4
    for width in shape:
        size *= width
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
    at += size
raw = json.dumps(header).encode()
for i in range(200):
    folder = pathlib.Path(sys.argv[1], f"model{i}")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
"""
MAKE_SPARSE = """
import json, pathlib, struct, sys
folder, files, tensors, elements = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
folder.mkdir(parents=True)
index, shape = {}, [max(1, elements // tensors >> 10), min(elements // tensors, 1 << 10)]
for i in range(files):
    shapes = {"conv1.weight": [64, 3, 7, 7]} if i == 0 else {}
    shapes |= {f"layers.{i}.{k}.fc.weight": shape for k in range(tensors - len(shapes))}
    header, at = {}, 0
    for name, (size, *others) in shapes.items():
        begin, at = at, at + 4 * size * (others[0] if len(others) == 1 else 147)
        header[name] = {"dtype": "F32", "shape": [size, *others], "data_offsets": [begin, at]}
    raw, file = json.dumps(header).encode(), f"model-{i + 1:05}-of-{files:05}.safetensors" if files > 1 else "model.safetensors"
    index |= dict.fromkeys(shapes, file)
    with open(folder / file, "wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        out.truncate(8 + len(raw) + at)
if files > 1:
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
"""
MAKE_ZOO = """
import pathlib, shutil, sys, torch
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(10, 8)}
for i in range(160):
    state |= {f"layer.{i}.conv.weight": torch.zeros(8, 8, 3, 3), f"layer.{i}.bn.weight": torch.zeros(8)}
torch.save(state, folder / "m0.pth")
for i in range(1, 200):
    shutil.copy(folder / "m0.pth", folder / f"m{i}.pth")
"""
MAKE_FILES = """
import pathlib, sys
source = pathlib.Path(sys.argv[2]).read_bytes()
pathlib.Path(sys.argv[1]).mkdir()
for i in range(int(sys.argv[3])):
    pathlib.Path(sys.argv[1], f"m{i}.safetensors").write_bytes(source)
"""
