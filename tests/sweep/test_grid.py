"""Settings with several values become a grid: what a comma divides, what may be swept, which points are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tuneful.config import Config, load_config
from tuneful.errors import ConfigError
from tuneful.sweep.grid import Grid, in_words, make_grid, read_settings


def grid_of(*settings: str, sample: int | None = None, seed: int | None = None) -> Grid:
    swept, others = read_settings(settings)
    return make_grid(swept, lambda own: load_config(None, [*others, *own]), sample=sample, seed=seed)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("train.learning_rate=1e-5,5e-5", [1e-5, 5e-5]),
        ("train.learning_rate=1e-5, 5e-5 ,1e-4", [1e-5, 5e-5, 1e-4]),
        ("lora.r=[8,16]", [8, 16]),
        ("train.lr_scheduler_type=linear,cosine", ["linear", "cosine"]),
        ("model.name_or_path=[a, b]", ["a", "b"]),
        (
            "lora.target_modules=[[q_proj], [q_proj, v_proj], all-linear]",
            [["q_proj"], ["q_proj", "v_proj"], "all-linear"],
        ),
        ("data.prompt_weight=none,0.5", [None, 0.5]),
        ("lora.use_dora=true,false", [True, False]),
    ],
)
def test_a_setting_with_several_values_is_swept(setting: str, values: list[Any]) -> None:
    grid = grid_of("train.method=lora", setting)
    key = setting.partition("=")[0]
    assert grid.keys == (key,)
    assert [point.settings[key] for point in grid.points] == values
    section, name = key.split(".")
    assert [point.config.model_dump(mode="json")[section][name] for point in grid.points] == values


@pytest.mark.parametrize(
    "setting",
    [
        "lora.target_modules=q_proj,v_proj",
        "train.report_to=wandb,mlflow",
        'report.gate="rouge_l>=0, forgetting<=0.05"',
        "data.weights=0.5,1",
        "train.batch_size=8",
        'generate.stop=["a,b"]',
        "model.name_or_path=a,b",
    ],
)
def test_a_list_is_one_value_where_the_setting_takes_lists(setting: str) -> None:
    assert read_settings([setting]) == ({}, [setting])


def test_the_grid_is_every_combination_in_order_with_the_other_settings() -> None:
    grid = grid_of("train.learning_rate=1e-5,1e-4", "train.batch_size=4,8", "train.max_steps=7")
    assert [in_words(point.settings) for point in grid.points] == [
        "train.learning_rate=1e-05 train.batch_size=4",
        "train.learning_rate=1e-05 train.batch_size=8",
        "train.learning_rate=0.0001 train.batch_size=4",
        "train.learning_rate=0.0001 train.batch_size=8",
    ]
    assert {point.config.train.max_steps for point in grid.points} == {7}


def test_what_no_one_gave_follows_the_method_of_each_point() -> None:
    rates = [point.config.train.learning_rate for point in grid_of("train.method=full,lora").points]
    assert rates == [5e-5, 2e-4]


def test_a_sample_is_drawn_by_its_seed_without_repetition_and_keeps_the_order() -> None:
    settings = ("train.learning_rate=1e-5,2e-5,3e-5,4e-5", "train.batch_size=1,2,3,4,5")
    whole = [in_words(point.settings) for point in grid_of(*settings).points]
    drawn = [[in_words(one.settings) for one in grid_of(*settings, sample=6, seed=seed).points] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [whole.index(one) for one in drawn[0]] == sorted({whole.index(one) for one in drawn[0]})
    assert len(drawn[0]) == 6
    assert grid_of(*settings, sample=6).num_points == 20
    assert len(grid_of(*settings, sample=99).points) == 20


def test_where_the_seed_is_swept_all_runs_hold_out_the_same_records() -> None:
    assert [one.config.split_seed for one in grid_of("train.seed=3,4,5").points] == [3, 3, 3]
    assert [one.config.split_seed for one in grid_of("train.seed=3,4", "data.split_seed=9").points] == [9, 9]
    assert [one.config.data.split_seed for one in grid_of("train.seed=3,4", "data.split=ordered").points] == [None] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.max_steps=7"], "nothing to sweep"),
        (["generate.temperature=0,1"], r"generate\.temperature cannot be swept: it changes no weight"),
        (["report.confidence=0.9,0.95"], "changes no weight"),
        (["train.layout=trie,padded"], "changes no weight"),
        (["train.objective=sft,text"], "changes what the validation loss measures"),
        (["preference.beta=0.1,0.2", "train.objective=dpo"], "changes what the validation loss measures"),
        (["data.validation_share=0.1,0.2"], "changes what the validation loss measures"),
        (["train.batch_size=4,4"], "a value stands twice"),
        (["train.learning_rate=1e-4,0.0001"], "two runs of the sweep would be the same"),
        (["train.batch_size=4,8", "train.batch_size=2"], "has one value and several"),
        (["train.batch_size=4,8", "train.batch_size=2,3"], "is swept already"),
        (["train.batch_size=4,x"], r"argument 'train\.batch_size=4,x': 'x' is no value of train\.batch_size"),
        (["train.batch_size=x"], r"train\.batch_size"),
        (["train.learning_rat=1,2"], "learning_rate"),
        (["lora.r=8,16"], "train.method"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name(settings: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid_of(*settings)


def test_a_configuration_in_python_is_swept_like_settings() -> None:
    from tuneful.commands.sweep import _not_at_default

    config = Config(train={"max_steps": 5, "method": "lora"})
    sections = _not_at_default(config)
    made = [load_config(None, [f"train.method={name}"], begun_with=sections).train for name in ("full", "lora")]
    assert [(one.max_steps, one.learning_rate) for one in made] == [(5, 5e-5), (5, 2e-4)]
