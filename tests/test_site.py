"""The site builds without a warning, has every page, needs no network, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from guides import ROOT

import ftbc_onnx

for library in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(library)


class Page(HTMLParser):
    """What a page links to, what it loads, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag != "a":
            self.loads += [values[name] for name in ("href", "src", "srcset") if name in values]


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-c", str(source / "docs")]
    return subprocess.run(
        [*command, "-d", str(target.with_name("trees")), str(source), str(target)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site") / "html"
    done = build(ROOT, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def sources() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md"))
    yield from (ROOT / "docs").rglob("*.md")


def test_every_page_is_there(site: Path) -> None:
    missing = [path for path in sources() if not (site / path.relative_to(ROOT)).with_suffix(".html").is_file()]
    assert not missing
    assert not [path for path in site.rglob("*.html") if "node_modules" in path.parts]


def test_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    """Sphinx is strict about links between sources; this is about what it wrote, folders and anchors included."""
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.relative_to(site)} -> {link}: no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.relative_to(site)} -> {link}: no such anchor")
    assert not broken


def test_links_work_in_the_repository_too() -> None:
    """As GitHub shows them: the file or folder is there."""
    broken = []
    for path in sources():
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            parts = urlsplit(link)
            if not parts.scheme and parts.path and not (path.parent / parts.path).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {link}")
    assert not broken


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert not [load for page in pages.values() for load in page.loads if urlsplit(load).netloc]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_every_public_name(site: Path, pages: dict[Path, Page]) -> None:
    path = site / "docs" / "api.html"
    assert {f"ftbc_onnx.{name}" for name in ftbc_onnx.__all__} <= pages[path].anchors
    text = re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
    for argument in ("model", "data", "eval_data", "preprocessing", "config", "progress", "label_offset"):
        assert re.search(rf"^{argument} \u2013 \w", text, re.MULTILINE), f"convert: {argument} is not described"
    for field in fields(ftbc_onnx.ConvertConfig):
        assert re.search(rf"^{field.name} \(.*\) \u2013 \S", text, re.MULTILINE), f"{field.name} is not described"
    assert "Raises:" in text


@pytest.mark.parametrize(
    "fault", ["[nowhere](nothere.md)", "[nowhere](docs/report.md#nothere)", "[nowhere](#nothere)"], ids=str
)
def test_a_broken_link_stops_the_build(fault: str, tmp_path: Path) -> None:
    """In a site of three pages with the same settings."""
    (tmp_path / "docs" / "_root").mkdir(parents=True)
    (tmp_path / "docs" / "conf.py").write_bytes((ROOT / "docs" / "conf.py").read_bytes())
    (tmp_path / "docs" / "report.md").write_text("# Report\n")
    (tmp_path / "docs" / "index.md").write_text("# Index\n\n```{toctree}\nreport\n../README\n```\n")
    (tmp_path / "README.md").write_text("# Readme\n\n[there](docs/report.md)\n")
    assert build(tmp_path, tmp_path / "out").returncode == 0
    with (tmp_path / "README.md").open("a") as readme:
        readme.write(fault)
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert "[myst.xref_missing]" in done.stderr
