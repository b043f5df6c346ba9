"""Tiny real models with random weights, one for each family that is trained on flat batches."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune.cli.compose import compose_config
from finetune.machine.device import choose_device
from finetune.model.adapter import add_adapter
from finetune.model.base import load_base
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


def adapted(folder, *overrides):
    """The model of the folder as `python run.py` would train it with these overrides, in float32."""
    config = compose_config(["model=local", f"model.path={folder}", "model.dtype=float32", *overrides])
    machine = choose_device(config.model, config.quantization, config.adapter)
    return add_adapter(load_base(config.model, config.quantization, machine), config.adapter, config.seed)


def give_the_adapter_an_effect(trained):
    """Draw its weights at random, which are zeros before training; the same for every model of one shape."""
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
