"""What the code itself must keep to: the layers, no code from files, light imports, sizes. ARCHITECTURE.md says why."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from chkpt_channels.core.limits import LIMITS

PACKAGE = Path(__file__).resolve().parent.parent / "chkpt_channels"
NAME = PACKAGE.name
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = ("cli", "api", "folders", "transform", "discovery", "formats", "containers", "storage", "core")
"""From the top: a package imports its own modules and those of the packages to the right."""
EXECUTING = {"eval", "exec", "compile", "__import__", "breakpoint"}
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "flax", "transformers", "timm", "onnxruntime"}
UNSAFE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"}
HEAVY = {"numpy", "ml_dtypes", "h5py", "onnx", "rich", "safetensors", "pydantic"}

CONTRACT = {"formats", "formats.base", "formats.graph"}
"""What the packages above formats know of it; no format is named outside of its own room."""
SHARED = {"formats.jax_names"}
"""What several formats read by names."""
MOST_LINES, MOST_FUNCTION_LINES, MOST_FILES = 300, 40, 13
LONGER: dict[str, str] = {
    "transform/option_table.py": "a row for each option",
}
"""Files and functions ("file:function") that may be longer, each with the reason."""
PRINTING = {"cli/app.py", "cli/session.py", "cli/progress.py", "__main__.py"}

modules = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    """A module's name inside the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


KNOWN = {dotted(path) for path in MODULES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module by its whole name, and what is imported of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """The modules of this package that a module imports, those under TYPE_CHECKING too."""
    names = (name.removeprefix(f"{NAME}.") for name in imports(parsed(path)) if name.startswith(f"{NAME}."))
    found = {name if name in KNOWN else name.rpartition(".")[0] for name in names}
    return found - {dotted(path), ""}


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


def layer(name: str) -> str:
    return name.partition(".")[0]


@modules
def test_every_module_has_a_test_file_of_its_name(path: Path):
    """In the folder of its package."""
    if path.name not in ("__init__.py", "__main__.py"):
        relative = path.relative_to(PACKAGE)
        assert (PACKAGE.parent / "tests" / relative.parent / f"test_{relative.name}").is_file()


def test_there_is_something_to_check():
    assert len(MODULES) > 100
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*LAYERS}
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


@modules
def test_imports_go_downwards(path: Path):
    name = dotted(path)
    if layer(name) not in LAYERS:
        return
    below = LAYERS[LAYERS.index(layer(name)) :]
    wrong = {layer(other) for other in own_imports(path) if layer(other) not in below and layer(other) in LAYERS}
    assert not wrong
    if layer(name) == "core":
        assert {layer(other) for other in own_imports(path)} <= {"core"}
    if layer(name) == "containers":
        assert {layer(other) for other in own_imports(path)} <= {"containers", "storage", "core"}


@modules
def test_formats_are_reached_by_their_contract_alone(path: Path):
    name, others = dotted(path), own_imports(path)
    if layer(name) in ("discovery", "transform", "folders", "api", "cli"):
        assert {other for other in others if layer(other) == "formats"} <= CONTRACT
    if layer(name) == "formats" and name.count(".") > 1:
        rooms = {".".join(other.split(".")[:2]) for other in others if other.startswith("formats.")}
        assert rooms <= CONTRACT | SHARED | {".".join(name.split(".")[:2])}


@modules
def test_nothing_grows_without_a_reason(path: Path):
    text, file = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
    assert text.count("\n") <= MOST_LINES or file in LONGER
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES:
            assert f"{file}:{node.name}" in LONGER, f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"


def test_no_package_is_crowded():
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in MODULES}}
    assert {str(folder.relative_to(PACKAGE)) for folder, count in counts.items() if count > MOST_FILES} <= LONGER.keys()


def test_every_exception_is_needed():
    for place in LONGER:
        file, _, function = place.partition(":")
        text = (PACKAGE / file).read_text(encoding="utf-8")
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == function]
        longest = max(((n.end_lineno or 0) - n.lineno + 1 for n in nodes), default=0)
        assert longest > MOST_FUNCTION_LINES if function else text.count("\n") > MOST_LINES, place


def test_a_public_class_name_is_defined_once():
    """One word, one meaning: a reader who searches for a class finds it."""
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


@modules
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(parsed(path))


@modules
def test_no_code_from_files_runs(path: Path):
    tree = parsed(path)
    tops = {name.partition(".")[0] for name in imports(tree)}
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


def test_the_base_error_is_caught_once():
    """In the command's session: everywhere else errors go up."""
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler) and node.type and "ChkptChannelsError" in ast.unparse(node.type)
    ]
    assert found == ["cli/session.py"]


@modules
def test_no_assert_stands_on_what_a_file_holds(path: Path):
    """Under -O it would be gone: damage is an error, and only what types cannot say may be asserted."""
    assert not [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Assert)]


@modules
def test_nothing_is_printed_by_the_library(path: Path):
    if path.relative_to(PACKAGE).as_posix() in PRINTING:
        return
    calls = {ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}
    assert not calls & {"print", "sys.stderr.write", "warnings.warn"}


def test_no_circles():
    """Neither between modules nor, what follows, between packages."""
    graph = {dotted(path): own_imports(path) for path in MODULES}
    left: defaultdict[str, set[str]] = defaultdict(set, graph)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_asking_every_format_opens_none():
    reader = f"{NAME}.containers.hdf5.reader"
    code = f"import sys; from {NAME}.formats import known; known(); sys.exit({reader!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


MOST_CROSSINGS = 1260
"""Calls from one package into another, in one conversion of a small state dict: 88 zip members, 76 tensors; not those that define
a module's classes and patterns."""


def test_packages_ask_one_another_for_few_things(tmp_path: Path):
    """A package that asks another for every node, one attribute at a time, has its border in the wrong place."""
    counting = f"""
import sys
from collections import Counter
from pathlib import Path
PACKAGE = {str(PACKAGE)!r} + "/"
crossings, packages = Counter(), {{}}

def package(code):
    name = code.co_filename
    if name not in packages:
        packages[name] = name.removeprefix(PACKAGE).partition("/")[0] if name.startswith(PACKAGE) else ""
    return packages[name]

def count(frame, event, argument):
    called = package(frame.f_code) if event == "call" else ""
    caller = frame.f_back
    while called and caller and not package(caller.f_code):
        caller = caller.f_back
    if called and caller and caller.f_code.co_name != "<module>" and package(caller.f_code) != called:
        crossings[package(caller.f_code), called] += 1

from {NAME}.cli.app import run
sys.setprofile(count)
code = run(sys.argv[1:])
sys.setprofile(None)
assert code == 0
print(crossings.total(), crossings.most_common(3))
"""
    fixture = PACKAGE.parent / "fixtures" / "torch_zip" / "state_dict.pth"
    arguments = ["convert", str(fixture), "--to", "gray", "-q", "-o", str(tmp_path / "out.pth")]
    done = subprocess.run([sys.executable, "-c", counting, *arguments], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, _, where = done.stdout.partition(" ")
    assert 100 < int(total) < MOST_CROSSINGS, (total, where)


def test_the_limits_are_those_that_are_published():
    """SECURITY.md lists every limit with its number, and none else; each is asked somewhere."""
    text = (PACKAGE.parent / "SECURITY.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` (\d+) \|", text, re.MULTILINE)) == {k: str(v) for k, v in LIMITS._asdict().items()}
    code = "".join(path.read_text(encoding="utf-8") for path in MODULES)
    assert all(f"LIMITS.{name}" in code for name in LIMITS._fields)


def test_every_thread_leaves_signals_to_the_main_one():
    starts = [line for path in MODULES for line in path.read_text(encoding="utf-8").splitlines() if "ThreadPoolExecutor(" in line]
    assert len(starts) == 4
    assert all("left_to_main_thread" in line for line in starts)
    assert not any("threading.Thread(" in path.read_text(encoding="utf-8") for path in MODULES)
