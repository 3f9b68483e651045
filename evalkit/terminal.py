"""Foreign text on its way to a terminal: nothing in it is obeyed, and nothing is hidden."""

from __future__ import annotations

import re
from typing import Final

# What changes a terminal's state, or hides and reorders what stands around it: control and formatting characters but
# line break and tab; and noncharacters, which XML refuses. The two joiners (U+200C, U+200D) stay: Persian and emoji are
# written with them.
_UNSAFE: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufdd0-\ufdef"
    r"\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U0001bca0-\U0001bca3\U000e0000-\U000e007f]"
)


def safe(text: str) -> str:
    r"""Return the text with every character that a terminal might obey written out, as in `<U+001B>[31m`.

    Line breaks and tabs stay, and a Windows line end counts as a line break.
    """
    return _UNSAFE.sub(lambda found: f"<U+{ord(found[0]):04X}>", text.replace("\r\n", "\n"))
