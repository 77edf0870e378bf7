"""What transformers' `GenerationConfig` asks for, as this package's sampler and lengths.

The classes with Hugging Face's names take their settings from such a config, overridden by keywords.  A setting that
would be ignored here (beams, penalties, processors) is refused instead.
"""

import copy
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from tunesmith.errors import RequestError
from tunesmith.generation.sampling import Sampler
from tunesmith.generation.seeds import one_each

TOP_K = 50
GUIDANCE = 3.0

# Settings that change what is chosen and that we don't have -> the values that mean "off".
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "max_time": (None,),
    "stop_strings": (None,),
    "min_p": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "force_words_ids": (None,),
    "constraints": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "watermarking_config": (None,),
    "prompt_lookup_num_tokens": (None,),
    "dola_layers": (None,),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}


def defaults(model: PreTrainedConfig, max_length: int) -> dict[str, Any]:
    """What a fresh model's generation config says: sampling, guidance 3, `max_length` columns, the special tokens."""
    return {
        "do_sample": True,
        "guidance_scale": GUIDANCE,
        "max_length": max_length,
        "pad_token_id": model.pad_token_id,
        "bos_token_id": model.bos_token_id,
        "decoder_start_token_id": model.decoder_start_token_id,
    }


def fill(config: GenerationConfig, values: dict[str, Any]) -> None:
    """Set what is unset."""
    for name, value in values.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)


def resolve(
    own: GenerationConfig, given: GenerationConfig | None, keywords: dict[str, Any], defaults: dict[str, Any]
) -> GenerationConfig:
    """Keywords before the given config before the model's own before the defaults.

    A keyword of None switches its setting off.  Raises RequestError for settings that don't exist here.
    """
    config = copy.deepcopy(own if given is None else given)
    fill(config, own.to_dict())
    fill(config, defaults | {"top_k": TOP_K})
    for name, value in keywords.items():
        if hasattr(config, name):
            setattr(config, name, value)
        elif value is not None and name != "synced_gpus":  # all samples are equally long, so ranks are in step anyway
            raise RequestError(f"generate doesn't know the argument {name!r}; leave it out.")
    if keywords.get("max_length") is not None and "max_new_tokens" not in keywords:
        config.max_new_tokens = None  # what is said in the call rules, also over the other way to say it
    fill(config, {"max_length": defaults["max_length"]})
    for name, off in _UNSUPPORTED.items():
        if (value := getattr(config, name, None)) not in off:
            raise RequestError(f"generate doesn't support {name}={value!r}; leave it out.")
    _validate(config)
    return config


def _validate(config: GenerationConfig) -> None:
    checks = (
        ("temperature", Real, lambda v: v > 0, "above 0 (for greedy decoding use do_sample=False)"),
        ("top_k", Integral, lambda v: v >= 0, "0 (off) or a whole number above"),
        ("top_p", Real, lambda v: 0 <= v <= 1, "between 0 and 1"),
        ("guidance_scale", Real, lambda v: v >= 0, "a number above 1, or up to 1 for none"),
        ("max_length", Integral, lambda v: v >= 1, "a whole number from 1 on"),
        ("max_new_tokens", Integral, lambda v: v >= 1, "a whole number from 1 on"),
        ("num_return_sequences", Integral, lambda v: v >= 1, "a whole number from 1 on"),
    )
    for name, kind, allowed, sentence in checks:
        value = getattr(config, name, None)
        if value is not None and not (isinstance(value, kind) and allowed(value)):
            raise RequestError(f"{name} is {value!r}, but it must be {sentence}.")


def guided(config: GenerationConfig) -> bool:
    """Is the null branch needed?"""
    return config.guidance_scale is not None and config.guidance_scale > 1


def sampler(config: GenerationConfig, generators: Sequence[torch.Generator] | None) -> Sampler:
    """The sampler that the config describes; greedy without `do_sample`."""
    temperature = 1.0 if config.temperature is None else config.temperature
    return Sampler(
        temperature=temperature if config.do_sample else 0.0,
        top_k=config.top_k or 0,
        top_p=config.top_p or 0.0,
        guidance=config.guidance_scale or 1.0,
        generators=generators,
    )


def grid_columns(config: GenerationConfig, prompt: int) -> int:
    """Columns of the grid, start included: `max_new_tokens` after the prompt, or `max_length` in all."""
    if config.max_new_tokens is not None:
        return 1 + prompt + int(config.max_new_tokens)
    length = int(config.max_length)
    if length <= prompt + 1:
        raise RequestError(
            f"The prompt has {prompt} tokens, but max_length={length} leaves no room for new ones; "
            f"raise it above {prompt + 1} or set max_new_tokens."
        )
    return length


def generators(seeds: Any, samples: int, device: torch.device) -> tuple[torch.Generator, ...] | None:
    """A generator a sample; None without seeds.  Of a single seed sample i has seed + i.  Raises RequestError."""
    if seeds is None:
        return None
    return tuple(torch.Generator(device).manual_seed(seed) for seed in one_each(seeds, samples))


class Recorder:
    """A sampler that keeps what it chose from, [B·K, V] a column, under transformers' names."""

    def __init__(self, sampler: Sampler, keep: bool) -> None:
        self.sampler, self.keep = sampler, keep
        self.logits: list[Tensor] = []
        self.scores: list[Tensor] = []

    def __call__(self, logits: Float[Tensor, "G B K V"], items: Sequence[int]) -> Int[Tensor, "B K"]:
        """As the sampler."""
        if not self.keep:
            return self.sampler(logits, items)
        scores = self.sampler.scores(logits)
        self.logits.append(logits.float().flatten(0, 2).clone())  # a session may use its memory again
        self.scores.append(scores.flatten(0, 1))
        return self.sampler.choose(scores, items)
