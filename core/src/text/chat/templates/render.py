"""Writes renderings.json: the templates as rendered by transformers.

pip install transformers==5.23.0 jinja2==3.1.6 && python render.py
"""

import json
import pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
# The model does not have a padding token, so transformers does not pass `pad_token` to the
# template.
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")),
    bos_token="<s>",
    eos_token="</s>",
)


def render(source, conversation, add_generation_prompt):
    kwargs = conversation.get("kwargs", {})
    try:
        text = TOKENIZER.apply_chat_template(
            conversation["messages"],
            tools=conversation.get("tools"),
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **kwargs,
        )
        return {"text": text}
    except Exception as e:
        return {"error": str(e)}


conversations = json.loads((HERE / "conversations.json").read_text())
templates = {
    path.stem: {
        name: [render(path.read_text(), conversation, begin) for begin in (False, True)]
        for name, conversation in conversations.items()
        # For a template that only accepts text, reprpo joins the parts, but Python writes the list
        # itself into the text.
        if name != "parts" or path.stem == "parts"
    }
    for path in sorted(HERE.glob("*.jinja"))
}
snippets = [
    {"template": s, **render(s, conversations["turns"], False)}
    for s in json.loads((HERE / "snippets.json").read_text())
]
written = json.dumps({"templates": templates, "snippets": snippets}, indent=1, ensure_ascii=False)
(HERE / "renderings.json").write_text(written + "\n")
