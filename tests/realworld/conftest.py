"""Tests on trained networks: torch, onnxruntime and Keras are the judges."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of each conversion, and every figure that was measured."""
    lines = [
        line
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, line in getattr(report, "user_properties", ())
        if name == "realworld" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("trained networks")
    for line in lines:
        terminalreporter.write_line(line)
