"""The tokenizer of a run ends and pads with the tokens that its settings name."""

import shutil

import pytest
from support import tiny_models
from transformers import AutoTokenizer
from trl import SFTConfig

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.model.tokenizer import apply_tokenizer_settings, end_tokens, load_tokenizer


def settings(**chosen):
    return SFTConfig(use_cpu=True, bf16=False, activation_checkpointing=False, **chosen)


def local(folder, *overrides):
    return compose_config(["model=local", f"model.path={folder}", *overrides]).model


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, tiny_model):
    shutil.copy(tiny_model / "config.json", tmp_path)
    shutil.copy(tiny_model / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match="it could not be loaded"):
        load_tokenizer(local(tmp_path))


def test_a_plain_prompt_uses_no_template(tiny_model):
    assert load_tokenizer(local(tiny_model)).chat_template
    assert load_tokenizer(local(tiny_model, "model.plain_prompt=true")).chat_template is None


def test_an_end_token_that_the_tokenizer_does_not_have_is_refused(tiny_model):
    with pytest.raises(UserError) as error:
        apply_tokenizer_settings(settings(eos_token="<end>"), AutoTokenizer.from_pretrained(tiny_model))
    assert "trainer.eos_token=<end>: the tokenizer has no such token. Its special tokens: " in str(error.value)


def test_the_named_end_token_ends_and_pads_where_nothing_else_does(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = None
    apply_tokenizer_settings(settings(eos_token="<|im_start|>"), tokenizer)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_start|>"


def test_answers_end_at_the_end_tokens_of_the_tokenizer_and_of_the_model(tiny_model):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), tiny_models.model("llama")
    for own in (None, 5, [5, 7]):
        model.generation_config.eos_token_id = own
        further = own if isinstance(own, list) else [own]
        assert end_tokens(model, tokenizer) == sorted({tokenizer.eos_token_id, *further} - {None})
