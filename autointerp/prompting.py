"""Template + variables -> Prompt, and how text from a corpus is made safe to show.

A template is a file of turns. A line `[[system]]`, `[[user]]` or `[[assistant]]` opens one; what follows
is Jinja with StrictUndefined. The file is cut into turns *before* anything is filled in, so no variable
can open a turn. Few-shot examples are turns of their own; what is constant comes first, so that an LLM
server's prefix cache holds it.

Text from a corpus is data: `inert` replaces, character for character, what a chat template or our own
delimiters would read as structure. Because it keeps every character's place, marks are set afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import jinja2

from autointerp.errors import RecipeError, UnknownName
from autointerp.types import Window, digest

MARK_OPEN, MARK_CLOSE = "«", "»"
"""Set around tokens. One token each in common vocabularies, and rare in code, where << and [[ are not."""

RENDERING = "2"
"""Digested with every template: raise it when `inert` or `marked` change what they write."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class View:
    """A window as it is to be shown: which of its tokens are marked."""

    window: Window
    marks: tuple[int, ...] = ()

    def __str__(self) -> str:
        return marked(self.window.texts, self.marks)


class Renders(Protocol):
    """A turn to be filled in."""

    def render(self, variables: Mapping[str, Any] = ..., /) -> str: ...


@dataclass(frozen=True, slots=True)
class _Constant:
    """A turn without variables, of which most prompts have several: Jinja takes 30 us to say nothing new."""

    text: str

    def render(self, variables: Mapping[str, Any] | None = None, /) -> str:
        return self.text


@dataclass(frozen=True)
class Template:
    """A prompt template: its name (`explain/plain`), its digest, its turns as Jinja sources."""

    name: str
    digest: str
    turns: tuple[tuple[Role, Renders], ...]


@dataclass(frozen=True)
class Prompt:
    """A template and what goes into it. Rendered when somebody asks for the messages; a backend that
    needs no text (`lexical`) reads the variables instead."""

    template: Template
    variables: Mapping[str, Any]

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """The chat turns. Raises RecipeError if the template names a variable that isn't there."""
        try:
            turns = tuple(
                Message(role, turn.render(self.variables).strip()) for role, turn in self.template.turns
            )
        except jinja2.UndefinedError as error:
            raise RecipeError(
                f"prompt '{self.template.name}': {error.message}. It may use: {', '.join(self.variables)}."
            ) from error
        return tuple(turn for turn in turns if turn.content)


# --- templates -----------------------------------------------------------------------------------------

_TURN = re.compile(r"^\[\[(system|user|assistant)\]\][ \t]*$", re.MULTILINE)
_JINJA = re.compile(r"\{[{%#]")
_PACKAGE = Path(__file__).parent


def shipped_folders(kind: Literal["prompts", "pipelines"]) -> list[Path]:
    """Where files of a kind lie: the repository's folder, then the copy inside an installed package."""
    return [folder for folder in (_PACKAGE.parent / kind, _PACKAGE / kind) if folder.is_dir()]


@lru_cache(maxsize=64)
def load_template(name: str, folder: Path | None = None) -> Template:
    """Reads `<name>.jinja` from the user's folder, else from the shipped ones.

    Raises UnknownName where there is none, RecipeError where it is not a template.
    """
    return _parse(name, _find(name, folder))


def source_of(name: str, folder: Path | None = None) -> tuple[str, str]:
    """A template as it is written, and its digest. Raises UnknownName where there is none."""
    source = _find(name, folder).read_text(encoding="utf-8")
    return source, digest(source, RENDERING)


def _find(name: str, folder: Path | None) -> Path:
    folders = ([folder] if folder else []) + shipped_folders("prompts")
    for place in folders:
        path = place / f"{name}.jinja"
        if path.is_file():
            return path
    known = {str(p.relative_to(f).with_suffix("")) for f in folders for p in f.rglob("*.jinja")}
    raise UnknownName("prompt template", name, known)


def _parse(name: str, path: Path) -> Template:
    source = path.read_text(encoding="utf-8")
    pieces = _TURN.split(source)  # [before, role, body, role, body, ...]
    if len(pieces) < 3 or pieces[0].strip():
        raise RecipeError(f"{path} is not a prompt: its first line must be [[system]] or [[user]].")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["inert"] = inert
    try:
        turns = tuple(
            (role, environment.from_string(body) if _JINJA.search(body) else _Constant(body))
            for role, body in zip(pieces[1::2], pieces[2::2], strict=True)
        )
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"{path}: {error.message} (line {error.lineno} of its turn).") from error
    return Template(name, digest(source, RENDERING), turns)  # type: ignore[arg-type]  # roles: by the regex


# --- text from outside ---------------------------------------------------------------------------------

# Characters that would end a line, vanish, or turn the reading direction. ZWNJ and ZWJ stay: scripts and
# emoji need them. Control characters become their pictures (U+2400 + code), the rest U+FFFD.
_INVISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if code != 0x09},
    **dict.fromkeys([*range(0x7F, 0xA0), 0x00AD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF], 0xFFFD),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE0080)], 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
    0x0A: ord("⏎"),
    0x2028: ord("⏎"),
    0x2029: ord("⏎"),
    ord(MARK_OPEN): ord("‹"),
    ord(MARK_CLOSE): ord("›"),
}

# What chat templates read as control tokens. A server may turn them into special tokens even inside a
# message's content, so their brackets become look-alikes.
_CONTROL_TOKEN = re.compile(
    r"<[|｜]|[|｜]>"
    r"|</?(?:s|bos|eos|unk|pad|mask|cls|sep|sop|eop|think|tool_call|tool_response|image|image_soft_token"
    r"|start_of_turn|end_of_turn|start_of_image|end_of_image|begin_of_text|end_of_text|end_of_utterance"
    r"|reserved_[0-9]+|extra_id_[0-9]+)>"
    r"|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|gMASK|sMASK)\]"
)
_LOOKALIKE = str.maketrans("<>[]", "‹›［］")


def inert(text: str) -> str:
    """`text` on one line, with nothing in it that opens a turn or closes one of our delimiters.

    As many characters come out as go in, each at its place.
    """
    text = str(text).translate(_INVISIBLE)
    return _CONTROL_TOKEN.sub(lambda match: match[0].translate(_LOOKALIKE), text)


def marked(texts: Sequence[str], marks: Iterable[int]) -> str:
    """The joined `texts`, inert, with «» around the marked ones; neighbours share one pair.

    A mark on an empty text (the rest of a character begun by an earlier token) marks that character.
    """
    text = inert("".join(texts))
    spans = _character_spans(texts, sorted(set(marks)))
    if not spans:
        return text
    pieces: list[str] = []
    done = 0
    for start, end in spans:
        pieces += [text[done:start], MARK_OPEN, text[start:end], MARK_CLOSE]
        done = end
    return "".join(pieces) + text[done:]


def _character_spans(texts: Sequence[str], marks: Sequence[int]) -> list[tuple[int, int]]:
    """`marks`: ascending."""
    if not marks:
        return []
    starts = list(accumulate(map(len, texts), initial=0))
    spans: list[tuple[int, int]] = []
    for mark in marks:
        while mark > 0 and not texts[mark]:
            mark -= 1
        start, end = starts[mark], starts[mark + 1]
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        elif end > start:
            spans.append((start, end))
    return spans
