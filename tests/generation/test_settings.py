"""Generation settings: who overrides whom, what is refused, how long."""

from typing import Any

import pytest
from transformers import GenerationConfig

from tunesmith.errors import RequestError
from tunesmith.generation import settings

DEFAULTS: dict[str, Any] = {"do_sample": True, "guidance_scale": 3.0, "max_length": 1504}


def resolve(own: GenerationConfig | None = None, given: GenerationConfig | None = None, **keywords: Any) -> Any:
    return settings.resolve(own or GenerationConfig(), given, keywords, DEFAULTS)


def test_keywords_before_the_given_before_the_own_before_the_defaults() -> None:
    own = GenerationConfig(temperature=0.5, top_p=0.5, max_length=99)
    config = resolve(own, GenerationConfig(temperature=0.7, top_p=0.7), temperature=0.9)
    assert (config.temperature, config.top_p, config.max_length) == (0.9, 0.7, 99)
    assert (config.do_sample, config.guidance_scale, config.top_k) == (True, 3.0, 50)
    assert own.temperature == 0.5


def test_none_switches_off() -> None:
    config = resolve(guidance_scale=None, top_k=None, do_sample=None)
    sampler = settings.sampler(config, None)
    assert (sampler.top_k, sampler.temperature) == (0, 0.0)
    assert not settings.guided(config)
    assert resolve(max_length=None).max_length == 1504


def test_lengths() -> None:
    assert settings.grid_columns(resolve(), 0) == 1504
    assert settings.grid_columns(resolve(max_new_tokens=10), 5) == 16
    assert settings.grid_columns(resolve(GenerationConfig(max_new_tokens=10), max_length=30), 5) == 30
    with pytest.raises(RequestError, match="leaves no room"):
        settings.grid_columns(resolve(max_length=6), 5)


def test_guidance_of_one_is_none() -> None:
    assert settings.guided(resolve(guidance_scale=1.5))
    assert not settings.guided(resolve(guidance_scale=1.0))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [0, float("nan"), "1"]),
        ("top_k", [-1, 1.5, "5"]),
        ("top_p", [-0.1, 1.1, "0.5"]),
        ("guidance_scale", [-1, float("nan"), "3"]),
        ("max_length", [0, 1.5]),
        ("max_new_tokens", [0, 2.5, "5"]),
        ("num_return_sequences", [0, 1.5]),
    ],
)
def test_nonsense_is_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=f"{name} is"):
            resolve(**{name: value})


@pytest.mark.parametrize("name", settings._UNSUPPORTED)
def test_what_is_off_passes_and_what_is_on_is_refused(name: str) -> None:
    for off in settings._UNSUPPORTED[name]:
        config = GenerationConfig()
        setattr(config, name, off)
        resolve(config)
    with pytest.raises(RequestError, match=name):
        resolve(**{name: 3.5})
