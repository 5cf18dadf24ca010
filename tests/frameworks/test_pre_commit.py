"""The hooks with the real pre-commit program, in real git repositories. It installs the commit that is checked out here, once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chkpt_channels import convert

pytest.importorskip("pre_commit")

ROOT = Path(__file__).resolve().parents[2]
RGB = ROOT / "fixtures" / "safetensors" / "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"
CONFIGURATION = """repos:
- repo: {root}
  rev: {commit}
  hooks:
  - id: chkpt-channels-check
  - id: chkpt-channels-derived
"""


def git(folder, *arguments):
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    found = subprocess.run(["git", *named, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """One environment for all tests."""
    return tmp_path_factory.mktemp("pre-commit")


class Repository:
    """A git repository with the hooks configured, and a gray model in it."""

    def __init__(self, folder, home):
        self.folder, self.home = folder, home
        if not (ROOT / ".git").exists():
            pytest.skip("pre-commit installs from a git repository, and this is none")
        git(folder, "init", "-q")
        configuration = CONFIGURATION.format(root=ROOT, commit=git(ROOT, "rev-parse", "HEAD"))
        (folder / ".pre-commit-config.yaml").write_text(configuration)
        convert(RGB, folder / "model.safetensors", to="gray")
        self.configure(1)
        self.commit()

    def configure(self, channels):
        (self.folder / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": channels}))

    def commit(self):
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-qm", "a commit")

    def run(self, *arguments):
        environment = {**os.environ, "PRE_COMMIT_HOME": str(self.home), "PRE_COMMIT_COLOR": "never"}
        environment.pop("PYTHONPATH", None)  # what is installed is tested, not what is beside
        done = subprocess.run(
            [sys.executable, "-m", "pre_commit", "run", *arguments],
            cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path, home):
    return Repository(tmp_path, home)


def test_what_agrees_passes(repository):
    code, told = repository.run("--all-files")
    assert (code, "Passed" in told) == (0, True), told


def test_a_configuration_changed_without_its_weights(repository):
    repository.configure(3)
    git(repository.folder, "add", "config.json")
    code, told = repository.run()
    assert code == 1
    assert "Failed" in told
    assert "config.json: num_channels: found 3, expected 1" in told


def test_weights_changed_without_their_configuration(repository):
    shutil.copy(RGB, repository.folder / "model.safetensors")
    git(repository.folder, "add", "model.safetensors")
    code, told = repository.run()
    assert (code, "config.json: num_channels: found 1, expected 3" in told) == (1, True), told
    repository.configure(3)
    git(repository.folder, "add", "config.json")
    assert repository.run()[0] == 0


def test_what_is_no_checkpoint_is_not_looked_at(repository):
    (repository.folder / "README.md").write_text("words")
    git(repository.folder, "add", "README.md")
    code, told = repository.run("chkpt-channels-check")
    assert (code, "no files to check" in told) == (0, True), told


def test_a_pointer_is_skipped_and_that_is_said(repository):
    (repository.folder / "large.pth").write_bytes(POINTER)
    git(repository.folder, "add", "large.pth")
    code, told = repository.run()
    assert code == 0
    assert "large.pth" in told
    assert "a Git-LFS pointer" in told


def test_derived_files(repository):
    shutil.copy(RGB, repository.folder / "rgb.safetensors")
    (repository.folder / "config.json").unlink()
    manifest = '[[convert]]\nsrc = "rgb.safetensors"\ndst = "model.safetensors"\nto = "gray"\n'
    (repository.folder / "chkpt-channels.toml").write_text(manifest)
    repository.commit()
    for stage in ("manual", "pre-push"):
        code, told = repository.run("--hook-stage", stage, "--all-files", "chkpt-channels-derived")
        assert (code, "Passed" in told) == (0, True), told
    assert "derived" not in repository.run("--all-files")[1]  # not at every commit
    shutil.copy(RGB, repository.folder / "model.safetensors")
    repository.commit()
    code, told = repository.run("--hook-stage", "manual", "--all-files", "chkpt-channels-derived")
    assert (code, "Failed" in told, "conv1.weight" in told) == (1, True, True), told
