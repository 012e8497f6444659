"""The page in a real browser, for tests: headless Chromium at a real daemon, and what it must never do.

Every visit is watched: an error on the console, a script that fails, something that the page's policy forbade, or a
request to anywhere but the daemon fails the test that made it. Pictures are kept in SOLVISOR_SCREENSHOTS if that names
a folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemon import Daemon
from waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request

PATIENCE_MS = 20_000
WIDE, NARROW = (1280, 900), (390, 844)

_FORBIDDEN = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`forbidden: ${event.violatedDirective} ${event.blockedURI}`));
"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; without Chromium the tests are skipped."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    playwright.expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Site:
    """The page of ``daemon``, which listens on ``port``."""

    def __init__(self, browser: Browser, daemon: Daemon, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self._browser, self._daemon = browser, daemon

    @property
    def token(self) -> str:
        """That of the owner."""
        return (self._daemon.home / "state" / "token").read_text().strip()

    @contextlib.contextmanager
    def visit(
        self,
        view: str = "#/",
        *,
        token: str | None = None,
        size: tuple[int, int] = WIDE,
        scheme: Any = "light",
        allowed: tuple[str, ...] = (),
    ) -> Iterator[Page]:
        """Look at ``view`` as the owner, or with another token ("": none).

        ``allowed`` are beginnings of what the console may say, because the test provokes it.
        """
        width, height = size
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, locale="en-GB", accept_downloads=True
        )
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(_FORBIDDEN)
        faults: list[str] = []

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not message.text.startswith(allowed):
                faults.append(f"console: {message.text}")

        def asked(request: Request) -> None:
            if not request.url.startswith((f"{self.origin}/", f"blob:{self.origin}/")):
                faults.append(f"asked {request.url}")

        def opened(dialog: Dialog) -> None:
            faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page = context.new_page()
        page.on("console", said)
        page.on("pageerror", lambda error: faults.append(f"error: {error.stack}"))
        page.on("request", asked)
        page.on("dialog", opened)
        token = self.token if token is None else token
        try:
            page.goto(f"{self.origin}/#token={token}&view={view[1:]}" if token else f"{self.origin}/{view}")
            yield page
            assert not faults, faults
        finally:
            context.close()


def keep_picture(page: Page, name: str, tmp_path: Path) -> Path:
    """A picture of the whole page as it is now."""
    folder = Path(os.environ.get("SOLVISOR_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


def keep_pictures(page: Page, name: str, tmp_path: Path) -> None:
    """Pictures of it in light and in dark."""
    page.emulate_media(color_scheme="dark")
    keep_picture(page, f"{name}-dark", tmp_path)
    page.emulate_media(color_scheme="light")
    keep_picture(page, f"{name}-light", tmp_path)


def place(element: Locator) -> tuple[float, float]:
    """Where it is: x and y of its upper left corner."""
    box = element.bounding_box()
    assert box is not None
    return box["x"], box["y"]


def focus_by_keys(page: Page, name: str, presses: int = 60) -> None:
    """Press Tab until what has the focus is called ``name``."""

    def there() -> bool:
        page.keyboard.press("Tab")
        told = page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText || ''")
        return bool(told.strip() == name)

    wait_until(there, f"{name!r} is reached by Tab within {presses} presses")
