"""A headless Chromium, spoken to by the DevTools protocol over two pipes: no port, no client library."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
).split()
PATIENCE_S = 60.0

LOOK = """
(() => {
  const figures = [...document.querySelectorAll('svg, img')].filter(e => !e.parentElement.closest('svg'));
  for (const e of document.querySelectorAll('details')) e.open = true;
  return {
    figures: figures.map(e => {
      const r = e.getBoundingClientRect();
      const drawn = e.tagName === 'IMG' ? e.naturalWidth : e.querySelectorAll('path, use, text').length;
      return {label: e.getAttribute('aria-label') || e.alt || '', left: r.left, right: r.right, width: r.width,
              height: r.height, drawn};
    }),
    page: document.documentElement.clientWidth,
    content: document.documentElement.scrollWidth,
    text: document.body.innerText.length,
    paper: getComputedStyle(document.body).backgroundColor,
  };
})()
"""


def installed() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """Use as a context manager."""

    def __init__(self, program: str, profile: Path):
        to_read, its_out = os.pipe()
        its_in, to_write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_in, its_out)]  # clear of 3 and 4

        def wire() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.child = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=wire, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (its_in, its_out, *ends):
            os.close(end)
        self.to_read, self.to_write = to_read, to_write
        self.rest, self.number, self.events = b"", 0, []
        self.session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        os.close(self.to_read)
        os.close(self.to_write)

    def ask(self, method: str, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        answer = self.hear(lambda m: m.get("id") == message["id"])
        assert "error" not in answer, answer
        return answer["result"]

    def hear(self, wanted):
        """The first message that is wanted; all events on the way are kept."""
        end = time.monotonic() + PATIENCE_S
        while True:
            while b"\0" in self.rest:
                text, _, self.rest = self.rest.partition(b"\0")
                message = json.loads(text)
                if "method" in message:
                    self.events.append(message)
                if wanted(message):
                    return message
            ready, _, _ = select.select([self.to_read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium has not answered for {PATIENCE_S:g} seconds"
            more = os.read(self.to_read, 1 << 20)
            assert more, "Chromium has ended"
            self.rest += more

    def open(self, page: Path, width: int, dark: bool) -> dict:
        """What the page looks like: LOOK's figures and widths, and of the loading: requests, errors."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.events.clear()
        address = page.resolve().as_uri()
        self.ask("Page.navigate", url=address)
        if not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.hear(lambda m: m.get("method") == "Page.loadEventFired")
        seen = self.ask("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
        self.ask("Runtime.evaluate", expression="1")  # what came of it has arrived by now
        asked = [e["params"]["request"]["url"] for e in self.of("Network.requestWillBeSent")]
        seen["requests"] = [url for url in asked if url != address and not url.startswith("data:")]
        seen["errors"] = [
            e["params"]["entry"]["text"] for e in self.of("Log.entryAdded") if e["params"]["entry"]["level"] == "error"
        ]
        seen["errors"] += [str(e["params"]) for e in self.of("Runtime.exceptionThrown")]
        seen["errors"] += [
            str(e["params"]) for e in self.of("Runtime.consoleAPICalled") if e["params"]["type"] == "error"
        ]
        return seen

    def of(self, method: str) -> list[dict]:
        return [e for e in self.events if e["method"] == method]
