"""compare.html: the page of a comparison, what follows from it first."""

from __future__ import annotations

from peft_lightning.reports.comparison import ComparedSet, Comparison
from peft_lightning.reports.comparison_answers import answer_table, disagreements
from peft_lightning.reports.comparison_plots import BARS, cost_plots, curve_plots, option_plot
from peft_lightning.reports.comparison_tables import group_table, pair_table, run_table
from peft_lightning.reports.page import Html, Page, callout, details, figure, figures, paragraph
from peft_lightning.reports.tables import table

HOW_TO_READ = (
    "Groups are runs that differ only in their seed. Loss: nats per labelled token, lower is "
    "better. Intervals hold the truth in 95 of 100 cases; they contain the chance of the rows and, "
    "with several seeds, of the seeds. Within noise: no difference can be claimed. Perhaps: it "
    "could be, were it the only comparison; among all of them it may be chance. A click on a head "
    "sorts."
)
ROWS_ALONE = "Here intervals contain the chance of the rows alone, as a seed is not repeated."


def comparison_page(comparison: Comparison) -> str:
    """Return the HTML of a comparison."""
    first = comparison.sets[0]
    about = _about(first) if len(comparison.sets) == 1 else ""
    page = Page(comparison.title, about, kind="compare")
    for i, one in enumerate(comparison.sets, 1):
        page.top(*_told(one, "" if len(comparison.sets) == 1 else f"Set {i}: {_about(one)}"))
    for note in comparison.notes:
        page.top(callout("warning", note))
    if comparison.left:
        names = ", ".join(run.name for run in comparison.left[:5])
        more = f" and {len(comparison.left) - 5} more" if len(comparison.left) > 5 else ""
        text = f"{len(comparison.left)} not evaluated: {names}{more}; the table of runs says why."
        page.top(callout("warning", text))
    for i, one in enumerate(comparison.sets, 1):
        _add_set(page, one, "" if len(comparison.sets) == 1 else f"Set {i}: ")
    page.section(
        "Runs and their options",
        run_table(comparison),
        note="Every run that was given, with the options that differ between them. Logged is the "
        "best validation loss that the run itself has seen.",
    )
    warnings = [
        [run.name, text]
        for one in comparison.sets
        for group in one.groups
        for run in group.runs
        for text in run.record.warnings
    ]
    if warnings:
        page.section("Warnings of the runs", table(["run", "warning"], warnings))
    return page.html()


def _add_set(page: Page, one: ComparedSet, prefix: str) -> None:
    blocks, costs = [group_table(one)], [figure(*plot) for plot in cost_plots(one)]
    if (plot := option_plot(one)) is not None:
        blocks.append(figures(figure(*plot), *costs[:1]))
        costs = costs[1:]
    with_seeds = all(pair[2].with_seeds for pair in one.pairs)
    note = HOW_TO_READ if with_seeds else f"{HOW_TO_READ} {ROWS_ALONE}"
    page.section(f"{prefix}Results", *blocks, note=note)
    if costs:
        page.section(f"{prefix}What quality costs", figures(*costs), note=BARS)
    page.section(
        f"{prefix}Differences beyond noise",
        pair_table(one),
        note="The loss of the left one minus that of the upper one, in nats per token; "
        "\N{ALMOST EQUAL TO} is within noise, a number in brackets perhaps not. All pairs count "
        "(Holm's correction).",
    )
    if one.questions:
        page.section(
            f"{prefix}Answers side by side",
            answer_table(one),
            note=f"The greedy answers of all runs to {len(one.questions)} prompts; not all agree "
            f"on {disagreements(one)}. Open a line to see who answers what. To see only those, "
            "write disagree into the filter.",
        )
    if curves := [figure(*plot) for plot in curve_plots(one)]:
        note = "Runs of a group look alike."
        page.section(f"{prefix}Learning curves", figures(*curves), note=note)


def _told(one: ComparedSet, about: str) -> list[Html]:
    """Return what follows from a set, the most important sentence first."""
    told = [callout("good", one.conclusions[0]), _listed(one.conclusions[1:])]
    return [paragraph(about), *told] if about else told


def _listed(sentences: list[str]) -> Html:
    """Return sentences, those on metrics beyond the first ones on a click."""
    shown = "".join(paragraph(s) for s in sentences[:6])
    if len(sentences) <= 6:
        return Html(shown)
    return Html(shown + details("More", *(paragraph(s) for s in sentences[6:])))


def _about(one: ComparedSet) -> str:
    groups = sum(not group.is_base for group in one.groups)
    runs = sum(len(group.runs) for group in one.groups)
    counted = f"{runs} runs in {groups} groups" if runs > groups else f"{runs} runs"
    counted = counted if runs > 1 else "1 run"
    return (
        f"{counted} on {one.base_model}, evaluated on {one.rows:,} rows of {one.data} "
        f"({one.tokens:,.0f} tokens in the loss), in {one.precision}."
    )
