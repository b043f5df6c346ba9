"""How does one run look in a browser? `report.html`: the verdict first, then what it rests on."""

from finetune.config.settings import flatten_settings
from finetune.config.spelling import spell
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.machine.allowance import GIB
from finetune.reporting import figures, html
from finetune.reporting.tables import (
    Table,
    best_prompt_table,
    describe_best_prompt,
    format_arm,
    format_interval,
    harness_table,
    score_table,
    to_html,
)
from finetune.runs.files import write_text
from finetune.runs.predictions import History, Prediction
from finetune.runs.read import CompletedRun
from finetune.runs.result import BestPrompt, DataResult, EvaluationResult, Forgetting, RunResult

SHOWN = 25  # examples won, and examples lost
STYLES = {"tuning_wins": "verdict", "tuning_hurts": "verdict bad", "nothing_works": "verdict bad"}


def write_run_page(run: CompletedRun) -> None:
    """Write the `report.html` of a complete run that answered the test prompts."""
    result, evaluation, verdict = run.result, run.result.evaluation, run.result.evaluation.verdict
    assert verdict, "only a run that answered the test prompts has a page"
    harness_note = html.paragraph("Values with their standard errors.", "dim")
    page = html.page(
        result.name,
        html.paragraph(verdict.sentence, STYLES.get(verdict.kind, "verdict dim")),
        _scores(evaluation, verdict.against),
        _best_prompt(evaluation.best_prompt) if evaluation.best_prompt else "",
        _forgetting(evaluation.retention) if evaluation.retention else "",
        to_html(harness_table(evaluation.harness)) + harness_note if evaluation.harness else "",
        _learning(run.history),
        _examples(run.predictions, evaluation, verdict.against),
        _data(result.data),
        _settings(result),
        _cost(result),
        _provenance(result),
    )
    write_text(run.folder / "report.html", page)


def _scores(evaluation: EvaluationResult, against: str) -> str:
    arms = {format_arm(name, evaluation): arm for name, arm in evaluation.arms.items()}
    headline = {name: arm.scores[evaluation.metric] for name, arm in arms.items()}
    cut = ", ".join(f"{arm.unfinished_answers} of {name}" for name, arm in arms.items())
    return (
        to_html(score_table(evaluation, against))
        + html.paragraph("Means with 95 % intervals (BCa bootstrap); differences are paired by prompt.", "dim")
        + html.figure(figures.score_intervals(evaluation.metric, headline))
        + html.paragraph(f"Answers cut off at {evaluation.max_new_tokens} tokens: {cut}.")
    )


def _best_prompt(best: BestPrompt) -> str:
    system = html.details("System prompt", html.text_list([best.system])) if best.system else ""
    table = to_html(best_prompt_table(best)) if best.rounds else ""
    return html.heading("The best prompt") + html.paragraph(describe_best_prompt(best)) + table + system


def _forgetting(retention: Forgetting) -> str:
    names = {"passages": "general text", "questions": "simple questions"}
    rows = [
        [
            names[name],
            part.metric,
            *map(format_interval, (part.base, part.tuned)),
            format_interval(part.difference, "+"),
        ]
        for name, part in retention.parts.items()
    ]
    sentence = html.paragraph(f"{retention.sentence}.", "bad" if retention.forgot else "")
    table = to_html(Table("", ["", "metric", "base", "tuned", "difference"], rows))
    return html.heading("What it forgot") + sentence + table


def _learning(history: History) -> str:
    by_step, *others = (html.figure(figures.losses({"": history}, axis)) for axis in figures.AXES)
    others.append(html.figure(figures.learning_rate(history)))
    return html.heading("Learning") + by_step + html.details("By tokens and by time; learning rate", "".join(others))


def _examples(predictions: list[Prediction], evaluation: EvaluationResult, against: str) -> str:
    """The prompts on which training changed the score most, by a metric that every prompt has."""
    scored = list(predictions[0].arms["tuned"].scores) if predictions else []
    if not scored:
        return ""
    metric = evaluation.metric if evaluation.metric in scored else scored[0]
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    gains = [sign * (row.arms["tuned"].scores[metric] - row.arms[against].scores[metric]) for row in predictions]
    order = sorted(range(len(gains)), key=gains.__getitem__)
    lost = [i for i in order if gains[i] < 0]
    won = [i for i in reversed(order) if gains[i] > 0]
    counts = f"{len(lost)} lost, {len(won)} won, {len(gains) - len(lost) - len(won)} equal"
    counted = html.paragraph(f"By {metric}, tuned against {format_arm(against, evaluation)}: {counts}.")
    parts = [html.heading("Examples"), counted]
    for title, chosen in (("Lost", lost), ("Won", won)):
        if chosen:
            shown = f"{title}: {min(SHOWN, len(chosen))} of {len(chosen)}, the largest differences first"
            examples = (_example(predictions[i], metric, evaluation) for i in chosen[:SHOWN])
            parts += [html.heading(shown, 3), *examples]
    return "".join(parts)


def _example(prediction: Prediction, metric: str, evaluation: EvaluationResult) -> str:
    texts = [("prompt", prediction.question), ("reference", prediction.reference)]
    for arm, reply in prediction.arms.items():
        texts.append((f"{format_arm(arm, evaluation)} {reply.scores[metric]:.2f}", reply.text))
        if reply.demonstrations:
            texts.append((f"{format_arm(arm, evaluation)} examples", ", ".join(reply.demonstrations)))
    return html.example(prediction.place, texts)


def _data(data: DataResult) -> str:
    rows = [
        [name, *(f"{n:,}" for n in (size.rows, size.tokens, size.loss_tokens, size.truncated, size.dropped))]
        for name, size in data.splits.items()
    ]
    bad = f"Rows left out: {data.counts.get('bad', len(data.bad_rows)):,}, the first"
    loss, context = html.span("loss", "what carries loss"), html.span("context", "context")
    examples = [
        f"{html.heading(example.place, 3)}<pre>{''.join(html.span(*span) for span in example.spans)}</pre>"
        for example in data.examples
    ]
    parts = [
        html.heading("What it was trained on"),
        html.paragraph(" · ".join(f"{value:,} {name}" for name, value in data.counts.items() if value)),
        to_html(Table("", ["split", "rows", "tokens", "with loss", "cut off", "dropped"], rows)),
        html.details(bad, html.text_list(data.bad_rows)) if data.bad_rows else "",
        html.details("Shared between splits", html.text_list(data.shared)) if data.shared else "",
        f"<p>The first rows: {loss}, {context}.</p>" if examples else "",
    ]
    more = "stage=preview with the same settings shows more rows, token by token (preview.html)."
    return "".join([*parts, *examples, html.paragraph(more, "dim")])


def _settings(result: RunResult) -> str:
    changed = [[key, spell(value), spell(default)] for key, (value, default) in result.changed_settings.items()]
    every = [[key, spell(value)] for key, value in flatten_settings(result.config).items()]
    table = to_html(Table("", ["setting", "here", "default"], changed))
    shown = table if changed else html.paragraph("All are the defaults.")
    folded = html.details("All settings", to_html(Table("", ["setting", "value"], every)))
    return html.heading("Settings") + shown + folded


def _cost(result: RunResult) -> str:
    training, model = result.training, result.model
    rows = [
        ["seconds, all phases", f"{sum(result.seconds.values()):,.0f}"],
        *([f"seconds, {phase}", f"{seconds:,.1f}"] for phase, seconds in result.seconds.items()),
        ["steps", f"{training.steps:,}"],
        ["tokens trained on", f"{training.tokens:,}"],
        ["tokens per second", f"{training.tokens_per_second:,.0f}"],
        ["peak memory in training", f"{training.peak_memory_bytes / GIB:.2f} GiB"],
        ["parameters trained", f"{model.trainable_parameters:,} of {model.parameters:,}"],
    ]
    return to_html(Table("Cost", ["", ""], rows))


def _provenance(result: RunResult) -> str:
    model = {f"model {key}": value for key, value in result.model.provenance.items() if value}
    facts = {"data fingerprint": result.data.fingerprint, "seed": result.seed, **model, **result.versions}
    return to_html(Table("Provenance", ["", "value"], list(facts.items()), prose=["value"]))
