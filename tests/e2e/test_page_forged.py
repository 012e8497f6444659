"""Another page in a real browser: what it can make that browser do to the daemon. Nothing, and it can read nothing."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from daemon import Daemon
from page_kit import chromium
from socket_kit import Http, TcpHttp

EVIL = """<!doctype html><title>evil</title>
<form id="form" method="post" enctype="text/plain" target="frame">
<input name='{"solver": null, "note": "' value='"}'></form>
<iframe name="frame"></iframe>"""

ATTACK = """
async ({target, token}) => {
  const told = [];
  const tried = async (name, act) => {
    try { told.push([name, await act()]); } catch (error) { told.push([name, "no"]); }
  };
  const read = async (answer) => answer.type + " " + answer.status + " " + (await answer.text()).length;
  await tried("read", async () => read(await fetch(target + "/v1/status")));
  await tried("read with the token", async () =>
    read(await fetch(target + "/v1/status", {headers: {Authorization: "Bearer " + token}})));
  await tried("read blindly", async () => read(await fetch(target + "/v1/status", {mode: "no-cors"})));
  await tried("order", async () =>
    read(await fetch(target + "/v1/pause", {method: "POST", mode: "no-cors", body: "{}"})));
  await tried("order as json", async () => read(await fetch(target + "/v1/pause",
    {method: "POST", body: "{}", headers: {"Content-Type": "application/json"}})));
  await tried("beacon", async () => String(navigator.sendBeacon(target + "/v1/pause", "{}")));
  for (const [kind, from] of [["script", "src"], ["img", "src"], ["link", "href"], ["object", "data"]]) {
    await tried(kind, () => new Promise((done) => {
      const part = document.createElement(kind);
      if (kind === "link") part.rel = "stylesheet";
      part.onload = () => done("loaded"); part.onerror = () => done("no"); setTimeout(() => done("no"), 500);
      part[from] = target + "/v1/status"; document.body.append(part);
    }));
  }
  const form = document.getElementById("form");
  form.action = target + "/v1/pause";
  const arrived = new Promise((done) => { document.querySelector("iframe").onload = done; });
  form.submit();
  await arrived;
  return told;
}
"""


@pytest.fixture(scope="module")
def evil() -> Iterator[str]:
    """Another page on this machine: as near as an attacker's can be."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(EVIL.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_fault_78_another_page_in_a_browser_can_neither_read_nor_order(
    evil: str, http: Http, tcp: TcpHttp, daemon: Daemon
) -> None:
    before = len(daemon.events("api.order"))
    posted: set[tuple[str, int]] = set()
    with chromium() as browser:
        page = browser.new_page()
        page.on("response", lambda got: seen(posted, got))
        page.goto(evil)
        told = dict(page.evaluate(ATTACK, {"target": f"http://{tcp.address}", "token": tcp.token}))
        assert "ERR_BLOCKED_BY_RESPONSE" in page.frames[-1].content()
        page.evaluate("(target) => { location = target + '/v1/pause'; }", f"http://{tcp.address}")
        page.wait_for_url(f"http://{tcp.address}/v1/pause")
    assert posted == {("fetch", 403), ("ping", 403), ("document", 403)}, "each order that a page can send is refused"
    told.pop("beacon")  # says only that it was sent
    assert told.pop("read blindly") == "opaque 0 0"
    assert told.pop("order") == "opaque 0 0"
    assert set(told.values()) == {"no"}, json.dumps(told)
    assert http.get("/v1/status").json["paused"] == []
    assert daemon.events("api.order")[before:] == []


def seen(posted: set[tuple[str, int]], got: Any) -> None:
    """Keep what kind of request an order was, and how it was answered."""
    if got.request.method == "POST":
        posted.add((got.request.resource_type, got.status))
