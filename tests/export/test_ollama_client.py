"""Ollama's own client, asking a server that obeys the exported Modelfile, gets the answers that we give."""

from pathlib import Path

import ollama
import pytest
from tests.doubles.exported import byte_level_tokenizer, tiny_folder
from tests.doubles.ollama_server import serving_ollama

import tuneful
from tuneful.config import load_config
from tuneful.export.runtime import messages_of, renderable, without_bos
from tuneful.export.source import find_source
from tuneful.infer.session import LoadedModel

MAX_NEW_TOKENS = 16
_UNFINISHED = "\ufffd"
"""A random model ends amid a character, which we leave off where the length cut it."""


@pytest.mark.usefixtures("few_probes")
@pytest.mark.parametrize(("template", "begins"), [("alpaca", False), ("chatml", True)])
def test_the_client_gets_our_own_greedy_answers(template: str, begins: bool, tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(begins=begins), tmp_path / "model", template)
    tuneful.export(folder, "ollama", type="f32", output=tmp_path / "out")
    config = load_config(
        None, [f"model.name_or_path={folder}", "model.dtype=float32", f"generate.max_new_tokens={MAX_NEW_TOKENS}"]
    )
    source = find_source(config)
    asked = renderable(source)
    ours = LoadedModel.load(config).answer(asked)
    assert any(one.text for one in ours)
    with serving_ollama(tmp_path / "out") as server:
        client = ollama.Client(server.address)
        for conversation, own in zip(asked, ours, strict=True):
            reply = client.chat("exported", messages_of(conversation), options={"num_predict": MAX_NEW_TOKENS})
            assert reply.message.content is not None
            assert reply.message.content.strip().rstrip(_UNFINISHED) == own.text.rstrip(_UNFINISHED)
            assert reply.eval_count == len(own.token_ids)
            assert reply.prompt_eval_count == len(source.encoder.prompt_ids(conversation))
    assert server.rendered == [without_bos(source, source.encoder.prompt_text(one)) for one in asked]


@pytest.mark.usefixtures("few_probes")
def test_streamed_pieces_are_the_same_answer_and_another_model_is_an_error(tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model", "chatml")
    tuneful.export(folder, "ollama", type="f32", output=tmp_path / "out")
    with serving_ollama(tmp_path / "out") as server:
        client, asked = ollama.Client(server.address), [{"role": "user", "content": "where?"}]
        whole = client.chat("exported", asked, options={"num_predict": 8})
        pieces = [*client.chat("exported", asked, options={"num_predict": 8}, stream=True)]
        assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
        assert pieces[-1].done
        with pytest.raises(ollama.ResponseError, match="the only one here"):
            client.chat("other", asked)
