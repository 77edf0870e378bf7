import pytest

from tunesmith.convert.settings import Settings
from tunesmith.errors import CheckpointError

TEXT = """
sample_rate: 32000
channels: 1
encodec: {sample_rate: '${sample_rate}', causal: false, name: 'codec_${channels}ch', twice: '${encodec.sample_rate}'}
seanet:
  ratios: [8, '${channels}', '${.0}']
  causal: ${ encodec.causal }
  inner:
    sibling: ${.other}
    other: 3
    aunt: ${..causal}
    parts: ${seanet.ratios[0]}-${seanet.ratios.1}
linked: ${seanet.inner}
nested: ${encodec.${which}}
which: name
dora: /tmp/audiocraft_${oc.env:USER}
home: ${oc.env:HOME}
lost: ${nowhere.at.all}
unset: ???
nothing: null
round: ${about}
about: ${round}
"""


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(TEXT, "state_dict.bin")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sample_rate", 32000),
        ("encodec.sample_rate", 32000),
        ("encodec.twice", 32000),
        ("encodec.name", "codec_1ch"),
        ("seanet.causal", False),
        ("seanet.ratios", [8, 1, 8]),
        ("seanet.ratios.0", 8),
        ("seanet.inner.sibling", 3),
        ("seanet.inner.aunt", False),
        ("seanet.inner.parts", "8-1"),
        ("linked.other", 3),
        ("linked.aunt", False),
        ("nested", "codec_1ch"),
        ("nothing", None),
    ],
)
def test_references_are_followed(settings: Settings, path: str, value: object):
    assert settings.get(path, "absent") == value


@pytest.mark.parametrize(
    "path", ["seanet.missing", "sample_rate.deeper", "seanet.ratios.7", "dora", "home", "lost", "unset"]
)
def test_what_isnt_there_is_the_default(settings: Settings, path: str):
    assert settings.get(path, "default") == "default"


def test_a_circle_is_refused(settings: Settings):
    with pytest.raises(CheckpointError, match=r"state_dict\.bin refer to themselves"):
        settings.get("round")


def test_needed_values_have_their_type(settings: Settings):
    assert settings.need("sample_rate", float) == 32000.0
    assert settings.need("seanet.causal", bool) is False
    with pytest.raises(CheckpointError, match="no usable value for 'lost'; a int is needed"):
        settings.need("lost", int)
    with pytest.raises(CheckpointError, match=r"False for 'seanet\.causal'; a int"):
        settings.need("seanet.causal", int)


@pytest.mark.parametrize(
    "text", ["a: [1", "- a list", "just words", "", "!!python/object/apply:os.getcwd []", "a: &a [*a"]
)
def test_other_texts_are_refused(text: str):
    with pytest.raises(CheckpointError, match="the file is damaged"):
        Settings(text, "state_dict.bin")
