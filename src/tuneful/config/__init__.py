"""The configuration: every setting with its default, and how a file and a command line become one."""

from tuneful.config.load import all_keys, dump_config, load_config
from tuneful.config.schema import (
    DataConfig,
    GenerateConfig,
    JudgeConfig,
    ModelConfig,
    ReportConfig,
    Section,
    TemplateConfig,
)
from tuneful.config.training import METHOD_DEFAULTS, METHOD_SOURCES, LoraConfig, TrainConfig
from tuneful.config.whole import Config

__all__ = [
    "METHOD_DEFAULTS",
    "METHOD_SOURCES",
    "Config",
    "DataConfig",
    "GenerateConfig",
    "JudgeConfig",
    "LoraConfig",
    "ModelConfig",
    "ReportConfig",
    "Section",
    "TemplateConfig",
    "TrainConfig",
    "all_keys",
    "dump_config",
    "load_config",
]
