"""What a run will take and what it took, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from autointerp.llm.protocol import Capabilities
from autointerp.llm.spending import Spent
from autointerp.report.templates import dollars
from autointerp.run import Run
from autointerp.scorers import question
from autointerp.scorers.blocks import packing_of
from autointerp.sections import instance
from autointerp.sequential import Sequential
from autointerp.stages.expected import Expected
from autointerp.stages.looks import shares_by_look
from autointerp.stages.preflight import Plan
from autointerp.stages.spent import in_all


def planned(run: Run, plan: Plan, expected: Sequence[Expected], rate: float | None) -> Iterator[str]:
    """`rate`: requests a second that the LLM's server answers, if anybody knows."""
    recipe, names = run.recipe, ", ".join(run.recipe.dictionaries)
    source = recipe.activations or recipe.corpus
    model = "" if recipe.activations else f" on {recipe.model.path}"
    yield (
        f"Plan: {plan.n_features:,} features of {names}{_all_there_are(run)}{model}; "
        f"{plan.n_tokens:,} tokens of {source.path if source else ''} "
        f"in contexts of {plan.context_length}; {_more(run)}"
        f"about {sum(one.n_requests for one in expected):,} LLM requests left; "
        f"about {plan.disk_bytes / 1e9:.2f} GB of disk in {run.path}{_llms(run)}"
    )
    yield from (f"  {sentence}" for sentence in plan.elsewhere)
    yield from map(_asked, expected)
    if expected and (packed := _packed(run)):
        yield f"  windows a prompt: {', '.join(packed)}"
    yield from _sequential(run)
    costs = [one.cost for one in expected if one.cost is not None]
    if len(costs) > 1 and len(costs) == len(expected):
        yield f"  together about ${sum(costs):,.2f}"
    if rate and expected:
        hours = sum(one.n_requests for one in expected) / rate / 3600
        yield f"  at {rate:g} requests a second about {hours:,.1f} hours"


def _asked(one: Expected) -> str:
    new = one.prompt_tokens - one.cached_tokens
    cached = f" ({_short(new)} new, {_short(one.cached_tokens)} cached)" if one.cached_tokens else ""
    cost = "price unknown" if one.cost is None else f"${one.cost:,.2f}"
    return (
        f"  {one.role} {one.llm}: {one.n_requests:,} requests, about {_short(one.prompt_tokens)} tokens in{cached}, "
        f"{_short(one.completion_tokens)} out, {cost}"
    )


def _packed(run: Run) -> list[str]:
    """Scorers that put windows into prompts, with how many into each."""
    scorers = {name: instance("scorers", section) for name, section in run.recipe.scorers.items()}
    found: dict[str, question.Packing | None] = {
        name: None
        if not hasattr(scorer, "packing")
        else packing_of(scorer.packing, getattr(scorer, "sequential", None))
        for name, scorer in scorers.items()
    }
    return [
        f"{name} {question.packed(packing, Capabilities()) or 'all'}"
        for name, packing in found.items()
        if packing is not None
    ]


def _sequential(run: Run) -> Iterator[str]:
    """How many windows scorers that may stop early are expected to ask about."""
    for name, section in run.recipe.scorers.items():
        rule: Sequential | None = getattr(instance("scorers", section), "sequential", None)
        if rule is not None:
            n = sum(n * share for n, share in zip(rule.blocks, shares_by_look(rule), strict=True))
            yield (
                f"  {name}, sequential: about {n:.0f} windows a feature, if explanations are as good as usual; all "
                f"of them for {rule.panel:.3g} of the features"
            )


def _short(n: int) -> str:
    """12,345,678 -> 12.3M."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{name}"
    return str(n)


def _more(run: Run) -> str:
    """What tops up the cache."""
    n_tokens, below = run.recipe.cache.top_up, run.recipe.cache.top_up_below
    return f"{n_tokens:,} more for features that fire in fewer than {below:,} rows; " if n_tokens else ""


def _llms(run: Run) -> str:
    """Who explains and judges."""
    sections = {"explained": run.recipe.llms.explainer, "judged": run.recipe.llms.judge}
    models = {done: (s["use"], instance("llm", s).identity().model) for done, s in sections.items() if s}
    return "".join(
        f"; {done} by {use if use == model else f'{use}:{model}'}" for done, (use, model) in models.items()
    )


def _all_there_are(run: Run) -> str:
    asked, most = run.recipe.features.n, max(map(run.identities.n_columns, run.recipe.dictionaries))
    return f" (all there are; {asked:,} asked for)" if asked and asked > most else ""


def spending(by_place: dict[str, Spent]) -> Table | Text:
    """What the LLM requests of a run took, by what asked them; text alone where nobody's are known."""
    table = Table(title="LLM requests", title_justify="left", show_edge=False)
    table.add_column("")
    for name in ("requests", "tokens in", "cached", "out", "of it thought", "US dollars", "seconds each"):
        table.add_column(name, justify="right")
    shown = {place: part for place, part in by_place.items() if part.is_known}
    for place, part in shown.items():
        table.add_row(place, *_cells(part))
    total = in_all(by_place)
    if len(shown) > 1:
        table.add_row("all", *_cells(total))
    said: list[str] = []
    if total.n_reused:
        said.append(f"{total.n_reused:,} more answers were taken over from another run, and cost nothing.")
    if total.aside_tokens:
        more = f" (${total.aside_cost:,.4f})" if total.aside_cost else ""
        said.append(
            f"Tries that were lost or cut off can have taken up to {total.aside_tokens:,} tokens{more} more; a "
            f"budget counts them."
        )
    if not shown:
        return Text("\n".join(said))
    if said:
        table.caption, table.caption_justify = "\n".join(said), "left"
    return table


def _cells(part: Spent) -> list[str]:
    counts = [part.prompt_tokens, part.cached_tokens, part.completion_tokens, part.reasoning_tokens]
    return [
        f"{part.n_requests:,}", *map(_short, counts), dollars(part), f"{part.latency_s / max(1, part.n_requests):.2f}"
    ]  # fmt: skip
