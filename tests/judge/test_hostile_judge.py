"""A short campaign of the hostile judge server; the long one is `python benchmarks/hostile_judge.py --replies 20000`."""

import pytest
from tests.doubles import hostile_judge
from tests.doubles.hostile_judge import Ledger, play_round

from tuneful.judge.backends import OllamaBackend


@pytest.mark.parametrize(("wire", "form"), [("ollama", "json_schema"), ("openai", "text")])
def test_no_item_is_lost_and_no_score_is_wrong(wire, form, monkeypatch, capfd):
    monkeypatch.setattr(hostile_judge, "DEADLINE_SECONDS", 1.0)
    ledger = Ledger()
    done = play_round(wire, form, range(150), ledger, seed=1, concurrency=50)
    assert done.complaints == ()
    assert done.num_scored + done.num_unscored == done.num_items == 150
    assert done.num_scored > 10
    assert ledger.num_elsewhere == 0
    assert "the double itself failed" not in capfd.readouterr().err


def test_the_oracle_notices_a_client_that_takes_a_cut_stream_for_a_reply(monkeypatch):
    """Without this the campaign would prove nothing."""

    def careless(self, content, question):
        import json

        try:
            lines = [json.loads(line) for line in content.split(b"\n") if line.strip()]
            return "".join(line["message"]["content"] for line in lines)
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""

    monkeypatch.setattr(OllamaBackend, "read", careless)
    monkeypatch.setattr(hostile_judge, "DEADLINE_SECONDS", 1.0)
    done = play_round("ollama", "text", range(100), Ledger(), seed=1, concurrency=50)
    assert done.complaints
