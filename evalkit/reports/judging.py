"""The audit of judges, and the card of one, for the terminal."""

from __future__ import annotations

import re
from typing import Any

from evalkit.judges.agreement import Agreement
from evalkit.judges.audit import Audit, JudgeAudit, Panel, Slice
from evalkit.judges.corrected import PairResult
from evalkit.judges.judging import Judgement
from evalkit.judges.position import GLYPHS, PositionBias
from evalkit.judges.probe import Card
from evalkit.judges.verdicts import Collected
from evalkit.reports.comparison import p_text
from evalkit.stats.ratings import Ratings
from evalkit.stats.results import Estimate
from evalkit.terminal import safe

_SHOWN = 5
_MOST_RESULTS = 12
_WORDS = {
    "biased": "biased",
    "no sign, adequate power": "no sign of bias, with adequate power",
    "underpowered": "underpowered: neither bias nor its absence is shown",
    "no order": "none to favour, as answers were rated apart",
}


def render_collected(collected: Collected, console: Any) -> None:
    """Say what was read, and every kind of row that could not be used, with the first of each."""
    for path, kind in collected.formats.items():
        _print(console, f"{path}: read as {kind}")
    dropped = sum(one.kept_as == "dropped" for one in collected.troubles)
    errors = len(collected.troubles) - dropped
    _print(
        console,
        f"{collected.n_rows:,} rows, {collected.table.num_rows:,} verdicts; {dropped:,} dropped, {errors:,} kept as"
        " errors",
    )
    first = {one.kind: one for one in reversed(collected.troubles)}
    for why, count in collected.counts().items():
        one = first[why]
        _print(console, f"  {count:,} {why}")
        # Of one file it was said above which.
        _print(console, f"    {one}" if len(collected.formats) > 1 else f"    {one}".replace(f"{one.file}, ", "", 1))
    if len(collected.troubles) > len(first):
        _print(console, f"    {len(collected.troubles) - len(first):,} more (--json lists all)")


def render_judgement(judgement: Judgement, console: Any) -> None:
    """Say what was asked, and what failed."""
    _print(
        console,
        f"{judgement.directory}: {judgement.n_pairs:,} pairs, {judgement.n_repeated:,} of them repeated,"
        f" {judgement.n_calls:,} calls, {judgement.n_failed:,} without a verdict",
    )
    for why, count in judgement.why_failed.items():
        _print(console, f"  {count:,} {why}")
    for why, count in judgement.left_out.items():
        _print(console, f"  not judged: {count:,} {why}")
    for what, count in judgement.attempts.items():
        _print(console, f"  {count:,} answers with {what}: they could not break out of the prompt")
    if judgement.label_mass is not None:
        _print(console, f"  probability of the labels: {judgement.label_mass:.0%} on average")


def render_audit(found: Audit, console: Any) -> None:
    """Print every judge, the panel and the ratings."""
    for one in found.judges:
        _judge(one, console)
    if found.panel is not None:
        _panel(found.panel, console)
    if found.humans is not None:
        _print(console, "The ceiling, humans among each other:")
        _agreement(found.humans, "labels", console)
    for name, ratings in found.ratings:
        _ratings(name, ratings, console)
    for warning in found.warnings:
        _print(console, f"note: {warning}")


def render_card(card: Card, console: Any) -> None:
    """Print the card of a judge."""
    from rich.text import Text

    _heading(
        f"Card of {card.judge}: {card.n_questions} questions, {card.n_calls:,} calls, {card.n_failed:,} failed", console
    )
    table = _table("what is asked", "effect (points)", "p (Holm)", "position won twice", "verdict")
    for one in card.findings:
        table.add_row(
            f"{one.glyph} {one.kind}: {one.question}",
            _points(one.effect),
            "" if one.p_adjusted is None else p_text(one.p_adjusted),
            "" if one.conflict is None else f"{one.conflict:.0%}",
            Text(one.sign, style="bold red" if one.sign in ("biased", "no better than chance") else ""),
        )
    console.print(table)
    _position(card.position, console)
    for warning in card.warnings:
        if warning not in card.position.warnings:
            _print(console, f"note: {warning}")
    _print(
        console,
        f"{GLYPHS['biased']} biased   {GLYPHS['no sign, adequate power']} no sign with adequate power (less than"
        f" {100 * card.position.smallest_bias:.0f} points)   {GLYPHS['underpowered']} underpowered",
    )


def _judge(one: JudgeAudit, console: Any) -> None:
    _heading(f"Judge {one.judge}: {one.n_calls:,} calls, {one.n_failed:,} without a verdict", console)
    _position(one.position, console)
    for slices, what in ((one.by_task, "task"), (one.by_models, "models"), (one.by_gap, "gap between the answers")):
        if any(of.position.n_both for of in slices):
            console.print(_slices(slices, what))
    _verbosity(one, console)
    _self_preference(one, console)
    for agreed, what in ((one.with_humans, "single verdicts"), (one.with_humans_both, "verdicts after both orders")):
        if agreed is not None:
            _agreement(agreed, what, console)
    console.print(_results(one.results[:_MOST_RESULTS]))
    if len(one.results) > _MOST_RESULTS:
        _print(console, f"{len(one.results) - _MOST_RESULTS} more pairs of models (--json lists all)")
    for result in one.results[:_MOST_RESULTS]:
        if result.with_labels is not None:
            labels = result.with_labels
            _print(
                console,
                f"{result.model_b} against {result.model_a} with human labels: {_share(labels.estimate)}"
                f" ({labels.n_labelled} labels"
                + ("" if labels.effective_labels is None else f", worth {labels.effective_labels:.0f}")
                + (f"; labels alone {_share(labels.classical)})" if labels.n_unlabelled else ")"),
            )
    alone = len(one.results) == 1
    _print(console, one.results[0].sentence() if alone else one.results[0].sentence_on_bias())
    if any(of.soft is not None and of.length_controlled is not None for of in one.results):
        _print(console, "note: the win rate at equal length is of the judge's probabilities, not of its verdicts")
    for warning in (*one.warnings, *one.verbosity.warnings, *_notes(one.results)):
        _print(console, f"note: {warning}")


def _notes(results: tuple[PairResult, ...]) -> list[str]:
    """What to know of the results; what is true of many pairs of models but for a number is said once."""
    alike: dict[str, list[str]] = {}
    for one in results:
        for warning in one.warnings:
            of = f"{one.model_b} against {one.model_a}: {warning}"
            alike.setdefault(re.sub(r"[\d,.]+", "", warning), []).append(of)
    return [
        first + (f"; alike for {len(others)} more pairs of models (--json lists all)" if others else "")
        for first, *others in alike.values()
    ]


def _self_preference(one: JudgeAudit, console: Any) -> None:
    found = one.self_preference
    if found is None:
        return
    _print(console, f"{found}")
    for estimate in (found.bias, found.beyond_humans, found.beyond_judges):
        if estimate is not None:
            _print(console, f"  {estimate.quantity}: {_in_points(estimate)}")
    for warning in found.warnings:
        _print(console, f"  note: {warning}")


def _position(found: PositionBias, console: Any) -> None:
    from rich.text import Text

    text = Text(f"{GLYPHS[found.sign]} Position: {_WORDS[found.sign]}")
    if found.sign == "biased":
        text.stylize("bold red")
    console.print(text)
    if found.n_both:
        _print(
            console,
            f"  {found.n_both:,} pairs in both orders: {found.consistent:,} consistent, {found.first_twice:,} first"
            f" twice, {found.second_twice:,} second twice, {found.tie_once:,} a tie in one order",
        )
    lines = (
        ("consistency", found.consistency, "%"),
        ("conflict rate", found.conflict, "%"),
        ("first pick", found.first_pick, "%"),
        ("direction, first twice less second twice", found.direction, "points"),
        ("lead of the first answer in one order", found.bias, "points"),
        ("noise: two calls of the same order differ", found.noise, "%"),
        ("inconsistency beyond that noise", found.excess, "points"),
    )
    for name, estimate, unit in lines:
        if estimate is not None:
            p = ""
            if estimate is found.direction and found.direction_test is not None:
                p = f", {_p(found.direction_test.p_value)} ({found.direction_test.method})"
            elif estimate is found.excess and found.excess_p is not None:
                p = f", {_p(found.excess_p)}"
            _print(console, f"  {name}: {_share(estimate) if unit == '%' else _in_points(estimate)}{p}")
    if found.sign != "biased" and found.n_both:
        _print(console, f"  pairs that the position decides, in either direction: {found.most_decided:.1%} at most")
    if found.shi is not None:
        stability = found.shi.repetition_stability
        _print(
            console,
            f"  Shi et al.: position consistency {found.shi.position_consistency:.3f}, preference fairness"
            f" {found.shi.preference_fairness:+.3f}"
            + ("" if stability is None else f", repetition stability {stability:.3f}"),
        )
    for warning in found.warnings:
        _print(console, f"  note: {warning}")


def _verbosity(one: JudgeAudit, console: Any) -> None:
    found = one.verbosity
    if found.prefers_longer is None:
        return
    _print(console, f"Length: the longer answer wins {_share(found.prefers_longer)} of {found.n_known:,} pairs")
    if found.per_100_characters is not None:
        _print(console, f"  100 characters more: {_in_points(found.per_100_characters)}")
    if found.beyond_humans is not None:
        _print(console, f"  beyond the preference of humans for it: {_in_points(found.beyond_humans)}")
    for controlled in found.controlled[:1] if len(found.controlled) == 1 else ():
        for style in controlled.styles:
            _print(console, f"  {style.quantity}: {_number(style, '+.3f')}")


def _agreement(found: Agreement, what: str, console: Any) -> None:
    raters = " and ".join(found.raters) if len(found.raters) < 4 else f"{len(found.raters)} raters"
    _print(console, f"{raters}, {what}: agree on {_share(found.raw)} of {found.n:,}")
    kappas = {"Fleiss": found.fleiss, "Krippendorff": found.krippendorff, "Gwet AC1": found.gwet}
    if len(found.raters) == 2:
        kappas = {"Cohen": found.cohen, **kappas}
    _print(console, "  " + ", ".join(f"{k} {'undefined' if v is None else _number(v)}" for k, v in kappas.items()))
    _print(console, f"  prevalence: {', '.join(f'{name} {share:.1%}' for name, share in found.prevalence)}")
    told = dict.fromkeys(note for of in (found.raw, *kappas.values()) if of is not None for note in of.warnings)
    for note in (*found.warnings, *told):
        _print(console, f"  note: {note}")


def _results(results: tuple[PairResult, ...]) -> Any:
    names = ["A first", "B first", "if consistent", "corrected", "by probabilities", "at equal length"]
    names.append("p (Holm)" if len(results) > 1 else "p")
    rows = [
        [
            *("" if rate is None else f"{100 * rate.estimate:.1f}%" for rate in (one.a_first, one.b_first)),
            *(
                "" if rate is None else _share(rate)
                for rate in (
                    one.if_consistent,
                    one.corrected,
                    one.soft if one.if_consistent is None else None,
                    one.length_controlled,
                )
            ),
            "" if one.p_adjusted is None else p_text(one.p_adjusted),
        ]
        for one in results
    ]
    # Without known orders, or without lengths, there is nothing to say in some columns.
    told = [at for at in range(len(names)) if any(row[at] for row in rows)]
    table = _table("B against A, win rate of B", "pairs", *(names[at] for at in told))
    for one, row in zip(results, rows, strict=True):
        table.add_row(f"{one.model_b} / {one.model_a}", f"{one.n_used:,}", *(row[at] for at in told))
    return table


def _slices(slices: tuple[Slice, ...], what: str) -> Any:
    table = _table(
        f"position by {what}", "pairs", "gap", "conflict", "first twice", "second twice", "lead (points)", ""
    )
    for one in slices:
        found = one.position
        table.add_row(
            one.name or "(none)",
            f"{found.n_both:,}",
            "" if one.gap is None else f"{100 * one.gap:.1f}",
            "" if found.conflict is None else f"{found.conflict.estimate:.1%}",
            f"{found.first_twice:,}",
            f"{found.second_twice:,}",
            "" if found.bias is None else _points(found.bias),
            GLYPHS[found.sign],
        )
    return table


def _panel(panel: Panel, console: Any) -> None:
    _heading(f"Panel of {len(panel.judges)} judges on {panel.n_pairs:,} pairs", console)
    _agreement(panel.agreement, "one verdict for each pair", console)
    for majority, average in list(zip(panel.majority, panel.average, strict=True))[:_MOST_RESULTS]:
        _print(console, f"{majority.quantity}: majority {_share(majority)}, average {_share(average)}")
    _print(console, f"{panel.n_disagreements:,} pairs on which one judge says A and another B")
    for one in panel.disagreements[:_SHOWN]:
        _print(console, f"  {one.pair_id}: {', '.join(f'{name} {win:g}' for name, win in one.verdicts)}")
    for warning in panel.warnings:
        _print(console, f"note: {warning}")


def _ratings(name: str, ratings: Ratings, console: Any) -> None:
    table = _table(f"ratings by {name}", "strength (log odds)", "rank", "comparisons")
    order = sorted(range(len(ratings.names)), key=lambda at: -ratings.strengths[at])
    for at in order:
        low, high = ratings.rank_low[at], ratings.rank_high[at]
        table.add_row(
            ratings.names[at],
            f"{ratings.strengths[at]:+.3f} [{ratings.low[at]:+.3f}, {ratings.high[at]:+.3f}]",
            f"{low}" if low == high else f"{low} to {high}",
            f"{ratings.n_per_model[at]:,}",
        )
    console.print(table)
    for warning in ratings.warnings:
        _print(console, f"note: {warning}")


def _table(*columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = _SafeTable(Table(box=SIMPLE_HEAD, pad_edge=False))
    for number, name in enumerate(columns):
        table.table.add_column(Text(safe(name)), justify="left" if number == 0 else "right", overflow="fold")
    return table


class _SafeTable:
    """A table whose cells are foreign text: nothing in them is obeyed."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def add_row(self, *cells: Any) -> None:
        from rich.text import Text

        self.table.add_row(*(Text(safe(one).replace("\n", " ")) if isinstance(one, str) else one for one in cells))

    def __rich__(self) -> Any:
        return self.table


def _heading(text: str, console: Any) -> None:
    from rich.text import Text

    console.print()
    console.print(Text(safe(text), style="bold"))


def _print(console: Any, text: str) -> None:
    console.print(safe(text), markup=False, soft_wrap=True)


def _p(p_value: float) -> str:
    text = p_text(p_value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _interval(estimate: Estimate, form: str, *, scale: float = 100.0, unit: str = "") -> str:
    value, *ends = (
        format(scale * one, form) for one in (estimate.estimate, estimate.low, estimate.high) if one is not None
    )
    return f"{value}{unit} [{', '.join(ends)}]" if len(ends) == 2 else f"{value}{unit}"


def _share(estimate: Estimate) -> str:
    return _interval(estimate, ".1f", unit="%")


def _points(estimate: Estimate) -> str:
    return _interval(estimate, "+.1f") + (", no interval" if estimate.low is None else "")


def _in_points(estimate: Estimate) -> str:
    shown = _interval(estimate, "+.1f")
    return f"{shown} points, no interval" if estimate.low is None else f"{shown} points"


def _number(estimate: Estimate, form: str = ".3f") -> str:
    return _interval(estimate, form, scale=1.0)
