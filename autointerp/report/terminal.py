"""What a run found, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autointerp.metrics import MeanOver
from autointerp.metrics.claims import LEVEL
from autointerp.metrics.differences import Difference
from autointerp.report.funnel import ends, lack, n_unscored
from autointerp.report.panel import beside_controls
from autointerp.report.summary import ScoreSummary, Summary, spoken
from autointerp.run import NO_EXPLAINER


def print_summary(console: Console, summary: Summary, seconds: dict[str, float]) -> None:
    """The funnel with reasons, the scores with intervals, the time."""
    console.print(_funnel(summary))
    for sentence in summary.caveats:
        console.print(f"{summary.dictionary}: {sentence}", markup=False, highlight=False)
    if summary.dense is not None and "cache" not in seconds:  # which has just said so
        console.print(f"{escape(summary.dictionary)} is {summary.dense}", highlight=False)
    if summary.scores and any(score.n_scored for score in summary.scores):
        console.print(_scores(summary))
        tables = (
            _controls(summary),
            _numbers(summary),
            _hard(summary),
            _deciles(summary),
            _denominators(summary),
        )
        for table in tables:
            if table.row_count:
                console.print(table)
        for line in (*_claims(summary), *_outdated(summary)):
            console.print(line, highlight=False)
        for line in _verdicts(summary):
            console.print(line, highlight=False)
        if n_graded := max(score.n_graded for score in summary.scores):
            console.print(
                f"{n_graded:,} of the scored features fire nearly everywhere: for them windows of the top "
                "decile stand against those of the lower half."
            )
    if seconds:
        spent = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
        console.print(f"Time: {spent} (all: {sum(seconds.values()):.1f} s)", highlight=False)


def _funnel(summary: Summary) -> Table:
    table = Table(title=f"Features of {summary.dictionary}", title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("features", justify="right")
    table.add_column("not going on")
    statuses = summary.by_status
    unsampled = summary.n_asked - summary.n_sampled
    table.add_row("asked", f"{summary.n_asked:,}", f"{unsampled:,} not sampled yet" if unsampled else "")
    table.add_row("alive", f"{summary.n_alive:,}", ends(summary.dead))
    short = {status: statuses.get(status, 0) for status in ("too_few", "dense")}
    table.add_row("enough windows", f"{summary.n_explainable:,}", ends(short))
    if small := statuses.get("small", 0):
        table.add_row("  of these few windows", f"{small:,}", "smaller test sets, wider intervals")
    for explainer in summary.explainers:
        others = ends(explainer.ends, explainer.n_open, lack(summary, "open"))
        table.add_row(f"explained · {explainer.explainer}", f"{explainer.n_explained:,}", others)
        if explainer.n_refused:
            n_asked = explainer.n_explained + sum(explainer.ends.values())
            share = f"{explainer.n_refused / n_asked:.1%} of those asked about"
            table.add_row("  refused by an LLM", f"{explainer.n_refused:,}", share)
    for score in summary.scores:
        n_open = n_unscored(summary, score)
        name = f"scored · {_whose(score)} · {score.scorer}"
        table.add_row(name, f"{score.n_scored:,}", ends(score.ends, n_open, lack(summary, "open")))
    return table


def _whose(score: ScoreSummary) -> str:
    """Whose explanations were scored."""
    return "(no explanation)" if score.explainer == NO_EXPLAINER else score.explainer


def _table(title: str, *columns: str) -> Table:
    """A row an explainer and scorer, numbers to the right."""
    table = Table(title=title, title_justify="left", show_edge=False)
    for column in ("explainer", "scorer"):
        table.add_column(column)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _scores(summary: Summary) -> Table:
    """`worst to best`: the score if every unreadable answer were wrong, or right."""
    table = _table(
        "Scores (mean over features, 95% interval over features and documents)",
        *("features", "score", "", "chance", "trials", "unreadable", "worst to best"),
    )
    for score in summary.scores:
        bounds = (
            f"{score.bounds[0]:.3f} to {score.bounds[1]:.3f}" if score.bounds and score.n_unreadable else ""
        )
        n_unreliable = f" ({score.n_unreliable:,} features unreliable)" if score.n_unreliable else ""
        table.add_row(
            *(_whose(score), score.scorer, f"{score.n_scored:,}", score.headline.replace("_", " ")),
            _mean(score.value),
            "–" if score.chance is None else f"{score.chance:.3g}",
            *(f"{score.n_trials:,}", f"{score.n_unreadable:,}{n_unreliable}", bounds),
        )
    return table


def _controls(summary: Summary) -> Table:
    """What else the judge was given for an explanation, and what the same line scores where there is nothing to
    find."""
    table = _table(
        "Beside controls (mean over features, 95% interval over features and documents)",
        *("features", "", "score", "own", "own less this", "p"),
    )
    table.columns[3].no_wrap = True
    for score in summary.scores:
        controls = [*summary.controls, *summary.per_token]
        for one in beside_controls(score.explainer, score.scorer, controls, summary.floors):
            means = _mean(one.mean), _mean(one.own), _mean(one.above)
            n, p_value = f"{one.n_features:,}", _p_value(one.p_value)
            table.add_row(_whose(score), score.scorer, n, one.control, *means, p_value)
    return table


def _p_value(p_value: float | None) -> str:
    return "–" if p_value is None else f"{p_value:.2g}"


def _numbers(summary: Summary) -> Table:
    """Numbers beside the headline; those that no score has are left out."""
    names = dict.fromkeys(name for score in summary.scores for name in score.values if name != score.headline)
    table = _table("More numbers (mean over features, of so many where not of all)", *map(spoken, names))
    for score in summary.scores:
        if score.values.keys() & names.keys():
            cells = (None if name == score.headline else score.values.get(name) for name in names)
            table.add_row(_whose(score), score.scorer, *(_of_some(cell, score) for cell in cells))
    return table


def _of_some(mean: MeanOver | None, score: ScoreSummary) -> str:
    """With the number of features where not each has this number: a precision, where nothing was called active, is
    none."""
    return _short(mean) + (f" ({mean.n:,})" if mean and score.value and mean.n != score.value.n else "")


def _hard(summary: Summary) -> Table:
    names = sorted({name for score in summary.scores for name in score.strata})
    table = _table(
        "Windows chosen to be hard (share called active, auroc where windows are ranked; in no score above)",
        *(name.replace("_", " ") for name in names),
    )
    for score in summary.scores:
        if score.strata:
            table.add_row(_whose(score), score.scorer, *(_mean(score.strata.get(name)) for name in names))
    return table


def _deciles(summary: Summary) -> Table:
    """One number a decile: their intervals are a tenth as wide as a feature's, and would fill the screen."""
    names = sorted({name for score in summary.scores for name in score.bands}, key=int)
    table = _table("Active windows by decile of activation, 0 strongest (share right)", *names)
    for score in summary.scores:
        if score.bands:
            table.add_row(_whose(score), score.scorer, *(_short(score.bands.get(name)) for name in names))
    return table


def _denominators(summary: Summary) -> Table:
    table = _table("The same score over more features (one without a score is worth chance), and by density")
    names = list(dict.fromkeys(name for score in summary.scores for name in (*score.over, *score.by_density)))
    for name in names:
        table.add_column(name, justify="right")
    for score in summary.scores:
        if score.over:
            of_all = {name: _mean(mean) for name, mean in score.over.items()}
            of_all |= {name: _short(mean) for name, mean in score.by_density.items()}
            table.add_row(_whose(score), score.scorer, *(of_all.get(name, "–") for name in names))
    return table


def _claims(summary: Summary) -> Iterator[str]:
    for score in summary.scores:
        if score.n_tested:
            yield (
                f"{_named(score)}: {score.n_claimed:,} of {score.n_tested:,} features are above chance "
                f"(at most {LEVEL:.0%} of these by luck)"
            )
    for pair in summary.pairs:
        p = "" if pair.p_value is None else f", signed ranks p = {pair.p_value:.2g}"
        alone = pair.discordant
        if alone.p_value is not None:
            p += f"; right alone on {alone.first:,} and {alone.second:,} windows, McNemar p = {alone.p_value:.2g}"
        yield (
            f"{escape(pair.first)} less {escape(pair.second)}, {escape(pair.scorer)}: {_mean(pair.difference)} over "
            f"{pair.difference.n:,} features{p}"
        )


def _outdated(summary: Summary) -> Iterator[str]:
    """Whether the control runs were set beside fewer features than are scored now."""
    n_then = {
        (row.instance.explainer, row.instance.scorer): row.real.n if row.real else 0 for row in summary.floors
    }
    if any(
        n_then.get((score.explainer, score.scorer), score.n_scored) != score.n_scored
        for score in summary.scores
    ):
        yield (
            f"The control runs are beside fewer features than are scored now; the run has grown since: "
            f"autointerp controls {escape(str(summary.path))}"
        )


def _verdicts(summary: Summary) -> Iterator[str]:
    """Also why a mean is of fewer features than are scored."""
    for score in summary.scores:
        if (verdicts := score.verdicts) is not None:
            said = ", ".join(f"{n:,} {name}" for name, n in verdicts.n_by_decision.items())
            spent = "" if verdicts.mean_trials is None else f", {verdicts.mean_trials:.1f} trials a feature"
            means = (
                f"means above are over the {verdicts.n_panel:,} features of the panel, judged on all windows"
                if verdicts.n_panel
                else "no feature is in the panel, so there are no means: set sequential.panel higher"
            )
            yield f"{_named(score)}, sequential: {said}{spent}; {means} (stopping biases a mean)"


def _named(score: ScoreSummary) -> str:
    return escape(f"{_whose(score)} · {score.scorer}")


def _short(mean: MeanOver | None) -> str:
    return "–" if mean is None else f"{mean.value:.2f}"


def _mean(mean: MeanOver | Difference | None) -> str:
    if mean is None:
        return "–"
    if mean.low is None or mean.high is None:
        return f"{mean.value:.3f}"
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]".replace("[", r"\[")
