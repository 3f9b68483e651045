"""What is shown is what is there: shared text marked on both sides, and nothing foreign that a terminal would obey."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import select
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from evalkit.contamination.benchmarks import Benchmark, Item
from evalkit.contamination.pairs import find_pairs
from evalkit.contamination.record import open_audit
from evalkit.contamination.show import Viewer
from tests.contamination import twin
from tests.contamination.audits import audited, benchmark, documents, sentence, write_lines
from tests.test_cli import evalkit, mistake

ITEMS = benchmark()
ROWS = documents(ITEMS)


@pytest.fixture(scope="module")
def leaks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    return audited(write_lines(folder / "corpus.jsonl", ROWS), folder / "leaks", ITEMS)


def printed(leaks, number=0, *, context=300, width=200, colour=False, **asked):
    audit = open_audit(leaks)
    console = Console(width=width, force_terminal=colour, record=True, file=io.StringIO(), highlight=False)
    Viewer(audit, find_pairs(audit, **asked), console, context=context).show(number)
    return console.export_text(styles=colour)


def sides(shown):
    """What stands under `document` and under `item`."""
    _, document, item = re.split(r"--- (?:document|item) ---\n", shown)
    return document, item


def marked(text):
    return re.findall(r"\u27e6(.*?)\u27e7", text, re.DOTALL)


def test_a_verbatim_item_is_marked_as_a_whole_on_both_sides(leaks):
    document, item = sides(printed(leaks, document="corpus.jsonl:0"))
    fields = ITEMS.items[0].fields
    assert [twin.words(one) for one in marked(document)] == [twin.words(text) for text in fields.values()]
    assert [twin.words(one) for one in marked(item)] == [twin.words(text) for text in fields.values()]
    assert document.replace("\u27e6", "").replace("\u27e7", "").strip() == ROWS[0]["text"]


def test_the_heading_names_item_document_measure_and_rules(leaks):
    shown = printed(leaks, document="corpus.jsonl:0")
    assert f"b, i0, {ITEMS.items[0].doc_hash}" in shown
    assert "corpus.jsonl, row 0, id d0" in shown
    assert re.search(r"question +20 of 20 tokens \(100%\), characters \d+-\d+; .*llama3 1\.00 dirty", shown)


def test_of_an_edited_copy_the_words_that_are_the_same_are_marked(leaks):
    shown = printed(leaks, document="corpus.jsonl:12")
    document, item = sides(shown)
    words = ITEMS.items[2].fields["question"].split()
    assert "with 2 edits" in shown
    same = [" ".join(words[:6]), " ".join(words[7:13]), " ".join(words[13:]).rstrip(".")]
    assert [" ".join(one.split()) for one in marked(document)][:3] == same
    assert [" ".join(one.split()) for one in marked(item)][:2] == [same[0], f"{same[1]} {same[2]}"]
    assert "\u27e7 REPLACED \u27e6" in document and "\u27e7 INSERTED \u27e6" in document


def test_only_the_surroundings_are_shown_and_what_is_left_out_is_counted(leaks):
    document, _ = sides(printed(leaks, document="corpus.jsonl:0", context=20))
    left_out = [int(n.replace(",", "")) for n in re.findall(r"\u22ef ([\d,]+) characters \u22ef", document)]
    shown = re.sub(r"\u22ef [\d,]+ characters \u22ef|[\u27e6\u27e7]", "", document)
    assert len(left_out) == 2
    n_line_breaks = 3 + 1  # after the first, around the second, and at the end of what is printed
    assert len(shown) + sum(left_out) == len(ROWS[0]["text"]) + n_line_breaks
    for piece in shown.split("\n"):
        assert piece in ROWS[0]["text"]


def test_of_a_long_stretch_only_the_ends_are_shown(tmp_path):
    question = sentence(random.Random(1), 500)
    items = Benchmark("b", "test", (Item("ab" * 32, {"question": question}),), 0)
    leaks = audited(write_lines(tmp_path / "c.jsonl", [{"text": question}]), tmp_path / "leaks", items)
    for side in sides(printed(leaks, context=20)):
        begun, ended = marked(side)
        assert question.startswith(begun) and question.endswith(f"{ended}.")
        assert 300 <= len(begun) < 320 and 300 <= len(ended) < 320


def test_on_a_wide_terminal_both_stand_side_by_side_in_colour(leaks):
    shown = printed(leaks, document="corpus.jsonl:0", colour=True)
    assert re.search("document +item", re.sub(r"\x1b\[[0-9;]*m", "", shown))
    assert "\u27e6" not in shown
    assert "30;103m" in shown  # black on bright yellow


def test_an_item_that_stands_in_a_document_many_times_is_not_shown_every_time(tmp_path):
    text = " and again ".join([ITEMS.items[0].fields["question"] * 3] * 200)
    leaks = audited(write_lines(tmp_path / "c.jsonl", [{"text": text}]), tmp_path / "leaks", ITEMS)
    document, _ = sides(printed(leaks, context=5))
    assert len(document) < 7000 and "characters \u22ef" in document


def test_no_name_and_no_text_reaches_the_terminal_as_a_command(tmp_path):
    evil = "\x1b]0;owned\x07[bold]\u202e"
    question = f"which of {evil} these many rivers flows through the old city of Vienna"
    items = Benchmark(f"b{evil}", "test", (Item("ab" * 32, {"question": question, f"x{evil}": "y"}, f"i{evil}"),), 0)
    corpus = write_lines(tmp_path / f"c{evil}.jsonl", [{"id": evil, "text": f"{evil} {question} {evil}"}])
    leaks = audited(corpus, tmp_path / "leaks", items, rules=("llama3",))
    done = evalkit("audit", "show", leaks)
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert done.stdout.count("<U+001B>]0;owned<U+0007>[bold]<U+202E>") >= 7
    corpus.unlink()
    assert not {"\x1b", "\x07", "\u202e"} & set(evalkit("audit", "verify", leaks).stdout)


def test_the_command_shows_ten_pairs_and_says_how_many_are_left(leaks):
    done = evalkit("audit", "show", leaks)
    assert done.returncode == 0, done.stderr
    n = len(find_pairs(open_audit(leaks)))
    assert n == 10 and "more; --n" not in done.stdout
    assert len(re.findall(r"\d+ of 10", done.stdout)) >= 10
    done = evalkit("audit", "show", leaks, "--n", 3)
    assert done.stdout.count("--- document ---") == 3 and "7 more; --n 10 shows all" in done.stdout
    done = evalkit("audit", "show", leaks, "--document", "corpus.jsonl:1")
    assert done.returncode == 0 and "nothing: the corpus" in done.stdout
    assert "no item has" in mistake(evalkit("audit", "show", leaks, "--item", "nobody"))
    assert "this is no complete audit" in mistake(evalkit("audit", "show", leaks.parent))


def test_a_document_that_cannot_be_read_or_has_changed_is_said_and_the_item_is_shown(tmp_path):
    corpus = write_lines(tmp_path / "corpus.jsonl", ROWS)
    leaks = audited(corpus, tmp_path / "leaks", ITEMS)
    data = corpus.read_bytes()
    corpus.write_bytes(data.replace(b"d0", b"e0", 1))
    done = evalkit("audit", "show", leaks, "--document", "corpus.jsonl:0")
    assert done.returncode == 1
    assert "not as it was audited: the row holds the document 'e0', not 'd0'" in done.stdout
    corpus.write_bytes(data + b"\n")
    done = evalkit("audit", "show", leaks, "--n", 1)
    assert done.returncode == 1
    assert "not as it was audited: the file is cut short or corrupt (the file has" in done.stdout
    assert ITEMS.items[0].fields["question"] in done.stdout or "question:" in done.stdout


def test_a_reader_that_stops_early_gets_no_traceback(leaks):
    command = f"{sys.executable} -m evalkit.cli audit show {leaks} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_an_audit_and_its_subcommands_do_not_mix_their_options(leaks):
    help_text = evalkit("audit", "--help").stdout
    assert "--corpus" in help_text and "show" in help_text and "verify" in help_text
    for command in ("show", "verify"):
        assert f"evalkit audit {command} " in evalkit("audit", command, "--help").stdout.split("Example:")[1]
    assert "Did you mean 'show'" in evalkit("audit", "shwo", leaks).stderr
    assert "Missing option '--corpus'" in evalkit("audit", "--out", "x").stderr
    done = evalkit("audit", "--corpus", "x", "--benchmark", "y", "--out", "z", "show", leaks)
    assert done.returncode == 2 and "unexpected extra argument" in done.stderr


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *words):
        self._own, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "50", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evalkit.cli", *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment, preexec_fn=lambda: os.login_tty(theirs),  # noqa: PLW1509  so that Ctrl-C reaches it
        )  # fmt: skip
        os.close(theirs)

    def until(self, text, timeout_s=60):
        shown, end = "", time.monotonic() + timeout_s
        while text not in shown:
            assert select.select([self._own], [], [], max(0, end - time.monotonic()))[0], shown
            try:
                shown += os.read(self._own, 65536).decode(errors="replace")
            except OSError:  # the command has ended
                raise AssertionError(shown) from None
        return shown

    def type(self, keys, timeout_s=60):
        # What is typed before the command waits for a key is thrown away when it begins to.
        end = time.monotonic() + timeout_s
        while termios.tcgetattr(self._own)[3] & termios.ICANON:
            assert time.monotonic() < end, "the command waits for no key"
            time.sleep(0.01)
        os.write(self._own, keys.encode())

    def wait(self):
        code = self._process.wait(timeout=60)
        os.close(self._own)
        return code


def test_on_a_terminal_one_steps_forth_and_back_and_out(leaks):
    terminal = Terminal("audit", "show", leaks, "--n", "3")
    shown = terminal.until("q quit")
    assert "1 of 10" in shown and "Enter next" in shown and "\x1b[30;103m" in shown
    terminal.type("\r")
    assert "2 of 10" in terminal.until("q quit")
    terminal.type("p")
    assert "1 of 10" in terminal.until("q quit")
    terminal.type("p")  # there is none before the first
    assert "1 of 10" in terminal.until("q quit")
    terminal.type(" ")
    assert "2 of 10" in terminal.until("q quit")
    terminal.type("n")
    shown = terminal.until("q quit")
    assert "3 of 10" in shown and "Enter end" in shown
    terminal.type("q")
    assert terminal.wait() == 0


@pytest.mark.parametrize("key", ["\x03", "\x04", "\x1b"])
def test_other_ways_out_end_quietly(leaks, key):
    terminal = Terminal("audit", "show", leaks)
    terminal.until("q quit")
    terminal.type(key)
    assert terminal.wait() == 0
