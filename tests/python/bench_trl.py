"""The peer's side of `cargo xtask bench-peer`: TRL's DPOTrainer with an adapter of PEFT.

    python bench_trl.py prepare --model DIR|FILE.gguf --data FILE --out DIR --pairs N --max-length N
    python bench_trl.py train --model DIR --data PAIRS.jsonl [settings]

`prepare` writes the pairs that both sides train on to `OUT/pairs.jsonl`. It takes the first pair of
each prompt, and skips prompts that fill `--max-length`. The data is a Parquet or JSON Lines file
with the columns `prompt`, `chosen` and `rejected`. A GGUF model is converted to a Hugging Face
folder in float32, `OUT/model`. The last line of the output is the path of the model's folder.

`train` trains on the pairs once, in the order of the file, and prints one line of JSON. The pairs
of the first batch come twice: the first step is warm-up, and all further steps are measured.

The settings match those of `reprpo bench`: the sigmoid loss, AdamW in float32 with clipping at
norm 1, batches of `--batch` pairs without accumulation, no dropout, no activation checkpointing,
and frozen weights in `--dtype`. The LoRA scale is 2. Without `--precompute`, each step runs the
reference, which is the model without the adapter. With it, TRL computes all reference values before
the first step, so that they count as start-up.

`--count` adds a second, unmeasured pass that counts the floating-point operations of all matrix
products and of attention with torch's FlopCounterMode. It includes padding and masked products,
because the peer computes them.

Versions: torch 2.11.0, transformers 5.23.0, peft 0.21.2, trl 1.16.0, datasets 5.2.0,
pyarrow 26.0.1, accelerate 1.15.0, and for GGUF files gguf 0.17.1, on Python 3.11.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare, train = commands.add_parser("prepare"), commands.add_parser("train")
    for command in (prepare, train):
        command.add_argument("--model", required=True, type=Path)
        command.add_argument("--data", required=True, type=Path)
        command.add_argument("--max-length", type=int, default=256)
    prepare.add_argument("--out", required=True, type=Path)
    prepare.add_argument("--pairs", type=int, default=64)
    train.add_argument("--batch", type=int, default=4)
    train.add_argument("--adapter", default="lora", choices=["lora", "dora", "hra"])
    train.add_argument("--rank", type=int, default=16)
    train.add_argument("--targets", default="q_proj,v_proj")
    train.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    train.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    train.add_argument("--threads", type=int, default=1)
    train.add_argument("--precompute", action="store_true")
    train.add_argument("--count", action="store_true")
    return parser.parse_args()


def rows(file):
    """Yields the rows of a data file as dictionaries."""
    if file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file).to_pylist()
    else:
        with open(file) as lines:
            yield from (json.loads(line) for line in lines if line.strip())


def prompt_length(tokenizer, prompt):
    if isinstance(prompt, str):
        return len(tokenizer(prompt).input_ids)
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    return len(ids["input_ids"])


def prepare(args):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args.out.mkdir(parents=True, exist_ok=True)
    model = args.model
    if model.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": model.parent, "gguf_file": model.name}
        model = args.out / "model"
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
        # transformers refuses to save a model that comes from a GGUF file, so copy its weights.
        config = loaded.config
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype="float32")
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(model)
        AutoTokenizer.from_pretrained(**source).save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    known, pairs = set(), []
    for row in rows(args.data):
        key = json.dumps(row["prompt"])
        if key in known or prompt_length(tokenizer, row["prompt"]) >= args.max_length:
            continue
        known.add(key)
        pairs.append({name: row[name] for name in ("prompt", "chosen", "rejected")})
        if len(pairs) == args.pairs:
            break
    if len(pairs) < args.pairs:
        sys.exit(f"{args.data} only has {len(pairs)} prompts that can be used, not {args.pairs}")
    with open(args.out / "pairs.jsonl", "w") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    print(model)


def age():
    """Seconds since the start of this process, including the start of Python."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        start = int(stat.read().rsplit(") ", 1)[1].split()[19])
        return float(uptime.read().split()[0]) - start / os.sysconf("SC_CLK_TCK")


class Phases:
    """Adds up the wall time of functions by phase."""

    def __init__(self, synchronise):
        self.synchronise, self.seconds = synchronise, {}

    def add(self, phase, seconds):
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def timed(self, function, phase):
        """Returns `function` with a clock. `phase` is a name, or a function that returns one."""

        def measured(*args, **kwargs):
            name = phase() if callable(phase) else phase
            self.synchronise()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self.synchronise()
            self.add(name, time.perf_counter() - begin)
            return result

        return measured


def adapter(args):
    import peft

    shared = {"target_modules": args.targets.split(","), "task_type": "CAUSAL_LM", "r": args.rank}
    if args.adapter == "hra":
        return peft.HRAConfig(**shared)
    return peft.LoraConfig(
        **shared, lora_alpha=2 * args.rank, lora_dropout=0.0, use_dora=args.adapter == "dora"
    )


def flop_counter():
    """A counter of operations that also knows the fused attention of the CPU."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def attention(query, key, *_, **__):
        batch, heads, queries, width = query
        return 4 * batch * heads * queries * key[-2] * width

    def attention_backward(_, query, key, *__, **___):
        return 2 * attention(query, key)

    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        },
    )


def train(args):
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import peft
    import torch
    import transformers
    import trl
    from datasets import Dataset

    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        sys.exit("torch does not find a GPU")
    torch.set_num_threads(args.threads)
    synchronise = torch.cuda.synchronize if cuda else lambda: None
    pairs = list(rows(args.data))
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    )
    model = peft.get_peft_model(model, adapter(args))
    phases, marks, counter = Phases(synchronise), [], None

    class Clock(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_, **__):
            synchronise()
            self.begin = time.perf_counter()

        def on_optimizer_step(self, *_, **__):
            synchronise()
            phases.add("optimiser", time.perf_counter() - self.begin)

        def on_step_end(self, *_, **__):
            synchronise()
            marks.append(counter.get_total_flops() if counter else time.perf_counter())
            if len(marks) == 1:
                phases.seconds.clear()

    folder = tempfile.TemporaryDirectory()
    settings = trl.DPOConfig(
        output_dir=folder.name,
        report_to="none",
        use_cpu=not cuda,
        bf16=cuda and args.dtype == "bfloat16",
        gradient_checkpointing=False,
        max_length=args.max_length,
        per_device_train_batch_size=args.batch,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-5,
        precompute_ref_log_probs=args.precompute,
    )
    trainer = trl.DPOTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(pairs[: args.batch] + pairs),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    # Logged values must not be printed to standard output, which is for the result.
    trainer.remove_callback(transformers.PrinterCallback)
    data = trainer.train_dataset
    if len(data) != args.batch + len(pairs):
        sys.exit(f"TRL drops {args.batch + len(pairs) - len(data)} of the pairs")
    lengths = [
        [
            min(len(row["prompt_ids"]) + len(row[f"{side}_ids"]), args.max_length)
            for side in ("chosen", "rejected")
        ]
        for row in data
    ][args.batch :]
    trainer.data_collator = phases.timed(trainer.data_collator, "data")
    trainer.model.forward = phases.timed(
        trainer.model.forward, lambda: "forward" if torch.is_grad_enabled() else "reference"
    )
    trainer.accelerator.backward = phases.timed(trainer.accelerator.backward, "backward")
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = phases.timed(clip, "optimiser")
    trainer.log = phases.timed(trainer.log, "logging")
    start = age()
    trainer.train()
    seconds, times = marks[-1] - marks[0], dict(phases.seconds)
    if cuda:
        peak = torch.cuda.max_memory_reserved()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    operations = None
    if args.count:
        marks.clear()
        with flop_counter() as counter:
            trainer.train()
        operations = marks[-1] - marks[0]
    batches = [lengths[i : i + args.batch] for i in range(0, len(lengths), args.batch)]
    padded = sorted(2 * len(batch) * max(map(max, batch)) for batch in batches)
    result = {
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "pairs": len(pairs),
        "tokens": sum(map(sum, lengths)),
        "rows": padded[len(padded) // 2],
        "seconds": seconds,
        "pairs_per_second": len(pairs) / seconds,
        "tokens_per_second": sum(map(sum, lengths)) / seconds,
        "start_seconds": start,
        "peak_bytes": peak,
        "phases": {**times, "other": max(0.0, seconds - sum(times.values()))},
        "operations": operations,
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, trl)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    given = arguments()
    prepare(given) if given.command == "prepare" else train(given)
