"""The tokens that the trainer reads, cut and counted."""

from support import builds

from finetune.training.tokenize import IGNORE_INDEX


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
