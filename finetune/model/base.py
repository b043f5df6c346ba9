"""What exactly is trained? The tokenizer, the (quantised) base model and the adapter on it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune.config.choices import Attention, Source
from finetune.config.schema import Adapter, Model, Quantization, UserError
from finetune.data import embedded as fetch
from finetune.machine.device import Device
from finetune.runs import cache_keys as alike
from finetune.training import flat_batch as batch

TRAINED_PARTS = ("lora_", "modules_to_save")
# Weights on the CPU, by name.
Weights = dict[str, torch.Tensor]

# Base models that are loaded already, by alike.base_key: the trials of a sweep are forked with theirs.
ready: dict[str, PreTrainedModel] = {}


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The tokenizer of the base model as it comes; see tokens.apply_settings."""
    with _explained(model):
        tokenizer = AutoTokenizer.from_pretrained(_place(model), **_hub_options(model))
    if model.plain_prompt:
        tokenizer.chat_template = None
    return tokenizer


def load_outline(model: Model) -> PreTrainedModel:
    """The base model's shapes without its weights, on PyTorch's meta device."""
    with _explained(model):
        config = AutoConfig.from_pretrained(_place(model), **_hub_options(model))
        with torch.device("meta"):
            outline: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=model.trust_remote_code
            )
    with suppress(OSError):  # not every model has one
        outline.generation_config = GenerationConfig.from_pretrained(_place(model), **_hub_options(model))
    return outline


def attention(model: Model) -> str:
    """The attention of a run: ours in place of PyTorch's, to which it leaves batches that are not flat."""
    return batch.ATTENTION if model.attn_implementation is Attention.sdpa else model.attn_implementation.value


def load_base(model: Model, quantization: Quantization, device: Device) -> PreTrainedModel:
    """The base model on the run's device, quantised as configured."""
    if ready and (known := ready.pop(alike.base_key(model, quantization, device), None)):
        return known
    with _explained(model):
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            _place(model),
            dtype=device.weight_dtype,
            quantization_config=_bitsandbytes_config(quantization, device),
            attn_implementation=attention(model),
            device_map={"": torch.cuda.current_device()} if device.kind == "cuda" else None,
            **_hub_options(model),
        )
    keep_gradients(base)
    return base


def keep_gradients(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on the first evaluation.

    On a CPU with AVX512-BF16, a `Linear4bit` that is evaluated repacks its weight for a kernel without autograd, and
    every later training step loses the gradient that flows through it (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def add_adapter(base: PreTrainedModel, adapter: Adapter, seed: int) -> PreTrainedModel | PeftModel:
    """The base with a fresh adapter in float32, or the base itself where all weights are trained.

    Raises UserError where `adapter.target_modules` names no module of the model.
    """
    if not adapter.enabled:
        return base
    targets = adapter.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        bias=adapter.bias.value,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=adapter.modules_to_save,
        layers_to_transform=adapter.layers_to_transform,
    )
    torch.manual_seed(seed)
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        raise UserError(
            f"adapter.target_modules={targets}: {error}. Linear layers here: {_linear_names(base)}."
        ) from error
    keep_gradients(model)
    keep_scales(model)
    return model


def keep_scales(model: torch.nn.Module) -> None:
    """Give int8 weights their scales back before each product.

    On a CPU, DoRA replaces a weight by a copy without them after each product (PEFT 0.21 with bitsandbytes 0.50).
    """

    def restore(layer: Any, inputs: Any) -> None:
        if layer.weight.SCB is None:
            layer.weight.SCB = layer.state.SCB

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.register_forward_pre_hook(restore)


def digest(model: PreTrainedModel | PeftModel) -> str:
    """SHA-256 over the base model's weights as they are now, however they are stored, with or without an adapter."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, torch.Tensor) and not any(part in name for part in TRAINED_PARTS):
            plain = (
                name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
            )
            found.update(f"{plain} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def trained_base_weights(model: torch.nn.Module) -> Weights:
    """A copy of those weights of the base that training will change: biases (`adapter.bias`) or all of them."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not any(part in name for part in TRAINED_PARTS)
    }


@contextmanager
def untouched(model: PreTrainedModel | PeftModel, originals: Weights) -> Iterator[None]:
    """Within the block the model is the base as it was loaded: adapter off, and `originals` in their places.

    PEFT's `disable_adapter` alone leaves trained biases in the base.
    """
    tuned = trained_base_weights(model) if originals else {}
    _copy_into(model, originals)
    try:
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                yield
        else:
            yield
    finally:
        _copy_into(model, tuned)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """All parameters and the trainable ones; a 4-bit weight counts as the numbers that it holds, not its bytes."""
    sizes = [(_elements(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


def provenance(model: Model, loaded: Any) -> dict[str, Any]:
    """Where the weights of the `loaded` model came from, for result.json; of the hub the commit, if it is known."""
    where: dict[str, Any] = {"source": model.source.value, "path": model.path}
    if model.source is Source.embedded:
        return where | fetch.provenance(model.path)
    if model.source is Source.hub:
        return where | {"revision": getattr(loaded.config, "_commit_hash", None) or model.revision}
    files = sorted(file for kind in ("*.safetensors", "*.bin") for file in Path(_place(model)).glob(kind))
    return where | {"files": {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}}


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _place(model: Model) -> str:
    if model.source is Source.embedded:
        return str(fetch.model(model.path))
    return str(Path(model.path).expanduser()) if model.source is Source.local else model.path


@contextmanager
def _explained(model: Model) -> Iterator[None]:
    """Tell a model that cannot be read or fetched in one paragraph."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        check = "Check that the folder holds a whole model"
        if model.source is Source.hub:
            check = "Check model.path, model.revision and the network; a gated model needs HF_TOKEN in the environment"
        raise UserError(f"model.path={model.path}: it could not be loaded: {reason}. {check}.") from error


def _hub_options(model: Model) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    return options | ({"revision": model.revision} if model.source is Source.hub and model.revision else {})


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


def _linear_names(model: torch.nn.Module) -> str:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return ", ".join(sorted(names))


def _copy_into(model: torch.nn.Module, weights: Weights) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])


def _elements(parameter: torch.nn.Parameter) -> int:
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return int(torch.Size(shape).numel()) if shape is not None else parameter.numel()
