"""Levels and windows: a run can be stopped anywhere, songs don't feel their batch-mates, nonsense is refused first."""

import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_jukebox import CODES, HOPS, tiny_config, tiny_jukebox, tiny_labels
from tunesmith.errors import RequestError
from tunesmith.events import Event, Finished, LevelDone, Progress, WindowDone
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.pipelines.jukebox import JukeboxModel
from tunesmith.pipelines.levels import Level, Options, Plan, State, by_level_seeds, level_name

LENGTH = 160
SONGS = ["la la la la la", "oh"]
Codes = list[Tensor]


@pytest.fixture(scope="module")
def model() -> JukeboxModel:
    return tiny_jukebox()


@pytest.fixture(scope="module")
def whole(model: JukeboxModel) -> Codes:
    return model.ancestral_sample(tiny_labels(SONGS), sample_length=LENGTH, seeds=[3, 4])


def same(codes: Codes, others: Codes) -> bool:
    return all(map(torch.equal, codes, others))


def begin(model: JukeboxModel, **options: Any) -> tuple[Plan, State]:
    plan = model.plan(tiny_labels(SONGS), **{"sample_length": LENGTH, "max_batch_size": [1, 2, 2], **options})
    return plan, State.of(plan, seeds=[3, 4])


def reloaded(state: State) -> State:
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    return State.from_dict(torch.load(file, weights_only=True))


# ------------------------------------------------------------------------------------------------- events and resuming


def test_events_tell_all(model: JukeboxModel, whole: Codes) -> None:
    plan, state = begin(model)
    events: list[Event] = list(model.iterate(plan, state))
    assert [event.level for event in events if isinstance(event, LevelDone)] == [0, 1, 2]
    windows = [event for event in events if isinstance(event, WindowDone)]
    assert [(w.start, w.end, w.songs) for w in windows if w.level == 0][:2] == [(0, 16, (0,)), (0, 16, (1,))]
    for level, hop in enumerate(HOPS):
        ends = [event.end for event in windows if event.level == level]
        assert ends == sorted(ends)
        assert ends[-1] == LENGTH // hop
    steps = [event for event in events if isinstance(event, Progress) and event.stage == "middle"]
    assert [step.done for step in steps] == list(range(1, LENGTH // 4 + 1))
    assert {step.total for step in steps} == {LENGTH // 4}
    assert isinstance(events[-1], Finished)
    assert same(events[-1].result, whole)


@pytest.mark.parametrize("seed", range(4))
def test_stopped_anywhere_and_gone_on_with(model: JukeboxModel, whole: Codes, seed: int) -> None:
    plan, state = begin(model)
    stops = torch.randint(1, 150, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    for stop in stops:
        run = model.iterate(plan, state)
        for _ in islice(run, stop):
            pass
        state = reloaded(state)
    *_, finished = model.iterate(plan, state)
    assert same(finished.result, whole)


def test_a_generator_of_another_kind_of_device_is_refused(model: JukeboxModel) -> None:
    plan, state = begin(model)
    next(event for event in model.iterate(plan, state) if isinstance(event, WindowDone))
    state.generators[0][0] = torch.zeros(16, dtype=torch.uint8)  # as CUDA's are
    with pytest.raises(RequestError, match="another kind of device than 'cpu'"):
        list(model.iterate(plan, state))


def test_the_state_is_whole_at_each_window(model: JukeboxModel, whole: Codes) -> None:
    plan, state = begin(model, sample_levels=[0, 1])
    for event in model.iterate(plan, state):
        if isinstance(event, WindowDone):
            for song in event.songs:
                assert torch.equal(state.codes[event.level][song], whole[event.level][song, : event.end])
            assert all(len(state.generators[event.level][song]) for song in event.songs)
    assert not any(len(generator) for generator in state.generators[2])
    *_, finished = model.iterate(model.plan(tiny_labels(SONGS), sample_length=LENGTH), reloaded(state))
    assert same(finished.result, whole)


def test_a_finished_run_does_nothing_again(model: JukeboxModel) -> None:
    plan, state = begin(model, sample_levels=[0])
    list(model.iterate(plan, state))
    again = list(model.iterate(plan, state))
    assert [type(event) for event in again] == [LevelDone, Finished]


def test_picked_songs_go_on_as_before(model: JukeboxModel, whole: Codes) -> None:
    plan, state = begin(model, sample_levels=[0])
    list(model.iterate(plan, state))
    one = model.plan([rows[1:] for rows in tiny_labels(SONGS)], sample_length=LENGTH)
    *_, finished = model.iterate(one, state.pick([1]))
    assert same(finished.result, [level[1:] for level in whole])


# ----------------------------------------------------------------------------------------------------- batch and seeds


@pytest.mark.parametrize("batch", [1, [2, 1, 2]])
def test_songs_do_not_feel_their_batch_mates(model: JukeboxModel, whole: Codes, batch: Any) -> None:
    split = model.ancestral_sample(tiny_labels(SONGS), sample_length=LENGTH, seeds=[3, 4], max_batch_size=batch)
    assert same(split, whole)
    alone = model.ancestral_sample(tiny_labels(SONGS[0]), sample_length=LENGTH, seeds=[3])
    assert same(alone, [level[:1] for level in whole])


def test_the_batch_may_change_in_mid_level(model: JukeboxModel, whole: Codes) -> None:
    plan, state = begin(model)
    for event in model.iterate(plan, state):
        if isinstance(event, WindowDone) and event.songs == (0,):
            break  # the first song is a window ahead
    wider, _ = begin(model, max_batch_size=2)
    *_, finished = model.iterate(wider, state)
    assert same(finished.result, whole)


@pytest.mark.parametrize("moment", [0, 1])
def test_a_gpu_without_enough_memory_for_all_songs_makes_fewer_at_a_time(
    model: JukeboxModel, whole: Codes, moment: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the second window of each level: what was done stays, and the songs are the same."""
    tell_short(monkeypatch, most=1, window=1, moment=moment)
    plan, state = begin(model, max_batch_size=2)
    events = list(model.iterate(plan, state))
    assert same(state.stacked(), whole)
    top = [event.songs for event in events if isinstance(event, WindowDone) and event.level == 0]
    assert top[:3] == [(0, 1), (0,), (1,)]
    assert (0, 1) not in top[1:]
    progress = [event for event in events if isinstance(event, Progress)]
    assert all(event.done <= event.total for event in progress)
    for name in ("top", "middle", "bottom"):
        last = [event for event in progress if event.stage == name][-1]
        assert last.done == last.total
    assert caplog.text.count("going on with one song at a time") == 3


def test_a_gpu_without_enough_memory_for_one_song(model: JukeboxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tell_short(monkeypatch, most=0, window=0, moment=2)
    with pytest.raises(RequestError, match="Not even one song fits into the GPU's memory"):
        list(model.iterate(*begin(model)))


def test_one_song_begins_its_window_anew_where_other_memory_was_given_up(
    model: JukeboxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, state = begin(model, max_batch_size=1)
    list(model.iterate(plan, state))
    wanted, original, short = state.stacked(), JukeboxPrior.iterate_codes, {0, 1, 2}

    def once(self: JukeboxPrior, *args: Any, **options: Any) -> Any:
        if self.config.level in short:
            short.remove(self.config.level)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return (yield from original(self, *args, **options))

    monkeypatch.setattr(JukeboxPrior, "iterate_codes", once)
    plan, state = begin(model, max_batch_size=1)
    list(model.iterate(plan, state))
    assert not short
    assert same(state.stacked(), wanted)


def tell_short(monkeypatch: pytest.MonkeyPatch, most: int, window: int, moment: int) -> None:
    """As if memory were too short for more songs from a window of each level on, at some step of it."""
    original, seen = JukeboxPrior.iterate_codes, Counter[int]()

    def short(self: JukeboxPrior, samples: int, **options: Any) -> Any:
        run, level, done = original(self, samples, **options), self.config.level, 0
        seen[level] += 1
        while True:
            if samples > most and seen[level] > window and done == moment:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            try:
                yield next(run)
            except StopIteration as end:
                return end.value
            done += 1

    monkeypatch.setattr(JukeboxPrior, "iterate_codes", short)


def test_the_global_generator_rules_without_seeds(model: JukeboxModel) -> None:
    def sample() -> Tensor:
        torch.manual_seed(5)
        return model.ancestral_sample(tiny_labels(), 2, sample_length=64)[0]

    assert torch.equal(sample(), sample())
    assert not torch.equal(sample()[0], sample()[1])


def test_chunks_change_nothing(model: JukeboxModel, whole: Codes) -> None:
    chunked = model.ancestral_sample(tiny_labels(SONGS), sample_length=LENGTH, seeds=[3, 4], chunk_size=[1, 2, 3])
    assert same(chunked, whole)


def test_seeds() -> None:
    assert by_level_seeds(7, 2, 3)[0] == [7, 8]
    assert by_level_seeds([7, 8], 2, 3) == by_level_seeds(7, 2, 3)
    assert by_level_seeds([5, 6, 7], 3, 3)[0] == [5, 6, 7]  # a seed a song, not a level
    assert by_level_seeds([5, 6, 7], 2, 3) == [[5, 6], [6, 7], [7, 8]]
    assert by_level_seeds([[1, 2], [3, 4], 5], 2, 3) == [[1, 2], [3, 4], [5, 6]]
    levels = by_level_seeds([7], 1, 3)
    assert len({seed for level in levels for seed in level}) == 3
    assert by_level_seeds([7], 1, 2) == levels[:2]


@pytest.mark.parametrize(
    "seeds", [np.int64(7), torch.tensor(7), np.array([7, 8]), [np.uint8(7), torch.tensor(8)], range(7, 9)]
)
def test_seeds_of_numpy_and_torch(seeds: Any) -> None:
    assert by_level_seeds(seeds, 2, 3) == by_level_seeds([7, 8], 2, 3)


def test_options_of_numpy_and_torch() -> None:
    given = Options(temperature=np.float32(0.5), top_k=[np.int64(3), torch.tensor(0), 1], sample_tokens=torch.tensor(9))
    assert given == Options(temperature=0.5, top_k=[3, 0, 1], sample_tokens=9)


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3, 4], "7", [1.5, 2], -1, 2**64 - 1, [[1, 2], [3], [4, 5]]])
def test_seeds_that_do_not_fit(seeds: Any) -> None:
    with pytest.raises(RequestError, match=r"seeds is .*; give a whole number from 0|seeds for 2 samples"):
        by_level_seeds(seeds, 2, 3)


# --------------------------------------------------------------------------------------------------- options and plans


def test_options_by_level_act(model: JukeboxModel) -> None:
    plan = model.plan(
        tiny_labels(),
        sample_length=LENGTH,
        temperature=[0, 0.5, 1],
        top_k=[1, 2, 3],
        top_p=[0, 0.5, 1],
        chunk_size=[1, 2, 3],
        hop_fraction=[0.25, 0.5, 1.0],
        max_batch_size=[3, 2, 1],
    )
    assert [(lv.temperature, lv.top_k, lv.top_p, lv.chunk_size, lv.max_batch_size) for lv in plan.levels] == [
        (0, 1, 0, 1, 3),
        (0.5, 2, 0.5, 2, 2),
        (1, 3, 1, 3, 1),
    ]
    assert [level.starts[1] for level in plan.levels] == [4, 8, 16]


def test_greedy_needs_no_seeds(model: JukeboxModel) -> None:
    first, second = (model.ancestral_sample(tiny_labels(), sample_length=64, temperature=0, seeds=s) for s in (1, 2))
    assert same(first, second)
    third = model.ancestral_sample(tiny_labels(), sample_length=64, top_k=1, temperature=1.0)
    assert same(first, third)


@pytest.mark.parametrize(
    ("length", "codes"),
    [
        ({"sample_length": 100}, [12, 25, 50]),
        ({"sample_length": [100, 100]}, [12, 25, 50]),
        ({"sample_length": torch.tensor([100, 100])}, [12, 25, 50]),
        ({"sample_length_in_seconds": 0.1}, [12, 24, 48]),
        ({"sample_tokens": 12}, [12, 12, 12]),
        ({}, [3000, 6000, 12000]),  # 24 seconds
    ],
)
def test_lengths(length: dict[str, Any], codes: list[int]) -> None:
    plan = Plan.of(tiny_config(max_duration=30), tiny_labels(SONGS), Options(**length))
    assert [level.total for level in plan.levels] == codes


def test_labels_may_say_the_length(model: JukeboxModel) -> None:
    assert model.plan(tiny_labels(sample_length=120)).sample_length == 120


def test_lengths_are_exact_where_they_divide_nothing(model: JukeboxModel) -> None:
    codes = model.ancestral_sample(tiny_labels(), sample_length=139, seeds=1)
    assert [level.shape[1] for level in codes] == [17, 34, 69]


def test_timing_comes_from_the_call_or_the_labels() -> None:
    config, labels = tiny_config(), tiny_labels(SONGS, total_length=[900, 0], offset=[40, 0])
    by_labels = Plan.of(config, labels, Options(sample_length=LENGTH)).levels[0].labels
    assert by_labels[:, :3].tolist() == [[900, 40, LENGTH], [LENGTH, 0, LENGTH]]
    by_call = Plan.of(config, labels, Options(sample_length=LENGTH, total_length=800, offset=[8, 16])).levels[2].labels
    assert by_call[:, :3].tolist() == [[800, 8, LENGTH], [800, 16, LENGTH]]


def test_a_result_may_reach_the_end_of_its_song_but_not_beyond() -> None:
    config, options = tiny_config(), Options(sample_length=LENGTH)
    assert Plan.of(config, tiny_labels(SONGS, total_length=[900, LENGTH + 40], offset=[0, 40]), options).songs == 2
    with pytest.raises(RequestError, match="song of 199 samples has no room for 160 from sample 40 on"):
        Plan.of(config, tiny_labels(SONGS, total_length=[900, LENGTH + 39], offset=[0, 40]), options)
    unsaid = Plan.of(config, tiny_labels(SONGS, offset=8), options)  # the length of the song is that of the result
    assert unsaid.levels[0].labels[:, :3].tolist() == [[LENGTH, 8, LENGTH]] * 2


def test_labels_of_a_window_move_with_it() -> None:
    plan = Plan.of(tiny_config(), tiny_labels("abcdefghijklmnopqrstuvwxyz"), Options(sample_length=400, offset=0))
    first, last = (plan.levels[0].window_labels(start, [0]) for start in (0, 34))
    assert first is not None
    assert last is not None
    assert first[0, :3].tolist() == [400, 0, 128]
    assert last[0, :3].tolist() == [400, 34 * 8, 128]
    assert first[0, 5:].tolist() == [27 + i for i in range(8)]
    assert last[0, 5:].tolist() == [27 + i for i in range(17, 25)]


def test_more_genres_than_a_configuration_says(model: JukeboxModel) -> None:
    top, *lower = tiny_labels()
    assert lower[0][0, 4:].tolist() == [1, 2, -1, -1, -1]
    whole = model.ancestral_sample([top, *lower], sample_length=64, seeds=1)
    assert same(model.ancestral_sample([top, lower[0][:, :6], lower[1][:, :6]], sample_length=64, seeds=1), whole)
    narrow = tiny_jukebox()
    for prior in narrow.config.prior_configs[1:]:
        prior.max_nb_genres = 1
    assert same(narrow.ancestral_sample([top, *lower], sample_length=64, seeds=1), whole)
    assert narrow.priors[1].config.max_nb_genres == 1


def test_a_top_prior_without_lyrics_overlooks_them() -> None:
    model = tiny_jukebox(
        nb_relevant_lyric_tokens=0, encoder_config=None, attention_pattern="raw_column_previous_row_attention"
    )
    with_lyrics, without = tiny_labels("la la la"), tiny_labels("")
    codes = [model.ancestral_sample(labels, sample_length=64, seeds=1) for labels in (with_lyrics, without)]
    assert same(*codes)


def test_level_names() -> None:
    assert [level_name(i) for i in range(3)] == ["top", "middle", "bottom"]
    assert level_name(1, 2) == "level 1"


def test_what_remains_is_done_in_pieces_of_equal_songs() -> None:
    level = Level(
        config=JukeboxPriorConfig(n_ctx=16),
        labels=torch.zeros(4, 5, dtype=torch.long),
        total=24,
        starts=(0, 8),
        temperature=1.0,
        top_k=0,
        top_p=0.0,
        chunk_size=None,
        max_batch_size=2,
    )
    assert list(level.pieces([0, 16, 0, 4])) == [
        (0, 0, 16, (0, 2)),
        (0, 4, 16, (3,)),
        (8, 16, 24, (0, 1)),
        (8, 16, 24, (2, 3)),
    ]
    assert list(level.pieces([24, 24, 24, 30])) == []


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"hop_fraction": 0.2},
            "hop_fraction is 0.2, which moves a window of 16 codes by 3.2 codes; it must .* of 2: 0.25",
        ),
        ({"hop_fraction": [0.125, 0.5, 0.06]}, "moves a window of 16 codes by 0.96 codes"),
        ({"hop_fraction": [0.5, 0.5]}, "hop_fraction has 2 values for 3 levels"),
        ({"hop_fraction": "half"}, "hop_fraction is 'half'; it must be above 0 and at most 1"),
        ({"temperature": -1}, "temperature is -1; it must be 0"),
        ({"temperature": [1, 1, float("nan")]}, "temperature is nan"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"chunk_size": 2.0}, "chunk_size is 2.0; it must be a whole number"),
        ({"top_p": 2}, "top_p is 2"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"max_batch_size": True}, "max_batch_size is True"),
        ({"sample_length": 7}, "7 samples are asked for, less than one code"),
        ({"sample_length": [64, 72]}, "the songs of a call are equally long"),
        ({"sample_length": -3}, "sample_length is -3"),
        (
            {"sample_length": 64, "total_length": 10_001},
            "total lengths from 10001 to 10001; this model's lie between 20",
        ),
        ({"sample_length": 8, "total_length": 15}, "total lengths from 15 to 15"),
        ({"sample_length": 64, "offset": 64}, "the offset must lie inside the total length"),
        ({"sample_length": 400, "total_length": 200}, "A song of 200 samples has no room for 400 from sample 0 on"),
        (
            {"total_length": [900, 170], "offset": 16},
            "170 samples has no room for 160 from sample 16 .* of 176 or more",
        ),
        ({"sample_length": 64, "total_length": [100, 100, 100]}, "total_length has 3 values for 2 songs"),
        ({"sample_levels": [3]}, r"sample_levels is \[3\]; it lists levels, which are 0 \(top\) to 2"),
        ({"sample_levels": [1.5]}, r"sample_levels is \[1.5\]"),
        ({"sample_levels": "top"}, "sample_levels is 'top'"),
        ({"sample_length": 10**15}, "samples are asked for; songs of this model are shorter than 10 s"),
        ({"sample_tokens": 10**12}, "samples are asked for; songs of this model are shorter than 10 s"),
        ({"total_length": 2**63}, "total_length is 9223372036854775808; it is a whole number of samples"),
        ({"n_samples": 0}, "n_samples is 0; it must be a whole number from 1 on"),
        ({"n_samples": -1}, "n_samples is -1"),
        ({"n_samples": 1.5}, "n_samples is 1.5"),
        ({"n_samples": 10**9}, "n_samples is 1000000000; at most 100000 are sampled in one call"),
        ({"sample_levels": []}, "sample_levels is"),
        ({"length": 64}, "doesn't know the argument 'length'; known are sample_length"),
    ],
)
def test_what_is_refused(model: JukeboxModel, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model.plan(tiny_labels(SONGS), **{"sample_length": LENGTH, **options})


@pytest.mark.parametrize("asked", [{"sample_length": 10**12}, {"sample_tokens": 10**12}])
def test_models_without_labels_have_a_limit_too(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(
        nb_relevant_lyric_tokens=0, encoder_config=None, attention_pattern="raw_column_previous_row_attention"
    )
    for prior in config.prior_configs:
        prior.metadata_conditioning = False
    assert Plan.of(config, None, Options(sample_length=LENGTH)).sample_length == LENGTH
    monkeypatch.setattr("tunesmith.pipelines.levels.window_starts", lambda *_: pytest.fail("windows were counted"))
    with pytest.raises(RequestError, match="samples are asked for; songs of this model are shorter than 21600 s"):
        Plan.of(config, None, Options(**asked))


def wrong_labels() -> Iterator[tuple[Any, str]]:
    top, middle, bottom = tiny_labels(SONGS)
    yield [top, middle], "labels are 2; they must be a list of 3 tensors"
    yield top, "labels are Tensor; they must be a list of 3 tensors, one a level, top first, as the tokenizer's input_"
    yield None, "There are no labels, and this model reads them; give a list of 3 tensors"
    yield ["a", "b", "c"], "labels has type str; it must be a tensor of whole numbers"
    yield [[[1, 2], [3]], middle, bottom], "labels has type list"
    yield [top.float(), middle, bottom], "labels has type torch.float32; it must be a tensor of whole numbers"
    yield [top[0], middle, bottom], r"labels are torch.int64 \[19\]"
    yield [top, middle[:, :3], bottom], r"labels are torch.int64 \[2, 3\]"
    yield [top, middle.repeat(2, 1), bottom], "labels of 2, 4, 2 songs"
    yield [top, middle, bottom.index_fill(1, torch.tensor(3), 5)], "labels have artists from 5 to 5; this model's lie"
    yield [top, middle.index_fill(1, torch.tensor(4), 9), bottom], "labels have genres from -1 to 9"
    yield [top.index_fill(1, torch.tensor(9), 90), middle, bottom], "labels have lyric tokens from"


@pytest.mark.parametrize(("labels", "sentence"), list(wrong_labels()))
def test_labels_that_do_not_fit(model: JukeboxModel, labels: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model.plan(labels, sample_length=LENGTH)


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        ([torch.zeros(2, 4)], "codes has type torch.float32; it must be a tensor of whole numbers"),
        ([torch.zeros(3, 4, dtype=torch.long)], r"must be whole numbers \[2, steps\]"),
        ([torch.full((2, 4), CODES)], f"lie between {CODES} and {CODES}; this model has 0 to {CODES - 1}"),
    ],
)
def test_codes_that_do_not_fit(model: JukeboxModel, codes: Codes, sentence: str) -> None:
    plan, _ = begin(model)
    whole = [*codes, *[torch.zeros(2, 0, dtype=torch.long)] * 2]
    with pytest.raises(RequestError, match=sentence):
        State.of(plan, whole)


def test_upsampling_needs_the_codes_above(model: JukeboxModel) -> None:
    plan = model.plan(tiny_labels(SONGS), sample_levels=[1, 2], sample_length=LENGTH)
    short = [torch.zeros(2, 12, dtype=torch.long), *[torch.zeros(2, 0, dtype=torch.long)] * 2]
    sentence = "12 codes of the top level, and to sample 40 codes of the level below it 20 are needed"
    with pytest.raises(RequestError, match=sentence):
        State.of(plan, short)


def test_the_level_that_is_missing_is_named(model: JukeboxModel, whole: Codes) -> None:
    with pytest.raises(RequestError, match=r"The middle level is missing, and to sample 80 codes .* 40 are needed"):
        model.upsample(whole[:1], tiny_labels(SONGS), [2])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_codes_beyond_the_final_length_are_refused(model: JukeboxModel, whole: Codes, level: int) -> None:
    codes = [each[:, : (LENGTH - 8 * (number != level)) // HOPS[number]] for number, each in enumerate(whole)]
    sentence = f"{LENGTH // HOPS[level]} codes of the {level_name(level)} level, but the final length asked for is"
    for sample in (model.continue_sample, model.upsample):
        with pytest.raises(RequestError, match=sentence):
            sample(codes, tiny_labels(SONGS), sample_length=LENGTH - 8)


def test_levels_that_are_complete_stay(model: JukeboxModel, whole: Codes) -> None:
    assert same(model.continue_sample(whole, tiny_labels(SONGS), sample_length=LENGTH), whole)
    assert same(model.upsample(whole, tiny_labels(SONGS)), whole)
    odd = model.ancestral_sample(tiny_labels(), sample_length=LENGTH - 4, seeds=1)
    assert [level.shape[1] for level in odd] == [19, 39, 78]
    assert same(model.upsample(odd[:2], tiny_labels(), seeds=1), odd)
