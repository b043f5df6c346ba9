"""What does a model answer to these prompts?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune.batch import shares_prefixes
from finetune.chat import prompt_tokens
from finetune.data import Message
from finetune.schema import Eval


@dataclass(frozen=True)
class Answer:
    """The text of an answer, its length in tokens, and whether the model ended it by itself."""

    text: str
    tokens: int
    finished: bool


def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[Message]],
    decoding: Eval,
    max_new_tokens: int,
    seed: int,
    advance: Callable[[int], None],
) -> list[Answer]:
    """Answers in the order of the prompts; computed shortest prompt first, `decoding.batch_size` at a time.

    `advance` is told how many more prompts are done.
    """
    tokens = [prompt_tokens(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(tokens[i]))
    config = _generation_config(model, tokenizer, decoding, max_new_tokens)
    answers: dict[int, Answer] = {}
    torch.manual_seed(seed)
    model.eval()
    # A slice of the hidden states that is not contiguous makes PyTorch copy the head's weight once for every row.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    for start in range(0, len(order), decoding.batch_size):
        chosen = order[start : start + decoding.batch_size]
        batch = _answer_batch(model, tokenizer, [tokens[i] for i in chosen], config)
        answers.update(zip(chosen, batch, strict=True))
        advance(len(chosen))
    hook.remove()
    return [answers[i] for i in range(len(prompts))]


def _generation_config(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, decoding: Eval, max_new_tokens: int
) -> GenerationConfig:
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    greedy = decoding.temperature == 0
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        **({} if greedy else sampling),
        eos_token_id=_end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def _end_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token and those of the model: some models name their end of turn only there."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *(token for token in own if token is not None)})


@torch.no_grad()
def _answer_batch(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    config: GenerationConfig,
) -> list[Answer]:
    """Generate from `shared prefix | padding | rest of the prompt`, the prefix computed once for all rows."""
    prefix = _shared_prefix(model, prompts, config.max_new_tokens)
    longest = max(map(len, prompts))
    rows = [prompt[:prefix] + [config.pad_token_id] * (longest - len(prompt)) + prompt[prefix:] for prompt in prompts]
    masks = [[1] * prefix + [0] * (longest - len(prompt)) + [1] * (len(prompt) - prefix) for prompt in prompts]
    output: torch.Tensor = model.generate(  # type: ignore[operator]
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device),
        past_key_values=_prefix_cache(model, prompts[0][:prefix], len(prompts)) if prefix else None,
        generation_config=config,
    )
    new = output[:, longest:].tolist()
    return [_read(tokenizer, tokens, config.eos_token_id) for tokens in new]


def _shared_prefix(model: PreTrainedModel | PeftModel, prompts: list[list[int]], max_new_tokens: int) -> int:
    """How many leading tokens all prompts share, at least one being left; 0 where the model cannot share them.

    Padding between prefix and rest takes up room in a sliding window, so a window must hold everything.
    """
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not shares_prefixes(text) or (window and window < max(map(len, prompts)) + max_new_tokens):
        return 0
    alike = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return next((i for i, column in enumerate(alike) if len(set(column)) > 1), min(map(len, prompts)) - 1)


def _prefix_cache(model: PreTrainedModel | PeftModel, prefix: list[int], rows: int) -> DynamicCache:
    """The keys and values of the prefix, once for each row."""
    cache = DynamicCache(config=model.config)
    model(
        input_ids=torch.tensor([prefix], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    cache.batch_repeat_interleave(rows)
    return cache


def _read(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int]) -> Answer:
    length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    text = str(tokenizer.decode(tokens[:length], skip_special_tokens=True))
    return Answer(text, length, finished=length < len(tokens))
