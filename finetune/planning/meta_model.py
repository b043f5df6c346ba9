"""What would be alive at once, were it computed? A model with shapes but no contents, and a count of its tensors.

The model, adapter, trainer, loss and cache are those of a run, and every tensor is counted for as long as it lives.
Nothing is computed, so an 8B model takes seconds, and no formula knows a model family.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import finalize

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # private: PyTorch, has no public fake tensors
from torch.utils._python_dispatch import TorchDispatchMode  # private: PyTorch, its documentation says to use this
from torch.utils._pytree import tree_leaves  # private: PyTorch, what a dispatch mode is called with is nested
from transformers import PreTrainedModel
from trl.kernels import chunked_logprob

from finetune.config.schema import Config
from finetune.machine.device import Device
from finetune.machine.libraries import set_for_a_moment
from finetune.model.adapter import add_adapter
from finetune.model.base import TrainedModel, attention_name

Parts = dict[str, int]
"""Bytes by what they are for."""

# A deeper model is measured at two depths, and each further layer is taken to add as much as those between. Where the
# worst moment of the deeper one is another, two further depths are tried.
Depths = tuple[tuple[int, int], ...]
DEPTHS: Depths = ((2, 4), (6, 10), (12, 18))


def build_meta_model(outline: PreTrainedModel, config: Config, machine: Device) -> TrainedModel:
    """The model that a run trains, base and adapter, of fake tensors: shapes, types and devices, but no contents."""
    base = copy.deepcopy(outline)
    if attention := attention_name(config.model, base.config):
        base.set_attn_implementation(attention)
    base.to(machine.weight_dtype)  # type: ignore[arg-type]
    with torch.device("meta"):
        tuned = add_adapter(base, config.adapter, config.seed)
    mode, device = FakeTensorMode(allow_non_fake_inputs=True), torch.device(machine.kind)
    fake_parameters: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in tuned.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            fake = torch.nn.Parameter(FakeTensor(mode, parameter.data, device), parameter.requires_grad)
            setattr(module, name, fake_parameters.setdefault(id(parameter), fake))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, FakeTensor(mode, buffer.to("meta"), device))
    tuned.to = lambda *_, **__: tuned  # type: ignore[assignment]  # the trainer would move it
    return tuned


def peak_tensor_bytes(tuned: TrainedModel, call: Callable[[], None], depths: Depths = DEPTHS) -> Parts:
    """The bytes that are alive at once at the worst moment of `call`, a use of the meta model `tuned`."""
    depth = tuned.config.get_text_config().num_hidden_layers
    stacks = [m for m in tuned.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    for few, many in depths if len(stacks) == 1 else ():
        if depth <= many:
            break
        shallow, deep = (_at_depth(tuned, stacks[0], layers, call) for layers in (few, many))
        each = {part: (deep.get(part, 0) - shallow.get(part, 0)) / (many - few) for part in deep | shallow}
        if min(each.values()) >= 0:
            return {part: round(deep.get(part, 0) + more * (depth - many)) for part, more in each.items()}
    return _most_alive(tuned, call)


def _at_depth(tuned: TrainedModel, stack: torch.nn.ModuleList, layers: int, call: Callable[[], None]) -> Parts:
    """`_most_alive` of a model with the first `layers` of its layers."""
    text, whole = tuned.config.get_text_config(), stack._modules  # private: PyTorch, a ModuleList cannot be swapped
    depth, kinds = text.num_hidden_layers, getattr(text, "layer_types", None)
    try:
        stack._modules = dict(list(whole.items())[:layers])  # private: PyTorch, as above
        text.num_hidden_layers = layers
        if kinds:
            text.layer_types = kinds[:layers]
        return _most_alive(tuned, call)
    finally:
        stack._modules, text.num_hidden_layers = whole, depth  # private: PyTorch, as above
        if kinds:
            text.layer_types = kinds


def _most_alive(tuned: TrainedModel, call: Callable[[], None]) -> Parts:
    ledger = _Ledger(tuned.config.get_text_config().vocab_size)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(lambda p: ledger.assign(p.grad, "gradients")) for p in trained]
    # TRL's loss in plain PyTorch, as a compiled kernel needs contents.
    plain_loss = set_for_a_moment(vars(chunked_logprob), "_TRITON_AVAILABLE", False)  # private: TRL, has no setting
    with ledger, plain_loss, torch.autograd.set_multithreading_enabled(False):
        call()
    for hook in hooks:
        hook.remove()
    return dict(+ledger.peak)  # without what counts nothing


class _Ledger(TorchDispatchMode):
    """Counts the storages that are alive, by what they are for, and remembers the moment when they were most."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.alive: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.held: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        item = torch.ops.aten._local_scalar_dense.default  # private: PyTorch, what `tensor.item()` calls
        if func is item and isinstance(args[0], FakeTensor):
            return 1.0  # a metric that is only logged
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self.held:
                self._hold(storage, "before", 0)  # a view of it may come out
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _without_masks(args[1]))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):  # a mask has contents, which positions have, too
                self._note(tensor)
        return result

    def assign(self, tensor: torch.Tensor | None, part: str) -> None:
        """Count a tensor, from now on, as `part`."""
        key = id(tensor.untyped_storage()) if tensor is not None else None
        if key in self.held:
            before, size = self.held[key]
            self.alive[before] -= size
            self.alive[part] += size
            self.held[key] = (part, size)

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.held:
            return
        part = "logits" if tensor.dim() and tensor.shape[-1] == self.vocabulary else "activations"
        self._hold(storage, part, size)
        self.alive[part] += size
        if self.alive.total() > self.peak.total():
            self.peak = Counter(self.alive)

    def _hold(self, storage: torch.UntypedStorage, part: str, size: int) -> None:
        """Remember a storage until it is gone, as another may then have its id."""
        self.held[id(storage)] = (part, size)
        finalize(storage, self._forget, id(storage))

    def _forget(self, key: int) -> None:
        part, size = self.held.pop(key)
        self.alive[part] -= size


def _without_masks(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Masks as the positions that they select: without contents, a result must have a length that is known."""
    positions: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool and not isinstance(index, FakeTensor):
            positions += index.nonzero(as_tuple=True)
        else:
            positions.append(index)
    return positions
