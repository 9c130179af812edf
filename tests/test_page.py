"""The server's page in a real browser: ways in, what it shows, errors, a slow server, two tabs, keyboard, phone."""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from vit import attention_mask, predict
from vit.serving import Limits, create_app
from vit.serving.page import FILES
from vit.serving.server import listen

from .browser import chromium, in_browser
from .served import Client, checkpoint, picture

FOLDER = Path(__file__).parents[1] / "vit" / "serving" / "page"
LIMITS = Limits(max_queue=2, max_body=400_000, max_batch_size=2)
LABELS = ("ant", "bee", "cat", "dog", "elk")
expect.set_options(timeout=30_000)


class Server:
    """An application on a free port of loopback, in a thread, whose models can be held up.

    Attributes:
        url: where it is.
        app: the application.
        asked: what the models computed, as (model, task).
    """

    def __init__(self, models: dict[str, Path]) -> None:
        self.app = create_app({name: str(folder) for name, folder in models.items()}, "pt", limits=LIMITS)
        self.go = threading.Event()
        self.go.set()
        self.asked: list[tuple[str, str]] = []
        listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, ws="none"))
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            self.thread.join(0.01)
        for model in self.app.state.service.models.values():
            for task in model.tasks.values():
                task.run = self._held(task.run, (model.name, task.name))

    def _held(self, run: Callable[..., Any], name: tuple[str, str]) -> Callable[..., Any]:
        def held(batch: np.ndarray) -> Any:
            self.asked.append(name)
            assert self.go.wait(60)
            return run(batch)

        return held

    def stop(self) -> None:
        self.go.set()
        self.server.should_exit = True
        self.thread.join(60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("page")
    return {
        "named": checkpoint(root / "named", id2label=dict(enumerate(LABELS))),
        "base": checkpoint(root / "base", "dinov2", None),
    }


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    found = Server(folders)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    server.go.set()
    with opened(browser, server) as found:
        yield found


class opened:
    """A page in a window of its own; at the end nothing may have gone wrong in it, or left for another host."""

    def __init__(self, browser: Browser, server: Server, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if "Security Policy" in said.text else None)
        self.page.on(
            "request",
            lambda sent: None if re.match(f"{server.url}|blob:|data:", sent.url) else self.wrong.append(sent.url),
        )
        self.page.goto(server.url)
        expect(self.page.locator("#model")).to_be_enabled()

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *error: Any) -> None:
        self.context.close()
        assert self.wrong == []


def file(seed: int, name: str | None = None, **options: Any) -> Any:
    return {"name": name or f"{seed}.png", "mimeType": "image/png", "buffer": picture(seed, **options)}


def choose(page: Page, *files: Any) -> None:
    page.set_input_files("#add", list(files))


def thumbs(page: Page) -> Locator:
    return page.locator("#images button")


TRANSFER = """async ([kind, name, data]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
    if (name) transfer.items.add(new File([bytes], name, {type: "image/png"}));
    else transfer.setData("text/plain", "words");
    const event = kind === "paste"
        ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true})
        : new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
    document.body.dispatchEvent(event);
}"""


def transfer(page: Page, kind: str, seed: int = 0, name: str = "given.png") -> None:
    page.evaluate(TRANSFER, [kind, name, base64.b64encode(picture(seed)).decode()])


# === Ways in ===


@in_browser
@pytest.mark.parametrize("way", ["choose", "add", "photograph", "drop", "paste"])
def test_an_image_that_comes_in_any_way_is_labelled(page: Page, folders: dict[str, Path], way: str) -> None:
    if way in ("drop", "paste"):
        if way == "drop":
            transfer(page, "dragenter")
            expect(page.locator("#drop")).to_be_visible()
        transfer(page, way)
        expect(page.locator("#drop")).to_be_hidden()
    else:
        page.set_input_files({"photograph": ".photograph >> nth=0"}.get(way, f"#{way}"), file(0, "given.png"))
    (wanted,) = predict([picture()], str(folders["named"]), "pt")
    expect(page.locator("#labels .label")).to_have_text(list(wanted.labels))
    shares = [f"{100 * share:.1f}%" for share in wanted.probabilities]
    expect(page.locator("#labels .share")).to_have_text(shares)
    scale = page.locator("#labels .bar i").first.evaluate("bar => bar.style.transform")
    assert float(re.findall(r"[\d.]+", scale)[0]) == pytest.approx(wanted.probabilities[0], abs=1e-4)
    expect(page.locator("#name")).to_have_text("given.png")
    expect(page.locator("#time")).to_have_text(re.compile(r"^[\d.]+ s, [\d.]+ s of it in the server$"))
    spoken = ", ".join(f"{label} {share}" for label, share in zip(wanted.labels[:3], shares[:3], strict=True))
    expect(page.locator("#said")).to_have_text(f"given.png: {spoken}")


@in_browser
def test_what_is_no_file_changes_nothing_and_is_told(page: Page) -> None:
    transfer(page, "paste", name="")
    expect(page.locator("#said")).to_have_text("The clipboard holds no image.")
    transfer(page, "drop", name="")
    expect(page.locator("#said")).to_have_text("What was dropped is no file.")
    expect(page.locator("#empty")).to_be_visible()


# === What is shown ===


def pixels(page: Page) -> np.ndarray:
    """What the canvas holds: (height, width, 3)."""
    found = page.locator("#canvas").evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2]))).convert("RGB"))


def asks(server: Server, image: bytes, **options: Any) -> dict[str, Any]:
    (found,) = httpx.post(server.url + "attention", params=options, content=image).json()["results"]
    return found


@in_browser
def test_the_map_lies_over_the_image_as_the_controls_say(page: Page, server: Server) -> None:
    image = picture(3, size=(240, 330))
    choose(page, file(3, size=(240, 330)))
    canvas, label = page.locator("#canvas"), "aria-label"
    expect(canvas).to_have_attribute(label, re.compile("layer 1, mean of 4 heads: strongest in row"))
    heat = pixels(page)
    assert heat.shape == (240, 330, 3)
    spread = np.ptp(heat.astype(int), axis=2).mean(axis=(0, 1))
    page.locator("[name=show][value=image]").press("Space")
    np.testing.assert_array_equal(pixels(page), np.asarray(Image.open(io.BytesIO(image))))
    assert spread > 5  # colour where the attention is

    page.locator("[name=show][value=mask]").press("Space")
    for change, options, words in (
        (lambda: page.select_option("#way", "2"), {"head": 2}, "layer 1, head 2"),
        (lambda: page.locator("#layer").press("ArrowLeft"), {"head": 2, "layer": 0}, "layer 0, head 2"),
        (lambda: page.select_option("#way", "rollout"), {"rollout": True, "layer": 0}, "rollout through layers 0 to 0"),
    ):
        change()
        expect(canvas).to_have_attribute(label, re.compile(words))
        for share in (0.6, 0.3):
            page.locator("#threshold").fill(str(round(100 * share)))
            found = asks(server, image, threshold=share, **options)
            expect(canvas).to_have_attribute(
                label, re.compile(f"{np.sum(found['mask'])} of 12 patches hold {share:.0%}")
            )
            np.testing.assert_array_equal(found["mask"], attention_mask(np.array(found["map"]), share))
            rows, columns = found["grid"]
            shown = pixels(page)
            coloured = np.ptp(shown.astype(int), axis=2).reshape(rows, 240 // rows, columns, -1).max(axis=(1, 3)) > 40
            np.testing.assert_array_equal(coloured, found["mask"])


@in_browser
def test_neighbours_are_the_images_of_the_visit_by_the_cosine_of_their_vectors(
    page: Page, folders: dict[str, Path]
) -> None:
    choose(page, *(file(seed) for seed in range(4)))
    rows = page.locator("#neighbours li")
    expect(rows).to_have_count(3)
    images = [picture(seed) for seed in range(4)]
    vectors = np.stack([each.vector for each in predict(images, str(folders["named"]), "pt", task="embed")])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[0]
    order = 1 + np.argsort(-cosines[1:])
    wanted = [f"{i}.png, cosine {cosines[i]:.2f}".replace("-", "\u2212") for i in order]
    for row, name in zip(rows.all(), wanted, strict=True):
        expect(row.get_by_role("button")).to_have_accessible_name(name)
    rows.first.get_by_role("button").click()
    expect(page.locator("#stage")).to_be_in_viewport()
    expect(page.locator("#name")).to_have_text(f"{order[0]}.png")
    expect(thumbs(page).nth(int(order[0]))).to_have_attribute("aria-current", "true")


@in_browser
def test_a_model_without_labels_shows_attention_and_neighbours(page: Page, server: Server) -> None:
    choose(page, file(0), file(1))
    expect(page.locator("#neighbours li")).to_have_count(1)
    page.select_option("#model", "base")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile("attention of layer"))
    expect(page.locator("#labelled")).to_be_hidden()
    expect(page.locator("#neighbours li")).to_have_count(1)
    before = len(server.asked)
    page.select_option("#model", "named")  # what was answered is not asked again
    expect(page.locator("#labels li")).to_have_count(len(LABELS))
    assert len(server.asked) == before


@in_browser
def test_a_model_that_only_labels_shows_the_image_and_its_labels(page: Page, server: Server) -> None:
    export = {"name": "named", "version": 1, "platform": "onnx", "tasks": ["classify"]}
    page.route("**/models", lambda route: route.fulfill(json={"ready": True, "models": [export], "max_body": 10**6}))
    page.reload()
    expect(page.locator("#about")).to_have_text("ONNX Runtime")
    expect(page.locator("#model")).to_be_disabled()  # there is no choice
    before = len(server.asked)
    choose(page, file(0), file(1))
    expect(page.locator("#labels li")).to_have_count(len(LABELS))
    expect(page.locator("#layer")).to_be_disabled()
    expect(page.locator("#no-neighbours")).to_have_text("The model gives no vectors to compare.")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "0.png")
    assert server.asked[before:] == [("named", "classify")]


@in_browser
def test_an_image_that_the_browser_cannot_read_is_answered_all_the_same(page: Page) -> None:
    choose(page, {"name": "a.tiff", "mimeType": "image/tiff", "buffer": picture(0, "tiff")})
    expect(page.locator("#labels li")).to_have_count(len(LABELS))
    assert np.ptp(pixels(page)) > 50  # the map alone
    expect(thumbs(page)).to_have_text("tiff")


# === Errors ===


@in_browser
def test_errors_are_told_as_the_server_says_and_the_visit_goes_on(page: Page, server: Server) -> None:
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": picture()[:300]}
    choose(page, broken)
    sentence = page.get_by_role("alert").locator("#sentence")
    expect(sentence).to_have_text(re.compile(r"^The image .*\.$"))
    expect(thumbs(page).first).to_have_accessible_name(re.compile(r"^broken.png: The image .*\.$"))
    choose(page, {"name": "words.txt", "mimeType": "text/plain", "buffer": b"words"})
    expect(sentence).to_have_text("The image is not an image file that Pillow can read.")
    expect(page.locator("#canvas")).to_be_hidden()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(500_000)}
    choose(page, large)
    expect(sentence).to_have_text("The image has 488.3 kB; the server takes at most 390.6 kB.")
    page.route("**/models", lambda route: route.fulfill(json=route.fetch().json() | {"max_body": 10**9}))
    page.reload()
    expect(page.locator("#model")).to_be_enabled()
    choose(page, large)
    expect(sentence).to_have_text("The request's body is too large; expected at most 400,000 bytes.")
    choose(page, file(0))
    expect(page.locator("#labels li")).to_have_count(len(LABELS))
    expect(sentence).to_be_hidden()


@in_browser
def test_a_server_without_room_or_that_is_gone_can_be_asked_again(page: Page, server: Server) -> None:
    service = server.app.state.service
    sentence, again = page.locator("#sentence"), page.get_by_role("button", name="Try again")
    service.limits, limits = Limits(max_queue=1, deadline=0.05), service.limits
    try:
        server.go.clear()
        choose(page, file(0))
        expect(sentence).to_have_text("The request was not answered within 0.05 seconds.")
    finally:
        service.limits = limits
        server.go.set()
    page.context.set_offline(True)
    again.click()
    expect(sentence).to_have_text("The server does not answer.")
    page.context.set_offline(False)
    again.press("Enter")
    expect(page.locator("#labels li")).to_have_count(len(LABELS))
    expect(again).to_be_hidden()


BOXES = "ids => ids.map(id => document.querySelector(id).getBoundingClientRect().toJSON())"
TITLES = ["#stage", "#controls", "#labels-title", "#neighbours-title", "#visit-title"]


@in_browser
def test_a_server_that_is_busy_is_asked_again_for_the_vectors_of_other_images(page: Page, server: Server) -> None:
    times = iter(range(1))
    busy = {"status": 503, "json": {"error": "2 images are waiting already; try again later."}}
    page.route("**/embed?*", lambda route: route.continue_() if next(times, None) is None else route.fulfill(**busy))
    choose(page, file(0), file(1))
    expect(page.locator("#labels li")).to_have_count(len(LABELS))
    expect(page.locator("#neighbours li")).to_have_count(1)
    expect(page.locator(".broken")).to_have_count(0)


@in_browser
def test_a_slow_server_is_waited_for_in_sight_and_nothing_jumps(page: Page, server: Server) -> None:
    before = page.evaluate(BOXES, [*TITLES, "footer"])
    server.go.clear()
    choose(page, file(0))
    expect(page.locator("#working")).to_be_visible()
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#elapsed")).to_have_text(re.compile(r"^[1-9]\d* s$"))
    assert page.evaluate(BOXES, [*TITLES, "footer"]) == before
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(page.locator("#sentence")).to_have_text("Cancelled.")
    expect(page.locator("#stage")).to_be_focused()
    expect(page.locator("#working")).to_be_hidden()
    server.go.set()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#labels li")).to_have_count(len(LABELS))
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    assert page.evaluate(BOXES, [*TITLES, "footer"]) == before


@in_browser
def test_two_tabs_are_two_visits(page: Page, server: Server) -> None:
    other = page.context.new_page()
    other.goto(server.url)
    server.go.clear()
    choose(page, file(0), file(1))
    choose(other, file(2))
    server.go.set()
    for tab, count in ((page, 2), (other, 1)):
        expect(tab.locator("#labels li")).to_have_count(len(LABELS))
        expect(thumbs(tab)).to_have_count(count)
        expect(tab.locator("#neighbours li")).to_have_count(count - 1)


@in_browser
def test_a_key_is_asked_for_where_the_server_wants_one(page: Page, server: Server) -> None:
    door = server.app.middleware_stack
    while not hasattr(door, "key"):
        door = door.app
    door.key = b"s3cret"
    try:
        page.reload()
        expect(page.locator("#locked-why")).to_have_text(re.compile("has no API key"))
        for key in ("wrong", "s3cret"):
            page.get_by_label("API key").fill(key)
            page.get_by_label("API key").press("Enter")
            expect(page.locator("#locked-why")).to_have_text(re.compile("has no|has a wrong"))
        expect(page.locator("#locked")).to_be_hidden()
        choose(page, file(0))
        expect(page.locator("#labels li")).to_have_count(len(LABELS))
    finally:
        door.key = None


# === Who looks ===

FOCUSED = "(({id, ariaLabel, value, tagName}) => id || ariaLabel || value || tagName)(document.activeElement)"


@in_browser
def test_everything_has_a_name_and_is_reached_by_the_keyboard(page: Page) -> None:
    choose(page, file(0), file(1))
    expect(page.locator("#neighbours li")).to_have_count(1)
    names = []
    page.locator(".skip").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        names.append(page.evaluate(FOCUSED))
        if names[-1] == "BODY":
            break
    assert {"model", "heat", "way", "layer", "threshold", "add", "0.png", "1.png"} <= set(names)
    tree = page.locator("body").aria_snapshot()
    for line in ('heading "trivit"', 'combobox "Model"', 'radiogroup "What is shown"', 'slider "Layer": "1"', "status",
                 'slider "Threshold"', 'combobox "Heads"', 'heading "Labels"', 'img "0.png, with'):  # fmt: skip
        assert line in tree, tree
    assert not re.search(r"- (button|slider|combobox|radio|link|img)(:| *$| \[)", tree, re.MULTILINE), tree


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_a_desktop_show_all_of_it_in_either_scheme(browser: Browser, server: Server, scheme: str) -> None:
    server.go.set()
    for width, phone in ((390, True), (1440, False)):
        options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme, "has_touch": phone,
                   "is_mobile": phone}  # fmt: skip
        with opened(browser, server, **options) as page:
            photo = page.get_by_text("Take a photo")
            expect(photo).to_be_visible() if phone else expect(photo).to_be_hidden()
            before = page.evaluate(BOXES, TITLES)
            choose(page, file(0, "a" * 200 + ".png"), *(file(seed) for seed in range(1, 12)))
            expect(page.locator("#neighbours li")).to_have_count(6)
            assert page.evaluate(BOXES, TITLES) == before
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            colours = page.evaluate(
                "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
            )
            ink, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
            assert (ink < ground) == (scheme == "light")
            assert abs(ink - ground) > 500


# === Without a browser ===


def test_the_page_asks_no_other_host_and_its_policy_allows_none(folders: dict[str, Path]) -> None:
    with Client(create_app(str(folders["named"]), "pt", api_key="s3cret")) as client:
        for route, (name, kind) in FILES.items():
            found = client.get(route)
            assert (found.status_code, found.text) == (200, (FOLDER / name).read_text())
            assert found.headers["content-type"].startswith(kind)
            policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert {word for value in policy.values() for word in value.split()} == {
                "'none'",
                "'self'",
                "blob:",
                "data:",
            }
            assert not re.search(r"(?<!svg xmlns=')https?://|@import|url\(|innerHTML|\bon\w+=\"|style=", found.text)
        assert client.get("/models").status_code == 401
        found = client.get("/models", headers={"x-api-key": "s3cret"}).json()
    about = {"name": "default", "version": 1, "platform": "pt", "tasks": ["classify", "embed", "attention"],
             "layers": 2, "heads": 4}  # fmt: skip
    assert found == {"ready": True, "models": [about], "max_body": Limits().max_body}
