"""Tiny real models with random weights, one for each family that is trained on flat batches."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune.model.shared_prefix_attention import ATTENTION

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    },
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 6},
    "phi3": {"sliding_window": 6, "resid_pdrop": 0.0},
}


def model(family: str, attention: str = ATTENTION, seed: int = 0) -> PreTrainedModel:
    """A random model of the family in float32, the same for the same seed."""
    shape = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if family == "gpt2" else SHAPE
    config = AutoConfig.for_model(family, **(shape | OWN.get(family, {})))
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)
