"""What is trained, said before the first step; and a whole run with an adapter, killed and gone on with."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tuneful
from tuneful.config import load_config
from tuneful.errors import ConfigError
from tuneful.model import sources
from tuneful.model.quantize import check_4_bits
from tuneful.runs import training
from tuneful.runs.method import Method, method_in_words, rates_in_words

ROWS = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(24)]
SETTINGS = ["train.max_steps=6", "train.batch_size=4", "generate.max_new_tokens=2", "report.general=none"]
TWO_MORE = "the self-check compares two more batches"
LORA = ["train.method=lora", "lora.r=2", "train.learning_rate=0.05"]


class CutOffError(Exception):
    """Stands for a kill."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(ROWS))
    return file


def config(model: Path, *settings: str):
    return load_config(None, [f"model.name_or_path={model}", *SETTINGS, *settings])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "full, 1.50 M are trained"),
        (["train.method=lora"], "lora, r 16, alpha 32, all-linear, 1.50 M are trained"),
        (
            ["train.method=lora", "lora.target_modules=[a, b]", "lora.use_dora=true", "train.freeze_layers=3"],
            "lora, r 16, alpha 32, a, b, above layer 3, DoRA, 1.50 M are trained",
        ),
        (
            ["train.method=qlora"],
            "qlora, r 16, alpha 32, all-linear, beside a base in 4 bits (NF4), into which it is merged, 1.50 M are trained",
        ),
    ],
)
def test_the_method_in_words(settings, said):
    settings = load_config(None, settings)
    adapter = None if settings.train.method == "full" else object()
    assert method_in_words(Method(10, 1_500_000, adapter), settings) == said


def test_rates_are_said_with_where_they_come_from():
    assert rates_in_words(load_config())["learning rate"] == "5e-05: the default of full, the book's"
    lora = rates_in_words(load_config(None, ["train.method=lora", "train.weight_decay=0.3"]))
    assert lora["learning rate"] == "0.0002: the default of lora, QLoRA's, for models up to 13B"
    assert lora["weight decay"] == "0.3: as asked for"


def test_settings_of_an_adapter_without_one_are_refused():
    with pytest.raises(ConfigError, match=r"the section lora is ignored under train\.method: full"):
        load_config(None, ["lora.r=4"])
    with pytest.raises(ConfigError, match="replay_ratio says how much"):
        load_config(None, ["data.replay_ratio=0.4"])


def test_4_bits_on_a_gpu_need_bitsandbytes_and_on_a_cpu_nothing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        check_4_bits(torch.device("cpu"))
        with pytest.raises(ConfigError, match=r"pip install 'tuneful\[qlora\]'"):
            check_4_bits(torch.device("cuda"))


def test_a_tracker_that_is_missing_stops_a_run_before_anything_is_written(data, tiny_llama, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'tuneful\[wandb\]'"):
            tuneful.train(str(data), config=config(tiny_llama, "train.report_to=wandb"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_that_is_shipped_is_its_base_with_the_adapter_that_is_shipped(dtype, data, tiny_llama, tmp_path):
    result = tuneful.run(str(data), config=config(tiny_llama, *LORA, f"model.dtype={dtype}"), output=tmp_path / "run")
    merged = AutoModelForCausalLM.from_pretrained(result.model).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    ids = torch.tensor([[5, 9, 12, 44]])
    with torch.inference_mode():
        untouched = base(input_ids=ids).logits
        own = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()(input_ids=ids).logits
        shipped = merged(input_ids=ids).logits
    torch.testing.assert_close(shipped, own, rtol=0, atol=1e-5 * own.abs().max().item())
    assert (shipped - untouched).abs().max() > 1e-3
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["model"]["num_trainable"] < environment["model"]["num_parameters"]


def test_a_run_over_code_of_transformers_that_no_test_has_seen_says_so(data, tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sources, "_known", lambda: {"5.0.0": {}})
    result = tuneful.run(
        str(data), config=config(tiny_llama), output=tmp_path / "run", terminal=tuneful.Terminal(stderr=False)
    )
    said = f"the code of Llama in transformers {transformers.__version__} is none of those tested (5.0.0)"
    assert said in capsys.readouterr().out
    environment, record = (json.loads((result.path / f"{name}.json").read_text()) for name in ("environment", "run"))
    assert environment["layout"] == "trie"
    assert environment["layout_note"] == record["choices"]["layout"]["note"] == f"{said}: {TWO_MORE}"
    assert said in (result.path / "report.html").read_text()


def test_a_run_with_an_adapter_that_was_cut_off_ends_as_if_it_had_not_been(data, tiny_llama, tmp_path, monkeypatch):
    settings = config(tiny_llama, *LORA, "data.replay=starter", "data.max_length=300", "train.save_steps=2")
    tuneful.train(str(data), config=settings, output=tmp_path / "straight")
    save, calls = training._save_checkpoint, []

    def cut_off(job, *arguments):
        save(job, *arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise CutOffError

    monkeypatch.setattr(training, "_save_checkpoint", cut_off)
    with pytest.raises(CutOffError):
        tuneful.train(str(data), config=settings, output=tmp_path / "cut")
    saved = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    assert all(".lora_" in name for name in load_file(saved / "weights.safetensors"))
    monkeypatch.setattr(training, "_save_checkpoint", save)
    tuneful.train(str(data), config=settings, output=tmp_path / "cut")
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors", "records.jsonl"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file
