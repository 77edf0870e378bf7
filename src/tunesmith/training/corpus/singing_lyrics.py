"""Lines to sing: verses put together from a small vocabulary, and lines of old poems, hymns and rhymes.

Every line has four stresses and eight places for syllables, weak and strong in turn.  It fills them all ("The moon will
greet the stream at night") or leaves the first one empty ("Twinkle twinkle little star"), so that all lines fit all
tunes and have nothing to be told apart by but their words.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tunesmith.training.corpus.split import split_of

PLACES = 8
"""Syllables of a full line."""
OWN = "composed"
"""The source of the verses that are put together here."""
POEMS_SHARE = 0.2
"""How many of the clips sing a line of a poem."""

_WORDS = {
    "thing": "moon star road sea bird tree rose ship king bell wind rain hill lamb boat house lake field cloud child",
    "act": "greet find hold hear love seek keep call",
    "stuff": "gold snow light stone silk song peace joy",
    "look": "bright long soft cold green deep old small",
    "time": "night dawn noon last",
}
"""Words of one syllable by what they can stand for; few and unlike, so that each is heard often enough to be learnt."""

_PATTERNS = (
    "the {thing} will {act} the {thing} at {time}",
    "a {thing} of {stuff} is {look} and {look}",
    "I saw a {thing} be-side the {thing}",
    "my {look} and {look} and on-ly {thing}",
    "we {act} the {thing} with {stuff} and {stuff}",
    "and {stuff} shall {act} a {look} {thing} too",
    "O {act} the {thing} that {act}s the {thing}",
    "for {stuff} and {stuff} the {thing} is {look}",
)


@dataclass(frozen=True)
class Poem:
    """Lines of a work in the public domain, syllables of a word joined by hyphens."""

    title: str
    author: str
    year: int
    lines: tuple[str, ...]


def _poem(text: str) -> Poem:
    head, *lines = text.splitlines()
    title, author, year = head.split(" | ")
    return Poem(title, author, int(year), tuple(lines))


POEMS = tuple(
    _poem(text)
    for text in """\
The Star | Jane Taylor | 1806
twin-kle twin-kle lit-tle star
how I won-der what you are
up a-bove the world so high
like a dia-mond in the sky

Old Hundredth | William Kethe | 1561
all peo-ple that on earth do dwell
sing to the Lord with cheer-ful voice
him serve with mirth his praise forth tell
come ye be-fore him and re-joice

Doxology | Thomas Ken | 1674
praise God from whom all bless-ings flow
praise him all crea-tures here be-low

When I Survey the Wondrous Cross | Isaac Watts | 1707
when I sur-vey the won-drous cross
on which the prince of glo-ry died
my rich-est gain I count but loss
and pour con-tempt on all my pride

Joy to the World | Isaac Watts | 1719
joy to the world the Lord is come

Amazing Grace | John Newton | 1779
a-maz-ing grace how sweet the sound
I once was lost but now am found
how pre-cious did that grace ap-pear
through ma-ny dan-gers toils and snares

The Tyger | William Blake | 1794
ty-ger ty-ger burn-ing bright
in the for-ests of the night
what im-mor-tal hand or eye
could frame thy fear-ful sym-me-try

I Wandered Lonely as a Cloud | William Wordsworth | 1807
I wan-dered lone-ly as a cloud
that floats on high o'er vales and hills
when all at once I saw a crowd
a host of gold-en daf-fo-dils

Mary's Lamb | Sarah Josepha Hale | 1830
ma-ry had a lit-tle lamb

Jack and Jill | traditional | 1765
jack and jill went up the hill

London Bridge | traditional | 1744
lon-don bridge is fall-ing down

Hark! The Herald Angels Sing | Charles Wesley | 1739
hark the her-ald an-gels sing
glo-ry to the new-born king
peace on earth and mer-cy mild
God and sin-ners rec-on-ciled

While Shepherds Watched Their Flocks | Nahum Tate | 1700
while shep-herds watched their flocks by night
the an-gel of the Lord came down

Bed in Summer | Robert Louis Stevenson | 1885
in win-ter I get up at night
and dress by yel-low can-dle light
in sum-mer quite the oth-er way
I have to go to bed by day

She Walks in Beauty | Lord Byron | 1814
she walks in beau-ty like the night
of cloud-less climes and star-ry skies
and all that's best of dark and bright
meet in her as-pect and her eyes

The Passionate Shepherd to His Love | Christopher Marlowe | 1599
come live with me and be my love
and we will all the plea-sures prove
that val-leys groves and hills and fields

Song: to Celia | Ben Jonson | 1616
drink to me on-ly with thine eyes
or leave a kiss but in the cup

Because I Could Not Stop for Death | Emily Dickinson | 1890
be-cause I could not stop for death
the car-riage held but just our-selves

Trees | Joyce Kilmer | 1913
I think that I shall nev-er see
a po-em love-ly as a tree
""".rstrip().split("\n\n")
)
"""Each with its title, author and year."""


@dataclass(frozen=True)
class Line:
    """Something to sing."""

    source: str
    """`composed`, or who wrote it and when."""
    work: str
    """What splits go by: the title of a poem, or a composed verse itself."""
    words: tuple[tuple[str, ...], ...]
    """Words as syllables."""

    @property
    def text(self) -> str:
        """Without the hyphens."""
        return " ".join("".join(word) for word in self.words)

    @property
    def syllables(self) -> int:
        """How many; 8, or 7 where the line begins with a stress."""
        return sum(len(word) for word in self.words)


def parse(text: str, source: str, work: str) -> Line:
    """A line from its hyphenated text."""
    return Line(source, work, tuple(tuple(word.split("-")) for word in text.split()))


@cache
def poem_lines(split: str) -> tuple[Line, ...]:
    """All lines of the poems of a split."""
    return tuple(
        parse(line, f"{poem.author}, {poem.year}", poem.title)
        for poem in POEMS
        if split_of(f"poem / {poem.title}") == split
        for line in poem.lines
    )


def draw_verse(rng: random.Random, split: str) -> Line:
    """A composed verse of a split; no word but the small ones is in it twice."""
    while True:
        pattern = rng.choice(_PATTERNS)
        used = [rng.sample(words.split(), pattern.count(f"{{{kind}}}")) for kind, words in _WORDS.items()]
        chosen = {kind: iter(words) for kind, words in zip(_WORDS, used, strict=True)}
        text = " ".join(_filled(word, chosen) for word in pattern.split())
        if split_of(f"verse / {text}") == split:
            return parse(text, OWN, text)


def _filled(word: str, chosen: dict[str, Iterator[str]]) -> str:
    before, brace, rest = word.partition("{")
    kind, _, after = rest.partition("}")
    return f"{before}{next(chosen[kind])}{after}" if brace else word


def draw_line(rng: random.Random, split: str) -> Line:
    """A line of a split: a composed verse, or now and then of a poem."""
    poems = poem_lines(split)
    return rng.choice(poems) if poems and rng.random() < POEMS_SHARE else draw_verse(rng, split)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that can be sung, in a fixed order."""
    composed = {word for words in _WORDS.values() for word in words.split()}
    composed |= {f"{word}s" for word in _WORDS["act"].split()}
    composed |= {"".join(w.split("-")) for pattern in _PATTERNS for w in pattern.split() if "{" not in w}
    poems = {"".join(word.split("-")) for poem in POEMS for line in poem.lines for word in line.split()}
    return tuple(sorted(composed | poems))
