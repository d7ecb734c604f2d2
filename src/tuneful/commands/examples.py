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
    "sweep": (
        "tuneful sweep my.json train.learning_rate=2e-5,5e-5,1e-4 train.batch_size=8,16",
        "tuneful sweep my.json train.method=lora lora.r=8,16,32 train.learning_rate=1e-4,2e-4,5e-4 --sample 6 --jobs 2",
        "tuneful sweep my.json data.train_share=0.125,0.25,0.5,1 train.seed=1,2,3",
    ),
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
        "tuneful evaluate runs/first --calibrate --judge ollama/llama3",
        "tuneful evaluate answers.jsonl --checks checks.yaml",
        'tuneful evaluate answers.jsonl --checks checks.yaml --gate "label.value>=0.9"',
        "tuneful evaluate runs/first --tests quiz.jsonl evaluation.num_fewshot=5",
    ),
    "compare": (
        "tuneful compare runs/first runs/second",
        'tuneful compare runs/first runs/second --gate "rouge_l>=0"',
        "tuneful compare runs/first runs/second runs/third --output compared",
    ),
    "report": ("tuneful report runs/first",),
    "runs": (
        "tuneful runs",
        "tuneful runs experiments --sort headline --filter train.method=lora",
        "tuneful runs --json",
        "tuneful runs clean",
    ),
    "explain": (
        "tuneful explain runs/first",
        "tuneful explain runs/first --item 17 --num 20",
        "tuneful explain runs/first --item test.jsonl:17 --of reference",
    ),
    "export": (
        "tuneful export runs/first --to gguf --type q8_0",
        "tuneful export runs/first --to ollama -o my-model",
        "tuneful export runs/first --to adapter --type gguf",
        "tuneful export runs/first --to huggingface --push me/my-model",
    ),
    "doctor": ("tuneful doctor", "tuneful doctor --model my-model.gguf", "tuneful doctor --json"),
}
