"""Which results no other result beats.

A result is *beaten* if another is at least as good in everything and better in something:

1. quality, the more the better: accuracy on the samples held back, or without labels how often the network decides as
   the ANN does, or without classes the output error, negative (minus infinity where outputs are not finite);
2. binary spikes per neuron, 3. SynOps per sample, 4. T, the fewer the better.

All of them are the same wherever they are computed. The time of a run is not, and takes no part; it grows with T.
Nothing of the evaluation data takes part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from types import NoneType
from typing import Any


def is_complete(record: Mapping[str, Any]) -> bool:
    """Whether a record that was read has all that is asked of it."""
    held, point, chosen = (record.get(name) for name in ("held_back", "point", "chosen"))
    evaluation = record.get("evaluation", 0)
    return (
        _has(record, str, "source")
        and _has(record, Real, "seconds_per_sample")
        and _has(held, Real, "samples", "binary_spikes", "synops", "binary_energy_pj", "ann_energy_pj")
        and _has(held, (Real, NoneType), "accuracy", "agreement", "output_error", "ann_accuracy")
        and _has(point, Real, "steps")
        and _has(point, str, "neuron", "rule", "threshold")
        and _has(chosen, str, "neuron")
        and (evaluation is None or _has(evaluation, Real, "samples"))
        and (evaluation is None or _has(evaluation, (Real, NoneType), "accuracy", "agreement", "ann_accuracy"))
    )


def _has(record: Any, kind: Any, *names: str) -> bool:
    return isinstance(record, Mapping) and all(name in record and isinstance(record[name], kind) for name in names)


def quality(record: Mapping[str, Any]) -> float:
    """How good a result is, on the samples held back; to be compared with results of the same data only."""
    held = record["held_back"]
    known = share(held)
    if known is not None:
        return known
    return float("-inf") if held["output_error"] is None else -float(held["output_error"])


def share(judged: Mapping[str, Any]) -> float | None:
    """Of right decisions, or without labels of the ANN's, in percent; None if there are no decisions."""
    found = judged["agreement"] if judged["accuracy"] is None else judged["accuracy"]
    return None if found is None else float(found)


def costs(record: Mapping[str, Any]) -> tuple[float, float, int]:
    """What it takes: binary spikes, SynOps, T."""
    held = record["held_back"]
    return float(held["binary_spikes"]), float(held["synops"]), int(record["point"]["steps"])


def front(records: Sequence[Mapping[str, Any]]) -> list[bool]:
    """For each result, whether no other one beats it."""
    scores = [(-quality(record), *costs(record)) for record in records]
    return [not any(_beats(other, score) for other in scores) for score in scores]


def best_first(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By quality, then by SynOps, T and the key: an order that depends on nothing else."""
    return sorted(records, key=lambda r: (-quality(r), costs(r)[1], costs(r)[2], r["key"]))


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
