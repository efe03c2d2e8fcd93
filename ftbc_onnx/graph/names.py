"""Names that are taken, and free ones."""

from __future__ import annotations

from collections.abc import Container

import onnx

from ftbc_onnx.graph.view import names_inside


class Names(set[str]):
    """Names that are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, int] = {}  # the last number given behind a name; where to look on

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Names:
        """Every name of a tensor in a graph, and in the bodies of its nodes."""
        names = cls()
        names.update(value.name for value in (*graph.input, *graph.output, *graph.initializer))
        for node in graph.node:
            names.update((*node.input, *node.output, *names_inside(node)))
        return names

    def claim(self, name: str, avoided: Container[str] = ()) -> str:
        """`name`, or with a number behind it if it is taken or to be avoided; it is taken then."""
        count = self._last.get(name, 1)
        candidate = name if count == 1 else f"{name}_{count}"
        while candidate in self or candidate in avoided:
            count += 1
            candidate = f"{name}_{count}"
        self._last[name] = count
        self.add(candidate)
        return candidate
