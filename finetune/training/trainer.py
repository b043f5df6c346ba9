"""How is it trained? By TRL's SFTTrainer with the library's own settings, on flat batches where these allow it."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from finetune.errors import UserError
from finetune.machine.libraries import set_for_a_moment
from finetune.machine.process_memory import release_freed_memory
from finetune.model.adapter import trained_parameters
from finetune.model.base import TrainedModel
from finetune.model.shared_prefix_attention import shares_prefixes
from finetune.runs.files import remove_folder, replace_folder, tell_full_disk
from finetune.runs.folder import list_checkpoints
from finetune.runs.outcome import is_out_of_memory
from finetune.training.checkpoints import commit_checkpoint, find_fault, prepare_checkpoint, remove_older
from finetune.training.counters import Counters
from finetune.training.flat_batch import Batch, collate_shared_prefix, count_real_tokens, negative_log_likelihood
from finetune.training.prepare import PreparedRun, checkpointing_name
from finetune.training.split_batch import split_batch
from finetune.training.tokenize import IGNORE_INDEX

NO_ORIGIN: Mapping[str, Any] = MappingProxyType({})
TIDY_STEPS = 8  # steps after which freed memory is given back; at each step, it would cost time to get it again


@dataclass
class StepTotals:
    """What a step has come to so far, in numbers of the device, and its micro-batches."""

    loss: torch.Tensor | float = 0.0
    tokens: torch.Tensor | int = 0
    loss_tokens: torch.Tensor | int = 0
    batches: list[Batch] = field(default_factory=list)


class Trainer(SFTTrainer):
    """SFTTrainer on flat batches (flat_batch.py) where the model and the settings allow, with counts of its own.

    A step whose loss or gradient is not finite changes nothing and is counted; after `most_skipped` of them in a row
    FloatingPointError is raised. A micro-batch for which memory runs out is computed in parts from then on.
    """

    model: TrainedModel
    args: SFTConfig
    processing_class: PreTrainedTokenizerBase
    eval_dataset: Dataset

    def __init__(
        self,
        model: TrainedModel,
        prepared: PreparedRun,
        callbacks: list[TrainerCallback],
        counters: Counters | None = None,
        origin: Mapping[str, Any] = NO_ORIGIN,
        most_skipped: int = 3,
        tell: Callable[[str], object] = print,
    ) -> None:
        self.counters, self.origin = counters or Counters(), origin  # what a checkpoint says that it comes from
        self.most_skipped, self.tell = most_skipped, tell
        self.step, self.divergence = StepTotals(), ""
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

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next step."""
        self.step = StepTotals()
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        if self.state.global_step % TIDY_STEPS == 0:
            release_freed_memory()
        self.step.batches.append(inputs)
        pending = [inputs]
        while True:
            try:
                for batch in pending:
                    loss = self._train_on(model, batch, num_items_in_batch)
                return loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._use_more_parts(num_items_in_batch):
                    raise
            # outside of the handler, as what is raised holds the activations
            pending = self.step.batches  # the step is begun again, as gradients may be those of half of a batch
            self.step = StepTotals(batches=pending)
            model.zero_grad()
            release_freed_memory()

    def _train_on(self, model: torch.nn.Module, batch: Batch, count: Any) -> torch.Tensor:
        """The loss of a micro-batch, whose gradient is added to that of the step."""
        losses = [super(Trainer, self).training_step(model, part, count) for part in self._parts_of(batch)]
        loss = torch.stack(losses).sum()
        self.step.loss = self.step.loss + loss
        return loss

    def _parts_of(self, batch: Batch) -> list[Batch]:
        return list(split_batch(batch, self.counters.parts)) if self.counters.parts > 1 else [batch]

    def _use_more_parts(self, count: Any) -> bool:
        """Halve the rows that are computed at a time from now on; False where this cannot be, or would not be the same.

        Losses of parts add up where they are divided by the tokens of the step. With other processes, which are past
        this batch or wait for its gradient, it cannot be begun again.
        """
        rows, parts = self.args.per_device_train_batch_size, self.counters.parts
        adds_up = self.flat or (self.model_accepts_loss_kwargs and count is not None)
        if parts >= rows or not adds_up or self.accelerator.num_processes > 1:
            return False
        self.counters.parts = 2 * parts
        self.tell(
            f"  out of memory in step {self.state.global_step + 1}: micro-batches of {rows} rows are computed "
            f"{-(-rows // (2 * parts))} at a time from now on; the rows of a step, their order and the schedule stay"
        )
        return True

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:  # private: transformers, as below
        norm = super()._get_grad_norm(model, grad_norm)  # private: transformers, called when a gradient is complete
        self._end_step(model, norm)
        return norm

    def _end_step(self, model: torch.nn.Module, norm: Any) -> None:
        """Count a step; where its loss or gradient is not finite, drop the gradient, so that nothing is updated."""
        numbers = (self.step.loss, self.step.tokens, self.step.loss_tokens, norm)
        totals = [torch.as_tensor(n, dtype=torch.float64, device=self.args.device) for n in numbers]
        loss, tokens, loss_tokens, norm = torch.stack(totals).tolist()
        counters, self.step = self.counters, StepTotals()
        counters.tokens, counters.loss_tokens = counters.tokens + int(tokens), counters.loss_tokens + int(loss_tokens)
        counters.loss_sum, counters.loss_steps = counters.loss_sum + loss, counters.loss_steps + 1
        # Under float16 the gradient is infinite in a step that the scaler skips, to go on with a lower scale.
        bad = not (math.isfinite(loss) and (self.args.fp16 or math.isfinite(norm)))
        if self.accelerator.num_processes > 1:
            bad = bool(self.accelerator.reduce(torch.tensor(float(bad), device=self.args.device)) > 0)
        counters.skipped_in_a_row = counters.skipped_in_a_row + 1 if bad else 0
        if not bad:
            return
        step = self.state.global_step + 1
        self._require_finite(step)
        model.zero_grad()
        counters.skipped_updates += 1
        self.tell(f"  step {step}: the loss is {loss:g}, the gradient's norm {norm:g}; the step changes nothing")
        if counters.skipped_in_a_row >= self.most_skipped:
            what = f"The loss or the gradient is not finite in {counters.skipped_in_a_row} steps in a row, now"
            self.divergence, self.control.should_save = diverged(what, step), True

    def _require_finite(self, step: int) -> None:
        """Raise FloatingPointError where an update has left NaN or infinity in a weight: no step mends that."""
        for name, weight in trained_parameters(self.model).items():
            if not torch.isfinite(weight).all():
                kept = newest_note(Path(str(self.args.output_dir)).parent)
                raise FloatingPointError(diverged(f"The weights of {name} are not finite", step) + kept)

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training:
            labels = inputs["shift_labels"] if self.flat else inputs["labels"][:, 1:]
            self.step.tokens = self.step.tokens + count_real_tokens(inputs)
            self.step.loss_tokens = self.step.loss_tokens + (labels != IGNORE_INDEX).sum()
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
                batch_nll, batch_count = self._likelihood(batch)
                nll, count = nll + batch_nll, count + batch_count
        nll, count = self.accelerator.reduce(torch.stack([nll, count]), reduction="sum").tolist()
        losses = {"eval_loss": nll / count}
        release_freed_memory()
        self.log(losses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses

    def _likelihood(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed negative log-likelihood of a batch's labels and their number; in halves where memory runs out."""
        try:
            return (negative_log_likelihood if self.flat else _likelihood_by_trl)(self.model, batch)
        except (RuntimeError, MemoryError) as error:
            halves = list(split_batch(batch, 2))
            if not is_out_of_memory(error) or len(halves) < 2:
                raise
        release_freed_memory()
        (first_nll, first_count), (second_nll, second_count) = map(self._likelihood, halves)
        return first_nll + second_nll, first_count + second_count

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
        self._require_finite(self.state.global_step)  # what no later loss has shown yet
        started, folder = time.perf_counter(), Path(str(self.args.output_dir))
        checkpoint, unfinished = folder / f"checkpoint-{self.state.global_step}", prepare_checkpoint(folder)
        try:
            with tell_full_disk(folder.parent):
                self._write_checkpoint(model, trial, unfinished, checkpoint)
        except Exception:
            remove_folder(unfinished)  # which may have filled the disk
            raise
        if self.args.should_save and self.args.save_total_limit:
            remove_older(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.counters.checkpoint_seconds += time.perf_counter() - started
        if self.divergence:
            raise FloatingPointError(self.divergence + newest_note(folder.parent))

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, folder: Path, checkpoint: Path) -> None:
        """Write all of a checkpoint into another folder, then give it its name."""
        with set_for_a_moment(vars(self.args), "output_dir", str(folder)):
            super()._save_checkpoint(model, trial)  # private: transformers, callbacks are called too late
        unfinished = folder / checkpoint.name
        best = checkpoint.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == checkpoint or best.exists():  # transformers looks for it where this one is written
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(str(unfinished / "trainer_state.json"))
        self.accelerator.wait_for_everyone()  # for the folder to be there
        self.counters.checkpoints += 1
        self.counters.write(unfinished)
        commit_checkpoint(unfinished, checkpoint, {"step": self.state.global_step, **self.origin})

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
        """Log with counts of the run's tokens, and the loss as the mean since one was logged, by whichever start."""
        if "train_runtime" in logs:  # means since this start, at the end of training; ours go on from checkpoints
            return
        counters, processes = self.counters, self.accelerator.num_processes
        counts = [float(counters.tokens), float(counters.loss_tokens), counters.loss_sum / processes]
        sums = torch.tensor(counts, dtype=torch.float64, device=self.args.device)
        tokens, loss_tokens, loss = self.accelerator.reduce(sums, reduction="sum").tolist()
        if "loss" in logs:
            logs = logs | {"loss": loss / counters.loss_steps}
            counters.loss_sum, counters.loss_steps = 0.0, 0
        super().log(logs | {"tokens": int(tokens), "loss_tokens": int(loss_tokens)}, start_time)


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
    if checkpoint:
        trainer.counters.read(checkpoint)
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
    trainer._require_finite(trainer.state.global_step)


def diverged(what: str, step: int) -> str:
    """What a user is told of a run that cannot go on, and what may help."""
    return f"{what} at step {step}: it diverged. Try a lower trainer.learning_rate or a longer trainer.warmup_steps."


def newest_note(run: Path) -> str:
    """Where the last weights of a run lie that are finite, in a sentence."""
    checkpoints = list_checkpoints(run)
    return f" The last good weights are in {checkpoints[0]}." if checkpoints else " No checkpoint was written before."


def save_trained(model: TrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what was trained: `adapter/` in PEFT's format, or `model/` where all weights were trained."""
    with replace_folder(folder / ("adapter" if isinstance(model, PeftModel) else "model")) as unfinished:
        model.save_pretrained(str(unfinished))
        tokenizer.save_pretrained(str(unfinished))


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
