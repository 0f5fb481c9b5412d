"""How a job, its results and its samples look in a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]

STAGES = ("generating", "curating", "training", "evaluating")
#: Control characters but tab and line feed, and those that turn the direction of what follows.
_ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
VERDICT_STYLES = {"better": "bold green", "worse": "bold red", "inconclusive": "bold yellow"}


def harmless(text: str) -> str:
    """What others wrote, for a terminal, which takes some characters for orders."""
    return _ORDERS.sub("�", text.replace("\r\n", "\n"))


def seconds(value: float | None) -> str:
    """A duration as people say it: 0.84 s, 12.3 s, 4 min 05 s, 2 h 10 min."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def usd(value: str | None) -> str:
    """Never rounded to nothing: $12.35, $0.0021."""
    if value is None:
        return "–"
    amount = float(value)
    return f"${amount:,.2f}" if amount == 0 or amount >= 1 else f"${amount:.2g}" if amount < 0.01 else f"${amount:.3f}"


def where_it_stands(job: Json) -> str:
    """One line without colours, for logs and for screens that cannot be redrawn."""
    progress = job.get("progress") or {}
    parts = [str(job.get("status"))]
    if job.get("stage"):
        parts.append(str(job["stage"]))
    if job.get("paused_reason"):
        parts.append(f"paused: {job['paused_reason']}")
    parts.append(f"{progress.get('completions_settled', 0)}/{_wanted(progress)} completions")
    parts.extend(_step(student) for student in job.get("students") or () if student.get("status"))
    parts.append(f"{usd((job.get('cost') or {}).get('spent_usd'))} spent")
    return ", ".join(parts)


def _wanted(progress: Json) -> int:
    return int(progress.get("completions_total") or progress.get("prompts_total") or 0)


def progress_view(job: Json, elapsed_seconds: Mapping[str, float]) -> RenderableType:
    """The live picture of a running job.  elapsed_seconds: by stage, of those that have begun."""
    progress, cost = job.get("progress") or {}, job.get("cost") or {}
    settled, total = int(progress.get("completions_settled") or 0), _wanted(progress)
    stage = job.get("stage")
    table = Table.grid(padding=(0, 2))
    for name in STAGES:
        done = name in elapsed_seconds and name != stage
        mark = Text("✓", "green") if done else Text("●", "cyan") if name == stage else Text("·", "dim")
        detail: RenderableType = Text("")
        if name == "generating" and name in elapsed_seconds:
            kept = f"{settled}/{total}  {progress.get('accepted', 0)} kept"
            for word in ("rejected", "failed", "reused"):
                kept += f", {progress[word]} {word}" if progress.get(word) else ""
            bar = ProgressBar(total=max(total, 1), completed=settled, width=32)
            detail = Table.grid(padding=(0, 2))
            detail.add_row(bar, kept)
        elif name == "training" and name in elapsed_seconds:
            detail = Text("; ".join(_step(student) for student in job.get("students") or ()))
        spent = seconds(elapsed_seconds[name]) if name in elapsed_seconds else ""
        table.add_row(mark, Text(name, "bold" if name == stage else ""), Text(spent, "dim"), detail)
    limit = f" of {usd(cost['limit_usd'])}" if cost.get("limit_usd") else ""
    status = f"{job.get('status')}" + (f" ({job['paused_reason']})" if job.get("paused_reason") else "")
    return Group(Text(f"{job.get('id')}  {status}  {usd(cost.get('spent_usd'))} spent{limit}", "bold"), table)


def results_table(results: Json) -> Table:
    """Narrow enough for 80 columns: the models' names, which are long, stand below."""
    rows = results.get("rows") or ()
    holdout = results.get("holdout") or {}
    table = Table(
        title=f"On {holdout.get('examples', '?')} prompts that were never trained on",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    failures = any(row.get("failures") for row in rows)
    table.add_column("grader", overflow="fold")
    table.add_column("role")
    for heading in ("score", "95 % interval", "p50", "per 1,000", *(["failed"] if failures else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    former: str | None = None
    for row in rows:
        grader = str(row.get("grader"))
        if former not in (None, grader):
            table.add_section()
        number = row.get("student")
        students = len({other.get("student") for other in rows} - {None})
        cells = [
            escape(grader) if grader != former else "",
            f"{row.get('role')} {number + 1}" if number is not None and students > 1 else str(row.get("role")),
            _decimal(row.get("score")) + ("*" if row.get("by_definition") else " "),
            interval(row.get("interval95")),
            seconds(row.get("latency_p50_seconds")),
            usd(row.get("cost_per_1k_calls_usd")),
            *([str(row.get("failures") or 0)] if failures else []),
        ]
        table.add_row(*cells, style="bold" if row.get("role") == "student" else "")
        former = grader
    if any(row.get("by_definition") for row in rows):
        table.caption = "* by definition: the others are held against the teacher's answers"
    return table


def verdict_sentence(student: Json, rows: Sequence[Json]) -> Text:
    """E.g. `ft:…:triage is better than its base by 0.31 [0.22, 0.40] in json_match, 0.04 below the teacher, …`"""
    verdict, difference = str(student.get("verdict")), student.get("difference") or {}
    model, grader = str(student.get("model")), student.get("grader")
    vs_base, vs_teacher = difference.get("vs_base"), difference.get("vs_teacher")
    line = Text(model, "bold")
    line.append(" is ")
    if verdict == "inconclusive":
        line.append("not clearly different", VERDICT_STYLES[verdict]).append(" from its base")
    else:
        line.append(verdict, VERDICT_STYLES.get(verdict, "bold")).append(" than its base")
    if vs_base is not None:
        doubt = difference.get("vs_base_interval95") or difference.get("interval95")
        line.append(f" by {vs_base:+.2f} {interval(doubt)}")
    if grader:
        line.append(f" in {grader}")
    if vs_teacher is not None:
        side = "below" if vs_teacher < 0 else "above"
        line.append(", level with" if abs(vs_teacher) < 0.005 else f", {abs(vs_teacher):.2f} {side}").append(
            " the teacher"
        )
    line.append(_price_and_pace(model, rows)).append(".")
    return line


def samples_view(samples: Sequence[Json], width: int, most: int = 3) -> RenderableType:
    """Side by side where no word would be broken, else one below the other."""
    shown: list[RenderableType] = []
    for sample in list(samples)[:most]:
        asked = next((m.get("content") for m in reversed(sample.get("messages") or []) if m.get("role") == "user"), "")
        answers = [(role, sample.get(role)) for role in ("teacher", "base", "student")]
        table = Table.grid(padding=(0, 2))
        column = (width - 10) // len(answers)
        if all(len(word) <= column for _, answer in answers for word in _short(answer).split()):
            for _ in answers:
                table.add_column(ratio=1)
            table.expand = True
            table.add_row(*(Text(role, "bold cyan") for role, _ in answers))
            table.add_row(*(Text(_short(answer)) for _, answer in answers))
        else:
            for role, answer in answers:
                table.add_row(Text(role, "bold cyan"), Text(_short(answer)))
        shown.append(Panel(Group(Text(_short(asked, 300), "italic"), Text(""), table), title=_title(sample)))
    return Group(*shown)


def timings(elapsed_seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds(elapsed_seconds[stage])}" for stage in STAGES if stage in elapsed_seconds)


def interval(pair: Sequence[float] | None) -> str:
    return f"[{pair[0]:.2f}, {pair[1]:.2f}]" if pair else "–"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _step(student: Json) -> str:
    progress = student.get("progress") or {}
    step, steps = progress.get("step"), progress.get("total_steps")
    at = f" step {step}/{steps}" if step is not None and steps else ""
    return f"{student.get('model')} {student.get('status') or 'waiting'}{at}"


def _price_and_pace(model: str, rows: Sequence[Json]) -> str:
    student = next((row for row in rows if row.get("role") == "student" and row.get("model") == model), {})
    teacher = next((row for row in rows if row.get("role") == "teacher"), {})
    said = []
    price, teachers_price = student.get("cost_per_1k_calls_usd"), teacher.get("cost_per_1k_calls_usd")
    if price and teachers_price and float(price) > 0:
        said.append(f"at {float(price) / float(teachers_price):.0%} of its price")
    pace, teachers_pace = student.get("latency_p50_seconds"), teacher.get("latency_p50_seconds")
    if pace and teachers_pace:
        said.append(f"in {pace / teachers_pace:.0%} of its time")
    return ", " + " and ".join(said) if said else ""


def _title(sample: Json) -> str:
    key = escape(one_line(str(sample.get("prompt_key") or "sample")))
    scores = next(iter((sample.get("scores") or {}).values()), None)
    if isinstance(scores, Mapping) and scores.get("base") is not None and scores.get("student") is not None:
        return f"{key}: base {scores['base']:.2f} → student {scores['student']:.2f}"
    return key


def one_line(text: str) -> str:
    return " ".join(harmless(text).split())


def _short(text: Any, most: int = 500) -> str:
    said = harmless(text if isinstance(text, str) else "–" if text is None else str(text))
    return said if len(said) <= most else said[: most - 1] + "…"
