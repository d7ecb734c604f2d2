"""What the documents say is what the code does."""

import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml
from tools.oldest import oldest
from tools.reference import PAGES
from typer.testing import CliRunner

import tuneful
from tuneful import cli
from tuneful.audit.findings import KINDS
from tuneful.config import all_keys, load_config
from tuneful.config.reference import reference
from tuneful.runs.schema.reference import reference as schema_reference
from tuneful.sweep.grid import read_settings

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tuneful"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
HISTORY = {"CHANGELOG.md", "LOG.md"}
"""Documents in which a setting may stand under the name that it had."""


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.S)


def commands(document: Path = ROOT / "README.md") -> list[str]:
    """The command lines of a document's `sh` blocks, those continued by a backslash joined, without comments."""
    text = "\n".join(blocks(document, "sh")).replace("\\\n", " ")
    return [bare for line in text.splitlines() if (bare := re.sub(r"(^|\s)#.*", "", line).strip())]


TUNEFUL_COMMANDS = [
    pytest.param(command[command.index("tuneful ") :], id=f"{document.stem}: {command}")
    for document in DOCUMENTS
    for command in commands(document)
    if re.search(r"(^|\| |-m )tuneful ", command)
]


def test_the_configuration_page_is_the_one_that_the_code_makes() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m tuneful.config.reference > docs/configuration.md"


def test_the_page_of_the_run_folder_is_the_one_that_the_schema_makes() -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    assert page == schema_reference(), "run: python -m tuneful.runs.schema.reference > docs/run-folder.md"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_made_from_the_code_is_what_the_code_makes(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run: python tools/reference.py"


def test_every_page_stands_once_in_the_table_of_contents() -> None:
    listed = re.findall(r"^([a-z-]+)$", "\n".join(blocks(ROOT / "docs" / "index.md", "{toctree}")), re.M)
    assert sorted(listed) == sorted(page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "index")


def test_the_pages_are_built_without_a_warning(tmp_path) -> None:
    arguments = [
        "--quiet",
        "--fail-on-warning",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path / "html"),
    ]
    built = subprocess.run([sys.executable, "-m", "sphinx", *arguments], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert "https://" not in re.sub(r"<a [^>]*>", "", page), "a page fetches something when it is read"


def test_the_messages_of_the_page_on_troubleshooting_are_messages_of_the_code() -> None:
    source = " ".join(" ".join(file.read_text(encoding="utf-8").split()) for file in SOURCE.rglob("*.py"))
    source = re.sub(r'" f?"', "", source)  # texts over several lines
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("## By message")[2]
    told = [cell.partition("|")[0] for cell in re.findall(r"^\| (.*)$", page, re.M)]
    parts = {
        part.strip()
        for cell in told
        for name in re.findall(r"`([^`]+)`", cell)
        for part in re.split(r"\.\.\.|\bN\b", name)
    }
    missing = {part for part in parts if part and part not in source and not re.match(r"my\.json:17", part)}
    assert not missing


def options(verb: str) -> set[str]:
    """Every option of `tuneful VERB`, whole: `--json`, `-q` ..."""
    command = cli.LazyGroup(name="tuneful").get_command(None, verb)
    assert command is not None, f"there is no command {verb!r}"
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("command", TUNEFUL_COMMANDS)
def test_every_option_and_setting_of_a_command_in_a_document_exists(command: str) -> None:
    _, verb, *arguments = shlex.split(command.replace("<date>", "date").removesuffix("&"))
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            assert argument.partition("=")[0] in options(verb)
    settings = [argument for argument in arguments if re.match(r"[a-z]+\.[a-z_0-9]+=", argument)]
    swept, others = read_settings(settings) if verb == "sweep" else ({}, settings)
    for values in zip_longest(*([f"{key}={text}" for text in texts] for key, texts in swept.items())):
        load_config(None, [*others, *filter(None, values)])
    load_config(None, others)


def test_the_check_of_options_knows_the_beginning_of_an_option_from_the_whole() -> None:
    assert "--judge" in options("run")
    assert "--jud" not in options("run")
    assert "--judge" not in options("check")


def test_help_shows_the_options_that_there_are() -> None:
    for verb in cli.COMMANDS:
        text = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"}).output
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"\x1b\[[0-9;]*m", "", text)))
        assert {option for option in options(verb) if option.startswith("--")} <= shown, verb


def test_the_make_commands_of_the_documents_are_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {command.split()[1] for command in commands() if command.startswith("make ")}
    assert named >= {"demo", "test"}
    for document in DOCUMENTS:
        named |= set(re.findall(r"`make ([a-z-]+)`", document.read_text(encoding="utf-8")))
    assert named <= targets


def test_the_hooks_run_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]  # nothing is fetched
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    target = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    tools = re.findall(r"\$\(BIN\)/(\S+(?: (?!-|\.)\S+)?)", target)
    assert entries == tools
    assert all(hook["language"] == "system" for hook in hooks[0]["hooks"])


def test_the_page_of_check_lists_every_finding_and_note() -> None:
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    parts = page.partition("\n| note |")
    for severity, part in (("finding", parts[0]), ("note", parts[2])):
        listed = {name for cell in re.findall(r"^\| (`[^|]+`) \|", part, re.M) for name in re.findall(r"`(\w+)`", cell)}
        assert listed == {name for name, kind in KINDS.items() if kind.severity == severity}


def tree() -> dict[str, set[str]]:
    """What the tree of docs/rooms.md names: a room (or "" for the top of the package) and the files under it."""
    lines = (
        (ROOT / "docs" / "rooms.md")
        .read_text(encoding="utf-8")
        .partition("```text\n")[2]
        .partition("```")[0]
        .splitlines()
    )
    assert lines[0] == "src/tuneful/"
    found: dict[str, set[str]] = {"": set()}
    room = ""
    for line in lines[1:]:
        if not line.startswith("  "):
            break
        if folder := re.match(r"  ([a-z]+)/ ", line):
            room = folder[1]
            found[room] = set()
        elif not line.startswith("    "):
            room = ""
        found[room] |= set(re.findall(r"(?<![\w/.])(\w+\.py)\b", line))
    return found


def test_the_tree_of_rooms_names_every_module_and_nothing_else() -> None:
    modules: dict[str, set[str]] = {"": set()}
    for file in SOURCE.rglob("*.py"):
        room, *inner = file.relative_to(SOURCE).parts[:-1] or ("",)
        if file.name != "__init__.py" and not inner:
            modules.setdefault(room, set()).add(file.name)
    assert tree() == modules


def test_the_readme_calls_what_the_package_exports() -> None:
    named = {name for block in blocks(ROOT / "README.md", "python") for name in re.findall(r"\btuneful\.(\w+)", block)}
    named |= set(re.findall(r"`tuneful\.([A-Za-z_]+)", README))
    assert {"run", "load_config"} <= named <= set(tuneful.__all__)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if document.name not in HISTORY],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_setting_that_a_document_names_exists(document: Path) -> None:
    sections = "|".join({key.partition(".")[0] for key in all_keys()})
    named = re.findall(rf"(?<![\w./])((?:{sections})\.[a-z_0-9]+)(?![\w(./])", document.read_text(encoding="utf-8"))
    files = {file.name for file in SOURCE.rglob("*.*")} | {"data.json", "evaluation.json", "train.jsonl", "data.jsonl"}
    settings = {name for name in named if name not in files and not name.endswith((".md", ".html", ".gguf"))}
    assert settings <= set(all_keys())


def test_every_dependency_has_an_oldest_version_that_is_tried() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(
        r"^(\w+) = \[(.*?)\]$", project.partition("\nkeywords")[2].partition("[project.scripts]")[0], re.S | re.M
    )
    wanted = [
        name for key, names in lists if key not in ("classifiers", "dev") for name in re.findall(r'"([^"]+)"', names)
    ]
    named = {re.split(r"[\[>]", name)[0] for name in wanted if not name.startswith("tuneful")}
    assert set(oldest((ROOT / "pyproject.toml").read_text(encoding="utf-8"))) == named


def test_the_jobs_of_other_systems_test_rooms_that_there_are() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]
    folders = re.findall(r"tests/\w+", " ".join(step.get("run", "") for step in jobs["systems"]["steps"]))
    assert folders
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) < 150
