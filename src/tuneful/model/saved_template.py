"""The template that a model was trained with, as its folder says: under another it is asked in another way than it learned.

Read before a model is loaded, for every command that encodes a prompt or a record for it.
"""

from __future__ import annotations

from pathlib import Path

from tuneful.config import Config
from tuneful.config.names import RENAMED_VALUES
from tuneful.encoding.chat_template import TOKENIZER_TEMPLATE
from tuneful.encoding.template import TEMPLATE_FILE, TEMPLATES
from tuneful.errors import ConfigError, ModelError
from tuneful.files import read_object
from tuneful.model.names import adapter_base, is_adapter, trained_folder


def with_saved_template(config: Config) -> Config:
    """`config`, with the template that its model was trained with where the model's folder, or its base's, names one.

    A template that was asked for by name stays; ConfigError where the folder's file is damaged.
    """
    file = template_file(config.model.name_or_path)
    if file is None or config.template.model_fields_set & {"name", "file"}:
        return config
    try:
        name = read_object(file).get("template")
    except (OSError, ValueError):
        name = None
    if isinstance(name, str):
        name = RENAMED_VALUES["template.name"].get(name, name)  # what a folder of an earlier version says
    if name not in (*TEMPLATES, TOKENIZER_TEMPLATE):
        raise ConfigError(
            f"{file}: names no known template; give template.name={'|'.join((*TEMPLATES, TOKENIZER_TEMPLATE))}"
        )
    return config.model_copy(update={"template": config.template.model_copy(update={"name": name})})


def template_file(model: str) -> Path | None:
    """The file that names the template of `model`; of an adapter without one, that of its base. None for none."""
    folder = trained_folder(Path(model).expanduser())
    if (file := folder / TEMPLATE_FILE).is_file():
        return file
    try:
        return template_file(adapter_base(folder).name) if is_adapter(folder) else None
    except (ModelError, RecursionError):
        return None  # whoever loads it says what is wrong
