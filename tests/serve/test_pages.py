"""What the page asks its server for: files under a strict policy, runs, answers, ratings, reports in a sandbox."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.rated_runs import PageServer, page_app, plain_items, write_run
from tests.report.conftest import RunFolder

from tuneful.report.build import build_report, script_source
from tuneful.serve.pages import PAGE_POLICY, Reports


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "small", plain_items(120), sentence="It cannot tell.")
    RunFolder(folder / "sweep" / "whole").write_all(num_items=12)
    (folder / "no run").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[PageServer]:
    with PageServer(page_app(runs, reports=Reports(build_report, script_source()))) as server:
        yield server


def headers_of(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.headers


@pytest.mark.parametrize("name", ["", *(f"static/{one}" for one in ("page.css", "page.js", "api.js", "icon.svg"))])
def test_the_files_of_the_page_come_with_its_policy(server: PageServer, name: str) -> None:
    headers = headers_of(f"{server.url}/page/{name}")
    assert headers["content-security-policy"] == PAGE_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in PAGE_POLICY


@pytest.mark.parametrize("name", ["../pages.py", "..%2fpages.py", "pages.py", "page.py", "", "x.js", "%00.js"])
def test_nothing_but_the_files_of_the_page_is_served(server: PageServer, name: str) -> None:
    assert server.get(f"/page/static/{name}")[0] == 404


def test_the_page_asks_no_other_place_for_anything_and_has_no_script_of_its_own_inside() -> None:
    for file in (resources.files("tuneful.serve") / "page").iterdir():
        text = file.read_text(encoding="utf-8")
        addresses = set(re.findall(r"\bhttps?://[\w./]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, (file.name, addresses)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file.name
        )
    page = (resources.files("tuneful.serve") / "page" / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)


def test_every_run_under_the_folder_is_listed(server: PageServer) -> None:
    status, found = server.get("/page/api/runs")
    assert status == 200
    runs = {run["name"]: run for run in found["runs"]}
    assert runs.keys() == {"small", "sweep/whole"}
    assert runs["small"]["sentence"] == "It cannot tell."
    assert runs["sweep/whole"]["model"] == "smollm2-135m-instruct"
    assert runs["sweep/whole"]["answers"] == ["base", "tuned"]


def test_test_answers_are_searched_by_all_words_and_shown_in_parts(server: PageServer) -> None:
    status, found = server.get("/page/api/answers?run=small")
    assert (status, found["num_items"], found["num_found"], len(found["items"])) == (200, 120, 120, 50)
    found = server.get("/page/api/answers?run=small&offset=100")[1]
    assert [item["source"] for item in found["items"]][::19] == ["my.json:101", "my.json:120"]
    found = server.get("/page/api/answers?run=small&query=TUNED%20reference%2077.")[1]
    assert [item["answers"] for item in found["items"]] == [{"base": "base 77", "tuned": "tuned 77"}]


@pytest.mark.parametrize("run", ["nothing", "../small", "%2Fetc", ""])
def test_a_run_that_is_not_there_is_said_in_one_message(server: PageServer, run: str) -> None:
    status, found = server.get(f"/page/api/answers?run={run}")
    assert (status, list(found), "no run of this name" in found["error"]["message"]) == (400, ["error"], True)


def test_damaged_answers_are_said_with_their_line(runs: Path, server: PageServer) -> None:
    run = write_run(runs / "damaged", plain_items(3))
    (run / "answers" / "base.jsonl").write_text('{"source": "my.json:1"\n')
    status, found = server.get("/page/api/answers?run=damaged")
    assert status == 400
    assert "base.jsonl:1" in found["error"]["message"]
    (run / "config.yaml").unlink()


def test_a_rater_is_told_nothing_by_which_the_answers_could_be_told_apart(server: PageServer) -> None:
    asked = {"run": "small", "a": "base", "b": "tuned", "rater": "Ada"}
    status, view = server.post("/page/api/rating/next", asked)
    assert status == 200
    assert view.keys() == {"item", "num_rated", "num_items", "num_equal", "remark"}
    assert view["item"].keys() == {"source", "task", "reference", "texts", "digest"}
    turned = server.post("/page/api/rating/next", {**asked, "a": "tuned", "b": "base"})[1]
    assert turned == view, "the order in which the two are named says nothing either"


def test_ratings_come_out_as_rows_and_results(runs: Path, server: PageServer) -> None:
    for rater in ("Bob", "Cem"):
        asked = {"run": "small", "a": "base", "b": "tuned", "rater": rater}
        view = server.post("/page/api/rating/next", asked)[1]
        for _ in range(3):
            item = view["item"]
            better = ["first", "second"][item["texts"][1].startswith("tuned")]
            rated = {
                **asked,
                "digest": item["digest"],
                "choice": better,
                "remark": "\ud800 ok",
            }
            status, view = server.post("/page/api/rating", rated)
            assert status == 200, view
        assert view["num_rated"] == 3
    found = server.get("/page/api/rating/results?run=small&a=base&b=tuned")[1]
    assert (found["summary"]["tuned_preferred"], found["summary"]["num_ratings"]) == (6, 6)
    assert found["preference"]["tuned"] == 1
    assert found["raters"] == {"Bob": 3, "Cem": 3}
    rows = [json.loads(line) for line in (runs / "small" / "ratings.jsonl").read_text().splitlines()]
    assert {(row["rater"], row["preference"]) for row in rows} == {("Bob", "b"), ("Cem", "b")}
    assert {row["remark"] for row in rows} == {"? ok"}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"digest": "0" * 16}, 409),
        ({"digest": "\ud800"}, 409),
        ({"choice": "\ud800"}, 422),
        ({"choice": "third"}, 422),
        ({"rater": ""}, 400),
        ({"remark": "x" * 2001}, 400),
        ({"a": "nothing"}, 400),
        ({"run": ".."}, 400),
    ],
)
def test_a_rating_that_cannot_be_kept_is_refused(server: PageServer, change: dict[str, str], status: int) -> None:
    asked = {"run": "small", "a": "base", "b": "tuned", "rater": "Dan"}
    item = server.post("/page/api/rating/next", asked)[1]["item"]
    rated = {**asked, "digest": item["digest"], "choice": "tie", **change}
    assert server.post("/page/api/rating", rated)[0] == status
    assert server.post("/page/api/rating/next", asked)[1]["num_rated"] == 0


def test_a_report_is_made_where_there_is_none_and_comes_in_a_sandbox(runs: Path, server: PageServer) -> None:
    with urllib.request.urlopen(f"{server.url}/page/report/sweep/whole", timeout=60) as response:
        text, policy = response.read().decode(), response.headers["content-security-policy"]
    assert "<title>smollm2-135m-instruct tuned on starter" in text
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy
    assert f"script-src {script_source()};" in policy
    assert (runs / "sweep" / "whole" / "report.html").is_file()


def test_a_report_that_this_version_did_not_write_has_no_script_where_it_cannot_be_made_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", plain_items(1))
    (run / "report.html").write_text("<script>alert(1)</script>")
    with PageServer(page_app(tmp_path)) as server:
        policy = headers_of(f"{server.url}/page/report/run")["content-security-policy"]
        assert policy.startswith("sandbox; default-src 'none'")
        assert "script-src 'none'" in policy
        assert server.get("/page/report/nothing")[0] == 404
