"""The demo's text: the documentation and source that come with every Python.

Nothing is downloaded and no standard-library module is run: files are only read. (The one import,
`pydoc_data.topics`, is a table of strings.) The order is that of sorted relative paths, so two machines with
the same Python see the same documents; another Python version has mostly the same ones.
"""

import itertools
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Left out: other people's packages, tests, graphical programs, a refactoring tool gone from newer Pythons,
# tables (`encodings`), and `pydoc_data`, whose strings are read through the import.
EXCLUDED_FOLDERS = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3", "ensurepip"),
    *("encodings", "pydoc_data", "lib-dynload", "__phello__", "__pycache__"),
}
# Made when Python was built, different on each machine.
EXCLUDED_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")

MIN_CHARS = 200  # shorter documents are dropped
TARGET_CHARS = 2_000  # neighbouring definitions are joined up to here
MAX_CHARS = 4_000  # longer definitions are cut, coarsest border first

# From coarse to fine: top-level definitions, methods, paragraphs. A new piece begins where each match begins,
# so a decorator stays with what it decorates.
BORDERS = (
    re.compile(r"(?m)^(?:@.*\n)*(?:def |class |async def )"),
    re.compile(r"(?m)^(?:(?: {4}|\t)@.*\n)*(?: {4}|\t)(?:def |class |async def )"),
    re.compile(r"(?<=\n\n)(?=[^\n])"),
)


def stdlib_documents() -> Iterator[str]:
    """Yield every document, always in the same order: documentation topics, then pieces of source files."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from _documents_of(topics[name])
    root = Path(sysconfig.get_path("stdlib"))
    for path in _source_files(root):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # an unreadable file of a damaged or unusual installation: the corpus does without it
            continue
        yield from _documents_of(text)


def _source_files(root: Path) -> list[Path]:
    """Return the `.py` files below `root` that belong to the corpus, sorted by their relative POSIX path."""

    def belongs(path: Path) -> bool:
        parts = path.relative_to(root).parts
        return EXCLUDED_FOLDERS.isdisjoint(parts) and not any(p.startswith(EXCLUDED_PREFIXES) for p in parts)

    found = (path for path in root.rglob("*.py") if belongs(path))
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _documents_of(text: str) -> Iterator[str]:
    """Cut one text into documents of at most `MAX_CHARS` characters, without short ones and tables."""
    document = ""
    for piece in _pieces(text.replace("\r\n", "\n"), BORDERS):
        if document and len(document) + len(piece) > TARGET_CHARS:
            yield from _kept(document)
            document = ""
        document += piece
    yield from _kept(document)


def _kept(document: str) -> Iterator[str]:
    document = document.strip("\n")
    if len(document) >= MIN_CHARS:
        yield document


def _pieces(text: str, borders: tuple[re.Pattern[str], ...]) -> Iterator[str]:
    """Split `text` at the coarsest border; a piece that is still too long goes on to the next finer one.

    A piece over `MAX_CHARS` without even a blank line is a table, not prose or code, and is left out.
    """
    if len(text) <= MAX_CHARS and len(borders) < len(BORDERS):
        yield text
    elif borders:
        cuts = [0, *(match.start() for match in borders[0].finditer(text)), len(text)]
        for start, end in itertools.pairwise(cuts):
            yield from _pieces(text[start:end], borders[1:])
