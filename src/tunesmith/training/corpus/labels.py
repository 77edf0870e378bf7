"""What is known about a clip: every field was chosen or counted before the sound was made, none is guessed from it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.training.corpus.music import LEAD, Note

Density = Literal["sparse", "steady", "busy"]
Energy = Literal["gentle", "moderate", "strong"]
Arousal = Literal["calm", "even", "lively"]

SPARSE_BELOW, BUSY_ABOVE = 1.6, 3.4
"""Melody notes per second: below the first a melody is sparse, above the second it is busy."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The facts that captions are drawn from."""

    source: str
    """`composed`, or the collection that the tune comes from."""
    title: str
    work: str
    """Identity of the work: variants of one tune in several books share it."""
    genre: str
    bpm: float
    """Beats per minute; the beat is a dotted quarter in 6/8, 9/8 and 12/8 and a half note in 2/2."""
    tonic: str
    mode: str
    """`major` or `minor`."""
    metre: str
    lead: str
    """The instrument that plays the melody."""
    instruments: tuple[str, ...]
    """All pitched instruments, the lead first."""
    drums: bool
    density: Density
    """Class of `notes_per_second`."""
    notes_per_second: float
    """Onsets of the melody per second, counted in the clip."""
    energy: Energy
    """How hard the players play."""
    moods: tuple[str, ...]
    """Words that fit mode, tempo and energy."""

    @property
    def key(self) -> str:
        """As in "D minor"."""
        return f"{self.tonic} {self.mode}"

    @property
    def solo(self) -> bool:
        """Whether one instrument plays alone."""
        return len(self.instruments) == 1 and not self.drums

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Labels":
        """The inverse of `as_dict`, also after a trip through JSON."""
        return cls(**{**fields, "instruments": tuple(fields["instruments"]), "moods": tuple(fields["moods"])})


def melody_rate(notes: Iterable[Note], bpm: float, seconds: float) -> float:
    """Different onsets of the lead per second among those before the end of the clip."""
    onsets = {round(note.start, 3) for note in notes if note.channel == LEAD and note.start * 60 / bpm < seconds}
    return len(onsets) / seconds


def density_of(rate: float) -> Density:
    """The class of a number of melody notes per second."""
    return "sparse" if rate < SPARSE_BELOW else "busy" if rate > BUSY_ABOVE else "steady"


def arousal_of(bpm: float, energy: Energy) -> Arousal:
    """How excited music is: tempo and playing strength together."""
    excitement = (bpm - 105) / 25 + {"gentle": -1.0, "moderate": 0.0, "strong": 1.0}[energy]
    return "calm" if excitement < -1 else "lively" if excitement > 1 else "even"


MOODS: dict[tuple[str, Arousal], tuple[str, ...]] = {
    ("major", "calm"): ("calm", "peaceful", "gentle", "tender", "warm", "dreamy", "serene", "relaxed"),
    ("major", "even"): ("pleasant", "bright", "sunny", "hopeful", "playful", "friendly", "carefree"),
    ("major", "lively"): ("happy", "cheerful", "joyful", "energetic", "lively", "upbeat", "triumphant"),
    ("minor", "calm"): ("sad", "melancholy", "sombre", "mournful", "wistful", "lonely", "quiet"),
    ("minor", "even"): ("moody", "serious", "brooding", "mysterious", "nostalgic", "dark"),
    ("minor", "lively"): ("tense", "dramatic", "intense", "driving", "restless", "fierce", "stormy"),
}
"""Words that may be said of music of a mode and an arousal; disjoint, so that no word contradicts a mode."""
