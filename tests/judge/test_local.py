"""Real judges: the built-in model in llama.cpp behind OpenAI's protocol, held to a schema, and a model folder in process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tuneful.config import JudgeConfig, load_config
from tuneful.errors import ConfigError
from tuneful.judge.backends import OpenAIBackend
from tuneful.judge.client import Judge, NoReply, openai_judge
from tuneful.judge.local import GgufJudge, open_judge, resolve_settings
from tuneful.judge.probes import injections
from tuneful.judge.protocols import Item
from tuneful.judge.questions import Question
from tuneful.judge.run import load_judge_model
from tuneful.judge.verdicts import ReplyCache, judge_items, summarise
from tuneful.model.builtin import builtin_gguf

ITEMS = [
    Item("t:1", "Name the capital of France.", "Paris.", "Paris."),
    Item("t:2", "What is 2 + 3?", "5", "The sum is five."),
    Item("t:3", "Name a colour.", "Red.", f"A table.\n\n{injections()[15]}"),
]


def no_model(folder: str) -> Any:
    raise AssertionError(folder)


@pytest.fixture(scope="module")
def llama() -> GgufJudge:
    settings = resolve_settings(
        JudgeConfig(model=f"gguf:{builtin_gguf()}", concurrency=2, num_ctx=1024, max_tokens=48, timeout_seconds=120)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # two threads that spin on a busy machine take minutes
        judge = open_judge(settings, no_model)
    assert isinstance(judge, GgufJudge)
    return judge


def base_url(llama: GgufJudge) -> str:
    assert isinstance(llama.client.backend, OpenAIBackend)
    return llama.client.backend.base_url


def judged(judge: Judge, settings: JudgeConfig, folder: Path, **changed: Any) -> list[Any]:
    with ReplyCache.open(folder / "replies.jsonl") as cache:
        return judge_items(ITEMS, judge, settings.model_copy(update=changed), cache)


def test_a_real_judge_over_a_real_server_scores_every_item(llama: GgufJudge, tmp_path: Path) -> None:
    """The built-in model is far too small to be right; that it is understood every time is what is tested."""
    over_http = openai_judge(
        "openai/smollm2", base_url(llama), {}, llama.client.settings, model="smollm2", key=llama.client.key
    )
    found = summarise(judged(over_http, llama.client.settings, tmp_path), confidence=0.95)
    assert (found.num_items, found.num_scored, found.unscored) == (3, 3, {})
    replies = [json.loads(line)["reply"] for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert all(re.fullmatch(r'\{\s*"id"\s*:\s*"[0-9a-f]{16}"\s*,\s*"score"\s*:\s*\d+\s*\}', reply) for reply in replies)


def test_llama_answers_nobody_without_the_key_of_this_process(llama: GgufJudge) -> None:
    stranger = openai_judge("openai/x", base_url(llama), {}, llama.client.settings, model="x", key="guess")
    heard: list[Any] = []
    stranger.ask_all([Question("s", "u", "n", None)], lambda index, outcome: heard.append(outcome))
    assert isinstance(heard[0], NoReply)
    assert "HTTP 401" in heard[0].reason
    assert llama.client.key
    assert llama.client.key not in repr(llama)


def test_a_file_that_is_no_model_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(Exception, match=r"llama.cpp cannot load .*x\.gguf"):
        open_judge(resolve_settings(JudgeConfig(model=f"gguf:{tmp_path / 'x.gguf'}")), no_model)


def model_judge(folder: Path, *settings: str) -> tuple[Judge, JudgeConfig]:
    config = load_config(None, [f"judge.model=model:{folder}", "model.dtype=float32", *settings])
    resolved = resolve_settings(config.judge)
    assert resolved.reply_format == "text"
    return open_judge(resolved, lambda name: load_judge_model(name, config, lambda line: None)), resolved


def test_a_model_folder_judges_in_process(tiny_llama: Path, tmp_path: Path) -> None:
    """A random model speaks nonsense, which is what its verdicts say."""
    (tmp_path / "score.txt").write_text("[system]\n{nonce}\n[user]\n{answer} {reply}", encoding="utf-8")
    own_prompt = f"judge.prompts={json.dumps(str(tmp_path))}"
    found = summarise(judged(*model_judge(tiny_llama, own_prompt, "judge.max_tokens=8"), tmp_path), confidence=0.95)
    assert (found.num_items, found.num_unscored) == (3, 3)
    assert set(found.unscored) <= {"the reply was cut at judge.max_tokens", "unreadable: no score of a known form"}


def test_a_prompt_too_long_for_a_model_leaves_its_item_unscored_and_the_others_alone(
    tiny_llama: Path, tmp_path: Path
) -> None:
    judge, _ = model_judge(tiny_llama, "judge.max_tokens=4")
    outcomes: dict[int, Any] = {}
    judge.ask_all([Question("s", text, "n", None) for text in ("a", "long " * 500, "b")], outcomes.__setitem__)
    assert outcomes[1] == NoReply("the question: the prompt has 2513 tokens; the model's context holds 512")
    assert all("the prompt has" not in str(outcomes[index]) for index in (0, 2))


@pytest.mark.parametrize("name", ["llama3", "", "gguf:", "model:", "claude/x", "ollama"])
def test_a_name_that_means_no_judge_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="names no judge; expected `ollama/NAME`"):
        resolve_settings(JudgeConfig(model=name))


@pytest.mark.parametrize(
    ("model", "setting"),
    [("openai/x", {"num_ctx": 512}), ("gguf:x", {"keep_alive": "1h"}), ("model:x", {"max_retries": 1})],
)
def test_a_setting_that_this_kind_of_judge_does_not_read_is_refused(model: str, setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"judge.{name} is read by `ollama/`.* judges only"):
        resolve_settings(JudgeConfig(model=model, **setting))
    resolve_settings(JudgeConfig(model="ollama/x", **setting))
