"""A tiny random model of every family of causal language models that the installed transformers has."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MOST_PARAMETERS = 5_000_000
# Taken where a family's configuration has a setting of this name.
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "sliding_window": 6,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a family needs besides, or otherwise; None leaves a setting of SMALL out.
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
LATENT = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu"
EVERY_FOURTH = "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text kimi_linear"
OWN = {
    **{family: {"num_key_value_heads": 4} for family in LATENT.split()},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    **{family: {"num_hidden_layers": 4} for family in EVERY_FOURTH.split()},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "bailing_hybrid": {"layer_group_size": 2, "num_key_value_heads": 4},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "ministral": {"head_dim": 8},
    "moshi": {"sliding_window": None},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True},
    "xlstm": {"v_head_dim": None},
    "zaya": {"num_experts_per_tok": 1},
}


def families():
    """The names of all families."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(family):
    """A small configuration; raises what the family's own code raises where it cannot be so small."""
    standard = AutoConfig.for_model(family).get_text_config()
    own = OWN.get(family, {})
    settings = {
        name: value
        for name, value in SMALL.items()
        if hasattr(standard, name) and (getattr(standard, name) is not None or name.endswith("token_id"))
    }
    given = {name: value for name, value in (settings | own).items() if value is not None}
    return type(standard)(**given)


def small_model(config, attention):
    """The same random weights for every attention, in float32; MemoryError for a model that is not small."""
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > MOST_PARAMETERS:
        raise MemoryError(f"{size:,} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
