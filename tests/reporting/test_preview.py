"""The preview shows the very tokens and labels that the trainer's own data loader yields."""

import html
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from support import builds

from finetune.reporting.console import RunConsole
from finetune.reporting.preview import SHOWN_ON_PAGE, show_preview
from finetune.training.row_preview import example_spans, packing_share, padding_share, preview_rows, token_texts
from finetune.training.tokenize import IGNORE_INDEX

PACKED = ["trainer.packing=true", "trainer.max_length=512", "trainer.per_device_train_batch_size=1"]
LAYOUTS = {
    "flat": [],
    "padded": ["model.attn_implementation=eager"],
    "packed": PACKED,
    "wrapped": [*PACKED, "trainer.packing_strategy=wrapped"],
    "cut": ["trainer.max_length=200", "data.max_cut_share=1"],
    "cut so that some lose their loss": ["trainer.max_length=150", "data.max_cut_share=1"],
    "loss on the prompt too": ["trainer.completion_only_loss=false"],
}
OFTEN = ("flat", "packed")
BEGINNING = ("<|im_start|>", ["system"])
GREEN = "rgb(10, 125, 54)"


def rows_of(inputs):
    """The rows of one batch of the trainer: tokens, and whether each token but the first is predicted with loss."""
    if "row_tokens" in inputs:
        tokens, labels = inputs["input_ids"][0], inputs["shift_labels"][0]
        inside = torch.zeros(inputs["row_tokens"].numel(), dtype=torch.bool)
        inside[inputs["flat_tokens"]] = True
        for row, real in zip(inputs["row_tokens"], inside.view_as(inputs["row_tokens"]), strict=True):
            places = [*range(inputs["prefix_length"]), *row[real].tolist()]
            yield tokens[places].tolist(), (labels[places] != IGNORE_INDEX).tolist()[:-1]
        return
    kept = inputs["attention_mask"].bool() if "attention_mask" in inputs else inputs["input_ids"] >= 0
    for tokens, labels, inside in zip(inputs["input_ids"], inputs["labels"], kept, strict=True):
        yield tokens[inside].tolist(), (labels[inside] != IGNORE_INDEX).tolist()[1:]


def rows_of_trainer(overrides):
    trainer = builds.trainer(overrides)
    rows = [row for inputs in trainer.get_train_dataloader() for row in rows_of(inputs)]
    return [([trainer.processing_class.decode([token]) for token in tokens], loss) for tokens, loss in rows]


def shown(overrides, folder):
    """Write the page of a run; return its path and the rows that it shows."""
    prepared = builds.prepared(overrides)
    show_preview(prepared, RunConsole(folder, is_main_process=False))
    return folder / "preview.html", preview_rows(prepared, SHOWN_ON_PAGE)


@pytest.mark.parametrize(
    "layout", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_the_preview_shows_what_the_trainers_data_loader_yields(tiny_run, layout):
    overrides = [*tiny_run, *LAYOUTS[layout]]
    seen = preview_rows(builds.prepared(overrides), 100)
    expected = rows_of_trainer(overrides)
    assert len(expected) > 1
    assert sorted((row.pieces, row.loss[1:]) for row in seen) == sorted(expected)


def test_the_page_shows_each_tokens_loss_in_the_colour_of_its_label(tiny_run, tmp_path, browser):
    page, _ = shown(tiny_run, tmp_path)
    browser.goto(page.as_uri())
    seen = browser.evaluate(
        """() => [...document.querySelectorAll('pre.row')].map(row =>
            [...row.querySelectorAll('span')].map(token => [token.textContent, getComputedStyle(token).color]))"""
    )
    assert len({color for row in seen for _, color in row}) == 2
    rows = [([text for text, _ in row], [color == GREEN for _, color in row][1:]) for row in seen]
    assert sorted(rows) == sorted(rows_of_trainer(tiny_run))


def test_the_page_escapes_what_rows_hold(tiny_model, tmp_path, browser):
    rows = [{"prompt": f"<script>document.title = 'bad'</script>{i}", "completion": "<b>&amp;</b>"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["data=local", f"data.path={tmp_path / 'rows.jsonl'}", "model=local", f"model.path={tiny_model}"]
    page, seen = shown(overrides, tmp_path)
    assert "<script>" not in page.read_text()
    browser.goto(page.as_uri())
    assert browser.title().startswith("What ")
    text = browser.evaluate("() => document.querySelector('pre.row').textContent")
    assert text == "".join(seen[0].pieces) and "<b>&amp;</b>" in text


def test_the_page_asks_for_nothing_from_elsewhere(tiny_run, tmp_path, browser):
    asked = []
    browser.on("request", lambda request: asked.append(request.url))
    page, _ = shown(tiny_run, tmp_path)
    browser.goto(page.as_uri())
    assert asked == [page.as_uri()]


def test_what_is_cut_and_where_packed_rows_meet_is_marked(tiny_run, tmp_path):
    page, seen = shown([*tiny_run, *LAYOUTS["cut"]], tmp_path)
    cut = [row for row in seen if row.cut]
    assert cut
    assert f'<span class="cut">{html.escape("".join(cut[0].cut))}</span>' in page.read_text()
    for packed in ("packed", "wrapped"):
        page, seen = shown([*tiny_run, *LAYOUTS[packed]], tmp_path)
        assert any(row.starts for row in seen)
        assert page.read_text().count("<hr>") == sum(len(row.starts) for row in seen)
        for row in seen:
            system = [i for i, piece in enumerate(row.pieces) if (piece, row.pieces[i + 1 : i + 2]) == BEGINNING]
            assert row.starts == [place for place in system if place]


def test_the_share_of_padding_is_that_of_batches_padded_to_their_longest_row(tiny_run):
    def padded(batch, *settings):
        size = f"trainer.per_device_train_batch_size={batch}"
        prepared = builds.prepared([*tiny_run, size, *settings])
        return padding_share(prepared.rows, prepared.settings), prepared.rows

    everything, rows = padded(32)
    lengths = list(map(len, rows.whole["train"]["input_ids"]))
    assert everything == pytest.approx(1 - sum(lengths) / (max(lengths) * len(lengths)))
    assert padded(1)[0] == 0
    assert 0 < padded(4)[0] < everything
    assert padded(4, f"trainer.max_length={min(lengths)}", "data.max_cut_share=1")[0] == 0  # what is cut needs none


def test_the_room_left_by_packing_is_that_of_the_packs_that_are_trained_on(tiny_run):
    plain = builds.prepared([*tiny_run, "trainer.max_length=512"])
    packed = builds.prepared([*tiny_run, *LAYOUTS["packed"]])
    packs, room = packing_share(plain.rows, plain.settings)
    assert (packs, room) == packing_share(packed.rows, packed.settings)
    assert packs == len(packed.rows.train) and 0 < room < 1


def test_a_token_keeps_the_space_before_it_where_decoders_leave_out_the_first_ones():
    words = SimpleNamespace(decode=lambda ids, **_: " ".join(["to", "be", "or", "not"][id] for id in ids))
    assert token_texts(words, [0, 1, 2, 3]) == ["to", " be", " or", " not"]


def test_preview_is_shown_without_the_models_weights(tiny_run, tiny_model, program, tmp_path):
    model = tmp_path / "weightless"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("*.safetensors"))
    shown = program("stage=preview", *tiny_run, f"model.path={model}", "name=seen")
    assert shown.returncode == 0, shown.stderr
    assert "Training rows by length" in shown.stdout
    assert "<|im_start|>user" in shown.stdout
    assert (tmp_path / "outputs" / "seen" / "preview.html").is_file()
    assert not (tmp_path / "outputs" / "seen" / "result.json").exists()


def test_a_runs_page_shows_its_first_rows_with_what_carries_loss(tiny_run):
    prepared = builds.prepared(tiny_run)
    for example, row in zip(example_spans(prepared), preview_rows(prepared, 3), strict=True):
        assert [kind for kind, _ in example.spans] == ["context", "loss"]
        assert "".join(text for _, text in example.spans) == "".join(row.pieces)
        assert example.spans[1][1] == "".join(piece for piece, loss in zip(row.pieces, row.loss, strict=True) if loss)
