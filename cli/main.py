"""`distill`: run the service on this machine, and talk to one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from cli import demo as demonstration
from cli import doctor as examination
from cli import keys, render, stack
from cli.client import Api, ApiError, find_endpoint
from cli.embedded import EmbeddedError
from cli.supervisor import ChildFailed
from shared.settings_loading import unknown_names

console = Console()
errors = Console(stderr=True)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _folder(value: str | Path) -> Path:
    """An empty name would be the folder one happens to stand in."""
    if not str(value).strip():
        raise typer.BadParameter("must name a folder.")
    return Path(value).expanduser()  # no shell has read what stands in `.env`


def _data_dir(context: typer.Context, param: typer.CallbackParam, value: Path) -> Path:
    """Of what neither the option nor the environment names, `.env` may, as of every setting."""
    source = context.get_parameter_source(str(param.name))
    if source is None or source.name != "DEFAULT":
        return value
    try:
        return _folder(stack.setting("DISTILL_DATA_DIR", os.environ, Path.cwd()) or value)
    except OSError as error:
        raise typer.BadParameter(f"DISTILL_DATA_DIR_FILE: {error.filename} cannot be read: {error.strerror}.") from None


DataDir = Annotated[
    Path,
    typer.Option(
        envvar="DISTILL_DATA_DIR",
        help="Store, keys and logs of the stack on this machine.",
        parser=_folder,
        callback=_data_dir,
        metavar="DIRECTORY",
    ),
]
Url = Annotated[
    str | None, typer.Option(envvar="DISTILL_URL", help="The API; default: the stack in the data directory.")
]
ApiKey = Annotated[str | None, typer.Option(envvar="DISTILL_API_KEY", help="Default: the admin key of that stack.")]
AsJson = Annotated[bool, typer.Option("--json", help="The API's answer as it is.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, job_…")]
DATA_DIR = Path(".distillery")


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"distillery {version('distillery')}")
        except PackageNotFoundError:
            typer.echo("distillery, not installed")
        raise typer.Exit


@app.callback()
def distill(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Distil an expensive model into a cheap one: `distill up` runs the service here, the rest talks to one."""


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address the API listens on.  [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API.  [default: 8600, or a free one]", max=65535)
    ] = None,
    data_dir: DataDir = DATA_DIR,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=1, max=64)] = 1,
    sandbox: Annotated[
        bool | None, typer.Option(help="The stand-in for OpenAI.  [default: when no provider is configured]")
    ] = None,
) -> None:
    """Run API, workers and store on this machine until Ctrl-C."""
    known, told = stack.configured(os.environ, Path.cwd()), partial(stack.told, environ=os.environ, folder=Path.cwd())
    wants_sandbox = sandbox if sandbox is not None else stack.wants_sandbox(known)
    settings, complaint = examination.read_settings(data_dir, None, sandbox=wants_sandbox)
    if settings is None:
        raise Failure(f"A setting is wrong: {complaint}.")
    own_store = settings.redis_url if told("DISTILL_REDIS_URL") is not None else None
    for check in examination.store(own_store) if own_store is not None else ():
        if check.state == "fail":  # no process of the stack would become ready
            raise Failure(f"{check.name}: {check.detail.rstrip('.')}; {check.advice}.")
    for name, nearest in unknown_names(known):
        _warn(f"{examination.misspelt(name, nearest)}.")
    asked_port = port if port is not None else settings.api_port if told("DISTILL_API_PORT") is not None else None
    options = stack.Options(
        data_dir=data_dir,
        host=host or settings.api_host,
        port=asked_port,
        workers=workers,
        sandbox=wants_sandbox,
        metrics_port=settings.metrics_port,
        worker_metrics_port=settings.worker_metrics_port,
        redis_url=own_store,
    )
    running = stack.Stack(options, environ=os.environ, cwd=Path.cwd(), say=_warn)
    try:
        with console.status("Starting"):
            address = running.start()
        key = told("DISTILL_ADMIN_KEY") or running.options.data_dir / "admin_key"
        key_file = key if isinstance(key, Path) else None
        _say_where(address, running.options.data_dir, list(settings.providers), key_file)
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("\nStopping: answers in flight are waited for (Ctrl-C again: at once).")
    finally:
        running.stop()


def _warn(line: str) -> None:
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _say_where(address: stack.Address, data_dir: Path, providers: list[str], key_file: Path | None) -> None:
    """key_file: None where the user has set the key itself."""
    key = "$DISTILL_ADMIN_KEY" if key_file is None else f"$(cat {key_file})"
    names = list(dict.fromkeys([*providers, "sandbox"])) if address.sandbox_url is not None else providers
    lines = [
        f"Distillery is ready at {address.api_url}",
        f"  providers  {', '.join(names) or 'none: set OPENAI_API_KEY, or run with --sandbox'}",
        f"  API key    {key_file or 'DISTILL_ADMIN_KEY'}",
        f"  data, logs {data_dir}",
        "",
        f'  curl -H "Authorization: Bearer {key}" {address.api_url}/v1/jobs',
        "",
        "Ctrl-C stops it; jobs go on where they were when it is started again.",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@app.command()
def demo(
    file: Annotated[Path, typer.Option(help="JSONL, one prompt per line.")] = Path("examples/support_tickets.jsonl"),
    system_prompt: Annotated[Path, typer.Option(help="What the teacher is told.")] = Path(
        "examples/triage_system_prompt.txt"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the stack running, and the data afterwards.")] = False,
) -> None:
    """A whole distillation on this machine, without keys: prompts in, verdict out, nothing left behind."""
    try:
        demonstration.run(console, file=file, system_prompt=system_prompt, keep=keep)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        raise typer.Exit(0 if keep else 130) from None


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The body of POST /v1/jobs as JSON; - reads stdin.")],
    *,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check and estimate, spend nothing.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A repetition with the same key makes no second job.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job until it ends.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Create a job from a JSON file."""
    body = _json_of(file)
    with Api(find_endpoint(url, api_key, data_dir)) as api:
        if validate_only:
            _print_json(api.post("/v1/jobs", body, validate_only="true"))
            return
        job = api.post("/v1/jobs", body, idempotency_key=idempotency_key)
        typer.echo(job["id"])
        if wait:
            _follow(api, job)


@app.command()
def status(
    job_id: JobId,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Where a job stands."""
    with Api(find_endpoint(url, api_key, data_dir)) as api:
        job = api.get(f"/v1/jobs/{job_id}")
        if watch:
            job = _follow(api, job)
    if as_json:
        _print_json(job)
    elif not watch:
        typer.echo(render.where_it_stands(job))
    if job.get("error") and not watch:
        typer.echo(demonstration.failure(job), err=True)


@app.command()
def results(
    job_id: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = DATA_DIR
) -> None:
    """The verdict on each student."""
    with Api(find_endpoint(url, api_key, data_dir)) as api:
        found = api.get(f"/v1/jobs/{job_id}/results")
    if as_json:
        _print_json(found)
    else:
        demonstration.show_results(console, found)


@app.command()
def cancel(job_id: JobId, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = DATA_DIR) -> None:
    """Stop a job; what was paid for stays and can be exported."""
    with Api(find_endpoint(url, api_key, data_dir)) as api:
        typer.echo(render.where_it_stands(api.post(f"/v1/jobs/{job_id}/cancel")))


@app.command()
def dataset(
    job_id: JobId,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", dir_okay=False)],
    split: Annotated[str, typer.Option(help="train, validation or holdout.")] = "train",
    format: Annotated[str, typer.Option(help="openai_chat, openai_dpo or raw.")] = "openai_chat",
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Save a job's dataset as JSONL, ready for fine-tuning anywhere."""
    try:
        with Api(find_endpoint(url, api_key, data_dir)) as api:
            size = api.download(f"/v1/jobs/{job_id}/dataset", output, split=split, format=format)
    except OSError as error:
        raise Failure(f"{output} cannot be written: {error.strerror}.") from error
    typer.echo(f"{output}: {size:,} bytes")


@app.command()
def doctor(url: Url = None, api_key: ApiKey = None, data_dir: DataDir = DATA_DIR) -> None:
    """What stands between this machine and a working service."""
    states = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
    failed = False
    for check in examination.examine(data_dir.expanduser().resolve(), find_endpoint(url, api_key, data_dir)):
        failed |= check.state == "fail"
        console.print(states[check.state], f"[bold]{check.name}[/]", end="  ", highlight=False)
        console.print(check.detail, markup=False, highlight=False, soft_wrap=True)
        if check.advice and check.state != "ok":
            console.print(f"    → {check.advice}", style="cyan", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="API keys of the services that use this one.")
app.add_typer(keys_app, name="keys")


@keys_app.command("create")
def create_key(
    *,
    scope: Annotated[list[str], typer.Option(help="What it may do, such as jobs:write; repeat for several.")],
    tenant: Annotated[str | None, typer.Option(help="Whose jobs it sees.  [default: the admin key's own]")] = None,
    name: Annotated[str | None, typer.Option(help="What you will know it by.")] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="What its jobs may name; repeat for several.  [default: all that the tenant may]"),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Make a key, and show it this once.  It is the only line on stdout."""
    with Api(find_endpoint(url, api_key, data_dir)) as api:
        body = {"tenant": tenant, "scopes": scope, "name": name, "providers": provider or None}
        made = api.post("/v1/api_keys", body)
    if as_json:
        _print_json(made)
        return
    typer.echo(made["key"])
    held = f", at {', '.join(made['providers'])} alone" if made["providers"] else ""
    may = f"{', '.join(made['scopes'])}{held}"
    typer.echo(f"{made['id']} of tenant {made['tenant']} ({may}); not shown again.", err=True)


@keys_app.command("list")
def list_keys(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """The keys that open something."""
    found: list[dict[str, Any]] = []
    query: dict[str, str | int] = {"limit": 100} | ({} if tenant is None else {"tenant": tenant})
    with Api(find_endpoint(url, api_key, data_dir)) as api:
        while True:
            page = api.get("/v1/api_keys", **query)
            found += page["data"]
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
    if as_json:
        _print_json(found)
        return
    for key in found:
        held = f"  at {','.join(key['providers'])} alone" if key["providers"] else ""
        scopes, name = ",".join(key["scopes"]), render.one_line(key["name"] or "")  # a tenant's own words
        typer.echo(f"{key['id']}  {key['tenant']}  …{key['hint']}  {scopes}{held}  {name}".rstrip())


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, key_…")],
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Let a key open nothing any more."""
    with Api(find_endpoint(url, api_key, data_dir)) as api:
        api.delete(f"/v1/api_keys/{key_id}")
    typer.echo(f"{key_id} is revoked; every API process follows within 5 seconds.", err=True)


@app.command("webhook-secret")
def webhook_secret(
    tenant: Annotated[str, typer.Option(help="Whose deliveries to verify.")] = "local", data_dir: DataDir = DATA_DIR
) -> None:
    """The secret with which a receiver verifies our webhooks (Standard Webhooks, whsec_…)."""
    if not keys.TENANT.fullmatch(tenant):
        raise Failure("A tenant's name has lower-case letters, digits, - and _, and begins with one of the first two.")
    try:
        secret = stack.secret("DISTILL_SECRET_KEY", os.environ, Path.cwd(), made=data_dir / "secret_key")
    except OSError as error:
        raise Failure(f"{error.filename} cannot be read: {error.strerror}; `distill up` makes it.") from error
    typer.echo(keys.signing_secret(secret.encode(), tenant))


class Failure(RuntimeError):
    """Ends the command with this sentence and exit code 1."""


def _follow(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    job, _ = demonstration.follow(api, job, console, timeout_seconds=float("inf"))
    console.print(render.where_it_stands(job), markup=False, highlight=False, soft_wrap=True)
    if job["status"] != "succeeded":
        raise Failure(demonstration.failure(job))
    return job


def _json_of(file: Path) -> bytes:
    """Sent as it is written: read anew, it would be another text, and what the API refuses in it a failure of ours."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        text = content.decode("utf-8-sig")
        json.loads(text)
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise Failure(f"{file} is not JSON: {error}.") from error
    except RecursionError:
        raise Failure(f"{file} is nested too deeply.") from None
    return text.encode()


def _print_json(body: Any) -> None:
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal stop us in the same order as Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def main() -> None:
    with _signals_interrupt():
        try:
            app(standalone_mode=True)
        except KeyboardInterrupt:
            sys.exit(130)
        except (Failure, ApiError, EmbeddedError, ChildFailed, stack.StackError, demonstration.DemoFailed) as error:
            errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(1)
        except BrokenPipeError:  # `distill … | head`
            sys.exit(0)
