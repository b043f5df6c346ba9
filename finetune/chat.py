"""What exactly does the model read?

Training and generation both get their text here, so that a prompt is the same tokens in both.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune.data import Example, Message


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
