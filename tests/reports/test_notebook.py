"""The notebook runs from top to bottom on the run directories, and shows the numbers of the page and of the JSON."""

from __future__ import annotations

import ast
import html
import json
import os
from html.parser import HTMLParser

import nbclient
import nbformat
import pytest

from evalkit.reports.document import markdown_text
from evalkit.reports.page import render_page
from evalkit.reports.significance import report, write_report
from tests.conftest import ROOT
from tests.reports.runs import write_audit, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    values = [
        {
            (t, f"{t}{i}"): [float((i * (s + k)) % 7 > k) for s in (1, 2, 3)]
            for t in ("sums", "facts")
            for i in range(40)
        }
        for k in (2, 3)
    ]
    a, b = (write_run(folder / name, of, name=name, over="seed") for name, of in zip("ab", values, strict=True))
    audit = write_audit(folder / "audit", {doc: "dirty" if doc.endswith("3") else "clean" for _, doc in values[0]})
    return report(a, b, audit=audit, margin=0.02), folder


class Texts(HTMLParser):
    """Tables as rows of texts, and all text outside figures."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.text, self._cell = [], "", None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")
                self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, text):
        self.text += text
        if self._cell:
            self.tables[-1][-1][-1] += text


def tables_of(page):
    return Texts(page).tables


def words_of(page):
    return Texts(page).text


def test_it_runs_from_top_to_bottom_and_shows_the_numbers_of_the_page_and_the_json(made, tmp_path, monkeypatch):
    report, _ = made
    for name in ("report.ipynb", "report.html", "report.json", "report.md"):
        write_report(report, tmp_path / name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(tmp_path / "report.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    stored = json.loads((tmp_path / "report.json").read_text())["claims"]
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    n = 0
    for claim in stored:
        wanted = [[table["columns"], *table["rows"]] for table in claim["tables"]]
        [cell] = [one for one in notebook.cells if one.source == f'report["{claim["key"]}"]']
        assert tables_of(cell.outputs[0]["data"]["text/html"]) == wanted
        section = page[page.index(f'<section id="{claim["key"]}">') :]
        assert tables_of(section[: section.index("</section>")]) == wanted
        for table in wanted:
            lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in table]
            assert "\n".join(lines[1:]) in markdown
        n += sum(any(map(str.isdigit, one)) for table in wanted for row in table for one in row)
        text = words_of(cell.outputs[0]["data"]["text/html"])
        assert all(sentence in text for sentence in claim["sentences"])
    assert n > 60
    figures = sum(
        "image/svg+xml" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert figures == len(report.drawings)


def test_each_figure_is_made_by_a_public_call_of_two_or_three_lines(made, tmp_path):
    report, _ = made
    write_report(report, tmp_path / "report.ipynb")
    notebook = json.loads((tmp_path / "report.ipynb").read_text())
    sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(len([line for line in source.splitlines() if line]) <= 5 for source in sources)
    assert not any("._" in source or "import _" in source for source in sources)


def test_no_name_is_defined_by_two_cells_so_that_marimo_runs_it_too(made, tmp_path):
    report, _ = made
    write_report(report, tmp_path / "report.ipynb")
    notebook = json.loads((tmp_path / "report.ipynb").read_text())
    seen = set()
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        nodes = list(ast.walk(ast.parse(cell["source"])))
        names = {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        names |= {one.asname or one.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
                  for one in node.names}  # fmt: skip
        assert seen.isdisjoint(names)
        seen |= names
    assert {"evalkit", "runs", "report"} <= seen


def test_the_formats_hold_the_same_claims_in_the_issue_s_order(made):
    report, _ = made
    keys = [claim.key for claim in report]
    assert keys == [
        *("verdict", "suite", "tasks", "seeds", "contamination", "judge", "health", "assumptions", "repeat"),
    ]  # fmt: skip
    page, markdown, stored = html.unescape(render_page(report)), report.to_markdown(), json.loads(report.to_json())
    for claim in report:
        assert f"<h2>{claim.title}</h2>" in page
        assert f"## {markdown_text(claim.title)}" in markdown
        assert stored["claims"][keys.index(claim.key)]["sentences"] == list(claim.sentences)
