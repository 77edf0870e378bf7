"""Lyrics -> character ids, and back.

Jukebox reads lyrics as characters of a small ASCII alphabet.  There are two: that of v2 models has a plus sign, that of
the v3 model (1b lyrics) lacks it.  Everything else is first spelled in ASCII.
"""

import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

PAD = 0
"""The id of no character: it fills the window where lyrics are shorter."""

_MARKS = {"v2": ".,:;!?-+'\"()[] \t\n", "v3": ".,:;!?-'\"()[] \t\n"}

ALPHABETS: dict[str, dict[str, int]] = {
    rules: {"": PAD} | {c: i for i, c in enumerate(string.ascii_letters.swapcase() + string.digits + marks, start=1)}
    for rules, marks in _MARKS.items()
}
"""Rules -> character -> id: A-Z, a-z, 0-9, then the marks."""

_PAIRS = """
    Й=I Ю=Iu Я=Ia Ё=Io Ї=Yi й=i ю=iu я=ia ё=io ї=yi
    Ή=E Η=E ή=e η=e Ύ=U Υ=U Ϋ=U ύ=u υ=u ϋ=u Β=B β=b Φ=Ph φ=ph Χ=Kh χ=kh Ξ=Ks
    じ=zi ぢ=di っ=tsu づ=du ふ=hu を=wo ジ=zi ヂ=di ッ=tsu ヅ=du フ=hu ヲ=wo
    Æ=AE Œ=OE —=-- ―=-- ×=x ©=(c) ®=(r) ™=(tm) °=deg ‚=, „=,,
"""
_SPACED = {"№": "No. ", "、": ", ", "。": ". ", "」": "] ", "\u200b": " ", "\u2028": "\n", "\u2029": "\n\n"}
_SPELLINGS = {pair[0]: pair[2:] for pair in _PAIRS.split()} | _SPACED
"""Where the lyrics that the released models learned from were spelled otherwise than anyascii does."""


@cache
def spell(character: str) -> str:
    """One character in ASCII; nothing for symbols without a sound.

    By Unidecode, which the original used, where the user has installed it (it is under the GPL); else by anyascii with
    the habits that released models know: a space after an ideograph, Korean in lower case, no names of emoji.
    """
    if character.isascii():
        return character
    if "\ud800" <= character <= "\udfff":  # half a character: no library takes it
        return ""
    return _library()(character)


@cache
def _library() -> Callable[[str], str]:
    try:
        from unidecode import unidecode
    except ImportError:
        return _spell
    return lambda character: str(unidecode(character))


def _spell(character: str) -> str:
    from anyascii import anyascii

    if character in _SPELLINGS:
        return _SPELLINGS[character]
    spelled, name, category = anyascii(character), unicodedata.name(character, ""), unicodedata.category(character)
    if category == "So":
        return ""
    if name.startswith("CJK ") and category == "Lo":
        return f"{spelled} "
    if name.startswith("HANGUL "):
        return spelled.lower()
    return f" {spelled} " if name.startswith("VULGAR FRACTION") else spelled


@dataclass(frozen=True)
class Alphabet:
    """The characters that a model can sing."""

    ids: Mapping[str, int]

    def clean(self, text: str) -> str:
        """Lyrics as the model sees them: spelled in its alphabet, backslashes as line ends, the rest left out.

        A character that the alphabet has stays, so a model of another alphabet keeps its own script.
        """
        return text.translate({ord(c): self._clean(c) for c in set(text)})

    def encode(self, text: str) -> list[int]:
        """An id for each character of the cleaned lyrics; never `PAD`."""
        return [self.ids[c] for c in self.clean(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Characters of ids; padding, of either kind, is no character."""
        characters = {i: c for c, i in self.ids.items()}
        return "".join(characters.get(i, "") for i in ids if i > PAD)

    def _clean(self, character: str) -> str:
        if character in self.ids:
            return character
        return "".join(c for c in spell(character).replace("\\", "\n") if c in self.ids)
