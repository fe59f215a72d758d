"""Checks that PEFT and transformers can read the adapters and models that reprpo writes.

    python tests/python/interchange.py REPRPO MODEL PAIRS

REPRPO is the command, MODEL is a small Hugging Face folder, and PAIRS is a file of preference
pairs. For every adapter kind that PEFT supports, and for parts of MODEL's fused modules if there
are any, the script trains an adapter, loads it with PeftModel, and loads the exported model with
AutoModelForCausalLM. It compares the log-probabilities of the completions with those that `reprpo
score` prints. Then it does the same, without the export, for every adapter with every form of
target modules and every restriction of layers, and checks that PEFT adapts exactly the modules in
the file. It needs torch, transformers and peft.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ADAPTERS = {
    "lora": [],
    "rslora": ["adapter.use_rslora=true"],
    "dora": ["adapter.use_dora=true"],
    "hra": [],
    "oft": [],
    "boft": [],
    "ia3": [],
    "vera": [],
    "pissa": ["adapter.init=pissa"],
    "olora": ["adapter.init=olora", "adapter.use_rslora=true"],
    "delora": [],
    "miss": ["adapter.r=7"],
    "miss-bat": ["adapter.r=8", "adapter.variant=bat"],
    "miss-mini": ["adapter.variant=mini", "adapter.mini_r=8"],
    "shira": [],
    "road": ["adapter.group_size=8"],
    "road-4": ["adapter.group_size=8", "adapter.variant=road_4"],
}
# Parts of fused modules. The saved adapter contains the whole modules, because PEFT cannot adapt
# parts.
PARTS = {
    "phi3": ["qkv_proj.q_proj", "qkv_proj.v_proj"],
    "gpt_neox": ["query_key_value.q_proj", "query_key_value.v_proj"],
    "gpt2": ["c_attn.q_proj", "c_attn.v_proj"],
}
IN_PARTS = {
    "lora-parts": [],
    "rslora-parts": ["adapter.use_rslora=true", 'adapter.rank_pattern={"v_proj" = 4}'],
    "dora-parts": ["adapter.use_dora=true"],
    "pissa-parts": ["adapter.init=pissa"],
    "miss-parts": [],
    "ia3-parts": ["adapter.feedforward_modules=[]"],
}
# Name suffixes of the adapted modules, for models with other module names than Llama.
ENDS = {
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
}
# Adapters that PEFT does not support for the modules of a model. GPT-2's modules are `Conv1D`.
NOT_IN_PEFT = {"gpt2": ["hra", "oft", "boft", "delora", "miss", "shira", "road"]}
# Forms of `target_modules` that select the modules with these suffixes, or all linear modules.
FORMS = {
    "ends": lambda ends: json.dumps(ends),
    "expression": lambda ends: rf".*\.({'|'.join(ends)})",
    "expression of Rust's": lambda ends: rf".*\.(?<which>{'|'.join(ends)})",
    "all-linear": lambda ends: "all-linear",
}
# The layers are restricted by the user or by the deepest tap: later layers do not affect the states
# that it reads.
RESTRICTIONS = {
    "every layer": ["--intervention", "dpo"],
    "layers 0 and 2": ["--intervention", "dpo", "--set", "adapter.layers_to_transform=[0, 2]"],
    "up to a tap": ["--intervention", "mse", "--layers", "1"],
}
GRID = {
    "lora": [],
    "hra": [],
    "oft": ["adapter.oft_block_size=8"],
    "boft": [],
    "vera": [],
    "delora": [],
    "miss": [],
    "shira": [],
    "road": ["adapter.group_size=8"],
    "ia3": [],
    "ia3 by expression": [],
}
LIMIT = 1e-4
# PEFT warns with this text about an unknown field of a saved adapter.
warnings.filterwarnings("error", message="Unexpected keyword")


def logps(model, tokenizer, pairs):
    """Returns Σ log p of both completions of each pair.

    Prompt and completion are tokenised separately, and EOS is added to the completion.
    """
    sums = []
    for pair in pairs:
        prompt = tokenizer(pair["prompt"], add_special_tokens=False)["input_ids"]
        for side in ("chosen", "rejected"):
            completion = tokenizer(pair[side], add_special_tokens=False)["input_ids"] + [
                tokenizer.eos_token_id
            ]
            ids = torch.tensor([prompt + completion])
            with torch.no_grad():
                logits = model(ids).logits[0, :-1].log_softmax(-1)
            scored = logits.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            sums.append(scored.sum().item())
    return torch.tensor(sums)


def grid(kind):
    """Yields the name and flags of each adapter with each form of targets and of layers."""
    ends = ENDS.get(kind, ["v_proj", "down_proj"])
    for adapter, more in GRID.items():
        if adapter in NOT_IN_PEFT.get(kind, []):
            continue
        for form, targets in FORMS.items():
            for restriction, flags in RESTRICTIONS.items():
                sets = [*more, f"adapter.target_modules={targets(ends)}"]
                if adapter == "lora":
                    sets.append(
                        f'adapter.rank_pattern={{"(?i){ends[0].upper()}" = 3, "0\\\\..*" = 5}}'
                    )
                if adapter == "ia3":
                    sets.append(f"adapter.feedforward_modules={json.dumps(ends[1:])}")
                if adapter == "ia3 by expression":
                    sets.append(f"adapter.feedforward_modules=.*{ends[1]}")
                yield (
                    f"{adapter}, {form}, {restriction}",
                    [
                        *flags,
                        *[word for s in sets for word in ("--set", s)],
                        "--adapter",
                        adapter.split()[0],
                    ],
                )


def main(reprpo, model, pairs_file):
    pairs = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()][:6]
    tokenizer = AutoTokenizer.from_pretrained(model)
    kind_of_model = AutoConfig.from_pretrained(model).model_type
    parts = PARTS.get(kind_of_model, [])
    in_parts = {
        name: [*sets, f"adapter.target_modules={json.dumps(parts)}"]
        for name, sets in IN_PARTS.items()
        if parts
    }
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        pairs_copy = Path(folder) / "pairs.jsonl"
        pairs_copy.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

        def run(*args):
            process = subprocess.run([reprpo, *map(str, args)], capture_output=True, text=True)
            if process.returncode:
                sys.exit(f"{' '.join(map(str, args))}\n{process.stderr}")
            unreadable.append("PEFT cannot read this adapter" in process.stderr)
            return process.stdout

        unreadable = []

        def scores(adapter):
            out = run(
                "score",
                "--device",
                "cpu",
                "--dtype",
                "f32",
                "--model",
                model,
                "--load-adapter",
                adapter,
                "--data",
                pairs_copy,
                "--json",
            )
            return torch.tensor(
                [
                    json.loads(line)[side]["logp_sum"]
                    for line in out.splitlines()
                    for side in ("chosen", "rejected")
                ]
            )

        def relative(a, b):
            return ((a - b).abs() / b.abs()).max().item()

        for name, sets in {**ADAPTERS, **in_parts}.items():
            out = Path(folder) / name
            kind = name.removesuffix("-parts")
            of_lora = ["rslora", "dora", "pissa", "olora"]
            method = "lora" if kind in of_lora else kind.split("-")[0]
            sets = [*sets, "train.lr=1e-2", "train.warmup=0", "train.epochs=3"]
            run(
                "run",
                "--no-eval",
                "--device",
                "cpu",
                "--dtype",
                "f32",
                "--model",
                model,
                "--dataset",
                pairs_copy,
                "--adapter",
                method,
                "--out",
                out,
                *[word for s in sets for word in ("--set", s)],
            )
            warned = unreadable[-1]
            ours = scores(out / "adapter")
            base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            before = logps(base, tokenizer, pairs)
            has = method not in NOT_IN_PEFT.get(kind_of_model, [])
            if warned == has:
                sys.exit(
                    f"{name}: the warning that PEFT cannot read the adapter is"
                    f" {'wrong' if has else 'missing'}"
                )
            # If PEFT does not support the adapter, only the exported model is compared.
            theirs = (
                logps(PeftModel.from_pretrained(base, out / "adapter"), tokenizer, pairs)
                if has
                else ours
            )
            merged = Path(folder) / f"{name}-merged"
            run("export", out, "--merge", "--out", merged)
            exported = logps(
                AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32),
                AutoTokenizer.from_pretrained(merged),
                pairs,
            )
            off, off_merged = relative(ours, theirs), relative(exported, theirs)
            worst = max(worst, off, off_merged)
            print(
                f"{name:12} in PEFT off by {off:.1e}, exported off by {off_merged:.1e},"
                f" moved from the base by {relative(theirs, before):.1e}"
            )

        base = logps(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), tokenizer, pairs
        )
        for i, (name, flags) in enumerate(grid(kind_of_model)):
            out = Path(folder) / f"grid-{i}"
            sets = [
                word
                for s in ("train.lr=1e-2", "train.warmup=0", "train.epochs=2")
                for word in ("--set", s)
            ]
            run(
                "run",
                "--no-eval",
                "--device",
                "cpu",
                "--dtype",
                "f32",
                "--model",
                model,
                "--dataset",
                pairs_copy,
                "--out",
                out,
                *sets,
                *flags,
            )
            peft = PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), out / "adapter"
            )
            theirs = logps(peft, tokenizer, pairs)
            off, moved = relative(scores(out / "adapter"), theirs), relative(theirs, base)
            # An untrained adapter does not change the scores, so a module that PEFT adds would go
            # unnoticed. The names are therefore compared too.
            adapted = {
                name for name, module in peft.named_modules() if isinstance(module, BaseTunerLayer)
            }
            keys = [
                key
                for key in load_file(out / "adapter/adapter_model.safetensors")
                if ".layers." in key or ".h." in key
            ]
            trained = {next((a for a in adapted if key.startswith(f"{a}.")), key) for key in keys}
            if adapted != trained or moved == 0:
                sys.exit(
                    f"{name}: PEFT adapts {sorted(adapted)}, but the file contains"
                    f" {sorted(trained)}; moved by {moved:.1e}"
                )
            worst = max(worst, off)
            print(
                f"{name:45} in PEFT off by {off:.1e}, moved from the base by {moved:.1e}",
                flush=True,
            )
    print(f"worst {worst:.1e}, at most {LIMIT:.0e}")
    return worst <= LIMIT


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(0 if main(*sys.argv[1:]) else 1)
