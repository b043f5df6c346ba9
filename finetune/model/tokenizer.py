"""With which tokens does the model read and stop?"""

from pathlib import Path

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig

from finetune.config.schema import Model
from finetune.errors import UserError
from finetune.model.base import TrainedModel, explain_load_errors, hub_options, model_path


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The tokenizer of the base model as it comes; see `apply_tokenizer_settings`."""
    with explain_load_errors(model):
        tokenizer = AutoTokenizer.from_pretrained(model_path(model), **hub_options(model))
    if model.plain_prompt:
        tokenizer.chat_template = None
    return tokenizer


def apply_tokenizer_settings(settings: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the end token and the chat template that the settings name; raises UserError where they cannot be used."""
    if settings.eos_token:
        if settings.eos_token not in tokenizer.get_vocab():
            special = ", ".join(map(str, tokenizer.all_special_tokens))
            problem = f"trainer.eos_token={settings.eos_token}: the tokenizer has no such token."
            raise UserError(f"{problem} Its special tokens: {special}.")
        tokenizer.eos_token = settings.eos_token
    if tokenizer.eos_token is None:
        raise UserError(
            f"model.path={tokenizer.name_or_path}: its tokenizer has no end token, so a model could not learn to stop. "
            "Name the one that its chat template ends answers with, trainer.eos_token=TOKEN, or choose another model."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.chat_template_path:
        tokenizer.chat_template = Path(settings.chat_template_path).read_text(encoding="utf-8")
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
        except TemplateSyntaxError as error:
            key = f"trainer.chat_template_path={settings.chat_template_path}"
            raise UserError(f"{key}: the chat template cannot be read: {error}") from error
        except TemplateError:  # it may want other messages: the rows will tell
            pass


def end_tokens(model: TrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token and those of the model: some models name their end of turn only there."""
    ends = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
