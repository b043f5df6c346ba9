"""Every family of causal models that transformers has is read as its eager form reads it, or is refused.

The table of docs/models.md is what this test finds; FINETUNE_WRITE_DOCS=1 writes it anew.
"""

import copy
import os
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.causal_families import families, small_config, small_model
from transformers import GenerationConfig

from finetune.cli.compose import compose_config
from finetune.evaluation.generate import generate_batch
from finetune.evaluation.smoke_check import require_faithful_reading
from finetune.model.base import attention_name
from finetune.model.shared_prefix_attention import ATTENTION

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PROMPTS = [
    [7, 8, 9, *torch.randint(5, 60, (n,), generator=torch.Generator().manual_seed(n)).tolist()] for n in (9, 12, 7)
]
NEW, END = 4, 63
GROUPS = {
    ATTENTION: "Flat batches, our attention",
    "sdpa": "Padded batches, `sdpa`",
    "eager": "Padded batches, `eager`",
    "refused": "Refused before training",
    "untried": "Not tried here",
}


def greedy(model, prompt):
    """The plain loop: the whole text is read again for each token."""
    ids = list(prompt)
    for _ in range(NEW):
        mask = torch.ones(1, len(ids), dtype=torch.long)
        ids.append(int(model(input_ids=torch.tensor([ids]), attention_mask=mask).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def answers(model):
    """What the evaluation generates, in one batch."""
    tokenizer = SimpleNamespace(chat_template="none", decode=lambda tokens, **_: " ".join(map(str, tokens)))
    config = GenerationConfig(do_sample=False, eos_token_id=[END], pad_token_id=0)
    return [[int(token) for token in a.text.split()] for a in generate_batch(model, tokenizer, PROMPTS, config, NEW)]


def until_end(tokens):
    return tokens[: tokens.index(END)] if END in tokens else tokens


@torch.no_grad()
def group_of(family):
    """How the family is trained here; AssertionError where it would be read otherwise than by its eager form."""
    try:
        config = small_config(family)
        ours = small_model(copy.deepcopy(config), attention_name(compose_config([]).model, config))
        logits = ours(input_ids=torch.tensor(PROMPTS[:1])).logits
    except Exception:  # each family has reasons of its own why it cannot be so small
        return "untried"
    try:
        require_faithful_reading(ours, PROMPTS[0])
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):
        return "refused"
    attention = ours.config.get_text_config()._attn_implementation  # private: transformers, no public name
    eager = ours if attention == "eager" else small_model(copy.deepcopy(config), "eager")
    expected = eager(input_ids=torch.tensor(PROMPTS[:1])).logits
    assert (logits - expected).abs().max() < 1e-5 * max(1, expected.abs().max()), f"{family}: other logits than eager"
    plain = [until_end(greedy(eager, prompt)) for prompt in PROMPTS]
    assert answers(ours) == plain, f"{family}: other answers than a plain loop"
    return attention


def table(groups):
    rows = [f"| {title} | {', '.join(groups[name])} |" for name, title in GROUPS.items() if groups[name]]
    return "\n".join(["| how | families (`model_type` of transformers) |", "|---|---|", *rows])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of a hundred families
def test_every_family_is_read_as_eager_reads_it_or_refused_and_the_page_says_which():
    groups = defaultdict(list)
    for family in families():
        groups[group_of(family)].append(family)
    page = PAGE.read_text()
    before, _, rest = page.partition("| how |")
    written = before + table(groups) + "\n" + rest.partition("\n\n")[1] + rest.partition("\n\n")[2]
    if os.environ.get("FINETUNE_WRITE_DOCS"):
        PAGE.write_text(written)
    assert page == written
    assert {"bert", "roberta", "rwkv"} <= set(groups["refused"])
    assert {"bloom", "mpt", "gpt_oss", "gemma2", "falcon", "gpt_neo", "gptj", "deepseek_v3"} <= set(
        groups["sdpa"] + groups["eager"]
    )
    assert len(groups["untried"]) < 40
