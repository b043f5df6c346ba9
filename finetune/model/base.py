"""Which base model is trained, quantised how, and where do its weights come from?"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from finetune.config.schema import AttentionKind, Model, Quantization, Source
from finetune.data.embedded import embedded_model, embedded_provenance, sha256_of_weights
from finetune.errors import UserError
from finetune.machine.device import Device
from finetune.model.shared_prefix_attention import ATTENTION, FAMILIES

TrainedModel = PreTrainedModel | PeftModel
TRAINED_PARTS = ("lora_", "modules_to_save")  # in the names of trained parameters that the base does not have


def load_meta_model(model: Model) -> PreTrainedModel:
    """The base model's shapes without its weights, on PyTorch's meta device."""
    with explain_load_errors(model):
        config = AutoConfig.from_pretrained(model_path(model), **hub_options(model))
        with torch.device("meta"):
            meta: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    with suppress(OSError):  # not every model has one
        meta.generation_config = GenerationConfig.from_pretrained(model_path(model), **hub_options(model))
    return meta


def attention_name(model: Model, config: PretrainedConfig) -> str | None:
    """The attention of a run: ours in place of `sdpa` for families that a test holds to it.

    None for the others: transformers then takes its own `sdpa`, or `eager` for those that have no other.
    """
    if model.attn_implementation is not AttentionKind.sdpa:
        return model.attn_implementation.value
    return ATTENTION if config.get_text_config().model_type in FAMILIES else None


def base_key(model: Model, quantization: Quantization, device: Device) -> str:
    """The same for runs that load the same base model in the same way, with however many threads."""
    return str((model, quantization, device.kind, device.compute_dtype, device.weight_dtype))


def load_base(
    model: Model, quantization: Quantization, device: Device, loaded: Mapping[str, PreTrainedModel] | None = None
) -> PreTrainedModel:
    """The base model on the run's device, quantised as configured; one in `loaded`, by `base_key`, is taken."""
    if loaded and (loaded_for_all := loaded.get(base_key(model, quantization, device))):
        return loaded_for_all
    with explain_load_errors(model):
        config = AutoConfig.from_pretrained(model_path(model), **hub_options(model))
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model_path(model),
            config=config,
            dtype=device.weight_dtype,
            quantization_config=_bitsandbytes_config(quantization, device),
            attn_implementation=attention_name(model, config),
            device_map={"": torch.cuda.current_device()} if device.kind == "cuda" else None,
            **hub_options(model),
        )
    keep_gradients(base)
    return base


def keep_gradients(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights when they are evaluated, for a kernel that has no gradients."""
    # Only on a CPU with AVX512-BF16 (bitsandbytes 0.50).
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def weights_digest(model: TrainedModel) -> str:
    """SHA-256 over the base model's weights as they are now, however they are stored, with or without an adapter."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, torch.Tensor) and not any(part in name for part in TRAINED_PARTS):
            name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_provenance(model: Model, loaded: TrainedModel) -> dict[str, Any]:
    """Where the weights of the `loaded` model came from, for result.json; of the hub the commit, if it is known."""
    source = {"source": model.source.value, "path": model.path}
    if model.source is Source.embedded:
        return source | embedded_provenance(model.path)
    if model.source is Source.hub:
        commit = getattr(loaded.config, "_commit_hash", None)  # private: transformers, no public name has the commit
        return source | {"revision": commit or model.revision}
    files = sorted(file for kind in ("*.safetensors", "*.bin") for file in Path(model_path(model)).glob(kind))
    return source | {"files": {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of_weights(f)} for f in files}}


def model_path(model: Model) -> str:
    """Where transformers finds the model: a folder, or its name on the hub."""
    if model.source is Source.embedded:
        return str(embedded_model(model.path))
    return str(Path(model.path).expanduser()) if model.source is Source.local else model.path


@contextmanager
def explain_load_errors(model: Model) -> Iterator[None]:
    """Raise one UserError for a model that cannot be read or fetched."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        check = "model.path, model.revision and the network; a gated model needs HF_TOKEN in the environment"
        check = check if model.source is Source.hub else "that the folder holds a whole model"
        raise UserError(f"model.path={model.path}: it could not be loaded: {reason}. Check {check}.") from error


def hub_options(model: Model) -> dict[str, Any]:
    """What every `from_pretrained` of the model is given besides its path."""
    revision = {"revision": model.revision} if model.source is Source.hub and model.revision else {}
    return {"trust_remote_code": model.trust_remote_code} | revision


def _bitsandbytes_config(quantization: Quantization, device: Device) -> BitsAndBytesConfig | None:
    if quantization.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.bnb_4bit_quant_type.value,
            bnb_4bit_compute_dtype=device.compute_dtype,
            bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        )
    if quantization.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=quantization.llm_int8_threshold)
    return None
