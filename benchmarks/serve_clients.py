"""Do LangChain's clients, simonw/llm and lm-evaluation-harness work with `tuneful serve`? In an environment of their own.

    python -m venv clients && clients/bin/pip install langchain-openai langchain-ollama llm [lm-eval[api]]
    tuneful serve --model M --port 8080 &
    clients/bin/python benchmarks/serve_clients.py http://127.0.0.1:8080

What is not installed there is left out, and said. Of each client answers are asked for at once and streamed, and compared; of the
harness a task of a few lines, made here, is scored by log-probabilities.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ASKED = "Name three rivers."
MOST = 16


def langchain_openai(url: str, model: str) -> None:
    """ChatOpenAI: at once, streamed, asynchronously."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        base_url=f"{url}/v1", api_key="any", model=model, temperature=0, max_tokens=MOST, stream_usage=True
    )
    whole = chat.invoke(ASKED)
    assert whole.usage_metadata["output_tokens"] == MOST or whole.response_metadata["finish_reason"] == "stop"
    _same("ChatOpenAI", whole.content, chat.stream(ASKED), chat.ainvoke(ASKED))


def langchain_ollama(url: str, model: str) -> None:
    """ChatOllama: at once, streamed, asynchronously."""
    from langchain_ollama import ChatOllama

    chat = ChatOllama(base_url=url, model=model, temperature=0, num_predict=MOST)
    whole = chat.invoke(ASKED)
    assert whole.usage_metadata["output_tokens"] <= MOST
    assert whole.response_metadata["done_reason"] in ("stop", "length")
    _same("ChatOllama", whole.content, chat.stream(ASKED), chat.ainvoke(ASKED))


def llm(url: str, model: str) -> None:
    """simonw/llm, by its file of further models."""
    with tempfile.TemporaryDirectory() as folder:
        entry = f'- model_id: served\n  model_name: {json.dumps(model)}\n  api_base: "{url}/v1"\n'
        (Path(folder) / "extra-openai-models.yaml").write_text(entry)
        said = []
        for extra in ([], ["--no-stream"]):
            command = [sys.executable, "-m", "llm", "-m", "served", "-o", "max_tokens", str(MOST), *extra, ASKED]
            done = subprocess.run(
                command, env={"LLM_USER_PATH": folder, "OPENAI_API_KEY": "any"}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout.strip())
    assert said[0] == said[1], said
    print(f"llm: {said[0]!r}")


def lm_eval(url: str, model: str, tokenizer: str) -> None:
    """A task of three lines, by log-probabilities of the choices."""
    rows = [{"question": f"The capital of {of} is", "choices": ["Paris", "Rome", "Oslo"], "answer": at}
            for at, of in enumerate(("France", "Italy", "Norway"))]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (Path(folder) / "capitals.yaml").write_text(
            "task: capitals\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
            f"    test: {data}\ntest_split: test\noutput_type: multiple_choice\n"
            "doc_to_text: question\ndoc_to_target: answer\ndoc_to_choice: choices\n"
            "metric_list:\n  - metric: acc\n"
        )
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "capitals"]
        command += ["--include_path", folder, "--model_args"]
        command += [f"model={model},base_url={url}/v1/completions,tokenizer={tokenizer},num_concurrent=2"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        print("lm_eval:", next(line for line in done.stdout.splitlines() if "acc" in line))


def _same(name: str, whole: str, stream: Any, later: Any) -> None:
    streamed = "".join(piece.content for piece in stream)
    answered = asyncio.run(_of(later))
    assert whole == streamed == answered, (whole, streamed, answered)
    print(f"{name}: {whole!r}")


async def _of(later: Any) -> str:
    return str((await later).content)


def main() -> None:
    """The command line: the server's address, and the tokenizer's folder for lm-evaluation-harness."""
    url, *rest = sys.argv[1:]
    with urllib.request.urlopen(f"{url}/v1/models") as response:
        model = json.load(response)["data"][0]["id"]
    for client in (langchain_openai, langchain_ollama, llm):
        if importlib.util.find_spec(client.__name__):
            client(url, model)
        else:
            print(f"{client.__name__}: not installed")
    if importlib.util.find_spec("lm_eval") and rest:
        lm_eval(url, model, rest[0])
    else:
        print("lm_eval: not installed, or no tokenizer was named")


if __name__ == "__main__":
    main()
