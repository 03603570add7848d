"""`minilm capstone`: every stage in its order, each of which can be stopped or killed anywhere and goes on.

Nothing is believed to be done because it was begun: a stage is passed over where the checklist finds what it makes
sound. A training resumes from its last checkpoint, a study runs the trials that have no result, samples and reports are
written whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

import kernels
from minilm.capstone import plan as planning
from minilm.capstone.checklist import checklist, trial_fault
from minilm.capstone.folder import BEST, PAGE, RECORD, TRAIN, Folder, empty_stub, locked
from minilm.capstone.plan import STAGES, Plan
from minilm.capstone.progress import Line
from minilm.errors import UserError
from minilm.files import write_atomically
from minilm.hardware import resolve_device
from minilm.studies import design, ladder, study
from minilm.studies.trials import MANIFEST, TRIALS, Study, run_trials
from minilm.training import checkpoint
from minilm.training.loop import train

COUNT = "non_embedding"  # of parameters, Kaplan's
TRIAL_WAIT_S = 2.0
WHAT = {
    "train": "training, with weights kept at chosen steps",
    "samples": "writing with those weights, and judging what they write",
    "ablation": "comparing ways to train",
    "kernels": "naive against fused kernels",
    "scaling": "a ladder of sizes",
    "report": "one page of it all",
}


class Stopped(BaseException):
    """A signal asked for the end, at a moment at which nothing is lost by it."""


def capstone(
    out: Path, given: Mapping[str, Any], console: Console, plan: Plan | None = None, command: str = ""
) -> int | None:
    """Make, or go on making, the capstone in `out`; the number of the signal that stopped it, None at the end.

    given: Options by name; what is None is as `out` holds it, or the default. plan: None means that of the scale.
    Raises UserError for options other than those that `out` was begun with, for an `out` that is in use or holds other
    things, and for whatever a stage cannot do.
    """
    with locked(out):
        held = Folder(out).options if (out / RECORD).exists() else None
        options = planning.agreed(held, given)
        plan = plan or planning.plan_of(options.scale)
        planning.training(plan, options)  # what is wrong with the options shows before anything is written
        kernels.explain(options.kernels, resolve_device(options.device))
        folder = Folder(out) if held else Folder.create(out, options)
        return _Capstone(folder, plan, console, command).run()


class _Capstone:
    def __init__(self, folder: Folder, plan: Plan, console: Console, command: str):
        self.folder, self.plan, self.console, self.command = folder, plan, console, command
        self.path, self.options = folder.path, folder.options
        self.came: list[int] = []  # signals
        self.patient = False  # what runs now ends by itself when it is told to
        self.line: Line

    def run(self) -> int | None:
        makers: dict[str, Callable[[], Sequence[Path]]] = {
            "train": self.train,
            "samples": self.samples,
            "ablation": lambda: self.ablate("ablation"),
            "kernels": lambda: self.ablate("kernels"),
            "scaling": self.scale,
            "report": self.report,
        }
        with self.signals():
            try:
                lost = {item.stage for item in checklist(self.folder, page=False) if not item.found} | {"report"}
                open_stages = [name for name in STAGES if name in lost]
                expected = {name: self.plan.seconds[name] for name in open_stages}
                self.line = Line(self.console, STAGES, expected, self.folder.seconds)
                for name in open_stages:
                    self.stage(name, makers[name])
            except (Stopped, KeyboardInterrupt):
                self.console.print("Stopped; what is done is kept. To go on, give the same command again.")
                return self.came[0] if self.came else signal.SIGINT
        self.conclude()
        return None

    def stage(self, name: str, make: Callable[[], Sequence[Path]]) -> None:
        self.line.begin(name, WHAT[name], live=name != "train")
        files: Sequence[Path] = ()
        whole = False
        try:
            files = make()
            whole = True
        finally:
            self.folder.record(name, self.line.end(whole), files)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end a stage at once, unless it is one that saves first."""

        def catch(number: int, _frame: Any) -> None:
            self.came.append(number)
            if not self.patient:
                raise Stopped

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- stages: each returns the files that it wrote -----------------------------------------------------------------

    def train(self) -> list[Path]:
        from minilm.report.runs import read_run
        from minilm.sampling.baselines import write_baselines

        run = self.path / TRAIN
        resume = (run / "config.json").exists()
        if not (resume and (run / "metrics.jsonl").exists() and _is_whole(run)):
            result = train(planning.training(self.plan, self.options), run, resume, self.console, self.command)
            if result.signal is not None:
                self.came.append(result.signal)
                raise Stopped
        if not (run / "baselines.json").exists():
            try:
                write_baselines(run)
            except UserError as error:
                self.line.say(f"No n-gram comparison: {error}")
        best = run / checkpoint.FOLDER / checkpoint.best_name(self.plan.preset)
        checkpoint.verify(best)
        write_atomically(self.path / BEST, lambda part: shutil.copyfile(best, part) and None)
        figure = self.path / "figures" / "training_report.png"
        _draw_curves(read_run(run), figure)
        return [self.path / BEST, run / "metrics.jsonl", run / "baselines.json", figure]

    def samples(self) -> list[Path]:
        from minilm.sampling.samples import write_samples

        made = write_samples(
            self.path / TRAIN,
            **self.plan.samples,
            seed=self.options.seed,
            kernels_name=self.options.kernels,
            device_name=self.options.device,
            on_progress=lambda done, total, text: self.line.step(done, total, text, stays=False),
        )
        return list(made["files"])

    def ablate(self, name: str) -> list[Path]:
        from minilm.report.ablation import write_ablation
        from minilm.studies.ablation import analyse

        plan = planning.study_plan(self.plan, self.options, name)
        base = study.baseline_of(plan)
        arms = design.arms_of(base, plan.axes)
        if name == "kernels":
            arms += design.speed_arms(base)
        found = self.trials(name, plan, design.trials_of(arms, range(1, plan.seeds + 1), lr_triplet=False))
        if name == "kernels":
            study.say_kernels(found, self.console)
        outcomes = found.outcomes()
        runs = {o.id: found.folder(o.id) for o in outcomes}
        page = write_ablation(analyse(outcomes, runs), found.path, runs)
        return [page, page.with_name("result.json"), *sorted((found.path / "figures").glob("*.png"))]

    def scale(self) -> list[Path]:
        from minilm.report.scaling import write_scaling

        plan = planning.study_plan(self.plan, self.options, "scaling")
        base = study.baseline_of(plan)
        found = self.trials(
            "scaling", plan, ladder.trials_of(base, self.plan.sizes, [self.plan.ladder_steps], (), plan.seeds)
        )
        page = write_scaling(ladder.analyse(ladder.read_outcomes([found.path]), COUNT), found.path)
        return [page, page.with_name("scaling.json"), page.with_name("capstone_scaling_curve.png")]

    def trials(self, name: str, plan: study.Plan, trials: Sequence[design.Trial]) -> Study:
        """The study in DIR/name, all of whose trials have ended."""
        path = self.path / name
        if empty_stub(path, MANIFEST):
            shutil.rmtree(path)
        found = Study.create(path, asdict(plan), [_shifted(t, self.options.seed - 1) for t in trials], resume=True)
        for row in found.rows:
            if (found.path / TRIALS / f"{row['id']}.json").exists() and trial_fault(found, row["id"]):
                (found.path / TRIALS / f"{row['id']}.json").unlink()  # its run folder says it again
        device = resolve_device(self.options.device).type

        def say(text: str) -> None:
            done = len(found.rows) - len(found.open_rows())
            self.line.step(done, len(found.rows), text.partition("  ")[2].rpartition("  (")[0])

        while True:
            self.patient = True
            run_trials(found, planning.jobs(name, device), say=say, stopping=self.came)
            self.patient = False
            if self.came:
                raise Stopped
            if all(found.result(row["id"]) for row in found.rows):
                return found
            time.sleep(TRIAL_WAIT_S)  # a trial whose runner was killed goes on by itself, and is waited for

    def report(self) -> list[Path]:
        from minilm.report.capstone import write_capstone
        from minilm.report.page import write_report

        write_report([self.path / TRAIN])
        settings = {"scale": self.options.scale, "text": self.options.data or "fables"}
        settings |= {name: str(getattr(self.options, name)) for name in ("kernels", "device", "seed")}
        return write_capstone(
            self.path, [asdict(item) for item in checklist(self.folder, page=False)], list(settings.items())
        )

    def conclude(self) -> None:
        items = checklist(self.folder)
        for item in items:
            mark = "ok     " if item.found else "MISSING"
            tail = "" if item.found else f". To make it: {item.remedy}"
            self.line.say(f"{mark}  {item.name}: {item.text}{tail}")
        self.line.say(f"Report: {self.path / PAGE}", style="bold")


def _is_whole(run: Path) -> bool:
    """Whether a training has done all its steps; by its last checkpoint, so that a journal that lies is not believed
    over it."""
    from minilm.report.runs import read_run

    with contextlib.suppress(UserError):
        newest, _ = checkpoint.newest(run)
        return newest is not None and checkpoint.verify(newest)["step"] == read_run(run).steps_planned
    return False


def _shifted(trial: design.Trial, by: int) -> design.Trial:
    """The trial at another seed: the studies of one capstone share its seed."""
    train = dataclasses.replace(trial.config.train, seed=trial.seed + by)
    return dataclasses.replace(trial, seed=trial.seed + by, config=dataclasses.replace(trial.config, train=train))


def _draw_curves(run: Any, path: Path) -> None:
    from minilm.report import figures, words
    from minilm.report.canvas import save_png, sheet
    from minilm.report.views import curves_of, reference_of

    with sheet():
        figure = figures.four_panels(curves_of(run), reference_of(run), words.visible(run.name))
        write_atomically(path, lambda part: save_png(figure, part))
