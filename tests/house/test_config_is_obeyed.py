"""A setting that is accepted is obeyed: for each key there is a small experiment in which changing it changes something.

A key without an experiment fails the first test, so no key can be added that nothing reads.
"""

from __future__ import annotations

import asyncio
import copy
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.doubles.engine import record, tiny_model
from tests.doubles.judge_server import serving
from tests.doubles.pairs import random_labelled, random_pairs
from tests.judge.test_verdicts import Scripted, scoring

import tuneful
from tuneful.commands.options import data_of
from tuneful.config import all_keys, load_config
from tuneful.console import Terminal
from tuneful.data.read import read_data, stream_data
from tuneful.encoding.chat_template import load_template
from tuneful.encoding.prepare import make_encoder, prepare_data
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import ConfigError, DataError, ModelError
from tuneful.evaluation.compare import compare
from tuneful.evaluation.forgetting import read_general
from tuneful.evaluation.gate import check_gate, parse_gate
from tuneful.evaluation.metrics import score_answer
from tuneful.evaluation.tasks import choice_examples, encoder_of, fewshot, tasks_of
from tuneful.infer.generate import answer
from tuneful.judge.backends import NoReplyError, OllamaBackend
from tuneful.judge.calibrate import num_calibration_questions
from tuneful.judge.client import _wait_seconds, open_http_judge
from tuneful.judge.items import AnswerSet
from tuneful.judge.local import resolve_settings
from tuneful.judge.probing import num_probe_questions
from tuneful.judge.protocols import Item
from tuneful.judge.questions import Question, prompt_of
from tuneful.judge.run import judge_sets, open_cache
from tuneful.model import decoder
from tuneful.model.attention import ask_for
from tuneful.model.load import load_model
from tuneful.model.precision import choose_device, choose_dtype
from tuneful.runs.method import begin_method
from tuneful.runs.mixing import read_mixture
from tuneful.runs.preference import make_objective
from tuneful.runs.schema import AnswerScores, Evaluation, Layout, Step
from tuneful.train.layout import choose_layout, set_dropout
from tuneful.train.loop import Training, mean_costs
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.train.placement import HeldModel, choose_replicas, choose_strategy
from tuneful.types import Answer, Conversation, Example, Turn

ROWS = [
    {"instruction": f"Say {word}.", "input": "", "output": f"{word} {index}"}
    for index, word in enumerate(["red", "green", "blue", "red", "pink", "grey", "gold", "teal", "red", "white"] * 2)
]
BASE = [
    "train.max_steps=6",
    "train.batch_size=4",
    "generate.max_new_tokens=6",
    "data.max_length=256",
    "model.dtype=float32",
]
FLEX = "model.attn_implementation=flex_attention"
TERMINAL = Terminal(quiet=True)


def remembered(measure: Callable[..., Any]) -> Any:
    """Measures once what many experiments compare with: `test_changing_nothing_changes_nothing` shows that it may."""

    @wraps(measure)
    def recall(lab: Laboratory, *settings: str) -> Any:
        key = (measure.__name__, settings)
        if key not in lab.found:
            lab.found[key] = measure(lab, *settings)
        return lab.found[key]

    return recall


class Laboratory:
    """The tiny model and a file of records; every experiment returns something that can be compared with ==."""

    def __init__(self, model: Path, gpt2: Path, folder: Path) -> None:
        self.found: dict[Any, Any] = {}
        self.folder, self.gpt2 = folder, gpt2
        self.file = folder / "rows.jsonl"
        self.file.write_text(
            "".join(json.dumps(row) + "\n" for row in [*ROWS, {"instruction": "bad"}]), encoding="utf-8"
        )
        self.more = folder / "more.jsonl"
        self.more.write_text('{"instruction": "More?", "output": "More."}\n', encoding="utf-8")
        self.jinja = folder / "own.jinja"
        self.jinja.write_text(
            "{% for message in messages %}{{ message.role ~ ': ' ~ message.content ~ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            encoding="utf-8",
        )
        self.pretrained = load_model(str(model))
        self.name = str(model)

    def config(self, *settings: str) -> Any:
        return load_config(None, [f"model.name_or_path={json.dumps(self.name)}", *BASE, *settings])

    def encoder(self, config: Any) -> Any:
        tokenizer = self.pretrained.tokenizer
        return make_encoder(TextEncoder(tokenizer, load_template(config.template, tokenizer)), config.data)

    @remembered
    def dataset(self, *settings: str) -> Any:
        on_error = [] if any(setting.startswith("data.on_error") for setting in settings) else ["data.on_error=skip"]
        config = self.config(*on_error, *settings)
        try:
            file = read_data(str(self.file), config.data)
        except DataError as error:
            return str(error)
        found = prepare_data(file, self.encoder(config), config)
        return [
            [
                (one.source, one.token_ids.tolist(), one.weights.tolist(), one.cut)
                for one in (found.train, found.validation, found.test)[side].examples
            ]
            for side in range(3)
        ]

    @remembered
    def documents(self, *settings: str) -> Any:
        """What a file of text comes to: its chunks, of all sides."""
        file = self.folder / "notes.txt"
        file.write_text(
            "The tide comes in.\nIt goes out.\n\nA second note.\n\nA third one, with more.\n", encoding="utf-8"
        )
        sides = ("data.test_share=0", "data.validation_share=0")
        config = self.config("train.objective=text", "data.max_length=9", *sides, *settings)
        found = prepare_data(read_data(str(file), config.data), self.encoder(config), config)
        return [(one.source, one.token_ids.tolist()) for one in found.train.chunks]

    @remembered
    def two_files(self, *settings: str) -> Any:
        """What two files come to: how each row was read, what it weighs, and what of each file an epoch takes."""
        (self.folder / "fewer.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3, encoding="utf-8")
        sides = ("data.test_share=0", "data.validation_share=0", "data.on_error=skip", "data.max_length=1024")
        config = self.config(*sides, *settings)
        names = [str(self.file), str(self.folder / "fewer.jsonl")]
        stream = stream_data(names, config.data)
        rows = [getattr(row, "conversation", row.source) for row in stream]
        found = prepare_data(stream_data(names, config.data), self.encoder(config), config)
        mixture = read_mixture(found, config.data)
        return rows, mixture and mixture.counts

    @remembered
    def training(self, *settings: str) -> Any:
        """Steps without their times, evaluations, and a checksum of the weights."""
        config = self.config("data.on_error=skip", "data.max_length=1024", *settings)
        data = prepare_data(read_data(str(self.file), on_error="skip"), self.encoder(config), config)
        torch.manual_seed(0)
        model = copy.deepcopy(self.pretrained.model)
        if config.model.dropout is not None:
            set_dropout(model, config.model.dropout)
        dtype = choose_dtype(config.model.dtype, choose_device("cpu"), self.folder)
        layout = choose_layout(model, data.train.examples, config.train, dtype)
        optimizer = AdamW(model, config.train, dtype)
        events = list(
            Training(model, optimizer, data.train.examples, data.validation.examples, config.train, layout).run()
        )
        optimizer.masters_to_model()
        steps = [
            {key: value for key, value in asdict(event).items() if key != "step_seconds"}
            for event in events
            if isinstance(event, Step)
        ]
        evaluations = [(event.step, event.validation_loss) for event in events if isinstance(event, Evaluation)]
        total = sum(parameter.double().abs().sum().item() for parameter in model.parameters())
        return {"steps": steps, "evaluations": evaluations, "weights": total}

    @remembered
    def checkpoints(self, *settings: str) -> list[str]:
        """The names of the checkpoints that a whole training leaves."""
        output = Path(tempfile.mkdtemp(dir=self.folder))
        tuneful.train(str(self.file), config=self.config("data.on_error=skip", *settings), output=output)
        return sorted(path.name for path in (output / "checkpoints").glob("*"))

    @remembered
    def whole(self, *settings: str) -> dict[str, Any]:
        """What a whole training leaves: steps without their times, the model's bytes, the ledger of its records."""
        output = Path(tempfile.mkdtemp(dir=self.folder))
        config = self.config("data.on_error=skip", "data.max_length=300", "train.learning_rate=1e-2", *settings)
        tuneful.train(str(self.file), config=config, output=output)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return {
            "steps": [{**row, "step_seconds": 0} for row in rows if "loss" in row],
            "weights": (output / "model" / "model.safetensors").read_bytes(),
            "records": (output / "records.jsonl").read_text(),
        }

    def samples(self, *settings: str) -> int:
        """How many sample answers a whole training writes down."""
        output = Path(tempfile.mkdtemp(dir=self.folder))
        tuneful.train(str(self.file), config=self.config("data.on_error=skip", *settings), output=output)
        return (output / "metrics.jsonl").read_text().count('"sample"')

    def kept(self, *settings: str) -> list[str]:
        """The folders of trained weights that a run with an adapter leaves."""
        output = Path(tempfile.mkdtemp(dir=self.folder))
        config = self.config("data.on_error=skip", "train.method=lora", *settings)
        tuneful.train(str(self.file), config=config, output=output)
        return sorted(file.parent.name for file in output.glob("*/*.safetensors"))

    def base_after_an_adapter(self, *settings: str) -> str:
        """What the adapter stands on that a run leaves which was begun with an adapter."""
        run, lora = Path(tempfile.mkdtemp(dir=self.folder)), ("data.on_error=skip", "train.method=lora")
        tuneful.train(str(self.file), config=self.config(*lora), output=run / "first")
        model = f"model.name_or_path={json.dumps(str(run / 'first' / 'adapter'))}"
        tuneful.train(str(self.file), config=self.config(*lora, model, *settings), output=run / "second")
        base: str = json.loads((run / "second" / "adapter" / "tuneful.json").read_text())["base"]["name"]
        return base

    def layers_computed(self, *settings: str) -> int:
        """How often the layers' inner parts are computed for a forward and its backward."""
        model, compute = copy.deepcopy(self.pretrained.model).train(), decoder.mlp
        begin_method(model, self.config(*settings), torch.device("cpu"))
        calls: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder, "mlp", lambda *arguments: calls.append(1) or compute(*arguments))
            micro_batch_loss(model, [record([1, 2], [3, 4])], "trie").total.backward()
        return len(calls)

    def tracked(self, *settings: str) -> str:
        """What a stand-in for the tracker trackio is told by a whole training."""
        told = self.folder / "told.txt"
        told.write_text("")
        (self.folder / "trackio.py").write_text(
            "def init(**settings): pass\n"
            "def finish(): pass\n"
            f"def log(figures, step):\n    with open({str(told)!r}, 'a') as file: file.write(str(step))\n"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(self.folder))
            type(self).whole.__wrapped__(self, *settings)
        return told.read_text()

    @remembered
    def answers(self, *settings: str) -> Any:
        config = self.config(*settings)
        records = read_data(str(self.file), on_error="skip").records
        batches = []
        model = self.pretrained.model
        hook = model.register_forward_pre_hook(
            lambda module, args, kwargs: batches.append(kwargs["logits_to_keep"]), with_kwargs=True
        )
        try:
            given = answer(
                model, self.encoder(config), [record.conversation for record in records[:5]], config.generate, seed=0
            )
        finally:
            hook.remove()
        return given, max(len(wanted) for wanted in batches if isinstance(wanted, torch.Tensor))

    def interval(self, *settings: str) -> Any:
        config = self.config(*settings).report
        base, tuned = (
            [scores(text) for text in texts] for texts in (("a b", "a", "c d", "x"), ("a b", "a c", "c d e", "y"))
        )
        return compare(base, tuned, confidence=config.confidence, num_resamples=config.num_resamples, seed=0)

    def tested(self, *settings: str, num_files: int = 1) -> Any:
        """The tokens of every choice of multiple choice, as a model is asked."""
        files = [self.folder / f"quiz{number}.jsonl" for number in range(num_files)]
        row = '{"question": "%s?", "choices": ["yes", "no"], "answer": 0}\n'
        for file in files:
            file.write_text("".join(row % word for word in ("Red", "Green", "Blue", "Pink", "Grey")), encoding="utf-8")
        config = self.config(f"evaluation.tests={json.dumps(list(map(str, files)))}", *settings)
        encoder = encoder_of(self.encoder(config), self.pretrained.tokenizer, config.evaluation)
        return [
            [
                [one.token_ids.tolist() for one in own if not isinstance(one, str)]
                for own in choice_examples(*fewshot(task, config.evaluation, 1), encoder)
            ]
            for task in tasks_of(config.evaluation, 1)
        ]

    def compared(self, *settings: str) -> Any:
        """The comparison of two files of answers."""
        for name, text in (("before", "a b"), ("after", "a b c d")):
            rows = [{"instruction": f"Say {index}.", "output": "a b c", "text": text} for index in range(8)]
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = (self.folder / f"{name}.jsonl" for name in ("before", "after"))
        return tuneful.compare(*files, config=self.config("report.num_resamples=100", *settings)).comparison

    def gate(self, gate: str) -> Any:
        return check_gate(parse_gate(self.config(f"report.gate={json.dumps(gate)}").report.gate), self.interval())


Experiment = Callable[[Laboratory], tuple[Any, ...]]


def asked(*settings: str) -> Any:
    """What Ollama is sent under `settings`."""
    judge = resolve_settings(load_config(None, ["judge.model=ollama/a", *settings]).judge)
    item = Item("rows.json:1", task="t", reference="r", answer="a", rival="b")
    question = prompt_of(judge).questions(item, plain=judge.reply_format == "text")[0]
    return OllamaBackend("http://127.0.0.1:1", str(judge.model).removeprefix("ollama/"), judge).body(question)


def judging(*settings: str) -> Any:
    """How often and by how many at once a judge is asked that never says a word, and what comes of it."""
    flying, seen = 0, []

    async def silent(request: Any, writer: Any) -> None:
        nonlocal flying
        flying += 1
        seen.append(flying)
        try:
            await asyncio.Event().wait()
        finally:
            flying -= 1

    quick = ["judge.timeout_seconds=0.2", "judge.max_retries=0", "judge.backoff_seconds=0"]
    judge = load_config(None, [*quick, *settings]).judge
    outcomes: list[Any] = [None] * 4
    with serving(silent) as origin:
        one = open_http_judge("openai/a", judge, {"OPENAI_BASE_URL": origin})
        one.ask_all([Question("s", "u", "n", None)] * 4, outcomes.__setitem__)
    return {"most": max(seen), "tries": len(seen), "outcomes": outcomes}


def judged(*changed: str, of: str) -> Experiment:
    return lambda lab: (judging()[of], judging(*changed)[of])


def asking(*changed: str) -> Experiment:
    return lambda lab: (asked(), asked(*changed))


def num_judged(lab: Laboratory, *settings: str) -> int:
    """How many questions a judge is asked about 60 pairs of answers of which one is always better."""
    config = load_config(None, ["judge.temperature=0", *settings])
    sets = [AnswerSet(name, tuple(Item(f"{n}", f"t {n}", "r", name) for n in range(60))) for name in ("base", "tuned")]
    judge = Scripted(lambda question: scoring(90 if ">\ntuned\n<" in question.user else 10)(question))
    folder = lab.folder / f"judged-{len(settings)}"
    with open_cache(folder) as cache:
        judge_sets(sets, judge, config, cache, folder, Terminal(quiet=True))
    return len(judge.asked)


def probed(*settings: str) -> int:
    return num_calibration_questions(9, load_config(None, list(settings)).judge)


def own_prompt(lab: Laboratory) -> str:
    (lab.folder / "score.txt").write_text("[system]\n{nonce}\n[user]\n{answer} {reply}", encoding="utf-8")
    return f"judge.prompts={json.dumps(str(lab.folder))}"


def first_wait(setting: str) -> bool:
    return bool(_wait_seconds(NoReplyError("", retry=True), 1, load_config(None, [setting]).judge))


def scores(text: str) -> AnswerScores:
    return score_answer(text, "a b c", ended=True, reference_nll=float(len(text)), reference_tokens=3)


def texts(found: tuple[list[Answer], int]) -> list[tuple[int, ...]]:
    return [given.token_ids for given in found[0]]


SAMPLED = ["generate.temperature=1.5"]
A_SMALL_MODEL = HeldModel(1000, 0, torch.device("cpu"))
OVERFITTING = ("train.learning_rate=0.3", "train.eval_steps=1")


def data(*changed: str, given: tuple[str, ...] = ()) -> Experiment:
    return lambda lab: (lab.dataset(*given), lab.dataset(*given, *changed))


def training(*changed: str, given: tuple[str, ...] = (), of: str = "weights") -> Experiment:
    return lambda lab: (lab.training(*given)[of], lab.training(*given, *changed)[of])


def whole(*changed: str, given: tuple[str, ...] = (), of: str = "weights") -> Experiment:
    return lambda lab: (lab.whole(*given)[of], lab.whole(*given, *changed)[of])


def lora(changed: str) -> Experiment:
    return whole(changed, given=("train.method=lora",))


def generation(*changed: str, given: list[str] | None = None) -> Experiment:
    return lambda lab: (texts(lab.answers(*(given or []))), texts(lab.answers(*(given or []), *changed)))


def said_inside(lab: Laboratory) -> str:
    """A few characters of an answer, as the value of a setting."""
    return json.dumps([next(given.text[1:3] for given in lab.answers()[0] if len(given.text) > 3)])


def refused(lab: Laboratory, setting: str) -> str:
    """What a job says to `setting` where this machine or folder cannot obey it."""
    config = lab.config(setting)
    try:
        choose_device(config.model.device)
        load_model(config.model.name_or_path)
    except (ConfigError, ModelError) as error:
        return str(error)
    return "obeyed"


def num_computed(found: Any) -> list[int]:
    return [step["computed_tokens"] for step in found["steps"]]


def one_token_too_short(lab: Laboratory) -> str:
    longest = max(len(token_ids) for side in lab.dataset() for _, token_ids, _, _ in side)
    return f"data.max_length={longest - 1}"


def several_turns(lab: Laboratory, setting: str) -> list[float]:
    conversation = Conversation("", (Turn("a", "", "b"), Turn("c", "", "d", thought="e")), "here:1")
    example = lab.encoder(lab.config(setting)).example(conversation)
    assert isinstance(example, Example)
    return list(example.weights.tolist())


def preferred(*settings: str) -> float:
    """The loss of some pairs, or labelled records, against a reference that is another model."""
    config = load_config(None, [f"train.objective={settings[0]}", *settings[1:]])
    made = random_labelled(4) if settings[0] == "kto" else random_pairs(4)
    layout = Layout("trie", config.data.max_length)
    objective = make_objective(config, defaultdict(lambda: -9.0))
    costs = mean_costs(tiny_model(), made, layout, objective=objective)
    assert costs is not None
    return costs.loss


def preference(objective: str, *changed: str, given: tuple[str, ...] = ()) -> Experiment:
    return lambda lab: (preferred(objective, *given), preferred(objective, *given, *changed))


def layouts(lab: Laboratory) -> tuple[Any, Any]:
    shared, padded = lab.training(), lab.training("train.layout=padded")
    assert shared["evaluations"][-1][1] == pytest.approx(padded["evaluations"][-1][1], abs=1e-4)  # and nothing else
    return num_computed(shared), num_computed(padded)


def micro_batches(lab: Laboratory) -> tuple[Any, Any]:
    whole, cut = lab.training(), lab.training("train.micro_batch_tokens=40")
    assert whole["evaluations"][-1][1] == pytest.approx(cut["evaluations"][-1][1], abs=1e-4)
    return num_computed(whole), num_computed(cut)


EXPERIMENTS: dict[str, Experiment] = {
    "data.train_file": lambda lab: tuple(
        data_of(None, lab.config(f"data.train_file={json.dumps(name)}")) for name in ("one.json", "two.json")
    ),
    "data.split": data("data.split=ordered"),
    "data.validation_file": lambda lab: (lab.dataset(), lab.dataset(f"data.validation_file={lab.more}")),
    "data.test_file": lambda lab: (lab.dataset(), lab.dataset(f"data.test_file={lab.more}")),
    "data.test_share": data("data.test_share=0.6"),
    "data.validation_share": data("data.validation_share=0.6"),
    "data.split_seed": data("data.split_seed=1"),
    "data.train_share": data("data.train_share=0.5"),
    "data.train_on": data("data.train_on=all"),
    "data.prompt_weight": data("data.prompt_weight=0.3"),
    "data.train_turns": lambda lab: (
        several_turns(lab, "data.train_turns=all"),
        several_turns(lab, "data.train_turns=last"),
    ),
    "data.train_reasoning": lambda lab: (
        several_turns(lab, "data.train_reasoning=true"),
        several_turns(lab, "data.train_reasoning=false"),
    ),
    "data.max_length": lambda lab: (lab.dataset(), lab.dataset(one_token_too_short(lab))),
    "data.on_long": lambda lab: (
        lab.dataset(one_token_too_short(lab)),
        lab.dataset(one_token_too_short(lab), "data.on_long=cut_response"),
    ),
    "data.on_error": data("data.on_error=stop"),
    "data.format": data("data.format=messages"),
    "data.formats": lambda lab: (lab.two_files(), lab.two_files("data.formats=fewer.jsonl=messages")),
    "data.sample_by": lambda lab: (lab.documents(), lab.documents("data.sample_by=line")),
    "data.chunk_overlap": lambda lab: (lab.documents(), lab.documents("data.chunk_overlap=3")),
    "data.weights": lambda lab: (lab.two_files(), lab.two_files("data.weights=fewer.jsonl=0.5")),
    "data.interleave_probs": lambda lab: (lab.two_files(), lab.two_files("data.interleave_probs=0.5,0.5")),
    "data.stopping_strategy": lambda lab: (
        lab.two_files("data.interleave_probs=0.5,0.5"),
        lab.two_files("data.interleave_probs=0.5,0.5", "data.stopping_strategy=first_exhausted"),
    ),
    "data.columns": data("data.columns=output=instruction,instruction=output"),
    "data.replay": whole("data.replay=starter", of="steps"),
    "data.replay_ratio": whole("data.replay_ratio=0.5", given=("data.replay=starter",), of="steps"),
    "template.name": data("template.name=chatml"),
    "template.file": lambda lab: (lab.dataset(), lab.dataset(f"template.file={lab.jinja}")),
    "model.name_or_path": lambda lab: (refused(lab, "train.seed=0"), refused(lab, "model.name_or_path=./nowhere")),
    "model.dtype": training("model.dtype=bfloat16"),
    "model.save_dtype": whole("model.save_dtype=bfloat16"),
    "model.device": lambda lab: (
        choose_device(lab.config("model.device=cpu").model.device),
        _outcome(lambda: choose_device(lab.config("model.device=cuda").model.device)),
    ),
    "model.dropout": training("model.dropout=0.3"),
    "model.attn_implementation": lambda lab: (
        _outcome(lambda: ask_for(tiny_model(), lab.config().model.attn_implementation)),
        _outcome(lambda: ask_for(tiny_model(), lab.config(FLEX).model.attn_implementation)),
    ),
    "lora.r": lora("lora.r=4"),
    "lora.alpha": lora("lora.alpha=4"),
    "lora.dropout": lora("lora.dropout=0.5"),
    "lora.target_modules": lora("lora.target_modules=q_proj,v_proj"),
    "lora.use_rslora": lora("lora.use_rslora=true"),
    "lora.use_dora": lora("lora.use_dora=true"),
    "lora.create_new_adapter": lambda lab: (
        lab.base_after_an_adapter(),
        Path(lab.base_after_an_adapter("lora.create_new_adapter=true")).name,
    ),
    "lora.merge": lambda lab: (lab.kept("lora.merge=true"), lab.kept("lora.merge=false")),
    "train.objective": lambda lab: tuple(preferred(objective) for objective in ("dpo", "orpo")),
    "train.method": whole("train.method=lora"),
    "train.freeze_layers": whole("train.freeze_layers=1"),
    "train.activation_checkpointing": lambda lab: (
        lab.layers_computed(),
        lab.layers_computed("train.activation_checkpointing=true"),
    ),
    "train.batch_size": training("train.batch_size=2"),
    "train.num_train_epochs": lambda lab: tuple(
        len(lab.training("train.max_steps=null", f"train.num_train_epochs={epochs}")["steps"]) for epochs in (1, 2)
    ),
    "train.max_steps": training("train.max_steps=3"),
    "train.learning_rate": training("train.learning_rate=1e-3"),
    "train.lr_scheduler_type": training("train.lr_scheduler_type=linear"),
    "train.warmup_steps": training("train.warmup_steps=4"),
    "train.weight_decay": training("train.weight_decay=0.9"),
    "train.adam_beta1": training("train.adam_beta1=0.5"),
    "train.adam_beta2": training("train.adam_beta2=0.9"),
    "train.adam_epsilon": training("train.adam_epsilon=1e-2"),
    "train.max_grad_norm": training("train.max_grad_norm=1e-6"),
    "train.eval_steps": training("train.eval_steps=4", of="evaluations"),
    "train.eval_share": training("train.eval_share=0.01", of="evaluations"),
    "train.sample_share": lambda lab: (lab.samples(), lab.samples("train.sample_share=0")),
    "train.keep": training("train.keep=last", given=OVERFITTING),
    "train.early_stopping_patience": training("train.early_stopping_patience=1", given=OVERFITTING, of="evaluations"),
    "train.save_steps": lambda lab: (lab.checkpoints(), lab.checkpoints("train.save_steps=4")),
    "train.save_minutes": lambda lab: (lab.checkpoints(), lab.checkpoints("train.save_minutes=1e-9")),
    "train.save_total_limit": lambda lab: tuple(
        lab.checkpoints("train.save_steps=1", f"train.save_total_limit={limit}") for limit in (2, 3)
    ),
    "train.seed": data("train.seed=1"),
    "train.micro_batch_tokens": micro_batches,
    "train.strategy": lambda lab: tuple(
        choose_strategy(A_SMALL_MODEL, lab.config(f"train.strategy={name}").train.strategy) for name in ("auto", "fsdp")
    ),
    "train.shard_ranks": lambda lab: tuple(
        choose_replicas(A_SMALL_MODEL, 4, lab.config(f"train.shard_ranks={ranks}").train.shard_ranks)
        for ranks in ("null", "2")
    ),
    "train.layout": layouts,
    "train.report_to": lambda lab: (lab.tracked(), lab.tracked("train.report_to=trackio")),
    "preference.loss_type": preference("dpo", "preference.loss_type=hinge"),
    "preference.loss_weights": preference(
        "dpo", "preference.loss_weights=[1, 0.2]", given=("preference.loss_type=[sigmoid, sft]",)
    ),
    "preference.beta": preference("dpo", "preference.beta=0.5"),
    "preference.label_smoothing": preference(
        "dpo", "preference.label_smoothing=0.1", given=("preference.loss_type=robust",)
    ),
    "preference.discopop_tau": preference(
        "dpo", "preference.discopop_tau=0.5", given=("preference.loss_type=discopop",)
    ),
    "preference.cpo_alpha": preference("cpo", "preference.cpo_alpha=0.5"),
    "preference.simpo_gamma": preference("simpo", "preference.simpo_gamma=1"),
    "preference.desirable_weight": preference("kto", "preference.desirable_weight=2"),
    "preference.undesirable_weight": preference("kto", "preference.undesirable_weight=2"),
    "generate.max_new_tokens": generation("generate.max_new_tokens=3"),
    "generate.temperature": generation(*SAMPLED),
    "generate.top_k": generation("generate.top_k=1", given=SAMPLED),
    "generate.top_p": generation("generate.top_p=0.01", given=SAMPLED),
    "generate.min_p": generation("generate.min_p=1", given=SAMPLED),
    "generate.repetition_penalty": generation("generate.repetition_penalty=0.2"),
    "generate.stop": lambda lab: (texts(lab.answers()), texts(lab.answers(f"generate.stop={said_inside(lab)}"))),
    "generate.batch_size": lambda lab: (lab.answers()[1], lab.answers("generate.batch_size=2")[1]),
    "judge.model": asking("judge.model=ollama/b"),
    "judge.protocol": asking("judge.protocol=rubric"),
    "judge.reply_format": asking("judge.reply_format=text"),
    "judge.use_reference": asking("judge.use_reference=false"),
    "judge.reason": asking("judge.reason=true"),
    "judge.prompts": lambda lab: (asked(), asked(own_prompt(lab))),
    "judge.concurrency": judged("judge.concurrency=2", of="most"),
    "judge.timeout_seconds": judged("judge.timeout_seconds=0.1", of="outcomes"),
    "judge.max_retries": judged("judge.max_retries=1", of="tries"),
    "judge.backoff_seconds": lambda lab: (first_wait("judge.backoff_seconds=0"), first_wait("judge.seed=0")),
    "judge.temperature": asking("judge.temperature=0.5"),
    "judge.seed": asking("judge.seed=null"),
    "judge.max_tokens": asking("judge.max_tokens=9"),
    "judge.num_ctx": asking("judge.num_ctx=8192"),
    "judge.keep_alive": asking("judge.keep_alive=1h"),
    "judge.num_probes": lambda lab: tuple(
        num_probe_questions(9, load_config(None, [f"judge.num_probes={number}"]).judge) for number in (4, 0)
    ),
    "judge.calibration_items": lambda lab: (probed(), probed("judge.calibration_items=2")),
    "judge.stop_early": lambda lab: (num_judged(lab), num_judged(lab, "judge.stop_early=true")),
    "report.confidence": lambda lab: (lab.interval(), lab.interval("report.confidence=0.6")),
    "report.num_resamples": lambda lab: (lab.interval(), lab.interval("report.num_resamples=100")),
    "report.gate": lambda lab: (lab.gate(""), lab.gate("rouge_l>=0")),
    "report.general": lambda lab: tuple(
        read_general(lab.config(f"report.general={general}").report.general) for general in ("builtin", "none")
    ),
    "report.record_losses": whole("report.record_losses=all", of="records"),
    "report.headline": lambda lab: (lab.compared().headline, lab.compared("report.headline=chrf").headline),
    "evaluation.checks": lambda lab: (
        lab.compared().metrics,
        lab.compared("evaluation.checks=[{length: , max: 3}]").metrics,
    ),
    "evaluation.tests": lambda lab: (lab.tested(), lab.tested(num_files=2)),
    "evaluation.tests_prompt": lambda lab: (lab.tested(), lab.tested("evaluation.tests_prompt=raw")),
    "evaluation.num_fewshot": lambda lab: (lab.tested(), lab.tested("evaluation.num_fewshot=1")),
    "evaluation.fewshot_sampler": lambda lab: (
        lab.tested("evaluation.num_fewshot=2"),
        lab.tested("evaluation.num_fewshot=2", "evaluation.fewshot_sampler=random"),
    ),
}


def _outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (ConfigError, DataError) as error:
        return str(error)


@pytest.fixture(scope="module")
def laboratory(tiny_llama: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tiny model is all overhead
    yield Laboratory(tiny_llama, tiny_gpt2, tmp_path_factory.mktemp("laboratory"))
    torch.set_num_threads(threads)


def test_every_key_has_an_experiment() -> None:
    assert list(EXPERIMENTS) == all_keys()


@pytest.mark.parametrize("key", EXPERIMENTS)
def test_changing_a_key_changes_something(key: str, laboratory: Laboratory) -> None:
    before, after = EXPERIMENTS[key](laboratory)
    assert before != after


@pytest.mark.parametrize("experiment", ["training", "whole", "checkpoints", "answers", "dataset"])
def test_changing_nothing_changes_nothing(experiment: str, laboratory: Laboratory) -> None:
    """Without this the experiments would prove nothing."""
    remembering = getattr(Laboratory, experiment)
    assert remembering(laboratory) == remembering.__wrapped__(laboratory)
