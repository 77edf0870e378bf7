"""The decoder's classes: every argument acts, outputs are what they say, generation is right where others go wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import save_tiny_folder
from tunesmith.errors import CheckpointError, RequestError
from tunesmith.generation.decode import with_prompts
from tunesmith.models.musicgen import (
    PRESETS,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenModel,
    shift_right,
)
from tunesmith.nn.cache import DecoderCache
from tunesmith.requests import Sampling

V = 16
GREEDY = Sampling(temperature=0.0)


def config(**changes: Any) -> MusicgenDecoderConfig:
    defaults: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "initializer_factor": 0.4,
    }
    return MusicgenDecoderConfig(**defaults | changes)


def model(**changes: Any) -> MusicgenForCausalLM:
    torch.manual_seed(0)
    return MusicgenForCausalLM(config(**changes)).eval()


def ids(batch: int = 2, codebooks: int = 4, steps: int = 5) -> Tensor:
    return torch.randint(0, V, (batch * codebooks, steps), generator=torch.Generator().manual_seed(1))


def text(batch: int = 2, length: int = 3) -> Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(2))


# -------------------------------------------------------------------------------------- configuration


def test_defaults_are_those_of_the_documentation() -> None:
    documented = {
        "vocab_size": 2048,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "ffn_dim": 4096,
        "activation_function": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "max_position_embeddings": 2048,
        "initializer_factor": 0.02,
        "layerdrop": 0.0,
        "scale_embedding": False,
        "use_cache": True,
        "num_codebooks": 4,
        "tie_word_embeddings": False,
        "audio_channels": 1,
    }
    fresh = MusicgenDecoderConfig()
    assert {name: getattr(fresh, name) for name in documented} == documented
    assert fresh.pad_token_id == fresh.bos_token_id == fresh.decoder_start_token_id == 2048


def test_sizes_act() -> None:
    lm = model(vocab_size=20, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, ffn_dim=40, num_codebooks=2)
    decoder = lm.model.decoder
    assert [table.weight.shape for table in decoder.embed_tokens] == [(21, 24)] * 2
    assert [head.weight.shape for head in lm.lm_heads] == [(20, 24)] * 2
    assert len(decoder.layers) == 3
    assert decoder.layers[0].self_attn.heads == 4
    assert decoder.layers[0].fc1.weight.shape == (40, 24)


@pytest.mark.parametrize("name", ["gelu", "relu", "silu", "gelu_new"])
def test_activation_function(name: str) -> None:
    from transformers.activations import ACT2FN

    named, given = model(activation_function=name), model(activation_function=ACT2FN[name])
    torch.testing.assert_close(named(ids()).logits, given(ids()).logits)
    if name != "gelu":
        assert not torch.allclose(named(ids()).logits, model()(ids()).logits, atol=1e-5)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(RequestError, match="gelu_new"):
        model(activation_function="swish9")


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout", "layerdrop"])
def test_dropouts_act_in_training_only(name: str) -> None:
    off = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}
    lm = model(**off | {name: 0.5})
    wanted = model(**off)(ids(), encoder_hidden_states=text()).logits
    torch.testing.assert_close(lm(ids(), encoder_hidden_states=text()).logits, wanted)
    lm.train()
    torch.manual_seed(3)
    assert any(not torch.allclose(lm(ids(), encoder_hidden_states=text()).logits, wanted) for _ in range(4))


def test_layerdrop_leaves_layers_out() -> None:
    lm = model(layerdrop=1.0, dropout=0.0).train()
    decoder = lm.model.decoder
    assert torch.equal(lm.model(ids()).last_hidden_state, lm.model(ids()).last_hidden_state)
    for layer in decoder.layers:
        nn.init.constant_(layer.fc2.weight, 9.0)
    before = lm.model(ids()).last_hidden_state
    assert not torch.allclose(before, lm.eval().model(ids()).last_hidden_state)


def test_scale_embedding_divides_by_the_root_of_the_width() -> None:
    plain, scaled = model(), model(scale_embedding=True)
    codes = ids().view(2, 4, 5)
    torch.testing.assert_close(scaled.model.decoder.embed(codes), plain.model.decoder.embed(codes) / math.sqrt(16))
    assert not torch.allclose(plain(ids()).logits, scaled(ids()).logits)


def test_tie_word_embeddings(tmp_path: Path) -> None:
    lm = model(tie_word_embeddings=True)
    out, hidden = lm(ids()), lm.model(ids()).last_hidden_state
    logits = torch.stack([hidden @ table.weight[:V].T for table in lm.get_input_embeddings()], 1)
    torch.testing.assert_close(out.logits, logits.flatten(0, 1))
    assert not [name for name, _ in lm.named_parameters() if "lm_heads" in name]
    lm.save_pretrained(tmp_path)
    torch.testing.assert_close(MusicgenForCausalLM.from_pretrained(tmp_path)(ids()).logits, out.logits)


def test_use_cache_acts() -> None:
    assert isinstance(model()(ids()).past_key_values, DecoderCache)
    assert model(use_cache=False)(ids()).past_key_values is None
    assert model(use_cache=False)(ids(), use_cache=True).past_key_values is not None
    assert model().train()(ids()).past_key_values is None
    labels = torch.zeros(2, 5, 4, dtype=torch.long)
    assert model()(labels=labels).past_key_values is None


def test_initializer_factor_acts() -> None:
    for factor in (0.02, 0.5):
        torch.manual_seed(0)
        lm = MusicgenForCausalLM(config(hidden_size=64, initializer_factor=factor))
        matrices = [p for p in lm.parameters() if p.ndim == 2]
        assert float(torch.cat([p.detach().flatten() for p in matrices]).std()) == pytest.approx(factor, rel=0.05)
        assert all((p == 1).all() for name, p in lm.named_parameters() if name.endswith("norm.weight"))


def test_max_position_embeddings_limits_generation() -> None:
    lm = model(max_position_embeddings=12)
    assert lm.generate(max_new_tokens=12, do_sample=False).shape == (1, 4, 9)
    with pytest.raises(RequestError, match="holds 12: at most 12 new tokens remain"):
        lm.generate(max_new_tokens=13)


def test_audio_channels_two_pairs_codebooks() -> None:
    lm = model(audio_channels=2, num_codebooks=8)
    _, grid = lm.build_delay_pattern_mask(torch.full((8, 1), V), V, max_length=9)
    assert torch.equal(grid[::2], grid[1::2])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_attention_heads": 3}, "can't be divided among 3 heads"),
        ({"audio_channels": 3}, "3 audio channels"),
        ({"audio_channels": 2, "num_codebooks": 5}, "5 codebooks"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model(**changes)


def test_a_config_unpacks_and_travels(tmp_path: Path) -> None:
    original = config(num_codebooks=6, dropout=0.3)
    assert MusicgenDecoderConfig(**original).to_dict() == original.to_dict()
    original.save_pretrained(tmp_path)
    assert MusicgenDecoderConfig.from_pretrained(tmp_path).to_dict() == original.to_dict()


def test_a_whole_musicgens_config_means_its_decoder() -> None:
    from tiny import tiny_config

    whole = tiny_config()
    for kind in (MusicgenModel, MusicgenForCausalLM):
        assert kind(whole).config is whole.decoder


# Parameters of the decoder, as the released models have them.
COUNTS = {
    "small": 419_584_000,
    "medium": 1_837_556_736,
    "large": 3_255_382_016,
    "stereo-small": 436_365_312,
    "stereo-medium": 1_862_728_704,
    "stereo-large": 3_288_944_640,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_released_sizes(name: str) -> None:
    with torch.device("meta"):
        lm = MusicgenForCausalLM(MusicgenDecoderConfig(**PRESETS[name]))
    assert sum(p.numel() for p in lm.parameters()) == COUNTS[name]


# -------------------------------------------------------------------------------------- forward


def test_outputs() -> None:
    lm = model()
    out = lm(ids(), encoder_hidden_states=text(), output_hidden_states=True, output_attentions=True)
    assert out.logits.shape == (8, 5, V)
    assert [state.shape for state in out.hidden_states] == [(2, 5, 16)] * 3
    assert [weights.shape for weights in out.attentions] == [(2, 2, 5, 5)] * 2
    assert [weights.shape for weights in out.cross_attentions] == [(2, 2, 5, 3)] * 2
    torch.testing.assert_close(lm.model(ids(), encoder_hidden_states=text()).last_hidden_state, out.hidden_states[-1])
    as_tuple = lm(ids(), encoder_hidden_states=text(), return_dict=False, use_cache=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], out.logits)


def test_codebooks_may_be_unfolded() -> None:
    assert torch.equal(model()(ids()).logits, model()(ids().view(2, 4, 5)).logits)


def test_embeddings_in_place_of_ids() -> None:
    lm = model()
    embeddings = lm.model.decoder.embed(ids().view(2, 4, 5))
    torch.testing.assert_close(lm(inputs_embeds=embeddings).logits, lm(ids()).logits)
    for wrong in ({}, {"input_ids": ids(), "inputs_embeds": embeddings}):
        with pytest.raises(RequestError, match="Exactly one"):
            lm(**wrong)


def test_it_is_causal() -> None:
    changed = ids()
    changed[:, 3] = (changed[:, 3] + 1) % V
    before, after = model()(ids()).logits, model()(changed).logits
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


@pytest.mark.parametrize("piece", [1, 2])
def test_a_cache_continues(piece: int) -> None:
    lm, past, logits = model(), None, []
    for part in ids(steps=6).split(piece, 1):
        out = lm(part, encoder_hidden_states=text(), past_key_values=past)
        past = out.past_key_values
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), lm(ids(steps=6), encoder_hidden_states=text()).logits)


def test_a_cache_continues_under_a_mask() -> None:
    lm, past, logits = model(), None, []
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 0, 1]])
    for i in range(5):
        out = lm(ids()[:, i : i + 1], mask[:, : i + 1], past_key_values=past)
        past = out.past_key_values
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), lm(ids(), mask).logits)


def test_padded_text_means_nothing() -> None:
    lm, mask = model(), torch.tensor([[1, 1, 0], [1, 1, 1]])
    noise = text().clone()
    noise[0, 2] = 99.0
    plain = lm(ids(), encoder_hidden_states=text(), encoder_attention_mask=mask).logits
    torch.testing.assert_close(lm(ids(), encoder_hidden_states=noise, encoder_attention_mask=mask).logits, plain)
    alone = lm(ids()[:4], encoder_hidden_states=text()[:1, :2]).logits
    torch.testing.assert_close(alone, plain[:4])


# -------------------------------------------------------------------------------------- loss


def test_loss_on_a_fresh_config() -> None:
    """Labels need no token id to be set first."""
    lm = MusicgenForCausalLM(config())
    labels = torch.randint(0, V, (2, 5, 4))
    assert lm(labels=labels).loss.isfinite()


def test_loss_by_hand() -> None:
    lm = model()
    labels = torch.randint(0, V, (2, 5, 4), generator=torch.Generator().manual_seed(3))
    labels[0, 1, 2], labels[1, :2, 3] = -100, V
    out = lm(labels=labels, encoder_hidden_states=text())
    logits = out.logits.view(2, 4, 5, V).log_softmax(-1)
    each = []
    for k in range(4):
        terms = [-logits[b, k, s, labels[b, s, k]] for b in range(2) for s in range(5) if 0 <= labels[b, s, k] < V]
        each.append(torch.stack(terms).mean())
    torch.testing.assert_close(out.loss, torch.stack(each).mean())
    inputs = shift_right(labels, pad=V, start=V)
    assert inputs[0, 2].tolist() == [V, labels[0, 0, 2], V, labels[0, 2, 2], labels[0, 3, 2]]
    torch.testing.assert_close(lm(inputs.flatten(0, 1), encoder_hidden_states=text()).logits, out.logits)


def test_a_codebook_without_labels_counts_nothing() -> None:
    labels = torch.randint(0, V, (1, 3, 4))
    labels[:, :, 1] = -100
    assert model()(labels=labels).loss.isfinite()


def test_gradient_checkpointing_changes_nothing() -> None:
    labels, grads = torch.randint(0, V, (2, 5, 4), generator=torch.Generator().manual_seed(3)), []
    for checkpointing in (False, True):
        lm = model(dropout=0.0).train()
        if checkpointing:
            getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)()
            assert lm.model.decoder.gradient_checkpointing
        lm(labels=labels, encoder_hidden_states=text()).loss.backward()
        grads.append([p.grad for p in lm.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # peft's, about a new name
def test_lora_trains_the_attention() -> None:
    peft = pytest.importorskip("peft")
    lm = peft.get_peft_model(model(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=None))
    labels = torch.randint(0, V, (2, 5, 4))
    lm(labels=labels, encoder_hidden_states=text()).loss.backward()
    trained = [name for name, p in lm.named_parameters() if p.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)


def test_trainer_must_not_rescale_the_loss() -> None:
    assert MusicgenForCausalLM.accepts_loss_kwargs is False


# -------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_fast_path_equals_the_obvious_one(channels: int, guidance: float) -> None:
    lm = model(audio_channels=channels, num_codebooks=4 * channels)
    prompt = ids(2, 4 * channels, 3)
    kwargs: dict[str, Any] = {
        "encoder_hidden_states": text(),
        "encoder_attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "guidance_scale": guidance,
        "max_new_tokens": 9,
        "do_sample": False,
    }
    assert torch.equal(lm.generate(prompt, **kwargs), lm.generate(prompt, **kwargs, use_cache=False))


def test_generate_keeps_the_whole_prompt() -> None:
    """Others feed the last column of the prompt alone."""
    lm, prompt = model(), ids(2, 4, 6)
    codes = lm.generate(prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(codes[:, :, :6], prompt.view(2, 4, 6))
    other = prompt.clone()
    other[:, 0] = (other[:, 0] + 5) % V
    assert not torch.equal(lm.generate(other, max_new_tokens=8, do_sample=False)[:, :, 6:], codes[:, :, 6:])


def test_the_first_frames_of_a_run_reproduce_it() -> None:
    lm = model()
    codes = lm.generate(max_new_tokens=15, do_sample=False)
    again = lm.generate(codes[0, :, :7], max_new_tokens=8, do_sample=False)
    assert torch.equal(codes, again)


def test_a_prompt_may_begin_with_the_start_token() -> None:
    lm, prompt = model(), ids(1, 4, 3)
    begun = torch.cat([torch.full((4, 1), V), prompt], 1)
    kwargs: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(lm.generate(begun, **kwargs), lm.generate(input_ids=prompt, **kwargs))


def test_frames_of_a_request() -> None:
    lm = model()
    for tokens, frames in ((16, 13), (64, 61)):
        assert lm.generate(max_new_tokens=tokens).shape[2] == frames
    assert lm.generate(ids(1, 4, 10), max_new_tokens=32).shape[2] == 39
    assert lm.generate(max_length=30).shape[2] == 26
    assert lm.generate(max_new_tokens=5).shape[2] == 5


def test_fresh_models_sample_thirty_seconds_with_guidance() -> None:
    settings = model().generation_config
    assert (settings.do_sample, settings.guidance_scale, settings.max_length) == (True, 3.0, 1504)
    assert model().window_steps == 1503


def test_several_sequences_a_prompt() -> None:
    """Others mix the streams of different samples."""
    lm, states = model(), text()
    codes = lm.generate(
        encoder_hidden_states=states, num_return_sequences=3, max_new_tokens=9, do_sample=False, guidance_scale=1.0
    )
    each = lm.generate(encoder_hidden_states=states, max_new_tokens=9, do_sample=False, guidance_scale=1.0)
    assert torch.equal(codes, each.repeat_interleave(3, 0))
    drawn = lm.generate(encoder_hidden_states=states[:1], num_return_sequences=2, max_new_tokens=9, seeds=[1, 2])
    assert not torch.equal(drawn[0], drawn[1])


def test_scores_and_logits() -> None:
    out = model().generate(
        encoder_hidden_states=text(),
        max_new_tokens=8,
        top_k=3,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert out.sequences.shape == (2, 4, 5)
    assert [s.shape for s in out.scores] == [(8, V)] * 8
    assert all((s.isfinite().sum(-1) == 3).all() for s in out.scores)
    assert [s.shape for s in out.logits] == [(16, V)] * 8  # both guidance branches


def test_a_streamer_sees_every_column() -> None:
    class Streamer:
        def __init__(self) -> None:
            self.columns: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.columns.append(value)

        def end(self) -> None:
            self.ended = True

    lm, streamer = model(), Streamer()
    codes = lm.generate(max_new_tokens=9, do_sample=False, streamer=streamer)
    grid = torch.stack(streamer.columns, 1)
    assert streamer.ended
    assert torch.equal(grid[0, :6], codes[0, 0])
    assert torch.equal(grid[3, 3:], codes[0, 3])


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"repetition_penalty": 1.3}, "repetition_penalty=1.3"),
        ({"logits_processor": [print]}, "logits_processor"),
        ({"stopping_criteria": [print]}, "stopping_criteria"),
        ({"tempo": 120}, "'tempo'"),
        ({"temperature": 0.0}, "do_sample=False"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1504}, "1504 tokens were asked for, but this model's window holds 1503"),
        ({"seeds": [1, 2]}, "2 seeds for 1 samples"),
    ],
)
def test_generate_refuses_in_words(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model().generate(**{"max_new_tokens": 6} | kwargs)


def test_the_window_names_what_remains() -> None:
    with pytest.raises(RequestError, match=r"prompt of 1000 tokens and 600 new ones .* at most 503 new tokens remain"):
        model().generate(ids(1, 4, 1000), max_new_tokens=600)
    with pytest.raises(RequestError, match="max_length=8"):
        model().generate(ids(1, 4, 10), max_length=8)
    with pytest.raises(RequestError, match="ask for 4 or more"):
        model().generate(ids(1, 4, 10), max_new_tokens=3)
    with pytest.raises(RequestError, match="6 rows"):
        model().generate(ids(1, 6, 10), max_new_tokens=30)
    with pytest.raises(RequestError, match="2 texts for 1 samples"):
        model().generate(ids(1, 4, 2), encoder_hidden_states=text(), max_new_tokens=30)


def collect(lm: MusicgenForCausalLM, **kwargs: Any) -> Tensor:
    run = lm.iterate_codes(**kwargs)
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=8), Sampling(guidance=1.0, top_p=0.9, top_k=0)])
def test_a_seed_gives_the_same_codes_in_every_batch(batch: int, sampling: Sampling) -> None:
    """Texts and prompts of different lengths, each with its own seed: together as each alone."""
    lm = model()
    lengths, prompts = [1 + b % 3 for b in range(batch)], [b % 4 for b in range(batch)]
    states, mask = text(batch, 3), torch.tensor([[int(i < n) for i in range(3)] for n in lengths])
    codes = [ids(1, 4, 4)[:, :p] for p in prompts]
    together = collect(
        lm,
        frames=9,
        sampling=sampling,
        generators=generators(*range(batch)),
        text_states=states,
        text_mask=mask,
        prompt_codes=codes,
    )
    for b in range(batch):
        alone = collect(
            lm,
            frames=9,
            sampling=sampling,
            generators=generators(b),
            text_states=states[b : b + 1, : lengths[b]],
            prompt_codes=[codes[b]],
        )
        assert torch.equal(together[b], alone[0]), b
        assert torch.equal(together[b, :, : prompts[b]], codes[b])


def test_seeds_of_generate_are_those_of_iterate_codes() -> None:
    lm = model()
    by_name = lm.generate(encoder_hidden_states=text(), max_new_tokens=12, seeds=[4, 5], top_k=8)
    by_hand = collect(lm, frames=9, sampling=Sampling(top_k=8), generators=generators(4, 5), text_states=text())
    assert torch.equal(by_name, by_hand)


def test_iterate_codes_respects_the_window() -> None:
    with pytest.raises(RequestError, match="window holds 1503"):
        collect(model(), frames=1501, sampling=GREEDY, generators=generators(1))
    with pytest.raises(RequestError, match="prompt has 5 frames, but only 4"):
        collect(model(), frames=4, sampling=GREEDY, generators=generators(1), prompt_codes=[ids(1)])
    assert torch.equal(
        collect(model(), frames=5, sampling=GREEDY, generators=generators(1), prompt_codes=[ids(1)])[0], ids(1)
    )


def test_delay_pattern_masks_are_as_pictured() -> None:
    lm = model()
    start, grid = lm.build_delay_pattern_mask(torch.full((4, 1), V), V, max_length=8)
    free = [[V, -1, -1, -1, -1, V, V, V], [V, V, -1, -1, -1, -1, V, V], [V, V, V, -1, -1, -1, -1, V]]
    assert grid.tolist() == [*free, [V, V, V, V, -1, -1, -1, -1]]
    assert start.tolist() == [[V]] * 4
    prompt = torch.tensor([[V, 1, 2], [V, 3, 4], [V, 5, 6], [V, 7, 8]])
    start, grid = lm.build_delay_pattern_mask(prompt, V, max_length=8)
    assert grid[1].tolist() == [V, V, 3, 4, -1, -1, V, V]
    assert start.tolist() == [[V, 1, 2], [V, V, 3], [V, V, V], [V, V, V]]
    assert lm.apply_delay_pattern_mask(torch.zeros(4, 5, dtype=torch.long), grid)[0].tolist() == [V, 1, 2, 0, 0]


def test_prompts_of_different_length_fill_a_grid() -> None:
    codes = with_prompts([torch.ones(2, 1, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)], 3)
    assert codes.tolist() == [[[1, -1, -1]] * 2, [[1, 1, 1]] * 2]


# -------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_the_decoder_of_a_whole_musicgen(folder: Path) -> None:
    from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

    whole = MusicgenForConditionalGeneration.from_pretrained(folder)
    plain = MusicgenForCausalLM.from_pretrained(folder)
    unpacked = MusicgenForCausalLM.from_pretrained(folder, **MusicgenDecoderConfig.from_pretrained(folder))
    bare = MusicgenModel.from_pretrained(folder)
    for name, wanted in whole.decoder.state_dict().items():
        assert torch.equal(plain.state_dict()[name], wanted)
        assert torch.equal(unpacked.state_dict()[name], wanted)
        if name.startswith("model."):
            assert torch.equal(bare.state_dict()[name.removeprefix("model.")], wanted)


def test_arguments_override_a_checkpoints_config(folder: Path) -> None:
    assert MusicgenForCausalLM.from_pretrained(folder, dropout=0.7).config.dropout == 0.7


def test_saved_alone_and_loaded(tmp_path: Path) -> None:
    lm = model()
    lm.save_pretrained(tmp_path)
    for kind in (MusicgenForCausalLM, MusicgenModel):
        assert kind.from_pretrained(tmp_path).dtype is torch.float32
    torch.testing.assert_close(MusicgenForCausalLM.from_pretrained(tmp_path)(ids()).logits, lm(ids()).logits)
    assert MusicgenForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype is torch.bfloat16


def test_a_misfitting_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = "model.decoder.layers.1.fc1.weight"

    def refused(tensors: dict[str, Tensor], *named: str) -> None:
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError) as error:
            MusicgenForCausalLM.from_pretrained(tmp_path)
        assert all(word in str(error.value) for word in named)

    refused({k: v for k, v in whole.items() if k != name}, "lacks", name)
    refused(whole | {"model.decoder.surprise": torch.ones(1)}, "unexpected", "surprise")
    refused(whole | {name: torch.ones(3, 3)}, "misshapen", name)
    table = {"model.decoder.embed_positions.weights": torch.ones(4, 16)}
    save_file(whole | table, file, metadata={"format": "pt"})
    MusicgenForCausalLM.from_pretrained(tmp_path)  # checkpoints of 2023 carry the position table
