"""Summary, table and JSON file of LRP results."""

import json
import math

from alrp.evaluation import OptimalLRP, lrp_summary, lrp_table, write_summary

NAN = float("nan")
PER_CLASS = {
    "cat": OptimalLRP(0.65, 0.15, 1 / 3, 0.25, 0.7, 3),
    "dog": OptimalLRP(1.0, NAN, NAN, 1.0, NAN, 2),
    "emu": OptimalLRP(NAN, NAN, NAN, NAN, NAN, 0),
}


def test_summary_is_in_percent_and_thresholds_are_scores():
    summary = lrp_summary(PER_CLASS)
    assert summary["oLRP"] == 82.5
    assert summary["oLRP_FN"] == 62.5
    assert summary["per_class"]["cat"]["oLRP"] == 65.0
    assert summary["per_class"]["cat"]["threshold"] == 0.7
    assert math.isnan(summary["per_class"]["emu"]["oLRP"])


def test_table_has_a_row_per_class_and_a_mean_with_dashes_where_undefined():
    rows = [line.split() for line in lrp_table(lrp_summary(PER_CLASS)).splitlines()]
    assert rows[0] == ["class", "oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN", "threshold"]
    assert rows[2:5] == [
        ["cat", "65.000", "15.000", "33.333", "25.000", "0.7000"],
        ["dog", "100.000", "-", "-", "100.000", "-"],
        ["emu", "-", "-", "-", "-", "-"],
    ]
    assert rows[-1] == ["mean", "82.500", "15.000", "33.333", "62.500"]


def test_json_has_full_precision_and_null_for_undefined(tmp_path):
    path = tmp_path / "lrp.json"
    write_summary(lrp_summary(PER_CLASS), str(path))
    written = json.loads(path.read_text())
    assert written["oLRP_FP"] == 100 * (1 / 3)
    assert written["per_class"]["dog"] == {
        "oLRP": 100.0,
        "oLRP_Loc": None,
        "oLRP_FP": None,
        "oLRP_FN": 100.0,
        "threshold": None,
    }
    assert set(written["per_class"]["emu"].values()) == {None}
