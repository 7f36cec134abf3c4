"""What is known of studies and candidates, for people: tables that fit into eighty columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from heterosis.views.candidate import Profile, Scored, Shown
from heterosis.views.comparison import Change, Compared, Difference, OnSplit
from heterosis.views.progress import Failure, Gain, Left, Progress, Standing
from heterosis.views.status import Status, Unreadable, Winner

BARS = "▁▂▃▄▅▆▇█"
# Widest picture of a profile; deeper models are read at so many layers.
WIDTH = 32
# Differences and failures that are listed; the rest is counted.
MOST = 12


def plain(value: Any) -> Any:
    """Named tuples as mappings, all the way down: what JSON can hold."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(inner) for key, inner in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def grid() -> Table:
    """Names on the left, in bold, and what they stand for on the right."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


# One study, and all of them.


def show_status(status: Status, console: Console) -> None:
    """One study."""
    table = grid()
    for name, text in status_rows(status):
        table.add_row(name, escape(text))
    console.print(table)
    if status.winner is not None:
        console.print(f"\n[bold]{escape(status.winner.verdict)}[/bold]", soft_wrap=True)
    _next(console, [status.next] if status.next else [])


def status_rows(status: Status) -> Iterator[tuple[str, str]]:
    """What is to be said of a study, line by line."""
    progress, budget = status.progress, status.budget
    yield "study", f"{status.study}  ({status.folder})"
    yield "stage", _stage(status)
    of = f" of {budget.candidates}" if budget.candidates is not None else ""
    yield (
        "candidates",
        f"{progress.candidates}{of}, generation {progress.generation}; {progress.baselines} baselines",
    )
    spent = f"{progress.items:,}" + (f" of {budget.items:,}" if budget.items is not None else "")
    hours = f" of {duration(budget.seconds)}" if budget.seconds is not None else ""
    yield "spent", f"{spent} items, {duration(progress.seconds)}{hours}"
    yield from _winner_rows(status.winner) if status.winner is not None else _best_rows(progress, status.search_items)
    if progress.pace is not None:
        yield "pace", pace_line(progress)
        yield "time", shares_line(progress)
    if status.stage in ("searching", "baselines") and (line := left_line(progress.left)):
        yield "left", line
    if status.finals["selection"]:
        opened = f", opened {status.openings} times" if status.openings > 1 else ""
        yield (
            "finals",
            f"{status.finals['selection']} on the selection split, {status.finals['test']} on the test split{opened}",
        )
    if progress.failures:
        yield "failed", failures_line(progress.failures)


def _best_rows(progress: Progress, items: int) -> Iterator[tuple[str, str]]:
    if progress.best is not None:
        yield "best so far", f"{standing(progress.best, items)}, search split, selection-biased"
    if progress.best_parent is not None:
        yield "best parent", against(progress.best_parent, progress.over_parent, items)
    if progress.best_baseline is not None:
        yield "best baseline", against(progress.best_baseline, progress.over_baseline, items)


def _winner_rows(winner: Winner) -> Iterator[tuple[str, str]]:
    yield "winner", f"{winner.label}, {_interval(winner.score)} on the test split"
    for name in ("best_parent", "best_baseline"):
        claim = winner.heterosis[name]
        yield name.replace("_", " "), f"{_signed(claim)} over {claim['against']}, p = {claim['p']:.3g}"


def _stage(status: Status) -> str:
    words = {"baselines": "scoring baselines", "finalists": "scoring finalists", "test split": "scoring the test split"}
    stage = words.get(status.stage, status.stage)
    if status.held_by is not None:
        return f"{stage}, in {status.held_by}"
    return f"{stage}: stopped, no process works on it" if status.stopped else stage


def show_statuses(found: Iterable[Status | Unreadable], console: Console) -> None:
    """Every study in one line."""
    table = Table(box=None, pad_edge=False)
    for name in ("study", "stage", "candidates", "best", "over best parent", "split"):
        table.add_column(name, justify="right" if name == "candidates" else "left")
    notes = []
    for each in found:
        if isinstance(each, Unreadable):
            table.add_row(escape(each.folder), "[yellow]unreadable[/yellow]")
            notes.append(each.reason)
            continue
        limit, done = each.budget.candidates, each.progress.candidates
        table.add_row(
            escape(each.study),
            each.stage + (" (running)" if each.held_by else " (stopped)" if each.stopped else ""),
            f"{done}/{limit}" if limit is not None else str(done),
            *map(escape, _best_cells(each)),
        )
    console.print(table)
    console.print("[dim]of a complete study: its winner on the test split; else selection-biased[/dim]")
    for note in notes:
        console.print(f"[yellow]unreadable:[/yellow] {escape(note)}", soft_wrap=True)


def _best_cells(status: Status) -> tuple[str, str, str]:
    """Score and label of the best, its difference to the best parent, and the split that says so."""
    if status.winner is not None:
        winner = status.winner
        score = f"{winner.score['estimate']:.4f} {winner.label}"
        return score, _signed(winner.heterosis["best_parent"]), "test"
    best, gain = status.progress.best, status.progress.over_parent
    if best is None:
        return "", "", ""
    return f"{best.value:.4f} {best.label}", "" if gain is None else signed(*gain[1:4]), "search"


def standing(found: Standing, of: int) -> str:
    """A score with its interval, and on how many items it rests."""
    spread = f" [{found.low:.4f}, {found.high:.4f}]" if found.low is not None and found.high is not None else ""
    if found.error is not None:
        spread = f" ± {found.error:.4f} (estimated from anchors)"
    few = f", {found.items} of {of} items" if found.items < of else ""
    return f"{found.value:.4f}{spread} ({found.label}{few})"


def against(found: Standing, gain: Gain | None, of: int) -> str:
    """A rival's score, and by how much the best so far is above it."""
    text = f"{found.value:.4f} ({found.label})"
    if gain is None:
        return text
    few = f" on {gain.items} shared items" if gain.items < of else ""
    return f"{text}; best so far {signed(gain.estimate, gain.low, gain.high)}{few}"


def pace_line(progress: Progress) -> str:
    """What a candidate takes."""
    pace = progress.pace
    if pace is None:
        return ""
    return f"{pace.items_per_second:.0f} items/s, {pace.seconds:.1f} s and {pace.items:.0f} items a candidate"


def left_line(left: Left) -> str:
    """What the budget leaves, and which part of it ends first."""
    if left.seconds is None:
        return ""
    if left.seconds <= 0.0:
        return f"nothing: the budget of {left.ends_by} is spent"
    parts = [f"{count:,} {name}" for name, count in (("candidates", left.candidates), ("items", left.items)) if count]
    return ", ".join([f"about {duration(left.seconds)}", *parts]) + f" (limit: {left.ends_by})"


def shares_line(progress: Progress) -> str:
    """Where the time went."""
    return ", ".join(f"{phase} {share:.0%}" for phase, share in progress.shares.items())


def failures_line(failures: Sequence[Failure], most: int = 3) -> str:
    """The last failures with their reasons."""
    last = "; ".join(f"{failure.label}: {failure.error}" for failure in failures[-most:])
    return f"{len(failures)}, last {last}" if len(failures) > most else last


def signed(estimate: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return f"{estimate:+.4f} [{low:+.4f}, {high:+.4f}]"


def _signed(claim: Mapping[str, Any]) -> str:
    return signed(claim["estimate"], claim["low"], claim["high"])


# One candidate.


def show_candidate(found: Shown, console: Console) -> None:
    """One candidate: scores, race, numbers along depth, digests, commands."""
    head = grid()
    head.add_row("candidate", escape(f"{found.label}, {found.role}, generation {found.generation} of {found.study}"))
    head.add_row("method", escape(f"{found.method}, mask seed {found.mask_seed}"))
    if race := _race(found):
        head.add_row("race", escape(race))
    for split, scored in found.splits.items():
        if scored.error is not None:
            head.add_row("failed", escape(f"{split} split: {scored.error}"))
    console.print(head)
    console.print(_scores(found))
    console.print(_profiles(found.profiles))
    tail = grid()
    tail.add_row("recipe", found.recipe_digest)
    tail.add_row("weights", found.weights_digest or "never merged")
    tail.add_row("time", ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in found.seconds.items()))
    console.print(tail)
    _next(console, found.next)


def _race(found: Shown) -> str:
    race, scored = found.race, found.splits.get("search")
    if not race or scored is None:
        return ""
    if "error" in race:
        return f"scored on {scored.items} anchors of {scored.of} items, error of the estimate ±{race['error']:.4f}"
    words = {
        "in": "surely among the better half",
        "out": "surely not among the better half",
        "open": "its place still open",
    }
    end = words.get(str(race["place"]), str(race["place"]))
    rungs = f"{race['rungs']} rung{'s' if race['rungs'] != 1 else ''}"
    return f"{rungs}, {scored.items} of {scored.of} items, {end} when its race ended"


def _scores(found: Shown) -> Table:
    table = Table(title="scores, 95 % intervals over items", title_justify="left", box=None, pad_edge=False)
    table.add_column("split")
    table.add_column("items", justify="right")
    table.add_column("task")
    table.add_column("score", justify="right")
    for split, scored in found.splits.items():
        if scored.objective is None:
            continue
        rows = [(f"objective ({found.objective})", scored.objective), *scored.tasks.items()]
        for at, (name, score) in enumerate(rows):
            first = (split, _items(scored)) if at == 0 else ("", "")
            table.add_row(*first, escape(name), escape(_interval(score)), style="bold" if at == 0 else None)
    if "search" in found.splits and found.generation:
        table.caption = "the search chose by the search split: what was chosen looks better there than it is"
        table.caption_justify = "left"
    return table


def _items(scored: Scored) -> str:
    return f"{scored.items}" if scored.items == scored.of else f"{scored.items} of {scored.of}, estimated"


def _interval(score: Mapping[str, float]) -> str:
    return f"{score['estimate']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"


def _profiles(found: Sequence[Profile]) -> Table:
    table = Table(title="numbers along depth, first layer to last", title_justify="left", box=None, pad_edge=False)
    for name in ("parent", "group", "", "depth", "values", "scale"):
        table.add_column(name)
    for profile in found:
        table.add_row(
            escape(profile.owner),
            escape(profile.group),
            escape(profile.quantity),
            bars(profile.values, profile.low, profile.high),
            _span(profile.values),
            f"{profile.low:g} … {profile.high:g}",
        )
    return table


def bars(values: Sequence[float], low: float, high: float) -> str:
    """A picture of values on a scale, one block a layer."""
    count = min(len(values), WIDTH)
    read = [values[at * len(values) // count] for at in range(count)]
    scale = (high - low) or 1.0
    return "".join(BARS[min(len(BARS) - 1, max(0, int((value - low) / scale * len(BARS))))] for value in read)


def _span(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.4g}"
    return f"{values[0]:.4g} → {values[-1]:.4g}" if len(values) > 1 else f"{values[0]:.4g}"


# Two candidates.


def show_comparison(found: Compared, console: Console) -> None:
    """Two candidates: differences by split and task, items, and what differs in their recipes."""
    console.print(
        f"[bold]{escape(found.first)}[/bold] ({escape(found.roles[0])}) minus "
        f"[bold]{escape(found.second)}[/bold] ({escape(found.roles[1])}) in {escape(found.study)}; positive: "
        f"{escape(found.first)} is better",
        soft_wrap=True,
    )
    for split, compared in found.splits.items():
        console.print(_differences(split, compared))
        if compared.caveat is not None:
            console.print(f"[yellow]{escape(compared.caveat)}[/yellow]", soft_wrap=True)
    for split, reason in found.not_compared.items():
        console.print(escape(f"{split} split: not compared, {reason}"), soft_wrap=True)
    console.print("p-values are of this pair alone, not corrected for other pairs you looked at", style="dim")
    for key, (first, second) in found.settings.items():
        console.print(escape(f"{key}: {first} | {second}"), soft_wrap=True)
    if found.changes:
        console.print(_changes(found.changes))
    if len(found.changes) > MOST:
        console.print(f"… and {len(found.changes) - MOST} smaller differences (--format json has all)", style="dim")


def _differences(split: str, found: OnSplit) -> Table:
    few = f"{found.items} of {found.of} items" if found.items < found.of else f"{found.items} items"
    table = Table(title=f"{split} split, {few}", title_justify="left", box=None, pad_edge=False)
    for name in ("task", "difference", "p better", "p worse", "items +/−"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for at, (name, each) in enumerate([("objective", found.objective), *found.tasks.items()]):
        table.add_row(escape(name), *_difference(each), style="bold" if at == 0 else None)
    return table


def _difference(found: Difference) -> tuple[str, ...]:
    return (
        escape(signed(found.estimate, found.low, found.high)),
        f"{found.p_better:.3g}",
        f"{found.p_worse:.3g}",
        f"{found.items_better}/{found.items_worse}",
    )


def _changes(found: Sequence[Change]) -> Table:
    table = Table(title="what differs in the merges", title_justify="left", box=None, pad_edge=False)
    for name in ("parent", "group", "", "first", "second", "largest"):
        table.add_column(name, justify="right" if name == "largest" else "left")
    for change in found[:MOST]:
        table.add_row(
            escape(change.owner),
            escape(change.group),
            escape(change.quantity),
            _span(change.first),
            _span(change.second),
            f"{change.largest:.4g}",
        )
    return table


def _next(console: Console, commands: Sequence[str]) -> None:
    if commands:
        console.print("\nnext:")
    for command in commands:
        console.print(f"  {escape(command)}", soft_wrap=True)
