"""The page in headless Chromium: no errors, every figure there, usable on a telephone, readable in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import FOUND, NAMES, Browser, Seen
from networks import CALIBRATION, RELU, TEST
from pages import hostile, large

from ftbc_onnx import convert

pytest.importorskip("matplotlib", reason="pages take the extra 'report'")
pytest.importorskip("jinja2", reason="pages take the extra 'report'")

from ftbc_onnx.page.html import render

pytestmark = pytest.mark.skipif(FOUND is None, reason=f"no Chromium here: none of {', '.join(NAMES)} is installed")

PROBE = """
(() => {
  const box = element => { const b = element.getBoundingClientRect(); return [b.width, b.height, b.left, b.right]; };
  const luminance = text => {
    const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const contrast = colour => {
    const ink = luminance(colour);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const all = query => [...document.querySelectorAll(query)];
  const letters = all('svg text'), words = all('h1, h2, h3, p, td, th, caption, figcaption, pre, code');
  return {
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    figures: Object.fromEntries(all('figure').map(f => [f.id, box(f.querySelector('svg'))])),
    images: all('svg image').map(box),
    smallest: Math.min(...letters.map(t => t.getBoundingClientRect().height)),
    contrast: Math.min(...letters.map(t => contrast(getComputedStyle(t).fill)),
                       ...words.map(w => contrast(getComputedStyle(w).color))),
    dark: paper < 0.2,
    title: document.title,
  };
})()
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    options: dict[str, Any] = {"neuron": "if", "threshold": "mse", "gain": False}
    return convert(RELU, CALIBRATION, eval_data=TEST, steps=4, calib_samples=64, **options).report


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def look(browser: Browser, text: str, folder: Path, width: int = 400, **how: str) -> Seen:
    """What `PROBE` finds in a page."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    return browser.look(folder / "page.html", PROBE, width=width, **how)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_can_be_read(browser: Browser, report: dict[str, Any], tmp_path: Path, width: int, scheme: str) -> None:
    seen, said, asked = look(browser, render(report), tmp_path, width, scheme=scheme)
    assert said == []
    assert asked == []
    assert seen["dark"] is (scheme == "dark")
    assert seen["width"] == width
    assert seen["page"] <= width
    assert set(seen["figures"]) == {"accuracy", "error", "gaps", "activity", "thresholds"}
    for wide, high, left, right in seen["figures"].values():
        assert wide >= 300
        assert high >= 100
        assert 0 <= left < right <= width
    assert len(seen["images"]) == 3  # two maps and their scale
    assert min(min(image[:2]) for image in seen["images"]) >= 5
    assert seen["smallest"] >= 9
    assert seen["contrast"] >= 4.5


def test_is_printed_on_light_paper(browser: Browser, report: dict[str, Any], tmp_path: Path) -> None:
    seen, said, _ = look(browser, render(report), tmp_path, 700, scheme="dark", medium="print")
    assert said == []
    assert not seen["dark"]
    assert seen["contrast"] >= 4.5
    assert seen["page"] <= 700


def test_many_sites_and_steps(browser: Browser, report: dict[str, Any], tmp_path: Path) -> None:
    seen, said, _ = look(browser, render(large(report, 60, 128)), tmp_path)
    assert said == []
    assert seen["page"] <= 400
    assert seen["smallest"] >= 9
    assert seen["images"][0][1] / 60 >= 12, "rows are too low to be told apart"


def test_names_of_strangers_do_nothing(browser: Browser, report: dict[str, Any], tmp_path: Path) -> None:
    seen, said, asked = look(browser, render(hostile(report)), tmp_path)
    assert said == []
    assert asked == []
    assert seen["page"] <= 400


def test_the_page_s_own_rules_forbid_scripts(browser: Browser, report: dict[str, Any], tmp_path: Path) -> None:
    text = render(report).replace("</body>", "<script>document.title = 'ran'</script></body>")
    seen, said, _ = look(browser, text, tmp_path)
    assert seen["title"] != "ran"
    assert len(said) == 1
    assert "Content Security Policy" in said[0]


def test_what_is_wrong_would_be_seen(browser: Browser, report: dict[str, Any], tmp_path: Path) -> None:
    """Planted faults: an error in the console, a file that is loaded, something too wide, pale letters."""
    faults = (
        "<script>console.error('planted')</script><img src='none.png'><div style='width: 700px'>wide</div>"
        "<p style='color: var(--grid)'>pale</p>"
    )
    text = render(report).replace("default-src 'none'", "").replace("img-src data:", "")
    seen, said, asked = look(browser, text.replace("</body>", f"{faults}</body>"), tmp_path)
    assert any("planted" in line for line in said)
    assert [Path(url).name for url in asked] == ["none.png"]
    assert seen["page"] > 400
    assert seen["contrast"] < 4.5
