"""The whole configuration: every section, and what its functions say to who writes one in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from tuneful.config.evaluation import EvaluationConfig
from tuneful.config.explain import explained
from tuneful.config.preference import PREFERENCE_OBJECTIVES, PreferenceConfig
from tuneful.config.schema import (
    DataConfig,
    GenerateConfig,
    JudgeConfig,
    ModelConfig,
    ReportConfig,
    Section,
    TemplateConfig,
)
from tuneful.config.training import LoraConfig, TrainConfig
from tuneful.errors import ConfigError

_OF_DOCUMENTS = frozenset(("sample_by", "chunk_overlap"))
_OF_ANSWERS = frozenset(("train_on", "prompt_weight", "train_turns", "train_reasoning", "on_long"))


class Config(Section):
    """The whole configuration; `config.yaml` of a run folder is this, resolved."""

    data: DataConfig = Field(default_factory=DataConfig)
    template: TemplateConfig = Field(default_factory=TemplateConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    preference: PreferenceConfig = Field(default_factory=PreferenceConfig)
    generate: GenerateConfig = Field(default_factory=GenerateConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    def __init__(self, **sections: Any) -> None:
        """The configuration of `sections`, such as `train={"learning_rate": 1e-4}`; ConfigError says what is wrong in them."""
        try:
            super().__init__(**sections)
        except ValidationError as error:
            known = [f"{name}.{key}" for name, section in _sections().items() for key in section.model_fields]
            raise ConfigError(explained(error, {}, known, list(_sections()))) from None

    @classmethod
    def validated(cls, sections: Mapping[str, Any]) -> Config:
        """The same, with pydantic's own ValidationError, for who knows where each key came from."""
        made = cls.__new__(cls)
        BaseModel.__init__(made, **sections)
        return made

    @property
    def split_seed(self) -> int:
        """The seed by which records are divided."""
        return self.train.seed if self.data.split_seed is None else self.data.split_seed

    def __repr__(self) -> str:
        """The settings that are not at their defaults."""
        changed = [
            f"{name}.{key}={value!r}"
            for name, section in _sections().items()
            for key, value in getattr(self, name)
            if value != getattr(section(), key)
        ]
        return f"Config({', '.join(changed)})"

    __str__ = __repr__

    @model_validator(mode="after")
    def _the_section_of_another_method_is_refused(self) -> Config:
        if self.train.method == "full" and self.lora != LoraConfig():
            raise ValueError("the section lora is ignored under train.method: full; set train.method=lora, or drop it")
        return self

    @model_validator(mode="after")
    def _preferences_are_learned_as_they_can_be(self) -> Config:
        if why := self.preference.why_not(self.train.objective):
            raise ValueError(why)
        if self.train.objective not in PREFERENCE_OBJECTIVES:
            return self
        under = f"under train.objective: {self.train.objective}"
        if self.data.replay is not None:
            raise ValueError(f"data.replay is for train.objective: sft; {under} drop it")
        if self.train.objective == "kto" and self.train.batch_size == 1:
            raise ValueError(
                f"train.batch_size: 1 {under}, whose KL takes the responses of other records of a step; raise it"
            )
        if self.lora.dropout or self.model.dropout:
            raise ValueError(
                f"dropout is refused {under}: the model would differ from its reference before it learned anything; set "
                "lora.dropout and model.dropout to 0"
            )
        return self

    @model_validator(mode="after")
    def _prompts_of_preferences_are_context(self) -> Config:
        objective = self.train.objective
        if objective in ("sft", "text"):
            return self
        setting = "train_turns: last" if self.data.train_turns == "last" else ""
        if self.data.resolved_prompt_weight:
            setting = "train_on: all" if self.data.prompt_weight is None else "prompt_weight"
        if setting:
            raise ValueError(
                f"data.{setting} is ignored under train.objective: {objective}, which compares answers to one prompt; drop it"
            )
        return self

    @model_validator(mode="after")
    def _documents_are_asked_for(self) -> Config:
        """Under `train.objective: text` records are documents; elsewhere a file of them is asked for by name."""
        data, objective = self.data, self.train.objective
        if objective == "text" and data.format == "auto":
            object.__setattr__(self, "data", data.model_copy(update={"format": "text"}))
        elif objective == "text" and data.format != "text":
            raise ValueError(
                f"data.format: {data.format} holds no documents, which train.objective: text trains; drop one"
            )
        elif objective != "text" and data.format == "text":
            raise ValueError(
                "data.format: a text does not say which part of it is the response, the part to learn; train.objective=text "
                "learns all of it, and data.formats names the files of documents beside those of records"
            )
        if objective not in ("sft", "text") and "text" in (data.formats or {}).values():
            raise ValueError(f"data.formats: documents are not trained under train.objective: {objective}")
        return self

    @model_validator(mode="after")
    def _what_speaks_of_documents_or_of_answers_has_them(self) -> Config:
        """After the validator before it, which says where documents are."""
        data, default = self.data, DataConfig()
        changed = {name for name, value in data if value != getattr(default, name)}
        of_documents, of_answers = (sorted(changed & names) for names in (_OF_DOCUMENTS, _OF_ANSWERS))
        if of_documents and data.format != "text" and "text" not in (data.formats or {}).values():
            raise ValueError(
                f"data.{of_documents[0]} is ignored without documents; train.objective=text trains them, or, beside records, "
                "data.formats=FILE=text"
            )
        if of_answers and data.format == "text" and data.test_file is None and data.replay is None:
            raise ValueError(
                f"data.{of_answers[0]} is ignored under train.objective: text, which trains all of a document; it is for the "
                "answers of a data.test_file. Drop it"
            )
        return self


def _sections() -> dict[str, type[Section]]:
    """Every section by its name."""
    found: dict[str, Any] = {name: one.annotation for name, one in Config.model_fields.items()}
    return found
