"""One server and one browser for all tests; what the server is asked for is remembered."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "build" / "page"
FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
    --disable-sync --enable-precise-memory-info
""".split()  # noqa: SIM905 # a list of words
WAIT = 300_000
"""Milliseconds until something counts as hung: starting Python takes seconds on an idle machine, a minute on a busy one."""


class Served:
    """A folder on a port of this machine, and the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, form: str, *words: Any) -> None:
                asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "no Chromium is installed; CHROMIUM=PATH names one"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def served() -> Served:
    assert (PAGE / "files.json").exists(), "make page comes first"
    return Served(PAGE)


def opened(browser: Browser, address: str, **looks: Any) -> Page:
    """The page, ready, in a context of its own."""
    page = browser.new_context(accept_downloads=True, **looks).new_page()
    page.set_default_timeout(WAIT)
    page.broken = []
    page.on("pageerror", lambda error: page.broken.append(str(error)))
    page.goto(address)
    expect(page.locator("#state")).to_have_text("Ready.", timeout=WAIT)
    return page


@pytest.fixture(scope="session")
def shared(browser: Browser, served: Served) -> Page:
    """One page for all tests that need none of their own: Python starts once."""
    page = opened(browser, served.address)
    page.loaded = len(served.asked)
    return page


@pytest.fixture
def page(shared: Page) -> Iterator[Page]:
    """The same, as it is when it is opened."""
    shared.locator("[name=to][value=gray]").check()
    yield shared
    assert shared.broken == []
