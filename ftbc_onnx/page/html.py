"""From a report to the text of the page, by the template ``page.html.jinja``; whatever is put in is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ftbc_onnx.page import tables
from ftbc_onnx.page.canvas import PALETTE, plain, to_svg
from ftbc_onnx.page.figures import pictures


def render(report: Mapping[str, Any]) -> str:
    """The page of a report, as one HTML document."""
    loader = PackageLoader("ftbc_onnx.page", "")
    page = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.jinja")
    drawn = [
        (kind, None if picture is None else Markup(to_svg(picture.draw, picture.height, kind.name, picture.label)))
        for kind, picture in pictures(report)
    ]
    return page.render(
        report=report,
        source=plain(report["source"]),
        steps=report["steps"],
        summary=[_sentence(plain(sentence)) for sentence in report["summary"]],
        palette=PALETTE,
        figures=drawn,
        facts=tables.facts(report),
        curves=tables.curves(report),
        sites=tables.sites(report),
        nodes=tables.nodes(report),
        cost=tables.cost(report),
        provenance=tables.provenance(report),
        command=tables.command(report),
        version=report["version"],
    )


def _sentence(text: str) -> Markup:
    """A sentence, its options as code, which is not broken over lines."""
    parts = re.split(r"(?<![^\s(])(--?[A-Za-z][a-z-]*|ftbc-onnx [a-z]+)", text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(parts))
