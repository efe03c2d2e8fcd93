"""Writing graphs: names that are given out once, however often they are asked for."""

from __future__ import annotations

from ftbc_onnx.graph.builder import GraphBuilder


class Counting(set[str]):
    """A set that counts how often it is looked at."""

    looked = 0

    def __contains__(self, name: object) -> bool:
        self.looked += 1
        return super().__contains__(name)


def test_a_name_that_is_taken_or_avoided_gets_the_next_number() -> None:
    builder = GraphBuilder(17)
    builder.reserve(["a", "a_3"])
    builder.avoid(["b", "a_5"])
    assert [builder.unique(name) for name in ("a", "a", "a", "b", "b", "c", "c")] == [
        *("a_2", "a_4", "a_6"),
        *("b_2", "b_3"),
        *("c", "c_2"),
    ]
    assert builder.unique("a_2") == "a_2_2"


def test_the_work_for_a_name_does_not_grow_with_how_often_it_was_given() -> None:
    """Counters of a long unrolled network name thousands of tensors alike."""
    builder, avoided = GraphBuilder(17), Counting()
    builder._avoided = avoided
    names = [builder.unique("count/sum") for _ in range(1000)]
    assert len(set(names)) == 1000
    assert names[-1] == "count/sum_1000"
    assert avoided.looked <= 2 * len(names)
