"""How is it trained? By TRL's SFTTrainer with the library's own settings, on flat batches where these allow it."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer

from finetune.errors import UserError
from finetune.machine.libraries import set_for_a_moment
from finetune.machine.process_memory import release_freed_memory
from finetune.model.adapter import trained_parameters
from finetune.model.base import TrainedModel
from finetune.model.shared_prefix_attention import shares_prefixes
from finetune.training.checkpoints import commit_checkpoint, find_fault, prepare_checkpoint
from finetune.training.flat_batch import Batch, collate_shared_prefix, count_real_tokens, negative_log_likelihood
from finetune.training.prepare import PreparedRun, checkpointing_name
from finetune.training.tokenize import IGNORE_INDEX

TIDY_STEPS = 8  # steps after which freed memory is given back; at each step, it would cost time to get it again


class Trainer(SFTTrainer):
    """SFTTrainer on flat batches (flat_batch.py) where the model and the settings allow, with its own token counts."""

    model: TrainedModel
    args: SFTConfig
    processing_class: PreTrainedTokenizerBase
    eval_dataset: Dataset

    def __init__(self, model: TrainedModel, prepared: PreparedRun, callbacks: list[TrainerCallback]) -> None:
        self.data_fingerprint = prepared.splits.fingerprint
        self.tokens: torch.Tensor | int = 0
        self.loss_tokens: torch.Tensor | int = 0
        self.flat, self.layout = _layout(model, prepared.settings)
        args = copy.copy(prepared.settings)
        args.assistant_only_loss = False  # the rows carry their labels already
        args.dataset_kwargs = {"skip_prepare_dataset": True}  # and are prepared
        precise = trained_parameters(model) if isinstance(model, PeftModel) else {}
        trained_weights = {name: weight.detach().clone() for name, weight in precise.items()}
        super().__init__(
            model=model,
            args=args,
            train_dataset=prepared.rows.train,
            eval_dataset=prepared.rows.validation,
            processing_class=prepared.tokenizer,
            data_collator=collate_shared_prefix if self.flat else None,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # TrainingProgress shows the same on one line
        for name, weight in trained_weights.items():  # SFTTrainer casts to bfloat16, in which AdamW loses small updates
            parameter = model.get_parameter(name)
            parameter.data = weight.to(parameter.device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step % TIDY_STEPS == 0:
            release_freed_memory()
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training:
            labels = inputs["shift_labels"] if self.flat else inputs["labels"][:, 1:]
            self.tokens += count_real_tokens(inputs)
            self.loss_tokens += (labels != IGNORE_INDEX).sum()
        if not self.flat:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        nll, count = negative_log_likelihood(model, inputs)
        if num_items_in_batch is None:
            return nll / count
        # the count is that of all processes, whose gradients are averaged
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return nll * processes / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The plain negative log-likelihood of a token over all validation rows, however they are cut into batches."""
        release_freed_memory()
        nll, count = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        with torch.no_grad(), mixed_precision(self.args):
            for batch in self.validation_batches():
                likelihood = negative_log_likelihood if self.flat else _likelihood_by_trl
                batch_nll, batch_count = likelihood(self.model, batch)
                nll, count = nll + batch_nll, count + batch_count
        nll, count = self.accelerator.reduce(torch.stack([nll, count]), reduction="sum").tolist()
        losses = {"eval_loss": nll / count}
        release_freed_memory()
        self.log(losses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses

    def validation_batches(self) -> Iterator[Batch]:
        """This process's share of the validation rows, none of them twice."""
        rows, size = self.eval_dataset, self.args.per_device_eval_batch_size
        if self.args.packing or self.args.padding_free:  # end to end, where the mask grows with the square of all rows
            size = min(size, self.args.per_device_train_batch_size)
        mine = range(self.args.process_index, len(rows), self.args.world_size)
        for start in range(0, len(mine), size):
            batch = self.data_collator([rows[i] for i in mine[start : start + size]])
            yield self._prepare_inputs(batch)  # private: transformers, moves a batch to the device

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:  # private: transformers, as below
        self.log({})  # a run that continues counts on from here
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        checkpoint, unfinished = folder / f"checkpoint-{step}", prepare_checkpoint(folder)
        with set_for_a_moment(vars(self.args), "output_dir", str(unfinished)):
            super()._save_checkpoint(model, trial)  # private: transformers, callbacks are called too late
        best = folder / f"checkpoint-{self.state.best_global_step}"
        if best == checkpoint or best.exists():  # transformers looks for it where this one is written
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(str(unfinished / checkpoint.name / "trainer_state.json"))
        commit_checkpoint(unfinished / checkpoint.name, checkpoint, {"step": step, "data": self.data_fingerprint})
        if self.args.should_save:
            kept = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder), self.args.save_total_limit, kept)

    def _load_best_model(self) -> None:  # private: transformers, which would go on with other weights
        best = Path(str(self.state.best_model_checkpoint))
        if fault := find_fault(best):
            raise UserError(
                f"{best}: the best checkpoint is broken: {fault}. Start the run again under another name=NAME, or "
                "leave out trainer.load_best_model_at_end there."
            )
        super()._load_best_model()  # private: transformers, as above

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: TRL's would be an empty form in the folder of checkpoints."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        counts = torch.tensor([int(self.tokens), int(self.loss_tokens)], device=self.args.device)
        total = self.accelerator.reduce(counts, reduction="sum").tolist()
        super().log(logs | {"tokens": total[0], "loss_tokens": total[1]}, start_time)


def _likelihood_by_trl(model: TrainedModel, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """As `flat_batch.negative_log_likelihood`, of a batch that TRL lays out; no logits are kept."""
    output = model(**inputs, fused_lm_head=True, use_cache=False)
    return -output.log_probs.sum(), output.label_mask.sum()


def mixed_precision(args: TrainingArguments) -> torch.autocast:
    """Within the block, products in the type of training, as Accelerate has them."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    enabled = bool(args.bf16 or args.fp16)
    # Weights change within the block, where base and tuned model answer in turn: no cast of one may be kept.
    return torch.autocast(args.device.type, dtype, enabled, cache_enabled=False)


def recompute_activations(trainer: Trainer) -> None:
    """Where the settings ask for it, what transformers does when training begins: keep no activations inside layers."""
    name = checkpointing_name()
    if getattr(trainer.args, name):
        getattr(trainer.model, f"{name}_enable")(**{f"{name}_kwargs": getattr(trainer.args, f"{name}_kwargs")})


def run_training(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train, from `checkpoint` on where there is one; that of the last step is only loaded."""
    release_freed_memory()
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint else None
    if state is None or state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:  # `train` would take a step of the next epoch
        trainer.state = state
        trainer.callback_handler.on_train_begin(trainer.args, state, trainer.control)
        trainer._load_from_checkpoint(str(checkpoint))  # private: transformers, which loads only to train on
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
            trainer._load_best_model()  # private: transformers, as above
        trainer.callback_handler.on_train_end(trainer.args, state, trainer.control)
    # Accelerate leaves its mixed precision in the model, where training took a step.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    release_freed_memory()
    _require_finite(trainer)


def _require_finite(trainer: Trainer) -> None:
    """Raise FloatingPointError where the last update, which no later loss shows, left NaN or infinity."""
    for name, weight in trained_parameters(trainer.model).items():
        if not torch.isfinite(weight).all():
            raise FloatingPointError(diverged(f"The weights of {name} are not finite", trainer.state.global_step))


def diverged(what: str, step: int) -> str:
    """What a user is told of a run that cannot go on, and what may help."""
    return f"{what} at step {step}: it diverged. Try a lower trainer.learning_rate or a longer trainer.warmup_steps."


def save_trained(model: TrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what was trained: `adapter/` in PEFT's format, or `model/` where all weights were trained."""
    target = folder / ("adapter" if isinstance(model, PeftModel) else "model")
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))


def _layout(model: TrainedModel, args: SFTConfig) -> tuple[bool, str]:
    """Whether training runs on flat batches, and in words how a batch is laid out and why."""
    if args.packing or args.padding_free:
        return False, "rows are laid end to end by TRL (trainer.packing or trainer.padding_free)"
    if args.neftune_noise_alpha or args.pad_to_multiple_of:
        return False, "padded batches: trainer.neftune_noise_alpha and trainer.pad_to_multiple_of are defined on these"
    if args.loss_type != "nll" or args.label_smoothing_factor:
        return False, f"padded batches: TRL computes this loss ({args.loss_type}) itself"
    if not shares_prefixes(model.config):
        text = model.config.get_text_config()
        attention = text._attn_implementation  # private: transformers, no public name
        return False, f"padded batches, {attention} of transformers: {text.model_type} with it has no flat form here"
    return True, "flat batches: no padding, and what all rows of a batch begin with is computed once"
