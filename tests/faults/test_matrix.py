from __future__ import annotations

from typing import Any

from faults.matrix import ROWS, table, told


def one(row: int, *, control: bool | str = False, outcome: str = "passed", **figures: Any) -> dict[str, Any]:
    return {"row": [row], "control": control, "test": f"test_{row}", "outcome": outcome, **figures}


def test_lines_of_other_kinds_are_left_out() -> None:
    assert told(['FAULT {"row": [3]}', "1 passed", ""]) == [{"row": [3]}]


def test_a_row_needs_a_test_and_a_control_that_passed() -> None:
    both = [one(row, control=control, lost=row) for row in ROWS for control in (False, True)]
    text, lacking = table(both)
    assert lacking == []
    assert "| 7 | a cluster's master killed | test_7 | control | passed | lost 7 |" in text
    without = [case for case in both if case["row"] != [7] or not case["control"]]
    assert table(without)[1] == [7]
    assert table([*without, one(7, control=True, outcome="failed")])[1] == [7]
    assert table([*without, one(7, control="within")])[1] == []
    assert table([case for case in both if case["row"] != [8]])[1] == [8]


def test_the_cases_of_a_parametrised_test_are_one_line() -> None:
    cases = [{**one(3, detect_s=detect_s), "test": f"test_it[{detect_s}]"} for detect_s in (4.5, 3, 5)]
    assert "| test_it × 3 |  | passed | detect_s 3 … 5 |" in table(cases)[0]
