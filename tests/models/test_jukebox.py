"""Jukebox's priors: teacher-forced passes, fresh weights, files, storage in half precision."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny_prior import KINDS, conditions, config, inputs, prior
from tunesmith.errors import CheckpointError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.nn.factored import Pattern, attend_masked


@pytest.mark.parametrize("kind", KINDS)
def test_whole_pass_equals_masked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prior(kind)
    given = inputs(model)
    found = model(**given).logits
    for pattern in [Pattern, *Pattern.__subclasses__()]:
        monkeypatch.setattr(pattern, "attend", lambda self, q, k, v, dropout=0.0: attend_masked(self, q, k, v))
    torch.testing.assert_close(found, model(**given).logits, atol=1e-4, rtol=1e-4)


def test_lyrics_of_each_item_count() -> None:
    for kind in ("single", "separate"):
        model = prior(kind)
        given = inputs(model)
        logits = model(**given).logits[:, -24:]
        given["labels"][1, -1] = (given["labels"][1, -1] + 1) % 7
        changed = (model(**given).logits[:, -24:] - logits).abs().amax((1, 2)) > 1e-6
        # The last lyric token is input to the music in one architecture; the lyric encoder only predicts it.
        assert changed.tolist() == [False, kind == "single", False]
        given["labels"][2, -2] = (given["labels"][2, -2] + 1) % 7
        assert ((model(**given).logits[2, -24:] - logits[2]).abs() > 1e-6).any()


def test_all_attention_is_causal_whatever_mask_says() -> None:
    for kind in KINDS:
        model = prior(kind, mask=False)
        given = inputs(model)
        logits = model(**given).logits[:, -24:]
        given["codes"][:, 13] = (given["codes"][:, 13] + 1) % 12
        assert ((model(**given).logits[:, -24:] - logits).abs().amax((0, 2)) > 1e-6).nonzero().min() == 14


@pytest.mark.parametrize("kind", KINDS)
def test_losses(kind: str) -> None:
    """Bits per token, weighed by shares of tokens; a batch's loss is the mean of its items'."""
    model = prior(kind)
    given = inputs(model)
    output, lyrics = model(**given), model.config.nb_relevant_lyric_tokens
    music = output.logits[:, -24:].log_softmax(-1).gather(2, (given["codes"] + model.lyric_shift)[..., None])
    torch.testing.assert_close(output.music_loss, -music.mean() / math.log(2))
    total = output.music_loss * 24 / (24 + lyrics) + 0.4 * output.lyrics_loss * lyrics / (24 + lyrics)
    torch.testing.assert_close(output.loss, total)
    singles = [model(**{name: value[i : i + 1] for name, value in given.items()}).loss for i in range(3)]
    torch.testing.assert_close(output.loss, torch.stack(singles).mean())
    assert (output.lyrics_loss > 0) == bool(lyrics)


def test_the_beginning_of_a_window() -> None:
    """Fewer codes than a window give the same logits and activations as far as they go."""
    for kind in KINDS:
        model = prior(kind)
        given = inputs(model)
        start = given | {"codes": given["codes"][:, :10]}
        rows = model.config.nb_relevant_lyric_tokens if model.config.joined else 0
        torch.testing.assert_close(model(**start).logits, model(**given).logits[:, : rows + 10], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_run_no_later_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prior(kind)
    given, layers = inputs(model), model.prior.transformer.layers
    seen: list[Tensor] = []
    layers[1].register_forward_hook(lambda module, args, out: seen.append(out))
    monkeypatch.setattr(layers[2], "forward", lambda *args: pytest.fail("a later layer was run"))
    found = model.activations(**given, layer=2)
    assert torch.equal(found, seen[0][:, -24:])
    assert found.shape == (3, 24, 16)
    weights = model.attention(**given, layer=2, head=1)
    torch.testing.assert_close(weights.shape[:3], torch.Size([3, 1, 24]))


def test_attention_probabilities() -> None:
    """Of every layer: the layer's own output is what they weigh."""
    for kind in KINDS:
        model = prior(kind)
        given = inputs(model)
        for number, layer in enumerate(model.prior.transformer.layers):
            weights = model.attention(**given, layer=number)
            assert (weights >= 0).all()
            assert weights.sum(-1).max() <= 1 + 1e-5
            if layer.attn.crosses:
                assert weights.shape == (3, 2, 24, 6)
                torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 24))
            elif layer.attn.reads_prefix:
                assert weights.shape == (3, 2, 24, 8)


def test_without_labels_a_start_token_is_learned() -> None:
    model = prior("plain", metadata_conditioning=False)
    codes = inputs(model)["codes"]
    assert model(codes).loss > 0
    assert model.prior.start_token.shape == (1, 16)
    assert model.sample(2, seeds=[1, 2]).shape == (2, 24)
    assert not hasattr(prior("plain").prior, "start_token")


def test_no_genre_adds_nothing() -> None:
    model = prior("plain")
    given = inputs(model)
    given["labels"][:, 4:6] = torch.tensor([[1, -1], [-1, 1], [-1, -1]])
    start = model.condition(given["labels"], None, 3).start
    assert start is not None
    embedding = model.metadata_embedding
    assert embedding is not None
    artists, genre = embedding.artist_emb.weight[given["labels"][:, 3]], embedding.bow_genre_emb.weight[1]
    torch.testing.assert_close(start[:, 0], artists + torch.stack([genre, genre, torch.zeros(16)]))


def test_a_window_may_end_after_the_longest_song() -> None:
    """The end of the absolute position is clamped, as that of the relative one always was."""
    model = prior("plain")
    given = inputs(model)
    given["labels"][:, :3] = torch.tensor([9999, 9500, 1000])
    assert model(**given).loss.isfinite()


def test_positions_that_round_up_to_the_end() -> None:
    """The last samples of ten minutes aren't whole numbers in float32."""
    model = prior("plain", sampling_rate=44_100, max_duration=600)
    given = inputs(model)
    given["labels"][:, :3] = torch.tensor([26_459_999, 26_459_998, 1000])
    assert model(**given).loss.isfinite()


def test_initial_deviations() -> None:
    sizes = {"hidden_size": 128, "init_scale": 0.5, "zero_out": False, "metadata_dims": [200, 300], "timing_dims": 100}
    torch.manual_seed(0)
    for kind in KINDS:
        model = JukeboxPrior(config(kind, **sizes, music_vocab_size=200, lyric_vocab_size=200))
        wanted = {
            "embed_tokens": 0.01,
            "pos_emb.pos_emb": 0.005,
            "metadata_embedding": 0.005,
            "c_attn.weight": 0.01,
            "c_fc.weight": 0.01,
            "c_enc_kv.weight": 0.01,
            "encoder.lm_head": 0.01,
        }
        for name, parameter in model.named_parameters():
            if name.startswith("encoder.") and "lm_head" not in name:
                continue  # has an init_scale of its own
            for part, deviation in wanted.items():
                if part in name and "bias" not in name:
                    assert parameter.std().item() == pytest.approx(deviation, rel=0.1), name
            if name.endswith("bias") and "upsampler" not in name:
                assert (parameter == 0).all(), name
        if model.encoder is not None:
            assert model.encoder.proj_in.weight.std().item() == pytest.approx(0.4, rel=0.1)
            assert model.encoder.embed_tokens.weight.std().item() == pytest.approx(0.4, rel=0.1)
            crossing = [layer for layer in model.prior.transformer.layers if layer.attn.crosses]
            for part in (part for layer in crossing for part in (layer.attn.c_proj, layer.mlp.c_proj)):
                assert (part.weight == 0).all()


def test_an_untied_head_begins_uniform_as_torch_has_it() -> None:
    weight = JukeboxPrior(config("plain", music_vocab_size=500)).prior.fc_proj_out.weight
    assert 0.24 < weight.abs().max() <= 0.25
    tied = JukeboxPrior(config("single")).prior
    assert tied.fc_proj_out.weight is tied.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    model = prior(kind)
    given = inputs(model)
    model.save_pretrained(tmp_path)
    again = JukeboxPrior.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**given).logits, model(**given).logits)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["mask"] is True
    assert (written["encoder_config"] is not None) == (kind == "separate")


def test_a_prior_of_a_whole_models_folder(tmp_path: Path) -> None:
    priors = [prior("single"), prior("upsampler")]
    for key in ("prior_config_list", "prior_0"):
        configs = [model.config.to_dict() for model in priors]
        whole = {key: configs} if key == "prior_config_list" else {f"prior_{i}": c for i, c in enumerate(configs)}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "jukebox", **whole}))
        state = {f"priors.{i}.{name}": x.clone() for i, m in enumerate(priors) for name, x in m.state_dict().items()}
        save_file(
            state | {"vqvae.decoders.0.out.bias": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"}
        )
        for level, model in enumerate(priors):
            given = inputs(model)
            found = JukeboxPrior.from_pretrained(tmp_path, level=level).eval()
            assert torch.equal(found(**given).logits, model(**given).logits)
        with pytest.raises(CheckpointError, match="no prior number 2"):
            JukeboxPrior.from_pretrained(tmp_path, level=2)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = prior("plain")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("prior.pos_emb.pos_emb")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks prior\.pos_emb\.pos_emb"):
        JukeboxPrior.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_storage_of_stack_and_convolutions(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Loaded, cast or built so: the same parts are in half precision, results are float32 and near the full ones."""
    model = prior(kind, init_scale=5.0)
    given = inputs(model)
    wanted = model(**given)
    model.save_pretrained(tmp_path)
    loaded = JukeboxPrior.from_pretrained(tmp_path, dtype=dtype).eval()
    built = JukeboxPrior._from_config(config(kind), dtype=dtype)
    cast = model.to(dtype)
    stored = {name: parameter.dtype for name, parameter in cast.named_parameters()}
    for other in (loaded, built):
        assert {name: parameter.dtype for name, parameter in other.named_parameters()} == stored
    halves = {name for name, kept in stored.items() if kept == dtype}
    assert halves == {name for name in stored if halved(name)}
    found = loaded(**given)
    assert found.logits.dtype == torch.float32
    torch.testing.assert_close(found.loss, wanted.loss, rtol=0.05, atol=0)
    assert torch.equal(found.logits, cast(**given).logits)
    sampled = loaded.sample(3, seeds=[1, 2, 3], **conditions(given))
    assert torch.equal(sampled, loaded.sample(3, seeds=[1, 2, 3], chunk_size=1, **conditions(given)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what a process has mapped")
def test_a_cast_model_lets_go_of_its_file(tmp_path: Path) -> None:
    """What stays in float32 would keep all of the mapped file in memory."""
    prior("plain").save_pretrained(tmp_path)
    model = JukeboxPrior.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert {x.dtype for x in model.parameters()} == {torch.float32, torch.bfloat16}


def halved(name: str) -> bool:
    stack = ".transformer." in name and "layer_norm" not in name
    return stack or name.startswith("conditioner_blocks.upsampler.")


def test_training_with_checkpointing_and_dropout() -> None:
    model = prior("separate", emb_dropout=0.1, resid_dropout=0.1, attn_dropout=0.1).train()
    given = inputs(model)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            # renamed in transformers 5.23
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        torch.manual_seed(4)
        model.zero_grad()
        model(**given).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0
