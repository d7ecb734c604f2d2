"""The page's server killed with SIGKILL while people rate: what was acknowledged is there, once, and as it was said.

Raters ask for an item, choose, undo now and then, and note what the server acknowledged. After each kill the server is started
anew, and the database and ratings.jsonl are held against their notes. A request that was in flight when the kill came may have
been kept or not.

    python -m tests.doubles.killed_rating --raters 20 --kills 10 --clicks 500
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.doubles.rated_runs import ask, plain_items, write_run

ROOT = Path(__file__).parents[2]
RUN = "run"
CHOICES = ("first", "second", "tie", "both_bad")


class Rater:
    """A person who clicks until the server is gone; `kept` are the acknowledged choices by item, `open` the one in flight."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self._dice = name, random.Random(seed)
        self.kept: dict[str, str] = {}
        self.open: tuple[str, str] | None = None
        self.num_clicks = 0
        self._last: list[str] = []

    def click(self, url: str) -> None:
        """Rate, until there is no answer any more or nothing is left."""
        asked = {"run": RUN, "a": "base", "b": "tuned", "rater": self.name}
        try:
            view = ask(f"{url}/page/api/rating/next", asked)[1]
            while view["item"] is not None:
                view = (
                    self._undo(url, asked) if self._last and self._dice.random() < 0.1 else self._rate(url, asked, view)
                )
        except (OSError, HTTPException, ValueError):
            return

    def _rate(self, url: str, asked: dict[str, str], view: dict[str, Any]) -> dict[str, Any]:
        item, choice = view["item"], self._dice.choice(CHOICES)
        self.open = (item["source"], choice)
        body = {**asked, "digest": item["digest"], "choice": choice, "remark": choice}
        status, found = ask(f"{url}/page/api/rating", body)
        assert status == 200, found
        self.kept[item["source"]], self.open = choice, None
        self.num_clicks += 1
        self._last.append(item["source"])
        return dict(found)

    def _undo(self, url: str, asked: dict[str, str]) -> dict[str, Any]:
        self.open = (self._last[-1], "undone")
        status, found = ask(f"{url}/page/api/rating/undo", asked)
        assert status == 200, found
        self.kept.pop(self._last.pop())
        self.open = None
        return dict(found)

    def settle(self, found: dict[str, str]) -> list[str]:
        """What is wrong with the ratings `found` of this person on the disk; those in flight are taken as they are."""
        wrong = []
        if self.open is not None:
            source, choice = self.open
            if choice == "undone" and source not in found:
                self.kept.pop(source)
                self._last.remove(source)
            elif choice != "undone" and found.get(source) == choice:
                self.kept[source] = choice
                self._last.append(source)
            self.open = None
        for source in self.kept.keys() | found.keys():
            if self.kept.get(source) != found.get(source):
                wrong.append(f"{self.name} {source}: said {self.kept.get(source)}, found {found.get(source)}")
        return wrong


def campaign(num_raters: int, num_kills: int, num_clicks: int, seed: int = 0, num_items: int = 400) -> dict[str, Any]:
    """Kill the server `num_kills` times, after up to `num_clicks` choices each; what was found wrong, and how much was rated."""
    dice, raters = random.Random(seed), [Rater(f"rater {n}", seed + n) for n in range(num_raters)]
    wrong: list[str] = []
    num_in_flight = 0
    with TemporaryDirectory() as name:
        run = write_run(Path(name) / RUN, plain_items(num_items))
        for _ in range(num_kills):
            process, url = started(Path(name))
            threads = [threading.Thread(target=rater.click, args=(url,)) for rater in raters]
            for thread in threads:
                thread.start()
            enough = sum(rater.num_clicks for rater in raters) + dice.randint(num_clicks // 3, num_clicks)
            while sum(rater.num_clicks for rater in raters) < enough and any(map(threading.Thread.is_alive, threads)):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait()
            for thread in threads:
                thread.join()
            num_in_flight += sum(rater.open is not None for rater in raters)
            wrong += check(run, raters)
    return {"wrong": wrong, "num_kept": sum(len(rater.kept) for rater in raters), "num_in_flight": num_in_flight}


def check(run: Path, raters: list[Rater]) -> list[str]:
    """What is wrong with the files of `run` once a server has been started again."""
    process, url = started(run.parent)
    ask(f"{url}/page/api/rating/results?run={RUN}&a=base&b=tuned")
    process.kill()
    process.wait()
    with sqlite3.connect(run / "ratings.sqlite3") as connection:
        rows = connection.execute("SELECT rater, source, remark FROM ratings").fetchall()
    connection.close()
    exported = [json.loads(line) for line in (run / "ratings.jsonl").read_text().splitlines()]
    wrong = [f"{key}: {number} times" for key, number in Counter(row[:2] for row in rows).items() if number > 1]
    if sorted(rows) != sorted((row["rater"], row["source"], row["remark"]) for row in exported):
        wrong.append("ratings.jsonl is not what the database holds")
    for rater in raters:
        wrong += rater.settle({source: remark for name, source, remark in rows if name == rater.name})
    return wrong


def started(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server of its own process over `folder`, and its address, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.doubles.rated_runs", str(folder), str(port)], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    while True:
        assert process.poll() is None, "the server ended"
        try:
            ask(f"{url}/page/api/runs")
        except OSError:
            time.sleep(0.02)
        else:
            return process, url


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--clicks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(campaign(options.raters, options.kills, options.clicks, options.seed), indent=1))
