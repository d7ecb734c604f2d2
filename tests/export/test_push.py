"""An export goes to the Hub in one commit, to a repository that is private unless the user says otherwise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.doubles.exported import byte_level_tokenizer, tiny_folder
from tests.doubles.hub import Hub, hub_server

import tuneful
from tuneful.errors import ConfigError, ExportError
from tuneful.export import formats, push


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    made = Hub()
    with hub_server(made) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_the_test")
        monkeypatch.setattr(formats, "_in_runtime", lambda exported, request: [])
        yield made


@pytest.mark.parametrize("public", [False, True], ids=["private", "public"])
def test_an_export_is_pushed_with_all_its_files(hub: Hub, public: bool, tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    output = tmp_path / "out"
    tuneful.export(folder, "ollama", type="q8_0", output=output, push="me/mine", public=public)
    assert hub.private == {"me/mine": not public}
    assert hub.files == {file.name: file.read_bytes() for file in output.iterdir()}
    assert {"Modelfile", "README.md", "model-q8_0.gguf", "proof.json"} == hub.files.keys()
    assert "Bearer hf_a_token_of_the_test" in hub.tokens


def test_a_hub_that_refuses_leaves_the_export_whole_and_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model")
    with pytest.raises(ExportError, match=r"is whole, and could not be pushed to .*/me/mine: 403 .*Set HF_TOKEN"):
        tuneful.export(folder, "gguf", type="q8_0", output=tmp_path / "out", push="me/mine")
    assert (tmp_path / "out" / "proof.json").is_file()


@pytest.mark.parametrize("name", ["mine", "me/mine/too", "me/", "-/-", "me/mi ne"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_written(name: str) -> None:
    with pytest.raises(ConfigError, match="expected ORG/NAME"):
        push.check_repository(name)
