"""A judge's prompt: read from a file, filled with texts that cannot break out of it, and its verdict read strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from evalkit.errors import SpecError

Kind = Literal["pairwise", "rating"]

_FOLDER: Final = Path(__file__).parent / "prompt_files"
_PLACEHOLDER: Final = re.compile(r"\{(question|answer_1|answer_2|answer|reference|rubric)\}")
_VERDICT_LINE: Final = re.compile(r"^[\s*_#]*verdict[\s*_]*[:\uff1a][\s*_]*\[*([A-Za-z0-9]+)\]*[\s*_.]*$", re.I | re.M)
_LABEL: Final = re.compile(r"[A-Za-z0-9]+")
_ALONE: Final = re.compile(r"[\s*_]*\[*([A-Za-z0-9]+)\]*[\s*_.]*")
# Turn markers of chat templates whose tokenizer is not at hand.
_TURN_MARKER: Final = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<\uff5c[^\uff5c]{1,40}\uff5c>|<(?:start|end)_of_turn>|<</?SYS>>|</?(?:s|think)>"
    r"|<(?:bos|eos|pad)>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]"
)
_OUR_MARK: Final = re.compile(r"</?(?:question|answer(?:_[12])?|reference)\s+[0-9a-f]{6,}\s*>", re.I)


@dataclass(frozen=True)
class Prompt:
    """How a judge is asked.

    Attributes
    ----------
    name
        Of the prompt.
    kind
        `pairwise` or `rating`.
    system, user
        The texts, with placeholders.
    choice, text
        How to answer: by one label, or with reasons first.
    verdicts
        What each label means: first, second, tie; or a number.
    rubric
        Criteria for the placeholder of that name.
    """

    name: str
    kind: Kind
    system: str
    user: str
    choice: str
    text: str
    verdicts: Mapping[str, Any]
    rubric: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the file's order."""
        return tuple(self.verdicts)

    @property
    def needs_reference(self) -> bool:
        """Whether it has a place for a reference answer."""
        return "{reference}" in self.user

    def fill(self, texts: Mapping[str, str], mark: str, *, reasons: bool) -> tuple[str, str]:
        """Return system and user message; each text stands between marks that nobody can guess.

        Parameters
        ----------
        texts
            By placeholder; they should be `defused`.
        mark
            Random, not contained in any text.
        reasons
            Ask for reasons before the verdict.
        """

        def block(found: re.Match[str]) -> str:
            name = found[1]
            if name == "rubric":
                return self.rubric
            return f"<{name} {mark}>\n{texts[name]}\n</{name} {mark}>"

        # One pass: a placeholder inside an answer stays what it is.
        filled = _PLACEHOLDER.sub(block, self.user).rstrip()
        return self.system.strip(), f"{filled}\n{(self.text if reasons else self.choice).strip()}"

    def read(self, answer: str) -> str | None:
        """Read the label from a judge's text; None where there is none.

        It stands in the last line as `Verdict: LABEL`, or is the whole answer. Nothing is guessed from other text: an
        earlier line may be quoted from what is judged.
        """
        found = _VERDICT_LINE.fullmatch(answer.rstrip().rpartition("\n")[2]) or _ALONE.fullmatch(answer)
        return {label.upper(): label for label in self.labels}.get(found[1].upper()) if found else None


def load_prompt(name: str) -> Prompt:
    """Load one of ours by name, or a YAML file.

    Raises
    ------
    SpecError
        There is no such prompt, or the file lacks something.
    """
    path = _FOLDER / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    ours = ", ".join(sorted(one.stem for one in _FOLDER.glob("*.yaml")))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(
            f"the prompt cannot be read ({error})", where=name, do=f"Give a file, or one of {ours}"
        ) from None
    if not isinstance(values, dict):
        raise SpecError("the prompt is no mapping", where=name, do=f"Write it like ours: {ours}")
    if missing := [key for key in ("kind", "system", "user", "verdicts") if not values.get(key)]:
        raise SpecError(f"the prompt has no '{missing[0]}'", where=name, do=f"Write it like ours: {ours}")
    kind: Any = str(values["kind"])
    if not isinstance(values["user"], str) or not isinstance(values["verdicts"], dict):
        raise SpecError("user must be a text, and verdicts a mapping", where=name, do=f"Write it like ours: {ours}")
    # YAML takes an unquoted Yes for a truth value.
    if odd := [key for key in values["verdicts"] if isinstance(key, bool) or not _LABEL.fullmatch(str(key))]:
        raise SpecError(
            f"a judge could not say the label {odd[0]!r}", where=f"{name}, verdicts", do="Use letters or digits, quoted"
        )
    verdicts = {str(key): value for key, value in values["verdicts"].items()}
    if len({label.upper() for label in verdicts}) < len(verdicts):
        raise SpecError("two labels differ in their case only", where=f"{name}, verdicts", do="Name them apart")
    needed: Mapping[str, tuple[str, ...]] = {"pairwise": ("answer_1", "answer_2"), "rating": ("answer",)}
    if kind not in needed:
        raise SpecError(f"'{kind}' is no kind of prompt", where=f"{name}, kind", do="Write pairwise or rating")
    if lacking := [one for one in needed[kind] if f"{{{one}}}" not in values["user"]]:
        raise SpecError(f"the prompt has no place for {{{lacking[0]}}}", where=f"{name}, user", do="Add it")
    meant = list(verdicts.values())
    if kind == "pairwise" and not ({"first", "second"} <= set(map(str, meant)) <= {"first", "second", "tie"}):
        raise SpecError("verdicts must mean first, second or tie", where=f"{name}, verdicts", do="Write A: first")
    if kind == "rating" and (
        len(meant) < 2 or not all(isinstance(one, int | float) and math.isfinite(one) for one in meant)
    ):
        raise SpecError("ratings must be at least two numbers", where=f"{name}, verdicts", do='Write "1": 1')
    return Prompt(
        name=path.stem,
        kind=kind,
        system=str(values["system"]),
        user=str(values["user"]),
        choice=str(values.get("choice") or f"Reply with one of {', '.join(verdicts)} only."),
        text=str(values.get("text") or f"End with one line, Verdict: and one of {', '.join(verdicts)}."),
        verdicts=verdicts,
        rubric=str(values.get("rubric") or ""),
    )


@dataclass(frozen=True)
class Defused:
    """A text that may stand in a prompt, and what in it looked like an attempt to break out.

    `attempts` counts special tokens and turn markers, which are taken apart; imitated marks; and lines that look like
    the judge's own verdict. The latter two stay as they are: they are harmless, and part of the answer.
    """

    text: str
    attempts: Mapping[str, int]


def defuse(text: str, special: Iterable[str] = ()) -> Defused:
    """Take apart what a tokenizer would read as a token of its own, as `<|im_end|>`: a space after the first character.

    Parameters
    ----------
    text
        An answer, a question or a reference.
    special
        The judge's special tokens.
    """
    known = sorted((one for one in special if len(one) > 1), key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, known), _TURN_MARKER.pattern])) if known else _TURN_MARKER
    harmless, n_special = pattern.subn(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    counts = {
        "special tokens": n_special,
        "imitated marks": len(_OUR_MARK.findall(text)),
        "verdict lines": len(_VERDICT_LINE.findall(text)),
    }
    return Defused(harmless, {name: count for name, count in counts.items() if count})


def preference_of(labels: Sequence[str], logprobs: Sequence[float], prompt: Prompt) -> tuple[str, float | None, float]:
    """Return the likeliest label, how far the second answer is preferred (0 to 1), and the labels' joint probability.

    A rating prefers nothing by itself: see `higher_rated`. Two labels that are equally likely are no verdict for
    either: pairwise that is a tie.
    """
    import numpy as np
    from scipy import special

    values = np.asarray(logprobs, dtype=float)
    share = np.exp(values - special.logsumexp(values))
    mass = float(np.exp(special.logsumexp(values)))
    meant = [prompt.verdicts[label] for label in labels]
    if prompt.kind == "rating":
        return labels[int(np.argmax(share))], None, mass
    value = float(sum(p * {"first": 0.0, "tie": 0.5, "second": 1.0}[one] for p, one in zip(share, meant, strict=True)))
    best = np.flatnonzero(share >= share.max() - 1e-12)
    tie = next((label for label in labels if prompt.verdicts[label] == "tie"), "")
    return labels[int(best[0])] if len(best) == 1 else tie, value, mass


def higher_rated(a: Sequence[float], b: Sequence[float], ratings: Sequence[float]) -> float:
    """Chance that B is rated higher than A, equal ratings as half, from the log-probabilities of `ratings` for each."""
    import numpy as np
    from scipy import special

    values = np.asarray(ratings, dtype=float)
    # Row i and column k: A's rating is i, B's is k.
    wins = (1 + np.sign(values[None, :] - values[:, None])) / 2
    return float(special.softmax(np.asarray(a, dtype=float)) @ wins @ special.softmax(np.asarray(b, dtype=float)))
