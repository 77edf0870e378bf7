from tunesmith.training.corpus.split import SPLITS, allowed, pair_split, split_of
from tunesmith.training.corpus.works import interval_grams, plain_title, same_works

SCALE = [60, 62, 64, 65, 67, 69, 71, 72, 71, 69, 67, 65, 64, 62, 60, 64, 67, 72, 67, 64, 60, 67, 60]
OTHER = [60, 67, 60, 65, 69, 60, 72, 60, 71, 62, 66, 61, 70, 63, 59, 72, 60, 68, 61, 75, 60, 58, 73]


def test_plain_titles() -> None:
    assert plain_title("The Humours of Cork") == plain_title("Humours of Cork, The") == "humours cork"
    assert plain_title("Devil's Dream -- Reel") == plain_title("Devils Dream") == "devils dream"
    assert plain_title("Quick Step. 25th Regt.") == "25th regt"


def test_generic_titles_name_nothing() -> None:
    assert [plain_title(title) for title in ("Hornpipe", "Slow Air 2", "A New Quick Step", "", "Untitled")] == [""] * 5


def test_grams_are_the_same_in_every_key() -> None:
    assert interval_grams(SCALE) == interval_grams(pitch + 5 for pitch in SCALE)
    assert interval_grams(SCALE) == interval_grams(pitch for pitch in SCALE for _ in range(2))
    assert len(interval_grams(SCALE)) > 5
    assert interval_grams(SCALE[:9]) == set()


def test_titles_and_melodies_make_works() -> None:
    titles = ["Rakes of Mallow", "Sandy Lent", "The Rakes of Mallow - Reel", "Hornpipe", "Hornpipe", "Something"]
    longer = [pitch + 3 for pitch in SCALE] + [40, 50, 45]
    melodies = [SCALE, OTHER, OTHER[::-1], [1, 5] * 12, [9, 2] * 12, longer]
    assert same_works(titles, melodies) == [0, 1, 0, 3, 4, 0]


def test_works_are_joined_through_third_ones() -> None:
    assert same_works(["Alpha", "Beta", "Alpha"], [OTHER, SCALE, SCALE]) == [0, 0, 0]


def test_splits_have_their_shares_and_depend_on_the_name_alone() -> None:
    splits = [split_of(f"work {i}") for i in range(4000)]
    assert splits == [split_of(f"work {i}") for i in range(4000)]
    shares = {split: splits.count(split) / len(splits) for split in SPLITS}
    assert abs(shares["train"] - 0.9) < 0.02
    assert abs(shares["test"] - 0.05) < 0.012
    assert abs(shares["validation"] - 0.05) < 0.012


def test_held_out_pairs_belong_to_one_split() -> None:
    pairs = [(f"style {i}", f"lead {j}") for i in range(20) for j in range(25)]
    for pair in pairs:
        homes = [split for split in SPLITS if allowed(*pair, split)]
        assert homes == (list(SPLITS) if pair_split(*pair) == "train" else [pair_split(*pair)])
    assert 10 < sum(pair_split(*pair) == "test" for pair in pairs) < 45
