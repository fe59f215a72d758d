#!/usr/bin/env python3
"""Computes the reference values in this folder with transformers, PEFT and TRL.

    python make.py [--only models,peft,steering,modules,trl,free,tokens,scores,original,innerpo,
                           data,baselines]
                   [--smollm2 FILE.gguf]

README.md lists the pinned versions and describes each file. Everything is computed on the CPU in
float32 with eager attention from the texts in texts.py. Nothing is imported from this project.
"""
import argparse
import copy
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (AutoConfig, AutoModelForCausalLM, AutoTokenizer,
                          PreTrainedTokenizerFast)

import texts

HERE = Path(__file__).resolve().parent
# Three layers are the fewest for which the default layers of a run, range(.3,-2), select one.
VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, INNER = 384, 32, 3, 4, 2, 72


def rng(seed):
    return torch.Generator().manual_seed(seed)


def write_json(path, value, indent=1):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=True) + "\n")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def pairs():
    """The 24 preference pairs of trl/pairs.jsonl."""
    return [{"prompt": f"Question: {question}\nAnswer in one sentence.\n", "chosen": good,
             "rejected": bad}
            for question, good, bads in texts.QUESTIONS for bad in bads]


# Chat templates.

TURN = "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content or '') ~ '<|im_end|>\\n' }}"
ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
EACH, END = "{% for m in messages %}", "{% endfor %}"
TEMPLATES = {
    "plain": EACH + TURN + END + ANSWER,
    # Both the template and the tokenizer (for plain text) add a BOS.
    "bos": "{{ bos_token }}" + EACH + TURN + END + ANSWER,
    # The generation prompt opens a thought, but a finished turn has none.
    "think": EACH + "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
             "{% if m.reasoning_content %}"
             "{{ '<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n' }}{% endif %}"
             "{{ m.content ~ '<|im_end|>\\n' }}{% else %}" + TURN + "{% endif %}" + END
             + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}"
               "{% endif %}",
    # The system message is part of the last turn if the user wrote that turn.
    "moved_system": "{% set rule = namespace(text='') %}" + EACH
                    + "{% if m.role == 'system' %}{% set rule.text = m.content %}"
                      "{% elif loop.last and m.role == 'user' and rule.text %}"
                      "{{ '<|im_start|>user\\n' ~ rule.text ~ '\\n\\n' ~ m.content "
                      "~ '<|im_end|>\\n' }}{% else %}" + TURN + "{% endif %}" + END + ANSWER,
    # Tools are listed first, and tool calls are written as JSON.
    "tools": "{% if tools %}{{ '<|im_start|>system\\nYou may call:\\n' }}"
             "{% for t in tools %}{{ t.function | tojson }}{{ '\\n' }}{% endfor %}"
             "{{ '<|im_end|>\\n' }}{% endif %}" + EACH
             + "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content or '') }}"
               "{% for c in (m.tool_calls or []) %}"
               "{{ '[' ~ c.function.name ~ ' ' ~ (c.function.arguments | tojson) ~ ']' }}"
               "{% endfor %}{{ '<|im_end|>\\n' }}" + END + ANSWER,
    # A switch that rows of a data set can set.
    "switch": EACH + TURN + END + ANSWER
              + "{% if add_generation_prompt and enable_thinking is defined "
                "and not enable_thinking %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}",
}


# Models.

def write_tokenizer(out):
    """Trains and saves a small byte-level BPE tokenizer."""
    corpus = list(texts.PARAGRAPHS)
    for pair in pairs():
        corpus += pair.values()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|endoftext|>", model_max_length=2048)
    tokenizer.chat_template = TEMPLATES["plain"]
    tokenizer.save_pretrained(out / "tokenizer")
    return tokenizer


COMMON = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.25, "attention_dropout": 0.0,
}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh",
         "rms_norm_eps": 1e-6}
WINDOW = {"sliding_window": 4}
LAYER_TYPES = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ARCHITECTURES = {
    "gemma2": {**COMMON, **GEMMA, **WINDOW, **LAYER_TYPES, **TIED, "attn_logit_softcapping": 12.0,
               "final_logit_softcapping": 9.0},
    "gemma3_text": {**COMMON, **GEMMA, **WINDOW, **LAYER_TYPES, **TIED},
    "gpt2": {"vocab_size": VOCAB, "n_embd": WIDTH, "n_inner": INNER, "n_layer": LAYERS,
             "n_head": HEADS, "n_positions": 256, "initializer_range": 0.25, "attn_pdrop": 0.0,
             "embd_pdrop": 0.0, "resid_pdrop": 0.0, "activation_function": "gelu_new",
             "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 96,
                 "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                 "max_position_embeddings": 2048, "initializer_range": 0.25, "rotary_pct": 0.25,
                 "use_parallel_residual": True, "hidden_act": "gelu", "attention_dropout": 0.0,
                 "hidden_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2},
    "granite": {**COMMON, **TIED, "rms_norm_eps": 1e-6, "embedding_multiplier": 2.5,
                "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 1.5},
    "llama": {**COMMON, **UNTIED, "rms_norm_eps": 1e-5},
    "llama_tied_rope3": {**COMMON, **TIED, "rms_norm_eps": 1e-5, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256}},
    "mistral": {**COMMON, **WINDOW, "rms_norm_eps": 1e-5, "head_dim": 8},
    "olmo2": {**COMMON, **UNTIED, "rms_norm_eps": 1e-6},
    "olmo3": {**COMMON, **UNTIED, **WINDOW, **LAYER_TYPES, "rms_norm_eps": 1e-6},
    "phi3": {**COMMON, "rms_norm_eps": 1e-5, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "qwen2": {**COMMON, **TIED, "rms_norm_eps": 1e-6},
    "qwen3": {**COMMON, **TIED, "rms_norm_eps": 1e-6, "head_dim": 16},
    "smollm3": {**COMMON, **TIED, "rms_norm_eps": 1e-6, "no_rope_layers": [1, 0, 1]},
}
INPUTS = ("o_proj", "down_proj", "dense_4h_to_h", "attention.dense")
OUTPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def ragged(seed, rows, low, high):
    """Returns random ids `[rows, t]`, padded on the right, and their mask."""
    g = rng(seed)
    lengths = torch.randint(low, high, (rows,), generator=g)
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    return torch.randint(3, VOCAB, mask.shape, generator=g) * mask, mask


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32).eval()


def write_models(out):
    tokenizer = write_tokenizer(out)
    for number, (name, fields) in enumerate(ARCHITECTURES.items()):
        torch.manual_seed(100 + number)
        model_type = "llama" if name.startswith("llama") else name
        config = AutoConfig.for_model(model_type, **fields)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        g = rng(200 + number)
        for parameter in model.parameters():
            # With the initial values, one and zero, a norm or bias that is not applied goes
            # unnoticed.
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=g)
        folder = out / "models" / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

        ids, mask = ragged(300 + number, 3, 7, 13)
        io = {"input_ids": ids, "attention_mask": mask}

        def keep(key, of_input):
            def hook(_, inputs, output):
                value = inputs[0] if of_input else output
                io[key] = value.detach().clone().contiguous()
            return hook

        for module_name, module in model.named_modules():
            if module_name.endswith(INPUTS):
                module.register_forward_hook(keep(f"in.{module_name}", True))
            if name == "llama" and module_name.endswith(OUTPUTS):
                module.register_forward_hook(keep(f"out.{module_name}", False))
        with torch.no_grad():
            got = model(input_ids=ids, attention_mask=mask, output_hidden_states=True,
                        use_cache=False)
        io["logits"] = got.logits.contiguous()
        for k, state in enumerate(got.hidden_states):
            io[f"hidden_states.{k}"] = state.contiguous()
        save_file(io, folder / "io.safetensors")


# Adapters.

def write_peft(out):
    import peft
    qv = ["q_proj", "v_proj"]
    every = [*OUTPUTS, "o_proj", "down_proj"]
    lora = {"r": 4, "lora_alpha": 8}
    adapters = {
        "boft": (peft.BOFTConfig, {"boft_block_size": 8, "boft_n_butterfly_factor": 2,
                                   "target_modules": qv}),
        "dora": (peft.LoraConfig, {**lora, "use_dora": True, "target_modules": every}),
        "hra": (peft.HRAConfig, {"r": 4, "target_modules": qv}),
        "hra_gs": (peft.HRAConfig, {"r": 4, "apply_GS": True, "target_modules": qv}),
        "hra_odd_all": (peft.HRAConfig, {"r": 3, "target_modules": every}),
        "ia3": (peft.IA3Config, {"target_modules": ["k_proj", "v_proj", "down_proj"],
                                 "feedforward_modules": ["down_proj"]}),
        "lora": (peft.LoraConfig, {"r": 4, "lora_alpha": 12, "target_modules": qv}),
        "lora_all": (peft.LoraConfig, {**lora, "target_modules": every}),
        "oft": (peft.OFTConfig, {"r": 0, "oft_block_size": 8, "use_cayley_neumann": False,
                                 "target_modules": qv}),
        "oft_neumann": (peft.OFTConfig, {"r": 0, "oft_block_size": 8, "use_cayley_neumann": True,
                                         "target_modules": qv}),
        "rslora": (peft.LoraConfig, {**lora, "use_rslora": True, "target_modules": qv}),
        "vera": (peft.VeraConfig, {"r": 8, "target_modules": ["q_proj"],
                                   "save_projection": True}),
        # The seeds depend on the position, so new adapters come last.
        "shira": (peft.ShiraConfig, {"r": 2, "random_seed": 3, "target_modules": every}),
        "road_1": (peft.RoadConfig, {"variant": "road_1", "group_size": 8, "target_modules": qv}),
        "road_2": (peft.RoadConfig, {"variant": "road_2", "group_size": 16, "target_modules": qv}),
        "road_4": (peft.RoadConfig, {"variant": "road_4", "group_size": 8,
                                     "target_modules": every}),
        # With the default of λ, 15, the rounding errors of this small model exceed 1e-5.
        "delora": (peft.DeloraConfig, {"r": 4, "delora_lambda": 5, "rank_pattern": {"v_proj": 2},
                                       "lambda_pattern": {"down_proj": 2},
                                       "target_modules": every}),
        "miss": (peft.MissConfig, {"r": 4, "target_modules": qv}),
        # 5 does not divide the widths, so the last block is padded.
        "miss_odd": (peft.MissConfig, {"r": 5, "target_modules": every}),
        "miss_mini": (peft.MissConfig, {"r": 5, "mini_r": 8, "init_weights": "mini",
                                        "target_modules": every}),
        "miss_bat": (peft.MissConfig, {"r": 8, "init_weights": "bat", "target_modules": every}),
        "pissa": (peft.LoraConfig, {"r": 4, "lora_alpha": 12, "init_lora_weights": "pissa",
                                    "rank_pattern": {"down_proj": 6},
                                    "alpha_pattern": {"down_proj": 5},
                                    "target_modules": every}),
        "olora": (peft.LoraConfig, {"r": 3, "lora_alpha": 4, "init_lora_weights": "olora",
                                    "use_rslora": True, "target_modules": every}),
    }
    for number, (name, (config, fields)) in enumerate(adapters.items()):
        torch.manual_seed(400 + number)
        ids, mask = ragged(500 + number, 2, 5, 9)
        base = load(out / "models/llama")
        with torch.no_grad():
            base_logits = base(input_ids=ids, attention_mask=mask).logits
        model = peft.get_peft_model(base, config(task_type="CAUSAL_LM", **fields)).eval()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # PEFT converts adapters that change the base model with the help of their initial values.
        start = None
        if fields.get("init_lora_weights") in ("pissa", "olora"):
            start = Path(tempfile.mkdtemp()) / "start"
            model.save_pretrained(start)
        g = rng(600 + number)
        for parameter in trained.values():
            # Makes sure that the adapter changes the output.
            parameter.data += 0.15 * torch.randn(parameter.shape, generator=g)
        folder = out / "peft" / name
        save_adapter(model, folder)
        if start:
            # The conversion loads and deletes another adapter, so use a copy of the model.
            save_adapter(copy.deepcopy(model), folder / "converted",
                         path_initial_model_for_weight_conversion=str(start))
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = (logits * mask[..., None]).square().sum() / (mask.sum() * VOCAB)
        loss.backward()
        io = {"input_ids": ids, "attention_mask": mask, "base_logits": base_logits.contiguous(),
              "logits": logits.detach().contiguous(), "loss": loss.detach().reshape(1)}
        for parameter_name, parameter in trained.items():
            if parameter.grad is not None:
                io["grad." + parameter_name.replace(".default", "")] = parameter.grad.contiguous()
        with torch.no_grad():
            merged = model.merge_and_unload()
            io["merged_logits"] = merged(input_ids=ids, attention_mask=mask).logits.contiguous()
        save_file(io, folder / "io.safetensors")


def write_modules(out):
    """Writes adapters whose files contain more than the tensors of the method."""
    import peft
    lora = {"r": 2, "lora_alpha": 6}
    qv = ["q_proj", "v_proj"]
    every = [*OUTPUTS, "o_proj", "down_proj"]
    cases = {
        "excluded": ("llama", {"target_modules": every, "exclude_modules": [
            "layers.1.self_attn.q_proj", "down_proj"], "lora_dropout": 0.1}),
        "excluded_pattern": ("llama", {"target_modules": every, "layers_to_transform": [0, 2],
                                       "layers_pattern": "layers",
                                       "exclude_modules": r".*\.2\..*(up|gate)_proj"}),
        "bias_all": ("qwen2", {"target_modules": [*qv, "o_proj"], "bias": "all"}),
        "bias_all_gpt2": ("gpt2", {"target_modules": ["c_attn"], "bias": "all",
                                   "fan_in_fan_out": True}),
        "bias_only": ("qwen2", {"target_modules": [*qv, "o_proj"], "bias": "lora_only"}),
        "bias_none": ("llama", {"target_modules": qv, "bias": "all"}),
        "lora_bias": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
        "lora_bias_added": ("llama", {"target_modules": qv, "lora_bias": True}),
        "saved": ("llama", {"target_modules": qv,
                            "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
        "saved_linear": ("llama", {"target_modules": "all-linear",
                                   "modules_to_save": ["layers.1.mlp", "o_proj"]}),
        "saved_gemma2": ("gemma2", {"target_modules": qv,
                                    "modules_to_save": ["layernorm", "model.norm"]}),
        "saved_gpt2": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True,
                                "modules_to_save": ["ln_1", "ln_f", "wpe", "mlp.c_proj"]}),
        "saved_neox": ("gpt_neox", {"target_modules": ["query_key_value"],
                                    "modules_to_save": ["lm_head", "final_layer_norm"]}),
        "saved_qwen3": ("qwen3", {"target_modules": qv,
                                  "modules_to_save": ["embed_tokens", "q_norm"]}),
        "tied_head": ("qwen3", {"target_modules": qv, "modules_to_save": ["lm_head"]}),
        "tied_both": ("qwen3", {"target_modules": qv, "modules_to_save": ["embed_tokens"],
                                "ensure_weight_tying": True}),
        "vocabulary": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        "vocabulary_tied": ("qwen3", {"target_modules": ["q_proj", "embed_tokens"]}),
        "vocabulary_gemma2": ("gemma2", {"target_modules": ["q_proj", "embed_tokens"]}),
        "tokens": ("llama", {"target_modules": qv, "trainable_token_indices": [3, 40, 7]}),
        "tokens_tied": ("qwen3", {"target_modules": qv, "trainable_token_indices": [3, 40, 7]}),
        "tokens_of_head": ("llama", {"target_modules": qv, "trainable_token_indices": {
            "embed_tokens": [5, 9], "lm_head": [11]}}),
        "parameters": ("llama", {"target_modules": qv, "target_parameters": [
            "mlp.up_proj.weight"]}),
        "vocabulary_both": ("qwen3", {"target_modules": ["q_proj", "embed_tokens"],
                                      "ensure_weight_tying": True}),
    }
    for number, (name, (base_name, fields)) in enumerate(cases.items()):
        torch.manual_seed(4000 + number)
        ids, mask = ragged(4100 + number, 2, 5, 9)
        # Some of the tokens that are trained must occur.
        ids[0, :4] = torch.tensor([3, 9, 40, 5])
        batch = {"input_ids": ids, "attention_mask": mask}
        folder = out / "peft_modules" / name
        # An adapter that is not called "default" is saved in a sub-folder.
        adapter = "style" if name == "excluded" else "default"
        config = peft.LoraConfig(task_type="CAUSAL_LM", **{**lora, **fields})
        model = peft.get_peft_model(load(out / "models" / base_name), config, adapter).eval()
        g, noised = rng(4200 + number), set()
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.data_ptr() not in noised:
                noised.add(parameter.data_ptr())
                parameter.data += 0.15 * torch.randn(parameter.shape, generator=g)
        save_adapter(model, folder, base_name)
        # PEFT reads its own file.
        base = load(out / "models" / base_name)
        with torch.no_grad():
            io = {**batch, "base_logits": base(**batch).logits.contiguous()}
            here = folder / adapter if adapter != "default" else folder
            model = peft.PeftModel.from_pretrained(base, here).eval()
            io["logits"] = model(**batch).logits.contiguous()
            # PEFT cannot add a bias to a module without one, and merges an adapter of one of two
            # tied matrices into both.
            if name not in ("lora_bias_added", "vocabulary_tied", "vocabulary_gemma2",
                            "vocabulary_both"):
                merged = model.merge_and_unload()
                io["merged_logits"] = merged(**batch).logits.contiguous()
        save_file(io, folder / "io.safetensors")


def save_adapter(model, folder, base="llama", **more):
    """Saves an adapter without a model card and without a local path as its base model."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
        # The modules are sets, whose order differs between runs.
        config.target_modules = sorted(config.target_modules)
        if isinstance(getattr(config, "exclude_modules", None), set):
            config.exclude_modules = sorted(config.exclude_modules)
    model.save_pretrained(folder, **more)
    (folder / "README.md").unlink(missing_ok=True)


def write_steering(out):
    """Adds the difference between the merged weights of two adapters to the base model."""
    import peft

    def merged(name):
        model = peft.PeftModel.from_pretrained(load(out / "models/llama"), out / "peft" / name)
        return model.merge_and_unload().state_dict()

    base = load(out / "models/llama").state_dict()
    ids, mask = ragged(700, 3, 6, 11)
    cases = {"two_loras": ("lora_all", "rslora", 1.5), "lora_and_hra": ("lora_all", "hra", -0.75),
             "one_lora": ("lora", None, 2.0)}
    io, switches = {"input_ids": ids, "attention_mask": mask}, {}
    for name, (plus, minus, c) in cases.items():
        added, removed = merged(plus), base if minus is None else merged(minus)
        model = load(out / "models/llama")
        model.load_state_dict({key: w + c * ((added[key] - w) - (removed[key] - w))
                               for key, w in base.items()})
        with torch.no_grad():
            io[name] = model(input_ids=ids, attention_mask=mask).logits.contiguous()
        switches[name] = {"plus": plus, "minus": minus, "coefficient": c}
    save_file(io, out / "weight_steering.safetensors", {"cases": json.dumps(switches)})


# Losses and a training run.

def grad_norm(model):
    squares = (p.grad.square().sum() for p in model.parameters() if p.grad is not None)
    return math.sqrt(sum(float(s) for s in squares))


def write_trl(out):
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import DPOConfig, DPOTrainer
    folder, rows = out / "trl", pairs()
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "pairs.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(out / "models/llama")
    scratch = tempfile.mkdtemp()
    common = {"output_dir": scratch, "report_to": "none", "use_cpu": True, "bf16": False,
              "gradient_checkpointing": False, "max_length": 512, "disable_tqdm": True,
              "per_device_train_batch_size": 4, "save_strategy": "no"}

    def trainer(noise, **fields):
        torch.manual_seed(700)
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM",
                            target_modules=["q_proj", "v_proj"])
        model = get_peft_model(load(out / "models/llama"), config)
        args = DPOConfig(**common, logging_steps=1, lr_scheduler_type="linear", warmup_steps=0,
                         train_sampling_strategy="sequential", seed=0, data_seed=0, **fields)
        dpo = DPOTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows),
                         processing_class=tokenizer)
        # The reference has been created by now, so it stays the base model.
        g = rng(701)
        for parameter in dpo.model.parameters():
            if noise and parameter.requires_grad:
                parameter.data += noise * torch.randn(parameter.shape, generator=g)
        return dpo

    cases = {name: {"loss_type": [name]} for name in [
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
        "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]}
    for name in ("exo_pair", "robust"):
        cases[name]["label_smoothing"] = 0.1
    for name in ("forward_kl", "js_divergence", "alpha_divergence"):
        cases[f"sigmoid+{name}"] = {"loss_type": ["sigmoid"], "f_divergence_type": name,
                                    "f_alpha_divergence_coef": 0.5}
    cases["mpo"] = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
    cases["wpo"] = {"loss_type": ["sigmoid"], "use_weighting": True}
    cases["ld"] = {"loss_type": ["sigmoid"], "ld_alpha": 0.5}
    values = {}
    for name, fields in cases.items():
        fields["beta"] = 0.1
        dpo = trainer(0.1, learning_rate=1e-3, **fields)
        batch = next(iter(dpo.get_train_dataloader()))
        dpo.model.train()
        loss = dpo.compute_loss(dpo.model, batch)
        loss.backward()
        values[name] = {"args": fields, "loss": float(loss), "grad_norm": grad_norm(dpo.model),
                        "metrics": {k: v[-1] for k, v in dpo._metrics["train"].items()}}
        if name == "sigmoid":
            save_adapter(dpo.model, folder / "adapter", selected_adapters=["default"])
            save_file({k: v.contiguous() for k, v in batch.items() if torch.is_tensor(v)},
                      folder / "batch.safetensors")
    write_json(folder / "losses.json", {"values": values})

    dpo = trainer(0.0, loss_type=["sigmoid"], beta=0.1, learning_rate=2e-3, num_train_epochs=5,
                  max_grad_norm=1.0, weight_decay=0.0, optim="adamw_torch")
    save_adapter(dpo.model, folder / "trajectory_init", selected_adapters=["default"])
    dpo.train()
    save_adapter(dpo.model, folder / "trajectory_final", selected_adapters=["default"])
    write_json(folder / "trajectory.json",
               {"steps": [step for step in dpo.state.log_history if "loss" in step]})
    shutil.rmtree(scratch)


def write_free(out):
    """Writes losses without a reference, of the policy in trl/adapter on the first four pairs."""
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import DataLoader, SequentialSampler
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    folder, rows = out / "trl", pairs()[:4]
    tokenizer = AutoTokenizer.from_pretrained(out / "models/llama")
    cases = {
        "cpo": {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
        "cpo_smoothed": {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.5,
                         "label_smoothing": 0.1},
        "cpo_hinge": {"loss_type": "hinge", "beta": 0.1, "cpo_alpha": 1.0},
        "cpo_ipo": {"loss_type": "ipo", "beta": 0.1, "cpo_alpha": 0.0},
        "simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        "simpo_nll": {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.0, "cpo_alpha": 0.5,
                      "label_smoothing": 0.1},
        "orpo": {"beta": 0.1},
        "orpo_beta": {"beta": 0.9},
    }
    values = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, fields in cases.items():
            trainer, config = ((ORPOTrainer, ORPOConfig) if name.startswith("orpo")
                               else (CPOTrainer, CPOConfig))
            model = PeftModel.from_pretrained(load(out / "models/llama"), folder / "adapter",
                                              is_trainable=True)
            args = config(output_dir=scratch, report_to="none", use_cpu=True, bf16=False,
                          gradient_checkpointing=False, max_length=512, disable_tqdm=True,
                          per_device_train_batch_size=4, save_strategy="no", **fields)
            free = trainer(model=model, args=args, train_dataset=Dataset.from_list(rows),
                           processing_class=tokenizer)
            batch = next(iter(DataLoader(free.train_dataset, batch_size=4,
                                         sampler=SequentialSampler(free.train_dataset),
                                         collate_fn=free.data_collator)))
            free.model.train()
            loss, metrics = free.get_batch_loss_metrics(free.model, batch, train_eval="train")
            loss.backward()
            values[name] = {"args": fields, "loss": float(loss),
                            "grad_norm": grad_norm(free.model),
                            "metrics": {k: float(v) for k, v in metrics.items()}}
    ids = {f"{side}_{what}": batch[f"{side}_{what}"].tolist()
           for side in ("chosen", "rejected") for what in ("input_ids", "labels")}
    write_json(folder / "reference_free.json", {"batch": ids, "values": values}, indent=None)


# The token ids that TRL trains on.

def plain_rows():
    return [dict(zip(("prompt", "chosen", "rejected"), row)) for row in texts.PLAIN_ROWS]


def trl_ids(tokenizer, model, row):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    with tempfile.TemporaryDirectory() as scratch:
        args = DPOConfig(output_dir=scratch, report_to="none", use_cpu=True, bf16=False,
                         gradient_checkpointing=False, max_length=None, disable_tqdm=True)
        # The trainer changes its arguments.
        dpo = DPOTrainer(model=model, args=args, processing_class=tokenizer,
                         train_dataset=Dataset.from_list([copy.deepcopy(row)]))
        return {k: dpo.train_dataset[0][k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")}


def write_tokens(out, smollm2):
    plain = plain_rows()
    cases = {"plain": plain + texts.CHAT_ROWS, "bos": plain + texts.CHAT_ROWS,
             "think": texts.THINK_ROWS, "moved_system": texts.CHAT_ROWS,
             "tools": texts.tool_rows(json.dumps), "switch": texts.SWITCH_ROWS}
    model = load(out / "models/llama")
    for name, rows in cases.items():
        folder = out / "trl_tokens" / name
        tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
        if name == "bos":
            begin = "<|endoftext|>"
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, 0)])
            tokenizer.bos_token = begin
        tokenizer.chat_template = TEMPLATES[name]
        tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        write_rows(folder / "rows.jsonl",
                   [{**row, "expect": trl_ids(tokenizer, model, row)} for row in rows])
    if smollm2:
        folder = out / "trl_tokens/smollm2"
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
        write_rows(folder / "rows.jsonl",
                   [{**row, "expect": trl_ids(tokenizer, model, row)}
                    for row in plain + texts.CHAT_ROWS])


# Scores of whole completions.

def common_prefix(*lists):
    n = 0
    while all(len(ids) > n for ids in lists) and len({ids[n] for ids in lists}) == 1:
        n += 1
    return n


def log_probabilities(model, ids):
    """Returns log p of each token except the first, given the tokens before it: `[t - 1]`."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(-1, ids[0, 1:, None])[:, 0]


def score(model_folder, tokenizer_folder, rows):
    """Returns Σ log p of the completions of each pair with EOS, computed one sequence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    found = []
    for prompt, chosen, rejected in rows:
        alone = tokenizer(prompt)["input_ids"]
        both = [tokenizer(prompt + text + tokenizer.eos_token)["input_ids"]
                for text in (chosen, rejected)]
        start = common_prefix(alone, *both)
        for ids in both:
            # The model is loaded anew, because a rotary embedding can depend on the longest
            # sequence so far.
            logp = log_probabilities(load(model_folder), ids)
            found.append(float(logp[max(start, 1) - 1:].sum()))
    return found


def edited(folder, into, edits):
    """Copies a model and changes fields in its JSON files."""
    shutil.copytree(folder, into)
    for file, fields in edits.items():
        value = json.loads((into / file).read_text())
        write_json(into / file, {**value, **fields})
    return into


def write_scores(out):
    scores = {"plain": []}
    for name in ("gemma3_text", "gpt_neox", "llama", "llama_tied_rope3", "mistral", "phi3",
                 "qwen2", "qwen3"):
        for tokenizer in ("plain", "bos"):
            values = score(out / "models" / name, out / "trl_tokens" / tokenizer,
                           texts.SCORED["plain"])
            scores["plain"].append([name, tokenizer, values])
    llama = out / "models/llama"
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        flags = {str(i): {"content": token, "single_word": False, "lstrip": True, "rstrip": True,
                          "normalized": False, "special": True}
                 for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
        model = edited(llama, scratch / "flags",
                       {"tokenizer_config.json": {"added_tokens_decoder": flags}})
        scores["flags"] = score(model, model, texts.SCORED["flags"])
        for name in ("gemma3_text", "llama"):
            model = out / "models" / name
            scores[f"sky.{name}"] = score(model, model, texts.SCORED["sky"])
        # The same settings as in tests/score.rs.
        for name, context, rope in [
            ("dynamic", 16, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            ("longrope", 64, {"rope_type": "longrope", "rope_theta": 1e4,
                              "short_factor": [1.0, 1.1, 1.2, 1.3],
                              "long_factor": [2.0, 4.0, 8.0, 16.0],
                              "original_max_position_embeddings": 24}),
        ]:
            model = edited(llama, scratch / name, {"config.json": {
                "max_position_embeddings": context, "rope_parameters": rope}})
            scores[name] = score(model, model, texts.SCORED["sky"])
    # The first tokens that the model generates, for a test of end tokens.
    tokenizer = AutoTokenizer.from_pretrained(llama)
    chat = tokenizer.apply_chat_template([texts.user("Name a river.")], tokenize=False,
                                         add_generation_prompt=True)
    ids = tokenizer(chat, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        generated = load(llama).generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                         max_new_tokens=12)
    scores["river"] = generated[0, ids.shape[1]:].tolist()
    write_json(out / "scores.json", scores)


# Objectives of the original project, computed from their formulas in docs/methods.md.

def write_original(out):
    """Writes losses and gradients of mse, rank and prefvec from an independent implementation."""
    b, t, h, v, eps = 3, 9, 12, 16, 1e-12
    g = rng(800)
    io, shift = {}, torch.randn((1, 1, h), generator=g)
    for side, other in (("chosen", "cho"), ("rejected", "rej")):
        lengths = torch.randint(5, t + 1, (b, 1), generator=g)
        io[f"{side}_mask"] = (torch.arange(t)[None] < lengths).long()
        io[f"{side}_ids"] = torch.randint(0, v, (b, t), generator=g)
        for tap in (1, 2):
            base = torch.randn((b, t, h), generator=g) + (0.7 * shift if other == "cho" else 0)
            # Tokens of unusual norm, which the original pooling excludes.
            base[:, 2] *= 4
            io[f"ref_{other}.hs.{tap}"] = base
            io[f"pi_{other}.hs.{tap}"] = base + 0.3 * torch.randn((b, t, h), generator=g)
        for of, scale in (("ref", 1.0), ("pi", 1.5)):
            io[f"{of}_{other}.logits"] = scale * torch.randn((b, t, v), generator=g)
            io[f"{of}_{other}.label_logprobs"] = -9 * torch.rand(b, generator=g) - 3
    leaves = {name: tensor.requires_grad_() for name, tensor in io.items()
              if name.startswith("pi_") and not name.endswith(".logits")}

    def pool(x, mask):
        """Averages the attended tokens whose norm is at most mean + one standard deviation."""
        n = x.norm(dim=-1)
        limit = n.mean(-1, keepdim=True) + n.std(-1, keepdim=True)
        kept = ((n <= limit) & (mask == 1)).to(x.dtype)[..., None]
        return (x * kept).sum(1) / kept.sum(1)

    def pooled(tap, f=lambda x: x):
        return [pool(f(io[f"{of}_{side}.hs.{tap}"]), io[mask])
                for of in ("pi", "ref") for side, mask in (("cho", "chosen_mask"),
                                                           ("rej", "rejected_mask"))]

    def margin():
        ratio = {s: io[f"pi_{s}.label_logprobs"] - io[f"ref_{s}.label_logprobs"]
                 for s in ("cho", "rej")}
        return ratio["cho"] - ratio["rej"]

    def mse():
        total = 0
        for tap in (1, 2):
            pc, pr, rc, rr = pooled(tap)
            scale = ((rc - rr).norm(dim=-1) + eps).log()
            total = total + ((rc - pr).norm(dim=-1) + eps).log() - scale
            total = total + 0.6 * (((rc - pc).norm(dim=-1) + eps).log() - scale)
        return 100 * (total / 2).mean()

    def rank(use_nll, use_retain):
        reroute, retain = 0, 0
        for tap in (1, 2):
            pc, pr, rc, rr = pooled(tap, lambda x: x.log_softmax(-1))
            reroute = reroute - F.logsigmoid(-((pc - rc) - (pr - rr))).mean(-1) / 2
            retain = retain + (pc - rc).square().mean(-1) / 2
        total = F.relu(-margin())
        if use_nll:
            nll = [-io[f"{of}_cho.logits"].log_softmax(-1)
                   .gather(-1, io["chosen_ids"][..., None])[..., 0] for of in ("pi", "ref")]
            total = total + 100 * F.relu(((nll[0] - nll[1]) * io["chosen_mask"]).mean(-1))
        if use_retain:
            total = total + retain
        return (reroute + 0.25 * total).mean()

    def prefvec(proj=False, absolute=False, orth=False, angle=False, dpo=False):
        total = torch.zeros(b)
        means = [0, 0, 0]
        for tap in (1, 2):
            pc, pr, rc, rr = pooled(tap)
            a, d = pc - pr, rc - rr
            unit = d / (d.norm(dim=-1, keepdim=True) + eps)
            along = (a * unit).sum(-1, keepdim=True) * unit
            terms = (along.mean(-1), (a - along).mean(-1).abs(),
                     F.cosine_similarity(a, d, dim=-1).abs())
            means = [m + term / 2 for m, term in zip(means, terms)]
        if proj:
            total = total - 1e5 * means[0]
        if absolute:
            total = total.abs()
        if orth:
            total = total + 1e6 * means[1]
        if angle:
            total = total - 1e5 * means[2]
        return total.mean() + (F.logsigmoid(-margin()).mean() if dpo else 0)

    cases = {
        "mse.default": mse,
        "rank.default": lambda: rank(False, False),
        "rank.all": lambda: rank(True, True),
        "prefvec.default": lambda: prefvec(proj=True, absolute=True, dpo=True),
        "prefvec.orth": lambda: prefvec(proj=True, orth=True, dpo=True),
        "prefvec.angle": lambda: prefvec(angle=True),
        "prefvec.dpo_only": lambda: prefvec(dpo=True),
    }
    values = {}
    for name, loss in cases.items():
        loss = loss()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        values[f"{name}.loss"] = loss.detach().reshape(1)
        for leaf, grad in zip(leaves, grads):
            if grad is not None and bool((grad != 0).any()):
                values[f"{name}.grad.{leaf}"] = grad.contiguous()
    save_file({name: tensor.detach().contiguous() for name, tensor in {**io, **values}.items()},
              out / "original.safetensors")


# The objectives of the author's later branch, computed from their formulas.

def innerpo_inputs(g):
    """Returns states, log-probabilities and masks of three pairs, padded to 12 positions."""
    b, t, h, v = 3, 12, 12, 16
    io, shift = {}, torch.randn((1, 1, h), generator=g)
    prompt = torch.tensor([[3], [2], [4]])
    for side, other in (("chosen", "cho"), ("rejected", "rej")):
        # The last attended token ends the sequence and is not pooled.
        length = torch.randint(8, t + 1, (b, 1), generator=g)
        at = torch.arange(t)[None]
        io[f"{side}_mask"] = (at < length).long()
        io[f"{side}_pool_mask"] = ((at >= prompt) & (at < length - 1)).long()
        io[f"{side}_ids"] = torch.randint(0, v, (b, t), generator=g)
        for tap in (1, 2):
            base = torch.randn((b, t, h), generator=g) + (0.7 * shift if other == "cho" else 0)
            if tap == 1:
                # A token of unusual norm, which `filter_sinks` excludes.
                base[:, 5] *= 60
            io[f"ref_{other}.hs.{tap}"] = base
            noise = torch.randn((b, t, h), generator=g)
            io[f"pi_{other}.hs.{tap}"] = base + 0.9 * tap * noise
        for of, scale in (("ref", 1.0), ("pi", 1.5)):
            logits = scale * torch.randn((b, t, v), generator=g)
            logp = logits.log_softmax(-1)[:, :-1]
            own = logp.gather(-1, io[f"{side}_ids"][:, 1:, None])[..., 0]
            io[f"{of}_{other}.logits"] = logits
            io[f"{of}_{other}.token_logprobs"] = own
            io[f"{of}_{other}.token_entropy"] = -(logp.exp() * logp).sum(-1)
            io[f"{of}_{other}.token_log_weights"] = own - (2 * logp).logsumexp(-1)
            mask = io[f"{side}_pool_mask"][:, :-1]
            for what in ("logprobs", "log_weights"):
                value = (mask * io[f"{of}_{other}.token_{what}"]).sum(-1) / mask.sum(-1)
                io[f"{of}_{other}.label_{what}"] = value
    return io


class InnerPo:
    """The objectives of the branch. `io` has the inputs, in float64."""

    def __init__(self, io):
        self.io = io
        self.mask = {"cho": io["chosen_pool_mask"], "rej": io["rejected_pool_mask"]}

    @staticmethod
    def layers(objective, switches):
        """The taps of a case. Token weights and the logarithm only work with one."""
        single = (objective == "innerdpo"
                  and (switches.get("use_wpo") or switches.get("use_mallows")
                       or switches.get("align_method") == "pars_rat_log"))
        return ("1",) if single else ("1", "2")

    def states(self, tap, detach):
        found = {f"{of}_{side}": self.io[f"{of}_{side}.hs.{tap}"] for of in ("pi", "ref")
                 for side in ("cho", "rej")}
        if detach:
            found["pi_rej"] = found["pi_rej"].detach()
        return found

    def pooled(self, states, filter_sinks=False, cut=False):
        """Averages the pooled tokens; without the last position if `cut` is true."""
        result = []
        for of in ("pi", "ref"):
            for side in ("cho", "rej"):
                x, keep = states[f"{of}_{side}"], self.mask[side].bool()
                if cut:
                    keep = keep[:, :-1]
                    x = x[:, :keep.shape[1]]
                if filter_sinks:
                    n = x.detach().norm(dim=-1)
                    keep = keep & (n <= (n.mean(-1) + 3 * n.std(-1))[:, None])
                keep = keep.to(x.dtype)[..., None]
                result.append((x * keep).sum(1) / keep.sum(1))
        return result

    def margin(self, reduce):
        ratio = lambda of: reduce(of, "cho") - reduce(of, "rej")
        return ratio("pi") - ratio("ref")

    def label(self, of, side):
        return self.io[f"{of}_{side}.label_logprobs"]

    def weighted(self, states, weight):
        """Multiplies the states of all but the last position by the token weights `[b t-1]`."""
        return {k: x[:, :-1] * weight[..., None] if k.startswith("pi") else x[:, :-1]
                for k, x in states.items()}

    def innerdpo(self, dpo_loss="SimPER", alpha=0.1, beta=0.4, align_method="pars_rat",
                 trust_region=0.0, clamp_bottom=False, use_inner_weights=False,
                 use_token_constraint=False, detach_ref=False, p=2, eps=1e-4, filter_sinks=False,
                 use_wpo=False, use_mallows=False, label_smoothing=0.0):
        io, rows, projections = self.io, [], []
        for tap in self.layers("innerdpo", {"use_wpo": use_wpo, "use_mallows": use_mallows,
                                            "align_method": align_method}):
            states = plain = self.states(tap, detach_ref)
            if use_wpo:
                w = torch.sigmoid((io["pi_cho.token_log_weights"]
                                   + io["pi_rej.token_log_weights"]) / 3).detach()
                states = self.weighted(states, w / (w.mean() + 1e-6))
            if use_mallows:
                total = io["ref_cho.token_entropy"] + io["ref_rej.token_entropy"]
                vocabulary = io["pi_cho.logits"].shape[-1]
                states = self.weighted(states, -0.29 * (total / (2 * math.log(vocabulary))).log())
            pc, pr, rc, rr = self.pooled(states, filter_sinks, cut=use_wpo or use_mallows)
            a, d = pc - pr, rc - rr
            length = d.norm(p=p, dim=-1)
            unit = d / (length + eps)[:, None]
            c = (a * unit).sum(-1)
            x = {"pars_rat": c / (length + eps) - 1, "para_signed": c,
                 "pars_rat_log": 10 * ((c + 1e-12).log() - (length + 1e-12).log())}[align_method]
            if use_inner_weights:
                along = c[:, None] * unit
                size, rest = (along.norm(p=p, dim=-1) + eps, (a - along).norm(p=p, dim=-1) + eps)
                q = (size / (size + rest)).detach()
                x = x * (q / (q ** 2 + (1 - q) ** 2)).clamp(max=1)
            if trust_region > 0:
                x = x.clamp(min=trust_region) if clamp_bottom else x.clamp(max=trust_region)
            if use_token_constraint:
                moved = {}
                for side in ("cho", "rej"):
                    off = (plain[f"pi_{side}"] - plain[f"ref_{side}"]).norm(p=p, dim=-1)
                    moved[side] = (off * self.mask[side]).sum(-1) / self.mask[side].sum(-1)
                x = x - 0.5 * F.relu(moved["rej"] - moved["cho"])
            rows.append(x)
            projections.append(c)
        theta, x = self.margin(self.label), torch.stack(rows).mean(0)
        if dpo_loss == "SimPER":
            c = torch.stack(projections)
            outer = self.label("pi", "rej").exp() - self.label("pi", "cho").exp()
            inner = (c.sign() * c.abs().log1p()).mean(0)
        elif dpo_loss == "ipo":
            outer, inner = ((y - 1 / (2 * beta)) ** 2 for y in (theta, x))
        else:
            e = label_smoothing
            outer = -(1 - e) * F.logsigmoid(beta * theta) - e * F.logsigmoid(-beta * theta)
            inner = -F.logsigmoid(beta * x) - e * F.logsigmoid(-beta * x)
        return (outer + alpha * inner).mean()

    def differences(self, filter_sinks, detach_ref, use_mallows):
        """Returns p+ - p- and r+ - r- at each tap."""
        for tap in (1, 2):
            states = self.states(tap, detach_ref)
            if use_mallows:
                entropy = {k: self.io[f"{k}.token_entropy"][..., None] for k in states}
                states = {k: x[:, -1:] * entropy[k] / (entropy[k] + 1e-6)
                          for k, x in states.items()}
            pc, pr, rc, rr = self.pooled(states, filter_sinks, cut=use_mallows)
            yield pc - pr, rc - rr

    @staticmethod
    def region(rho, tau):
        return ((tau - rho) ** 2).mean() + F.relu(1 - rho).mean() + 2 * F.relu(rho - tau).mean()

    def topk(self, topk_n=100, trust_region=2.0, filter_sinks=False, detach_ref=False,
             use_mallows=False):
        total = 0
        for a, d in self.differences(filter_sinks, detach_ref, use_mallows):
            k = d.abs().topk(min(topk_n, d.shape[-1] // 4), dim=-1).indices
            unit = F.normalize(d.gather(-1, k), dim=-1)
            c = (a.gather(-1, k) * unit).sum(-1, keepdim=True)
            total = total + self.region(c / (unit + 1e-8), trust_region) / 2
        return total

    def topkl(self, topk_n=100, trust_region=2.0, filter_sinks=False, detach_ref=False,
              use_mallows=False):
        unit = lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-4)
        a, d = (torch.cat([unit(x) for x in taps], -1)
                for taps in zip(*self.differences(filter_sinks, detach_ref, use_mallows)))
        k = d.abs().topk(min(topk_n, d.shape[-1] // 4), dim=-1).indices
        d = d.gather(-1, k)
        c = (a.gather(-1, k) * F.normalize(d, dim=-1)).sum(-1)
        return self.region(c / (d.norm(dim=-1) + 1e-8), trust_region)

    def mse(self):
        total = 0
        for tap in (1, 2):
            pc, pr, rc, rr = self.pooled(self.states(tap, False))
            distance = lambda x, y: ((x - y).norm(dim=-1) + 1e-12).log()
            scale = distance(rc, rr)
            total = total + distance(rc, pr) - scale + 0.6 * (distance(rc, pc) - scale)
        return 100 * (total / 2).mean()

    def rank(self, alpha=0.25, beta=1.0, use_nll_loss=False, use_rank_retain=False):
        io, reroute, kept = self.io, 0, 0
        for tap in (1, 2):
            states = {k: x.log_softmax(-1) for k, x in self.states(tap, False).items()}
            pc, pr, rc, rr = self.pooled(states)
            psi = (pc - rc) - (pr - rr)
            reroute = reroute - F.logsigmoid(-beta * psi).mean(-1) / 2
            kept = kept + (beta * (pc - rc)).square().mean(-1) / 2
        retain = F.relu(-self.margin(self.label))
        if use_nll_loss:
            nll = [-io[f"{of}_cho.logits"].log_softmax(-1)
                   .gather(-1, io["chosen_ids"][..., None])[..., 0] for of in ("pi", "ref")]
            retain = retain + 100 * F.relu(((nll[0] - nll[1]) * io["chosen_mask"]).mean(-1))
        if use_rank_retain:
            retain = retain + kept
        return (reroute + alpha * retain).mean()

    def dpo(self, loss_type="ipo", beta=0.2, mallows=False, mallows_before=False,
            use_policy_weights=False):
        io = self.io

        def reduced(of, side):
            if mallows_before:
                return self.label(of, side)
            mask = self.mask[side][:, :-1]
            value = io[f"{of}_{side}.token_logprobs"]
            if mallows:
                entropy = io[f"{of}_{side}.token_entropy"]
                value = value * entropy / (entropy.sum(-1, keepdim=True) + 1e-6)
            total = (mask * value).sum(-1)
            return total if loss_type == "dpo" else total / mask.sum(-1)

        theta = self.margin(reduced)
        if mallows_before:
            entropy = [(self.mask[s][:, :-1] * io[f"ref_{s}.token_entropy"]).sum(-1)
                       / self.mask[s][:, :-1].sum(-1) for s in ("cho", "rej")]
            vocabulary = io["pi_cho.logits"].shape[-1]
            theta = theta * -0.29 * (sum(entropy) / 2 / math.log(vocabulary)).log()
        if loss_type == "SimPER":
            loss = reduced("pi", "rej").exp() - reduced("pi", "cho").exp()
        elif loss_type == "ipo":
            loss = F.relu(0.5 - beta * theta) ** 2
        else:
            loss = -F.logsigmoid(beta * theta)
        if use_policy_weights:
            w = torch.sigmoid((io["pi_cho.label_log_weights"]
                               + io["pi_rej.label_log_weights"]) / 3).detach()
            loss = loss * (w / (w.mean() + 1e-6))
        return loss.mean()


def innerpo_case(model, name, switches):
    """Returns the loss of a case of the branch, with the switches of its configuration."""
    objective, case = name.split(".")
    names = {"α": "alpha", "β": "beta"}
    fields = {names.get(k, k): v for k, v in switches.items()}
    if objective == "dpo":
        fields["mallows"] = case.endswith("_mallows")
        fields["mallows_before"] = case.endswith("_mallows_before")
    return getattr(model, objective)(**fields)


def write_innerpo(out):
    """Writes losses and gradients of the branch's objectives, computed in float64."""
    io = innerpo_inputs(rng(814))
    double = {name: x.double() if x.is_floating_point() else x for name, x in io.items()}
    parts = (".hs.", ".logits", "_logprobs")
    leaves = {name: x.requires_grad_() for name, x in double.items()
              if name.startswith("pi_") and any(part in name for part in parts)}
    outer = {name: {"dpo_loss": name} for name in ("ipo", "dpo")}
    region = {"default": {}, "n2": {"topk_n": 2}, "trust_region": {"trust_region": 0.5},
              "filter_sinks": {"filter_sinks": True}, "detach_rej": {"detach_ref": True},
              "mallows": {"use_mallows": True}}
    cases = {
        "innerdpo.default": {},
        "innerdpo.simper_alpha": {"α": 2.0},
        "innerdpo.simper_p1": {"p": 1},
        "innerdpo.simper_filter_sinks": {"filter_sinks": True},
        "innerdpo.simper_detach_rej": {"detach_ref": True},
        "innerdpo.simper_wpo": {"use_wpo": True},
        "innerdpo.ipo_pars_rat": {**outer["ipo"]},
        "innerdpo.ipo_pars_rat_p1": {**outer["ipo"], "p": 1},
        "innerdpo.ipo_trust_region": {**outer["ipo"], "trust_region": 0.2},
        "innerdpo.ipo_clamp_bottom": {**outer["ipo"], "trust_region": 0.2, "clamp_bottom": True},
        "innerdpo.ipo_para_signed": {**outer["ipo"], "align_method": "para_signed"},
        "innerdpo.ipo_pars_rat_log": {**outer["ipo"], "align_method": "pars_rat_log"},
        "innerdpo.ipo_inner_weights": {**outer["ipo"], "use_inner_weights": True},
        "innerdpo.ipo_mallows_before": {**outer["ipo"], "use_mallows": True},
        "innerdpo.dpo_pars_rat": {**outer["dpo"]},
        "innerdpo.dpo_token_constraint": {**outer["dpo"], "use_token_constraint": True},
        "innerdpo.dpo_many": {**outer["dpo"], "α": 1.0, "β": 1.0, "trust_region": 0.2,
                              "use_token_constraint": True, "use_inner_weights": True,
                              "filter_sinks": True, "detach_ref": True},
        "innerdpo.dpo_label_smoothing": {**outer["dpo"], "label_smoothing": 0.1},
        **{f"topk.{name}": switches for name, switches in region.items()},
        **{f"topkl.{name}": switches for name, switches in region.items()},
        "mse.default": {},
        "rank.default": {},
        "rank.all": {"use_nll_loss": True, "use_rank_retain": True},
        "rank.recipe": {"use_nll_loss": True, "β": 0.1, "α": 100},
        "dpo.ipo_beta2": {"loss_type": "ipo", "β": 2.0},
        "dpo.ipo_wpo": {"loss_type": "ipo", "β": 0.2, "use_policy_weights": True},
        "dpo.ipo_mallows_before": {"loss_type": "ipo", "β": 0.2},
        **{f"dpo.{loss.lower()}{more}": {"loss_type": loss, "β": 0.2}
           for loss in ("ipo", "SimPER", "dpo") for more in ("", "_mallows")},
    }
    values, described = {}, {}
    for name, switches in cases.items():
        loss = innerpo_case(InnerPo(double), name, switches)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        values[f"{name}.loss"] = loss.detach().float().reshape(1)
        for leaf, grad in zip(leaves, grads):
            if grad is not None and bool((grad != 0).any()):
                values[f"{name}.grad.{leaf}"] = grad.float().contiguous()
        layers = InnerPo.layers(name.split(".")[0], switches)
        described[name] = {"switches": switches, "inputs": {"layers": layers}}
    save_file({name: x.contiguous() for name, x in {**io, **values}.items()},
              out / "innerpo.safetensors", {"cases": json.dumps(described, ensure_ascii=False)})


# Data files in the formats that other programs write.

def write_data(out):
    import datetime
    import pyarrow as pa
    import pyarrow.parquet as pq
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    rows = pairs()[:6]
    columns = {k: [row[k] for row in rows] for k in ("prompt", "chosen", "rejected")}
    now = datetime.datetime(2024, 2, 29, 12, 30)
    write = lambda name, more: pq.write_table(pa.table({**columns, **more}),
                                              folder / f"{name}.parquet")
    write("plain", {})
    write("score", {"score": pa.array([0.5, None, float("nan"), 1.0, -2.0, 3.5])})
    write("timestamp", {"at": pa.array([now] * 6, pa.timestamp("us", tz="UTC")),
                        "day": pa.array([now.date()] * 6)})
    write("nested", {"tags": pa.array([["a", "b"]] * 6, pa.large_list(pa.string())),
                     "source": pa.array([{"id": i, "of": None} for i in range(6)],
                                        pa.struct([("id", pa.int16()), ("of", pa.string())]))})
    large = {k: pa.array(v, pa.large_string()) for k, v in columns.items()}
    pq.write_table(pa.table(large), folder / "large_text.parquet", compression="zstd")
    types = {"flag": pa.array([True, None] * 3), "bytes": pa.array([b"\x00\xff"] * 6),
             "big": pa.array([2 ** 63] * 6, pa.uint64()),
             "kind": pa.array(["x", "y"] * 3).dictionary_encode()}
    write("types", types)
    # JSON as written by Python, with numbers that JSON does not allow.
    (folder / "nan.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c", "score": NaN}\n'
        '{"prompt": "d", "chosen": "e", "rejected": "f", "score": -Infinity}\n')
    (folder / "surrogate_pair.jsonl").write_text(
        '{"prompt": "Laugh.", "chosen": "\\ud83d\\ude42", "rejected": "no"}\n')
    (folder / "surrogate_half.jsonl").write_text(
        '{"prompt": "Laugh.", "chosen": "ha", "rejected": "no"}\n'
        '{"prompt": "Laugh.", "chosen": "\\ud83d", "rejected": "no"}\n'
        '{"prompt": "Laugh.", "chosen": "hi", "rejected": "no"}\n')
    turn = lambda who, text: {"from": who, "value": text}
    write_rows(folder / "sharegpt.jsonl", [
        {"conversations": [turn("human", "Name a metal.")], "chosen": turn("gpt", "Copper."),
         "rejected": turn("gpt", "Paper.")}])


# A real model, SmolLM2-135M-Instruct, from its GGUF file.

def write_smollm2(out, file):
    folder = out / "smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name,
                                                 dtype=torch.float32).eval()

    def ids_of(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    (folder / "tokens.jsonl").write_text("".join(
        json.dumps({"text": text, "ids": ids_of(text)}) + "\n" for text in texts.TOKENS))

    chats = []
    for messages in texts.CHATS:
        render = lambda more: tokenizer.apply_chat_template(messages, tokenize=False,
                                                            add_generation_prompt=more)
        prompt = torch.tensor([ids_of(render(True))])
        with torch.no_grad():
            generated = model.generate(prompt, attention_mask=torch.ones_like(prompt),
                                       max_new_tokens=64, do_sample=False)[0, prompt.shape[1]:]
        chats.append({"messages": messages, "text": render(False),
                      "text_generation": render(True), "greedy_ids": generated.tolist(),
                      "greedy_text": tokenizer.decode(generated, skip_special_tokens=True)})
    write_json(folder / "chats.json", chats)

    io = {}
    for i, text in enumerate(texts.PARAGRAPHS[:3]):
        ids = torch.tensor([ids_of(text)[:40]])
        with torch.no_grad():
            got = model(ids, output_hidden_states=True)
        io[f"{i}.input_ids"] = ids[0].clone()
        io[f"{i}.last_logits"] = got.logits[0, -1].clone()
        io[f"{i}.last_hidden"] = torch.stack([state[0, -1] for state in got.hidden_states])
    save_file(io, folder / "forward.safetensors")

    scored = []
    for pair in pairs():
        prompt = ids_of(pair["prompt"])
        entry = {**pair, "prompt_tokens": len(prompt)}
        for side in ("chosen", "rejected"):
            ids = ids_of(pair[side])
            logp = log_probabilities(model, prompt + ids)[len(prompt) - 1:]
            entry[f"{side}_logp_sum"], entry[f"{side}_tokens"] = float(logp.sum()), len(ids)
        scored.append(entry)
    write_json(folder / "pair_logps.json", {"pairs": scored})


# Baselines without training.

def first_component(differences):
    """Returns the first principal component with the sign and the length that `steer` documents."""
    from sklearn.decomposition import PCA
    u = torch.tensor(PCA(n_components=1, svd_solver="full").fit(differences.double().numpy())
                     .components_[0])
    along = differences.double() @ u
    sign = -1.0 if along.sign().sum() < 0 else 1.0
    return (sign * along.square().mean().sqrt() * u).float()


def write_baselines(out):
    """Writes directions, log-probabilities with edits, and probes on attention heads. They come
    from the pairs in trl/pairs.jsonl and models/llama, one sequence at a time."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    model = load(out / "models/llama")
    tokenizer = AutoTokenizer.from_pretrained(out / "models/llama")
    block, sides = 1, ("chosen", "rejected")
    rows = [trl_ids(tokenizer, model, row) for row in pairs()]
    model = load(out / "models/llama").eval()
    seen = {}

    def watch(name, value):
        seen[name] = value.detach()

    hooks = [model.model.layers[block].register_forward_hook(
        lambda _, args, y: watch("block", y[0] if y.dim() == 3 else y))]
    for k, layer in enumerate(model.model.layers):
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, k=k: watch(f"heads.{k}", args[0][0, -1])))
    pooled, heads = {side: [] for side in sides}, {side: [] for side in sides}
    for row in rows:
        for side in sides:
            ids, n = row["prompt_ids"] + row[f"{side}_ids"], len(row[f"{side}_ids"])
            with torch.no_grad():
                model(input_ids=torch.tensor([ids]))
            pooled[side].append(seen["block"].reshape(len(ids), WIDTH)[-n:].mean(0))
            heads[side].append(torch.cat([seen[f"heads.{k}"] for k in range(LAYERS)]))
    for hook in hooks:
        hook.remove()
    io = {f"pooled.{side}": torch.stack(pooled[side]) for side in sides}
    width = model.config.head_dim
    for side in sides:
        io[f"heads.{side}"] = torch.stack(heads[side]).reshape(len(rows), LAYERS * HEADS, width)

    differences = io["pooled.chosen"] - io["pooled.rejected"]
    mean, component = differences.mean(0), first_component(differences)
    unit = mean / mean.norm()
    edits = {"add": lambda h: h + 2.0 * mean, "pca": lambda h: h - 1.5 * component,
             "ablate": lambda h: h - 0.75 * (h @ unit)[..., None] * unit}
    io |= {"mean": mean, "component": component}
    for name, edit in edits.items():
        hook = model.model.layers[block].register_forward_hook(lambda _, args, y: edit(y))
        values = []
        for row in rows:
            for side in sides:
                n = len(row[f"{side}_ids"])
                logp = log_probabilities(model, row["prompt_ids"] + row[f"{side}_ids"])
                values.append(logp[-n:].sum())
        hook.remove()
        io[f"logp.{name}"] = torch.stack(values).reshape(-1, 2)

    fitted = 2 * len(rows) // 3
    labels = [1] * fitted + [0] * fitted
    weights, intercepts, accuracies = [], [], []
    for head in range(LAYERS * HEADS):
        of = {side: io[f"heads.{side}"][:, head].double().numpy() for side in sides}
        train = np.concatenate([of["chosen"][:fitted], of["rejected"][:fitted]])
        test = np.concatenate([of["chosen"][fitted:], of["rejected"][fitted:]])
        probe = LogisticRegression(max_iter=10000, tol=1e-12).fit(train, labels)
        rest = len(rows) - fitted
        weights.append(torch.tensor(probe.coef_[0]))
        intercepts.append(float(probe.intercept_[0]))
        accuracies.append(float(probe.score(test, [1] * rest + [0] * rest)))
    io |= {"probe.weights": torch.stack(weights), "probe.intercepts": torch.tensor(intercepts),
           "probe.accuracies": torch.tensor(accuracies)}
    save_file({name: x.contiguous() for name, x in io.items()}, out / "baselines.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--only",
                        default="models,peft,steering,modules,trl,free,tokens,scores,original,"
                                "innerpo,data,baselines",
                        help="groups to compute; each group needs the groups before it")
    parser.add_argument("--smollm2", type=Path,
                        help="GGUF file of SmolLM2-135M-Instruct, for smollm2/ and "
                             "trl_tokens/smollm2/")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    writers = {"models": write_models, "peft": write_peft, "steering": write_steering,
               "modules": write_modules,
               "trl": write_trl, "free": write_free,
               "tokens": lambda out: write_tokens(out, args.smollm2), "scores": write_scores,
               "original": write_original, "innerpo": write_innerpo, "data": write_data,
               "baselines": write_baselines}
    for group in args.only.split(","):
        writers[group](args.out)
        print(f"{group}: done", flush=True)
    if args.smollm2:
        write_smollm2(args.out, args.smollm2)
        print("smollm2: done")


if __name__ == "__main__":
    main()
