"""What a probe of an LLM found, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from autointerp.prompting import inert
from autointerp.stages.llm_check import FIT_TO_JUDGE, LLMCheck

_MOST_WRONG = 8


def checked(found: LLMCheck) -> Iterator[str]:
    """The last lines say whether it can judge."""
    spent, judged = found.spent, found.judged
    yield f"{'LLM':16} {found.llm}"
    yield f"{'first answer':16} after {found.first_s:.2f} s"
    yield f"{'rate':16} {found.rate:,.1f} requests a second (--rate {found.rate:.3g} tells a plan's hours)"
    yield f"{'label logprobs':16} {_known(found.label_logprobs)}"
    yield f"{'keeps a schema':16} {_known(found.keeps_schema)}"
    if found.left_out:
        yield f"{'refused':16} {', '.join(found.left_out)}: left out from then on"
    cost = "cost unknown" if spent.n_unpriced else f"${spent.cost:,.4f}"
    yield f"{'this check':16} {spent.n_requests:,} requests, {spent.n_tokens:,} tokens, {cost}"
    accuracy = judged.accuracy
    if accuracy is None:
        yield f"{'anchors':16} not one of {judged.n:,} answers could be read: this LLM can't judge in this format."
        return
    yield (
        f"{'anchors':16} balanced accuracy {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] on "
        f"{judged.n:,} questions with known answers; {judged.n_unreadable:,} unreadable"
    )
    for line in judged.wrong[:_MOST_WRONG]:
        yield f"{'  misjudged':16} {inert(line)}"
    if not found.is_fit:
        yield f"Below {FIT_TO_JUDGE}: scores by this judge would say more about it than about explanations."


def _known(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "refused"}[value]
