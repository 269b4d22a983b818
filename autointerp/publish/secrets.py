"""Keys and passwords in text that is about to be published.

Two kinds: what has the form of a key of a known service, and the very values of this process' environment whose
names say that they are secret. The forms follow what the services document; a key without a form can't be seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from autointerp.errors import SecretFound

_FORMS: Final = {
    "hugging_face": r"hf_[A-Za-z0-9]{30,}",
    "anthropic": r"sk-ant-[\w-]{24,}",
    "openai": r"sk-(?:proj-|svcacct-|or-v1-)?(?=[\w-]{0,64}\d)[\w-]{32,}",
    "aws": r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])",
    "github": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}",
    "gitlab": r"glpat-[\w-]{20,}",
    "google": r"AIza[\w-]{35}",
    "slack": r"xox[abeprs]-[\w-]{20,}",
    "stripe": r"[rs]k_live_[A-Za-z0-9]{20,}",
    "npm": r"npm_[A-Za-z0-9]{36}",
    "private": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "url": r"://[^\s/:@'\"<>{}$]+:[^\s/:@'\"<>{}$]{8,}@[\w.-]+\.\w",
}
_SPOKEN: Final = {
    "hugging_face": "Hugging Face token", "anthropic": "Anthropic key", "openai": "OpenAI key", "aws": "AWS key id",
    "github": "GitHub token", "gitlab": "GitLab token", "google": "Google API key", "slack": "Slack token",
    "stripe": "Stripe key", "npm": "npm token", "private": "private key", "url": "password in an address",
}  # fmt: skip
_ANY: Final = re.compile("|".join(f"(?P<{name}>{form})" for name, form in _FORMS.items()))
_HINT: Final = re.compile(
    "hf_|sk-|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|AIza|xox|k_live_|npm_|-----BEGIN |://"
)
"""One of these stands in each of the forms: most windows have none, and are looked at no further."""
_SECRET_NAME: Final = re.compile(r".*(?:KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)
_SHORTEST: Final = 12
"""Values of the environment that are shorter may stand in a text by chance."""

_MOST_NAMED: Final = 10


@dataclass(slots=True)
class Guard:
    """Looks through text, and keeps what it found until all was looked at."""

    values: Mapping[str, str] = field(default_factory=lambda: _of_environment(os.environ))
    """Name of each secret value -> the value."""
    found: list[str] = field(default_factory=list[str])

    def look(self, text: str, file: str, record: str) -> bool:
        """Whether the text is clean. `file` and `record`: where it stands."""
        kinds = list(self._secrets(text))
        self.found += [f"{file}, {record}: {kind}" for kind in kinds]
        return not kinds

    def _secrets(self, text: str) -> Iterator[str]:
        if _HINT.search(text):
            for match in _ANY.finditer(text):
                kind = _SPOKEN[str(match.lastgroup)]
                yield f"what looks like a {kind} ({match[0][:4]}…, {len(match[0])} characters)"
        for name, value in self.values.items():
            if value in text:
                yield f"the value of ${name}"

    def check(self) -> None:
        """Raises SecretFound where something was found."""
        if not self.found:
            return
        named = "".join(f"  {one}\n" for one in self.found[:_MOST_NAMED])
        more = f"  and {len(self.found) - _MOST_NAMED:,} more\n" if len(self.found) > _MOST_NAMED else ""
        raise SecretFound(
            f"there are secrets in what would be published, so nothing was uploaded:\n{named}{more}Keys quoted from "
            f"the corpus: leave its text out with --no-examples, or cut it with --max-quote 40. Keys of "
            f"your own: take them out of the recipe or prompt, and revoke them if others could read them."
        )


def _of_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value.strip()
        for name, value in environment.items()
        if _SECRET_NAME.fullmatch(name)
        and len(value.strip()) >= _SHORTEST
        and not value.startswith(("/", "~"))
    }
