"""A configuration is read: a YAML file of sections, then `section.key=value` overrides from the command line.

A key that another trainer spells otherwise, or that had another name here before, is refused with the name that holds now. `none`
is no value wherever a setting may have none, in a file, in an argument and in an option, as the page of all settings writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from tuneful.config.explain import explained, unknown_key
from tuneful.config.names import RENAMED_KEYS, RENAMED_METRICS, RENAMED_VALUES
from tuneful.config.schema import Section
from tuneful.config.whole import Config
from tuneful.config.yaml_file import YAML_ERRORS, YamlLoader
from tuneful.errors import ConfigError


def load_config(
    file: Path | None = None, overrides: Sequence[str] = (), *, begun_with: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of `file` (YAML; defaults where None) with `section.key=value` overrides on top.

    `begun_with` are the sections that an earlier run wrote down, in place of a file: names that were renamed since are
    translated there, and refused everywhere else. Raises ConfigError naming the file or argument, the key and what to do.
    """
    values = read_yaml(file) if file else _without_ignored(translated(begun_with or {}))
    where = dict.fromkeys(_dotted_keys(values), str(file or "the run's own configuration"))
    for override in overrides:
        dotted, value = _parse_override(override)
        section, key = dotted.split(".")
        values.setdefault(section, {})[key] = value
        where[dotted] = f"argument {override!r}"
    _raise_together(_check_known(dotted, where[dotted]) for dotted in where)
    for dotted in where:
        _check_value(dotted, values, where[dotted])
        section, key = dotted.split(".")
        values[section][key] = _none_as_meant(section, key, values[section][key])
    try:
        return Config.validated(values)
    except ValidationError as error:
        raise ConfigError(explained(error, where, all_keys(), list(Config.model_fields))) from None


def takes(override: str) -> bool:
    """Whether the text of `section.key=text` is one value of that setting; ConfigError where there is no such setting."""
    dotted, value = _parse_override(override)
    _raise_together([_check_known(dotted, f"argument {override!r}")])
    section, key = dotted.split(".")
    section_type = Config.model_fields[section].annotation
    assert isinstance(section_type, type)
    assert issubclass(section_type, Section)
    try:
        section_type.model_validate({key: _none_as_meant(section, key, value)})
    except ValidationError as error:
        return not any(key in one["loc"] for one in error.errors())
    return True


def dump_config(config: Config) -> str:
    """`config` as YAML, every key resolved."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def all_keys() -> list[str]:
    """Every dotted key there is, `train.batch_size` and so on, in order."""
    return [f"{name}.{key}" for name, section in Config().model_dump().items() for key in section]


def translated(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration that was written before some names were changed, under the names that hold now."""
    values: dict[str, Any] = {}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            values[name] = section
            continue
        values.setdefault(name, {})
        for key, value in section.items():
            dotted = RENAMED_KEYS.get(f"{name}.{key}", f"{name}.{key}")
            new_section, _, new_key = dotted.partition(".")
            values.setdefault(new_section, {})[new_key] = _value_now(dotted, value) if isinstance(value, str) else value
    return values


def _without_ignored(sections: dict[str, Any]) -> dict[str, Any]:
    """The sections without what an earlier version took and did not read, and what is refused in a new configuration."""
    generate, judge = sections.get("generate"), sections.get("judge")
    if isinstance(generate, dict) and not generate.get("temperature"):
        sections["generate"] = {key: value for key, value in generate.items() if key not in ("top_k", "top_p", "min_p")}
    if isinstance(judge, dict) and judge.get("model") is None:
        sections.pop("judge")
    return sections


def read_yaml(file: Path) -> dict[str, dict[str, Any]]:
    """The sections of a YAML file, as they stand there; ConfigError where it is none."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8-sig"), YamlLoader)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected sections such as `train:`, found {type(values).__name__}")
    for name, section in values.items():
        if not isinstance(section, dict) or not section:
            _raise_together([_check_known(str(name), str(file))])
            if section:
                raise ConfigError(f"{file}: `{name}` is a section and holds keys, found {section!r}")
    return {name: section or {} for name, section in values.items()}


def _dotted_keys(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name}.{key}" for name, section in values.items() for key in section]


def _parse_override(override: str) -> tuple[str, Any]:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"argument {override!r}: expected section.key=value, such as train.learning_rate=1e-4")
    if dotted.count(".") != 1:
        _raise_together([_check_known(dotted, f"argument {override!r}")])
        raise ConfigError(
            f"argument {override!r}: {dotted!r} is a section; name a key of it, such as train.batch_size=8"
        )
    try:
        return dotted, yaml.load(text, YamlLoader)
    except YAML_ERRORS:
        return dotted, text


def _value_now(dotted: str, value: str) -> str:
    if dotted == "report.gate":
        return re.sub(r"[A-Za-z0-9_-]+", lambda name: RENAMED_METRICS.get(name[0], name[0]), value)
    return RENAMED_VALUES.get(dotted, {}).get(value, value)


def _raise_together(messages: Iterable[str | None]) -> None:
    """ConfigError that tells all that is wrong at once, a line each."""
    if found := [message for message in messages if message]:
        raise ConfigError("\n".join(found))


def _check_known(dotted: str, where: str) -> str | None:
    """What is wrong with the key `dotted`, None where it is known."""
    known = all_keys()
    if dotted in known or dotted in Config.model_fields:
        return None
    return f"{where}: {unknown_key(dotted, known, list(Config.model_fields))}"


def _none_as_meant(section: str, key: str, value: Any) -> Any:
    """`value`, but for none: `none` and `null` are no value where the setting may have none, an empty one where its default is
    empty, and the name `none` where the setting knows it (`report.general`). Where texts are listed `none` is a text."""
    written = isinstance(value, str) and value.strip().lower() in ("none", "null")
    if value is not None and not written:
        return value
    section_type = Config.model_fields[section].annotation
    assert isinstance(section_type, type)
    assert issubclass(section_type, Section)
    field = section_type.model_fields[key]
    if type(None) in get_args(field.annotation):
        return None
    if f"{section}.{key}" == "report.general":
        return "none"
    if field.default in ("", ()) and (value is None or f"{section}.{key}" != "generate.stop"):
        return field.default
    return value


def _check_value(dotted: str, values: Mapping[str, Any], where: str) -> None:
    section, _, key = dotted.partition(".")
    value, renamed = values[section][key], RENAMED_VALUES.get(dotted, {})
    if isinstance(value, str) and value in renamed:
        raise ConfigError(f"{where}: `{dotted}`: {value!r} is called {renamed[value]!r} now")
