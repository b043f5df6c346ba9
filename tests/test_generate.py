import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune import batch, generate
from finetune.schema import Eval


@pytest.fixture(scope="module")
def tokenizer():
    """Sixty-four words, no chat template: the plain form of a prompt is used."""
    words = {f"w{i}": i for i in range(64)} | {"\n": 64}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", bos_token="w1", eos_token="w2")


def prompts():
    shared = " ".join(f"w{i}" for i in range(20, 40))
    rests = ["w5", "w6 w7 w8 w9", "w10 w11", "w5 w12 w13"]
    return [[{"role": "user", "content": f"{shared} {rest}"}] for rest in rests]


def answers(model, tokenizer, asked, **settings):
    done = []
    found = generate.answer(model, tokenizer, asked, Eval(**settings), 12, seed=0, advance=done.append)
    assert sum(done) == len(asked)
    return found


@pytest.mark.parametrize("family", sorted(batch.FAMILIES))
def test_answers_in_a_batch_are_those_given_one_by_one(family, tokenizer, monkeypatch):
    monkeypatch.setattr(generate, "ROUND", 3)  # those that end leave the batch soon
    model = tiny.model(family)
    together = answers(model, tokenizer, prompts(), batch_size=4)
    alone = [answers(model, tokenizer, [prompt])[0] for prompt in prompts()]
    eager = answers(tiny.model(family, attention="eager"), tokenizer, prompts(), batch_size=4)
    assert together == alone == eager
    assert len({answer.text for answer in together}) > 1


def test_an_answer_ends_at_the_end_token(tokenizer):
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[7] = model.lm_head.weight[2] = 0
    assert all(answer.tokens <= 12 for answer in answers(model, tokenizer, prompts()))
    model.generation_config.eos_token_id = [0]  # with all logits equal, greedy decoding takes token 0
    assert [(a.text, a.finished) for a in answers(model, tokenizer, prompts())] == [("", True)] * 4


def test_sampling_follows_the_seed_and_differs_from_greedy(tokenizer):
    model = tiny.model("llama")
    hot = answers(model, tokenizer, prompts(), temperature=2.0)
    assert hot == answers(model, tokenizer, prompts(), temperature=2.0)
    assert hot != answers(model, tokenizer, prompts())
    assert answers(model, tokenizer, prompts(), temperature=2.0, top_k=1) == answers(model, tokenizer, prompts())
    assert answers(model, tokenizer, prompts(), temperature=2.0, top_p=1e-6) == answers(model, tokenizer, prompts())
