"""The settings of what is measured besides: checks of one's own, and tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneful.config.checks import given_checks
from tuneful.config.schema import Section, names_of


class EvaluationConfig(Section):
    """What answers are checked for besides the metrics that are always there, and what base and tuned are measured on besides the
    test records."""

    checks: tuple[dict[str, Any], ...] = Field(
        (),
        description="checks of one's own, each a metric like the others: a list, or a YAML or JSON file that holds one "
        "(`--checks`); docs/evaluation.md lists the kinds",
    )
    tests: tuple[str, ...] = Field(
        (),
        description="files of tests: multiple choice (by log-likelihood), or instructions that can be verified (by answers); "
        "docs/evaluation.md lists their forms",
    )
    tests_prompt: Literal["template", "raw"] = Field(
        "template",
        description="how they are asked: under the template of the training, or as the `raw` text that stands there",
    )
    num_fewshot: int = Field(
        0,
        ge=0,
        description="items of each file of choices that stand before every question, answered, and are not scored",
    )
    fewshot_sampler: Literal["first_n", "random"] = Field(
        "first_n", description="which these are: the first of the file, or drawn by train.seed"
    )

    @field_validator("checks", mode="before")
    @classmethod
    def _checks_can_be_made(cls, value: Any) -> Any:
        return given_checks(value)

    @field_validator("tests", mode="before")
    @classmethod
    def _files_are_a_list(cls, value: Any) -> Any:
        return tuple(names_of(value)) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _how_tests_are_asked_needs_tests(self) -> EvaluationConfig:
        asked = {"tests_prompt": self.tests_prompt != "template", "num_fewshot": self.num_fewshot > 0}
        asked["fewshot_sampler"] = self.fewshot_sampler != "first_n"
        if not self.tests and (given := [name for name, is_given in asked.items() if is_given]):
            raise ValueError(
                f"{' and '.join(given)} is ignored without tests; name files in evaluation.tests, or drop it"
            )
        if asked["fewshot_sampler"] and not self.num_fewshot:
            raise ValueError("fewshot_sampler draws num_fewshot items, which is 0; set it, or drop the sampler")
        return self
