"""A page is one file that needs no network, and shows what a user's texts hold and does nothing else."""

import json

from plotly import graph_objects
from support.pages import drawn

from finetune.reporting import html

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">&amp;\u2028"


def test_every_part_escapes_what_it_is_given():
    parts = [
        html.heading(HOSTILE),
        html.paragraph(HOSTILE),
        html.span("loss", HOSTILE),
        html.text_list([HOSTILE]),
        html.example(HOSTILE, [(HOSTILE, HOSTILE)]),
        html.details(HOSTILE, html.paragraph(HOSTILE)),
        html.page(HOSTILE),
    ]
    for part in parts:
        assert "<img" not in part and "&lt;img" in part and "&amp;amp;" in part


def test_data_for_a_script_cannot_end_its_element_and_is_the_same_json():
    content = json.dumps({"text": HOSTILE}, ensure_ascii=False)
    part = html.script_data("answers", content)
    assert part.count("</script>") == 1 and "\u2028" not in part
    assert json.loads(part[part.index(">") + 1 : part.rindex("<")]) == {"text": HOSTILE}


def test_a_page_brings_plotly_only_where_it_has_a_figure():
    figure = html.figure(graph_objects.Figure())
    assert 'id="plotly"' in html.page("One", figure) and 'id="plotly"' not in html.page("None", html.paragraph("x"))


def test_a_figure_is_drawn_and_nothing_is_asked_of_a_network(browser, tmp_path):
    requests = []
    browser.on("request", lambda request: requests.append(request.url))
    file = tmp_path / "page.html"
    file.write_text(html.page(HOSTILE, html.figure(graph_objects.Figure(layout={"title": {"text": "Shown"}}))))
    assert drawn(browser, file) == [] and [url for url in requests if not url.startswith("blob:")] == [file.as_uri()]
    assert browser.text_content(".gtitle") == "Shown" and browser.title() != "owned"
