"""The configuration: every setting with its default, and how a file and a command line become one."""

from tuneful.config.evaluation import EvaluationConfig
from tuneful.config.load import all_keys, dump_config, load_config, takes
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
from tuneful.config.training import METHOD_DEFAULTS, LoraConfig, TrainConfig, default_source, train_defaults
from tuneful.config.whole import Config

__all__ = [
    "METHOD_DEFAULTS",
    "PREFERENCE_OBJECTIVES",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "GenerateConfig",
    "JudgeConfig",
    "LoraConfig",
    "ModelConfig",
    "PreferenceConfig",
    "ReportConfig",
    "Section",
    "TemplateConfig",
    "TrainConfig",
    "all_keys",
    "default_source",
    "dump_config",
    "load_config",
    "takes",
    "train_defaults",
]
