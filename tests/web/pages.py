"""Pages to test: built from a bundle, and served on this machine as any static host would serve them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import Page

from simmim_export.bundle import Bundle
from simmim_export.errors import EngineUnavailable
from simmim_export.system.watch import unwatched
from simmim_export.web import site
from simmim_export.web.packages import installed


def require_packages() -> None:
    """Skip the test where npm cannot install the packages of the page."""
    try:
        with installed(unwatched):
            pass
    except EngineUnavailable as error:
        pytest.skip(error.what)


def make_page(bundle: Path, output: Path, *, precision: str = "fp32", **options: Any) -> site.Site:
    """Write the page of ``bundle``, or skip the test."""
    require_packages()
    opened = Bundle.open(bundle)
    all_options: dict[str, Any] = {"native": None, "overwrite": False} | options
    return site.build(opened, output, plan=site.plan_for_browser(opened, precision), watch=unwatched, **all_options)


class _Quiet(SimpleHTTPRequestHandler):
    # What Python knows of these depends on the system's list.
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which ``folder`` is served during the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def wait_for_state(tab: Page, state: str) -> None:
    """Wait until the page is ``ready`` or ``failed``."""
    tab.wait_for("document.body && document.body.dataset.state !== 'loading'", "the page stays at loading")
    now = tab.value("document.body.dataset.state")
    assert now == state, tab.value("document.getElementById('failure-text').textContent")


def wait_for_proof(tab: Page) -> str:
    """Wait until the page has checked itself, and return passed or failed."""
    script = "document.getElementById('proof').dataset.state"
    tab.wait_for(f"{script} !== 'running'", "the checks do not end", seconds=60)
    return str(tab.value(script))


def table(tab: Page) -> list[list[str]]:
    """The rows of the table of graphs: graph, variant, checks passed, worst error, cosine, milliseconds here, and native."""
    cells = "[...row.cells].flatMap(cell => [...cell.childNodes]).map(node => node.textContent)"
    return list(tab.value(f"[...document.querySelectorAll('#graphs tbody tr')].map(row => {cells})"))
