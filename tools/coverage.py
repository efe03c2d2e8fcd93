"""Write docs/coverage.md: every standard operator, what becomes of it, since which opset, and the tests that use it.

python tools/coverage.py            # write it
python tools/coverage.py --check    # fail if the file is not what this would write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import onnx

from ftbc_onnx.graph.classes import ACTIVATIONS, CONTROL_FLOW, LINEAR, MAXIMA, RANDOM, SHAPE_ONLY, Linear

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coverage.md"
SITES = {"Relu": "site", "Clip": "site if its minimum is 0", "Max": "site with the number 0"}

HEAD = """# Coverage

What becomes of each operator of the default ONNX domain. Made by `tools/coverage.py` from the table in
`ftbc_onnx/graph/classes.py`; a test sees that the classes are current. The classes:

* **site**: becomes neurons. QCFS chains (of Div, Mul, Add, Clip, Floor and the like) are sites too.
* **linear**: applied to the spikes at every step; "in input 0" and the like say which inputs may depend on spikes.
  Otherwise, and for integers and truth values, it is rate-exact.
* **rate-exact**: applied to the running means of its inputs, exact after every step; not spike arithmetic.
* **rate-exact, spikes behind**: as well, and a layer with weights behind it reads spikes of bipolar neurons.
* **static**: reads no more than a shape, so it is computed once. So is every operator that no spike reaches.
* **refused**: on spikes, with the node named. Where no spike reaches it, it is static.

Operators of other domains are refused, local functions are inlined. Pairs of QuantizeLinear and DequantizeLinear with
one scale, and most quantised operators, those of onnxruntime and QONNX too, are no more there when nodes are classed
([decision 40](decisions/0040-quantised-networks.md)).

| operator | since opset | class | tests |
| --- | --- | --- | --- |
"""


def operators() -> dict[str, int]:
    """Operators of the default domain, with the first opset that has them."""
    since: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.support_level == onnx.defs.OpSchema.SupportType.COMMON:
            since[schema.name] = min(since.get(schema.name, 1000), schema.since_version)
    return since


def class_of(op: str) -> str:
    """What becomes of an operator that reads spikes."""
    if op in RANDOM or op in CONTROL_FLOW:
        return "refused"
    if op in SITES:
        other = "rate-exact, spikes behind" if op in ACTIVATIONS else "rate-exact"
        return SITES[op] if op == "Relu" else f"{SITES[op]}, else {other}"
    if op in SHAPE_ONLY:
        return "static"
    if op in LINEAR:
        return f"linear{_condition(LINEAR[op])}"
    return "rate-exact" if op in MAXIMA else "rate-exact, spikes behind"


def _condition(rule: Linear) -> str:
    if rule.inputs is not None:
        return f" in input {' and '.join(map(str, rule.inputs))}"
    return f" in one of inputs {' and '.join(map(str, rule.one))}" if rule.one else ""


def page() -> str:
    """The text of docs/coverage.md."""
    tests = ROOT / "tests"
    paths = [path for names in ("corpus/*.py", "*_cases.py", "test_*.py") for path in sorted(tests.glob(names))]
    texts = {
        ".".join(path.relative_to(tests).with_suffix("").parts): path.read_text(encoding="utf-8") for path in paths
    }
    rows = []
    for op, since in sorted(operators().items()):
        users = [name for name, text in texts.items() if _uses(name, text, op)]
        rows.append(f"| {op} | {since} | {class_of(op)} | {', '.join(users)} |")
    return HEAD + "\n".join(rows) + "\n"


def _uses(name: str, text: str, op: str) -> bool:
    """Whether a test file has the operator in a graph, or in quotes (`corpus.operators`: in a list of names)."""
    if name == "corpus.operators":
        return re.search(rf"\b{op}\b", text.split("ABSENT = {", maxsplit=1)[0]) is not None
    return re.search(rf"\b{op}\b\s*(<[^()]*>\s*)?\(|\"{op}\"", text) is not None


@click.command()
@click.option("--check", is_flag=True, help="Only compare.")
def main(check: bool) -> None:
    """Write docs/coverage.md."""
    if not check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/coverage.md is not current: run python tools/coverage.py")


if __name__ == "__main__":
    main()
