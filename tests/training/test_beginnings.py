"""What a new decoder knows before it has learnt anything."""

import pytest
import torch
from transformers import T5Config

from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration
from tunesmith.training.beginnings import attend_to_lags, begin_well

FRAMES = 80


@pytest.fixture
def codec() -> EncodecModel:
    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=4000, hidden_size=16, num_filters=4, upsampling_ratios=[4, 5], codebook_size=32, num_lstm_layers=1
    )
    codec = EncodecModel(config).eval()
    for book in codec.quantizer.books:
        book.embed.normal_()
    return codec


@pytest.fixture
def model(codec: EncodecModel) -> MusicgenForConditionalGeneration:
    decoder = MusicgenDecoderConfig(
        vocab_size=32,
        num_codebooks=codec.codebooks,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        ffn_dim=96,
        dropout=0.0,
    )
    text = T5Config(vocab_size=20, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, is_encoder_decoder=False)
    config = MusicgenConfig.from_sub_models_config(text, codec.config, decoder)
    return MusicgenForConditionalGeneration(config).eval()


def attention(model: MusicgenForConditionalGeneration) -> list[torch.Tensor]:
    codes = torch.zeros(model.config.decoder.num_codebooks, FRAMES, dtype=torch.long)
    return list(model.decoder(codes, output_attentions=True).attentions)


def test_heads_look_back_by_their_lags(model: MusicgenForConditionalGeneration) -> None:
    attend_to_lags(model.decoder, lags=(3, 20, 1, 7))
    for embedding in model.decoder.model.decoder.embed_tokens:
        embedding.weight.data.zero_()  # positions alone
    first, second = attention(model)
    assert [first[0, head, -1].argmax().item() for head in (0, 1)] == [FRAMES - 4, FRAMES - 21]
    assert [second[0, head, 60].argmax().item() for head in (0, 1)] == [59, 53]
    assert first[0, 2].max(1).values[40:].max() < 0.1  # the third head is left as it was


def test_codes_are_as_near_each_other_as_in_the_codec(
    model: MusicgenForConditionalGeneration, codec: EncodecModel
) -> None:
    begin_well(model, codec)
    for book, embedding, head in zip(
        codec.quantizer.books, model.decoder.model.decoder.embed_tokens, model.decoder.lm_heads, strict=True
    ):
        distances = torch.pdist(book.embed)
        for weight in (embedding.weight[:32], head.weight):
            ratios = torch.pdist(weight) / distances
            assert torch.allclose(ratios, ratios.mean().expand_as(ratios), rtol=1e-3)


def test_words_are_heard_from_the_start_and_blocks_are_silent(
    model: MusicgenForConditionalGeneration, codec: EncodecModel
) -> None:
    begin_well(model, codec)
    codes = torch.randint(0, 32, (codec.codebooks, 10))
    spoken = [model(torch.tensor([words]), decoder_input_ids=codes).logits for words in ([3, 4], [5, 6])]
    assert not torch.allclose(*spoken, atol=1e-4)
    for layer in model.decoder.model.decoder.layers:
        assert not layer.fc2.weight.any()
        assert not layer.self_attn.out_proj.weight.any()
