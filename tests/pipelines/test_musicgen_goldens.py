"""MusicGen against the reference tensors: text, logits, caches, greedy codes, continuation, loss and gradients."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.nn.cache import DecoderCache, DenseCache
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor

LOGITS = 1e-4
SCORES = 3e-4


class Case(NamedTuple):
    folder: Path
    model: MusicgenForConditionalGeneration
    values: dict[str, Tensor]
    meta: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        value = self.values[name]
        return value if value.is_floating_point() else value.long()


@cache
def load(folder: Path) -> Case:
    model = MusicgenForConditionalGeneration.from_pretrained(folder / "model")
    return Case(folder, model, load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text()))


@pytest.fixture(params=["lm_mono", "lm_stereo"])
def case(goldens: Path, request: pytest.FixtureRequest) -> Case:
    return load(goldens / "musicgen" / request.param)


def close(found: Tensor, wanted: Tensor, tolerance: float = LOGITS) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def generate(case: Case, **kwargs: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Codes (as the codec gets them), audio and scores of a greedy run."""
    seen: list[Tensor] = []
    decode = case.model.audio_encoder.decode
    case.model.audio_encoder.decode = lambda codes, **kw: seen.append(codes) or decode(codes, **kw)
    try:
        out = case.model.generate(**kwargs, do_sample=False, return_dict_in_generate=True, output_scores=True)
    finally:
        del case.model.audio_encoder.decode
    codes = torch.stack(seen, 3).flatten(2, 3)[0]  # channels interleaved again
    return codes, out.sequences, out.scores


def text(case: Case) -> dict[str, Tensor]:
    return {"input_ids": case["text.input_ids"], "attention_mask": case["text.attention_mask"]}


def test_tokenizer_and_text(case: Case) -> None:
    processor = MusicgenProcessor.from_pretrained(case.folder / "model")
    inputs = processor(text=case.meta["prompts"], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], case["text.input_ids"])
    assert torch.equal(inputs["attention_mask"], case["text.attention_mask"])
    close(case.model.encode_text(**inputs), case["text.projected_masked"])
    for entry in json.loads((case.folder / "tokenization.json").read_text()):
        assert processor.tokenizer(entry["text"]).input_ids == entry["ids"]
        assert processor.decode(entry["ids"], skip_special_tokens=True) == entry["decoded"]


def test_logits_and_hidden_states(case: Case) -> None:
    out = case.model(**text(case), decoder_input_ids=case["decoder_input_ids"], output_hidden_states=True)
    close(out.logits, case["logits"])
    close(torch.stack(out.decoder_hidden_states), case["decoder_hidden_states"])
    close(out.encoder_last_hidden_state, case["text.last_hidden_state"])


def test_attention_weights_change_nothing(case: Case) -> None:
    out = case.model(**text(case), decoder_input_ids=case["decoder_input_ids"], output_attentions=True)
    close(out.logits, case["logits"])
    layers = case.model.config.decoder.num_hidden_layers
    assert len(out.decoder_attentions) == len(out.cross_attentions) == layers
    for weights in (*out.decoder_attentions, *out.cross_attentions):
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_decoder_masks(case: Case) -> None:
    states, mask = case["text.projected_masked"], case["text.attention_mask"]
    ids = case["decoder_input_ids"]
    unmasked = case.model.decoder(ids, encoder_hidden_states=states)
    close(unmasked.logits, case["decoder_only.no_encoder_mask.logits"])
    masked = case.model.decoder(
        ids, case["decoder_attention_mask"], encoder_hidden_states=states, encoder_attention_mask=mask
    )
    close(masked.logits, case["decoder_only.with_decoder_mask.logits"])


@pytest.mark.parametrize("first", [1, 5])
@pytest.mark.parametrize("kind", ["growing", "dense"])
def test_fed_piece_by_piece(case: Case, first: int, kind: str) -> None:
    ids, config = case["decoder_input_ids"], case.model.config.decoder
    past: Any = None
    if kind == "dense":
        heads = config.num_attention_heads
        past = DecoderCache.build(
            config.num_hidden_layers, lambda: DenseCache(3, heads, ids.shape[1], config.hidden_size // heads)
        )
    pieces = []
    for piece in (ids[:, :first], *ids[:, first:].split(1, 1)):
        out = case.model(**text(case), decoder_input_ids=piece, past_key_values=past, use_cache=True)
        pieces.append(out.logits)
        past = out.past_key_values
    assert past.get_seq_length() == ids.shape[1]
    close(torch.cat(pieces, 1), case["incremental.one_by_one.logits"])


def test_delay_pattern(case: Case) -> None:
    special, decoder = case.model.config.decoder.pad_token_id, case.model.decoder
    for name, meta in case.meta["delay"].items():
        start, pattern = decoder.build_delay_pattern_mask(case[f"delay.{name}.input"], special, meta["max_length"])
        assert torch.equal(start, case[f"delay.{name}.start_ids"])
        assert torch.equal(pattern, case[f"delay.{name}.pattern"])
        ramp = (torch.arange(pattern.numel()) % decoder.config.vocab_size).view(pattern.shape)
        assert torch.equal(decoder.apply_delay_pattern_mask(ramp, pattern), case[f"delay.{name}.applied"])


@pytest.mark.parametrize("guidance", [1, 3])
def test_greedy(case: Case, guidance: int) -> None:
    codes, audio, scores = generate(case, **text(case), guidance_scale=float(guidance), max_new_tokens=23)
    assert torch.equal(codes, case[f"greedy_g{guidance}.codes"])
    close(torch.stack(scores), case[f"greedy_g{guidance}.scores"], SCORES)
    if guidance == 3:
        close(audio, case["greedy_g3.audio"])


def test_a_prompt_alone_is_as_in_the_batch(case: Case) -> None:
    processor = MusicgenProcessor.from_pretrained(case.folder / "model")
    inputs = processor(text=case.meta["prompts"][:1], return_tensors="pt")
    codes, _, _ = generate(case, **inputs, max_new_tokens=23)
    assert torch.equal(codes, case["greedy_g3_first_prompt_alone.codes"])
    assert torch.equal(codes, case["greedy_g3.codes"][:1])


@pytest.mark.parametrize("guidance", [1, 3])
@pytest.mark.parametrize("prompts", ["cont_equal", "cont_ragged"])
def test_continuation_of_audio(case: Case, prompts: str, guidance: int) -> None:
    names = ("input_ids", "attention_mask", "input_values", "padding_mask")
    inputs = {name: case[f"{prompts}.{name}"] for name in names}
    assert torch.equal(
        case.model.encode_prompt(inputs["input_values"], inputs["padding_mask"]), case[f"{prompts}.prompt_codes"]
    )
    codes, audio, _ = generate(case, **inputs, guidance_scale=float(guidance), max_new_tokens=17)
    run = f"{prompts}.greedy_g{guidance}"
    assert torch.equal(codes, case[f"{run}.codes"])
    if f"{run}.audio" in case.values:
        close(audio, case[f"{run}.audio"])


def test_processor_pads_audio_on_the_left(case: Case) -> None:
    processor = MusicgenProcessor.from_pretrained(case.folder / "model")
    clips = [case[f"cont_ragged.audio_prompt{i}"].squeeze(0).numpy() for i in (0, 1)]
    inputs = processor(
        audio=clips,
        sampling_rate=case.model.config.sampling_rate,
        text=case.meta["prompts"][:2],
        padding=True,
        return_tensors="pt",
    )
    for name in ("input_ids", "attention_mask", "input_values", "padding_mask"):
        assert torch.equal(inputs[name].double(), case[f"cont_ragged.{name}"].double()), name


def test_continuation_of_codes(case: Case) -> None:
    ids = case["cont_codes.prompt_codes"].flatten(0, 1)
    codes, _, _ = generate(case, **text(case), decoder_input_ids=ids, max_new_tokens=17)
    assert torch.equal(codes, case["cont_codes.greedy_g3.codes"])


def test_unconditional(case: Case) -> None:
    codes, audio, _ = generate(case, **case.model.get_unconditional_inputs(num_samples=2), max_new_tokens=19)
    assert torch.equal(codes, case["uncond.greedy.codes"])
    close(audio, case["uncond.greedy.audio"])


def train_inputs(case: Case) -> dict[str, Tensor]:
    return {**text(case), "labels": case["train.labels"]}


def test_loss_and_gradients(case: Case) -> None:
    model = case.model
    model.freeze_text_encoder()
    model.freeze_audio_encoder()
    model.zero_grad()
    out = model(**train_inputs(case))
    close(out.loss, case["train.loss"], 1e-5)
    close(out.logits, case["train.logits"])
    out.loss.backward()
    parameters = dict(model.named_parameters())
    for name, value in case.values.items():
        if name.startswith("train.grad."):
            found = parameters[name.removeprefix("train.grad.")].grad
            close(found, value, 1e-4 * float(value.abs().max()))
    for name, (norm, _) in case.meta["train"]["grad_l2norm_and_sum"].items():
        assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-3), name
    model.zero_grad()


def test_loss_with_explicit_inputs(case: Case) -> None:
    ids = case["train.explicit.decoder_input_ids"]
    out = case.model(**train_inputs(case), decoder_input_ids=ids)
    close(out.loss, case["train.explicit.loss"], 1e-5)


Reference = Callable[[str], Tensor]


@pytest.fixture(params=["mono", "stereo"])
def original(goldens: Path, request: pytest.FixtureRequest) -> tuple[Case, dict[str, Tensor]]:
    """The same weights, with what the original implementation makes of them."""
    return (
        load(goldens / "musicgen" / f"lm_{request.param}"),
        load_file(goldens / "musicgen" / "audiocraft" / request.param / "io.safetensors"),
    )


def test_unmasked_text_is_the_original(original: tuple[Case, dict[str, Tensor]]) -> None:
    case, want = original
    close(case["text.projected_masked"], want["text.condition"], 1e-5)
    codes, audio, _ = generate(case, **text(case), mask_text=False, max_new_tokens=23)
    assert torch.equal(codes, want["generate.tokens"].long())
    close(audio, want["generate.audio"])
    codes, _, _ = generate(case, **text(case), mask_text=False, guidance_scale=1.0, max_new_tokens=23)
    assert torch.equal(codes, want["generate_cfg1.tokens"].long())


def test_single_prompts_of_the_original(original: tuple[Case, dict[str, Tensor]]) -> None:
    case, want = original
    processor = MusicgenProcessor.from_pretrained(case.folder / "model")
    for i, prompt in enumerate(case.meta["prompts"]):
        codes, _, _ = generate(case, **processor(text=[prompt], return_tensors="pt"), max_new_tokens=23)
        assert torch.equal(codes, want[f"generate_single{i}.tokens"].long())


def test_continuations_of_the_original(original: tuple[Case, dict[str, Tensor]]) -> None:
    case, want = original
    audio = want["continuation.prompt_audio"]
    processor = MusicgenProcessor.from_pretrained(case.folder / "model")
    inputs = processor(text=case.meta["prompts"][:2], padding=True, return_tensors="pt")
    codes, _, _ = generate(case, **inputs, input_values=audio, mask_text=False, max_new_tokens=18)
    assert torch.equal(codes, want["continuation.tokens"].long())
    codes, _, _ = generate(case, input_values=audio, max_new_tokens=18)
    assert torch.equal(codes, want["continuation_no_text.tokens"].long())


def test_loss_of_the_original(original: tuple[Case, dict[str, Tensor]]) -> None:
    """Delayed labels cut to T columns, holes ignored, give the original's loss over the positions that it keeps."""
    case, want = original
    from tunesmith.generation import patterns

    decoder = case.model.config.decoder
    codes, mask = case["codes"], want["predictions.mask"].bool()
    frames = codes.shape[2]
    pattern = patterns.musicgen(frames, decoder.num_codebooks, decoder.audio_channels)
    labels = pattern.build(codes, special=-100)[:, :, 1 : frames + 1].transpose(1, 2)
    assert mask.sum() == (labels != -100).sum()
    states = case["text.projected_masked"]
    loss = case.model.decoder(labels=labels, encoder_hidden_states=states).loss
    close(loss, want["loss"], 1e-5)
