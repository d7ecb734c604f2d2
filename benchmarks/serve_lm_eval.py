"""lm-evaluation-harness against `tuneful serve`: does the recipe of docs/serve.md work, and are the log-likelihoods our own?

    python -m venv lm-eval && lm-eval/bin/pip install 'lm-eval[api]'
    python benchmarks/serve_lm_eval.py --lm-eval lm-eval/bin/lm_eval [--model M] [--output FILE.json]

The server is a process of its own. The tasks are made here: choices by log-likelihood, a text's rolling log-likelihood, and texts
that are generated, by completions and by chat. What the harness was told is compared with transformers in float32 over the same
tokens, and with `tuneful generate`. Exits with 1 where a sum of log-probabilities differs by more than 1e-4 and by more than 1e-6
of itself, or a text by a character.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lm_eval_harness import arguments_of, keep, samples_of, served, write_rows

ABSOLUTE, RELATIVE = 1e-4, 1e-6
MAX_TOKENS = 24
CAPITALS = {"France": "Paris", "Italy": "Rome", "Norway": "Oslo", "Japan": "Tokyo", "Peru": "Lima", "Egypt": "Cairo"}
TEXTS = (
    "The Nile flows north through eleven countries before it reaches the sea.",
    "A list of three: one, two, three.\n\nAnd then, after a pause, four.",
    "Füße, naïve, 東京 and 🙂 take more than a byte a letter.",
)
QUESTIONS = ("Name three rivers.", "What is the capital of Peru?", "Say hello in French.")
COMMON = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
TASKS = {
    "capitals": "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_target: answer\ndoc_to_choice: choices\n"
    "metric_list:\n  - metric: acc\n",
    "texts": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: text\n"
    "metric_list:\n  - metric: word_perplexity\n",
    "answers": "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: ''\n"
    f'generation_kwargs:\n  until: ["\\n\\n"]\n  max_gen_toks: {MAX_TOKENS}\n  temperature: 0\n'
    "metric_list:\n  - metric: exact_match\n",
}


def write_tasks(folder: Path) -> None:
    """The rows and the YAML of each task."""
    capitals = [*CAPITALS.values()]
    rows: dict[str, list[dict[str, Any]]] = {
        "capitals": [
            {"question": f"The capital of {country} is", "choices": capitals, "answer": capitals.index(capital)}
            for country, capital in CAPITALS.items()
        ],
        "texts": [{"text": text} for text in TEXTS],
        "answers": [{"question": question} for question in QUESTIONS],
    }
    for name, own in rows.items():
        data = write_rows(folder / f"{name}.jsonl", own)
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{COMMON.format(data=data)}{TASKS[name]}")


class Own:
    """Our own figures of `model`: transformers' forward for log-probabilities, our answers for texts."""

    def __init__(self, model: str) -> None:
        import tuneful
        from tuneful.infer.session import LoadedModel
        from tuneful.model.load import load_tokenizer, resolve_model

        settings = [f"model.name_or_path={model}", "model.dtype=float32", f"generate.max_new_tokens={MAX_TOKENS}"]
        self.config = tuneful.load_config(overrides=settings)
        self.loaded = LoadedModel.load(self.config)
        self.tokenizer: Any = load_tokenizer(resolve_model(model))

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """As the harness divides them: white space at the end of the context belongs to the continuation."""
        num_spaces = len(context) - len(context.rstrip())
        if num_spaces:
            context, continuation = context[:-num_spaces], context[-num_spaces:] + continuation
        whole, before = (self._ids(text) for text in (context + continuation, context))
        return self._sum(whole, len(before))

    def rolling(self, text: str) -> float:
        """Of a text after the token that begins one, or else ends one."""
        begin = self.tokenizer.bos_token_id
        return self._sum([self.tokenizer.eos_token_id if begin is None else begin, *self._ids(text)], 1)[0]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _sum(self, ids: list[int], num_context: int) -> tuple[float, bool]:
        with torch.no_grad():
            logits = self.loaded.model(input_ids=torch.tensor([ids])).logits[0].double()
        logprobs = logits.log_softmax(-1)[num_context - 1 : -1]
        own = torch.tensor(ids[num_context:])
        return float(logprobs.gather(1, own[:, None]).sum()), bool((logprobs.argmax(-1) == own).all())

    def continued(self, prompt: str) -> str:
        """What transformers says after the text `prompt`, greedily, up to an empty line."""
        ids = torch.tensor([self._ids(prompt)])
        said = self.loaded.model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=0)
        text = self.tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        return str(text).split("\n\n")[0]

    def answered(self, question: str) -> str:
        """What it answers to `question`, up to an empty line."""
        from tuneful.infer.session import question as asked

        [answer] = self.loaded.answer([asked("", (), question)])
        return answer.text.split("\n\n")[0]


def compared(samples: dict[str, list[dict[str, Any]]], own: Own) -> list[dict[str, Any]]:
    """Each log-likelihood that the harness was told, beside ours."""
    found = []
    for sample in samples["capitals"]:
        for arguments, [[told, greedy]] in zip(_arguments(sample), sample["resps"], strict=True):
            wanted, is_greedy = own.loglikelihood(*arguments)
            found.append(_pair("choice", float(told), wanted) | {"same_greedy": (str(greedy) == "True") == is_greedy})
    for sample in samples["texts"]:
        [[told]] = sample["resps"]
        found.append(
            _pair("rolling", float(told[0] if isinstance(told, list) else told), own.rolling(sample["doc"]["text"]))
        )
    return found


def _arguments(sample: dict[str, Any]) -> list[tuple[str, str]]:
    given = sample["arguments"]
    ordered = [given[key] for key in sorted(given)] if isinstance(given, dict) else given
    return [(one["arg_0"], one["arg_1"]) if isinstance(one, dict) else (one[0], one[1]) for one in ordered]


def _pair(kind: str, told: float, wanted: float) -> dict[str, Any]:
    difference = abs(told - wanted)
    return {"kind": kind, "told": told, "ours": wanted, "is_right": difference <= max(ABSOLUTE, RELATIVE * abs(wanted))}


def main() -> int:
    """The command line."""
    arguments = arguments_of(__doc__).parse_args()
    own = Own(arguments.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        own.tokenizer.save_pretrained(folder / "tokenizer")
        with served(arguments.model) as url:
            named = f"model={arguments.model},num_concurrent=8,max_retries=1,tokenizer={folder / 'tokenizer'}"
            completions, chat = (f"{named},base_url={url}/v1/{kind}" for kind in ("completions", "chat/completions"))
            by_text = samples_of(arguments.lm_eval, "local-completions", ",".join(TASKS), completions, folder)
            by_chat = samples_of(
                arguments.lm_eval, "local-chat-completions", "answers", chat, folder, "--apply_chat_template"
            )
    pairs = compared(by_text, own)
    texts = [
        {"kind": kind, "asked": asked, "told": sample["resps"][0][0], "ours": say(asked)}
        for kind, samples, say in (("chat", by_chat, own.answered), ("completion", by_text, own.continued))
        for asked, sample in zip(QUESTIONS, samples["answers"], strict=True)
    ]
    return report(arguments, pairs, texts)


def report(arguments: argparse.Namespace, pairs: list[dict[str, Any]], texts: list[dict[str, Any]]) -> int:
    """Print and keep the figures; 1 where something is wrong."""
    largest = max(abs(pair["told"] - pair["ours"]) for pair in pairs)
    relative = max(abs(pair["told"] - pair["ours"]) / abs(pair["ours"]) for pair in pairs)
    wrong = [pair for pair in pairs if not (pair["is_right"] and pair.get("same_greedy", True))]
    wrong += [text for text in texts if text["told"].strip() != text["ours"].strip()]
    print(f"{len(pairs)} log-likelihoods differ by {largest:.2g} at most, {relative:.2g} of themselves")
    print(f"{len(texts)} texts were generated, {sum('asked' in one for one in wrong)} of them others than ours")
    figures = {
        "largest_difference": largest,
        "largest_relative_difference": relative,
        "log_likelihoods": pairs,
        "texts": texts,
    }
    return keep(arguments, "serve_lm_eval", wrong, figures)


if __name__ == "__main__":
    sys.exit(main())
