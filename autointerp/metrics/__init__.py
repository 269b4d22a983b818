"""Trials -> numbers with 95% intervals. Pure: equal input gives equal output, in any process.

`measure` turns the trials of one feature into numbers, whatever their kind; `mean_over_features` sums up many
features. One thought a module:

    judged       yes or no: balanced accuracy, F1, AUROC, AUPRC, recall by decile and offset, precision
    ranked       AUROC and AUPRC of a number a window
    chosen       how often the right one was picked
    predicted    correlation of predicted and true activations
    responded    how often a written text activates
    steered      what steering does to an explanation's probability
    rates        two rates and what follows from both       ranking     areas under curves
    features     many features                              influence   what each document adds
    paired       two scores of the same windows             claims      about single features
"""

from __future__ import annotations

from autointerp.metrics.chosen import measure_chosen
from autointerp.metrics.features import MeanOver, mean_over_features
from autointerp.metrics.judged import HEADLINE_STRATA, measure_judged
from autointerp.metrics.predicted import measure_predicted
from autointerp.metrics.ranked import measure_ranked
from autointerp.metrics.responded import measure_responded
from autointerp.metrics.steered import measure_steered
from autointerp.results import Facts, Metrics
from autointerp.trials import AnyTrials, Choices, Predictions, Ranked, Responses, Trials

__all__ = ["HEADLINE_STRATA", "MeanOver", "mean_over_features", "measure"]


def measure(trials: AnyTrials, facts: Facts | None = None) -> Metrics:
    """What the trials of one feature say. Without `facts` the numbers that need them are None."""
    match trials:
        case Trials():
            return measure_judged(trials, facts)
        case Ranked():
            return measure_ranked(trials)
        case Choices():
            return measure_chosen(trials)
        case Predictions():
            return measure_predicted(trials)
        case Responses():
            return measure_responded(trials)
        case _:
            return measure_steered(trials)
