"""The documentation in a real browser: nothing runs off the side, is fetched elsewhere, or leads nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .browser import chromium, in_browser

ROOT = Path(__file__).parent.parent
WIDTHS = (1440, 390)  # a desk, and a phone

HELD = """() => ({
    names: [...document.querySelectorAll("[id]")].map((each) => each.id),
    links: [...document.querySelectorAll("a[href]")].map((each) => each.href),
    broken: [...document.images].filter((each) => !each.naturalWidth).map((each) => each.src),
})"""
"""What a page has: the names that a link may lead to, its links, and the images that did not load."""

BEYOND = """() => {
    const width = document.documentElement.clientWidth;
    const moves = (each) => /auto|scroll/.test(getComputedStyle(each).overflowX);
    const scrolls = (each) => each && (moves(each) || scrolls(each.parentElement));
    const wide = [...document.querySelectorAll("article, article *")].filter((each) => {
        const place = each.getBoundingClientRect();
        return place.width && (place.right > width + 1 || place.left < -1) && !scrolls(each.parentElement);
    });
    return wide.slice(0, 3).map((each) => each.outerHTML.slice(0, 80));
}"""
"""What lies beyond the sides of the window, and in nothing that scrolls: the theme cuts off what is too wide."""


class Files(SimpleHTTPRequestHandler):
    """A folder over HTTP, without a word."""

    def log_message(self, *arguments: Any) -> None:
        return None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder that `make docs` builds, and where it is served."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # a link to a page or heading that is not there is an error
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@in_browser
def test_every_page_fits_a_desk_and_a_phone_and_leads_to_what_there_is(site: tuple[Path, str]) -> None:
    folder, home = site
    pages = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("**/index.html"))
    assert len(pages) == len(list((ROOT / "docs").glob("*.md")))
    wrong: list[str] = []
    names: dict[str, set[str]] = {}
    links: dict[str, str] = {}  # -> the page that it was first seen on
    with chromium() as browser:
        page = browser.new_page()
        page.on(
            "request", lambda sent: None if sent.url.startswith((home, "data:", "blob:")) else wrong.append(sent.url)
        )
        page.on("response", lambda got: wrong.append(f"{got.status}: {got.url}") if got.status >= 400 else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        for name in pages:
            url = f"{home}{name}/".replace("/./", "/")
            page.goto(url)
            held = page.evaluate(HELD)
            names[url] = set(held["names"])
            links |= {link: name for link in held["links"] if link not in links}
            wrong += [f"{name}: no image {image}" for image in held["broken"]]
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                wrong += [f"{name} at {width}: {beyond}" for beyond in page.evaluate(BEYOND)]
        page.evaluate(
            "document.querySelector('article').insertAdjacentHTML('beforeend', '<p style=\"width: 2000px\">')"
        )
        assert page.evaluate(BEYOND)  # that it would be seen
    for link, name in links.items():
        target, _, anchor = link.partition("#")
        if link.startswith(home) and not (target in names and (not anchor or anchor in names[target])):
            wrong.append(f"{name}: {link}")
    assert not wrong
