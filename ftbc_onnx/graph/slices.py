"""What ONNX's Slice takes of an axis: what Python's does, but for a negative step from before the first entry."""

from __future__ import annotations


def taken(size: int, start: int, end: int, step: int) -> slice:
    """The part of an axis with `size` entries, bounds clamped as the operator does."""
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step)
