import copy
import shutil

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from support import small_runs, tiny_models
from transformers import AutoModelForCausalLM, GenerationConfig

from finetune.config.schema import Eval
from finetune.evaluation.generate import ROUND, Answer, dequantised, dequantised_bytes, generate_answers
from finetune.model.shared_prefix_attention import ATTENTION, FAMILIES
from finetune.training.tokenize import SEPARATOR_KEY


def prompts():
    shared = " ".join(f"w{i}" for i in range(20, 40))
    rests = ["w5", "w6 w7 w8 w9", "w10 w11", "w5 w12 w13"]
    return [[{"role": "user", "content": f"{shared} {rest}"}] for rest in rests]


def answers(model, tokenizer, messages, round_tokens=ROUND, **settings):
    counts = []
    generated = generate_answers(model, tokenizer, messages, Eval(**settings), 12, 0, counts.append, round_tokens)
    assert sum(counts) == len(messages)
    return generated


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_in_a_batch_are_those_given_one_by_one(family, tokenizer):
    model = tiny_models.model(family)
    together = answers(model, tokenizer, prompts(), round_tokens=3, batch_size=4)  # those that end leave the batch soon
    alone = [answers(model, tokenizer, [prompt])[0] for prompt in prompts()]
    eager = answers(tiny_models.model(family, attention="eager"), tokenizer, prompts(), batch_size=4)
    assert together == alone == eager
    assert len({answer.text for answer in together}) > 1


def test_an_answer_ends_before_the_first_end_token_and_says_whether_it_ended(tokenizer):
    model = tiny_models.model("llama")
    with torch.no_grad():
        model.lm_head.weight[:3] = 0  # no special tokens: each token that it says is a word
    endless = answers(model, tokenizer, prompts())
    assert all((answer.tokens, answer.finished) == (12, False) for answer in endless)
    said = [answer.text.split() for answer in endless]
    end = said[0][4]
    model.generation_config.eos_token_id = [2, int(end[1:])]
    for answer, words in zip(answers(model, tokenizer, prompts()), said, strict=True):
        length = words.index(end) if end in words else 12
        assert answer == Answer(" ".join(words[:length]), length, finished=length < 12)
    assert said[0].index(end) < 12


def test_an_answer_to_a_plain_prompt_ends_before_what_begins_the_next_turn_whatever_the_tokens(tokenizer):
    model, stop = tiny_models.model("llama"), "4 w"  # within two tokens
    with torch.no_grad():
        model.lm_head.weight[:3] = 0
    same = [[{"role": "user", "content": message["content"] + stop}] for [message] in prompts()]
    endless = answers(model, tokenizer, same)
    parted = copy.deepcopy(tokenizer)
    parted.init_kwargs[SEPARATOR_KEY] = stop
    for batch_size, round_tokens in ((4, 3), (1, ROUND)):
        ended = answers(model, parted, prompts(), round_tokens=round_tokens, batch_size=batch_size)
        expected = [(answer.text.partition(stop)[0], stop in answer.text) for answer in endless]
        assert [(answer.text, answer.finished) for answer in ended] == expected
    assert any(answer.finished and answer.tokens < 12 for answer in ended)


def test_answers_follow_the_settings_of_eval_alone_and_not_those_that_a_model_brings(tokenizer, tmp_path):
    model = tiny_models.model("llama")
    plain = answers(model, tokenizer, prompts())
    hot = answers(model, tokenizer, prompts(), temperature=2.0)
    bad = [[int(word[1:])] for word in plain[0].text.split()[:1]]
    brought = {"repetition_penalty": 5.0, "cache_implementation": "static", "bad_words_ids": bad, "top_k": 3}
    GenerationConfig(do_sample=True, min_length=60, num_beams=2, eos_token_id=[2], **brought).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "model")
    shutil.copy(tmp_path / "generation_config.json", tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=ATTENTION)
    assert loaded.generation_config.repetition_penalty == 5.0
    assert answers(loaded, tokenizer, prompts()) == plain
    assert answers(loaded, tokenizer, prompts(), temperature=2.0) == hot
    assert loaded.generation_config.repetition_penalty == 5.0


def test_sampling_follows_the_seed_and_differs_from_greedy(tokenizer):
    model = tiny_models.model("llama")
    hot = answers(model, tokenizer, prompts(), temperature=2.0)
    assert hot == answers(model, tokenizer, prompts(), temperature=2.0)
    assert hot != answers(model, tokenizer, prompts())
    assert answers(model, tokenizer, prompts(), temperature=2.0, top_k=1) == answers(model, tokenizer, prompts())
    assert answers(model, tokenizer, prompts(), temperature=2.0, top_p=1e-6) == answers(model, tokenizer, prompts())


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_dequantised_once_give_the_same_logits(tiny_model, quantization, dtype):
    trained = tiny_models.adapted(
        tiny_model, f"quantization={quantization}", f"quantization.bnb_4bit_compute_dtype={dtype}"
    )
    tiny_models.give_the_adapter_an_effect(trained)
    trained.eval()
    ids = torch.arange(5, 35)[None]
    with torch.no_grad():
        before = trained(input_ids=ids).logits
        with dequantised(trained):
            layers = [module for module in trained.modules() if isinstance(module, Linear4bit)]
            assert ["forward" in vars(layer) for layer in layers] == [True] * 2 * 7
            within = trained(input_ids=ids).logits
    assert not any("forward" in vars(layer) for layer in layers)
    torch.testing.assert_close(within, before, rtol=0, atol=0)


def test_dequantised_weights_take_the_bytes_of_the_type_of_computation(tiny_model):
    trained = tiny_models.adapted(tiny_model, "quantization=nf4")
    layers = [module for module in trained.modules() if isinstance(module, Linear4bit)]
    assert dequantised_bytes(trained) == 4 * sum(layer.in_features * layer.out_features for layer in layers)
    assert dequantised_bytes(tiny_models.model("llama")) == 0


@pytest.mark.slow
def test_a_base_model_answers_a_plain_few_shot_prompt_with_one_line():
    prepared, prompts = small_runs.chosen(["data=usaddress_zip", "model.plain_prompt=true", "eval.max_prompts=8"])
    base = small_runs.base(["quantization=none"])
    asked = [example.prompt for example in prompts.few_shot.examples]
    answers = generate_answers(base, prepared.tokenizer, asked, prompts.decoding, prompts.max_new_tokens, 0, print)
    assert all(answer.finished and "\n" not in answer.text for answer in answers)
    right = [a.text == e.completion for a, e in zip(answers, prompts.few_shot.examples, strict=True)]
    assert sum(right) >= 6
