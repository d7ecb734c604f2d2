"""The page of all settings: `python -m tuneful.config.reference > docs/configuration.md`."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from tuneful.config.whole import Config


def reference() -> str:
    """Every key with its default and meaning, as the Markdown of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Settings come from a YAML file (`--config`) and from `section.key=value` arguments, which win. `none` and `null` are no",
        "value, in both. This page is made from the code: `python -m tuneful.config.reference > docs/configuration.md`.",
    ]
    for name, section in Config.model_fields.items():
        assert isinstance(section.annotation, type)
        lines += [
            "",
            f"## {name}",
            "",
            str(section.annotation.__doc__),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for key, field in section.annotation.model_fields.items():
            default = _written(field.default)
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            among = f" (one of {', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
            lines.append(f"| `{name}.{key}` | `{default}` | {field.description}{among} |")
    return "\n".join(lines) + "\n"


def _written(default: Any) -> str:
    """A default as YAML writes it."""
    if default in (None, "") or isinstance(default, bool):
        return str(default).lower() if isinstance(default, bool) else "none"
    return "[]" if default == () else str(default)


if __name__ == "__main__":
    print(reference(), end="")
