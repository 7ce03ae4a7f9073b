"""The command `segment`: one photo, several, or whole folders into a folder of results."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID

from app.cli.terminal import (
    DEFAULT_URL,
    Key,
    Url,
    check_replaceable,
    check_writable,
    errors,
    print_json,
    progress_bar,
    say,
    show,
    table_of,
    warn,
)
from app.errors import InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from app.cli.results import Listing, NamedPhoto, Results
    from app.client import Client

_FOUND = ("category", "taught", "presence", "area")


@dataclass(frozen=True)
class _Outputs:
    """What a run writes.

    Attributes:
        results: The answers, from which the rest is made.
        coco: COCO instances.
        parts: True for an annotation of each connected part of a mask in the COCO file.
        masks: Folder of label maps; None for none.
        overlays: Folder of photos with painted masks; None for none.
    """

    results: Path
    coco: Path
    parts: bool
    masks: Path | None
    overlays: Path | None

    def picture_folders(self) -> list[Path]:
        """The folders of pictures."""
        return [folder for folder in (self.masks, self.overlays) if folder]


def segment(
    photos: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos.", exists=True)],
    category: Annotated[
        list[str] | None, typer.Option(help="A category; repeatable; default: every category taught.")
    ] = None,
    min_presence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="A category gets a mask from this presence on; default: that of the service."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; the same command again does only what is not there.", file_okay=False
        ),
    ] = None,
    coco: Annotated[
        Path | None,
        typer.Option(
            help="Write COCO instances to this file; default with --out: instances.json in it.", dir_okay=False
        ),
    ] = None,
    parts: Annotated[
        bool,
        typer.Option("--parts", help="In the COCO file, annotate each connected part of a mask, instead of the whole."),
    ] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Also write label maps to OUT/masks, as PNG.")] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write the photos with painted masks to OUT/overlays.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Segment all photos, also those whose result is there.")
    ] = False,
    overlay: Annotated[
        Path | None, typer.Option(help="Write the photo with masks and names to this file, as PNG; one photo only.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the response as JSON; one line per photo if there are several.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Segment photos with a running service; exit code 1 if one of several can't be segmented.

    With --out or --coco, the results are kept. After an interruption the same command continues where it was.
    """
    from app.cli.results import listed
    from app.client import Client

    outputs = _outputs(out, coco, parts=parts, masks=masks, overlays=overlays)
    listing = listed(photos, without=out)
    asked = {"categories": category or [], "min_presence": min_presence}
    several = len(listing.photos) > 1 or photos[0].is_dir()
    if overlay:
        _check_overlay(overlay, alone=not several and not outputs)
    with Client(url, key=key) as client:
        if outputs:
            _segment_into(outputs, client, listing, asked, again=again, as_json=as_json)
        elif several:
            _segment_several(client, listing, asked, as_json=as_json)
        else:
            _segment_one(client, photos[0], asked, overlay=overlay, as_json=as_json)


def _check_overlay(file: Path, *, alone: bool) -> None:
    from app.cli.results import is_drawn

    if not alone:
        raise InvalidInputError(
            "--overlay accepts only one photo, without --out and --coco: name one photo, or choose --overlays."
        )
    check_writable(file)
    check_replaceable(file, is_drawn)


def _outputs(out: Path | None, coco: Path | None, *, parts: bool, masks: bool, overlays: bool) -> _Outputs | None:
    """Where the results go, with the folders made; None if they are only printed."""
    from app.cli.results import ANSWERS, PICTURE_FOLDERS
    from app.coco import is_ours

    if out is None and (masks or overlays):
        raise InvalidInputError("--masks and --overlays need --out: name a folder for the results.")
    if out is None and coco is None:
        if parts:
            raise InvalidInputError("--parts needs --out or --coco: it is about the COCO file.")
        return None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    file = coco or (out or Path()) / "instances.json"
    check_writable(file)
    check_replaceable(file, is_ours)
    return _Outputs(
        results=out / ANSWERS if out else file.with_suffix(".results.ndjson"),
        coco=file,
        parts=parts,
        masks=out / PICTURE_FOLDERS[0] if out and masks else None,
        overlays=out / PICTURE_FOLDERS[1] if out and overlays else None,
    )


def _segment_one(client: Client, photo: Path, asked: dict[str, Any], *, overlay: Path | None, as_json: bool) -> None:
    from app.cli.results import painted
    from app.coco import write_whole

    answer = client.segment(photo, **asked)
    if overlay:
        ids = {found["name"]: id for id, found in enumerate(answer["categories"], 1)}
        write_whole(overlay, painted(answer, ids, photo))
    if as_json:
        print_json(answer)
        return
    table = table_of(*_FOUND)
    for found in answer["categories"]:
        table.add_row(*_row(found))
    show(table)


def _segment_several(client: Client, listing: Listing, asked: dict[str, Any], *, as_json: bool) -> None:
    """Segment photos, and print what is found; also if it is interrupted."""
    table = table_of("photo", *_FOUND)
    problems = len(listing.problems)
    try:
        with progress_bar(errors) as bar:
            files = [photo.file for photo in listing.photos]
            for line in bar.track(client.batch(files, **asked), total=len(files), description="segmenting"):
                image = str(files[line["index"]])
                problems += "problem" in line
                if as_json:
                    print(json.dumps(line | {"filename": image}, ensure_ascii=False))
                elif "problem" in line:
                    warn(f"{image}: {line['problem']['detail']}")
                for found in line.get("categories", ()):
                    table.add_row(image, *_row(found))
    finally:
        if not as_json:
            show(table)
    _warn_of(listing.problems)
    if problems:
        raise typer.Exit(1)


def _segment_into(
    outputs: _Outputs,
    client: Client,
    listing: Listing,
    asked: dict[str, Any],
    *,
    again: bool,
    as_json: bool,
) -> None:
    """Segment the photos that have no result yet; write the files of all, also if the run is interrupted.

    Of all photos `again`, the results before stay until the last new one is there: after an interruption the new ones
    are dropped, since more may have been taught by the next run. Photos that this run does not name, or can't segment,
    keep theirs.
    """
    from app.cli.results import results_in

    with results_in(outputs.results, asked, listing.folder, again=again) as results:
        run = _Run(outputs, results, listing.photos, as_json=as_json)
        run.check(asked["categories"])
        run.recall()  # before anything is written: an interruption leaves the files of the run before
        run.warn_of_outdated(client, asked["categories"])
        try:
            run.segment(client, asked)
        except KeyboardInterrupt:
            then = "starts again, the results before are kept" if again else "continues"
            warn(f"Interrupted: {run.left()}; the same command {then}.")
            raise
        finally:
            if not again:
                run.write_coco()
        if again:
            results.carry_over()
            run.recall()
    if again:
        run.write_coco()
    run.tell()
    _warn_of(listing.problems)
    if run.problems or listing.problems:
        raise typer.Exit(1)


class _Run:
    """A run over photos, whose results are kept.

    Args:
        outputs: What is written.
        results: The results that are there.
        photos: The photos, each name once.
        as_json: True to print each new answer as a line of JSON.
    """

    def __init__(self, outputs: _Outputs, results: Results, photos: Sequence[NamedPhoto], *, as_json: bool) -> None:
        from app.cli.results import picture_names

        self.problems: dict[str, str] = {}
        self._answers: dict[str, Mapping[str, Any]] = {}
        self._outputs = outputs
        self._results = results
        self._photos = photos
        # Also of photos that were segmented before, so that a run over some of the photos draws under the same names.
        self._pictures = picture_names({*(photo.name for photo in photos), *results.names})
        # Photos that each category was looked for in, and those in which it has a mask.
        self._asked: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._as_json = as_json

    def check(self, categories: Sequence[str]) -> None:
        """Check what is to be drawn.

        Args:
            categories: Names that are asked for.

        Raises:
            InvalidInputError: If there are too many categories for label maps, or pictures of another origin.
        """
        from app.cli.results import check_labels, is_drawn

        if self._outputs.masks:
            check_labels(len({name.casefold() for name in [*self._results.category_ids, *categories]}))
        for folder in self._outputs.picture_folders():
            for photo in self._photos:
                check_replaceable(folder / self._pictures[photo.name], is_drawn)

    def recall(self) -> None:
        """Take the answers that are kept of photos that have none yet."""
        with progress_bar(errors) as bar:
            for photo in bar.track(self._photos, description="looking for earlier results"):
                if photo.name not in self._answers and (answer := self._results.answer_to(photo)):
                    self._take(photo, answer)

    def warn_of_outdated(self, client: Client, categories: Sequence[str]) -> None:
        """Say if the service has learned since answers were kept."""
        from app.cli.outdated import outdated, versions_in_use

        if not self._answers:
            return
        try:
            versions = versions_in_use(client, categories)
        except UnavailableError:  # what is there can be drawn without a service
            return
        count, names = outdated(self._answers.values(), versions)
        if count:
            warn(
                f"{count} of {len(self._answers)} earlier results are from before {', '.join(names)} changed: "
                "--again segments these photos too."
            )

    def segment(self, client: Client, asked: dict[str, Any]) -> None:
        """Draw the answers that are there, and ask for the others."""
        self._remove_unused()
        with progress_bar(errors) as bar:
            task = bar.add_task("drawing earlier results", total=len(self._photos))
            waiting = []
            for photo in self._photos:
                if answer := self._answers.get(photo.name):
                    self._draw(photo, answer)
                    bar.advance(task)
                else:
                    waiting.append(photo)
            self._show(bar, task)
            for line in client.batch([photo.file for photo in waiting], **asked):
                photo = waiting[line["index"]]
                if self._as_json:
                    print(json.dumps(line | {"filename": photo.name}, ensure_ascii=False))
                if "problem" in line:
                    self.problems[photo.name] = line["problem"]["detail"]
                else:
                    self._results.add(photo, line)
                    self._take(photo, line)
                    self._draw(photo, line)
                self._show(bar, task)

    def left(self) -> str:
        """What is left to do, in words."""
        left = len(self._photos) - self._done()
        return f"{left} of {len(self._photos)} photos are left" if left else "pictures are left"

    def write_coco(self) -> None:
        """Write what is known of the photos of this run as COCO instances."""
        from app.coco import coco_json, write_whole

        # In the order of the photos: what was asked for again keeps its place.
        answers = {photo.name: self._answers[photo.name] for photo in self._photos if photo.name in self._answers}
        with progress_bar(errors) as bar:
            each = bar.track(answers.items(), total=len(answers), description="writing COCO instances")
            content = coco_json(each, self._results.category_ids, parts=self._outputs.parts)
        write_whole(self._outputs.coco, json.dumps(content).encode())

    def tell(self) -> None:
        """Print what was found, and which photos could not be segmented."""
        if not self._as_json:
            table = table_of("category", "photos")
            for name in self._results.category_ids:
                table.add_row(name, f"{self._found[name]:,} of {self._asked[name]:,}")
            show(table)
            say(f"COCO instances: {self._outputs.coco}")
        _warn_of(self.problems)

    def _take(self, photo: NamedPhoto, answer: Mapping[str, Any]) -> None:
        self._answers[photo.name] = answer
        self._asked.update(found["name"] for found in answer["categories"])
        self._found.update(found["name"] for found in answer["categories"] if found["area"])

    def _draw(self, photo: NamedPhoto, answer: Mapping[str, Any]) -> None:
        """Draw the pictures of an answer that are not there. A name that is too long for a file is a problem."""
        from app.cli.results import label_map, painted, shows
        from app.coco import write_whole

        ids = self._results.category_ids
        for folder in self._outputs.picture_folders():
            file = folder / self._pictures[photo.name]
            if shows(file, answer, ids):
                continue
            picture = label_map(answer, ids) if folder == self._outputs.masks else painted(answer, ids, photo.file)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, picture)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                self.problems[photo.name] = f"{file} can't be written: {error.strerror}."

    def _remove_unused(self) -> None:
        """Remove pictures under names that they no longer have: they would be taken for those of other photos."""
        from app.cli.results import is_drawn, unused_names

        for folder in self._outputs.picture_folders():
            for name in unused_names(self._pictures):
                if is_drawn(folder / name):
                    (folder / name).unlink()

    def _done(self) -> int:
        return len({*self._answers, *self.problems})

    def _show(self, bar: Progress, task: TaskID) -> None:
        bar.update(task, completed=self._done(), description=f"segmenting, {self._found.total():,} masks found")


def _warn_of(problems: Mapping[str, str]) -> None:
    for name, problem in problems.items():
        warn(f"{name}: {problem}")


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        found["name"],
        "yes" if found["adapted"] else "named",
        f"{found['presence']:.2f}",
        f"{found['area']:,}",
    )
