"""Writes values.json: scores of plain text by a tiny model of every architecture in transformers.

Run `python make.py` in this folder with torch 2.11 and transformers 5.23.

The script writes folders with config.json, model.safetensors and tokenizer.json, and reads them
with AutoTokenizer and AutoModelForCausalLM. The weights are not stored: the tests compute the
same values as `weight` in core/src/model/fixtures/make.py.
"""

import importlib.util
import json
import os
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

spec = importlib.util.spec_from_file_location(
    "fixtures",
    os.path.join(
        os.path.dirname(os.path.abspath(__file__)), "../../core/src/model/fixtures/make.py"
    ),
)
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)

SPECIAL = ["<s>", "</s>", "<pad>"]
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "a n", "Ġ a", "e r", "o u", "Ġ s", "r e"]
VOCAB = (
    SPECIAL
    + [chr(c) for c in range(ord("a"), ord("z") + 1)]
    + ["Ġ", ".", "Ċ"]
    + [m.replace(" ", "") for m in MERGES]
)
PAIRS = [
    ("the cat sat on", " the mat.", " a hat and ran."),
    ("an inner harbour is", " where the boats rest in the winter.", " out."),
    ("ask\nthen", " answer.", " run there."),
    ("s", " so it is said here and there again.", " no"),
]
SIZES = dict(
    vocab_size=len(VOCAB), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    rope_parameters=dict(rope_type="default", rope_theta=1e4),
)  # fmt: skip
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = dict(
    rope_type="yarn",
    rope_theta=1e4,
    factor=8.0,
    original_max_position_embeddings=16,
    attention_factor=1.25,
    beta_fast=24.0,
    beta_slow=2.0,
)
GEMMA_ROPE = dict(
    full_attention=dict(rope_type="default", rope_theta=1e6),
    sliding_attention=dict(rope_type="default", rope_theta=1e4),
)
ARCHITECTURES = {
    "llama": dict(SIZES, rms_norm_eps=1e-5),
    "mistral": dict(SIZES, rms_norm_eps=1e-5, sliding_window=6, head_dim=8),
    "qwen2": dict(SIZES, rms_norm_eps=1e-6),
    "qwen3": dict(SIZES, rms_norm_eps=1e-6, head_dim=12, tie_word_embeddings=True),
    "phi3": dict(SIZES, rms_norm_eps=1e-5, sliding_window=None),
    "gemma3_text": dict(SIZES, rms_norm_eps=1e-6, head_dim=12, query_pre_attn_scalar=12,
        sliding_window=6, rope_parameters=GEMMA_ROPE, layer_types=LAYERS,
        final_logit_softcapping=7.0, tie_word_embeddings=True),
    "gemma2": dict(SIZES, rms_norm_eps=1e-6, head_dim=12, query_pre_attn_scalar=12,
        sliding_window=6, layer_types=LAYERS, attn_logit_softcapping=2.0,
        final_logit_softcapping=7.0, tie_word_embeddings=True),
    "olmo2": dict(SIZES, rms_norm_eps=1e-6),
    "olmo3": dict(SIZES, rms_norm_eps=1e-6, sliding_window=6, layer_types=LAYERS,
        rope_parameters=dict(
            full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=1e4))),
    "smollm3": dict(SIZES, rms_norm_eps=1e-6, num_hidden_layers=5, tie_word_embeddings=True),
    "granite": dict(SIZES, rms_norm_eps=1e-6, attention_bias=True, mlp_bias=True,
        attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.4,
        logits_scaling=2.0),
    "gpt2": dict(vocab_size=len(VOCAB), n_embd=32, n_inner=48, n_layer=3, n_head=4, n_positions=128,
        layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=1),
    "gpt_neox": {k: v for k, v in dict(SIZES, layer_norm_eps=1e-5, rope_parameters=dict(
        rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)).items()
        if k != "num_key_value_heads"},
}  # fmt: skip


def tokenizer_json(bos):
    added = [
        dict(
            id=i,
            content=t,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=False,
            special=True,
        )
        for i, t in enumerate(SPECIAL)
    ]
    begin = [dict(SpecialToken=dict(id="<s>", type_id=0))] if bos else []
    template = dict(
        type="TemplateProcessing",
        single=begin + [dict(Sequence=dict(id="A", type_id=0))],
        pair=begin
        + [dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))],
        special_tokens={"<s>": dict(id="<s>", ids=[0], tokens=["<s>"])} if bos else {},
    )
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None,
        end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False,
        vocab={t: i for i, t in enumerate(VOCAB)},
        merges=[m.split(" ") for m in MERGES])  # fmt: skip
    return dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
        pre_tokenizer=level, post_processor=template, decoder=level, model=model)  # fmt: skip


TOKENIZER_CONFIG = dict(
    tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
)


def folder(at, architecture, bos):
    config = dict(ARCHITECTURES[architecture], model_type=architecture)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(json.dumps(config))))
    names = fixtures.own_tensors(model)
    tensors = {
        name: torch.from_numpy(fixtures.weight(name, tuple(t.shape))) for name, t in names.items()
    }
    save_file(tensors, f"{at}/model.safetensors", metadata={"format": "pt"})
    for name, value in [
        ("config.json", config),
        ("tokenizer.json", tokenizer_json(bos)),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ]:
        with open(f"{at}/{name}", "w") as out:
            json.dump(value, out)
    return config, {name: list(t.shape) for name, t in names.items()}


def score(model, tokenizer, prompt, completion):
    before = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + completion)["input_ids"] + [tokenizer.eos_token_id]
    assert ids[: len(before)] == before
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logits[i - 1, ids[i]].item() for i in range(len(before), len(ids)))


def main():
    models = {}
    for architecture in ARCHITECTURES:
        scores = {}
        for rule, bos in [("plain", False), ("bos", True)]:
            with tempfile.TemporaryDirectory() as at:
                config, shapes = folder(at, architecture, bos)
                tokenizer = AutoTokenizer.from_pretrained(at)
                # Only eager attention applies the soft cap of Gemma 2.
                eager = dict(attn_implementation="eager") if architecture == "gemma2" else {}
                model = AutoModelForCausalLM.from_pretrained(
                    at, dtype=torch.float32, **eager
                ).eval()
                scores[rule] = [
                    [score(model, tokenizer, p, c), score(model, tokenizer, p, r)]
                    for p, c, r in PAIRS
                ]
            print(
                architecture, rule, *(f"{a:.3f}/{b:.3f}" for a, b in scores[rule]), file=sys.stderr
            )
        models[architecture] = dict(config=config, tensors=shapes, scores=scores)
    pairs = [dict(prompt=p, chosen=c, rejected=r) for p, c, r in PAIRS]
    common = dict(pairs=pairs, tokens=VOCAB, special=len(SPECIAL), merges=MERGES,
        tokenizer=tokenizer_json(False), with_bos=tokenizer_json(True)["post_processor"],
        tokenizer_config=TOKENIZER_CONFIG)  # fmt: skip
    lines = ",\n".join(
        f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in common.items()
    )
    of = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in models.items())
    with open("values.json", "w") as out:
        out.write(f'{{\n{lines},\n"models": {{\n{of}\n}}\n}}\n')


main()
