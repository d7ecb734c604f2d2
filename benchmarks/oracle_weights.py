"""Tokens and loss weights of random conversations against two oracles that know nothing of the package's templates.

    python benchmarks/oracle_weights.py --conversations 20000 --tokenizer builtin
    python benchmarks/oracle_weights.py --conversations 20000 --tools
    python benchmarks/oracle_weights.py --conversations 20000 --tools --templates .../site-packages/trl/chat_templates

The first writes every text out by hand, byte by byte (`tests/doubles/written_weights.py`). The second is for records with tools,
thoughts and marks: transformers renders them, and marks in the texts say whose each character is
(`tests/doubles/written_tools.py`). It takes the chat templates that were written for the tests, or those of a folder that are
known here: TRL's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles import written_tools
from tests.doubles.tool_templates import TEMPLATES as TOOL_TEMPLATES
from tests.doubles.written_tools import Takes
from tests.doubles.written_weights import TEMPLATES, TOKENIZERS, check

from tuneful.encoding.fixed_date import with_fixed_date

RESULTS = Path(__file__).parent / "results"
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
PUBLIC: dict[str, tuple[Takes, tuple[str, ...]]] = {
    "qwen2_5": (Takes("<|im_end|>", before_call="\n</think>\n\n\n"), CHATML),
    "qwen3": (Takes("<|im_end|>", thought="reasoning_content"), CHATML),
    "qwen3_instruct_2507": (Takes("<|im_end|>", before_call="\n</think>\n\n\n"), CHATML),
    "qwen3_5_think": (Takes("<|im_end|>", thought="reasoning_content"), CHATML),
    "llama3_1": (Takes("<|eot_id|>", one_call=True, text_beside=False), LLAMA),
    "llama3_2": (Takes("<|eot_id|>", one_call=True, text_beside=False), LLAMA),
    "gptoss": (
        Takes(
            "<|return|>",
            "<|call|>",
            "<|end|>",
            thought="thinking",
            one_call=True,
            text_beside=False,
            after_thought="<|end|><|start|>assistant<|channel|>final<|message|>",
            before_call="",
        ),
        HARMONY,
    ),
}
"""Of the templates of a folder, by file name: how they take a record, and their control tokens."""


def main() -> None:
    """Run one share and write results/oracle_weights-DATE-WHAT.json."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=20_000)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokenizer", choices=TOKENIZERS)
    what.add_argument("--tools", action="store_true")
    arguments.add_argument("--templates", type=Path, help="a folder of chat templates, with --tools")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    start = time.perf_counter()
    name = given.tokenizer or ("tools" if given.templates is None else "tools-public")
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tokenizer": given.tokenizer or "bytes",
        "conversations": given.conversations,
        "seed": given.seed,
        "templates": _tools(given) if given.tools else _plain(given),
    }
    found["seconds"] = round(time.perf_counter() - start, 1)
    output = RESULTS / f"oracle_weights-{found['date'][:10]}-{name}.json"
    output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(found))


def _plain(given: Any) -> dict[str, Any]:
    tokenizer = TOKENIZERS[given.tokenizer]()
    return {name: check(tokenizer, name, given.conversations, given.seed) for name in TEMPLATES}


def _tools(given: Any) -> dict[str, Any]:
    """The conversations are shared out among the templates."""
    if given.templates is None:
        each = -(-given.conversations // len(TOOL_TEMPLATES))
        return {name: written_tools.check(name, each, given.seed) for name in TOOL_TEMPLATES}
    each = -(-given.conversations // len(PUBLIC))
    return {
        name: written_tools.check(
            name,
            each,
            given.seed,
            template=with_fixed_date((given.templates / f"{name}.jinja").read_text(encoding="utf-8")),
            takes=takes,
            control=control,
        )
        for name, (takes, control) in PUBLIC.items()
    }


if __name__ == "__main__":
    main()
