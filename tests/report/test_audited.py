"""What the check found, as it stands in the report."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tuneful.report.audited import view_findings
from tuneful.report.build import build_report
from tuneful.runs.schema import DataDocument, read_loosely


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition('id="findings"')[2].partition("</section>")[0]).split())


def test_findings_stand_in_the_report_with_their_places(run_folder: Any) -> None:
    folder = run_folder.write_config().write_audit()
    text = text_of(build_report(folder.path).read_text(encoding="utf-8"))
    assert "1 finding and 1 note." in text
    assert "Answers that are a missing value written out 1,204 records" in text
    assert "starter.json:4 None &lt;b&gt;" in text
    assert "and 1,201 more" in text
    assert "0.83 starter.json:20, starter.json:21" in text
    assert "and 4 more" in text
    assert "English 1,290, German 8" in text


def test_a_clean_set_is_said_to_be_clean(run_folder: Any) -> None:
    folder = run_folder.write_config().write_audit()
    audit = json.loads((folder.path / "data.json").read_text(encoding="utf-8"))
    folder.write_json("data.json", {**audit, "findings": [], "clusters": []})
    assert "Nothing was found" in text_of(build_report(folder.path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("audit", [{}, {"rows_read": 3}])
def test_a_run_without_a_check_is_silent_about_it(audit: dict[str, Any]) -> None:
    assert view_findings(read_loosely(DataDocument, audit)) is None
    assert view_findings(None) is None
    assert view_findings(read_loosely(DataDocument, {**audit, "findings": []})) is not None
