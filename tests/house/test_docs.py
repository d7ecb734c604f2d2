"""What the documents say is what the code does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneful import cli
from tuneful.config import all_keys
from tuneful.config.reference import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_configuration_page_is_the_one_that_the_code_makes():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m tuneful.config.reference > docs/configuration.md"


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("tuneful")])
def test_every_option_of_a_command_in_the_readme_exists(command):
    _, verb, *arguments = shlex.split(command.replace("<date>", "date"))
    help_text = re.sub(
        r"\x1b\[[0-9;]*m", "", CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"}).output
    )
    for argument in arguments:
        if argument.startswith("--"):
            assert argument in help_text
        elif re.match(r"[a-z]+\.[a-z_]+=", argument):
            assert argument.partition("=")[0] in all_keys()


def test_the_make_commands_of_the_readme_are_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {command.split()[1] for command in commands() if command.startswith("make ")}
    assert {"demo", "test"} <= named <= targets


def test_the_tree_of_the_readme_names_every_module_and_nothing_else():
    tree = README.partition("## The tree")[2]
    named = set(re.findall(r"\b([a-z_]+\.py)\b", tree))
    rooms = {path.parent.name for path in (ROOT / "src").rglob("*.py")} - {"starter", "report"}
    modules = {
        path.name
        for path in (ROOT / "src" / "tuneful").rglob("*.py")
        if path.name != "__init__.py" and path.parent.name in rooms
    }
    assert named == modules


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_that_a_document_names_exists(document):
    sections = "|".join({key.partition(".")[0] for key in all_keys()})
    named = re.findall(rf"\b((?:{sections})\.[a-z_]+)(?==| |`)", document.read_text(encoding="utf-8"))
    settings = {name for name in named if not name.endswith((".py", ".md", ".json", ".html", ".safetensors"))}
    assert settings <= set(all_keys())
