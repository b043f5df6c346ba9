"""Can the loaded model answer, and can what is trained on it be saved? Asked before hours of training are spent."""

from typing import Any

import safetensors.torch
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase

from finetune.config.schema import Eval
from finetune.data.splits import Message
from finetune.errors import UserError
from finetune.evaluation.generate import generate_answers
from finetune.model.base import TrainedModel

TOKENS = 2  # the first comes from reading the prompt, the second from the cache


def require_usable_model(model: TrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: list[Message]) -> None:
    """Answer `prompt` with two tokens, and save the adapter to memory and load it again.

    Raises UserError for a model that cannot do so; the random state is left as it was.
    """
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        try:
            if prompt:
                generate_answers(model, tokenizer, [prompt], Eval(), TOKENS, 0, lambda _: None)
            if isinstance(model, PeftModel):
                _save_and_load(model)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            family, reason = model.config.get_text_config().model_type, " ".join(str(error).split())
            raise UserError(
                f"model.path={model.config.name_or_path}: a model of the family {family} cannot be used here: it fails "
                f"when it answers a prompt or its adapter is saved ({type(error).__name__}: {reason}). Nothing was "
                "trained. Try model.attn_implementation=eager, another adapter, or choose another model."
            ) from error


def _save_and_load(model: PeftModel) -> None:
    """Raise ValueError where what is read back is not what was written."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in get_peft_model_state_dict(model).items()}
    loaded = safetensors.torch.load(safetensors.torch.save(weights))
    result: Any = set_peft_model_state_dict(model, loaded)
    if result.unexpected_keys:
        raise ValueError(f"its adapter does not know {result.unexpected_keys[0]} again")
    again = get_peft_model_state_dict(model)
    for name, weight in weights.items():
        if not torch.equal(again[name].detach().cpu(), weight):
            raise ValueError(f"{name} is not what it was before its adapter was saved")
