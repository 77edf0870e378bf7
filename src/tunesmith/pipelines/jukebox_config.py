"""What a whole Jukebox is made of: the configurations of its VQ-VAE and of a prior a level, top first."""

import typing
from collections.abc import Sequence
from typing import Any

from tunesmith.codecs.vqvae import PRESETS as VQVAES
from tunesmith.codecs.vqvae import JukeboxVQVAEConfig
from tunesmith.convert.jukebox_hub import RELEASED, modern_config
from tunesmith.errors import IncompatiblePartsError, RequestError
from tunesmith.models.jukebox_config import PRESETS as PRIORS
from tunesmith.models.jukebox_config import SHARED, JukeboxPriorConfig
from tunesmith.nn.pretrained import BundledConfig
from tunesmith.nn.ranges import COUNT, Range, check_ranges

Json = dict[str, Any]


@typing.no_type_check
class JukeboxConfig(BundledConfig):
    """The configurations of the VQ-VAE and the priors; without any, those of the released 1b_lyrics model.

    Settings of the whole model that priors have too (`SHARED`) fill in what a prior's own dictionary leaves out.
    """

    model_type = "jukebox"
    sub_configs: typing.ClassVar = {"vqvae_config": JukeboxVQVAEConfig}

    vqvae_config: Any = None  # a JukeboxVQVAEConfig or its dictionary
    prior_config_list: Any = None  # JukeboxPriorConfigs or their dictionaries, top first; or prior_0, prior_1, ...
    nb_priors: int = 3
    sampling_rate: int | None = None  # this and what follows: None is what the top prior says
    timing_dims: int | None = None
    min_duration: float | int | None = None  # seconds
    max_duration: float | int | None = None  # seconds
    max_nb_genres: int | None = None
    metadata_conditioning: bool | None = None
    hop_fraction: Any = None  # by level, top first; None is what the VQ-VAE's configuration says

    def __post_init__(self, **kwargs: Any) -> None:
        if not COUNT.allows(self.nb_priors):
            raise RequestError(f"nb_priors is {self.nb_priors!r}; it must be {COUNT}.")
        numbered = [kwargs.pop(f"prior_{i}", None) for i in range(self.nb_priors)]
        priors = self.prior_config_list or [prior for prior in numbered if prior is not None]
        shared = {name: value for name in SHARED if (value := getattr(self, name)) is not None}
        self.prior_config_list = _prior_configs(priors, self.nb_priors, shared)
        self.nb_priors, top = len(self.prior_config_list), self.prior_config_list[0]
        for name in SHARED:
            setattr(self, name, shared.get(name, getattr(top, name)))
        self.vqvae_config = _vqvae_config(self.vqvae_config, top)
        self.hop_fraction = self.hop_fraction or self.vqvae_config.hop_fraction
        check_ranges(self, {"hop_fraction": Range(low=0, high=1, above=True, many=True)})
        self.hop_fraction = list(self.hop_fraction)
        if len(self.hop_fraction) != self.nb_priors:
            self.hop_fraction = [0.125] + [0.5] * (self.nb_priors - 1)
        super().__post_init__(**kwargs)

    @property
    def prior_configs(self) -> list[JukeboxPriorConfig]:
        """The priors' configurations, top first."""
        return self.prior_config_list

    @classmethod
    def from_configs(
        cls, prior_configs: Sequence[JukeboxPriorConfig], vqvae_config: JukeboxVQVAEConfig, **kwargs: Any
    ) -> "JukeboxConfig":
        """From those of the parts, top prior first.  Keywords in `SHARED` are set in each prior's."""
        shared = {name: kwargs[name] for name in SHARED if name in kwargs}
        priors = [{**prior.to_dict(), **shared} for prior in prior_configs]
        return cls(prior_config_list=priors, vqvae_config=vqvae_config.to_dict(), **kwargs)

    @classmethod
    def preset(cls, name: str) -> "JukeboxConfig":
        """That of a released model: "5b", "5b_lyrics" or "1b_lyrics"."""
        if name not in RELEASED:
            raise RequestError(f"There is no preset {name!r}; known are {', '.join(RELEASED)}.")
        codec, *priors = RELEASED[name]
        return cls.from_configs([PRIORS[prior]() for prior in priors], JukeboxVQVAEConfig(**VQVAES[codec]))

    @classmethod
    def from_dict(cls, config_dict: Json, **kwargs: Any) -> Any:
        """As transformers', but what its port wrote is put right.  Keywords in `SHARED` are set in each prior's."""
        config = modern_config(_filled(config_dict), config_dict.get("_name_or_path") or "the model")
        shared = {name: kwargs.pop(name) for name in SHARED if name in kwargs}
        config["prior_config_list"] = [{**prior, **shared} for prior in config["prior_config_list"]]
        return super().from_dict({**config, **shared}, **kwargs)

    def to_dict(self) -> Json:
        """Plain values, as config.json has them."""
        return {**super().to_dict(), "prior_config_list": [prior.to_dict() for prior in self.prior_configs]}


def _prior_configs(given: Sequence[Any], count: int, shared: Json) -> list[JukeboxPriorConfig]:
    """A configuration a level."""
    if not given and count == len(RELEASED["1b_lyrics"]) - 1:
        return [PRIORS[name](**shared) for name in RELEASED["1b_lyrics"][1:]]
    configs, kinds = given or [{}] * count, (dict, JukeboxPriorConfig)
    if not isinstance(configs, list | tuple) or not all(isinstance(each, kinds) for each in configs):
        raise RequestError("prior_config_list must be a list of JukeboxPriorConfigs or dictionaries, top prior first.")
    dicts = [each if isinstance(each, dict) else each.to_dict() for each in configs]
    return [JukeboxPriorConfig(**{**shared, **each, "level": level}) for level, each in enumerate(dicts)]


def _vqvae_config(given: Any, top: JukeboxPriorConfig) -> JukeboxVQVAEConfig:
    if not isinstance(given, dict | JukeboxVQVAEConfig | None):
        raise RequestError(f"vqvae_config is {given!r}; it must be a JukeboxVQVAEConfig or a dictionary.")
    own = given.to_dict() if isinstance(given, JukeboxVQVAEConfig) else dict(given or {})
    return JukeboxVQVAEConfig(**{"sampling_rate": top.sampling_rate, **own})


def _filled(config: Json) -> Json:
    """The same, with what dictionaries of parts leave out and the whole's says."""
    shared = {name: config[name] for name in SHARED if config.get(name) is not None}
    filled = {
        name: {**shared, **value} if name.startswith("prior_") and isinstance(value, dict) else value
        for name, value in config.items()
    }
    if config.get("prior_config_list"):
        filled["prior_config_list"] = [{**shared, **dict(prior)} for prior in config["prior_config_list"]]
    if isinstance(config.get("vqvae_config"), dict) and "sampling_rate" in shared:
        filled["vqvae_config"] = {"sampling_rate": shared["sampling_rate"], **config["vqvae_config"]}
    return filled


def refuse_unlike(config: JukeboxConfig) -> None:
    """Raise IncompatiblePartsError for a VQ-VAE and priors that don't fit each other."""
    codec = config.vqvae_config
    if codec.levels != len(config.prior_configs):
        raise IncompatiblePartsError(
            f"The VQ-VAE has {codec.levels} levels and there are {len(config.prior_configs)} priors; one a level is "
            "needed."
        )
    for prior in config.prior_configs:
        if prior.music_vocab_size != codec.nb_discrete_codes:
            raise IncompatiblePartsError(
                f"The VQ-VAE has {codec.nb_discrete_codes} codes a level and the prior of level {prior.level} "
                f"{prior.music_vocab_size}; use parts that were trained together."
            )
        ours = [list(prior.res_downs_t), list(prior.res_strides_t)]
        if ours != [list(codec.res_downs_t), list(codec.res_strides_t)]:
            raise IncompatiblePartsError(
                f"The prior of level {prior.level} has res_downs_t and res_strides_t {ours} and the VQ-VAE others; use "
                "parts that were trained together."
            )
