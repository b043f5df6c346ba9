"""What a model reads is the same in training, in generation, and with the tokenizer that a run saves; it is counted."""

import json
from pathlib import Path

import pytest
import trl
from support import builds
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from finetune.data.splits import Example, Splits
from finetune.errors import UserError
from finetune.training.tokenize import (
    IGNORE_INDEX,
    plain_prompt,
    prompt_tokens,
    set_template_variables,
    set_turn_separator,
    turn_separator,
)

THINKS = """{%- macro turn(role, text) %}{{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}{%- endmacro %}
{%- for m in messages %}
    {%- if m.role == 'assistant' and loop.last %}
        {{- turn(m.role, '<think>\\n\\n</think>\\n\\n' + m.content) }}
    {%- else %}
        {{- turn(m.role, m.content) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
# How Qwen splits a text into words: line ends never join what follows them.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OFF = "model.chat_template_kwargs.enable_thinking=false"


@pytest.fixture
def model(tmp_path, tiny_model):
    """The tiny model behind a tokenizer that splits words as Qwen's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    for file in (*tiny_model.glob("*.safetensors"), tiny_model / "config.json"):
        (tmp_path / "model" / file.name).symlink_to(file)
    return tmp_path / "model"


@pytest.fixture
def run(tmp_path, model):
    """Overrides of a run whose chat template is this one."""

    def overrides(template, *more):
        rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(20)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "chat.jinja").write_text(template)
        place = [f"data.path={tmp_path / 'rows.jsonl'}", f"trainer.chat_template_path={tmp_path / 'chat.jinja'}"]
        return ["data=local", "model=local", f"model.path={model}", *place, *more]

    return overrides


def learnt(prepared):
    """The text that carries loss in the first training row, behind the prompt that generation would read."""
    row, example = prepared.rows.whole["train"][0], prepared.splits.train[0]
    asked = prompt_tokens(example.prompt, prepared.tokenizer)
    assert row["input_ids"][: len(asked)] == asked
    text = prepared.tokenizer.decode([label for label in row["labels"] if label != -100])
    return text, example.completion, prepared.tokenizer.decode(asked)


@pytest.mark.parametrize("template", [THINKS, QWEN3.read_text()], ids=["miniature", "Qwen3"])
def test_a_switch_of_the_template_holds_in_training_and_in_generation(run, template):
    before = builds.prepared(run(template))
    text, completion, asked = learnt(before)
    assert "<think>" in text and "<think>" not in asked
    [note] = before.notes
    assert "'<think>\\n\\n</think>\\n\\n' before each answer" in note and OFF in note

    after = builds.prepared(run(template, OFF))
    text, completion, asked = learnt(after)
    assert text.strip() == f"{completion}<|im_end|>"
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert after.notes == []


def test_the_saved_tokenizer_has_the_switch_in_its_template(run, tmp_path):
    prepared = builds.prepared(run(THINKS, OFF))
    prepared.tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    asked = [{"role": "user", "content": "Hi"}]
    off, on = (
        saved.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, **kwargs)
        for kwargs in ({}, {"enable_thinking": True})
    )
    assert off == on + "<think>\n\n</think>\n\n"


def test_a_switch_leaves_trls_form_of_a_known_template_in_use(run):
    text, completion, _ = learnt(builds.prepared(run(QWEN3.read_text(), OFF, "trainer.assistant_only_loss=true")))
    assert text.strip().endswith(f"{completion}<|im_end|>")


@pytest.mark.parametrize("value", [True, 3, 0.5, "text", 'both " and \\ %} é 😀'])
def test_a_variable_gets_its_value(tiny_model, value):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% if flag %}{{ flag }}|{{ flag is string }}{% endif %}"
    set_template_variables(tokenizer, {"flag": value})
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        == f"{value}|{isinstance(value, str)}"
    )


def test_a_variable_that_the_template_does_not_read_is_refused(run):
    with pytest.raises(
        UserError, match=r"enable_thinkin=false: this model's chat template does not read enable_thinkin"
    ):
        builds.prepared(run(THINKS, "model.chat_template_kwargs.enable_thinkin=false"))
    with pytest.raises(UserError, match="expected the name of a variable"):
        builds.prepared(run(THINKS, "model.chat_template_kwargs.enable_thinking=[1]"))
    with pytest.raises(UserError, match="plain_prompt=true uses no template"):
        builds.prepared(run(THINKS, OFF, "model.plain_prompt=true"))


def test_rows_are_cut_at_max_length_and_counted(tiny_run):
    rows = builds.prepared([*tiny_run, "trainer.max_length=200", "data.max_cut_share=1"]).rows
    size = rows.sizes["train"]
    assert size.truncated > 0
    assert size.truncated == sum(len(row) == 200 for row in rows.train["input_ids"])
    assert size.tokens > sum(map(len, rows.train["input_ids"]))


def test_sizes_count_what_the_labels_hold(tiny_run):
    rows = builds.prepared(tiny_run).rows
    labels = [label for row in rows.train["labels"] for label in row[1:]]
    assert rows.sizes["train"].loss_tokens == sum(label != IGNORE_INDEX for label in labels)
    assert rows.sizes["train"].tokens == sum(map(len, rows.train["input_ids"]))


@pytest.mark.parametrize(
    ("texts", "separator"), [(["a", "b"], "\n"), (["a\nb", "c"], "\n"), (["a", "b\n\nc"], "\n###\n")]
)
def test_messages_of_a_plain_prompt_are_parted_by_what_no_answer_holds(tiny_model, texts, separator):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    rows = [Example([{"role": "user", "content": texts[0]}], texts[1], "a:1")]
    set_turn_separator(tokenizer, Splits(rows, rows, rows, {}, ""))
    assert turn_separator(tokenizer) == separator
    assert plain_prompt(rows[0].prompt, tokenizer) == texts[0] + separator


def test_answers_that_hold_every_separator_need_a_template(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    rows = [Example([{"role": "user", "content": "d"}], "a\n###\nb", "a:1")]
    with pytest.raises(UserError, match="answers of this data hold both"):
        set_turn_separator(tokenizer, Splits(rows, rows, rows, {}, ""))
