"""Labels into words: what people might write to ask for a clip, and nothing that isn't true of it.

A caption keeps each attribute with probability 0.6, so that a model hears "piano" alone as well as whole sentences.
`specify` always names lead, drums, key and tempo: from such captions a model learns what each word means.
Templates have optional parts: `[ in {key}]` is left out when the key was dropped.  All captions are lower case.
"""

import random
import re
from functools import lru_cache

from tunesmith.training.corpus.chorales import SOURCE as CHORALES
from tunesmith.training.corpus.composer import FASTEST, SLOWEST
from tunesmith.training.corpus.labels import MOODS, Labels
from tunesmith.training.corpus.music import METRES, TONICS
from tunesmith.training.corpus.tunes import COLLECTIONS

KEEP = 0.6
"""Probability that a caption may speak of an attribute."""
_SENTENCES = 0.5
"""Share of captions that follow a template; the others are lists of tags."""
TYPOS = 0.02
"""Probability that a word is misspelt."""

_MORE = ("genre", "mood", "metre", "backing", "density", "energy", "tempo")
"""What `specify` adds now and then."""
ATTRIBUTES = ("genre", "mood", "tempo", "key", "metre", "lead", "backing", "drums", "density", "energy")

GENRES: dict[str, tuple[str, ...]] = {
    "rock": ("rock", "rock song", "rock track", "90s rock", "rock music"),
    "pop": ("pop", "pop song", "pop track", "pop tune"),
    "house": ("house", "house music", "edm", "edm track", "dance music", "club track", "electronic dance music"),
    "synthwave": ("synthwave", "80s synth pop", "80s pop", "electro", "80s electronic track", "retro synth music"),
    "lofi": ("lofi", "lo-fi", "lofi hip hop", "lofi track", "chillhop", "lofi beat", "chill beats"),
    "funk": ("funk", "funky groove", "funk track", "funky music"),
    "reggae": ("reggae", "reggae song", "reggae groove", "reggae music"),
    "blues": ("blues", "blues song", "twelve bar blues", "12 bar blues"),
    "swing": ("swing", "jazz", "swing jazz", "jazz tune", "jazz music"),
    "bossa nova": ("bossa nova", "bossa", "latin jazz", "brazilian music"),
    "country": ("country", "country song", "country music", "country tune"),
    "waltz": ("waltz",),
    "march": ("march", "marching music"),
    "ballad": ("ballad",),
    "ambient": ("ambient", "ambient music", "soundscape", "atmospheric music", "new age music"),
    "classical": ("classical", "classical music", "classical piece", "chamber music"),
    "chorale": ("chorale", "hymn", "church music", "bach chorale", "baroque chorale", "bach", "four part harmony"),
    "jig": ("jig", "folk dance"),
    "slip jig": ("slip jig", "folk dance"),
    "reel": ("reel", "folk dance"),
    "hornpipe": ("hornpipe", "folk dance"),
    "strathspey": ("strathspey", "scottish dance", "folk dance"),
    "polka": ("polka", "folk dance"),
    "quickstep": ("quickstep", "quick march"),
    "minuet": ("minuet", "old dance"),
    "gavotte": ("gavotte", "old dance"),
    "clog": ("clog dance", "folk dance"),
    "fling": ("fling", "highland fling", "folk dance"),
    "slide": ("slide", "folk dance"),
    "schottische": ("schottische", "folk dance"),
    "walkaround": ("walkaround", "folk dance"),
    "air": ("air", "folk song", "folk air"),
    "folk tune": ("folk tune", "folk music", "traditional tune", "folk melody", "folk song", "old tune"),
}
_TRADITIONS = {COLLECTIONS["oneills1850"]: ("irish", "celtic"), CHORALES: ("baroque",)}
"""Adjectives that a collection bears out."""
_ANY_GENRE = ("music", "piece", "tune", "track", "song", "melody")
_COUNTED = {
    *_ANY_GENRE[1:],
    "groove",
    "waltz",
    "march",
    "ballad",
    "soundscape",
    "chorale",
    "hymn",
    "dance",
    "beat",
    *GENRES,
}
_COUNTED -= {"rock", "pop", "house", "synthwave", "lofi", "funk", "reggae", "swing", "country", "ambient", "classical"}
"""Last words that go with "a": others get "piece" or "track" appended."""
_EMPTY_WORDS = {
    *_ANY_GENRE,
    *("a", "an", "the", "i", "want", "play", "me", "please", "make", "something", "background", "instrumental"),
    *("with", "and", "of"),
}
"""A caption of these alone would say nothing."""

INSTRUMENT_WORDS: dict[str, tuple[str, ...]] = {
    "piano": ("piano", "piano", "grand piano", "pianist", "keys"),
    "electric piano": ("electric piano", "rhodes", "keys"),
    "harpsichord": ("harpsichord", "harpsichord", "cembalo"),
    "music box": ("music box", "musical box"),
    "vibraphone": ("vibraphone", "vibes"),
    "marimba": ("marimba", "mallets"),
    "organ": ("organ", "church organ", "pipe organ"),
    "accordion": ("accordion", "squeezebox"),
    "harmonica": ("harmonica", "mouth harp"),
    "acoustic guitar": ("acoustic guitar", "guitar", "nylon guitar", "classical guitar", "acoustic guitars"),
    "electric guitar": ("electric guitar", "clean electric guitar", "guitar", "electric guitars"),
    "distorted guitar": ("distorted guitar", "overdriven guitar", "heavy guitar", "distorted guitars", "guitar"),
    "violin": ("violin", "violin", "fiddle", "violinist"),
    "cello": ("cello", "cello", "cellist"),
    "harp": ("harp", "harp", "harpist"),
    "strings": ("strings", "string section", "orchestral strings"),
    "choir": ("choir", "choir", "voices", "vocal choir", "choral voices"),
    "trumpet": ("trumpet",),
    "trombone": ("trombone",),
    "french horn": ("french horn", "horn"),
    "brass": ("brass", "brass section", "horns"),
    "saxophone": ("saxophone", "sax", "alto sax"),
    "oboe": ("oboe",),
    "clarinet": ("clarinet",),
    "flute": ("flute", "flute", "flutist"),
    "pan flute": ("pan flute", "panpipes"),
    "synth lead": ("synth lead", "synth", "lead synth", "synthesizer"),
    "synth pad": ("synth pad", "synth pads", "pads", "airy pads"),
    "banjo": ("banjo",),
    "bagpipe": ("bagpipe", "bagpipes", "pipes"),
    "acoustic bass": ("acoustic bass", "upright bass", "double bass", "bass"),
    "electric bass": ("electric bass", "bass guitar", "bass"),
    "synth bass": ("synth bass", "bass", "deep bass"),
}

MOOD_SYNONYMS: dict[str, tuple[str, ...]] = {
    "calm": ("calm", "tranquil", "quiet"),
    "peaceful": ("peaceful", "restful"),
    "gentle": ("gentle", "soft", "light"),
    "dreamy": ("dreamy", "ethereal"),
    "relaxed": ("relaxed", "relaxing", "chill", "mellow", "laid-back"),
    "bright": ("bright", "shiny"),
    "playful": ("playful", "whimsical", "cute"),
    "happy": ("happy", "glad", "feel-good"),
    "cheerful": ("cheerful", "merry", "light and cheerful"),
    "joyful": ("joyful", "jolly", "joyous"),
    "energetic": ("energetic", "exciting", "powerful"),
    "lively": ("lively", "spirited"),
    "upbeat": ("upbeat", "uplifting"),
    "triumphant": ("triumphant", "heroic", "epic"),
    "sad": ("sad", "sorrowful", "unhappy", "emotional"),
    "melancholy": ("melancholy", "melancholic", "blue"),
    "sombre": ("sombre", "somber", "gloomy"),
    "moody": ("moody", "pensive"),
    "mysterious": ("mysterious", "eerie", "strange"),
    "dark": ("dark", "ominous"),
    "tense": ("tense", "suspenseful", "nervous"),
    "dramatic": ("dramatic", "cinematic"),
    "intense": ("intense", "aggressive", "angry"),
    "driving": ("driving", "relentless"),
}

TEMPO_WORDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (72, ("very slow", "slow", "largo")),
    (90, ("slow", "adagio", "unhurried", "slow-paced")),
    (118, ("medium", "moderate", "mid-tempo", "walking-pace", "andante")),
    (146, ("fast", "brisk", "quick", "fast-paced", "allegro")),
    (1000, ("very fast", "fast", "rapid", "presto", "speedy")),
)
"""The words for tempos below a number of beats per minute."""

METRE_WORDS: dict[str, tuple[str, ...]] = {
    "4/4": ("4/4", "4/4 time", "four four time", "common time"),
    "3/4": ("3/4", "3/4 time", "three four time", "waltz time", "triple time"),
    "2/4": ("2/4", "2/4 time", "two four time"),
    "2/2": ("2/2", "2/2 time", "cut time"),
    "6/8": ("6/8", "6/8 time", "six eight time", "compound time"),
    "9/8": ("9/8", "9/8 time", "nine eight time"),
    "12/8": ("12/8", "12/8 time", "twelve eight time"),
}
DENSITY_WORDS: dict[str, tuple[str, ...]] = {
    "sparse": ("sparse", "minimal", "few notes", "long notes", "simple"),
    "steady": ("steady", "flowing", "moving"),
    "busy": ("busy", "many notes", "fast notes", "dense", "virtuosic"),
}
ENERGY_WORDS: dict[str, tuple[str, ...]] = {
    "gentle": ("softly played", "gently played", "quietly played", "delicate", "subtle"),
    "moderate": (),
    "strong": ("strongly played", "loudly played", "loud", "hard-hitting", "forceful", "bold"),
}
_ENHARMONIC = {"C#": "Db", "Eb": "D#", "F#": "Gb", "Ab": "G#", "Bb": "A#"}

_DRUMS = ("drums", "drums", "drums", "percussion", "a drum beat", "a drum kit", "a beat")
_NO_DRUMS = ("no drums", "no drums", "no drums", "without drums", "no percussion", "drumless")
_ABSENT = {
    "piano": ("piano", "electric piano"),
    "guitar": ("acoustic guitar", "electric guitar", "distorted guitar"),
    "bass": ("acoustic bass", "electric bass", "synth bass"),
    "vocals": ("choir",),
    "strings": ("strings", "violin", "cello"),
    "synth": ("synth lead", "synth pad", "synth bass"),
    "choir": ("choir",),
    "organ": ("organ",),
    "brass": ("brass", "trumpet", "trombone", "french horn"),
}
"""Word -> instruments of which none may play where a caption says "no" and the word."""
_ELECTRIC = {
    *(
        "electric piano",
        "electric guitar",
        "distorted guitar",
        "synth lead",
        "synth pad",
        "electric bass",
        "synth bass",
    ),
    "vibraphone",
}
_ELECTRONIC = {"synth lead", "synth pad", "synth bass"}

# Slots, in the order of `_Slots`: genre falls back to "music" and the like, thing does so too and goes with "a"; speed
# is "at 96 bpm", tonality "in d minor", drums "with drums" or "no drums", beat what there is, nodrums what isn't.
TEMPLATES: tuple[str, ...] = (
    "{genre}",
    "{lead}",
    "{mood}",
    "{key}",
    "{bpm}[, {genre}]",
    "[{mood} ]{genre}",
    "[{tempo} ]{genre}[ for {lead}]",
    "[{sound} ]{genre}[, {lead}]",
    "a[ {mood}] {thing}[ for {lead}][ with {backing}]",
    "a[ {tempo}][ {mood}] {thing}[ {tonality}][, {lead} lead][, {drums}]",
    "a[ {mood}] {lead} melody[ {tonality}][ {speed}][, {drums}]",
    "a {band} of {lead} and {backing}[ playing a {thing}]",
    "{lead}[ {tonality}][, {bpm}][, {drums}]",
    "{lead}[, {drums}][, {key}][, {bpm}]",
    "[{bpm} ]{lead} melody[, {key}][, {drums}]",
    "[{drums}, ]{lead} lead[, {bpm}][, {key}]",
    "{genre}[ with {lead}][ {tonality}][ {speed}][, {drums}]",
    "[{mood} ]{genre} with[ {density}] {lead}[ and {beat}]",
    "[{lead} with {backing}][, {mood}][, {bpm}]",
    "{genre}[, {metre}][, {key}][, {tempo}][, {density}]",
    "[{mood} ][{lead} ]melody[, {density}][ {tonality}][, {drums}]",
    "[{mood}, ][{tempo}, ]{genre}[, {lead}][, {backing}][, {drums}]",
    "{genre}[ {speed}][ {tonality}][, {drums}]",
    "[{tempo} ][{mood} ]{genre}[ featuring {lead}][ over {backing}]",
    "{lead} playing a[ {tempo}][ {mood}] {thing}[ {tonality}][ {speed}]",
    "{lead} and {backing}[ playing a {thing}][ {speed}]",
    "solo {lead}[, {mood}][, {tempo}][ {tonality}]|{solo}",
    "{lead} solo[ {tonality}][, {genre}]|{solo}",
    "unaccompanied {lead}[ {speed}][ {tonality}]|{solo}",
    "{lead} alone, no accompaniment[, {mood}]|{solo}",
    "[{mood} ]{genre}[ in {metre}][ {speed}]",
    "i want a[ {mood}][ {tempo}] {thing}[ with {lead}][, {drums}]",
    "play me a[ {mood}] {thing}[ on the {lead}][ {tonality}]",
    "please make a[ {mood}] {thing}[ with {beat} and {backing}]",
    "something {mood}[ with {lead}][, {nodrums}]",
    "something {mood} and {tempo}[, {lead}]",
    "[{mood} ]background music[, {tempo}][, {lead}]",
    "{tempo} {lead}[ {tonality}][, {energy}]",
    "[{tempo} ][{energy} ]{genre}[ with {beat}]",
    "{genre}[ with {backing}][, {absent}]",
    "[{mood} ]{genre} without {absence}",
    "{lead} lead, {backing} accompaniment[, {drums}][, {bpm}]",
    "{lead} lead[, {drums}][, {bpm}][, {key}]",
    "[{mood} ]{genre}[ {tonality}][ {speed}][ in {metre}][ for {lead}][ with {backing}][ and {beat}][, {density}]",
    "the {lead} plays a[ {mood}] melody[ over {beat}][, {genre}]",
    "instrumental {genre}[, {mood}][, {bpm}]|{wordless}",
    "{drums}[, {genre}][, {tempo}]",
    "{drums}[, {lead} lead][, {bpm}][, {key}]",
    "{genre} with bassy drums[ and {lead}][, {mood}]|{bassy}",
    "{genre} with heavy drums[ and {lead}][ {speed}]|{heavy}",
)
"""A part after `|` is a condition that isn't printed."""


class _Slots:
    """The words for each slot of one clip, with the dropped attributes silent."""

    def __init__(self, labels: Labels, kept: set[str], rng: random.Random) -> None:
        self.labels, self.kept, self.rng = labels, kept, rng

    def fill(self, slot: str) -> str | None:
        """Words for a slot, or None when its attribute was dropped or it would not be true."""
        return getattr(self, f"_{slot}")()

    def _pick(self, attribute: str, words: tuple[str, ...]) -> str | None:
        return self.rng.choice(words) if attribute in self.kept and words else None

    def _genre(self) -> str:
        return self._pick("genre", genre_words(self.labels)) or self.rng.choice(_ANY_GENRE)

    def _thing(self) -> str:
        genre = self._genre()
        if genre.split()[-1] in _COUNTED:
            return genre
        return f"{genre.removesuffix('music')} {self.rng.choice(('piece', 'track', 'song'))}".strip().replace("  ", " ")

    def _sound(self) -> str | None:
        players = set(self.labels.instruments)
        words = (
            ("acoustic",) if not players & _ELECTRIC else ("electronic", "synthetic") if players & _ELECTRONIC else ()
        )
        return self._pick("backing", words)

    def _band(self) -> str | None:
        return (
            self._pick("backing", ("duo", "duet"))
            if len(self.labels.instruments) == 2 and not self.labels.drums
            else None
        )

    def _mood(self) -> str | None:
        mood = self.rng.choice(self.labels.moods)
        return self._pick("mood", MOOD_SYNONYMS.get(mood, (mood,)))

    def _tempo(self) -> str | None:
        return self._pick("tempo", tempo_words(self.labels.bpm))

    def _bpm(self) -> str | None:
        exact = round(self.labels.bpm)
        rounded = 10 * round(exact / 10)
        return self._pick(
            "tempo",
            (f"{exact} bpm", f"{exact} bpm", f"{exact} beats per minute", f"bpm {exact}", f"around {rounded} bpm"),
        )

    def _speed(self) -> str | None:
        pace = f"at a {self.rng.choice(tempo_words(self.labels.bpm))} tempo"
        return self._pick("tempo", (f"at {self._bpm()}", f"at {self._bpm()}", pace))

    def _key(self) -> str | None:
        mode = self.labels.mode
        return self._pick("key", (*self._key_name(5), f"{mode} key", mode))

    def _tonality(self) -> str | None:
        phrases = tuple(f"in {name}" for name in self._key_name(4))
        return self._pick("key", (*phrases, f"in the key of {phrases[0][3:]}", f"in {self.labels.mode}"))

    def _key_name(self, times: int) -> tuple[str, ...]:
        """The usual name several times, and once another spelling.  No "a" may precede: "a major" is a key."""
        names = key_names(self.labels.tonic, self.labels.mode)
        return (names[0],) * times + (self.rng.choice(names),)

    def _metre(self) -> str | None:
        return self._pick("metre", METRE_WORDS[self.labels.metre])

    def _lead(self) -> str | None:
        return self._pick("lead", INSTRUMENT_WORDS[self.labels.lead])

    def _backing(self) -> str | None:
        others = [self.rng.choice(INSTRUMENT_WORDS[name]) for name in self.labels.instruments[1:]]
        if others and self.rng.random() < 0.3:
            others = [self.rng.choice(others)]
        return self._pick("backing", (" and ".join(others),)) if others else None

    def _drums(self) -> str | None:
        beat = self._beat()
        return f"with {beat}" if beat and self.rng.random() < 0.6 else beat or self._nodrums()

    def _beat(self) -> str | None:
        return self._pick("drums", _DRUMS) if self.labels.drums else None

    def _nodrums(self) -> str | None:
        return self._pick("drums", _NO_DRUMS) if not self.labels.drums else None

    def _density(self) -> str | None:
        return self._pick("density", DENSITY_WORDS[self.labels.density])

    def _energy(self) -> str | None:
        return self._pick("energy", ENERGY_WORDS[self.labels.energy])

    def _solo(self) -> str | None:
        return "yes" if self.labels.solo else None

    def _wordless(self) -> str | None:
        return "yes" if "choir" not in self.labels.instruments else None

    def _absence(self) -> str | None:
        absent = [word for word, names in _ABSENT.items() if not set(names) & set(self.labels.instruments)]
        return self._pick("backing", tuple(absent))

    def _absent(self) -> str | None:
        absence = self._absence()
        return f"no {absence}" if absence else None

    def _bassy(self) -> str | None:
        bass = any(name.endswith("bass") for name in self.labels.instruments)
        return self._pick("drums", ("yes",)) if self.labels.drums and bass else None

    def _heavy(self) -> str | None:
        return self._pick("drums", ("yes",)) if self.labels.drums and self.labels.energy == "strong" else None


def genre_words(labels: Labels) -> tuple[str, ...]:
    """What a genre may be called; beats and grooves only with drums, synth music only with a synth."""
    denied = set() if labels.drums else {"beat", "beats", "groove"}
    denied |= set() if _ELECTRONIC & set(labels.instruments) else {"synth"}
    words = tuple(words for words in GENRES[labels.genre] if not denied & set(words.split()))
    adjectives = _TRADITIONS.get(labels.source, ())
    return words + tuple(f"{adjective} {words[0]}" for adjective in adjectives)


def tempo_words(bpm: float) -> tuple[str, ...]:
    """Adjectives for a tempo."""
    return next(words for limit, words in TEMPO_WORDS if bpm < limit)


def key_names(tonic: str, mode: str) -> tuple[str, ...]:
    """The ways of writing a key: f# minor, f sharp minor, gb minor."""
    names = [tonic, *([_ENHARMONIC[tonic]] if tonic in _ENHARMONIC else [])]
    spelt = [name[0] + {"": "", "#": " sharp", "b": " flat"}[name[1:]] for name in names]
    return tuple(dict.fromkeys(f"{name} {mode}".lower() for name in (tonic, *names, *spelt)))


def describe(labels: Labels, rng: random.Random, *, keep: float = KEEP, typos: float = TYPOS) -> str:
    """Draw a caption.

    Args:
        labels: of the clip; nothing is said that they don't bear out.
        rng: source of chance; each call gives a new caption.
        keep: probability of keeping each attribute.
        typos: probability of misspelling each word.

    """
    while True:
        kept = {attribute for attribute in ATTRIBUTES if rng.random() < keep}
        text = (
            expand(rng.choice(TEMPLATES), _Slots(labels, kept, rng))
            if rng.random() < _SENTENCES
            else _tags(labels, kept, rng)
        )
        if text and not set(split_words(text)) <= _EMPTY_WORDS:
            return _mistype(text, rng, typos)


def specify(labels: Labels, rng: random.Random, *, typos: float = TYPOS) -> str:
    """Draw a caption that names lead, drums, the whole key and the tempo in any order, and rarely more."""
    slots = _Slots(labels, set(ATTRIBUTES), rng)
    lead = f"{slots.fill('lead')}{rng.choice(('', '', ' lead', ' melody'))}"
    key = rng.choice(slots._key_name(4))
    tempo = f"{round(labels.bpm)} {rng.choice(('bpm', 'bpm', 'bpm', 'beats per minute'))}"
    more = [slots.fill(name) for name in _MORE if rng.random() < 0.15]
    parts = [part for part in (lead, key, tempo, slots.fill("drums"), *more) if part]
    rng.shuffle(parts)
    return _mistype(", ".join(parts), rng, typos)


def expand(template: str, slots: _Slots) -> str | None:
    """Fill a template; None when a part that isn't optional can't be filled."""
    text, _, condition = template.partition("|")
    if condition and slots.fill(condition.strip("{}")) is None:
        return None

    def optional(match: re.Match[str]) -> str:
        return _fill(match[1], slots) or ""

    filled = _fill(re.sub(r"\[([^\]]*)\]", optional, text), slots)
    return _tidy(filled) if filled else None


def _fill(text: str, slots: _Slots) -> str | None:
    values = {name: slots.fill(name) for name in re.findall(r"\{(\w+)\}", text)}
    if None in values.values():
        return None
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), text)


def _tidy(text: str) -> str:
    """Right articles, and no comma at the end."""
    return re.sub(r"\ba(?= (?:[aeio]|80s|u[nps]))", "an", text).strip(" ,")


def _tags(labels: Labels, kept: set[str], rng: random.Random) -> str | None:
    """Attributes in any order: "violin, d minor, 96 bpm"."""
    slots = _Slots(labels, kept, rng)
    names = [
        "mood",
        "key",
        "metre",
        "lead",
        "backing",
        "drums",
        "density",
        "energy",
        "sound",
        rng.choice(("bpm", "bpm", "bpm", "tempo")),
    ]
    tags = [tag for tag in (slots.fill(name) for name in names) if tag]
    if "genre" in kept:
        tags.append(rng.choice(genre_words(labels)))
    rng.shuffle(tags)
    return ", ".join(tags[: rng.choice((1, 2, 4, 6, 9, 9))]) or None


def _mistype(text: str, rng: random.Random, typos: float) -> str:
    return " ".join(_misspelt(word, rng) if rng.random() < typos else word for word in text.split(" "))


def _misspelt(word: str, rng: random.Random) -> str:
    """One letter doubled, left out or swapped with the next; short words and numbers stay."""
    if len(word) < 4 or not word.isalpha():
        return word
    i = rng.randrange(len(word) - 1)
    return rng.choice(
        (word[:i] + word[i] + word[i:], word[:i] + word[i + 1 :], word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    )


# ---- vocabulary -----------------------------------------------------------------------------------------------------


def split_words(text: str) -> list[str]:
    """The words of a text, lower case: "F# minor, 3/4" -> f# minor 3/4.  Hyphens and apostrophes stay inside words."""
    text = re.sub(r"(?<=\d)(?=bpm)", " ", text.lower().replace("’", "'"))
    return re.findall(r"[^\W_]+(?:[/'-][^\W_]+)*#?", text)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that captions can contain, apart from typos; sorted."""
    tables = (GENRES, INSTRUMENT_WORDS, MOOD_SYNONYMS, METRE_WORDS, DENSITY_WORDS, ENERGY_WORDS)
    phrases = [phrase for table in tables for values in table.values() for phrase in values]
    phrases += [word for words in MOODS.values() for word in words]
    phrases += [word for _, words in TEMPO_WORDS for word in words]
    phrases += [re.sub(r"\{\w+\}|\|.*", " ", template) for template in TEMPLATES]
    phrases += [
        *_ANY_GENRE,
        *_DRUMS,
        *_NO_DRUMS,
        *_ABSENT,
        *METRES,
        "no",
        "without",
        "with",
        "an",
        "duo",
        "duet",
        "synthetic",
    ]
    phrases += [word for words in _TRADITIONS.values() for word in words] + ["acoustic", "electronic"]
    phrases += ["at a tempo", "bpm beats per minute", "around", "in the key of", "major minor", "sharp flat", "and"]
    phrases += [name for tonic in TONICS for name in key_names(tonic, "major")]
    phrases += [str(bpm) for bpm in range(SLOWEST, FASTEST + 1)]
    return tuple(
        sorted({word for phrase in phrases for word in split_words(phrase.replace("[", " ").replace("]", " "))})
    )


def unknown_words(text: str) -> list[str]:
    """The words of a prompt that no caption contains, in order, each once: no model can have learnt them here."""
    known = set(vocabulary())
    return list(dict.fromkeys(word for word in split_words(text) if word not in known))
