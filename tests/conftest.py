import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices gain nothing from threads that wait for each other
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Tests see the embedded model and data, but not what earlier runs of the same base model answered."""
    from finetune.data.embedded import embedded_data, embedded_model

    embedded = [embedded_model("smollm2_135m"), embedded_data("usaddress").parent]
    folder = tmp_path_factory.mktemp("cache")
    for path in embedded:
        (folder / path.name).symlink_to(path)
    os.environ["FINETUNE_CACHE"] = str(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a two-layer llama of random weights behind the embedded model's tokenizer and chat template."""
    import torch
    from support import tiny_models
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from finetune.data.embedded import embedded_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(embedded_model("smollm2_135m"))
    shape = tiny_models.SHAPE | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape, attention_bias=True)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_run(tiny_model, tmp_path):
    """Overrides of a run of a few seconds on the tiny model and the embedded data, in float32."""
    return [
        "model=local",
        f"model.path={tiny_model}",
        "model.dtype=float32",
        "quantization=none",
        "tracking=none",
        "trainer=smoke",
        "data.max_train_rows=32",
        "trainer.per_device_train_batch_size=4",
        "eval.max_prompts=4",
        "eval.max_new_tokens=8",
        "eval.retention=false",
        "force=true",  # whether there is room for it, test_plan.py asks
        f"output_dir={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def browser():
    """A page of headless Chromium, by Playwright; skipped where there is none, but never in CI."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    # Without a sandbox, which root may not have; and without asking Google's hosts for anything.
    switches = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=switches)
        yield launched.new_page()
        launched.close()


@pytest.fixture
def program():
    """`program(*arguments)` runs `python run.py` as a user would and returns the finished process."""

    def call(*arguments, launcher=(sys.executable,), **options):
        command = [*launcher, str(ROOT / "run.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)

    return call
