"""Each way in which rows could teach the wrong thing stops a run before its model is loaded."""

import json

import pytest
from support import builds
from transformers import AutoTokenizer

from finetune.errors import UserError

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
ROWS = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(20)]

# A chat template, further settings -> what the message says.
TEMPLATES = {
    "no end token behind the answer": (
        CHATML.replace("<|im_end|>\n", "\n"),
        [],
        "the model would never learn to stop: the answer does not end with an end token that carries loss",
    ),
    "another token behind the answer": (CHATML.replace("<|im_end|>", "<|im_start|>"), [], "never learn to stop"),
    "text behind the end token": (CHATML.replace("<|im_end|>\n", "<|im_end|> Next: "), [], "never learn to stop"),
    "an end token outside of the loss": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + ASK,
        ["trainer.assistant_only_loss=true"],
        "an end token without loss",
    ),
    "no answer inside the loss": (
        CHATML.replace("{{ m.content }}", "{% generation %}{% endgeneration %}{{ m.content }}"),
        ["trainer.assistant_only_loss=true"],
        "rows.jsonl:1: no token of this row carries loss (trainer.assistant_only_loss)",
    ),
    "a generation prompt that training does not have": (
        CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
        [],
        "the prompt in training is not the prompt that generation reads (after ",
    ),
    "a prompt that changes with the answer": (
        "{% if messages[-1].role == 'assistant' %}Learn:\n{% endif %}" + CHATML,
        [],
        "the prompt in training is not the prompt that generation reads (after 0 equal tokens",
    ),
    "a prompt that forgets its system message": (
        CHATML.replace(
            "{% for m in messages %}", "{% for m in (messages[1:] if add_generation_prompt else messages) %}"
        ),
        ["data.system='Be brief.'"],
        "the prompt in training is not the prompt that generation reads",
    ),
    "a template that does not parse": (
        "{% for m in messages %}" + TURN,
        [],
        "trainer.chat_template_path=chat.jinja: the chat template cannot be read: Unexpected end of template",
    ),
    "a template that refuses a role": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML,
        ["data.system='Be brief.'"],
        "rows.jsonl:1: the chat template refuses this row: System role not supported.",
    ),
}


@pytest.fixture
def rows(tmp_path, tiny_model, monkeypatch):
    """The settings of a run on a file that holds `content`, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def rows(content=ROWS, *overrides, model=tiny_model):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        return ["data=local", "data.path=rows.jsonl", "model=local", f"model.path={model}", *overrides]

    return rows


def refused(overrides):
    with pytest.raises(UserError) as error:
        builds.prepared(overrides)
    return str(error.value)


@pytest.mark.parametrize("fault", TEMPLATES)
def test_a_template_that_would_teach_something_else(rows, tmp_path, fault):
    template, overrides, expected = TEMPLATES[fault]
    (tmp_path / "chat.jinja").write_text(template)
    message = refused(rows(ROWS, "trainer.chat_template_path=chat.jinja", *overrides))
    assert expected in message
    assert "rows.jsonl:1" in message or "does not parse" in fault


def test_a_template_that_teaches_what_it_should_passes(rows, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    prepared = builds.prepared(rows(ROWS, "trainer.chat_template_path=chat.jinja"))
    assert prepared.rows.sizes["train"].rows == 16


def test_every_fault_of_the_rows_is_told_with_its_share(rows, tmp_path):
    (tmp_path / "chat.jinja").write_text("{% if messages[-1].content == 'answer 3' %}Learn:\n{% endif %}" + CHATML)
    message = refused(rows(ROWS, "trainer.chat_template_path=chat.jinja"))
    assert message.startswith("rows.jsonl:4: the prompt in training is not")
    assert "so with 1 of " in message
    assert "Give a chat template that does with trainer.chat_template_path=FILE.jinja" in message


@pytest.mark.parametrize(
    ("row", "token"),
    [
        ({"prompt": "q", "completion": "a<|im_end|>"}, "<|im_end|>"),
        ({"prompt": "<|im_start|>system", "completion": "a"}, "<|im_start|>"),
        ({"prompt": "q", "completion": "a<|endoftext|>b"}, "<|endoftext|>"),
    ],
)
def test_control_tokens_inside_a_text_are_refused_or_escaped_or_left_and_always_counted(rows, row, token):
    message = refused(rows([*ROWS, row]))
    assert message.startswith(f"rows.jsonl:21: the text holds {token}, which this model reads as a control token")
    assert "data.control_tokens=escape" in message
    control = {}
    for policy in ("escape", "allow"):
        prepared = builds.prepared(rows([*ROWS, row], f"data.control_tokens={policy}", "data.test_fraction=0.01"))
        assert prepared.splits.counts["with control tokens"] == 1
        special = prepared.tokenizer.convert_tokens_to_ids(token)
        ids = [ids for split in prepared.rows.whole.values() for ids in split["input_ids"]]
        control[policy] = sum(row.count(special) for row in ids)
    assert control["allow"] == control["escape"] + 1


def test_a_control_token_in_the_system_prompt_is_refused(rows):
    assert "the text holds <|im_end|>" in refused(rows(ROWS, "data.system='Be<|im_end|>brief'"))


def test_answers_that_are_cut_off_beyond_the_stated_share_are_refused(rows):
    long = {"prompt": "question", "completion": "word " * 300}
    message = refused(rows([*ROWS, long], "trainer.max_length=100", "data.test=null"))
    assert message.startswith("rows.jsonl:21: its answer is cut off at trainer.max_length=100, it has ")
    assert "data.max_cut_share=0.01" in message
    length = int(message.split("it has ")[1].split()[0])
    assert f"Write trainer.max_length={length}" in message
    for remedy in (f"trainer.max_length={length}", "data.max_cut_share=0.1"):
        prepared = builds.prepared(rows([*ROWS, long], "trainer.max_length=100", remedy))
        assert prepared.rows.sizes["train"].truncated == ("cut" in remedy)


def test_packing_that_discards_what_is_too_long_is_refused_and_packing_that_splits_it_is_not(rows):
    packing = ["trainer.packing=true", "trainer.max_length=100", "trainer.per_device_train_batch_size=1"]
    content = [*ROWS, {"prompt": "question", "completion": "word " * 300}]
    assert "its answer is cut off at trainer.max_length=100" in refused(rows(content, *packing))
    assert builds.prepared(rows(content, *packing, "trainer.packing_strategy=bfd_split"))


def test_rows_that_lose_all_their_loss_to_the_cut_are_counted(rows):
    content = [*ROWS, {"prompt": "word " * 300, "completion": "a"}]
    prepared = builds.prepared(rows(content, "trainer.max_length=100", "data.max_cut_share=0.1"))
    assert prepared.rows.sizes["train"].dropped == 1
    assert len(prepared.rows.train) == prepared.rows.sizes["train"].rows - 1


def without(tmp_path, tiny_model, **changes):
    """The tiny model's folder with a tokenizer that lacks something."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(tmp_path / "other")
    for file in (*tiny_model.glob("*.safetensors"), tiny_model / "config.json"):
        (tmp_path / "other" / file.name).symlink_to(file)
    if changes.get("chat_template", "") is None:
        (tmp_path / "other" / "chat_template.jinja").unlink(missing_ok=True)
    return tmp_path / "other"


def test_a_tokenizer_without_a_chat_template_is_refused_with_both_remedies(rows, tmp_path, tiny_model):
    model = without(tmp_path, tiny_model, chat_template=None)
    message = refused(rows(model=model))
    assert "no chat template" in message and "trainer.chat_template_path" in message
    (tmp_path / "chat.jinja").write_text(CHATML)
    for remedy in ("trainer.chat_template_path=chat.jinja", "model.plain_prompt=true"):
        assert builds.prepared(rows(ROWS, remedy, model=model))


def test_a_tokenizer_without_an_end_token_is_refused(rows, tmp_path, tiny_model):
    model = without(tmp_path, tiny_model, eos_token=None)
    message = refused(rows(model=model))
    assert "its tokenizer has no end token, so a model could not learn to stop" in message
    assert "trainer.eos_token=TOKEN" in message
    assert builds.prepared(rows(ROWS, "trainer.eos_token='<|im_end|>'", model=model))


def test_the_end_token_keeps_its_loss_where_it_also_pads(rows):
    trainer = builds.trainer(rows(ROWS, "quantization=none", "model.attn_implementation=eager", "trainer=smoke"))
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for inputs in trainer.get_train_dataloader():
        for tokens, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
            learnt = labels == tokenizer.eos_token_id
            assert learnt.sum() == 1 and (tokens[learnt] == tokenizer.eos_token_id).all()
