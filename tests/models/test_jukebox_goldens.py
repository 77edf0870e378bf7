"""Jukebox's priors: the original's numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.generation import decode
from tunesmith.generation.sampling import warp
from tunesmith.models.jukebox import JukeboxPrior, PriorSession
from tunesmith.models.jukebox_engine import EngineSession

CASES = [
    "prior_plain/merged",
    "prior_plain/shared_res_scale",
    "prior_sep_enc_dec",
    "prior_single_enc_dec",
    "upsampler/level_0",
    "upsampler/level_1",
]
TOLERANCES = {"x_cond": 1e-5, "y_cond": 1e-5, "encoder_states": 5e-5, "attn_probs_alignment_layer": 1e-5}
LOSSES = {"loss": 2e-5, "gen_loss_bits": 2e-5, "prime_loss_bits": 2e-5}


class Golden:
    """One case: the model, what goes in, what the original makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = JukeboxPrior.from_pretrained(folder / "hf").eval()
        self.given, self.wanted = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
        self.meta = json.loads((folder / "meta.json").read_text())
        self.z, self.conditions = self.given["z"], {"labels": self.given["y"], "upper_codes": self.given.get("z_cond")}

    def check(self, name: str, found: Tensor) -> None:
        tolerance = (TOLERANCES | LOSSES).get(name, 1e-4)
        torch.testing.assert_close(found, self.wanted[name], atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}")


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest, goldens: Path) -> Golden:
    return Golden(goldens / "jukebox" / request.param)


def test_goldens_of_a_teacher_forced_pass(golden: Golden) -> None:
    with torch.no_grad():
        output = golden.model(golden.z, **golden.conditions)
        condition = golden.model.condition(**golden.conditions, batch=len(golden.z))
    assert condition.added is not None
    assert condition.start is not None
    prefix = output.logits.shape[1] - golden.z.shape[1]
    assert (condition.added[:, :prefix] == 0).all()
    golden.check("x_cond", condition.added[:, prefix:])
    golden.check("y_cond", condition.start)
    golden.check("logits", output.logits)
    golden.check("loss", output.loss)
    golden.check("gen_loss_bits", output.music_loss)
    golden.check("prime_loss_bits", output.lyrics_loss)
    if "encoder_states" in golden.wanted:
        golden.check("encoder_states", output.encoder_states)
        golden.check("prime_logits", output.lyrics_logits)
    if "attn_probs_alignment_layer" in golden.wanted:
        found = golden.model.attention(golden.z, **golden.conditions)
        golden.check("attn_probs_alignment_layer", found)
        one = golden.model.attention(golden.z, **golden.conditions, layer=golden.model.config.alignment_layer, head=1)
        assert torch.equal(one, found[:, 1:2])


@pytest.mark.parametrize("name", ["ancestral", "primed"])
@torch.no_grad()
def test_goldens_of_steps(golden: Golden, name: str) -> None:
    """Logits of every position: fed one by one after the prefix, or the first ones in chunks."""
    model, count = golden.model, len(golden.z)
    condition = model.condition(**golden.conditions, batch=count)
    session = model.session(condition, count, golden.z.shape[1], golden.meta["chunk_size"])
    tokens = torch.cat([session.prefix, golden.z + model.lyric_shift], 1)
    together = session.prefix.shape[1] + (golden.meta["prime_tokens"] if name == "primed" else 0)
    x = model.prior.shifted(tokens[:, :-1], condition.start)
    pieces = list(session.feed(x[:, :together])) + [h for p in range(together, x.shape[1]) for h in one(session, x, p)]
    golden.check(f"step_logits_{name}", model.prior.logits(torch.cat(pieces, 1), condition))


def one(session: Any, x: Tensor, position: int) -> list[Tensor]:
    return list(session.feed(x[:, position : position + 1]))


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_goldens_of_greedy_sampling(golden: Golden, chunk_size: int | None) -> None:
    sample, settings = golden.model.sample, {**golden.conditions, "temperature": 0.0, "chunk_size": chunk_size}
    primer = golden.z[:, : golden.meta["prime_tokens"]]
    assert torch.equal(sample(3, **settings), golden.wanted["greedy_tokens_ancestral"])
    assert torch.equal(sample(3, codes=primer, **settings), golden.wanted["greedy_tokens_primed"])
    tokens = golden.meta["partial_sample_tokens"]
    assert torch.equal(sample(3, sample_tokens=tokens, **settings), golden.wanted["greedy_tokens_partial"])


def test_goldens_of_greedy_sampling_in_the_models_own_vocabulary(golden: Golden) -> None:
    """Raw symbols and the logits they were chosen from: a stray lyric token stays what it is for the model."""
    model, primer = golden.model, golden.z[:, : golden.meta["prime_tokens"]]
    for name, given in (("ancestral", None), ("primed", primer)):
        seen: list[Tensor] = []
        *_, last = recorded(model, seen, codes=given, temperature=0.0, **golden.conditions)
        prefix = model.condition(**golden.conditions, batch=3).lyrics if model.config.joined else golden.z[:, :0]
        assert torch.equal(torch.cat([prefix, last.codes[:, 0]], 1), golden.wanted[f"greedy_tokens_{name}_raw"])
        golden.check(f"greedy_step_logits_{name}", torch.stack(seen, 1))


def recorded(model: JukeboxPrior, seen: list[Tensor], **settings: Any) -> list[decode.Step]:
    """The steps of a run; `seen` gets the logits of each choice [B, V]."""

    def heard(original: Any) -> Any:
        def listening(session: Any, hidden: Tensor) -> Tensor:
            logits: Tensor = original(session, hidden)
            seen.append(logits[0, :, 0])
            return logits

        return listening

    with pytest.MonkeyPatch.context() as patch:
        for kind in (PriorSession, EngineSession):
            patch.setattr(kind, "_next", heard(kind._next))
        return list(model.iterate_codes(3, **settings))


def test_goldens_of_gradients(golden: Golden) -> None:
    model = golden.model
    half = golden.meta["fp16_projection_weights"]
    model.zero_grad()
    model(golden.z, **golden.conditions).loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    wanted = json.loads((golden.folder / "gradients.json").read_text())
    for name, statistics in wanted.items():
        ours = renamed(name)
        gradient = found.pop(ours, None)
        if gradient is None:  # tied: counted under the other name
            assert ours == "prior.fc_proj_out.weight"
            continue
        tolerance = 2e-2 if half and name.endswith(".w") else 1e-3
        l2, mean = gradient.norm().item(), gradient.abs().mean().item()
        assert l2 == pytest.approx(statistics["l2"], rel=tolerance, abs=1e-7), name
        assert mean == pytest.approx(statistics["mean_abs"], rel=tolerance, abs=1e-7), name
        spread = tolerance * statistics["mean_abs"] * gradient.numel()
        assert gradient.sum().item() == pytest.approx(statistics["sum"], abs=spread + 1e-7), name
    assert not found


def renamed(name: str) -> str:
    """The original's parameter name -> ours."""
    for old, new in (
        ("prime_state_proj", "encoder.proj_in"),
        ("prime_state_ln", "encoder.final_layer_norm"),
        ("prime_x_out", "encoder.lm_head"),
        ("prime_prior.", "encoder."),
        ("conditioner_blocks.0.cond.model.0.", "conditioner_blocks.upsampler.proj_in."),
        ("conditioner_blocks.0.", "conditioner_blocks."),
        ("conditioner_blocks.ln", "conditioner_blocks.layer_norm"),
        ("x_emb", "embed_tokens"),
        ("x_out", "fc_proj_out"),
        (".ln_", ".layer_norm_"),
        ("bow_genre_emb.emb", "bow_genre_emb"),
        ("artist_emb.emb", "artist_emb"),
        ("y_emb.", "metadata_embedding."),
    ):
        name = name.replace(old, new)
    if ".cond.model." in name:
        head, _, tail = name.partition(".cond.model.")
        stage, inner, *rest = tail.split(".")
        block = 2 * int(stage) - 2 + int(inner)
        if inner == "0":
            _, r, _, conv, kind = rest
            rest = ["resnet_block", r, "conv1d_1" if conv == "1" else "conv1d_2", kind]
        name = ".".join([head, "upsampler.upsample_block", str(block), *rest])
    return (
        name.removesuffix(".w") + ".weight"
        if name.endswith(".w")
        else name.removesuffix(".b") + ".bias"
        if name.endswith(".b")
        else name
    )


def test_goldens_of_filters(goldens: Path) -> None:
    folder = goldens / "jukebox" / "sampling_filter"
    logits, wanted = load_file(folder / "inputs.safetensors")["logits"], load_file(folder / "outputs.safetensors")
    names = {name.rpartition(".")[0] for name in wanted}
    assert len(names) == 8
    for name in names:
        temperature, top_k, top_p = (float(part.lstrip("tempok_")) for part in name.split("_"))
        scores = warp(logits, temperature, int(top_k), top_p)
        assert torch.equal(scores > -torch.inf, wanted[f"{name}.kept"]), name
        torch.testing.assert_close(scores.softmax(-1), wanted[f"{name}.probabilities"], atol=1e-6, rtol=0)
