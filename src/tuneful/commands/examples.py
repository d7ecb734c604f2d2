"""Examples of every command, as its `--help` shows them: each is a line to be copied, with names of one's own in it."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "run": (
        "tuneful run my.json",
        "tuneful run my.json train.method=lora -o runs/first",
        "tuneful run my.json --dry-run",
        "tuneful run --config runs/first/config.yaml train.learning_rate=1e-4",
        "tuneful run --resume",
        "tuneful run my.json --checks checks.yaml report.headline=label",
    ),
    "check": (
        "tuneful check my.json",
        "tuneful check my.json --fix clean.jsonl",
        "tuneful check my.json --against test.jsonl",
    ),
    "show": ("tuneful show my.json --rows 5", "tuneful show my.json --html my.html", "tuneful show my.json --text"),
    "synthesize": (
        "tuneful synthesize seeds.json --teacher ollama/llama3 --kind instructions --num 500 -o new.jsonl",
        "tuneful synthesize --topics topics.txt --teacher openai/gpt-x --kind instructions -o new.jsonl",
        "tuneful synthesize my.json --teacher ollama/llama3 --kind responses --samples 4 --best-by-judge -o answers.jsonl",
        "tuneful synthesize my.json --teacher ollama/llama3 --kind reflections -o better.jsonl",
        "tuneful synthesize my.json --model runs/first --kind pairs --rank-by rouge_l -o pairs.jsonl",
    ),
    "train": ("tuneful train my.json", "tuneful train my.json -m model.gguf train.method=lora lora.merge=false"),
    "generate": (
        'tuneful generate -m runs/first --prompt "Name three rivers."',
        "tuneful generate -m runs/first --data questions.jsonl -o answers.jsonl",
    ),
    "chat": ("tuneful chat -m runs/first", 'tuneful chat -m runs/first --system "Be brief." generate.temperature=0.7'),
    "serve": (
        "tuneful serve -m runs/first",
        "tuneful serve -m runs/first --compare smollm2-135m-instruct",
        "tuneful serve -m runs/first --host 0.0.0.0 --token SECRET-TOKEN --allow-host host.docker.internal",
    ),
    "evaluate": (
        "tuneful evaluate runs/first --judge ollama/llama3",
        "tuneful evaluate --calibrate --judge ollama/llama3",
        "tuneful evaluate answers.jsonl --checks checks.yaml",
    ),
    "compare": ("tuneful compare runs/first runs/second", 'tuneful compare runs/first runs/second --gate "rouge_l>=0"'),
    "report": ("tuneful report runs/first",),
    "export": (
        "tuneful export runs/first --to gguf --type q8_0",
        "tuneful export runs/first --to ollama -o my-model",
        "tuneful export runs/first --to adapter --type gguf",
        "tuneful export runs/first --to huggingface --push me/my-model",
    ),
    "doctor": ("tuneful doctor", "tuneful doctor --model my-model.gguf", "tuneful doctor --json"),
}
