"""The peer's side of the speed comparison: TRL's DPOTrainer with a PEFT adapter on a model with
random weights.

    python3 peer.py SPEC.json

The specification contains the configuration of the model, the folder with the configuration of the
adapter, and the sizes of the steps. The script first writes one line with the versions and the
number of trained parameters, or with the missing packages. Then it answers each line of its
standard input with a line of JSON: the seconds of the measured steps, and the peak memory.
"""

import importlib.util
import json
import os
import random
import sys

# Libraries print to standard output, so the answers are written to a copy of it.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(**values):
    answers.write(json.dumps(values) + "\n")
    answers.flush()


missing = [
    name
    for name in ("torch", "transformers", "peft", "trl", "datasets")
    if importlib.util.find_spec(name) is None
]
if missing:
    answer(missing=missing)
    sys.exit()

import time

with open(sys.argv[1]) as file:
    spec = json.load(file)
os.environ["HF_HUB_OFFLINE"] = "1"
# The home folder may be missing, or may not be writable.
os.environ["HF_HOME"] = spec["folder"]
if spec["device"] == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
else:
    # The trainer uses the first card that it sees.
    visible = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    card = int(spec["device"].split(":")[1])
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[card] if visible else str(card)

import peft
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

cuda = torch.cuda.is_available()
if spec["device"] != "cpu" and not cuda:
    answer(missing=["a torch that sees the card"])
    sys.exit()
if not cuda:
    torch.set_num_threads(spec["threads"])
steps, batch, tokens = spec["steps"], spec["batch"], spec["tokens"]
config = transformers.LlamaConfig(
    **{k: v for k, v in spec["config"].items() if k not in ("model_type", "architectures")}
)
# The special tokens are found inside other words too, so their names must not be parts of them.
special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"}
words = {name: i for i, name in enumerate(special.values())}
words |= {f"w{i}": i for i in range(3, config.vocab_size)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
draw = random.Random(0)


def status(field):
    """A number of bytes in the status of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def text(n):
    return "".join(f" w{draw.randrange(3, config.vocab_size)}" for _ in range(n))


# The trainer adds a token to the end of each completion.
pairs = [
    dict(prompt=text(tokens).strip(), chosen=text(tokens - 1), rejected=text(tokens - 1))
    for _ in range((1 + steps) * batch)
]
for pair in pairs:
    for completion in (pair["chosen"], pair["rejected"]):
        count = len(tokenizer(pair["prompt"] + completion).input_ids)
        assert count == 2 * tokens - 1, f"a sequence has {count} tokens and not {2 * tokens - 1}"
# The weights and the steps count, as on the other side, and not the libraries.
before = 0
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS:")
except OSError:
    pass
with torch.device("cuda" if cuda else "cpu"):
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, spec["dtype"])
    )
adapter = peft.PeftConfig.from_pretrained(spec["adapter"])
# A saved adapter is not to be trained unless this is reset.
adapter.inference_mode = False
model = peft.get_peft_model(model, adapter)
marks = []


class Clock(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
        if cuda:
            torch.cuda.synchronize()
        marks.append(time.time())


arguments = trl.DPOConfig(
    output_dir=spec["folder"],
    report_to="none",
    use_cpu=not cuda,
    bf16=cuda and spec["dtype"] == "bfloat16",
    max_length=None,
    gradient_checkpointing=False,
    per_device_train_batch_size=batch,
    max_steps=1 + steps,
    logging_steps=1000,
    save_strategy="no",
    disable_tqdm=True,
    learning_rate=1e-5,
    dataloader_drop_last=True,
)
trainer = trl.DPOTrainer(
    model=model,
    args=arguments,
    train_dataset=Dataset.from_list(pairs),
    processing_class=tokenizer,
    callbacks=[Clock()],
)
trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
answer(
    trained=trained,
    versions={module.__name__: module.__version__ for module in (torch, transformers, peft, trl)},
)
for _ in sys.stdin:
    marks.clear()
    trainer.train()
    peak = torch.cuda.max_memory_reserved() if cuda else status("VmHWM:") - before
    answer(seconds=marks[-1] - marks[0], peak=peak)
