"""The official clients, sync and async, streamed or not, get the answers of `tuneful generate`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import ollama
import openai
import pytest

import tuneful
from tuneful.infer.session import question

ASKED = "Name three rivers."
MESSAGES: Any = [{"role": "user", "content": ASKED}]


@pytest.fixture(scope="module")
def wanted(models):
    [answer] = models.find("lively").loaded.answer([question("", (), ASKED)], seed=7)
    assert answer.finish_reason == "length"
    assert len(answer.text) > 20
    return answer.text


@pytest.fixture(scope="module")
def sampled(lively_llama):
    settings = ["generate.temperature=0.9", "generate.top_p=0.8", "generate.max_new_tokens=20", "train.seed=5"]
    config = tuneful.load_config(overrides=[f"model.name_or_path={lively_llama}", "model.dtype=float32", *settings])
    [answer] = tuneful.generate(ASKED, config=config)
    return answer.text


def openai_client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_the_openai_client_gets_the_answer_of_generate_streamed_or_not(server, wanted):
    with openai_client(server) as client:
        whole = client.chat.completions.create(model="lively", messages=MESSAGES, max_tokens=24)
        assert whole.choices[0].message.content == wanted
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == 24
        stream = client.chat.completions.create(
            model="lively", messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == wanted
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert [model.id for model in client.models.list()] == ["lively", "gpt2"]
        assert client.models.retrieve("gpt2").id == "gpt2"


def test_the_openai_client_gets_it_asynchronously_several_at_once(server, wanted):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:

            async def streamed():
                stream: Any = await client.chat.completions.create(
                    model="lively", messages=MESSAGES, max_completion_tokens=24, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            async def whole():
                given = await client.chat.completions.create(model="lively", messages=MESSAGES, max_tokens=24)
                return given.choices[0].message.content

            return await asyncio.gather(*[streamed() for _ in range(4)], *[whole() for _ in range(4)])

    assert set(asyncio.run(ask())) == {wanted}


def test_a_sampled_answer_is_that_of_generate_under_the_same_seed_in_both_protocols(server, sampled):
    with openai_client(server) as client:
        given = client.chat.completions.create(
            model="lively", messages=MESSAGES, max_tokens=20, temperature=0.9, top_p=0.8, seed=5
        )
        assert given.choices[0].message.content == sampled
    options = {"num_predict": 20, "temperature": 0.9, "top_p": 0.8, "seed": 5}
    with ollama.Client(host=server.url) as client:
        assert client.chat(model="lively", messages=MESSAGES, options=options).message.content == sampled
        assert client.generate(model="lively", prompt=ASKED, options=options).response == sampled


def test_without_a_seed_sampled_answers_differ(server):
    with openai_client(server) as client:
        given = client.chat.completions.create(model="lively", messages=MESSAGES, max_tokens=20, temperature=1, n=8)
        texts = [choice.message.content for choice in given.choices]
        assert [choice.index for choice in given.choices] == list(range(8))
        assert len(set(texts)) > 4
        assert given.usage.prompt_tokens < 200  # the prompt counts once


def test_the_ollama_client_gets_it_in_every_way(server, wanted):
    options = {"num_predict": 24}
    with ollama.Client(host=server.url) as client:
        assert client.chat(model="lively", messages=MESSAGES, options=options).message.content == wanted
        lines = list(client.chat(model="lively:latest", messages=MESSAGES, options=options, stream=True))
        assert "".join(line.message.content for line in lines) == wanted
        assert (lines[-1].done, lines[-1].done_reason, lines[-1].eval_count) == (True, "length", 24)
        lines = list(client.generate(model="lively", prompt=ASKED, options=options, stream=True))
        assert "".join(line.response for line in lines) == wanted

    async def ask():
        async with ollama.AsyncClient(host=server.url) as asynchronous:
            stream = await asynchronous.chat(model="lively", messages=MESSAGES, options=options, stream=True)
            return "".join([line.message.content async for line in stream])

    assert asyncio.run(ask()) == wanted


def test_the_ollama_client_reads_what_there_is_and_what_is_not(server):
    with ollama.Client(host=server.url) as client:
        assert [model.model for model in client.list().models] == ["lively:latest", "gpt2:latest"]
        shown = client.show("lively")
        assert shown.modelinfo["llama.context_length"] == 512
        assert shown.details.family == "llama"
        assert "completion" in shown.capabilities
        assert [model.model for model in client.ps().models] == ["lively:latest", "gpt2:latest"]
        assert client.pull("gpt2").status == "success"
        assert [progress.status for progress in client.pull("gpt2", stream=True)][-1] == "success"
        with pytest.raises(ollama.ResponseError) as missing:
            client.chat(model="llama3", messages=MESSAGES)
        assert missing.value.status_code == 404
        assert "llama3" in missing.value.error
        with pytest.raises(ollama.ResponseError) as undone:
            client.embed(model="lively", input="a")
        assert undone.value.status_code == 501


def test_the_books_own_client_works_with_its_options_inside_or_at_the_top(server, wanted):
    """As chapter 7 of the book asks Ollama: a POST with `options`, and lines read until one is done."""
    for extra in (
        {"options": {"seed": 123, "temperature": 0, "num_ctx": 2048, "num_predict": 24}},
        {"seed": 123, "temperature": 0, "num_predict": 24},
    ):
        body = json.dumps({"model": "lively", "messages": MESSAGES, **extra}).encode()
        text = ""
        with httpx.stream("POST", f"{server.url}/api/chat", content=body) as response:
            for line in response.iter_lines():
                text += json.loads(line)["message"]["content"]
        assert text == wanted


def test_a_client_is_told_in_words_what_is_wrong(server):
    with openai_client(server) as client:
        with pytest.raises(openai.NotFoundError, match="there are lively, gpt2"):
            client.chat.completions.create(model="gpt-4", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="response_format") as refused:
            client.chat.completions.create(model="lively", messages=MESSAGES, response_format={"type": "json_object"})
        assert refused.value.param == "response_format"
        with pytest.raises(openai.BadRequestError, match="context holds 512"):
            client.chat.completions.create(model="lively", messages=[{"role": "user", "content": "river " * 900}])
        given = client.chat.completions.create(
            model="lively", messages=MESSAGES, max_tokens=2, response_format={"type": "text"}
        )
        assert given.choices[0].finish_reason == "length"
