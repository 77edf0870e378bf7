"""Every code sample of the Hugging Face Jukebox page, with `transformers` replaced by `tunesmith`.

The page shows them below the classes and methods that it lists.  Models are small random ones in place of
openai/jukebox-1b-lyrics; what the samples print of the released weights is left out.
"""

import re
from pathlib import Path

import pytest
import torch

import tunesmith
from tiny_jukebox import CODES, HOPS, save_tiny_jukebox

PAGE = Path(__file__).resolve().parents[2] / "shared" / "originals" / "huggingface-jukebox.md"
SHOWN = {
    "JukeboxConfig": [],
    "JukeboxPriorConfig": [],
    "JukeboxVQVAEConfig": [],
    "JukeboxTokenizer": ["save_vocabulary"],
    "JukeboxModel": ["ancestral_sample", "primed_sample", "continue_sample", "upsample", "_sample"],
    "JukeboxPrior": ["sample", "forward"],
    "JukeboxVQVAE": ["forward", "encode", "decode"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_jukebox(tmp_path_factory.mktemp("hub") / "jukebox-1b-lyrics", joined=True))


def test_the_page_lists_what_is_tested() -> None:
    for name, methods in SHOWN.items():
        assert all(hasattr(getattr(tunesmith, name), method) for method in methods)
    if not PAGE.is_file():
        pytest.skip("the documentation page is not beside this checkout")
    listed: dict[str, list[str]] = {}
    for kind, methods in re.findall(r"\[\[autodoc\]\] (\w+)((?:\n +- \w+)*)", PAGE.read_text()):
        listed[kind] = re.findall(r"\w+", methods)
    assert listed == SHOWN


def test_configuration() -> None:
    from tunesmith import JukeboxConfig, JukeboxModel

    # Initializing a Jukebox configuration
    configuration = JukeboxConfig()

    # Initializing a model from the configuration
    with torch.device("meta"):  # three billion parameters
        model = JukeboxModel(configuration)

    # Accessing the model configuration
    configuration = model.config
    assert sum(parameter.numel() for parameter in model.parameters()) == 942_643_200 + 2 * 981_298_176 + 1_485_763


def test_ancestral_sample(checkpoint: str) -> None:
    from tunesmith import AutoTokenizer, JukeboxModel, set_seed

    model = JukeboxModel.from_pretrained(checkpoint, min_duration=0).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    lyrics = "Hey, are you awake? Can you talk to me?"
    artist = "Zac Brown Band"
    genre = "Country"
    metas = tokenizer(artist=artist, genres=genre, lyrics=lyrics)
    set_seed(0)
    music_tokens = model.ancestral_sample(metas.input_ids, sample_length=100)

    with torch.no_grad():
        audio = model.decode(music_tokens)[:, :10].squeeze(-1)
    assert audio.shape == (1, 10)
    assert [level.shape for level in music_tokens] == [(1, 12), (1, 25), (1, 50)]
    set_seed(0)
    again = model.ancestral_sample(metas.input_ids, sample_length=100)
    assert all(map(torch.equal, music_tokens, again))


def test_sample(checkpoint: str) -> None:
    from tunesmith import AutoTokenizer, JukeboxModel, set_seed

    metas = dict(artist="Zac Brown Band", genres="Country", lyrics="I met a traveller from an antique land")  # noqa: C408  # as the page has it
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = JukeboxModel.from_pretrained(checkpoint, min_duration=0).eval()

    labels = tokenizer(**metas)["input_ids"]
    set_seed(0)
    zs = [torch.zeros(1, 0, dtype=torch.long) for _ in range(3)]
    zs = model._sample(zs, labels, [0], sample_length=40 * model.priors[0].raw_to_tokens, save_results=False)
    assert zs[0].shape == (1, 40)
    assert [level.shape[1] for level in zs[1:]] == [0, 0]


def test_vqvae(checkpoint: str) -> None:
    from tunesmith import JukeboxVQVAE, set_seed

    model = JukeboxVQVAE.from_pretrained(checkpoint).eval()
    set_seed(0)
    zs = [torch.randint(CODES, (4, 1))]
    assert model.decode(zs).shape == torch.Size([4, HOPS[-1], 1])


def test_parts_by_the_pages_names(checkpoint: str, tmp_path: Path) -> None:
    from tunesmith import AutoConfig, JukeboxPrior, JukeboxPriorConfig, JukeboxTokenizer, JukeboxVQVAEConfig

    tokenizer = JukeboxTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer.save_vocabulary(str(tmp_path))) == 3
    assert isinstance(AutoConfig.from_pretrained(checkpoint), tunesmith.JukeboxConfig)
    prior = JukeboxPrior.from_pretrained(checkpoint)
    assert isinstance(prior.config, JukeboxPriorConfig)
    assert isinstance(JukeboxVQVAEConfig.from_pretrained(checkpoint), JukeboxVQVAEConfig)
