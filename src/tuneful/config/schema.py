"""Every setting, in one place: its type, its default, its range, what it means, and what it must not stand beside.

Keys carry the names that the field uses (`learning_rate`, `num_train_epochs`, `max_grad_norm`). Every key is read by something:
`tests/house/test_config_is_obeyed.py`.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tuneful.config.names import COLUMN_FIELDS


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _only_a_switch_is_true_or_false(cls, value: Any, info: ValidationInfo) -> Any:
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bool) and not switch:
            raise ValueError(f"expected a number or a name, not {str(value).lower()}; where a name is meant, quote it")
        return value


def names_of(value: Any) -> Any:
    """A list of names as YAML gives it, or as it is typed: `a,b`."""
    return [name for part in value.split(",") if (name := part.strip())] if isinstance(value, str) else value


class DataConfig(Section):
    """What is trained on."""

    train_file: tuple[str, ...] | None = Field(
        None,
        description="the data, where the command names none: a file, a pattern, a Hub id, `starter`, or a list of them; a run "
        "writes down what it was given",
    )
    split: Literal["grouped", "random", "ordered"] = Field(
        "grouped",
        description="how records are divided: `grouped` keeps records with the same prompt on one side, `random` shuffles "
        "single records, `ordered` cuts the file as it stands (train, test, validation: the book's order)",
    )
    validation_file: str | None = Field(
        None, description="a file of records for the validation loss; nothing of DATA is split off for it then"
    )
    test_file: str | None = Field(
        None, description="a file of records for the test answers; nothing of DATA is split off for it then"
    )
    test_share: float = Field(0.10, ge=0, lt=1, description="share of the records kept for the test answers")
    validation_share: float = Field(0.05, ge=0, lt=1, description="share of the records kept for the validation loss")
    split_seed: int | None = Field(
        None, ge=0, lt=1 << 31, description="seed of the split where it is not to follow train.seed"
    )
    train_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training records that are trained on, drawn by train.seed; a smaller share is part of a "
        "larger one, and what is held out stays the same",
    )
    train_on: Literal["response", "all"] = Field(
        "response", description="which tokens carry loss: the `response` and its end token, or `all` but the first"
    )
    prompt_weight: float | None = Field(
        None, ge=0, le=1, description="weight of a prompt token's loss, between `response` (0) and `all` (1)"
    )
    train_turns: Literal["all", "last"] = Field(
        "all", description="of a record with several turns, train every response or only the last one"
    )
    train_reasoning: bool = Field(
        True, description="train the thoughts that records have before their responses; `false` makes them context"
    )
    max_length: int = Field(1024, ge=2, description="most tokens a record may have, the end token included")
    on_long: Literal["refuse", "cut_response", "cut_input"] = Field(
        "refuse",
        description="a record over max_length is refused by name, or loses the end of its response (and its end token), or the "
        "end of the longest text that was asked, so that the whole response fits",
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="a row that cannot be read stops the run, or is skipped into refused.jsonl"
    )
    format: Literal[
        "auto", "alpaca", "messages", "sharegpt", "prompt-completion", "question-answer", "dolly", "text"
    ] = Field(
        "auto",
        description="how a record is written; `auto` tells each record by its keys, and under `train.objective: text` is "
        "`text`: documents",
    )
    formats: dict[str, str] | None = Field(
        None,
        description="the format of single files of DATA, where one for all does not do: `{book.txt: text}` trains documents "
        "beside records",
    )
    sample_by: Literal["document", "paragraph", "line"] = Field(
        "document",
        description="what a document of a file of plain text is: the whole file, what stands between blank lines, or a line",
    )
    chunk_overlap: int = Field(
        1,
        ge=1,
        description="tokens of the chunk before that a chunk of a document begins with, as context without loss",
    )
    weights: dict[str, float] | tuple[float, ...] | None = Field(
        None,
        description="what the records of single files weigh in the loss, by file (`{a.jsonl: 0.5}`; others weigh 1) or in the "
        "order of DATA (`[0.5, 1]`)",
    )
    interleave_probs: dict[str, float] | tuple[float, ...] | None = Field(
        None,
        description="the share of the training records of an epoch that each file of DATA gives, by file or in the order of "
        "DATA; by default each record comes once",
    )
    stopping_strategy: Literal["all_exhausted", "first_exhausted"] = Field(
        "all_exhausted",
        description="under `interleave_probs` an epoch ends when each record of each file has come (those of smaller files "
        "several times), or when the first file has none left (no record comes twice)",
    )
    columns: dict[str, str] | None = Field(
        None,
        description="where fields stand under other names, field to column: `{instruction: question, output: answer}`, or "
        "`instruction=question,output=answer`",
    )
    replay: str | None = Field(
        None,
        description="general records (a file, or `starter`) or text (`.txt`, passages between blank lines) mixed into training "
        "against forgetting",
    )
    replay_ratio: float | None = Field(
        None, gt=0, le=10, description="replayed records for each training record, on top of batch_size; 0.1 by default"
    )

    @field_validator("train_file", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or None

    @field_validator("formats", mode="before")
    @classmethod
    def _formats_are_pairs(cls, value: Any) -> Any:
        pairs = _by_file(value, "book.txt=text")
        known = get_args(cls.model_fields["format"].annotation)
        if isinstance(pairs, dict) and (wrong := [one for one in pairs.values() if one not in known]):
            raise ValueError(f"{wrong[0]!r} is no format; formats are {', '.join(known)}")
        return pairs

    @field_validator("weights", "interleave_probs", mode="before")
    @classmethod
    def _numbers_by_file(cls, value: Any) -> Any:
        given = _by_file(value, "a.jsonl=0.5")
        try:
            if isinstance(given, dict):
                return {name: float(one) for name, one in given.items()}
            return given and tuple(map(float, given))
        except (TypeError, ValueError):
            raise ValueError("expected a number for each file, such as a.jsonl=0.5") from None

    @field_validator("weights", "interleave_probs")
    @classmethod
    def _numbers_are_positive(cls, value: Any) -> Any:
        given = [] if value is None else list(value.values() if isinstance(value, dict) else value)
        if any(not 1e-3 <= one <= 1e3 for one in given):
            raise ValueError("expected numbers from 0.001 to 1000; leave a file that is not to count out of DATA")
        return value

    @field_validator("interleave_probs")
    @classmethod
    def _shares_are_a_whole(cls, value: Any) -> Any:
        if value is not None and abs(sum(value.values() if isinstance(value, dict) else value) - 1) > 1e-6:
            raise ValueError("the shares of the files must add up to 1")
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_are_pairs(cls, value: Any) -> Any:
        if value is None or value == {}:
            return None
        if isinstance(value, str) and any(one in COLUMN_FIELDS for one in re.findall(r"\s(\w+)=", value)):
            raise ValueError("expected commas between the pairs, as in instruction=question,output=answer")
        pairs = _pairs(value) if isinstance(value, str) else value
        if not isinstance(pairs, dict) or not all(
            isinstance(part, (str, int)) and not isinstance(part, bool) and str(part)
            for pair in pairs.items()
            for part in pair
        ):
            raise ValueError("expected fields and their columns, such as instruction=question,output=answer")
        return {str(field): str(column) for field, column in pairs.items()}

    @model_validator(mode="before")
    @classmethod
    def _a_given_side_is_not_split_off(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for side in ("validation", "test"):
            if values.get(f"{side}_file") is not None and values.setdefault(f"{side}_share", 0) != 0:
                raise ValueError(f"{side}_share is ignored where {side}_file is given; drop one of the two")
        return values

    @model_validator(mode="after")
    def _shares_leave_something_to_train(self) -> DataConfig:
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share and validation_share together must stay below 1")
        if self.split == "ordered" and self.split_seed is not None:
            raise ValueError("split_seed is ignored under split: ordered, which draws nothing; drop one of the two")
        if self.prompt_weight is not None and self.train_on == "all" and self.prompt_weight != 1:
            raise ValueError("prompt_weight is ignored under train_on: all (every weight is 1); drop one of the two")
        if self.stopping_strategy != "all_exhausted" and self.interleave_probs is None:
            raise ValueError("stopping_strategy is ignored without interleave_probs; give them, or drop it")
        if self.chunk_overlap >= self.max_length:
            raise ValueError("chunk_overlap must be smaller than max_length: a chunk has to bring something new")
        if self.replay_ratio is not None and self.replay is None:
            raise ValueError("replay_ratio says how much of data.replay is mixed in; name a file there, or drop it")
        return self

    @property
    def resolved_prompt_weight(self) -> float:
        """Weight of one prompt token in the loss, 0 to 1."""
        if self.prompt_weight is not None:
            return self.prompt_weight
        return 1.0 if self.train_on == "all" else 0.0

    @property
    def resolved_replay_ratio(self) -> float:
        """Replayed records for each training record; 0 where there is nothing to replay."""
        if self.replay is None:
            return 0.0
        return 0.1 if self.replay_ratio is None else self.replay_ratio


def _by_file(value: Any, example: str) -> Any:
    """A setting by file as a mapping, or a list in the order of the files; as YAML gives it, or as it is typed."""
    if value is None or value == {} or value == [] or value == ():
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str):
        value = _pairs(value) if "=" in value else tuple(part.strip() for part in value.split(","))
    if value is None or not isinstance(value, (dict, list, tuple)):
        raise ValueError(f"expected files and their values, such as {example}")
    return {str(name): one for name, one in value.items()} if isinstance(value, dict) else tuple(value)


def _pairs(text: str) -> dict[str, str] | None:
    """`field=column,field=column` as a mapping; None where it is none, or names a field twice."""
    parts = [part.partition("=") for part in text.split(",")]
    pairs = {field.strip(): column.strip() for field, equals, column in parts if equals}
    return pairs if len(pairs) == len(parts) else None


class TemplateConfig(Section):
    """How a record becomes a prompt and a response."""

    name: Literal["alpaca", "alpaca-paired", "chatml", "phi-3", "tokenizer"] = Field(
        "alpaca",
        description="the prompt template; `tokenizer` is the chat template of the tokenizer, or that of `template.file`",
    )
    file: str | None = Field(None, description="a Jinja chat template of your own (template.name is `tokenizer` then)")

    @model_validator(mode="before")
    @classmethod
    def _a_file_is_a_template_of_ones_own(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("file") is None:
            return values
        if (name := values.get("name", "tokenizer")) != "tokenizer":
            raise ValueError(f"name: {name} and file are two templates; drop one of the two")
        return {**values, "name": "tokenizer"}


class ModelConfig(Section):
    """Which weights, on which device, and their compute dtype."""

    name_or_path: str = Field(
        "smollm2-135m-instruct",
        description="a folder, a Hub id, a .gguf file, gpt2-small (medium, large, xl), a folder of OpenAI's GPT-2 files, or the "
        "built-in smollm2-135m-instruct",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="precision of matrix products; master weights are float32 always. `auto` takes bfloat16 where the "
        "processor multiplies it natively and a short timing agrees; for an adapter on a GPU without it float16, whose "
        "gradients are those of a multiple of the loss",
    )
    save_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="number format of the saved model; bfloat16 takes half the disk, and is what is then measured",
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="`auto`, `cpu`, `mps`, `cuda` or `cuda:N`"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="replaces every dropout of the model; above 0 each record is computed on its own"
    )
    attn_implementation: Literal["auto", "varlen", "flex_attention", "torch"] = Field(
        "auto",
        description="what computes attention on a GPU: FlashAttention over the branches of a batch (`varlen`), compiled tiles "
        "(`flex_attention`), or torch's operations. `auto` takes the first where it has kernels, else the last",
    )


class GenerateConfig(Section):
    """How the model answers."""

    max_new_tokens: int = Field(128, ge=1, description="most tokens an answer may have")
    temperature: float = Field(0.0, ge=0, description="0 is greedy; above, the sampling temperature")
    top_k: int | None = Field(None, ge=1, description="sample among the k likeliest tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest tokens that hold this probability")
    min_p: float = Field(
        0.0, ge=0, le=1, description="sample among tokens at least this many times as likely as the likeliest"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="above 1, tokens that the prompt or the answer has already become less likely"
    )
    stop: tuple[str, ...] = Field((), description="texts that end an answer; neither they nor what follows is shown")
    batch_size: int = Field(64, ge=1, description="prompts answered at once; no answer changes but by rounding")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_text_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_stop_is_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would stop every answer at once")
        return value

    @model_validator(mode="after")
    def _greedy_answers_sample_nothing(self) -> GenerateConfig:
        sampling = {"top_k": self.top_k is not None, "top_p": self.top_p != 1, "min_p": self.min_p != 0}
        if self.temperature == 0 and (given := [name for name, is_given in sampling.items() if is_given]):
            raise ValueError(
                f"{' and '.join(given)} is ignored at temperature 0, where the likeliest token is taken; set "
                "generate.temperature, or drop it"
            )
        return self


class JudgeConfig(Section):
    """Who grades the answers, and how it is asked. Judging is off until `judge.model` names a judge."""

    model: str | None = Field(
        None,
        description="`ollama/NAME` (at OLLAMA_HOST), `openai/MODEL` (at OPENAI_BASE_URL), `gguf:FILE` (llama.cpp inside this "
        "process) or `model:FOLDER` (transformers inside this process)",
    )
    protocol: Literal["score", "rubric", "pairwise"] = Field(
        "score",
        description="`score` asks for one number from 0 to 100, `rubric` for correctness, relevance, completeness and "
        "clarity, `pairwise` for the better of two answers, in both orders",
    )
    reply_format: Literal["auto", "json_schema", "text"] = Field(
        "auto",
        description="what the judge is held to: a JSON object that carries the code of its item, or plain text; `auto` is "
        "`text` for `model:FOLDER` and `json_schema` elsewhere. A rubric is an object either way",
    )
    use_reference: bool = Field(
        True,
        description="show the judge the reference of each task. Answers that have none are judged with `false`; an answer is "
        "never its own reference",
    )
    reason: bool = Field(
        False,
        description="have the judge give a short reason before its score or winner, kept beside it in scores/; a rubric has "
        "one always",
    )
    prompts: str | None = Field(
        None, description="a folder whose score.txt, rubric.txt and pairwise.txt replace the built-in prompts"
    )
    concurrency: int = Field(4, ge=1, le=256, description="questions in flight at once")
    timeout_seconds: float = Field(300, gt=0, description="a reply that is not whole by then is none")
    max_retries: int = Field(4, ge=0, description="further tries after a failure that may pass")
    backoff_seconds: float = Field(
        0.5, ge=0, description="wait before the first retry; doubled for each further one, with jitter"
    )
    temperature: float | None = Field(
        0.0, ge=0, description="sampling temperature of the judge; not sent where it is none"
    )
    seed: int | None = Field(123, ge=0, description="sampling seed of the judge; not sent where it is none")
    max_tokens: int | None = Field(
        512, ge=1, description="most tokens of a reply; one that needs more is unscored. Not sent where it is none"
    )
    num_ctx: int = Field(
        4096, ge=256, description="context of an `ollama/` or `gguf:` judge; a longer prompt is an error"
    )
    keep_alive: str = Field("10m", description="how long Ollama keeps the model in memory after a question")
    num_probes: int = Field(
        10,
        ge=0,
        description="items on which the judge is probed before its scores are believed, with answers of known worth: four "
        "questions each, six under `pairwise`, asked once and kept with the replies; 0 for none, and then its scores are "
        "not the headline of a comparison",
    )
    calibration_items: int = Field(
        30, ge=2, description="items that `--calibrate` probes the judge with, ten questions each"
    )
    stop_early: bool = Field(
        False,
        description="ask about two sets of answers no further once their difference is clear, looking after every 20 items; the "
        "interval allows for the looks, and is wider",
    )


class ReportConfig(Section):
    """How base and tuned answers are compared."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence level of the intervals")
    num_resamples: int = Field(10_000, ge=100, description="resamples of the paired bootstrap, and draws of the test")
    gate: str = Field(
        "",
        description="conditions that the comparison has to meet, else the exit code is 3: `rouge_l>=0, forgetting<=0.05` "
        "(differences tuned - base; `.low`, `.high`, `.base` and `.tuned` name other figures)",
    )
    general: str = Field(
        "builtin",
        description="text on which forgetting is measured: `builtin` (sixty passages of general English), a text file, JSONL "
        "whose rows hold `text`, or `none`",
    )
    record_losses: Literal["seen", "all"] = Field(
        "seen",
        description="loss of each training record in records.jsonl: when training `seen` it, or `all`, with a pass over the "
        "training set before the first step and after the last",
    )
    headline: str | None = Field(
        None,
        description="the metric that the verdict in words, the kinds of task and the order of the answers are of: a metric of "
        "docs/evaluation.md, or a check of `evaluation.checks`; `none` is the judge's score where there is one, else ROUGE-L",
    )
