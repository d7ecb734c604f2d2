"""`tuneful show`: what a template leaves out of the records is said beside them."""

import json
import sys
from pathlib import Path

import pytest
from tests.doubles.planted import write_rows
from tests.doubles.tool_templates import DROPS_THOUGHTS

from tuneful.cli import main


def test_what_the_template_leaves_out_of_the_records_shown_is_said(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"role": "assistant", "content": "Two.", "reasoning_content": "Hm."}
    asked = {"role": "user", "content": "How many?"}
    write_rows(tmp_path / "rows.jsonl", [{"messages": [asked, answer, asked, answer]} for _ in range(3)])
    (tmp_path / "my.jinja").write_text(DROPS_THOUGHTS, encoding="utf-8")
    settings = [f"template.file={tmp_path / 'my.jinja'}", f"model.name_or_path={json.dumps(str(tiny_llama))}"]
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["tuneful", "show", str(tmp_path / "rows.jsonl"), "--rows", "2", *settings])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    assert "leaves out the thoughts of 2 answers" in said.err
    assert "leaves out" not in said.out
