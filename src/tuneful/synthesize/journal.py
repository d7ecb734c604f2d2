"""Every reply is on disk before it is used; at the end every request stands in a file with what came of it.

    FILE.partial            while the work runs: {"request": "9f2c..."}, then a line for each group of replies, as they come
    NAME.requests.jsonl     at the end: a row for each request, and for each record that was left out, in the order of the items
    FILE                    at the end: the rows

A killed process leaves whole lines and perhaps half of one, which is dropped. The same command reads the lines, asks what is
missing, and comes to the same files. FILE.partial goes last, when the result was checked too: where FILE is alone, all is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneful.errors import ConfigError
from tuneful.files import AppendLog, lock_output, unlock_output, write_rows
from tuneful.judge.client import AskResult, NoReply, Reply
from tuneful.synthesize.asking import Ask


class Journal:
    """The replies of one command, those of its killed processes included. A context manager.

    `request` names what is asked for. Raises ConfigError where FILE was finished, another process writes it, it cannot be
    written, or what was left is of another request.
    """

    def __init__(self, output: Path, request: str) -> None:
        self._output = output
        self._path = output.with_name(f"{output.name}.partial")
        self._lock = lock_output(output)
        try:
            self._results = self._begin(request)
        except BaseException:
            self.close()
            raise
        self.num_before = len(self._results)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def get(self, ask: Ask) -> AskResult | None:
        """The result of a request, None where it was not asked yet."""
        found = self._results.get(ask.key)
        return found[1] if found is not None and found[0] == ask.prompt_sha256 else None

    def add(self, results: Sequence[tuple[Ask, AskResult]]) -> None:
        """The results of requests that ended together; when this returns they survive a kill and a power cut."""
        entries = [_entry(ask, result) for ask, result in results]
        for ask, result in results:
            self._results[ask.key] = ask.prompt_sha256, result
        self._log.add({"replies": entries, "sha256": _sha256(entries)})

    def finish(self, requests: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> None:
        """Write both files, the rows last; the replies stay until `forget`."""
        write_rows(requests_file(self._output), requests)
        write_rows(self._output, rows)

    def forget(self) -> None:
        """Remove what was needed to go on: nothing is left to do."""
        self._log.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files; what is known stays for the next process."""
        if hasattr(self, "_log"):
            self._log.close()
        unlock_output(self._lock)

    def _begin(self, request: str) -> dict[str, tuple[str, AskResult]]:
        """The results that an earlier process left of this request."""
        check_unfinished(self._output)
        try:
            self._log = AppendLog(self._path, flushed=True)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        first, lines = self._log.rows[:1], self._log.rows[1:]
        if first and first != [{"request": request}]:
            raise ConfigError(
                f"{self._path}: holds replies to another request (its teacher, data, prompts or settings differ); give another "
                "--output, or remove it"
            )
        whole = [line for line in lines if _is_whole(line)]
        if not first or self._log.damaged is not None or len(whole) < len(lines):
            self._log.replace([{"request": request}, *whole])
        return {entry["key"]: (entry["prompt_sha256"], _result(entry)) for line in whole for entry in line["replies"]}


def check_unfinished(output: Path) -> None:
    """ConfigError where `output` or its file of requests is there already and no run that has not ended left it."""
    if output.with_name(f"{output.name}.partial").exists():
        return
    for path in (output, requests_file(output)):
        if path.exists():
            raise ConfigError(f"{path}: already exists; give another --output, or remove it")


def requests_file(output: Path) -> Path:
    """The file beside `output` that says what came of every request: `my.requests.jsonl` beside `my.jsonl`."""
    return output.with_name(f"{output.stem}.requests.jsonl")


def _entry(ask: Ask, result: AskResult) -> dict[str, Any]:
    said: dict[str, Any] = {"key": ask.key, "prompt_sha256": ask.prompt_sha256}
    if isinstance(result, NoReply):
        return {**said, "no_reply": result.reason}
    return {**said, "text": result.text, "tokens": [result.num_prompt_tokens, result.num_reply_tokens]}


def _result(entry: Mapping[str, Any]) -> AskResult:
    return NoReply(entry["no_reply"]) if "no_reply" in entry else Reply(entry["text"], *entry["tokens"])


def _sha256(entries: Any) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a line is as it was written."""
    return line.keys() == {"replies", "sha256"} and line["sha256"] == _sha256(line["replies"])
