"""The page in a real browser: nothing leaves it, filter, search and keys work, and hostile answers do nothing.

With EVALKIT_SHOTS=FOLDER the screenshots and the print are kept.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

from evalkit.reports.comparison import compare
from evalkit.reports.explorer import Evidence, Leak
from evalkit.reports.page import render_page
from evalkit.reports.significance import assemble
from evalkit.reports.view import doorway, make_server
from tests.chromium.browser import Browser, find_chromium
from tests.reports.runs import write_audit, write_run
from tests.reports.test_page import HOSTILE

N = 400
# What a hostile text would do if any of it were obeyed.
WORSE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<a href='javascript:window.hacked = 1'>click</a>",
    "</script><script>window.hacked = 1</script><!--",
    "<svg/onload=window.hacked=1>",
    "\ud800\udfff\udc00 broken \ufffe\uffff",
    *HOSTILE,
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        reason = "there is no chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    made = Browser(program, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def hostile(task, doc_hash):
        # No file can hold lone surrogates; they are put into what the explorer shows below.
        return WORSE[int(doc_hash[4:]) % len(WORSE)].encode("utf-8", "replace").decode()

    tasks = ("sums", "<b>facts")
    scores = [{(t, f"{t[:4]}{n}"): float(n % k > 0) for t in tasks for n in range(N // 2)} for k in (3, 5)]
    runs = [write_run(folder / k, of, name=f"<i>{k}", response=hostile) for k, of in zip("ab", scores, strict=True)]
    audit = write_audit(folder / "audit", {doc: "dirty" if int(doc[4:]) % 4 == 0 else "clean" for _, doc in scores[0]})
    return compare(*runs, audit=audit, margin=0.02)


@pytest.fixture(scope="module")
def page(comparison, tmp_path_factory):
    known = Evidence(
        prompts={
            (item.task, item.doc_hash): f"Question {item.doc_hash}: {WORSE[int(item.doc_hash[4:]) % len(WORSE)]}"
            for item in comparison.items
        },
        leaks={
            item.doc_hash: Leak(
                "part.jsonl, row 1",
                (("gap", WORSE[1]), ("shared", WORSE[0]), ("edited", WORSE[3])),
                ((WORSE[0], (("plain", WORSE[2]), ("shared", WORSE[4]))),),
            )
            for item in comparison.items
        },
        words={(item.task, item.doc_hash): [("Judge <j>", WORSE[0])] for item in comparison.items},
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(assemble(comparison), known), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, page):
    browser.size(1280, 900)
    browser.troubles.clear()
    browser.requests.clear()
    browser.open(page.as_uri())
    browser.until(f"document.getElementById('count').textContent === '{N} of {N} items'")
    yield browser
    assert browser.troubles == []
    assert [one for one in browser.requests if not one.startswith(("file:", "data:"))] == []
    assert browser.run("window.hacked") is None


def count(browser):
    return int(browser.run("document.getElementById('count').textContent").split()[0].replace(",", ""))


def choose(browser, name, label):
    """Choose by mouse and keys, as a reader does."""
    options = browser.run(f"[...document.getElementById('filter-{name}').options].map((o) => o.textContent)")
    at = browser.run(f"document.getElementById('filter-{name}').selectedIndex")
    browser.click(f"#filter-{name}")
    for _ in range(options.index(label) - at):
        browser.key("ArrowDown")
    browser.key("Enter", "\r")
    browser.until(f"document.getElementById('filter-{name}').selectedOptions[0].textContent === {label!r}", 10)


def test_filters_leave_the_items_they_name(opened, comparison):
    choose(opened, "outcome", "only B")
    only_b = sum(item.score_b > item.score_a for item in comparison.items)
    opened.until(f"document.getElementById('count').textContent.startsWith('{only_b} ')")
    choose(opened, "audit", "flagged")
    both = sum(item.score_b > item.score_a and item.status == "flagged" for item in comparison.items)
    opened.until(f"document.getElementById('count').textContent.startsWith('{both} ')")
    choose(opened, "task", "<b>facts")
    assert 0 < count(opened) < both


def test_search_works_by_keys_and_finds_texts_as_they_are_shown(opened):
    opened.key("/", "/")
    opened.until("document.activeElement.id === 'search'")
    opened.type("question sums17:")
    opened.until("document.getElementById('count').textContent.startsWith('1 of')")
    opened.key("Tab")
    opened.until("document.activeElement.id === 'list'")
    opened.key("Enter", "\r")
    opened.until("document.getElementById('item').open")
    assert "Question sums17" in opened.run("document.querySelector('#item pre').textContent")
    opened.key("Escape")
    opened.until("!document.getElementById('item').open")


def test_a_click_opens_an_item_and_every_hostile_answer_is_text(opened):
    choose(opened, "audit", "flagged")
    opened.until("document.querySelector('.row .flagged') !== null && !document.getElementById('item').open")
    opened.click(".row")
    opened.until("document.getElementById('item').open")
    for _ in range(2 * len(WORSE)):
        title = opened.run("document.getElementById('item-title').textContent")
        assert opened.run("document.querySelectorAll('#item-body :is(script, img, a, svg, iframe, style)').length") == 0
        opened.click("#next")
        opened.until(f"document.getElementById('item-title').textContent !== {title!r}")
    assert opened.run("document.querySelector('#item mark') !== null")
    assert opened.run("document.querySelectorAll('script:not([data-block])').length") == 1
    opened.click("#close")
    opened.until("!document.getElementById('item').open")


def test_only_the_rows_in_view_are_in_the_page(opened):
    opened.click("#search")
    opened.key("Tab")
    opened.key("End")
    opened.until(f"document.querySelector('[aria-selected=true]')?.id === 'row-{N - 1}'")
    assert opened.run("document.querySelectorAll('.row').length") < 60


def test_the_page_s_own_inflate_reads_what_the_browser_s_does(browser, page):
    browser.size(1280, 900)
    code = "delete window.DecompressionStream; window.DecompressionStream = undefined"
    script = browser.send("Page.addScriptToEvaluateOnNewDocument", source=code)["identifier"]
    try:
        browser.open(page.as_uri())
        browser.until(f"document.getElementById('count')?.textContent === '{N} of {N} items'")
        browser.click(".row")
        browser.until("document.getElementById('item').open")
        assert "Question" in browser.run("document.querySelector('#item pre').textContent")
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nothing_is_wider_than_the_window(opened, width, dark, tmp_path):
    opened.size(width, 900, dark=dark)
    assert opened.run("document.documentElement.scrollWidth <= window.innerWidth")
    folder = Path(os.environ.get("EVALKIT_SHOTS", tmp_path))
    opened.screenshot(folder / f"page-{width}{'-dark' if dark else ''}.png")
    if width > 600 and not dark:
        opened.pdf(folder / "page.pdf")
        assert (folder / "page.pdf").read_bytes().startswith(b"%PDF")


def test_fifty_thousand_items_stay_responsive(browser, tmp_path):
    n = 50_000
    runs = [
        write_run(
            tmp_path / k, {("t", f"{i}"): float(i % m > 0) for i in range(n)}, response=lambda t, i: f"answer {i} " * 30
        )
        for k, m in (("a", 3), ("b", 5))
    ]
    path = tmp_path / "report.html"
    path.write_text(render_page(assemble(compare(*runs))), encoding="utf-8")
    browser.size(1280, 900)
    begun = time.monotonic()
    browser.open(path.as_uri())
    browser.until("document.getElementById('count')?.textContent === '50,000 of 50,000 items'")
    assert time.monotonic() - begun < 20
    browser.click("#search")
    # The longest wait for a frame while a search goes over all texts.
    browser.run(
        "window.longest = 0; (() => { let last = performance.now(); const step = (now) => { window.longest = "
        "Math.max(window.longest, now - last); last = now; requestAnimationFrame(step); }; "
        "requestAnimationFrame(step); })()"
    )
    browser.type("answer 49999 ")
    browser.until("document.getElementById('count').textContent.startsWith('1 of')")
    assert browser.run("window.longest") < 500


def test_the_viewer_s_page_opens_by_the_file_that_leads_to_it_and_by_its_address(browser, tmp_path):
    for name in "ab":
        write_run(tmp_path / name, {("t", f"{n}"): float(n % 2) for n in range(10)}, name=name)
    browser.troubles.clear()
    for opens in (doorway, contextlib.nullcontext):  # another port: another cookie
        with make_server(tmp_path) as (server, address), opens(address) as way:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser.send("Page.navigate", url=way)
            browser.until("document.querySelectorAll('a[href^=\"/run/\"]').length === 2")
            browser.click("a[href^='/run/']")
            browser.until("document.title === 'a'")
            assert "key" not in browser.run("location.href")
            server.shutdown()
    assert browser.troubles == []
