"""What does the user see while a run goes on, and at its end?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console, RenderableType

from finetune.config.schema import Quantization
from finetune.machine.allowance import GIB
from finetune.reporting.tables import (
    describe_best_prompt,
    format_arm,
    format_interval,
    harness_table,
    score_table,
    to_grid,
    to_rich,
)
from finetune.runs.folder import weight_storage
from finetune.runs.predictions import PREDICTIONS, Prediction, read_predictions
from finetune.runs.result import EvaluationResult, RunResult, TrainingResult, Verdict
from finetune.secrets import MaskedStream

if TYPE_CHECKING:
    from finetune.evaluation.answers import Arm
    from finetune.machine.device import Device
    from finetune.training.prepare import PreparedRun

EXAMPLES_SHOWN = 3
TEXT_LENGTH = 240  # characters of a text of an example
LOG_WIDTH = 140  # columns of log.txt


class RunConsole:
    """The terminal and the run's log.txt; both silent in every process but the first."""

    def __init__(self, folder: Path, is_main_process: bool) -> None:
        self.terminal = Console(quiet=not is_main_process, highlight=False, markup=False)
        self.folder, self.logs = folder, is_main_process

    def print(self, what: RenderableType, style: str = "") -> None:
        """Print on the terminal and append to the log."""
        self.terminal.print(what, style=style, soft_wrap=isinstance(what, str))
        if self.logs:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                log = Console(file=cast(TextIO, MaskedStream(file)), width=LOG_WIDTH, highlight=False, markup=False)
                log.print(what, style=style, soft_wrap=isinstance(what, str))

    def show_start(self, machine: "Device", quantization: Quantization) -> None:
        """The run's folder, and what was chosen for this machine."""
        self.print(str(self.folder), style="bold")
        processes = f"{machine.processes} processes, each on " if machine.processes > 1 else ""
        spare = f"; {machine.spare_gpus} more here, which accelerate launch uses" if machine.spare_gpus else ""
        self.print(f"  device: {processes}{machine.name}{spare}")
        computes, weights = (str(kind).removeprefix("torch.") for kind in (machine.compute_dtype, machine.weight_dtype))
        storage = weight_storage(quantization)
        stored = (
            f"unquantised, in {weights}"
            if storage == "unquantised"
            else f"{storage}, what is not quantised in {weights}"
        )
        self.print(f"  weights: {stored}; computed in {computes} ({machine.why})")

    def show_data(self, prepared: "PreparedRun") -> None:
        """What was read and what became of it, by split."""
        splits, sizes = prepared.splits, prepared.rows.sizes
        self.print("  data: " + " · ".join(f"{value:,} {name}" for name, value in splits.counts.items() if value))
        for label, messages in (("left out", splits.bad), ("shared", splits.shared)):
            for message in messages:
                self.print(f"  {label}: {message}", style="yellow")
        for name, size in sizes.items():
            self.print(f"  {name}: {size.rows:,} rows, {size.tokens:,} tokens, {size.loss_tokens:,} with loss")
            if size.truncated:
                dropped = f", and {size.dropped:,} of them left out: no loss is left" if size.dropped else ""
                self.print(f"  {name}: {size.truncated:,} rows are cut at trainer.max_length{dropped}", style="yellow")
        for note in prepared.notes:
            self.print(f"  note: {note}", style="yellow")
        rows = "every row that is not cut" if any(size.truncated for size in sizes.values()) else "every row"
        self.print(f"  checked: {rows} has loss, ends with an end token that is learnt, and begins as generation will")

    def show_arm(self, name: str, arm: "Arm") -> None:
        """How many answers an arm gave, and in what time or whence."""
        how = "as an earlier run of this base model answered" if arm.reused else f"answered in {arm.seconds:.0f} s"
        self.print(f"  {name.replace('_', '-')}: {len(arm.replies)} prompts {how}")

    def show_result(self, result: RunResult) -> None:
        """The verdict, the table of all arms, example answers, the run's cost, and what to do next."""
        evaluation, training = result.evaluation, result.training
        if evaluation.verdict is None:
            score = f"{evaluation.metric} {format_interval(evaluation.tuned())}"
            self.print(f"{score} on {evaluation.prompts} {evaluation.split} prompts", style="bold")
            return
        self._show_scores(evaluation, evaluation.verdict)
        since = " since it was continued" if training.resumed_from_step else " in all"
        self.print(
            f"Trained {training.steps} steps, {training.tokens:,} tokens at "
            f"{training.tokens_per_second:,.0f} tokens/s; {sum(result.seconds.values()):.0f} s{since}; "
            f"peak memory {training.peak_memory_bytes / GIB:.1f} GiB."
        )
        self._show_faults(training, result.config["trainer"])
        saved = "adapter" if result.config["adapter"]["enabled"] else "model"
        self.print(f"In {self.folder}: report.html, {saved}/, predictions.jsonl, result.json, config.yaml, log.txt")
        self.print("Next: change a setting (adapter.r=32), try several (-m adapter.r=8,32), or see --help.")

    def _show_faults(self, training: TrainingResult, settings: dict[str, Any]) -> None:
        """What was done against faults, and what checkpoints cost, in a line each."""
        if training.checkpoints:
            share = training.checkpoint_seconds / max(training.seconds, 1e-9)
            self.print(
                f"{training.checkpoints} checkpoints took {training.checkpoint_seconds:.1f} s, {share:.1%} of training."
            )
        if training.skipped_updates:
            self.print(
                f"{training.skipped_updates} of {training.steps} steps had a loss or gradient that is not finite, and "
                "changed nothing.",
                style="yellow",
            )
        if training.rows_at_a_time < settings.get("per_device_train_batch_size", training.rows_at_a_time):
            at_a_time = f"{training.rows_at_a_time} rows at a time"
            self.print(f"Memory ran out in training: {at_a_time}, more of them one after the other.", style="yellow")

    def _show_scores(self, evaluation: EvaluationResult, verdict: Verdict) -> None:
        self.print(to_rich(score_table(evaluation, verdict.against).without("p", "test")))
        self.print(verdict.sentence, style="bold")
        if evaluation.best_prompt:
            self.print(describe_best_prompt(evaluation.best_prompt))
        if evaluation.retention and not evaluation.retention.forgot:
            self.print(f"{evaluation.retention.sentence}.")
        if evaluation.harness:
            self.print(to_rich(harness_table(evaluation.harness)))
        for prediction in read_predictions(self.folder / PREDICTIONS)[:EXAMPLES_SHOWN]:
            if prediction.arms["tuned"].answer is not None:
                self.print(_example(prediction, evaluation))
        cut = {format_arm(name, evaluation): arm.unfinished_answers for name, arm in evaluation.arms.items()}
        if counts := ", ".join(f"{count} of {name}" for name, count in cut.items() if count):
            self.print(f"Answers cut off at eval.max_new_tokens={evaluation.max_new_tokens}: {counts}.", style="yellow")


def show_complete_run(result: RunResult, folder: Path) -> None:
    """Show a run that was finished earlier."""
    console = RunConsole(folder, is_main_process=os.environ.get("RANK", "0") == "0")
    console.logs = False
    console.print(f"{folder} is complete: nothing to do.", style="bold")
    console.show_result(result)


def _example(prediction: Prediction, evaluation: EvaluationResult) -> RenderableType:
    texts = {"prompt": prediction.question, "reference": prediction.reference}
    texts |= {format_arm(arm, evaluation): prediction.arms[arm].text for arm in evaluation.arms}
    flat = {name: " ".join(text.split()) for name, text in texts.items()}
    short = {name: text if len(text) <= TEXT_LENGTH else f"{text[:TEXT_LENGTH]} ..." for name, text in flat.items()}
    return to_grid([*short.items(), ("", "")])
