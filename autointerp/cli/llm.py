"""`autointerp llm`: LLMs that explain and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.apps import RunFolder, errors, llm_app, say


@llm_app.command("answers")
def llm_answers(
    run: RunFolder,
    files: Annotated[list[Path], typer.Argument(help="Answers: OpenAI's batch format, a line each.")],
) -> None:
    """Take in answers to a run's batch files that were made by any means, complete or not, in any order.

    A line is what OpenAI's batches and `vllm run-batch` write, or {"custom_id": ..., "text": ...}.

    Example: autointerp llm answers outputs/demo answers.jsonl
    """
    with errors():
        from autointerp.llm.batch import FOLDER
        from autointerp.llm.batch_import import import_answers
        from autointerp.llm.batch_jobs import said_of
        from autointerp.run import Run

        opened = Run.open(run)
        with opened.lock():
            taken = import_answers(opened.path / FOLDER, files)
        say(said_of(path, one) for path, one in zip(files, taken, strict=True))
        typer.echo(f"Next: autointerp resume {run}")


@llm_app.command("check")
def llm_check(
    llm: Annotated[str, typer.Argument(help="As --llm of 'explain': openai:MODEL, vllm:MODEL.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option of it: --set base_url=http://node7:8000/v1.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each anchor question is asked.")] = 6,
) -> None:
    """What an LLM can do, how fast it answers, and whether it judges well: some 60 requests.

    Example: autointerp llm check openai:gpt-4.1-mini
    """
    with errors():
        import asyncio

        from autointerp.recipe import merge, setting
        from autointerp.report.llm_check import checked
        from autointerp.sections import instance
        from autointerp.stages.llm_check import check_llm
        from autointerp.stages.llms import llm_section

        section = llm_section(llm)
        for text in settings or []:
            section = merge(section, setting(text))
        found = asyncio.run(check_llm(instance("llm", section), n_rounds=rounds))
        say(checked(found))
        if not found.is_fit:
            raise typer.Exit(1)
