"""`tunesmith align`: when each word of a Jukebox song is sung, by any layer and head."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tunesmith.cli.flags import comma_list, refuse_given
from tunesmith.errors import RequestError

if TYPE_CHECKING:
    from tunesmith.pipelines.jukebox_song import JukeboxPipeline
    from tunesmith.pipelines.runs import Run

Name = Annotated[str, tyro.conf.arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Align:
    """Find out when each word is sung: in a run of Jukebox, in codes of the original implementation, or in any audio.

    tunesmith align song --search
    tunesmith align --audio sung.wav --lyrics words.txt --model jukebox-1b-lyrics --out sung
    """

    run_folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of a run; its page then follows this alignment."""

    codes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead of a run: a data.pth.tar of the original implementation, which --out makes a run of."""

    audio: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead of a run: audio with these --lyrics, which --out makes a run of."""

    lyrics: Annotated[str, tyro.conf.arg(metavar="TEXT|FILE")] = ""
    """With --audio: what is sung in it."""

    artist: Name = ""
    """With --audio: a name that the model knows, or, if it came without names, an id."""

    genre: Annotated[tuple[str, ...], comma_list(str, "NAME,...")] = ()
    """With --audio: one genre or several."""

    model: Name = "jukebox-1b-lyrics"
    """With --codes or --audio: the model that listens."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("song")
    """With --codes or --audio: the run to make."""

    layer: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Layer of the top prior whose attention to use, from 0; by default the one that the model names."""

    head: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Head of that layer, from 0."""

    search: bool = False
    """Judge every layer and head that reads lyrics by this music, and use the best."""

    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """cpu, cuda, cuda:N or mps; by default cuda where there is one, else cpu."""

    def run(self) -> None:
        """Print the heads that were tried, and the files that there are."""
        from tunesmith.cli.jukebox import go_on, pipeline_of
        from tunesmith.cli.progress import status
        from tunesmith.pipelines.ranks import Ranks

        self._check()
        run = self._run()
        pipeline = pipeline_of(run, self.device)
        try:
            with status("aligning"):
                layer, head = self._head(pipeline, run)
                pipeline.align(run, layer, head)
        except RequestError:
            if self.run_folder is None:
                shutil.rmtree(run.folder, ignore_errors=True)  # made just now; else the command couldn't be given again
            raise
        if self.run_folder is None:
            go_on(pipeline, run, Ranks(0, 1))  # nothing to sample: audio and pages
        for take in run.settings.chosen:
            print(run.path("lyrics", take, ".lrc"))

    def _check(self) -> None:
        if sum(source is not None for source in (self.run_folder, self.codes, self.audio)) != 1:
            raise RequestError("Name the folder of a run, or a file with --codes or --audio.")
        if self.search and (self.layer is not None or self.head is not None):
            raise RequestError("--search looks for the layer and head; leave --layer and --head out.")
        if self.audio is None:
            refuse_given(self, ("lyrics", "artist", "genre"), "--audio; a run has its own")
        elif not self.lyrics.strip():
            raise RequestError("There are no words to align; give those that are sung with --lyrics.")
        if self.run_folder is not None:
            refuse_given(self, ("model", "out"), "--codes or --audio; a run has its own")

    def _run(self) -> "Run":
        """The run, or a new one."""
        from tunesmith.cli.jukebox import open_pipeline, read_lyrics
        from tunesmith.pipelines.runs import Run, check_new
        from tunesmith.requests import JukeboxRequest

        if self.run_folder is not None:
            return Run.open(self.run_folder)
        check_new(self.out)
        pipeline = open_pipeline(self.model, self.device, None)
        if self.codes is not None:
            return pipeline.take_over(self.codes, self.out)
        assert self.audio is not None
        words: dict[str, Any] = {"lyrics": read_lyrics(self.lyrics), "artist": self.artist, "genre": self.genre}
        return pipeline.listen(self.audio, self.out, JukeboxRequest(**words, seed=0, draft=True))

    def _head(self, pipeline: "JukeboxPipeline", run: "Run") -> tuple[int | None, int | None]:
        if not self.search:
            return self.layer, self.head
        heads = pipeline.search(run)
        print("layer  head  score")
        for found in heads:
            print(f"{found.layer:5}  {found.head:4}  {found.score:5.3f}")
        return heads[0].layer, heads[0].head
