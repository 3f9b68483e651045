"""The page: self-contained, and inert whatever a model has written."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser

import pytest
from rich.console import Console

from evalkit.reports.comparison import compare
from evalkit.reports.document import markdown_text
from evalkit.reports.explorer import Evidence, Leak, pack
from evalkit.reports.figures import forest_plot, inline_svg, to_svg
from evalkit.reports.inputs import load_run
from evalkit.reports.page import policy, visible
from evalkit.reports.page import render_page as render_report
from evalkit.reports.significance import assemble, write_report
from evalkit.reports.terminal import render
from tests.reports.runs import write_audit, write_run


def render_page(comparison, known=None):
    return render_report(assemble(comparison), known)


def unpacked(block):
    return json.loads(zlib.decompress(base64.b64decode(block), -15))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg></table><iframe src='https://example.org'>",
    "[a](javascript:alert(1)) {{ 7*7 }} {% raw %}",
    "\u202edrowssap\u0000\u0007\u200b",
    "x" * 1_000_000,
    "'';!--\"<XSS>=&{()}",
]


@pytest.fixture
def comparison(tmp_path):
    def hostile(task, doc_hash):
        return HOSTILE[int(doc_hash) % len(HOSTILE)]

    a = write_run(
        tmp_path / "a", {("<b>task", f"{n}"): float(n % 3 > 0) for n in range(40)}, name="<i>base$x$", response=hostile
    )
    b = write_run(tmp_path / "b", {("<b>task", f"{n}"): float(n % 2) for n in range(40)}, name="q4", target=hostile)
    return compare(
        a, b, audit=write_audit(tmp_path / "audit", {f"{n}": "clean" if n % 4 else "dirty" for n in range(40)})
    )


class Elements(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)


def test_hostile_names_and_answers_are_text_and_nothing_else(comparison):
    page = render_page(comparison)
    elements = Elements(page)
    assert {"img", "iframe", "xss", "object", "embed", "b>task", "i"}.isdisjoint(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name == "style"]
    for name, value in elements.attributes:
        if name in {"src", "href", "xlink:href", "action", "formaction"}:
            assert value.startswith(("#", "data:,"))
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "\u0000" not in page


def test_the_policy_allows_this_script_and_this_style_and_no_other(comparison):
    page = render_page(comparison)
    [said] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    said = said.replace("&#39;", "'")
    assert "unsafe" not in said
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    for text in (style, script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in said
    assert policy([], []).startswith("default-src 'none'; script-src 'none'; style-src 'none'")


def test_the_explorer_holds_every_item_with_its_texts_written_out(comparison):
    hostile = "\ud800<script>\u202e"
    known = Evidence(
        prompts={("<b>task", "3"): hostile},
        leaks={
            "0": Leak(
                "part.jsonl, row 1",
                (("plain", "before "), ("shared", "shared <b>\u202e"), ("gap", "9 left out")),
                (("<b>question", (("edited", "after"),)),),
            )
        },
        words={("<b>task", "3"): [("Judge j", "because </script>")]},
    )
    index, *parts = map(unpacked, pack(comparison, known))
    assert index["n"] == len(comparison.items) == 40
    names = index["outcome"]["names"]
    for place, item in enumerate(comparison.items):
        wanted = {(1, 1): "both right", (1, 0): "only A", (0, 1): "only B", (0, 0): "both wrong"}[
            item.score_a, item.score_b
        ]
        assert names[index["outcome"]["codes"][place]] == wanted
        assert index["audit"]["names"][index["audit"]["codes"][place]] == item.status
    rows = {hash_: parts[place // index["chunk"]][place % index["chunk"]] for place, hash_ in enumerate(index["hash"])}
    assert rows["3"][0] == "<U+D800><script><U+202E>"
    assert rows["3"][5] == [["Judge j", "because </script>"]]
    assert rows["0"][4] == [
        "part.jsonl, row 1",
        [[0, "before "], [1, "shared <b><U+202E>"], [3, "9 left out"]],
        [["<b>question", [[2, "after"]]]],
    ]
    assert rows["5"][2] == "x" * 4000 + " \u2026 (996,000 more characters)"


def test_the_page_loads_nothing(comparison):
    page = render_page(comparison)
    assert re.search(r"Content-Security-Policy\" content=\"default-src &#39;none&#39;", page)
    assert not re.search(r"url\(\s*['\"]?(?!#)", page)
    assert "@import" not in page
    # Addresses that remain are names of XML vocabularies, which nothing fetches.
    assert set(re.findall(r"https?://[\w./-]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
        "https://example.org",
    }


def test_the_page_is_small_although_an_answer_has_a_million_characters(comparison, tmp_path):
    write_report(assemble(comparison), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 300_000


def test_the_page_says_what_the_comparison_says(comparison):
    page = render_page(comparison)
    assert comparison.headline().replace("<i>base$x$", "&lt;i&gt;base$x$") in page
    for subset in ("all items", "clean items", "flagged items"):
        assert f'<td class="text">{subset}</td>' in page


def test_a_suspect_run_is_announced_above_the_tables_and_its_findings_are_text(tmp_path):
    finding = {"severity": "suspect", "message": "30 of 60 <script>alert(1)</script>", "advice": "Read some"}
    values = {("t", f"{n}"): float(n % 2) for n in range(10)}
    sound = write_run(tmp_path / "a", values)
    ill = write_run(tmp_path / "b", values, name="<i>cut", record={"health": {"suspect": True, "findings": [finding]}})
    page = render_page(compare(sound, ill))
    assert page.count('class="suspect"') == 1
    banner = page[page.index('class="suspect"') : page.index("<table")]
    assert "B (&lt;i&gt;cut)" in banner
    assert "30 of 60 &lt;script&gt;alert(1)&lt;/script&gt;" in banner
    assert 'class="suspect"' not in render_page(compare(sound, sound))


def test_counts_and_means_that_the_overall_row_lacks_are_left_empty(tmp_path):
    metrics = {
        name: {"metrics": [{"metric": "acc", "filter": "none", "higher_is_better": name == "s"}]} for name in "st"
    }
    values = {(task, f"{task}{n}"): float(n % 3 > 0) for task in "st" for n in range(40)}
    other = {key: float(int(key[1][1:]) % 2) for key in values}
    comparison = compare(*(
        write_run(tmp_path / side, scores, record={"tasks": metrics}) for side, scores in (("a", values), ("b", other))
    ))  # fmt: skip
    page = render_page(comparison)
    assert "None" not in page
    assert "for the mean of tasks: better" in page
    out = io.StringIO()
    render(comparison, Console(file=out, width=120))
    assert "None" not in out.getvalue()


@pytest.mark.parametrize("task", ["t", "leaderboard_bbh_tracking_shuffled_objects_seven_objects"])
def test_long_names_of_models_stay_within_the_figure_and_tell_the_models_apart(tmp_path, task):
    family = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B-Instruct-AWQ-checkpoint-"
    values = {(task, f"{n}"): float(n % 2) for n in range(20)}
    runs = [write_run(tmp_path / step, values, name=family + step) for step in ("1000", "2000")]
    figure = forest_plot(compare(*runs))
    figure.savefig(io.BytesIO())
    box, width = figure.axes[0].xaxis.label.get_window_extent(), figure.bbox.width
    assert box.x0 >= 0
    assert box.x1 <= width
    label = figure.axes[0].get_xlabel()
    assert "checkpoint-2000 minus deepseek-ai" in label
    assert label.count("checkpoint-1000") == 1


def test_lone_surrogates_and_control_characters_are_shown(tmp_path):
    assert visible("a\ud800b\x1b\u202e\n") == "a\u27e8U+D800\u27e9b\u241b\u27e8U+202E\u27e9\n"
    assert visible("\ufffe\uffff\ufdd0\U0001ffff") == "".join(
        f"\u27e8U+{one}\u27e9" for one in ("FFFE", "FFFF", "FDD0", "1FFFF")
    )
    assert visible(None) == ""


def test_markdown_makes_no_link_mention_formula_or_line_of_foreign_text():
    assert markdown_text("@team a@b.org") == "@<!-- -->team a@<!-- -->b.org"
    assert markdown_text("see https://e.org, WWW.e.org: #12") == (
        "see https:<!-- -->//e.org, WWW<!-- -->.e.org: \\#<!-- -->12"
    )
    assert markdown_text("$x$\r\n| [a](b) `c` <d>") == "\\$x\\$  \\| \\[a\\](b) \\`c\\` &lt;d&gt;"


def test_names_of_models_and_tasks_are_written_out_once_where_a_run_is_read(tmp_path):
    folder = write_run(tmp_path / "a", {("t\u202e\n", "1"): 1.0}, name="m\u202e\x1b[31m\u200bx")
    run = load_run(folder)
    assert (run.name, run.tasks) == ("m<U+202E><U+001B>[31m<U+200B>x", ["t<U+202E><U+000A>"])
    assert list(run.record["tasks"]) == run.tasks
    assert run.primary(run.tasks[0], None) == ("acc", "none")


def test_the_figure_is_well_formed_the_same_every_time_and_shows_foreign_names_as_they_are(comparison):
    svg = to_svg(forest_plot(comparison))
    assert svg == to_svg(forest_plot(comparison))
    texts = " ".join(
        "".join(element.itertext()) for element in ET.fromstring(svg).iter() if element.tag.endswith("text")
    )
    assert "<b>task" in texts
    assert "<i>base$x$" in texts
    assert "clean items" in texts


def test_a_figure_on_the_page_has_no_style_and_the_page_s_own_colours(comparison):
    svg = inline_svg(forest_plot(comparison), "forest")
    elements = list(ET.fromstring(svg).iter())
    assert not [one for one in elements if one.tag.endswith("}style") or "style" in one.attrib]
    assert "#000000" not in svg
    assert 'id="forest-' in svg
    assert not re.search(r'(url\(#|href="#)(?!forest-)', svg)
    assert elements[0].attrib["fill"] == "currentColor"  # of all that matplotlib leaves black
    fonts = {one.attrib.get("font-size") for one in elements if one.tag.endswith("}text")}
    assert None not in fonts


def test_the_terminal_shows_every_subset_in_80_columns(comparison):
    out = io.StringIO()
    render(comparison, Console(file=out, width=80))
    text = out.getvalue()
    assert all(word in text for word in ("<b>task", "all", "clean", "flagged", "note: clean items"))
    assert max(map(len, text.splitlines())) <= 80
