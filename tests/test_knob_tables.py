"""What a run of `knob_effects` says: the worth of an axis on a shape, and the README's table over shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.knobs import tables
from evoengine.errors import UserError


def row(label: str, *others: dict[str, Any], again: tuple[float, float] = (0.999, 1.001)) -> dict[str, Any]:
    rows = [{"also": {}, **one} for one in others]
    return {"label": label, "axes": {"STAGES": {"choice": 2, "others": rows}}, "again": [{"ratio_95": list(again)}]}


def timed(choice: int, ratio: float, **more: Any) -> dict[str, Any]:
    return {"choice": choice, "ratio": ratio, "ratio_95": [ratio - 0.004, ratio + 0.004], **more}


def test_the_worth_of_an_axis_is_that_of_its_best_alternative() -> None:
    found = tables.worth(row("a", timed(1, 1.5), timed(3, 1.02), timed(4, 3.0)), "STAGES")

    assert found is not None
    assert (2, 1.02, 3, 3.0, 4) == (
        found.choice, found.best, found.best_choice, found.worst, found.worst_choice
    )  # fmt: skip
    assert (1, False, False) == (found.sign, found.dead, found.also)


@pytest.mark.parametrize(
    ("ratio", "again", "sign"),
    [
        (1.02, (0.999, 1.001), 1),
        (0.98, (0.999, 1.001), -1),
        (1.003, (0.999, 1.001), 0),  # its own interval covers 1
        (1.02, (0.99, 1.018), 0),  # equal kernels differ as much here
        (0.98, (0.982, 1.0), 0),
    ],
)
def test_a_difference_counts_beyond_that_of_equal_kernels(ratio: float, again: tuple[float, float], sign: int) -> None:
    found = tables.worth(row("a", timed(1, ratio), again=again), "STAGES")

    assert found is not None
    assert sign == found.sign


def test_a_neighbour_that_changes_other_axes_stands_in_only_where_no_other_does() -> None:
    beside = timed(4, 0.5, also={"BLOCK_N": 64})
    both = tables.worth(row("a", timed(1, 1.5), beside), "STAGES")
    alone = tables.worth(row("a", beside, {"choice": 1, "gate": "static"}), "STAGES")

    assert both is not None
    assert alone is not None
    assert (1.5, False) == (both.best, both.also)
    assert (0.5, True) == (alone.best, alone.also)
    assert tables.worth(row("a", {"choice": 1, "gate": "static"}), "STAGES") is None


def test_the_readme_says_where_a_choice_pays_and_where_not() -> None:
    rows = [
        row("a", timed(1, 1.30), timed(3, 1.10)),
        row("b", timed(1, 1.04)),
        row("c", timed(1, 0.97)),
        row("d", timed(1, 1.001)),
        row("e", {"choice": 1, "dead": True}),
        row("f", timed(1, 9.0, also={"BLOCK_N": 64})),
        row("g", {"choice": 1, "gate": "static"}),
        {"label": "h", "failed": "wrong"},
    ]
    lines = tables.markdown({"rows": rows}).splitlines()

    assert ["| macro | worth (elite's choice against the other) |", "| --- | --- |"] == lines[:2]
    assert [
        "| `EVO_STAGES` | median 1.02x, most 1.10x (a: 2 against 3); a wrong choice up to 1.30x; "
        "faster on 2 of 7 shapes; no difference on 1; slower on 1 (down to 0.97x, c: 1); same machine code on 1; "
        "only along with other axes on 1; no other choice on 1 |"
    ] == lines[2:]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"label": "a"}]}', "{}"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)

    with pytest.raises(UserError, match=r"other\.json"):
        tables.read(path)
