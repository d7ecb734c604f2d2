"""Configuration: what is accepted is obeyed, and what is not is one message that names the place, the key and the fix."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneful.config import Config, all_keys, dump_config, load_config
from tuneful.config.names import PEER_KEYS, RENAMED_KEYS, RENAMED_VALUES
from tuneful.errors import ConfigError


def refusal(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    file = folder / "my.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_defaults_of_training_are_the_books() -> None:
    config = load_config()
    assert (config.train.learning_rate, config.train.weight_decay) == (5e-5, 0.1)
    assert (config.train.batch_size, config.train.num_train_epochs, config.data.max_length) == (8, 2, 1024)
    assert config == Config()


def test_a_file_sets_and_an_argument_sets_over_it(tmp_path: Path) -> None:
    file = written(tmp_path, "train:\n  batch_size: 4\n  learning_rate: 1e-4\ndata:\n  # nothing yet\n")
    config = load_config(file, ["train.batch_size=16", "template.name=chatml", "generate.top_k=null"])
    assert (config.train.batch_size, config.train.learning_rate) == (16, 1e-4)
    assert (config.template.name, config.generate.top_k) == ("chatml", None)


def may_be_none() -> list[str]:
    """Every setting whose default docs/configuration.md writes as `none`."""
    page = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    return [line.split("`")[1] for line in page.splitlines() if "| `none` |" in line]


def test_the_page_of_settings_knows_settings_without_a_value() -> None:
    assert {"train.max_steps", "judge.model", "data.columns", "report.gate"} <= set(may_be_none())


@pytest.mark.parametrize("key", may_be_none())
@pytest.mark.parametrize("written_as", ["none", "null", "None", "NONE", "Null", "~", "", "'none'"])
def test_none_as_the_page_of_settings_writes_it_is_no_value(tmp_path: Path, key: str, written_as: str) -> None:
    section, name = key.split(".")
    default = getattr(getattr(Config(), section), name)
    assert getattr(getattr(load_config(None, [f"{key}={written_as}"]), section), name) == default
    file = written(tmp_path, f"{section}:\n  {name}: {written_as}\n")
    assert load_config(file) == Config()


def test_none_turns_off_what_is_on_by_default() -> None:
    config = load_config(None, ["train.save_minutes=none", "judge.seed=none", "judge.temperature=None"])
    assert (config.train.save_minutes, config.judge.seed, config.judge.temperature) == (None, None, None)
    assert load_config(None, ["judge.max_tokens=none"]).judge.max_tokens is None


def test_none_is_a_name_or_a_text_where_a_setting_knows_it() -> None:
    for text in ("none", "null", "None", "~"):
        assert load_config(None, [f"report.general={text}"]).report.general == "none"
        assert load_config(None, [f"train.report_to={text}"]).train.report_to == ()
    assert load_config(None, ["generate.stop=none"]).generate.stop == ("none",)
    assert load_config(None, ["generate.stop=null"]).generate.stop == ()


def test_a_file_that_is_not_given_takes_no_share_of_the_data() -> None:
    data = load_config(None, ["data.test_file=none"]).data
    assert (data.test_file, data.test_share) == (None, 0.10)


def test_where_a_setting_needs_a_value_none_is_refused_by_its_key() -> None:
    for key in ("train.learning_rate", "train.batch_size", "data.split"):
        assert f"`{key}`" in refusal(f"{key}=none")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.0e-4", "0.0001", ".1e-3", "'1e-4'"])
def test_a_number_may_be_written_as_people_do(tmp_path: Path, text: str) -> None:
    assert load_config(None, [f"train.learning_rate={text}"]).train.learning_rate == 1e-4
    file = written(tmp_path, f"train: {{learning_rate: {text}}}")
    assert load_config(file).train.learning_rate == 1e-4


@pytest.mark.parametrize("name", ["1e5", "123", "nan", "2020-01-01", "true", "owner/name", "a: b", "C:\\m"])
def test_a_quoted_text_stays_text_whatever_it_looks_like(name: str) -> None:
    assert load_config(None, [f"model.name_or_path={json.dumps(name)}"]).model.name_or_path == name


def test_what_is_dumped_loads_as_it_was(tmp_path: Path) -> None:
    config = load_config(
        None,
        ["train.learning_rate=1e-7", "data.prompt_weight=0.3", "model.name_or_path=Ünïcode/名前", "train.max_steps=3"],
    )
    file = written(tmp_path, dump_config(config))
    assert load_config(file) == config
    assert sorted(
        f"{name}.{key}" for name, section in yaml.safe_load(file.read_text("utf-8")).items() for key in section
    ) == (sorted(all_keys()))


BAD_VALUES = {
    "train.batch_size=0": "greater than or equal to 1 (found 0)",
    "train.batch_size=2.5": "valid integer",
    "train.batch_size=many": "valid integer",
    "train.batch_size=true": "expected a number or a name, not true",
    "train.learning_rate=0": "greater than 0",
    "train.learning_rate=.inf": "finite number",
    "train.learning_rate=.nan": "finite number",
    "train.learning_rate=fast": "valid number",
    "train.learning_rate=": "valid number",
    "train.lr_scheduler_type=cosin": "'constant', 'linear' or 'cosine' (found 'cosin')",
    "train.warmup_steps=1.5": "neither a share below 1 nor a whole number",
    "train.seed=-1": "greater than or equal to 0",
    "train.seed=99999999999": "less than 2147483648",
    "train.seed=2020-13-45": "valid integer",
    "data.test_share=1": "less than 1",
    "data.split=none": "'grouped', 'random' or 'ordered'",
    "model.device=gpu": "should match pattern",
    "generate.top_p=0": "greater than 0",
    "generate.top_k=0": "greater than or equal to 1",
    "template.name=vicuna": "'alpaca', 'alpaca-paired', 'chatml', 'phi-3' or 'tokenizer'",
    "report.confidence=0.5": "greater than 0.5",
}


@pytest.mark.parametrize("argument", BAD_VALUES)
def test_a_value_out_of_range_names_the_argument_the_key_and_the_range(tmp_path: Path, argument: str) -> None:
    key, _, value = argument.partition("=")
    message = refusal(argument)
    assert message.startswith(f"argument {argument!r}: `{key}`: ")
    assert BAD_VALUES[argument] in message
    section, _, name = key.partition(".")
    file = written(tmp_path, f"{section}:\n  {name}: {value}\n")
    if not value.startswith("2020"):
        assert refusal(file=file).startswith(f"{file}: `{key}`: ")


def test_every_bad_value_is_named_at_once() -> None:
    message = refusal("train.batch_size=0", "data.max_length=1")
    assert [line.split("`")[1] for line in message.splitlines()] == ["data.max_length", "train.batch_size"]


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert "together must stay below 1" in refusal("data.test_share=0.5", "data.validation_share=0.5")
    assert "prompt_weight is ignored under train_on: all" in refusal("data.train_on=all", "data.prompt_weight=0.5")


@pytest.mark.parametrize("setting", ["train_turns=last", "train_on=all", "prompt_weight=0.5"])
@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_what_says_which_tokens_are_trained_is_refused_under_preferences(setting: str, objective: str) -> None:
    name = setting.partition("=")[0]
    message = refusal(f"data.{setting}", f"train.objective={objective}")
    assert f"data.{name}" in message
    assert f"is ignored under train.objective: {objective}" in message
    load_config(None, [f"data.{setting}"])


@pytest.mark.parametrize("setting", ["sample_by=line", "chunk_overlap=2"])
def test_what_speaks_of_documents_is_refused_without_them(setting: str) -> None:
    for others in ([], ["train.objective=dpo"], ["data.formats=a.jsonl=messages"]):
        assert f"data.{setting.partition('=')[0]} is ignored without documents" in refusal(f"data.{setting}", *others)
    for others in (["train.objective=text"], ["data.formats=a.txt=text"]):
        load_config(None, [f"data.{setting}", *others])


@pytest.mark.parametrize(
    "setting", ["on_long=cut_input", "train_turns=last", "train_reasoning=false", "prompt_weight=0.5", "train_on=all"]
)
def test_what_speaks_of_answers_is_refused_where_there_are_none(setting: str) -> None:
    message = refusal(f"data.{setting}", "train.objective=text")
    assert f"data.{setting.partition('=')[0]} is ignored under train.objective: text" in message
    load_config(None, [f"data.{setting}", "train.objective=text", "data.test_file=asked.jsonl"])


@pytest.mark.parametrize("key", sorted(PEER_KEYS))
def test_a_key_of_another_trainer_is_refused_with_our_name_for_it(tmp_path: Path, key: str) -> None:
    ours = PEER_KEYS[key]
    assert ours in all_keys()
    assert (
        refusal(f"train.{key}=1") == f"argument 'train.{key}=1': unknown key `train.{key}`: here it is called `{ours}`"
    )
    file = written(tmp_path, f"{key}: 1\n")
    assert refusal(file=file) == f"{file}: unknown key `{key}`: here it is called `{ours}`"


@pytest.mark.parametrize("key", sorted(RENAMED_KEYS))
def test_a_key_that_was_ours_once_is_refused_with_the_name_that_holds_now(tmp_path: Path, key: str) -> None:
    now = RENAMED_KEYS[key]
    assert now in all_keys()
    assert key not in all_keys()
    assert refusal(f"{key}=auto") == f"argument '{key}=auto': `{key}` is called `{now}` now"
    section, name = key.split(".")
    file = written(tmp_path, f"{section}:\n  {name}: auto\n")
    assert refusal(file=file) == f"{file}: `{key}` is called `{now}` now"


def test_a_value_that_was_ours_once_is_refused_with_the_name_that_holds_now(tmp_path: Path) -> None:
    assert RENAMED_VALUES == {"template.name": {"own": "tokenizer"}}
    assert refusal("template.name=own") == (
        "argument 'template.name=own': `template.name`: 'own' is called 'tokenizer' now"
    )
    file = written(tmp_path, "template: {name: own}\n")
    assert refusal(file=file) == f"{file}: `template.name`: 'own' is called 'tokenizer' now"


def test_what_an_earlier_version_wrote_down_is_translated() -> None:
    earlier: dict[str, dict[str, Any]] = {"data": {"shape": "messages", "max_length": 77}, "template": {"name": "own"}}
    config = load_config(begun_with=earlier)
    assert (config.data.format, config.data.max_length, config.template.name) == ("messages", 77, "tokenizer")
    assert earlier["data"]["shape"] == "messages", "what was handed in was changed"


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("train.batchsize=1", "did you mean `train.batch_size`?"),
        ("learning_rate=1", "did you mean `train.learning_rate`?"),
        ("data.seed=1", "did you mean `train.seed`?"),
        ("nonsense.thing=1", "sections are data, template, model, lora, train, preference, generate, judge, report"),
        ("a.b.c=1", "sections are"),
        ("train.=1", "unknown key `train.`"),
        ("output=reply", "the columns of all fields are one setting, with commas: data.columns=...,output=COLUMN"),
    ],
)
def test_an_unknown_key_is_refused_with_a_guess(argument: str, hint: str) -> None:
    message = refusal(argument)
    assert message.startswith(f"argument {argument!r}: unknown key ")
    assert hint in message


@pytest.mark.parametrize("argument", ["train.batch_size", "=5", "What is 2+2?"])
def test_an_argument_that_sets_nothing_says_how_to_set(argument: str) -> None:
    assert refusal(argument).startswith(f"argument {argument!r}: expected section.key=value, such as ")


def test_a_section_is_not_a_key() -> None:
    assert "'train' is a section; name a key of it" in refusal("train=5")


FILES = {
    "train:\n  batch_size: [1\n": ":3: not valid YAML",
    "train:\n\tbatch_size: 1\n": ":2: not valid YAML",
    "train:\n  batch_size: 1\n  batch_size: 2\n": ":3: not valid YAML: the key `batch_size` stands twice",
    "train:\n  seed: 1\ndata:\n  split: random\ntrain:\n  batch_size: 2\n": ":5: not valid YAML: the key `train` stands twice",
    "- train\n": ": expected sections such as `train:`, found list",
    "train: 5\n": ": `train` is a section and holds keys, found 5",
    "training:\n  learning_rate: 1\n": ": unknown key `training.learning_rate`: did you mean `train.learning_rate`?",
    "nonsense:\n": ": unknown key `nonsense`: sections are",
    "nonsense: {}\n": ": unknown key `nonsense`: sections are",
    "1: 2\n": ": unknown key `1`: sections are",
    "train: {1: 2}\n": ": unknown key `train.1`",
    "train: {seed: 2020-13-45}\n": ": not valid YAML",
    "!!python/object/apply:os.system ['true']\n": "not valid YAML",
}


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_no_configuration_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    message = refusal(file=file)
    assert message.startswith(str(file))
    assert FILES[text] in message


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    assert refusal(file=tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such configuration file"
    assert refusal(file=tmp_path).startswith(f"{tmp_path}: cannot be read")
    file = tmp_path / "bytes.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    assert refusal(file=file).startswith(f"{file}: cannot be read")


@pytest.mark.parametrize(
    "text", ["", "\n", "# only a comment\n", "train:\n", "train: {}\n", "\ufefftrain:\n  seed: 0\n"]
)
def test_a_file_that_sets_nothing_leaves_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()


def test_a_configuration_is_frozen() -> None:
    config: Any = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.train.batch_size = 5


def test_every_key_says_what_it_is_for() -> None:
    for name, section in Config.model_fields.items():
        annotation: Any = section.annotation
        for key, field in annotation.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_a_run_that_was_begun_with_settings_nobody_read_goes_on() -> None:
    begun = {
        "generate": {"temperature": 0, "top_k": 5, "max_new_tokens": 7},
        "judge": {"model": None, "concurrency": 3},
    }
    config = load_config(begun_with=begun)
    assert (config.generate.top_k, config.generate.max_new_tokens) == (None, 7)
    assert config.judge == Config().judge
    sampled = load_config(
        begun_with={"generate": {"temperature": 0.5, "top_k": 5}, "judge": {"model": "ollama/x", "seed": 3}}
    )
    assert (sampled.generate.top_k, sampled.judge.seed) == (5, 3)


@pytest.mark.parametrize("setting", ["top_k=5", "top_p=0.9", "min_p=0.1"])
def test_settings_of_sampling_are_refused_where_nothing_is_sampled(setting: str) -> None:
    key = setting.partition("=")[0]
    assert f"{key} is ignored at temperature 0" in refusal(f"generate.{setting}")
    assert load_config(None, [f"generate.{setting}", "generate.temperature=0.7"]).generate.temperature == 0.7


def test_all_unknown_keys_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("train:\n  learning_rat: 1\n  batch_sise: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "two.yaml", ["train.seed=1", "data.shap=x"])
    said = str(refused.value).splitlines()
    assert len(said) == 3
    assert "did you mean `train.learning_rate`?" in said[0]
    assert "did you mean `train.batch_size`?" in said[1]
    assert said[2].startswith("argument 'data.shap=x'")


def test_python_says_what_is_wrong_as_the_command_line_does() -> None:
    with pytest.raises(ConfigError) as refused:
        Config(train={"learning_rat": 1, "batch_size": 0}, modle={})
    said = str(refused.value)
    assert "unknown key `train.learning_rat`: did you mean `train.learning_rate`?" in said
    assert "`train.batch_size`: Input should be greater than or equal to 1 (found 0)" in said
    assert "unknown key `modle`" in said
    assert "pydantic" not in said


def test_a_configuration_shows_what_was_changed() -> None:
    assert repr(Config()) == "Config()"
    changed = load_config(overrides=["train.learning_rate=1e-4", "data.split=random"])
    assert repr(changed) == str(changed) == "Config(data.split='random', train.learning_rate=0.0001)"
    assert changed == Config(train={"learning_rate": 1e-4}, data={"split": "random"})
