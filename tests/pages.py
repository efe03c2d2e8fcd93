"""HTML pages in tests: a strict reader, and a report full of strangers' names."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "hr", "img", "link", "input"}

HOSTILE = (
    "<script>alert(1)</script>",
    "</svg></style></table><img src=http://x.invalid/a.png onerror=alert(1)>",
    "$x_1^{ $ \"quoted\" 'name' [bold]",
    "nul\x00 escape\x1b[31m rtl\u202e lone\ud800 名前 #1c2126",
    "{{ 7 * 7 }} {% raw %} &amp; url(#a)",
    "a/very/long/name" * 30,
)


class Page(HTMLParser):
    """A page that must be well-formed: every element is closed in its turn, no id comes twice.

    Attributes:
        tags: names of all elements.
        ids: all ids.
        attributes: (element, attribute, value) of all of them.
        text: of each kind of element, its text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        assert len(set(self.ids)) == len(self.ids), "an id comes twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]][-1] += data


def hostile(report: dict[str, Any]) -> dict[str, Any]:
    """The same report of a network whose author called things as he liked."""
    changed = copy.deepcopy(report)
    new = dict(zip([site["name"] for site in report["sites"]], HOSTILE, strict=False))
    for site in changed["sites"]:
        site["name"] = new[site["name"]]
    for key in ("evaluation", "evaluation_without_bias"):
        changed[key]["sites"] = {new[name]: value for name, value in changed[key]["sites"].items()}
        changed[key]["data"] = HOSTILE[0]
    changed["source"] = changed["data"] = changed["command"] = HOSTILE[1]
    changed["analog"] = [{"node": HOSTILE[1], "op_type": HOSTILE[0], "reason": HOSTILE[4]}]
    changed["summary"] = [f"site '{name}'" for name in HOSTILE]
    changed["energy"] = {HOSTILE[0]: {HOSTILE[1]: 1.5}}
    return changed


def large(report: dict[str, Any], sites: int, steps: int) -> dict[str, Any]:
    """The same report of a network of so many sites and steps: the numbers are repeated."""
    changed = copy.deepcopy(report)
    old = [site["name"] for site in report["sites"]]
    changed["steps"] = steps
    changed["sites"] = []
    for i in range(sites):
        changed["sites"].append({**report["sites"][i % len(old)], "name": f"/layer{i // 9}/block.{i % 9}/Relu_{i}"})
    for key in ("evaluation", "evaluation_without_bias"):
        part = changed[key]
        for name in ("accuracy", "agreement", "output_gap"):
            part[name] = (part[name] * steps)[:steps]
        part["sites"] = {}
        for i, site in enumerate(changed["sites"]):
            own = copy.deepcopy(report[key]["sites"][old[i % len(old)]])
            own["gap_in_theta"] = [own["gap_in_theta"][0] / (t + 1) for t in range(steps)]
            part["sites"][site["name"]] = own
        if part["counts"] is not None:
            for name in ("events", "binary_spikes", "synops"):
                part["counts"][name] = (part["counts"][name] * steps)[:steps]
    return changed
