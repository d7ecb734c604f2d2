"""A file with every defect that a check finds, each in rows that are known, among records that are clean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneful.data.read import read_data

Rows = Mapping[str, set[int]]

_PASSAGE = (
    "The harbour was rebuilt after the flood, and the old crane was moved to the northern quay where it still stands."
)


def record(instruction: str, output: Any, given: str = "", **more: str) -> dict[str, Any]:
    return {"instruction": instruction, "input": given, "output": output, **more}


DEFECTS: list[tuple[str, list[dict[str, Any]]]] = [
    ("unusable_rows", [{"instruction": "An instruction on its own has nothing to learn from."}]),
    (
        "empty_answers",
        [record("Which city lies at the mouth of the Elbe?", ""), record("Who painted the ceiling?", " \n")],
    ),
    (
        "null_answers",
        [
            record("Which river flows through Ulm?", "None"),
            record("Which ocean borders Peru?", "nan"),
            record("How tall is the tower of the town hall?", "N/A"),
            record("Which key opens the cellar?", " null "),
            record("Draw a picture of a boat.", "<nooutput>"),
        ],
    ),
    (
        "null_inputs",
        [
            record("Say which season follows winter.", "Spring follows winter.", "nan"),
            record("Describe the taste of rhubarb.", "Rhubarb tastes sour.", "<noinput>"),
        ],
    ),
    (
        "placeholder_answers",
        [
            record("Explain why bread rises.", "TODO"),
            record("Explain how a lock works.", "[Insert your answer here]"),
            record("Explain what a tariff is.", "<response>"),
            record("Explain what dew is.", "..."),
            record("Explain what a fable is.", "Lorem ipsum dolor sit amet, consectetur adipiscing elit."),
        ],
    ),
    (
        "declined_answers",
        [
            record("Recommend a film for a rainy evening.", "As an AI language model, I do not watch films."),
            record("Write a limerick about a baker.", "I'm sorry, but I can't assist with that request."),
            record("Tell me your favourite colour.", "I am just an AI assistant and have no favourite colour."),
        ],
    ),
    (
        "copied_instructions",
        [
            record("Name three vegetables that grow underground.", "Name three vegetables that grow underground."),
            record("Sort these words by length:", "sort these words by length: pear, fig, banana", "pear, fig, banana"),
        ],
    ),
    (
        "contradictions",
        [
            record("What is the boiling point of water in degrees Celsius at sea level?", "100 degrees"),
            record("what is the boiling point of water, in degrees celsius, at sea level", "90 degrees"),
        ],
    ),
    (
        "several_answers",
        [
            record(
                "Write a short story about a lighthouse.",
                "The keeper lit the lamp every evening, until the ships stopped coming one autumn.",
            ),
            record(
                "Write a short story about a lighthouse.",
                "On the last rock of the coast a girl counted the waves and gave each of them a name.",
            ),
        ],
    ),
    (
        "unfinished_answers",
        [
            record("Why did the bridge close?", "The bridge was closed because engineers had found cracks in the"),
            record(
                "Why did the mill close?", "The mill was closed after the flood, the fire in the roof, and the strike,"
            ),
            record(
                "Why did the school close?",
                "The school had fewer pupils every year. The teachers left one after another. In the end the council voted to "
                "close it and to move the remaining children to the next vill",
            ),
            record(
                "Show how to print a list in a loop.", "Use a for loop:\n```python\nfor item in items:\n    print(item)"
            ),
        ],
    ),
    ("length_ratios", [record("Why?", f"{_PASSAGE} " * 60)]),
    (
        "mojibake",
        [
            record("Translate 'coffee house' into French.", "On dit cafÃ©."),
            record("Quote the captain.", "He said â€œnot todayâ€\x9d and left."),
            record("Name a Swiss lake.", "Lake Z\ufffdrich is one."),
        ],
    ),
    (
        "control_characters",
        [
            record("Name a metal that is liquid.", "Mercury\x00 is liquid."),
            record("Name a gas that glows red.", "Neon\u200b glows red."),
            record("Name two poets.", "Heine\r\nRilke"),
        ],
    ),
    (
        "escaped_line_feeds",
        [record("How is harbour spelled?", "It is spelled harbour.\\n\\nThe word has an o and a u.")],
    ),
    (
        "html_leftovers",
        [
            record("What opens at nine?", "<p>The museum opens at nine.</p>"),
            record("Who runs the bakery?", "Mill &amp; Sons run the bakery."),
        ],
    ),
    ("email_addresses", [record("How can I reach the club?", "Write to hanna.kraus@turnverein-nord.de and ask.")]),
    (
        "secrets",
        [
            record("How do I log in to the store?", "Use the key AKIAIOSFODNN7EXAMPLE for now."),
            record("What is in the settings file?", 'It says api_key = "f3a9c0e1b2d4958677aa01cc".'),
        ],
    ),
    (
        "exact_duplicates",
        [
            record("Which bird can fly backwards?", "The hummingbird can fly backwards."),
            record("which bird can fly backwards", "The hummingbird can fly backwards.", ""),
        ],
    ),
    (
        "near_duplicates",
        [
            record(
                "Describe the journey of a letter from the sender to the receiver in the old days.",
                "By coach and horse.",
            ),
            record(
                "Describe the journey of a letter from the sender to its receiver in the old days.", "It went by coach."
            ),
        ],
    ),
    (
        "special_token_texts",
        [record("What does this heading mean in a prompt?", "It opens the answer.", "### Response:")],
    ),
    ("overlap", [record("Which planet has the largest storm in the solar system?", "Jupiter has it.")]),
]
"""Kind and its rows. Of pairs (duplicates) only the second is a finding; contradictions name both."""

SECOND_ONLY = {"exact_duplicates", "near_duplicates"}
AGAINST = [record("Which planet has the largest storms in the solar system?", "Jupiter")]


def clean_records(num: int = 120) -> list[dict[str, Any]]:
    return [dict(one.raw) for one in read_data("starter").records[:num]]


def write_planted(path: Path) -> dict[str, set[int]]:
    """Write the file; returns the lines of each kind."""
    rows: list[dict[str, Any]] = []
    expected: dict[str, set[int]] = {}
    clean = iter(clean_records())
    for kind, planted in DEFECTS:
        for number, one in enumerate(planted):
            rows.append(next(clean))
            rows.append(one)
            if number or kind not in SECOND_ONLY:
                expected.setdefault(kind, set()).add(len(rows))
    rows += clean
    write_rows(path, rows)
    return expected


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
