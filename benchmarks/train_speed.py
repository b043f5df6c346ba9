"""How fast is training, and in how much memory, against a hand-written TRL script and a bare PyTorch loop?

    python benchmarks/train_speed.py [--rounds 3] [--steps 8] [--batch 8]

All sides train the same adapter on the same rows of the embedded default, in the precision that run.py chooses for the
machine, each in a process of its own, in turn. Real (non-padding) tokens per second and peak memory; medians of the
rounds; ratios within one round. The TRL script uses TRL's defaults: batches padded to their longest row and gradient
checkpointing. Model FLOP utilisation is against the rate of a large matrix product on the same machine, with four
floating-point operations a parameter and token where only an adapter is trained, six with checkpointing.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FIGURES = ("tokens_per_second", "peak_bytes")
# Of SmolLM2-135M, the embeddings included, which are also its head.
PARAMETERS = 134_515_008
ROOT = Path(__file__).resolve().parent.parent
SIDES = ("run.py nf4", "run.py", "TRL", "bare loop", "TRL nf4", "bare loop nf4")
RATIOS = (
    ("run.py", "TRL", 2.5),
    ("run.py", "bare loop", 1.5),
    ("run.py nf4", "TRL nf4", None),
    ("run.py nf4", "bare loop nf4", None),
    ("run.py nf4", "run.py", 0.9),
)


def main() -> None:
    """Measure every side in every round and print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print it as JSON")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.steps, options.batch)))
        return
    rounds = []
    for number in range(options.rounds):
        rounds.append({side: in_own_process(side, options) for side in SIDES})
        for side, figures in rounds[-1].items():
            print(f"round {number + 1}: {side:14} {figures['tokens_per_second']:7.0f} tokens/s", flush=True)
    show(rounds)


def in_own_process(side: str, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one side, measured in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(options.steps), "--batch", str(options.batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print medians by side, then the ratios with their targets."""
    from finetune.cli.compose import compose_config
    from finetune.machine.device import choose_device
    from finetune.planning.throughput import matmul_rate

    config = compose_config([])
    rate = matmul_rate(choose_device(config.model, config.quantization, config.adapter))
    for side in SIDES:
        speed, memory = (statistics.median(r[side][key] for r in rounds) for key in FIGURES)
        used = speed * PARAMETERS * (6 if side.startswith("TRL") else 4) / rate
        print(f"{side:14} {speed:7.0f} tokens/s  {memory / 2**30:5.2f} GiB peak  {used:4.0%} FLOP utilisation")
    for ours, other, target in RATIOS:
        speed, memory = (
            statistics.median(r[ours][key] / r[other][key] for r in rounds)
            for key in ("tokens_per_second", "peak_bytes")
        )
        aim = f" (target {target})" if target else ""
        print(f"{ours} / {other}: {speed:.2f} times the speed{aim}, {memory:.2f} times the memory")


def measure(side: str, steps: int, batch: int) -> dict[str, float]:
    """The figures of one side, measured in this process."""
    name, quantization = side.removesuffix(" nf4"), "nf4" if side.endswith("nf4") else "none"
    if name == "run.py":
        return measure_run(quantization, steps, batch)
    measured = measure_trl if name == "TRL" else measure_bare
    return {**measured(quantization, steps, batch), "peak_bytes": _peak_bytes()}


def measure_run(quantization: str, steps: int, batch: int) -> dict[str, float]:
    """Train with run.py itself and read its result."""
    from finetune.runs.result import RESULT, RunResult, read_result

    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"quantization={quantization}",
            f"output_dir={folder}",
            "name=speed",
            "tracking=none",
            f"trainer.max_steps={steps}",
            f"trainer.per_device_train_batch_size={batch}",
            "trainer.eval_strategy=no",
            "trainer.save_strategy=no",
            "eval.max_prompts=1",
            "eval.max_new_tokens=1",
        ]
        subprocess.run([sys.executable, ROOT / "run.py", *settings], check=True, stdout=sys.stderr, cwd=ROOT)
        result = read_result(Path(folder) / "speed" / RESULT)
    assert isinstance(result, RunResult), "the run has left no result"
    return {
        "tokens_per_second": result.training.tokens_per_second,
        "peak_bytes": float(result.training.peak_memory_bytes),
    }


def measure_trl(quantization: str, steps: int, batch: int) -> dict[str, float]:
    """What people write by hand: SFTTrainer with its defaults."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from finetune.training.tokenize import training_row

    machine, tokenizer, base, examples = load(quantization)
    rows = Dataset.from_list([training_row(example, tokenizer, False) for example in examples])

    class Stopwatch(TrainerCallback):
        seconds = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds += time.perf_counter() - self.started

    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            use_cpu=machine.kind == "cpu",
            bf16=machine.mixed_precision == "bf16",
            fp16=machine.mixed_precision == "fp16",
            report_to="none",
            save_strategy="no",
        )
        trainer = SFTTrainer(
            base, args, train_dataset=rows, processing_class=tokenizer, peft_config=lora(), callbacks=[stopwatch]
        )
        trainer.train()
    return {"tokens_per_second": trainer.state.log_history[-1]["num_tokens"] / stopwatch.seconds}


def measure_bare(quantization: str, steps: int, batch: int) -> dict[str, float]:
    """A loop without a library: pad to the longest row, project every position, AdamW."""
    import torch
    from peft import get_peft_model

    from finetune.training.tokenize import IGNORE_INDEX, prompt_tokens

    machine, tokenizer, base, examples = load(quantization)
    model = get_peft_model(base, lora()).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-5)
    tokens, started = 0, time.perf_counter()
    for step in range(steps):
        rows = []
        for example in examples[step * batch : (step + 1) * batch]:
            prompt = prompt_tokens(example.prompt, tokenizer)
            answer = tokenizer(example.completion + tokenizer.eos_token + "\n")["input_ids"]
            rows.append((prompt + answer, [IGNORE_INDEX] * len(prompt) + answer))
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows], device=base.device)
        labels = torch.tensor(
            [labels + [IGNORE_INDEX] * (longest - len(labels)) for _, labels in rows], device=base.device
        )
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows], device=base.device)
        with torch.autocast(machine.kind, machine.compute_dtype, enabled=machine.mixed_precision != "no"):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(mask.sum())
    return {"tokens_per_second": tokens / (time.perf_counter() - started)}


def load(quantization: str) -> tuple[Any, Any, Any, Any]:
    """The machine's precision, the tokenizer, the base model as transformers loads it, and the training rows."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, logging

    from finetune.cli.compose import compose_config
    from finetune.data.embedded import embedded_model
    from finetune.data.splits import load_splits
    from finetune.machine.device import choose_device
    from finetune.model.tokenizer import load_tokenizer

    logging.set_verbosity_error()
    config = compose_config([f"quantization={quantization}"])
    machine = choose_device(config.model, config.quantization, config.adapter)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=machine.compute_dtype,
        bnb_4bit_use_double_quant=True,
    )
    base = AutoModelForCausalLM.from_pretrained(
        embedded_model(config.model.path),
        dtype=machine.weight_dtype,
        quantization_config=four_bit if quantization == "nf4" else None,
        device_map={"": torch.cuda.current_device()} if machine.kind == "cuda" else None,
    )
    return machine, load_tokenizer(config.model), base, load_splits(config.data).train


def lora() -> Any:
    """The adapter of conf/adapter/lora.yaml."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
