"""Can the loaded model answer, and can what is trained on it be saved? Asked before hours of training are spent."""

from typing import Any

import safetensors.torch
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import GenerationConfig, PreTrainedTokenizerBase

from finetune.config.schema import Eval
from finetune.data.splits import Message
from finetune.errors import UserError
from finetune.evaluation.generate import generate_answers
from finetune.model.base import TrainedModel
from finetune.model.shared_prefix_attention import FAMILIES
from finetune.training.tokenize import prompt_tokens

# Of a prompt so many tokens are read to see whether they are read faithfully, at least and at most.
LEAST_TOKENS, MOST_TOKENS = 6, 64
# What rounding may change of the largest logit: so many units in the last place, and at most this share.
ROUNDING_STEPS, MOST_ROUNDING = 1000, 0.1
NOISE_RATIO = 3  # so many times as much as another row in the batch changes by rounding, padding may change
TOKENS = 2  # the first comes from reading the prompt, the second from the cache


def require_usable_model(model: TrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: list[Message]) -> None:
    """Answer `prompt` with two tokens, and save the adapter to memory and load it again.

    Of a family that no test holds to it, later tokens and padding must change nothing that is read. Raises UserError
    for a model that cannot do all this; the random state is left as it was.
    """
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        try:
            if prompt:
                generate_answers(model, tokenizer, [prompt], Eval(), TOKENS, 0, lambda _: None)
                if model.config.get_text_config().model_type not in FAMILIES:  # which tests hold to it
                    require_faithful_reading(model, prompt_tokens(prompt, tokenizer)[-MOST_TOKENS:])
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


@torch.no_grad()
def require_faithful_reading(model: TrainedModel, ids: list[int]) -> None:
    """Raise ValueError where a later token changes what is read before it, or padding what is answered.

    Encoders do the one, and some recurrent models and absolute positions the other.
    """
    if len(ids) < LEAST_TOKENS:
        return
    logits = _read(model, ids)
    # By how much rounding may change a logit.
    dtype = model.dtype
    if torch.is_autocast_enabled(model.device.type):
        dtype = torch.get_autocast_dtype(model.device.type)
    quantised = getattr(model.config, "quantization_config", None)  # products are rounded more than the type says
    share = MOST_ROUNDING if quantised else min(ROUNDING_STEPS * torch.finfo(dtype).eps, MOST_ROUNDING)
    allowed = share * logits.abs().max()
    other = [*ids[:-1], ids[0] if ids[0] != ids[-1] else ids[1]]
    if (_read(model, other)[:-1] - logits[:-1]).abs().max() > allowed:
        raise ValueError("later tokens change how earlier ones are read, as in an encoder: it is no causal model")
    shorter = ids[LEAST_TOKENS // 2 :]
    alone, padded = _first_logits(model, [shorter]), _first_logits(model, [shorter, ids])
    beside = _first_logits(model, [shorter, ids[: len(shorter)]])  # as int8 rounds by all rows of a batch
    if (alone - padded).abs().max() > max(allowed, NOISE_RATIO * (alone - beside).abs().max()):
        raise ValueError("padding in front of a prompt changes its answer, so prompts cannot be answered in batches")


def _read(model: TrainedModel, ids: list[int]) -> torch.Tensor:
    """The logits of each token, tokens x vocabulary."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits.float()


def _first_logits(model: TrainedModel, prompts: list[list[int]]) -> torch.Tensor:
    """The logits of the first prompt's first new token, the prompts padded on the left as for generation."""
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    output: Any = model.generate(  # type: ignore[operator]
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=1, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        ),
    )
    logits: torch.Tensor = output.logits[0][0]
    return logits.float()


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
