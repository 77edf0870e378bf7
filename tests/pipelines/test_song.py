"""`tunesmith.load(...).generate(...)`: exact lengths, seeds, batches, audio prompts, recipes, warnings, refusals."""

import itertools
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import tunesmith
from tiny import save_tiny_folder
from tunesmith import hub, machine
from tunesmith.audio import Clip
from tunesmith.errors import CheckpointError, ModelNotFoundError, RequestError
from tunesmith.events import AudioChunk, Finished, LevelDone, Progress
from tunesmith.nn import engine, lowbit
from tunesmith.pipelines import decoding
from tunesmith.pipelines import song as module
from tunesmith.pipelines.jukebox_song import JukeboxPipeline
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.song import load
from tunesmith.requests import MusicgenRequest, Sampling

TEXTS = ("a happy jig", "slow sad blues for piano in minor with no drums", "rock", "the loud bassy heavy funk track")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, quantize="none")


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    return load(save_tiny_folder(tmp_path_factory.mktemp("stereo"), audio_channels=2), quantize="none")


def noise(seconds, rate=2000, channels=1, seed=0):
    samples = np.random.default_rng(seed).normal(size=(channels, round(seconds * rate))) * 0.1
    return Clip(samples.astype(np.float32), rate)


def sampled(pipeline, request, clips=None):
    """The codes of each song [1, K, S], and the clips that are made of them."""
    handles = []
    original = pipeline._open

    def opened(songs):
        batch, total = original(songs)
        submit = batch.submit
        batch.submit = lambda piece: handles.append(submit(piece)) or handles[-1]
        return batch, total

    pipeline._open = opened
    try:
        *_, finished = pipeline.stream(request, clips)
    finally:
        del pipeline._open
    return [handle.codes for handle in handles], finished.result


# Results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.1, 0.333, 1, 1.2345])
def test_lengths_are_exact(model, seconds):
    clip = model.generate("a happy jig", seconds=seconds, seed=1)
    assert clip.rate == 2000
    assert clip.samples.shape == (1, round(seconds * 2000))


def test_one_song_is_a_clip_and_several_are_a_list(model):
    assert isinstance(model.generate("a jig", seconds=0.1), Clip)
    assert isinstance(model.generate(seconds=0.1), Clip)
    assert len(model.generate(["a jig"], seconds=0.1)) == 1
    assert len(model.generate("a jig", seconds=0.1, takes=2)) == 2
    assert len(model.generate(["a jig", "a reel"], seconds=0.1, takes=2)) == 4
    assert len(model.generate(audio_prompt=[noise(0.1), noise(0.2)], seconds=0.5)) == 2


def test_the_same_seed_makes_the_same_music(model):
    first, again, other = (model.generate("a jig", seconds=0.5, seed=s).samples for s in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    fresh = {model.generate("a jig", seconds=0.2).recipe["request"]["seed"] for _ in range(3)}
    assert len(fresh) == 3


def test_the_global_generator_is_left_alone(model):
    before = torch.get_rng_state()
    model.generate("a jig", seconds=0.1, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_song_is_the_same_alone_and_in_a_batch(model, size):
    texts = tuple(itertools.islice(itertools.cycle(TEXTS), size))
    together, clips = sampled(model, MusicgenRequest(prompt=texts, seconds=1, seed=7))
    for i, text in enumerate(texts):
        [alone], [clip] = sampled(model, MusicgenRequest(prompt=(text,), seconds=1, seed=7 + i))
        assert torch.equal(together[i], alone)
        assert np.array_equal(clips[i].samples, clip.samples)


def test_audio_prompts_of_any_length_are_the_same_alone_and_in_a_batch(model):
    names = tuple(Path(str(i)) for i in range(3))
    clips = {name: noise(0.2 + 0.31 * i, seed=i) for i, name in enumerate(names)}
    together, _ = sampled(model, MusicgenRequest(prompt=TEXTS[:3], audio_prompt=names, seconds=1.5, seed=7), clips)
    for i, name in enumerate(names):
        request = MusicgenRequest(prompt=TEXTS[i : i + 1], audio_prompt=(name,), seconds=1.5, seed=7 + i)
        [alone], _ = sampled(model, request, clips)
        assert torch.equal(together[i], alone)
        frames = clips[name].samples.shape[1] // 40
        prompt = torch.from_numpy(clips[name].samples[None, :, : frames * 40])
        assert torch.equal(alone[:, :frames], model.model.encode_prompt(prompt)[0])


def test_large_requests_are_split_without_changing_the_codes(model, monkeypatch):
    request = MusicgenRequest(prompt=("a jig",), takes=5, seconds=0.4, seed=1)
    whole, _ = sampled(model, request)
    monkeypatch.setattr(module, "BATCH", 2)
    events = list(model.stream(request))
    assert [event.songs for event in events if isinstance(event, LevelDone)] == [(0, 1), (2, 3), (4,)]
    split, _ = sampled(model, request)
    assert all(torch.equal(a, b) for a, b in zip(whole, split, strict=True))
    monkeypatch.setattr(module, "CACHE_BYTES", 1)
    assert sum(isinstance(event, LevelDone) for event in model.stream(request)) == 5


@pytest.mark.parametrize("moment", [0, 7])
def test_a_gpu_without_enough_memory_for_all_songs_makes_fewer_at_a_time(model, monkeypatch, caplog, moment):
    """At the start, or in the middle: the songs stay what they are, each is told once, and a line says so."""
    request, lm = MusicgenRequest(prompt=("a jig", "a reel"), takes=3, seconds=0.4, seed=1), model.model.decoder
    wanted = [clip.samples for clip in list(model.stream(request))[-1].result]
    original = lm.slots

    def slots(count, *rest):
        if not moment and count > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made, calls = original(count, *rest), itertools.count()
        feed = made.feed

        def short(columns):
            if moment and next(calls) == moment and count > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return feed(columns)

        made.feed = short
        return made

    monkeypatch.setattr(lm, "slots", slots)
    *events, last = model.stream(request)
    assert sorted(n for event in events if isinstance(event, LevelDone) for n in event.songs) == [*range(6)]
    assert all(event.done <= event.total for event in events if isinstance(event, Progress))
    for clip, samples in zip(last.result, wanted, strict=True):
        np.testing.assert_allclose(clip.samples, samples, atol=1e-6)
    assert "going on with one song at a time" in caplog.text


def test_a_gpu_without_enough_memory_for_one_song(model, monkeypatch):
    def slots(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.model.decoder, "slots", slots)
    with pytest.raises(RequestError, match="Not even one song fits into the GPU's memory; ask for fewer seconds"):
        model.generate("a jig", seconds=0.2)


def test_stereo(stereo):
    clip = stereo.generate("a jig", seconds=0.5, seed=1, audio_prompt=noise(0.2))
    assert clip.samples.shape == (2, 1000)
    assert not np.array_equal(clip.samples[0], clip.samples[1])


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 5}, {"top_k": 0, "top_p": 0.5}, {"guidance": 1}])
def test_settings_reach_the_sampler(model, settings):
    plain, [clip] = sampled(model, MusicgenRequest(prompt=("a jig",), seconds=1, seed=1))
    changed, _ = sampled(model, MusicgenRequest(prompt=("a jig",), seconds=1, seed=1, sampling=Sampling(**settings)))
    assert not torch.equal(plain[0], changed[0])
    again = model.generate("a jig", seconds=1, seed=1, **settings)
    assert not np.array_equal(clip.samples, again.samples)


def test_the_text_matters_and_its_absence_too(model):
    codes = [sampled(model, MusicgenRequest(prompt=p, seconds=1, seed=1))[0][0] for p in (("a jig",), ("rock",), ())]
    assert not torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_half_precision_applies_to_the_language_model_alone(folder):
    pipeline = load(folder, dtype="bfloat16")
    assert pipeline.model.decoder.dtype == torch.bfloat16
    assert {p.dtype for p in pipeline.model.audio_encoder.parameters()} == {torch.float32}
    clip = pipeline.generate("a jig", seconds=0.3, seed=1, audio_prompt=noise(0.1))
    assert clip.recipe["dtype"] == "bfloat16"
    assert np.isfinite(clip.samples).all()


def test_half_precision_files_are_computed_in_float32(tmp_path):
    pipeline = load(save_tiny_folder(tmp_path, dtype=torch.float16), quantize="none")
    assert {p.dtype for p in pipeline.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", hub.bundled())
def test_bundled_models_make_music(name):
    model = load(name)
    if isinstance(model, JukeboxPipeline):
        clip = model.generate(artist="Ada Finch", genre="hymn", lyrics="the moon will find the ship", seconds=1, seed=7)
    else:
        clip = model.generate("a lively jig for violin with drums", seconds=1, seed=7)
    assert clip.recipe["model"] == name
    assert clip.duration == pytest.approx(1, abs=0.01)  # a Jukebox's songs are whole codes of the top level
    assert clip.rms > -60


# Audio prompts --------------------------------------------------------------------------------------------------------


def test_the_result_begins_with_the_audio_prompt_as_the_codec_renders_it(model):
    prompt = noise(0.5)
    codes, [clip] = sampled(model, MusicgenRequest(audio_prompt=(Path("a"),), seconds=1, seed=1), {Path("a"): prompt})
    assert torch.equal(codes[0][:, :25], model.model.encode_prompt(torch.from_numpy(prompt.samples)[None])[0])
    assert clip.duration == 1


def test_audio_prompts_may_be_files_of_any_kind(model, tmp_path):
    for name, rate, channels in (("a.flac", 44100, 2), ("b.wav", 8000, 1), ("c.ogg", 16000, 2)):
        path = noise(0.5, rate, channels).save(tmp_path / name)
        for given in (path, str(path), Clip.read(path)):
            clip = model.generate("a jig", audio_prompt=given, seconds=1, seed=1)
            assert clip.duration == 1


def test_continuing_a_result(model):
    first = model.generate("a jig", seconds=1, seed=1)
    longer = model.generate("a jig", audio_prompt=first, prompt_seconds=0.5, seconds=1.5, seed=1)
    assert longer.duration == 1.5


# Events ---------------------------------------------------------------------------------------------------------------


def test_the_stream_ends_with_what_it_promised(model):
    events = list(model.stream(MusicgenRequest(prompt=("a jig", "rock"), seconds=0.5, seed=1)))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, 29))  # 25 frames and the delay of 3
    assert {event.total for event in progress} == {28}
    assert progress[-1].seconds_left == 0
    assert [event.songs for event in events if isinstance(event, LevelDone)] == [(0, 1)]
    assert isinstance(events[-1], Finished)
    check_chunks(events)


def check_chunks(events):
    """The chunks of each song follow one another, and are the clip."""
    for song, clip in enumerate(events[-1].result):
        chunks = [event for event in events if isinstance(event, AudioChunk) and event.song == song]
        ends = [chunk.start + chunk.samples.shape[1] / chunk.rate for chunk in chunks]
        assert [chunk.start for chunk in chunks] == pytest.approx([0, *ends[:-1]])
        assert np.array_equal(np.concatenate([chunk.samples for chunk in chunks], axis=1), clip.samples)


@pytest.mark.parametrize("spare", [0, 1])
def test_audio_comes_while_the_language_model_goes_on(model, monkeypatch, spare):
    monkeypatch.setattr(decoding, "spare_processors", lambda: spare)
    request = MusicgenRequest(prompt=("a jig", "rock"), seconds=3.1, seed=1)
    events = list(model.stream(request))
    check_chunks(events)
    first = next(i for i, event in enumerate(events) if isinstance(event, AudioChunk))
    assert first < len(events) - 5
    assert spare or isinstance(events[first + 4], Progress)
    codes, clips = sampled(model, request)
    for song, clip in zip(codes, clips, strict=True):
        whole = model.model.decode_audio(song[None])[0, :, :6200].numpy()
        np.testing.assert_allclose(clip.samples, whole, rtol=0, atol=1e-6)


def test_codecs_that_cannot_be_streamed_decode_whole_songs(tmp_path):
    import json

    folder = save_tiny_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["audio_encoder"]["pad_mode"] = "circular"
    (folder / "config.json").write_text(json.dumps(config))
    events = list(load(folder).stream(MusicgenRequest(prompt=("a jig",), seconds=2.5, seed=1)))
    assert sum(isinstance(event, AudioChunk) for event in events) == 1
    check_chunks(events)


def test_songs_with_prompts_of_different_lengths_join_and_leave(model, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    names = tuple(Path(str(i)) for i in range(4))
    clips = {name: noise(0.2 + 0.35 * i, seed=i) for i, name in enumerate(names)}
    request = MusicgenRequest(prompt=TEXTS, audio_prompt=names, seconds=1.5, seed=7)
    events = list(model.stream(request, clips))
    assert [event.songs for event in events if isinstance(event, LevelDone)] == [(1,), (0,), (2, 3)]
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total
    codes, _ = sampled(model, request, clips)
    for i, name in enumerate(names):
        alone, _ = sampled(
            model, MusicgenRequest(prompt=TEXTS[i : i + 1], audio_prompt=(name,), seconds=1.5, seed=7 + i), clips
        )
        assert torch.equal(codes[i], alone[0])


def test_a_stream_can_be_left(model):
    stream = model.stream(MusicgenRequest(seconds=30))
    assert isinstance(next(stream), Progress)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


# Recipes --------------------------------------------------------------------------------------------------------------


def test_the_recipe_says_all_and_repeats_the_song(model, folder, tmp_path):
    clips = model.generate(["a jig", "rock"], seconds=0.5, seed=5, top_k=20, guidance=2)
    recipe = Clip.read(clips[1].save(tmp_path / "a.flac")).recipe
    assert recipe == {
        "tunesmith": tunesmith.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": str(folder),
        "model_hash": hub.weights_hash(folder),
        "device": "cpu",
        "dtype": "float32",
        "audio_prompt_hash": None,
        "request": {
            "prompt": ["rock"],
            "audio_prompt": [],
            "prompt_seconds": None,
            "seconds": 0.5,
            "seed": 6,
            "takes": 1,
            "sampling": {"temperature": 1.0, "top_k": 20, "top_p": 0.0, "guidance": 2.0},
        },
    }
    *_, finished = model.stream(MusicgenRequest.from_dict(recipe["request"]))
    assert np.array_equal(finished.result[0].samples, clips[1].samples)


# Text -----------------------------------------------------------------------------------------------------------------


def test_unknown_words_are_named_once(model):
    with pytest.warns(UserWarning, match="no words for '🎵', 'Smörgås', '日本'") as caught:
        model.generate("a happy 🎵 jig 🎵 of Smörgås, 日本.", seconds=0.1)
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:The model has no words")
@pytest.mark.parametrize("text", ["x" * 2000, "🎵" * 10_000, "שיר שמח", "a\0b", "nbsp\u00a0 \u200d", "a " * 1000])
def test_every_text_works(model, text):
    assert model.generate(text, seconds=0.1, seed=1).duration == 0.1


def test_texts_of_ten_thousand_characters_work_or_are_a_sentence(model):
    assert model.generate("slow sad piano " * 667, seconds=0.1).duration == 0.1
    with pytest.raises(RequestError, match="tokens; at most 2048"):
        model.generate("~" * 10_000, seconds=0.1)


def test_the_tokenizer_is_needed_only_for_text(folder, tmp_path):
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    for file in bare.glob("*token*"):
        file.unlink()
    pipeline = load(bare)
    assert pipeline.generate(seconds=0.1, audio_prompt=noise(0.05)).duration == 0.1
    with pytest.raises(CheckpointError, match="no tokenizer"):
        pipeline.generate("a jig", seconds=0.1)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_nonsense_is_refused(model, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for settings in (
        {"prompt": ""},
        {"prompt": []},
        {"prompt": 3},
        {"seconds": 0},
        {"seconds": -1},
        {"seconds": 1e9},
        {"seconds": float("nan")},
        {"seconds": 31},
        {"takes": 0},
        {"seed": -1},
        {"guidance": 0},
        {"audio_prompt": 3},
        {"audio_prompt": noise(20), "seconds": 10},
        {"prompt": ["a", "b"], "audio_prompt": [noise(1)] * 3},
    ):
        with pytest.raises(RequestError):
            model.generate(**settings)


def test_unknown_names_devices_and_dtypes(folder):
    with pytest.raises(ModelNotFoundError, match="did you mean 'small'"):
        load("smal")
    with pytest.raises(RequestError, match="no device 'gpu'"):
        load(folder, device="gpu")
    with pytest.raises(RequestError, match="no device 'cuda:99'"):
        load(folder, device="cuda:99")
    with pytest.raises(RequestError, match="no dtype 'int8'"):
        load(folder, dtype="int8")
    assert load(folder, device="cpu", dtype=torch.float32).model.device.type == "cpu"
    assert load(folder, device=torch.device("cpu")).model.device.type == "cpu"
    with pytest.raises(RequestError, match="no device 'meta'"):
        load(folder, device=torch.device("meta"))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def test_pickled_weights_load_but_malicious_ones_run_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    weights = bare / "model.safetensors"
    from safetensors.torch import load_file

    tensors = load_file(weights)
    weights.unlink()
    pickled = bare / "pytorch_model.bin"
    torch.save(tensors, pickled)
    assert load(bare).generate(seconds=0.1).duration == 0.1
    for evil in (Evil(), {"a": Evil()}):
        torch.save(evil, pickled)
        with pytest.raises(CheckpointError, match="no code in it is"):
            load(bare)
        pickled.write_bytes(pickle.dumps(evil))
        with pytest.raises(CheckpointError):
            load(bare)
    pickled.write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError):
        load(bare)
    assert not Path("pwned").exists()


def test_weights_of_another_shape_are_named(folder, tmp_path):
    import json

    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text())
    config["decoder"]["num_hidden_layers"] = 3
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks decoder"):
        load(broken)
    config["decoder"]["num_hidden_layers"] = "three"
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="describes no model"):
        load(broken)


# Few bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:tunesmith was installed without its CPU kernels")
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_model_sings_and_its_recipe_says_so(folder, model, quantize):
    small = load(folder, quantize=quantize)
    texts = TEXTS[:3]
    together, clips = sampled(small, MusicgenRequest(prompt=texts, seconds=0.5, seed=7))
    exact, _ = sampled(model, MusicgenRequest(prompt=texts, seconds=0.5, seed=7))
    assert any(not torch.equal(a, b) for a, b in zip(together, exact, strict=True))
    for i, text in enumerate(texts):
        [alone], _ = sampled(small, MusicgenRequest(prompt=(text,), seconds=0.5, seed=7 + i))
        assert torch.equal(alone, together[i])
    assert {clip.recipe["quantize"] for clip in clips} == {quantize}
    with pytest.raises(RequestError, match="can't be saved"):
        small.model.save_pretrained(folder / "quantised")


@pytest.mark.parametrize("settings", [{"quantize": "none"}, {"dtype": "float32"}])
def test_who_asks_for_it_gets_an_exact_model(folder, settings):
    clip = load(folder, **settings).generate("rock", seconds=0.2, seed=1)
    assert "quantize" not in clip.recipe
    exact = MusicgenForConditionalGeneration.from_pretrained(folder).eval()
    exact.audio_encoder.fold_weight_norm()
    ids = load(folder).tokenize("rock")
    audio = exact.generate(ids, seeds=[1], max_new_tokens=13, top_k=250)
    np.testing.assert_allclose(clip.samples, audio[0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")
def test_eight_bits_are_the_default_of_a_cpu(folder):
    clip = load(folder, "cpu").generate("rock", seconds=0.2, seed=1)
    assert clip.recipe["quantize"] == "int8"
    assert np.array_equal(clip.samples, load(folder, quantize="int8").generate("rock", seconds=0.2, seed=1).samples)
    assert lowbit.is_quantized(load(folder).model)
    assert not lowbit.is_quantized(MusicgenForConditionalGeneration.from_pretrained(folder))
    assert load(folder, dtype="bfloat16").quantize is None


def test_without_kernels_models_stay_exact_and_one_line_says_so(folder, monkeypatch, caplog):
    monkeypatch.setattr(engine, "library", lambda: None)
    module._tell_exact.cache_clear()
    clips = [load(folder).generate("rock", seconds=0.2, seed=1) for _ in range(2)]
    assert "quantize" not in clips[0].recipe
    assert [record.message for record in caplog.records if "kernels" in record.message] == [
        "tunesmith was installed without its CPU kernels (they need a C++ compiler): models stay at float32, and slow."
    ]


def test_unknown_quantizations_are_refused(folder):
    with pytest.raises(RequestError, match="There is no quantization 'int3'; use int8, int4 or none"):
        load(folder, quantize="int3")


def test_few_bits_are_the_same_from_a_file_of_half_precision(tmp_path):
    """Quantised as the file has them; the rest of the decoder is float32 all the same."""
    half = load(save_tiny_folder(tmp_path, dtype=torch.float16), quantize="int8")
    assert lowbit.is_quantized(half.model)
    assert half.model.dtype == half.model.text_encoder.dtype == half.model.audio_encoder.dtype == torch.float32
    exact = load(tmp_path, quantize="none")
    lowbit.quantize_(exact.model.decoder.model.decoder.layers, "int8", kernels=engine.library() is not None)
    exact.model.audio_encoder.few_bits = True
    first, second = (pipeline.generate("rock", seconds=0.2, seed=1).samples for pipeline in (half, exact))
    assert np.array_equal(first, second)


def test_a_dtype_and_few_bits(folder):
    both = load(folder, dtype="float16", quantize="int8").model
    assert lowbit.is_quantized(both)
    assert both.dtype == torch.float16


@pytest.mark.parametrize(("quantize", "advice"), [("none", "fits, or quantize='int8'."), ("int8", "model fits.")])
def test_little_memory_is_told(folder, monkeypatch, caplog, quantize, advice):
    monkeypatch.setattr(machine, "free_memory", lambda _: 1e4)
    load(folder, quantize=quantize)
    assert f"{folder} takes about" in caplog.text
    assert "GB are free" in caplog.text
    assert advice in caplog.text


def test_enough_memory_is_not_worth_a_word(folder, monkeypatch, caplog):
    for free in (None, 10**9):
        monkeypatch.setattr(machine, "free_memory", lambda _, free=free: free)
        load(folder)
    assert not caplog.text


def test_without_kernels_few_bits_go_through_torch(folder, monkeypatch):
    monkeypatch.setattr(engine, "library", lambda: None)
    with pytest.warns(UserWarning, match="installed without its CPU kernels"):
        small = load(folder, quantize="int8")
    clip = small.generate("rock", seconds=0.2, seed=1)
    assert clip.recipe["quantize"] == "int8"
    assert clip.duration == 0.2
