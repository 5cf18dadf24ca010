"""Two installed versions over every fixture and option: the same bytes, the same exit codes, the same JSON but for sentences.

    python -m tests.support.compare_versions OLD_PYTHON NEW_PYTHON [--only PART_OF_A_CASE]

Each is the interpreter of an environment that holds one version. Every case runs in an empty folder with a copy of the fixture;
what is compared are the exit code, the JSON report, and every file that is there afterwards. Prints what differs; exit 1 where
anything does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.files import FIXTURES, truths

SENTENCES = frozenset({"why", "why_not", "method_why", "message", "hint", "title"})
"""Keys of the report whose values are for people, and may be worded anew."""

OPTIONS = """
--to gray | --to rgb | --to 4 | --to bgr | --to rgba | --to 2 | --to gray --method sum | --to gray --method mean
--to gray --method luma | --to gray --method luma --luma bt601 | --to gray --luma 0.5,0.3,0.2 | --to rgb --method repeat
--to 4 --method zero | --to gray --method broadcast | --to gray --method stack | --select 0 | --select 2,1,0 | --select R,B
--bands B,G,R,NIR=R | --bands R,G,B,D=mean | --to gray --norm imagenet | --to gray --norm imagenet --input-range 255
--to gray --norm half | --to gray --mean 0.5,0.4,0.3 --std 0.2,0.2,0.1 --new-mean 0.4 --new-std 0.2 | --to gray --norm auto
--matrix matrix.csv | --to gray --channel-order bgr | --to rgb --channel-order bgr | --to gray --from 3 | --to rgb --from 1
--to gray --layer * | --to gray --layer conv1 | --to gray --layer *weight* --layout OIHW | --to gray --layout HWIO
--to gray --layout O(HWI) | --to 4 --layout O(IHW) | --to gray --input x | --to gray --optimizer drop | --to 4 --optimizer drop
--to gray --set-hparams | --to gray --strict | --to gray --allow-nonfinite | --to gray --follow-links | --to gray --sha256
--to gray --hash-name | --to gray --dry-run | --to 4 --dry-run | --to gray --explain | --to gray --sidecars
--to gray --state-dict state_dict -o out/x.safetensors | --to gray -o out/x.safetensors | --to gray -o out/x.pth
"""
OTHERS = """
inspect | inspect --all -v | check | check --expect gray | check --expect rgb | convert --to gray --check
"""

DRIVER = """
import contextlib, gc, hashlib, io, json, os, shutil, sys
from pathlib import Path
from chkpt_channels import __main__ as program

for line in sys.stdin:
    case = json.loads(line)
    home = Path(case["home"])
    shutil.rmtree(home, ignore_errors=True)
    (home / "out").mkdir(parents=True)
    for name, path in case["files"].items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, home / name)
    (home / "matrix.csv").write_text("0.5\\n0.25\\n0.25\\n")
    os.chdir(home)
    runs = []
    for arguments in case["runs"]:
        sys.argv = ["chkpt-channels", *arguments]
        out = io.StringIO()
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            try:
                program.main()
            except SystemExit as ended:
                code = ended.code
        gc.enable()
        try:
            report = json.loads(out.getvalue())
        except ValueError:
            report = None
        runs.append([code, report])
    files = {str(p.relative_to(home)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(home.rglob("*")) if p.is_file()}
    print(json.dumps({"runs": runs, "files": files}), flush=True)
"""


def split(table: str) -> list[list[str]]:
    """The options of each case."""
    return [part.split() for line in table.strip().splitlines() for part in line.split(" | ")]


def cases() -> dict[str, dict[str, Any]]:
    """Every fixture with every option, alone and in a model folder; by what they are called in the result."""
    found: dict[str, dict[str, Any]] = {}
    for truth in truths():
        name = truth.path.name
        beside = {p.name: str(p) for p in truth.path.parent.glob(f"{name}.*")}
        files = {name: str(truth.path), **beside}
        for options in split(OPTIONS):
            output = [] if {"-o", "--hash-name", "--sidecars"} & {*options} else ["-o", f"out/{name}"]
            output = ["--output-dir", "out"] if "--hash-name" in options or "--sidecars" in options else output
            runs = [["convert", name, *options, *output, "--json"]]
            if output[:1] == ["-o"] and "--dry-run" not in options and "--explain" not in options:
                words = [o for o in options if o not in ("--sha256",)]
                runs.append(["verify", name, f"out/{name}", *(o for o in words if not o.startswith("--state")), "--json"])
            found[f"{truth} {' '.join(options)}"] = {"files": files, "runs": runs}
        for command, *options in split(OTHERS):
            found[f"{truth} {command} {' '.join(options)}"] = {"files": files, "runs": [[command, name, *options, "--json"]]}
        folder = {f"model/{key}": path for key, path in files.items()}
        for options in (["--to", "gray"], ["--to", "4", "--method", "zero"], ["--to", "bgr"]):
            runs = [["convert", "model", *options, "-o", "out/model", "--json"], ["inspect", "model", "--json"]]
            runs += [["verify", "model", "out/model", *options, "--json"], ["check", "out/model", "--json"]]
            found[f"folder of {truth} {' '.join(options)}"] = {"files": folder, "runs": runs}
    return found


def answers(python: str, asked: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What one version answers."""
    with tempfile.TemporaryDirectory() as home:
        lines = "".join(json.dumps({**case, "home": "/tmp/chkpt-compare/" + home[-8:]}) + "\n" for case in asked.values())
        done = subprocess.run([python, "-c", DRIVER], input=lines, cwd=home, capture_output=True, text=True, check=False)
    found = [json.loads(line.replace(home[-8:], "HOME")) for line in done.stdout.splitlines()]
    if len(found) != len(asked):
        raise SystemExit(f"{python} stopped at {list(asked)[len(found)]}:\n{done.stderr[-2000:]}")
    return dict(zip(asked, found, strict=True))


def without_sentences(value: Any) -> Any:
    """A report without what is worded for people."""
    if isinstance(value, dict):
        if "declarations" in value:  # earlier versions gave those of Keras in the order of a set
            value = value | {"declarations": sorted(value["declarations"], key=str)}
        return {k: without_sentences(v) for k, v in value.items() if k not in SENTENCES}
    return [without_sentences(v) for v in value] if isinstance(value, list) else value


def different(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two reports differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in {**old, **new} for d in different(old.get(k), new.get(k), f"{where}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in different(a, b, f"{where}[{i}]")]
    return [] if old == new else [f"{where}: {str(old)[:120]} -> {str(new)[:120]}"]


def main() -> None:
    """Ask both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    asked = {name: case for name, case in cases().items() if given.only in name}
    with ThreadPoolExecutor(2) as pool:
        old, new = pool.map(lambda python: answers(python, asked), (given.old, given.new))
    worse = 0
    for name in asked:
        if found := different(without_sentences(old[name]), without_sentences(new[name])):
            worse += 1
            print(name, *found[:6], sep="\n    ")
    runs = sum(len(case["runs"]) for case in asked.values())
    print(f"{len(asked)} cases, {runs} runs over {len(truths())} fixtures in {FIXTURES.name}/: {worse} differ")
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
