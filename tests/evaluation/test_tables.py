"""Comparisons on a terminal of 80 columns."""

from dataclasses import replace

from tests.doubles.listed_runs import comparison

from tuneful.evaluation.tables import metric_cells


def test_figures_of_a_model_that_knows_nothing_leave_room_for_the_labels() -> None:
    known = replace(
        comparison(0.1, 0.2), label="Perplexity", base=7.4951, tuned=3.125, difference=-4.3701, low=-5.644, high=-3.409
    )
    assert metric_cells(known)[1:4] == ["7.495", "3.125", "-4.370  [-5.644, -3.409]"]
    lost = replace(known, base=418266.591, tuned=1.259, difference=-418265.332, low=-860467.974, high=-182844.658)
    assert metric_cells(lost)[1:4] == ["4.18e+05", "1.259", "-4.18e+05  [-8.6e+05, -1.83e+05]"]
    assert len("  ".join(["Stopped at end token", *metric_cells(lost)[1:]])) <= 80
