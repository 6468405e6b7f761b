"""The report in a real browser, through its DevTools protocol: what it logs, loads, runs and how wide it gets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlgaf_ray.main import main
from tests.patience import wait_until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")

PLANTED = "<script>document.title = 'planted'</script><img src=nowhere.png onerror=\"document.title = 'planted'\">"
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
LAID_OUT = """JSON.stringify({
    title: document.title,
    width: document.documentElement.scrollWidth,
    text: document.body.innerText,
    back: getComputedStyle(document.body).backgroundColor,
    figure_text: getComputedStyle(document.querySelector("svg text") || document.body).fill,
})"""


@dataclass
class Visit:
    """A page as it stood after loading."""

    title: str
    width: int  # what one would have to scroll over, CSS pixels
    text: str
    back: str
    figure_text: str
    complaints: list[str] = field(default_factory=list)  # console messages and uncaught exceptions
    loaded: list[str] = field(default_factory=list)  # addresses asked for, beside the page's own


class Tab:
    """One tab of a headless browser."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.count = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        await self.socket.send_json({"id": self.count, "method": method, "params": parameters})
        while (message := await self.receive()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    async def receive(self) -> dict[str, Any]:
        return json.loads(await self.socket.receive_str())

    async def visit(self, page: Path, width: int, scheme: str) -> Visit:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        await self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(await self.receive())
        result = await self.call("Runtime.evaluate", expression=LAID_OUT, returnByValue=True)
        visit = Visit(**json.loads(result["result"]["value"]))
        for event in self.events:
            match event["method"]:
                case "Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                    visit.complaints.append(json.dumps(event["params"]))
                case "Network.requestWillBeSent" if event["params"]["request"]["url"] != page.as_uri():
                    visit.loaded.append(event["params"]["request"]["url"])
        return visit


async def visits(page: Path, settings: Iterable[tuple[int, str]], profile: Path) -> list[Visit]:
    import aiohttp  # Ray's dashboard brings it

    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # which root cannot have, as in a container
    browser = subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        wait_until(lambda: port_file.is_file() and len(port_file.read_text().split()) == 2, "port", process=browser)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tabs = [tab for tab in await response.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.call(f"{domain}.enable")
                return [await tab.visit(page, width, scheme) for width, scheme in settings]
    finally:
        browser.terminate()
        browser.wait()


def make_run(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"run": {"name": name}}))
    rows: list[dict[str, float | None]] = [
        {"iteration": row, "reward/mean": row / 10, "eval/judge_share": 0.5 + row / 200} for row in range(40)
    ]
    rows[-1][PLANTED] = None  # a metric without a finite value: the guard's section names it
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"before": PLANTED, "after": "w" * 400}, {"before": "a dull film", "after": "a\n\tfine & good one"}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return folder


def test_a_report_runs_nothing_loads_nothing_and_fits(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one", f"one {PLANTED}"), make_run(tmp_path / "two", "two")]
    assert main(["report", *map(str, runs)]) == 0
    settings = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]
    seen = asyncio.run(visits(runs[0] / "report.html", settings, tmp_path / "profile"))
    for (width, _), visit in zip(settings, seen, strict=True):
        assert visit.title == f"one {PLANTED} and two"
        assert visit.complaints == [] and visit.loaded == []
        assert visit.width <= width
        # in the run's name, in a sample of each run and in the verdicts, as text
        assert visit.text.count(PLANTED) >= 5
    light, dark = seen[0], seen[1]
    assert light.back != dark.back
    assert light.figure_text != dark.figure_text  # figures take the theme's colours


def test_the_browser_would_have_told(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<title>as written</title><body>{PLANTED}<p style='width: 2000px'>wide")
    (visit,) = asyncio.run(visits(page, [(390, "light")], tmp_path / "profile"))
    assert visit.title == "planted" and visit.complaints and visit.width >= 2000
    assert [Path(address).name for address in visit.loaded] == ["nowhere.png"]
