"""Files whose weights are no dense tensors, as torch and numpy write them: the first conv among them is refused by its name."""

import pickle
import shlex
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from chkpt_channels import UnsupportedError, convert
from tests.frameworks.oracle import load

FIRST, SECOND = "0.weight", "3.weight"


def network(**layers):
    first = layers.get("first", nn.Conv2d(3, 16, 3))
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 64))


def state(**changes):
    """The network's state dict, some of its entries as something else."""
    tensors = network().state_dict()
    return {**tensors, **{name: change(tensors[name]) for name, change in changes.items()}}


def distributed(path):
    """FSDP2's state dict, of a world of one."""
    from torch import distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{path / 'store'}", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield {name: distribute_tensor(t, mesh, [Shard(0)]) if t.ndim else t for name, t in network().state_dict().items()}
    dist.destroy_process_group()


def first(change):
    return lambda: state(**{FIRST: change})


REFUSED = {
    "sparse": (first(torch.Tensor.to_sparse), "is a sparse tensor", ".to_dense()"),
    "a sparse parameter": (first(lambda t: nn.Parameter(t.to_sparse())), "is a sparse tensor", ".to_dense()"),
    "a list": (first(torch.Tensor.tolist), "is a nested list of numbers", f"torch.tensor(state_dict['{FIRST}'])"),
    "integers": (first(lambda t: (t * 100).to(torch.int8)), "its I8 numbers have no scale", "floating-point checkpoint"),
    "meta": (first(lambda t: t.to("meta")), "is on the meta device", "load the weights"),
    "lazy": (lambda: network(first=nn.LazyConv2d(16, 3)).state_dict(), "is not initialized", "run the model once"),
    "a lazy module": (lambda: network(first=nn.LazyConv2d(16, 3)), "is not initialized", "run the model once"),
    "numpy": (lambda: {k: t.numpy() for k, t in state().items()}, "is a numpy array", "torch.from_numpy"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("make", "what", "hint"), REFUSED.values(), ids=REFUSED)
def test_a_first_kernel_that_is_no_dense_tensor_is_refused(tmp_path, make, what, hint, zipped):
    torch.save(make(), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsupportedError, match=f"net.pth: {FIRST}: {what}") as refused:
        convert(tmp_path / "net.pth", tmp_path / "new.pth", 1)
    assert hint in refused.value.hint
    assert not (tmp_path / "new.pth").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_are_named_in_every_protocol(tmp_path, protocol):
    arrays = {"model": {name: tensor.numpy() for name, tensor in state().items()}}
    torch.save(arrays, tmp_path / "net.pth", pickle_protocol=protocol)
    with pytest.raises(UnsupportedError, match=f"model/{FIRST}: is a numpy array"):
        convert(tmp_path / "net.pth", tmp_path / "new.pth", 1)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(arrays, protocol))  # the same without torch is a format of its own
    convert(tmp_path / "net.pkl", tmp_path / "new.pkl", 1)
    found = pickle.loads((tmp_path / "new.pkl").read_bytes())["model"][FIRST]
    np.testing.assert_allclose(found, arrays["model"][FIRST].sum(1, keepdims=True), atol=1e-6)


def test_dtensors_are_refused(tmp_path):
    for tensors in distributed(tmp_path):
        torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(UnsupportedError, match=f"{FIRST}: is a DTensor") as refused:
        convert(tmp_path / "net.pth", tmp_path / "new.pth", 1)
    assert "get_model_state_dict" in refused.value.hint
    assert "full_state_dict=True" in refused.value.hint


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({SECOND: torch.Tensor.to_sparse}, id="a sparse inner kernel"),
        pytest.param({"5.weight": lambda t: t.to_sparse_bsr((4, 4))}, id="a sparse Linear in blocks"),
        pytest.param({"5.weight": torch.Tensor.to_sparse_csr}, id="a sparse Linear in rows"),
        pytest.param({SECOND: lambda t: (t * 100).to(torch.int8)}, id="integers further in"),
        pytest.param({"1.running_mean": torch.Tensor.numpy}, id="a numpy vector"),
    ],
)
def test_further_in_they_change_nothing(tmp_path, change):
    original = state(**change)
    torch.save(original, tmp_path / "net.pth")
    convert(tmp_path / "net.pth", tmp_path / "new.pth", 1)
    # numpy's arrays are no weights-only globals
    found = torch.load(tmp_path / "new.pth", weights_only=False)
    expected = {**original, FIRST: original[FIRST].sum(1, keepdim=True)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        dense = [t.to_dense() if torch.is_tensor(t) and t.layout != torch.strided else t for t in (found[name], tensor)]
        np.testing.assert_allclose(*[np.asarray(t) for t in dense], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("items", ["state_dict", "named_parameters"])
def test_a_list_of_names_and_tensors_is_read(tmp_path, items):
    net = network()
    pairs = list(net.state_dict().items() if items == "state_dict" else net.named_parameters())
    torch.save(pairs, tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", tmp_path / "new.pth", 1)
    found = load(tmp_path / "new.pth")
    assert [name for name, _ in found] == [name for name, _ in pairs]
    if items == "state_dict":
        exec("\n".join(report.load_lines), {"torch": torch, "model": network(first=nn.Conv2d(1, 16, 3))})
    torch.testing.assert_close(dict(found)[FIRST], dict(pairs)[FIRST].sum(1, keepdim=True))


@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_torch_export_is_named(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(nn.Conv2d(3, 8, 3), (torch.rand(1, 3, 8, 8),)), path)
    with pytest.raises(UnsupportedError, match=r"is a torch\.export archive") as refused:
        convert(path, tmp_path / "new.pth", 1)
    command, _, then = refused.value.hint.partition(", and ")
    assert then == "convert net.pth"
    python = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(["sh", "-c", python], check=True, cwd=tmp_path)  # the command that it gives works
    convert(tmp_path / "net.pth", tmp_path / "new.pth", 1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_around_a_checkpoint_is_named(tmp_path, method):
    torch.save(state(), tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.zip", "w", method) as archive:
        archive.write(tmp_path / "net.pth", "net.pth")
    with pytest.raises(UnsupportedError, match=r"is a zip archive around net\.pth") as refused:
        convert(tmp_path / "net.zip", tmp_path / "new.pth", 1)
    assert refused.value.hint == f"unzip {tmp_path / 'net.zip'} net.pth"
