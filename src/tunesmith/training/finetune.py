"""From a model that is there and a folder of songs to an adapter, or to a whole model: what `tunesmith finetune` does.

    finetune(Tuning(model="tunesmith/pocket", data=Path("mine"), run=Path("tuned")))

The songs are encoded once with the model's own codec; some are held out, and the loss on them is told before and after.
The trainer sees an objective whose model is a `Learner`, so checkpoints hold what learns and nothing else.
"""

import functools
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tunesmith import hub
from tunesmith.convert.folders import TOKENIZER, copy_tokenizer
from tunesmith.errors import RequestError, RunError
from tunesmith.models.jukebox_rows import Place
from tunesmith.pipelines.adapters import FACTS, ROWS, TARGETS, Facts, import_peft
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor
from tunesmith.training import asked, checkpoints
from tunesmith.training.callbacks import Sounds, write_wav
from tunesmith.training.encoded import EncodedCodes
from tunesmith.training.finetune_jukebox import jukebox_lesson, level_of
from tunesmith.training.labels import Captions
from tunesmith.training.launch import TextCollator
from tunesmith.training.musicgen import MusicgenObjective
from tunesmith.training.runs import train
from tunesmith.training.trainer import Objective, compute_anew
from tunesmith.training.tuning import SCHEDULE, Lesson, Tuning, encode, songs_for

__all__ = ["RATES", "SCHEDULE", "Tuning", "finetune", "level_of"]

RATES = {"lora": 2e-4, "dora": 2e-4, "full": 2e-5}
"""Learning rates where none is given."""
HELD_OUT = 64
"""Crops of held-out songs that the loss before and after is of, at most."""
HEARD_SECONDS = 10.0
"""Of what is sung before and after."""


class Learner(nn.Module):
    """A model of which some parts learn; its state is that of those alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def sizes(self) -> tuple[int, int]:
        """How many parameters learn, and how many there are."""
        numbers = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(count for count, learns in numbers if learns), sum(count for count, _ in numbers)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]  # no destination
        """What learns."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *_: Any, **__: Any) -> Any:
        """What `state_dict` gave: the names that are missing, and those that are too many."""
        own = self.state_dict()
        self.model.load_state_dict({name: state_dict[name] for name in own if name in state_dict}, strict=False)
        return [name for name in own if name not in state_dict], [name for name in state_dict if name not in own]

    def save_pretrained(self, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """As one safetensors file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.detach().cpu().contiguous() for name, x in (state_dict or self.state_dict()).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class TunedObjective(Objective):
    """An objective of which only what learns is saved."""

    def __init__(self, objective: Objective, learner: Learner) -> None:
        super().__init__()
        self.inner, self.sample_rate = objective, objective.sample_rate
        self.model = learner  # type: ignore[assignment]  # saves and loads like a model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """The objective's."""
        scalars: dict[str, Tensor] = self.inner(**batch)
        return scalars

    def samples(self, count: int, seconds: float) -> Sounds:
        """The objective's."""
        return self.inner.samples(count, seconds)


def finetune(tuning: Tuning, tell: Callable[[str], object] = print) -> dict[str, Any]:
    """Fine-tune, or go on where the run stopped; what result.json says.

    Raises RequestError for songs or names that can't be used, RunError where the run can't go on, and what
    loading does.
    """
    folder = hub.locate(tuning.model)
    family = hub.family_of(folder) if folder.is_dir() else None
    if family not in LESSONS:
        raise RequestError(f"{tuning.model!r} is of the family {family!r}; a MusicGen or a Jukebox can be fine-tuned.")
    if tuning.method != "full":
        import_peft()
    processes = PartialState(cpu=not torch.cuda.is_available())
    tell = tell if processes.is_main_process else _silently
    torch.manual_seed(tuning.schedule.seed)
    with processes.main_process_first():  # what the first has written, the others find
        _same_settings(tuning)
        lesson = LESSONS[family](tuning, folder, tell)
        learner, adapter = _learner(lesson, tuning)
        objective = TunedObjective(lesson.objective, learner).to(processes.device)
        learning, all_of_it = learner.sizes()
        tell(f"{learning:,} of {all_of_it:,} parameters learn.")
        before = _before(objective, lesson, tuning)
    tell(f"held-out loss before: {before:.4f}")
    train(objective, lesson.data, tuning.run, tuning.schedule, collate=lesson.collate)
    after = held_out_loss(objective, lesson)
    tell(f"held-out loss after: {after:.4f}")
    result = {
        "held_out_loss_before": before,
        "held_out_loss_after": after,
        "trained_parameters": learning,
        "model": tuning.model,
        "method": tuning.method,
    }
    if processes.is_main_process:
        _sound(objective, tuning.run / "after.wav")
        _write(tuning, lesson, adapter)
        checkpoints.write_json(tuning.run / "result.json", result)
    return result


def _silently(_: str) -> None:
    """One process tells."""


def held_out_loss(objective: Objective, lesson: Lesson) -> float:
    """The mean over the first crops of the held-out songs."""
    assert isinstance(lesson.test, EncodedCodes)
    device = next(objective.parameters()).device
    items = [lesson.test[i] for i in range(min(HELD_OUT, len(lesson.test)))]
    objective.eval()
    losses = []
    with torch.no_grad():
        for item in DataLoader(items, batch_size=1, collate_fn=lesson.collate):  # type: ignore[arg-type]  # a list will do
            losses.append(objective(**{name: x.to(device) for name, x in item.items()})["loss"].item())
    return sum(losses) / len(losses)


def _before(objective: Objective, lesson: Lesson, tuning: Tuning) -> float:
    """The loss and the sound without what is going to be learnt; of a run that goes on, as they were then."""
    note = tuning.run / "before.json"
    if note.exists():
        return float(json.loads(note.read_text())["loss"])
    loss = held_out_loss(objective, lesson)
    _sound(objective, tuning.run / "before.wav")
    checkpoints.write_json(note, {"loss": loss})
    return loss


def _sound(objective: Objective, path: Path) -> None:
    """The same words and the same seed each time."""
    objective.eval()
    with torch.no_grad(), torch.random.fork_rng():
        sounds = objective.samples(1, HEARD_SECONDS)
    for sound in list(sounds.values())[:1]:
        write_wav(path, sound.detach().float().cpu(), objective.sample_rate)


def _same_settings(tuning: Tuning) -> None:
    """Write down what was asked for.  Raises RunError where a run that is there was asked for something else."""
    own = {f.name: getattr(tuning, f.name) for f in fields(tuning) if f.name not in ("run", "schedule")}
    wanted = {**own, **asdict(tuning.schedule)}
    if changed := asked.grave(asked.changes(tuning.run, wanted)):
        raise RunError(
            f"{str(tuning.run)!r} was begun with other settings: {'; '.join(changed)}. Give the old ones, or another "
            "--out."
        )
    asked.keep(tuning.run, wanted)


# -------------------------------------------------------------------------------------------------- what learns


def _learner(lesson: Lesson, tuning: Tuning) -> tuple[Learner, Any]:
    """The model, and peft's view of it where there is an adapter."""
    if tuning.schedule.checkpointing:
        compute_anew(lesson.model)
    if tuning.method == "full":
        return Learner(lesson.model), None
    peft = import_peft()
    config = peft.LoraConfig(
        r=tuning.rank,
        lora_alpha=2 * tuning.rank,
        target_modules=_targets(lesson.model, lesson.facts.family, tuning.method),
        use_dora=tuning.method == "dora",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name that is going to change
        wrapped = peft.get_peft_model(lesson.model, config)
    own = dict(lesson.model.named_parameters())
    for place in lesson.places:
        _train_rows(own[place.name], place)
    return Learner(lesson.model), wrapped


def _targets(model: nn.Module, family: str, method: str) -> str | list[str]:
    """A pattern; for DoRA the names of those that have a length everywhere, for it divides by that."""
    pattern = TARGETS[family]
    if method != "dora":
        return pattern
    chosen = ((name, module) for name, module in model.named_modules() if re.fullmatch(pattern, name))
    return [name for name, module in chosen if bool((_lengths(module) > 0).all())]


def _lengths(module: Any) -> Tensor:
    """Of what each output is the product with."""
    lengths: Tensor = module.weight.norm(dim=1 if isinstance(module, nn.Linear) else 0)
    return lengths


def _train_rows(parameter: nn.Parameter, place: Place) -> None:
    """The other rows have no gradient, so they stay."""
    mask = torch.zeros(len(parameter), 1)
    mask[place.start : place.stop] = 1
    parameter.requires_grad_(True).register_hook(lambda gradient: gradient * mask.to(gradient))


def _write(tuning: Tuning, lesson: Lesson, adapter: Any) -> None:
    """The adapter or the model, with the layer and head that follow the words by now."""
    facts, config = replace(lesson.facts, alignment=lesson.align()), lesson.model.config
    if facts.alignment is not None:
        config.alignment_layer, config.alignment_head = facts.alignment
    name = "model" if adapter is None else "adapter"
    part = tuning.run / f".{name}.part"
    with checkpoints.whole_or_absent(part, tuning.run / name, checkpoints.last(tuning.run)):
        part.mkdir(parents=True, exist_ok=True)
        if adapter is None:
            lesson.export(part)
        else:
            own = dict(lesson.model.named_parameters())
            rows = {p.name: own[p.name][p.start : p.stop].detach().cpu().contiguous() for p in lesson.places}
            adapter.save_pretrained(str(part), save_embedding_layers=False)
            (part / "README.md").unlink(missing_ok=True)
            if rows:
                save_file(rows, part / ROWS)
            lesson.write(part)
            checkpoints.write_json(part / FACTS, facts.to_dict())


# ------------------------------------------------------------------------------------------------- MusicGen


def musicgen_lesson(tuning: Tuning, folder: Path, tell: Callable[[str], object]) -> Lesson:
    songs = songs_for(tuning, tell)
    facts = hub.check(folder)
    longest = min(max(song.seconds for song in songs), facts.window_seconds)
    frames = facts.frames(min(tuning.seconds or longest, facts.window_seconds))
    encode(tuning, songs, folder, frames * facts.hop / facts.rate, tell)
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    model.requires_grad_(True)
    processor = MusicgenProcessor.from_pretrained(folder)
    codes = functools.partial(EncodedCodes, tuning.run / "codes", steps=frames, seed=tuning.schedule.seed)
    data = codes(count=tuning.schedule.steps * tuning.schedule.batch, labels=Captions(keep_field=0.7))
    test = codes(split="test", labels=Captions())
    text = test[0]["text"] or ""
    objective = MusicgenObjective(model)
    objective.shown = dict(processor.tokenizer([text], return_tensors="pt")) if text else {}

    def export(target: Path) -> None:
        model.save_pretrained(target)
        processor.save_pretrained(target)
        copy_tokenizer(folder, target, TOKENIZER)

    made = Facts(family="musicgen", model=tuning.model, model_hash=hub.weights_hash(folder), method=tuning.method)
    collate = TextCollator(processor.tokenizer)
    return Lesson(objective=objective, model=model, data=data, test=test, collate=collate, facts=made, export=export)


LESSONS: dict[str, Callable[[Tuning, Path, Callable[[str], object]], Lesson]] = {
    "musicgen": musicgen_lesson,
    "jukebox": jukebox_lesson,
}
