"""What the code itself must keep to: no code from files, light imports, walls between the rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chkpt_channels.limits import LIMITS

PACKAGE = Path(__file__).resolve().parent.parent / "chkpt_channels"
MODULES = sorted(PACKAGE.rglob("*.py"))
EXECUTING = {"eval", "exec", "compile", "__import__", "breakpoint"}
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "flax", "transformers", "timm", "onnxruntime"}
UNSAFE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"}
HEAVY = {"numpy", "ml_dtypes", "h5py", "onnx", "rich", "safetensors", "pydantic"}

modules = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (
                f"{base}.{alias.name}".replace("..", ".") if not node.module else f"{base}.{alias.name}" for alias in node.names
            )


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when the module is imported: not in functions, not under TYPE_CHECKING."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def test_there_is_something_to_check():
    assert len(MODULES) > 20


@modules
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(parsed(path))


@modules
def test_no_code_from_files_runs(path: Path):
    tree = parsed(path)
    tops = {name.partition(".")[0] for name in imports(tree) if not name.startswith(".")}
    assert not tops & (UNSAFE | FRAMEWORKS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in EXECUTING
            assert not called.startswith(("pickle.", "os.system", "os.exec", "os.popen", "subprocess.", "ctypes."))


@modules
def test_nothing_heavy_is_imported_before_it_is_used(path: Path):
    for node in at_import(parsed(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {name.partition(".")[0] for name in imports(node)} & HEAVY, ast.unparse(node)


@pytest.mark.parametrize("path", sorted((PACKAGE / "containers").glob("*.py")), ids=lambda path: path.name)
def test_containers_know_nothing_of_tensors(path: Path):
    inside = {name.lstrip(".").partition(".")[0] for name in imports(parsed(path)) if name.startswith("..")}
    assert inside <= {"collecting", "dtypes", "errors", "limits", "source", "splice"}


def test_the_base_error_is_caught_once():
    """In the command's session: everywhere else errors go up."""
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler) and node.type and "ChkptChannelsError" in ast.unparse(node.type)
    ]
    assert found == ["_session.py"]


@modules
def test_no_assert_stands_on_what_a_file_holds(path: Path):
    """Under -O it would be gone: damage is an error, and only what types cannot say may be asserted."""
    assert not [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Assert)]


@modules
def test_nothing_is_printed_by_the_library(path: Path):
    if path.name in ("cli.py", "_session.py", "__main__.py", "text.py", "_bar.py"):
        return
    calls = {ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}
    assert not calls & {"print", "sys.stderr.write", "warnings.warn"}


def test_asking_every_format_runs_no_lazy_module():
    code = (
        "import sys; from chkpt_channels.formats import known; known(); sys.exit('chkpt_channels.containers.hdf5' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_the_limits_are_those_that_are_published():
    """SECURITY.md lists every limit with its number, and none else; each is asked somewhere."""
    text = (PACKAGE.parent / "SECURITY.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` (\d+) \|", text, re.MULTILINE)) == {k: str(v) for k, v in LIMITS._asdict().items()}
    code = "".join(path.read_text(encoding="utf-8") for path in MODULES)
    assert all(f"LIMITS.{name}" in code for name in LIMITS._fields)
