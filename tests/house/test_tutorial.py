"""The commands of the tutorial are run, and what they print has the lines that the page shows."""

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.doubles.tiny import make_tiny_model
from typer.testing import CliRunner

from tuneful import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
STEPS = re.findall(r"```sh\n(tuneful .*?)\n```\n(?:\n```text\n(.*?)```)?", PAGE, re.S)
"""Every command of the page with what it prints, where the page shows that next."""


def tuneful(command: str, *more: str) -> str:
    """What a command of the page prints, at 80 columns."""
    arguments = [*shlex.split(command)[1:], *more]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert result.exit_code in (0, None) or isinstance(result.exception, SystemExit), (
        command,
        result.output,
        result.exception,
    )
    assert result.exception is None, (command, result.output, result.exception)
    return "\n".join(line.rstrip() for line in result.output.splitlines())


def step(verb: str) -> tuple[str, str]:
    return next(
        (command.splitlines()[0].rstrip(" &"), shown)
        for command, shown in STEPS
        if command.startswith(f"tuneful {verb}")
    )


def test_the_page_has_a_command_for_each_step_of_the_way() -> None:
    assert [command.split()[1] for command, _ in STEPS] == ["check", "show", "run", "generate", "export", "serve"]


@pytest.mark.parametrize("verb", ["check", "show"])
def test_what_the_page_shows_of_the_data_is_what_is_printed(verb: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    command, shown = step(verb)
    printed = tuneful(command)
    for part in shown.split("[...]\n"):
        assert part.strip("\n") in printed


def test_the_run_of_the_page_answers_checks_and_exports_with_a_small_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = (ROOT / "docs" / "examples" / "tickets.csv").read_text(encoding="utf-8").splitlines()
    model = make_tiny_model(tmp_path / "model", rows)
    command, shown = step("run")
    run = tmp_path / "run"
    small = ["--model", str(model), "train.max_steps=2", "generate.max_new_tokens=4", "report.gate=none"]
    printed = tuneful(command.partition(" --gate")[0] + f" -o {run}", *small)
    assert "Base against tuned, 36 test records" in printed
    for line in re.findall(r"^(Team|General text) ", shown, re.M):
        assert re.search(rf"^{line} +\d\.\d{{3}} +\d\.\d{{3}} +[+-]\d", printed, re.M)
    assert json.loads((run / "comparison.json").read_text())["headline"] == "team"
    tuneful(step("generate")[0].replace("runs/tickets", str(run)), "generate.max_new_tokens=4")
    exported = tuneful(
        step("export")[0].replace("runs/tickets", str(run)).replace("-o tickets", f"-o {tmp_path / 'out'}")
    )
    assert "written:" in exported
    assert (tmp_path / "out" / "Modelfile").exists()
