"""What exactly does the model read?

Training and generation both get their text here, so that a prompt is the same tokens in both.
"""

import copy
import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template

from finetune.data.splits import Example, Message
from finetune.errors import UserError

# What `set_template_variables` puts in front of a template.
SET_VARIABLES = re.compile(r"(\{%- set \w+ = \w+ \| default\(.*?\) %\})*")


def set_template_variables(tokenizer: PreTrainedTokenizerBase, values: dict[str, Any]) -> None:
    """Give the chat template's variables these values for good: in training, in generation, and wherever it is saved.

    Raises UserError for a variable that the template does not read.
    """
    for name, value in values.items():
        template = str(tokenizer.chat_template or "")
        if not re.search(rf"\b{name}\b", template):
            raise UserError(
                f"model.chat_template_kwargs.{name}={json.dumps(value)}: this model's chat template does not read "
                f"{name}. Leave it out, or name a variable that the template reads."
            )
        literal = json.dumps(value, ensure_ascii=False)
        tokenizer.chat_template = f"{{%- set {name} = {name} | default({literal}) %}}{template}"


def training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The form of the chat template that marks the assistant's words, if TRL knows one and it is another.

    Raises ValueError where TRL knows none.
    """
    template = str(tokenizer.chat_template)
    values = SET_VARIABLES.match(template).group()  # type: ignore[union-attr]
    plain = copy.copy(tokenizer)
    plain.chat_template = template.removeprefix(values)  # TRL knows templates by their whole text
    marked = get_training_chat_template(plain)
    return marked and values + marked


def training_row(example: Example, tokenizer: PreTrainedTokenizerBase, assistant_only: bool) -> dict[str, Any]:
    """One row as TRL's SFTTrainer reads it: prompt and completion, a whole chat (`assistant_only`), or plain text."""
    if not example.prompt:
        return {"text": example.completion}
    answer = [{"role": "assistant", "content": example.completion}]
    if assistant_only:
        return {"messages": [*example.prompt, *answer]}
    if tokenizer.chat_template:
        return {"prompt": example.prompt, "completion": answer}
    return {"prompt": plain_prompt(example.prompt), "completion": example.completion}


def prompt_tokens(prompt: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the model is given before it answers."""
    if tokenizer.chat_template:
        rendered: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        return list(rendered["input_ids"])
    return list(tokenizer(plain_prompt(prompt))["input_ids"])


def plain_prompt(prompt: list[Message]) -> str:
    """A prompt for a model without a chat template: the messages, one a line."""
    return "".join(message["content"] + "\n" for message in prompt)
