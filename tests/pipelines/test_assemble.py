"""Parts become a model that samples like one that was never in parts; what doesn't fit is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tunesmith
from tiny import save_tiny_folder, tiny_musicgen, tiny_tokenizer
from tiny_jukebox import save_tiny_jukebox, tiny_jukebox
from tiny_jukebox import tiny_tokenizer as tiny_jukebox_tokenizer
from tunesmith.codecs.encodec import EncodecModel
from tunesmith.codecs.vqvae import JukeboxVQVAE
from tunesmith.conditioning.tables import join_tables
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.convert.fingerprint import codes_hash
from tunesmith.errors import CheckpointError, IncompatiblePartsError, ModelNotFoundError, TunesmithError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.pipelines.assemble import assemble_jukebox, assemble_musicgen
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel

SONG: dict[str, Any] = {"artist": "salt", "genre": "country", "seconds": 0.1, "seed": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_jukebox(tmp_path_factory.mktemp("jukebox") / "whole")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each part in a folder of its own, as training writes them: vqvae, level0, level1, level2."""
    folder, model = tmp_path_factory.mktemp("parts"), tiny_jukebox()
    model.vqvae.save_pretrained(folder / "vqvae")
    for level, prior in enumerate(model.priors):
        save_prior(prior, folder / f"level{level}", ["v3", "v2", "v2"][level])
    return folder


def save_prior(prior: Any, folder: Path, rules: str, tables: Any = None) -> None:
    prior.save_pretrained(folder)
    lyrics = prior.config.nb_relevant_lyric_tokens
    tokenizer = JukeboxTokenizer(version=[rules], n_genres=[prior.config.max_nb_genres], max_n_lyric_tokens=lyrics)
    tokenizer.tables = tables or tiny_jukebox_tokenizer().tables
    tokenizer.save_pretrained(folder)


def prior_like(**changes: Any) -> JukeboxPrior:
    """An upsampler of the middle level with other settings."""
    config = tiny_jukebox().config.prior_configs[1].to_dict() | changes
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return JukeboxPrior(tunesmith.JukeboxPriorConfig(**config))


@pytest.mark.parametrize("apart", [False, True])
def test_a_jukebox_of_parts_sings_as_the_whole(whole: Path, parts: Path, tmp_path: Path, apart: bool) -> None:
    names = ("vqvae", "level0", "level2", "level1")  # upsamplers in any order
    codec, top, *lower = [parts / name if apart else whole for name in names]
    made = assemble_jukebox(tmp_path / "made", vqvae=codec, prior=top, upsamplers=lower if apart else [whole])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]
    songs = [tunesmith.load(folder).generate("oh so blue", **SONG).samples for folder in (whole, made)]
    assert np.array_equal(*songs)


def test_own_and_released_parts_mix(whole: Path, parts: Path, tmp_path: Path) -> None:
    own = prior_like()
    save_prior(own, tmp_path / "own", "v2")
    made = assemble_jukebox(
        tmp_path / "made", vqvae=whole, prior=parts / "level0", upsamplers=[whole, tmp_path / "own"]
    )
    model = JukeboxModel.from_pretrained(made)
    for level, source in enumerate([tiny_jukebox().priors[0], own, tiny_jukebox().priors[2]]):
        for name, tensor in source.state_dict().items():
            assert torch.equal(model.priors[level].state_dict()[name], tensor), (level, name)


def test_tables_become_one_and_rows_follow_the_names(parts: Path, tmp_path: Path) -> None:
    artists = {"nobody.v2": 0, "queen.v2": 1, "salt.v2": 2, "abba.v2": 3}
    own = prior_like(metadata_dims=[3, 4])
    save_prior(own, tmp_path / "own", "v2", join_tables(artists, {"x.v2": 0, "rock.v2": 1, "polka.v2": 2}))
    lower = [tmp_path / "own", parts / "level2"]
    made = assemble_jukebox(tmp_path / "made", vqvae=parts / "vqvae", prior=parts / "level0", upsamplers=lower)
    tokenizer, model = JukeboxTokenizer.from_pretrained(made), JukeboxModel.from_pretrained(made)
    finest = tiny_jukebox().priors[2]
    assert tokenizer.tables["artist", "v3"].ids == tiny_jukebox_tokenizer().tables["artist", "v3"].ids
    for name, ours, theirs in (("salt", 2, 2), ("abba", 3, 0), ("zac_brown_band", 0, 1)):
        number = tokenizer.tables["artist", "v2"].ids[name]
        new = [prior.metadata_embedding.artist_emb.weight[number] for prior in model.priors[1:]]
        old = own.metadata_embedding.artist_emb.weight[ours], finest.metadata_embedding.artist_emb.weight[theirs]
        assert torch.equal(new[0], old[0]), name
        assert torch.equal(new[1], old[1]), name
    polka = tokenizer.tables["genre", "v2"].ids["polka"]
    rows = model.priors[1].metadata_embedding.bow_genre_emb.weight
    assert torch.equal(rows[polka], own.metadata_embedding.bow_genre_emb.weight[2])


@pytest.mark.parametrize("level", [0, 1])
def test_priors_of_another_codec_are_refused_unless_one_insists(parts: Path, tmp_path: Path, level: int) -> None:
    """By the hash that training leaves in a prior; one without it is taken as it is."""
    own = prior_like() if level else tiny_jukebox().priors[0]
    given: dict[str, Any] = {"vqvae": parts / "vqvae", "prior": parts / "level0"}
    for number, known in enumerate((codes_hash(parts / "vqvae"), "0" * 64)):
        own.config.codes_hash = known
        save_prior(own, tmp_path / f"own{number}", ["v3", "v2"][level])
    for name in ("own0", "own1"):
        place = {"upsamplers": [tmp_path / name, parts / "level2"]}
        given |= place if level else {"prior": tmp_path / name, "upsamplers": [parts / "level1", parts / "level2"]}
        if name == "own1":
            with pytest.raises(IncompatiblePartsError, match=rf"level {level} .*own1.* another VQ-VAE.*--other-codec"):
                assemble_jukebox(tmp_path / "no", **given)
        made = assemble_jukebox(tmp_path / f"made {name}", **given, other_codec=name == "own1")
        kept = JukeboxConfig.from_pretrained(made).prior_configs[level].codes_hash
        assert kept == ("0" * 64 if name == "own1" else codes_hash(parts / "vqvae"))
    assert not (tmp_path / "no").exists()


def test_an_alphabet_of_its_own_travels(parts: Path, tmp_path: Path) -> None:
    top = tiny_jukebox().priors[0]
    save_prior(top, tmp_path / "top", "v3")
    tokenizer = JukeboxTokenizer.from_pretrained(tmp_path / "top")
    tokenizer.alphabet = type(tokenizer.alphabet)({"": 0, "д": 1, "а": 2, " ": 3})
    tokenizer.save_pretrained(tmp_path / "top")
    lower = [parts / "level1", parts / "level2"]
    made = assemble_jukebox(tmp_path / "made", vqvae=parts / "vqvae", prior=tmp_path / "top", upsamplers=lower)
    assert JukeboxTokenizer.from_pretrained(made).alphabet.encode("да да") == [1, 2, 3, 1, 2]


def test_a_layer_that_reads_no_lyrics_is_not_named(parts: Path, tmp_path: Path) -> None:
    top = tiny_jukebox(alignment_layer=1).priors[0]
    save_prior(top, tmp_path / "top", "v3")
    lower = [parts / "level1", parts / "level2"]
    made = assemble_jukebox(tmp_path / "made", vqvae=parts / "vqvae", prior=tmp_path / "top", upsamplers=lower)
    config = JukeboxConfig.from_pretrained(made).prior_configs[0]
    assert (config.alignment_layer, config.alignment_head) == (None, None)


def _change(folder: Path, **changes: Any) -> Path:
    save_prior(prior_like(**changes), folder, "v2")
    return folder


MISFITS: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], str]] = {
    "level missing": (lambda parts, _: {"upsamplers": [parts / "level2"]}, "no upsampler of level 1"),
    "level twice": (lambda parts, _: {"upsamplers": [parts / "level2", parts / "level2"]}, "two upsamplers of level 2"),
    "codes": (
        lambda parts, new: {"upsamplers": [_change(new, music_vocab_size=16), parts / "level2"]},
        "24 codes a level and the prior of level 1 16",
    ),
    "rate": (
        lambda parts, new: {"upsamplers": [_change(new, sampling_rate=2000), parts / "level2"]},
        "1000 samples a second and the prior of level 1 for 2000",
    ),
    "hops": (
        lambda parts, new: {"upsamplers": [_change(new, res_downs_t=[1, 2, 1]), parts / "level2"]},
        "res_downs_t",
    ),
    "an upsampler as the prior": (lambda parts, _: {"prior": parts / "level1"}, "holds no top prior"),
    "a prior as the upsampler": (lambda parts, _: {"upsamplers": [parts / "level0"]}, "holds no upsampler"),
    "a prior as the VQ-VAE": (lambda parts, _: {"vqvae": parts / "level0"}, "holds no VQ-VAE"),
    "another family": (lambda parts, new: {"vqvae": save_tiny_folder(new)}, "no part of a Jukebox.*'musicgen'"),
}


@pytest.mark.parametrize("fault", MISFITS)
def test_misfits_are_a_sentence(parts: Path, tmp_path: Path, fault: str) -> None:
    change, sentence = MISFITS[fault]
    given: dict[str, Any] = {
        "vqvae": parts / "vqvae",
        "prior": parts / "level0",
        "upsamplers": [parts / "level1", parts / "level2"],
    }
    with pytest.raises(IncompatiblePartsError, match=sentence):
        assemble_jukebox(tmp_path / "made", **given | change(parts, tmp_path / "new"))
    assert not [path for path in tmp_path.iterdir() if path.name != "new"]


def test_names_without_a_table_are_refused(parts: Path, tmp_path: Path) -> None:
    nameless = join_tables({}, {})
    save_prior(prior_like(), tmp_path / "own", "v2", nameless)
    with pytest.raises(IncompatiblePartsError, match=r"without names of artists.*--ids"):
        assemble_jukebox(
            tmp_path / "made",
            vqvae=parts / "vqvae",
            prior=parts / "level0",
            upsamplers=[tmp_path / "own", parts / "level2"],
        )


def test_what_is_not_there_is_told(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        assemble_jukebox(tmp_path / "made", vqvae=tmp_path / "no", prior=parts / "level0")


# MusicGen -------------------------------------------------------------------------------------------------------------


def sound(folder: Path) -> np.ndarray:
    samples: np.ndarray = tunesmith.load(folder).generate("a slow rock tune", seconds=0.2, seed=1).samples
    return samples


@pytest.mark.parametrize("channels", [1, 2])
def test_a_musicgen_of_parts_plays_as_the_whole(tmp_path: Path, channels: int) -> None:
    whole = save_tiny_folder(tmp_path / "whole", audio_channels=channels)
    tiny_musicgen(audio_channels=channels).audio_encoder.save_pretrained(tmp_path / "codec")
    made = assemble_musicgen(tmp_path / "made", codec=tmp_path / "codec", lm=whole, text_encoder=whole)
    assert np.array_equal(sound(made), sound(whole))
    assert tunesmith.MusicgenProcessor.from_pretrained(made).feature_extractor.feature_size == channels


def test_another_codec_is_heard(tmp_path: Path) -> None:
    whole = save_tiny_folder(tmp_path / "whole")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        codec = EncodecModel(tiny_musicgen().config.audio_encoder)
    codec.save_pretrained(tmp_path / "codec")
    made = assemble_musicgen(tmp_path / "made", codec=tmp_path / "codec", lm=whole)
    model = tunesmith.MusicgenForConditionalGeneration.from_pretrained(made)
    for name, tensor in codec.state_dict().items():
        assert torch.equal(model.audio_encoder.state_dict()[name], tensor)


def test_a_language_model_of_another_codec_is_refused_unless_one_insists(tmp_path: Path) -> None:
    model = tiny_musicgen()
    model.audio_encoder.save_pretrained(tmp_path / "codec")
    for name, known in (("whole", codes_hash(tmp_path / "codec")), ("other", "0" * 64)):
        save_tiny_folder(tmp_path / name)
        model.config.decoder.codes_hash = known
        model.config.save_pretrained(tmp_path / name)
    assert assemble_musicgen(tmp_path / "made", codec=tmp_path / "codec", lm=tmp_path / "whole").is_dir()
    parts = {"codec": tmp_path / "codec", "lm": tmp_path / "other"}
    with pytest.raises(IncompatiblePartsError, match=r"another codec than that in .*--other-codec"):
        assemble_musicgen(tmp_path / "no", **parts)
    made = assemble_musicgen(tmp_path / "insisted", **parts, other_codec=True)
    assert tunesmith.MusicgenForConditionalGeneration.from_pretrained(made).config.decoder.codes_hash == "0" * 64


def test_a_decoder_alone_reads_states_of_its_width(tmp_path: Path) -> None:
    whole = save_tiny_folder(tmp_path / "whole", hidden_size=24, num_attention_heads=3)
    tunesmith.MusicgenForConditionalGeneration.from_pretrained(whole).decoder.save_pretrained(tmp_path / "lm")
    made = assemble_musicgen(tmp_path / "made", codec=whole, lm=tmp_path / "lm", text_encoder=whole)
    assert np.array_equal(sound(made), sound(whole))


def other_codec(tmp_path: Path) -> Path:
    config = tiny_musicgen().config.audio_encoder.to_dict() | {"codebook_size": 16}
    EncodecModel(tunesmith.EncodecConfig(**config)).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def bare_decoder(tmp_path: Path) -> Path:
    tiny_musicgen().decoder.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def vqvae(tmp_path: Path) -> Path:
    model: JukeboxVQVAE = tiny_jukebox().vqvae
    model.save_pretrained(tmp_path / "vqvae")
    return tmp_path / "vqvae"


MUSICGEN_MISFITS: dict[str, tuple[Callable[[Path], dict[str, Any]], type[TunesmithError], str]] = {
    "codes": (lambda p: {"codec": other_codec(p)}, IncompatiblePartsError, "16 codes in a book and the decoder 32"),
    "no projection": (
        lambda p: {"lm": bare_decoder(p), "text_encoder": p / "whole"},
        IncompatiblePartsError,
        "width 24",
    ),
    "no text": (lambda p: {"lm": bare_decoder(p)}, CheckpointError, "T5"),
    "a VQ-VAE as the codec": (lambda p: {"codec": vqvae(p)}, CheckpointError, "jukebox_vqvae"),
    "a VQ-VAE as the decoder": (
        lambda p: {"lm": vqvae(p), "text_encoder": p / "whole"},
        IncompatiblePartsError,
        "--lm is",
    ),
}


@pytest.mark.parametrize("fault", MUSICGEN_MISFITS)
def test_musicgen_misfits_are_a_sentence(tmp_path: Path, fault: str) -> None:
    change, kind, sentence = MUSICGEN_MISFITS[fault]
    whole = save_tiny_folder(tmp_path / "whole")
    with pytest.raises(kind, match=sentence):
        assemble_musicgen(tmp_path / "made", **{"codec": whole, "lm": whole} | change(tmp_path))
    assert not (tmp_path / "made").exists()


def test_a_text_encoder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    whole = save_tiny_folder(tmp_path / "whole")
    tiny_musicgen().save_pretrained(tmp_path / "mute")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        assemble_musicgen(tmp_path / "made", codec=whole, lm=whole, text_encoder=tmp_path / "mute")
    assert tiny_tokenizer()("rock")["input_ids"]
