"""Every error a user can cause, and the two signals that end work early.

    AutointerpError                 one message: what happened, the value seen, what to do
    ├── RecipeError                 the recipe or the command line can't be run as written
    │   └── UnknownName             no plug-in, field or choice of that name; the nearest is offered
    ├── RecipeChanged               a run's folder holds results of other settings
    ├── InputError                  something the recipe points to is not usable
    │   ├── CheckpointError         the dictionary: missing, unreadable, wrong shapes, fits nothing
    │   ├── ModelError              the subject model: missing, unreadable, too short a context
    │   ├── SiteError               a hook point that the model doesn't have
    │   ├── CorpusError             the corpus: missing, empty, no such field, one document
    │   ├── ActivationsError        activations from files: missing, unreadable, of shapes that fit nothing
    │   ├── PublishedError          somebody's explanations and scores: unreadable, or no test of anything
    │   └── FeatureError            a feature that the dictionary doesn't have
    ├── RunError                    a run's folder
    │   ├── RunNotFound             no run lies there
    │   ├── RunBusy                 another living process works on it
    │   ├── JournalCorrupt          a line that is not a record, in the middle of a file
    │   ├── DiskFull                a write found no room; what was written stays
    │   ├── TooManyFiles            this process may open no more files
    │   └── StageFailed             a stage's process ended without a word
    ├── PackageMissing              an optional package that is asked for and not installed
    ├── PublishError                what is to leave this machine
    │   ├── SecretFound             a key or password in it: nothing is uploaded
    │   └── HubError                the hub refuses, or can't be reached: the next try goes on
    └── LLMError                    the LLM side
        ├── LLMUnavailable          no answer after all tries: the item stays open for the next run
        ├── LLMBadRequest           the server will never take this request: only this item fails
        │   └── LLMFiltered         a content filter in front of the model refuses it
        ├── LLMStopped              key, quota or credit: no request can succeed, the run stops
        ├── BudgetReached           the next request might pass --max-cost or --max-tokens
        └── AnswersError            a file of answers that is none, or of another run
    Pending                         (signal) the answer is not there yet: go on with other items
    Unreadable                      (signal) an answer that could not be read, also after one more try
    Refused                         (signal) the LLM declined to answer
    NoEvidence                      (signal) nothing is known of a feature that it could be explained by
    Interrupted                     (signal) Ctrl-C or SIGTERM: all is written, the run can be resumed

Only `cli/` turns them into exit codes: 2 for an AutointerpError, 130 for Interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutointerpError(Exception):
    """Root of the tree. The message is what the user reads, with no traceback."""


class RecipeError(AutointerpError):
    """The recipe or command line can't be run; the message lists every fault found."""


class UnknownName(RecipeError):
    """A name that nothing answers to.

    `kind` is the thing looked for ("scorer"), `name` what was given, `known` what there is.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        super().__init__(f"no {kind} is called '{name}'.{hint} There are: {', '.join(names) or 'none'}.")


class RecipeChanged(AutointerpError):
    """A stage's results in this run were made from other settings than those asked for now."""


class InputError(AutointerpError):
    """Something outside the run that the recipe points to is not usable."""


class CheckpointError(InputError):
    """A dictionary that is missing, unreadable, of wrong shapes, or that doesn't fit the model."""


class ModelError(InputError):
    """A subject model that is missing, unreadable, or can't do what the recipe asks."""


class SiteError(InputError):
    """A hook point that the model doesn't have."""


class CorpusError(InputError):
    """A corpus that is missing, empty, or has no such field."""


class ActivationsError(InputError):
    """Activations that come from files: missing, unreadable, or not fitting what reads them."""


class PublishedError(InputError):
    """Explanations and scores of others that can't be read, or that test nothing."""


class FeatureError(InputError):
    """A feature that the dictionary doesn't have."""


class RunError(AutointerpError):
    """Something about a run's folder."""


class RunNotFound(RunError):
    """No run lies in that folder."""


class RunBusy(RunError):
    """Another living process works on this run."""


class JournalCorrupt(RunError):
    """A complete line of a journal is not a record."""


class DiskFull(RunError):
    """A write found no room. Everything written before it is intact."""


class TooManyFiles(RunError):
    """The limit of open files is reached. Everything written before it is intact."""

    def __init__(self) -> None:
        super().__init__(
            "this process may open no more files (`ulimit -n` says how many). What is done is written: set the limit "
            "higher (ulimit -n 16384) or ask less at once (--set resources.n_in_flight=64), and go on with the run."
        )


class StageFailed(RunError):
    """A stage's process ended without a word: killed, or a fault of ours that its log shows."""


class PackageMissing(AutointerpError):
    """Something needs an optional package that is not installed; the message names the extra that brings it."""


class PublishError(AutointerpError):
    """A run can't be published as asked."""


class SecretFound(PublishError):
    """Something that looks like a key or a password stands in what would be published. Nothing is uploaded."""


class HubError(PublishError):
    """The hub refuses, or can't be reached. What was uploaded stays; the same command goes on."""


class LLMError(AutointerpError):
    """The LLM side failed."""


class LLMUnavailable(LLMError):
    """No answer after all tries. The item stays open and the next run asks again."""


class LLMBadRequest(LLMError):
    """The server will never take this request (too long): a recorded failure."""


class LLMFiltered(LLMBadRequest):
    """A content filter in front of the model refuses this prompt. Of a chat it is an answer: that of an LLM which
    declines (`finish_reason` is `content_filter`)."""


class LLMStopped(LLMError):
    """A wrong key, an empty account, no such model: no request can succeed, so the run stops."""


class BudgetReached(LLMError):
    """The next request might cost more than the run may still spend. Nothing paid for is lost."""


class AnswersError(LLMError):
    """A file of answers that can't be read, or that answers nothing of this run."""


class Pending(Exception):
    """The answer will come by other means (a batch file); go on with other items."""


class Unreadable(Exception):
    """The LLM's answer could not be read, also after one more try. Becomes a record, never a value."""


class Refused(Exception):
    """The LLM declined to answer. Becomes a record, never a value."""


class NoEvidence(Exception):
    """Nothing is known of a feature that an explainer could go by. Becomes a record, never a value."""


class Interrupted(Exception):
    """The user asked to stop. Everything finished is written."""
