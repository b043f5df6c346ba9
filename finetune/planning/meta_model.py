"""What would be alive at once, were it computed? A model with shapes but no contents, and a count of its tensors.

The model, adapter, trainer, loss and cache are those of a run, and every tensor is counted for as long as it lives.
Nothing is computed, so an 8B model takes seconds, and no formula knows a model family.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from trl.kernels import chunked_logprob

from finetune.config.schema import Config
from finetune.machine.device import Device
from finetune.model.adapter import add_adapter
from finetune.model.base import attention_name

Parts = dict[str, int]
"""Bytes by what they are for."""

# A deeper model is gone through at two depths, and each further layer is taken to add as much as those between. Where
# the worst moment of the deeper one is another, two further depths are tried.
DEPTHS = ((2, 4), (6, 10), (12, 18))


def build_meta_model(outline: PreTrainedModel, config: Config, machine: Device) -> Any:
    """The model that a run trains, base and adapter, with shapes and types but no contents."""
    base: Any = copy.deepcopy(outline)
    base.set_attn_implementation(attention_name(config.model))
    base.to(machine.weight_dtype)
    with torch.device("meta"):
        tuned: Any = add_adapter(base, config.adapter, config.seed)
    mode, place = FakeTensorMode(allow_non_fake_inputs=True), torch.device(machine.kind)
    hollowed: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in tuned.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.nn.Parameter(FakeTensor(mode, parameter.data, place), parameter.requires_grad)
                module._parameters[name] = hollowed.setdefault(id(parameter), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer.to("meta"), place)
    tuned.to = lambda *_, **__: tuned  # it is there already, and the trainer would move it
    return tuned


def peak_tensor_bytes(tuned: Any, call: Callable[[], None]) -> Parts:
    """The bytes that are alive at once at the worst moment of `call`, a use of the hollow model `tuned`."""
    depth = tuned.config.get_text_config().num_hidden_layers
    stacks = [m for m in tuned.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    for few, many in DEPTHS if len(stacks) == 1 else ():
        if depth <= many:
            break
        shallow, deep = (_at_depth(tuned, stacks[0], layers, call) for layers in (few, many))
        each = {part: (deep.get(part, 0) - shallow.get(part, 0)) / (many - few) for part in deep | shallow}
        if min(each.values()) >= 0:
            return {part: round(deep.get(part, 0) + more * (depth - many)) for part, more in each.items()}
    return _most_alive(tuned, call)


def _at_depth(tuned: Any, stack: torch.nn.ModuleList, layers: int, call: Callable[[], None]) -> Parts:
    """`_most_alive` of a model with the first `layers` of its layers."""
    text, whole = tuned.config.get_text_config(), stack._modules
    kinds = getattr(text, "layer_types", None)
    depth = text.num_hidden_layers
    try:
        stack._modules = dict(list(whole.items())[:layers])
        text.num_hidden_layers = layers
        if kinds:
            text.layer_types = kinds[:layers]
        return _most_alive(tuned, call)
    finally:
        stack._modules, text.num_hidden_layers = whole, depth
        if kinds:
            text.layer_types = kinds


def _most_alive(tuned: Any, call: Callable[[], None]) -> Parts:
    ledger = _Ledger(tuned.config.get_text_config().vocab_size)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(lambda p: ledger.call(p.grad, "gradients")) for p in trained]
    with ledger, _no_kernels(), torch.autograd.set_multithreading_enabled(False):
        call()
    for hook in hooks:
        hook.remove()
    return dict(ledger.peak)


@contextmanager
def _no_kernels() -> Iterator[None]:
    """TRL's loss in plain PyTorch: a compiled kernel wants contents."""
    compiled = chunked_logprob._TRITON_AVAILABLE
    chunked_logprob._TRITON_AVAILABLE = False
    try:
        yield
    finally:
        chunked_logprob._TRITON_AVAILABLE = compiled


class _Ledger(TorchDispatchMode):
    """Counts the storages that are alive, by what they are for, and remembers the moment when they were most."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.alive: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.held: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0  # a metric that is only logged
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, FakeTensor):  # what was there before, such as a weight, of which a view may come out
                self.held.setdefault(id(tensor.untyped_storage()), ("before", 0))
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _positions(args[1]))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._note(tensor)
        return result

    def call(self, tensor: torch.Tensor, part: str) -> None:
        """Count a tensor, from now on, as `part`."""
        key = id(tensor.untyped_storage())
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
        self.held[key] = (part, size)
        self.alive[part] += size
        finalize(storage, self._forget, key)
        if self.alive.total() > self.peak.total():
            self.peak = Counter(self.alive)

    def _forget(self, key: int) -> None:
        part, size = self.held.pop(key)
        self.alive[part] -= size


def _positions(indices: list[Any]) -> list[Any]:
    """Masks as the positions that they select: without contents, a result must have a length that is known."""
    found: list[Any] = []
    for index in indices:
        real = isinstance(index, torch.Tensor) and not isinstance(index, FakeTensor)
        found.extend(index.nonzero(as_tuple=True) if real and index.dtype is torch.bool else [index])
    return found
