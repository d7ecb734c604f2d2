"""The settings of learning from preferences: which loss of a pair or a label, and its figures, under TRL's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneful.config.schema import Section, names_of

PREFERENCE_OBJECTIVES = ("dpo", "orpo", "simpo", "cpo", "kto")
"""The values of `train.objective` that this section is for."""

_LOSS_TYPES: Mapping[str, tuple[str, ...]] = {
    "dpo": (
        *("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"),
        *("discopop", "sigmoid_norm", "sft"),
    ),
    "cpo": ("sigmoid", "hinge", "ipo"),
    "kto": ("kto", "apo_zero_unpaired"),
}
"""The loss types of each objective, its default first; `orpo` and `simpo` have one loss each."""

_READ_BY: Mapping[str, tuple[str, ...]] = {
    "loss_type": ("dpo", "cpo", "kto"),
    "loss_weights": ("dpo",),
    "label_smoothing": ("dpo", "cpo", "simpo"),
    "discopop_tau": ("dpo",),
    "cpo_alpha": ("cpo", "simpo"),
    "simpo_gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Which objectives read a setting; all of them read the others."""

_READ_BY_LOSS: Mapping[str, tuple[str, ...]] = {
    "label_smoothing": ("robust", "exo_pair", "sigmoid of cpo", "simpo"),
    "discopop_tau": ("discopop",),
}

LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
    "kto",
    "apo_zero_unpaired",
]


class PreferenceConfig(Section):
    """The loss of `train.objective: dpo`, `orpo`, `simpo`, `cpo` and `kto`."""

    loss_type: tuple[LossType, ...] | None = Field(
        None,
        description="the loss of a pair, or several, summed: of dpo `sigmoid` (the default), `hinge`, `ipo`, `robust`, "
        "`exo_pair`, `nca_pair`, `bco_pair`, `sppo_hard`, `apo_zero`, `apo_down`, `discopop`, `sigmoid_norm` or `sft`; of cpo "
        "`sigmoid`, `hinge` or `ipo`; of kto `kto` or `apo_zero_unpaired`",
    )
    loss_weights: tuple[float, ...] | None = Field(
        None, description="what each of several losses is multiplied by: `[1.0, 0.2]`; by default 1"
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="how strongly the log-probabilities count: higher keeps the model closer to the reference; by default 0.1, "
        "for simpo 2",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of pairs that are taken to be the wrong way round (`robust`, `exo_pair`, cpo, simpo)",
    )
    discopop_tau: float = Field(0.05, gt=0, description="temperature of `discopop`")
    cpo_alpha: float | None = Field(
        None,
        ge=0,
        description="weight of the loss of the chosen response in cpo and simpo; by default 1 for cpo, 0 for simpo",
    )
    simpo_gamma: float = Field(0.5, ge=0, description="margin that simpo asks for between the two")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of the loss of an answer that is wanted")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of the loss of an answer that is not")

    @field_validator("loss_type", "loss_weights", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        found = names_of(value)
        return (found,) if isinstance(found, (int, float)) and not isinstance(found, bool) else found or None

    @model_validator(mode="after")
    def _each_loss_has_its_weight(self) -> PreferenceConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type or ("sigmoid",)):
            raise ValueError(f"loss_weights: {len(self.loss_weights)} for {len(self.loss_type or ('sigmoid',))} losses")
        if "exo_pair" in (self.loss_type or ()) and not self.label_smoothing:
            raise ValueError("exo_pair needs a label_smoothing above 0 (its paper: 1e-3)")
        return self

    def resolved_loss_types(self, objective: str) -> tuple[str, ...]:
        """The losses that are summed under `objective`."""
        return self.loss_type or _LOSS_TYPES.get(objective, (objective,))[:1]

    def resolved_beta(self, objective: str) -> float:
        """`beta`, or what suits `objective`: TRL's 0.1, and the least that SimPO's paper takes."""
        return self.beta if self.beta is not None else 2.0 if objective == "simpo" else 0.1

    def resolved_cpo_alpha(self, objective: str) -> float:
        """Weight of the chosen response's own loss under `objective`."""
        return self.cpo_alpha if self.cpo_alpha is not None else 1.0 if objective == "cpo" else 0.0

    def why_not(self, objective: str) -> str | None:
        """What of this section nothing would read under `objective`, in words; None where all of it is read."""
        default = PreferenceConfig()
        changed = [key for key in type(self).model_fields if getattr(self, key) != getattr(default, key)]
        if not changed:
            return None
        if objective not in PREFERENCE_OBJECTIVES:
            return f"the section preference is ignored under train.objective: {objective}; set train.objective=dpo, or drop it"
        for key in changed:
            if objective not in _READ_BY.get(key, PREFERENCE_OBJECTIVES):
                return f"preference.{key} is ignored under train.objective: {objective}; drop it"
        types = self.resolved_loss_types(objective)
        if unknown := [one for one in types if one not in _LOSS_TYPES.get(objective, (objective,))]:
            return f"preference.loss_type: {unknown[0]} is no loss of {objective}: {', '.join(_LOSS_TYPES[objective])}"
        if objective != "dpo" and len(types) > 1:
            return f"preference.loss_type: {objective} takes one loss, not {len(types)}"
        named = [f"{one} of cpo" if objective == "cpo" else one for one in types]
        for key, losses in _READ_BY_LOSS.items():
            if key in changed and not set(named) & set(losses):
                return f"preference.{key} is ignored by {', '.join(types)}: {', '.join(losses)} read it"
        return None
