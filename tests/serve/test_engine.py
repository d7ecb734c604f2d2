"""The engine under load: no answer is another's, who leaves is forgotten within a token, who finds no room is told so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.doubles.served import Server, models_of

from tuneful.infer import continuous
from tuneful.infer.decode import laid_out
from tuneful.serve import engine
from tuneful.serve.limits import Limits

COMPLETIONS = "/v1/completions"


def nonce(number):
    return f"n{number}-" + "".join(chr(97 + (number * 7 + at * at) % 26) for at in range(5 + number % 40))


def body(prompt, **others):
    return {"model": "lively", "prompt": prompt, "max_tokens": 200, **others}


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_of_many_at_once_none_gets_the_answer_of_another(models, echoing):
    async def ask(client, number):
        text = nonce(number)
        if number % 3 == 0:
            given = await client.post(COMPLETIONS, json=body(text))
            return given.json()["choices"][0]["text"] == text
        if number % 3 == 1:
            given = await client.post("/api/generate", json={"model": "gpt2", "prompt": text, "raw": True})
            return "".join(json.loads(line)["response"] for line in given.text.splitlines()) == text
        async with client.stream("POST", COMPLETIONS, json=body(text, stream=True)) as stream:
            said = ""
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    said += json.loads(line[6:])["choices"][0]["text"]
                if number % 5 == 0 and len(said) > 3:
                    break  # leaves
            return text.startswith(said) if number % 5 == 0 else said == text

    async def ask_all():
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            return await asyncio.gather(*[ask(client, number) for number in range(120)])

    with Server(models) as server:
        assert all(asyncio.run(ask_all()))
        wait_until(lambda: server.engine.num_unfinished == 0)
    assert echoing


@pytest.mark.parametrize("streams", [True, False])
def test_who_leaves_stops_the_work_within_a_token(models, echoing, streams):
    with Server(models) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        sent = json.dumps(body("a long one " * 25, stream=streams)).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}\r\n\r\n"
        connection.sendall(head.encode() + sent)
        wait_until(lambda: echoing and echoing[-1].num_steps > 3)
        assert server.engine.num_unfinished == 1
        connection.close()
        wait_until(lambda: server.engine.num_unfinished == 0)
        steps = echoing[-1].num_steps
        assert steps < 150
        time.sleep(0.05)
        assert echoing[-1].num_steps == steps


def test_who_finds_no_room_is_told_when_to_come_again_in_either_protocol(lively_llama, monkeypatch, echoing):
    make: Any = vars(continuous)["make_decoder"]

    def slow(*arguments):
        decoder = make(*arguments)
        decoder._seconds = 0.03
        return decoder

    monkeypatch.setattr(continuous, "make_decoder", slow)
    most = 3 + 2
    models = models_of(lively_llama, settings=["generate.batch_size=3"])
    with Server(models, limits=Limits(max_waiting=2)) as server, ThreadPoolExecutor(most) as pool:
        asked = [
            pool.submit(httpx.post, server.url + COMPLETIONS, json=body("x" * 30), timeout=60) for _ in range(most)
        ]
        wait_until(lambda: server.engine.num_unfinished == most)
        full = httpx.post(server.url + COMPLETIONS, json=body("a"))
        assert full.status_code == 503
        assert full.headers["retry-after"] == "1"
        assert full.json()["error"]["code"] == "queue_full"
        full = httpx.post(server.url + "/api/generate", json={"model": "lively", "prompt": "a"})
        assert (full.status_code, list(full.json())) == (503, ["error"])
        assert {one.result().status_code for one in asked} == {200}
        assert httpx.post(server.url + COMPLETIONS, json=body("a")).status_code == 200


def test_a_model_that_fails_is_told_of_and_the_next_request_is_answered(models, monkeypatch, echoing):
    make: Any = vars(continuous)["make_decoder"]
    broken = [True]

    def failing(*arguments):
        decoder = make(*arguments)
        if broken.pop() if broken else False:
            decoder.step = lambda token_ids: 1 / 0
        return decoder

    monkeypatch.setattr(continuous, "make_decoder", failing)
    with Server(models) as server:
        given = httpx.post(server.url + COMPLETIONS, json=body("abc"))
        assert given.status_code == 500
        assert "ZeroDivisionError" in given.json()["error"]["message"]
        assert httpx.post(server.url + COMPLETIONS, json=body("abc")).json()["choices"][0]["text"] == "abc"
        broken.append(True)
        given = httpx.post(server.url + COMPLETIONS, json=body("abc", stream=True))
        events = [json.loads(line[6:]) for line in given.text.splitlines() if line]
        assert "ZeroDivisionError" in events[-1]["error"]["message"]
        assert "[DONE]" not in given.text
        broken.append(True)
        given = httpx.post(server.url + "/api/generate", json={"model": "lively", "prompt": "abc", "raw": True})
        assert "ZeroDivisionError" in json.loads(given.text.splitlines()[-1])["error"]
        assert server.engine.num_unfinished == 0


def test_two_models_take_turns(models, echoing):
    with Server(models) as server, ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(httpx.post, server.url + COMPLETIONS, json={**body("x" * 100), "model": name}, timeout=60)
            for name in ("lively", "gpt2")
        ]
        assert [one.result().json()["choices"][0]["text"] for one in asked] == ["x" * 100] * 2
    assert len(echoing) >= 2


def test_a_server_that_ends_lets_nobody_wait(models, echoing):
    with ThreadPoolExecutor(1) as pool:
        with Server(models) as server:
            asked = pool.submit(httpx.post, server.url + COMPLETIONS, json=body("y" * 199, stream=True), timeout=30)
            wait_until(lambda: server.engine.num_unfinished == 1)
        with contextlib.suppress(httpx.HTTPError):  # cut off
            assert asked.result().status_code in (200, 500)


def test_what_is_only_scored_takes_turns_with_answers_and_with_other_requests(models, echoing, monkeypatch):
    scored: list[tuple[str, int]] = []  # what, and after how many steps of answers
    score, text = continuous.prompt_logprobs, models.find("lively").loaded.encoder.text

    def noted(model, prompt, num_top):
        if not scored:
            wait_until(lambda: server.engine.num_unfinished == 8 + 1 + 1)
        scored.append((text.token_text(prompt), echoing[-1].num_steps if echoing else 0))
        return score(model, prompt, num_top)

    monkeypatch.setattr(engine, "prompt_logprobs", noted)
    with Server(models) as server, ThreadPoolExecutor(3) as pool:
        to_score = {"logprobs": 1, "echo": True, "max_tokens": 0}
        texts = ["a" * length for length in (11, 12, 13, 14, 15, 16, 17, 18)]
        many = pool.submit(httpx.post, server.url + COMPLETIONS, json={**body(""), "prompt": texts, **to_score})
        wait_until(lambda: server.engine.num_unfinished == 8)
        one = pool.submit(httpx.post, server.url + COMPLETIONS, json={**body("b" * 5), **to_score})
        answer = pool.submit(httpx.post, server.url + COMPLETIONS, json=body("cc"))
        assert answer.result().json()["choices"][0]["text"] == "cc"
        assert one.result().json()["choices"][0]["text"] == "b" * 5
        found = many.result().json()["choices"]
    assert [choice["text"] for choice in found] == texts
    assert all(len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["tokens"]) for choice in found)
    names = [name for name, _ in scored]
    assert names.index("b" * 5) <= 2
    assert [name for name in names if name != "b" * 5] == texts
    assert scored[3][1] > 0  # the answer has gone on meanwhile
    assert server.engine.num_unfinished == 0


def test_who_leaves_is_scored_no_further(models, echoing, monkeypatch):
    scored: list[int] = []

    def slow(model, prompt, num_top):
        scored.append(len(prompt))
        time.sleep(0.05)
        return [None] * len(prompt)

    monkeypatch.setattr(engine, "prompt_logprobs", slow)
    with Server(models) as server:
        asked = {**body(""), "prompt": ["a" * 9] * 40, "logprobs": 1, "echo": True}
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(server.url + COMPLETIONS, json=asked, timeout=httpx.Timeout(20, read=0.2))
        wait_until(lambda: server.engine.num_unfinished == 0)
        assert len(scored) < 15


def test_weights_that_nobody_uses_are_given_back(models, monkeypatch):
    monkeypatch.setattr(engine, "_REST_SECONDS", 0.05)
    monkeypatch.setattr(engine, "_IDLE_SECONDS", 0.2)
    trimmed: list[int] = []
    monkeypatch.setattr(engine, "give_back_freed_memory", lambda: trimmed.append(1))
    batch = models.find("lively").batch
    with Server(models) as server:
        for _ in range(2):
            assert httpx.post(server.url + COMPLETIONS, json=body("a", max_tokens=2), timeout=60).status_code == 200
            wait_until(lambda: batch.holds_weights)
            wait_until(lambda: not batch.holds_weights)
            assert len(trimmed) >= 2


def test_weights_of_a_model_that_nobody_asked_are_given_back_too(lively_llama, monkeypatch):
    monkeypatch.setattr(engine, "_REST_SECONDS", 0.02)
    monkeypatch.setattr(engine, "_IDLE_SECONDS", 0.02)
    served = models_of(lively_llama)
    batch = served.find("lively").batch
    laid_out(batch.model)  # as an adapter is tried beside its base, or a shadow is asked for probabilities
    assert batch.holds_weights
    with Server(served):
        wait_until(lambda: not batch.holds_weights)


def test_what_is_given_back_is_freed(lively_llama):
    batch = models_of(lively_llama).find("lively").batch
    held = weakref.ref(laid_out(batch.model)[1])
    assert held() is not None
    batch.give_back_weights()
    assert held() is None


def test_a_model_that_lacks_memory_gets_that_of_one_that_nobody_asks(lively_llama, tiny_llama, monkeypatch):
    models = models_of(lively_llama, tiny_llama)
    names = [model.name for model in models]
    lively, other = (models.find(name).batch for name in names)
    with Server(models) as server:

        def ask(name):
            given = httpx.post(server.url + COMPLETIONS, json={**body("a", max_tokens=2), "model": name}, timeout=60)
            assert given.status_code == 200
            wait_until(lambda: not models.find(name).batch)

        for name in names:
            ask(name)
        assert [lively.holds_weights, other.holds_weights] == [True, True]
        other.give_back_weights()
        monkeypatch.setattr(type(other), "lacks_room", lambda self: self is other)
        ask(names[1])
        assert [lively.holds_weights, other.holds_weights] == [False, True]


def test_an_answer_that_fails_is_told_of_alone(models, echoing, monkeypatch):
    make: Any = vars(continuous)["make_decoder"]

    def sick(*arguments):
        decoder = make(*arguments)
        said = decoder._said

        def infected(start):
            logits = said(start)
            for at, (prompt, num_said) in enumerate(decoder._rows[start:]):
                if len(prompt) == 7 and num_said == 3:
                    logits[at] = float("nan")
            return logits

        decoder._said = infected
        return decoder

    monkeypatch.setattr(continuous, "make_decoder", sick)
    with Server(models) as server, ThreadPoolExecutor(9) as pool:
        texts = ["x" * (20 + number) for number in range(8)]
        asked = [pool.submit(httpx.post, server.url + COMPLETIONS, json=body(text)) for text in texts]
        wait_until(lambda: server.engine.num_unfinished > 2)
        given = httpx.post(server.url + COMPLETIONS, json=body("x" * 7, n=3))
        assert given.status_code == 500
        assert "not finite" in given.json()["error"]["message"]
        assert [one.result().json()["choices"][0]["text"] for one in asked] == texts
        wait_until(lambda: server.engine.num_unfinished == 0)
