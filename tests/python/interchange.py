"""Whether Python's PEFT and transformers read what reprpo writes: logits of both sides, compared.

    python tests/python/interchange.py REPRPO MODEL PAIRS

REPRPO is the command, MODEL a small Hugging Face folder, PAIRS a file of preference pairs. It trains an adapter of every
kind that PEFT has too, and of parts of MODEL's fused modules where it has any, loads it with PeftModel, loads the
exported model with AutoModelForCausalLM, and compares the log-probabilities of the pairs' completions with those that
`reprpo score` prints. Needs torch, transformers and peft.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
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
}
# Parts of fused modules, which PEFT gets as whole ones.
PARTS = {
    "phi3": ["qkv_proj.q_proj", "qkv_proj.v_proj"],
    "gpt_neox": ["query_key_value.q_proj", "query_key_value.v_proj"],
}
IN_PARTS = {
    "lora-parts": [],
    "rslora-parts": ["adapter.use_rslora=true", 'adapter.rank_pattern={"v_proj" = 4}'],
    "dora-parts": ["adapter.use_dora=true"],
    "ia3-parts": ["adapter.feedforward_modules=[]"],
}
LIMIT = 1e-4
# What PEFT says of a field that it does not know.
warnings.filterwarnings("error", message="Unexpected keyword")


def logps(model, tokenizer, pairs):
    """Sum of the completion's log-probabilities, of every pair's two sides; prompt and completion apart, EOS at the end."""
    sums = []
    for pair in pairs:
        prompt = tokenizer(pair["prompt"], add_special_tokens=False)["input_ids"]
        for side in ("chosen", "rejected"):
            completion = tokenizer(pair[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            ids = torch.tensor([prompt + completion])
            with torch.no_grad():
                logits = model(ids).logits[0, :-1].log_softmax(-1)
            scored = logits.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            sums.append(scored.sum().item())
    return torch.tensor(sums)


def main(reprpo, model, pairs_file):
    pairs = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()][:6]
    tokenizer = AutoTokenizer.from_pretrained(model)
    parts = PARTS.get(AutoConfig.from_pretrained(model).model_type, [])
    in_parts = {name: [*sets, f"adapter.target_modules={json.dumps(parts)}"] for name, sets in IN_PARTS.items() if parts}
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder) / "pairs.jsonl"
        some.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

        def run(*args):
            return subprocess.run([reprpo, *map(str, args)], check=True, capture_output=True, text=True).stdout

        for name, sets in {**ADAPTERS, **in_parts}.items():
            out = Path(folder) / name
            kind = name.removesuffix("-parts")
            method = {"rslora": "lora", "dora": "lora"}.get(kind, kind)
            sets = [*sets, "train.lr=1e-2", "train.warmup=0", "train.epochs=3"]
            run("run", "--no-eval", "--device", "cpu", "--dtype", "f32", "--model", model, "--dataset", some, "--adapter", method, "--out", out,
                *[word for s in sets for word in ("--set", s)])
            scored = [json.loads(line) for line in run("score", "--device", "cpu", "--dtype", "f32", "--model", model, "--load-adapter", out / "adapter",
                                                       "--data", some, "--json").splitlines()]
            ours = torch.tensor([line[side]["logp_sum"] for line in scored for side in ("chosen", "rejected")])
            base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            before = logps(base, tokenizer, pairs)
            theirs = logps(PeftModel.from_pretrained(base, out / "adapter"), tokenizer, pairs)
            merged = Path(folder) / f"{name}-merged"
            run("export", out, "--merge", "--out", merged)
            exported = logps(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32), AutoTokenizer.from_pretrained(merged), pairs)
            relative = lambda a, b: ((a - b).abs() / b.abs()).max().item()
            off, off_merged = relative(ours, theirs), relative(exported, theirs)
            worst = max(worst, off, off_merged)
            print(f"{name:12} in PEFT off by {off:.1e}, exported off by {off_merged:.1e}, moved from the base by {relative(theirs, before):.1e}")
    print(f"worst {worst:.1e}, at most {LIMIT:.0e}")
    return worst <= LIMIT


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(0 if main(*sys.argv[1:]) else 1)
