"""What the command line says: errors as one sentence, jobs and verdicts as a person reads them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli import client, demo, doctor, keys, render, stack
from cli.main import _say_where, app

PROBLEM = {
    "type": "/problems/validation_failed",
    "title": "The request is not valid",
    "status": 422,
    "code": "validation_failed",
    "detail": "Two fields are wrong.",
    "request_id": "req_1",
    "errors": [
        {"pointer": "/students/0/model", "code": "required", "detail": "is required"},
        {"pointer": "/budget/max_cost_usd", "code": "invalid_value", "detail": "must be a decimal string."},
    ],
}
ROWS = [
    {"role": "teacher", "model": "big", "grader": "json_match", "score": 1.0, "interval95": [1, 1],
     "by_definition": True, "latency_p50_seconds": 0.8, "cost_per_1k_calls_usd": "4", "failures": 0},
    {"role": "base", "model": "small", "grader": "json_match", "score": 0.55, "interval95": [0.45, 0.65],
     "latency_p50_seconds": 0.2, "cost_per_1k_calls_usd": "0.4", "failures": 1},
    {"role": "student", "model": "ft:small:x", "grader": "json_match", "score": 0.93, "interval95": [0.88, 0.98],
     "latency_p50_seconds": 0.2, "cost_per_1k_calls_usd": "0.8", "failures": 0},
]  # fmt: skip
STUDENT = {
    "model": "ft:small:x", "verdict": "better", "grader": "json_match",
    "difference": {"vs_base": 0.38, "vs_base_interval95": [0.28, 0.48], "vs_teacher": -0.07},
}  # fmt: skip


def a_job(**changes: Any) -> dict[str, Any]:
    job = {
        "id": "job_1", "status": "running", "stage": "generating",
        "students": [{"model": "small", "status": None, "progress": {"step": None, "total_steps": None}}],
        "progress": {"prompts_total": 240, "completions_settled": 60, "accepted": 59, "rejected": 1, "failed": 0},
        "cost": {"spent_usd": "0.0421", "limit_usd": "50.00"}, "error": None,
    }  # fmt: skip
    return job | changes


def shown(renderable: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_a_problem_is_one_sentence_with_its_place_and_its_code() -> None:
    body = PROBLEM | {"detail": "A field is wrong.", "errors": PROBLEM["errors"][:1]}
    assert client.sentence(422, body) == "A field is wrong (/students/0/model: is required). [validation_failed]"


def test_every_fault_of_a_problem_has_a_line() -> None:
    faults = [*PROBLEM["errors"], {"pointer": None, "code": "invalid_value", "detail": "limit must be at least 1"}]
    body = PROBLEM | {"detail": "/students/0/model is required. And 2 more.", "errors": faults}
    assert client.sentence(422, body) == (
        "/students/0/model is required. And 2 more. [validation_failed]\n"
        "  /students/0/model: is required\n"
        "  /budget/max_cost_usd: must be a decimal string.\n"
        "  limit must be at least 1"
    )
    assert len(client.sentence(422, PROBLEM | {"errors": faults * 20}).splitlines()) == 21


def test_a_place_that_the_sentence_names_is_not_named_again() -> None:
    body = {"detail": "/name must be a text", "code": "validation_failed",
            "errors": [{"pointer": "/name", "code": "wrong_type", "detail": "must be a text"}]}  # fmt: skip
    assert client.sentence(422, body) == "/name must be a text. [validation_failed]"


def test_a_fault_without_a_place_is_not_said_twice() -> None:
    fault = {"pointer": None, "code": "invalid_value", "detail": "split must be 'train' or 'holdout'"}
    body = {"detail": "split must be 'train' or 'holdout'.", "code": "validation_failed", "errors": [fault]}
    assert client.sentence(422, body) == "split must be 'train' or 'holdout'. [validation_failed]"


def test_what_others_wrote_gives_a_terminal_no_orders() -> None:
    answers = {"teacher": "a\x1b]0;owned\x07b\u202ec\x9b1m\u061c", "base": "1\r\n2", "student": "5\u00a0€"}
    picture = shown(render.samples_view([{"prompt_key": "k\x1b[31m\nx", "messages": [], **answers}], 80), 80)
    assert not set(picture) & set("\x1b\x07\x9b\r\u202e\u061c")
    assert "a�]0;owned�b�c�1m" in picture
    assert "5\u00a0€" in picture
    assert render.one_line("mine\r\nkey_fake\x1b[2K") == "mine key_fake�[2K"


def test_a_server_error_names_the_request_to_ask_the_operator_about() -> None:
    body = {"title": "Something went wrong", "code": "internal", "request_id": "req_9", "errors": []}
    assert client.sentence(500, body) == "Something went wrong. [internal, req_9]"


@pytest.mark.parametrize("body", [None, "<html>", ["no"], 7])
def test_an_answer_that_is_no_problem_document_still_gives_a_sentence(body: Any) -> None:
    assert client.sentence(502, body) == "The API answered 502."


def test_the_key_of_a_local_stack_is_not_sent_to_another_server(tmp_path: Path) -> None:
    keys.ensure(tmp_path)
    local = client.find_endpoint(None, None, tmp_path)
    assert local.url == "http://127.0.0.1:8600"
    assert local.api_key.startswith("dk_")
    assert client.find_endpoint("https://elsewhere.example", None, tmp_path).api_key is None


def test_the_key_that_the_user_has_given_a_local_stack_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.ensure(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DISTILL_ADMIN_KEY=dk_of_the_file")
    assert client.find_endpoint(None, None, tmp_path).api_key == "dk_of_the_file"
    (tmp_path / "key").write_text("dk_of_a_secret\n")
    monkeypatch.setenv("DISTILL_ADMIN_KEY_FILE", str(tmp_path / "key"))
    assert client.find_endpoint(None, None, tmp_path).api_key == "dk_of_a_secret"
    monkeypatch.setenv("DISTILL_ADMIN_KEY", "dk_of_the_environment")
    assert client.find_endpoint(None, None, tmp_path).api_key == "dk_of_the_environment"
    assert client.find_endpoint("https://elsewhere.example", None, tmp_path).api_key is None


def test_white_space_around_a_key_is_no_part_of_it(tmp_path: Path) -> None:
    assert client.find_endpoint(None, "dk_secret\n", tmp_path).api_key == "dk_secret"


@pytest.mark.parametrize("key", ["dk_secret\nX-Evil: 1", "dk_secrét", "dk_secret\x00"])
def test_a_key_that_no_header_can_carry_is_said_to_be_one_and_not_shown(key: str, tmp_path: Path) -> None:
    arguments = ["status", "job_x", "--api-key", key, "--data-dir", str(tmp_path)]
    ended = CliRunner().invoke(app, arguments)
    assert isinstance(ended.exception, client.ApiError)
    assert "characters that no header can carry" in str(ended.exception)
    assert "secr" not in str(ended.exception) + ended.output


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://127.0.0.1:abc",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://☃.secret",
        f"http://{'secret' * 11}.example",
        "http://secret..example",
        "http://somebody:secret@127.0.0.1:9",
        "http://secret@127.0.0.1:9",
        "http://somebody:secret@[::1",
        "http://127.0.0.1:9?token=secret",
        "http://127.0.0.1:9#secret",
        "127.0.0.1:9",
        "ftp://secret.example",
        "http://",
        " ",
    ],
)
@pytest.mark.parametrize("command", [["doctor"], ["status", "job_x"]])
def test_what_is_no_address_is_told_by_one_sentence_that_shows_no_part_of_it(
    url: str, command: list[str], tmp_path: Path
) -> None:
    ended = CliRunner().invoke(app, [*command, "--data-dir", str(tmp_path)], env={"DISTILL_URL": url})
    assert isinstance(ended.exception, client.ApiError)
    said = str(ended.exception) + ended.output
    assert "must be like http://127.0.0.1:8600" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8600", "https://[::1]:8600", "https://host.example/distill", "http://bücher.example"]
)
def test_an_address_is_kept_as_it_is_but_for_the_slash_at_its_end(url: str, tmp_path: Path) -> None:
    assert client.find_endpoint(f"{url}/", None, tmp_path).url == url


def test_a_job_reads_as_one_line() -> None:
    assert render.where_it_stands(a_job()) == "running, generating, 60/240 completions, $0.042 spent"
    training = [{"model": "small", "status": "running", "progress": {"step": 30, "total_steps": 90}}]
    assert "small running step 30/90" in render.where_it_stands(a_job(stage="training", students=training))


def test_progress_shows_what_is_done_and_what_runs() -> None:
    picture = shown(
        render.progress_view(a_job(stage="training"), {"generating": 3.2, "curating": 0.1, "training": 1.0})
    )
    assert "✓  generating  3.20 s" in picture
    assert "●  training" in picture
    assert "·  evaluating" in picture
    assert "60/240  59 kept, 1 rejected" in picture


def test_the_verdict_is_a_sentence_with_its_doubt() -> None:
    assert str(render.verdict_sentence(STUDENT, ROWS)) == (
        "ft:small:x is better than its base by +0.38 [0.28, 0.48] in json_match, 0.07 below the teacher, "
        "at 20% of its price and in 25% of its time."
    )
    unclear = STUDENT | {"verdict": "inconclusive"}
    assert "not clearly different from its base" in str(render.verdict_sentence(unclear, ROWS))


def test_results_are_rows_by_role_and_grader() -> None:
    table = shown(render.results_table({"holdout": {"examples": 48}, "rows": ROWS}), width=80)
    assert "On 48 prompts that were never trained on" in table
    assert "json_match" in table
    assert "1.000*" in table
    assert "[0.88, 0.98]" in table
    assert "$0.80" in table


@pytest.mark.parametrize("width", [70, 120])
def test_samples_are_readable_on_narrow_and_wide_screens(width: int) -> None:
    sample = {
        "prompt_key": "t-1", "messages": [{"role": "user", "content": "[bold]My invoice[/bold] is wrong"}],
        "teacher": '{"team": "billing"}', "base": None, "student": '{"team": "billing"}',
        "scores": {"json_match": {"base": 0.0, "student": 1.0}},
    }  # fmt: skip
    picture = shown(render.samples_view([sample], width), width)
    assert "[bold]My invoice[/bold] is wrong" in picture  # text of others is never read as markup
    assert picture.count('{"team": "billing"}') == 2
    assert "base 0.00 → student 1.00" in picture


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (0.123, "0.12 s"), (12.34, "12.3 s"), (245, "4 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_read_as_people_say_them(value: float | None, said: str) -> None:
    assert render.seconds(value) == said


def test_stages_are_timed_by_looking_and_short_ones_are_not_forgotten() -> None:
    clock = demo.StageClock()
    clock.tick(a_job(status="queued", stage=None), 0.0)
    clock.tick(a_job(stage="generating"), 1.0)
    clock.tick(a_job(stage="training"), 4.0)  # curating was over between two looks
    assert clock.tick(a_job(stage="training"), 6.0) == {"generating": 3.0, "curating": 0.0, "training": 2.0}
    assert clock.tick(a_job(status="succeeded", stage=None), 7.0)["training"] == 3.0


def test_the_demo_says_which_line_is_not_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a prompt"\n\n{"messages": []}\n{"text": "?"}\n')
    with pytest.raises(demo.DemoFailed, match="line 4 is neither a string nor an object with `messages`"):
        demo.read_prompts(file)
    file.write_text("{]\n")
    with pytest.raises(demo.DemoFailed, match="line 1 is not JSON"):
        demo.read_prompts(file)


def test_the_demo_asks_for_the_job_of_the_example_files() -> None:
    prompts = demo.read_prompts(demo.find_example(Path("examples/support_tickets.jsonl")))
    request = demo.job_request(prompts, "You triage.")
    assert (request["store"], request["metadata"]) == (True, {"distillation": "teams_dataset"})
    assert request["teacher"]["provider"] == "sandbox"
    assert len(request["source"]["prompts"]) > 100


def test_a_demo_cannot_spend_money_or_reach_another_store() -> None:
    environ = {"OPENAI_API_KEY": "sk-1", "DISTILL_REDIS_URL": "redis://prod", "PATH": "/bin"}
    assert demo.clean_environment(environ) == {"PATH": "/bin"}


def test_children_are_told_where_secrets_are_and_never_what_they_are(tmp_path: Path) -> None:
    files = keys.ensure(tmp_path)
    address = stack.Address(1, "http://127.0.0.1:8600", "http://127.0.0.1:8601/v1", "unix:///x?db=0")
    told = stack.children_environment(
        {"DISTILL_WEBHOOK_ALLOW_HTTP": "false"},
        folder=tmp_path,
        options=stack.Options(tmp_path),
        redis_url=address.redis_url,
        key_files=files,
        address=address,
    )
    assert told["DISTILL_SECRET_KEY_FILE"] == str(tmp_path / "secret_key")
    assert not any(files.admin_key in value for value in told.values())
    assert told["DISTILL_PROVIDERS__SANDBOX__BASE_URL"] == "http://127.0.0.1:8601/v1"
    assert told["DISTILL_WEBHOOK_ALLOW_HTTP"] == "false"  # what the user has set stays
    programs = {program.name: program for program in stack.programs(stack.Options(tmp_path, workers=2), address, told)}
    assert list(programs) == ["api", "worker-1", "worker-2", "sandbox"]
    assert not any(name.startswith("DISTILL_") for name in programs["sandbox"].env)
    assert programs["sandbox"].env["SANDBOX_TODAY"] == "2026-11-22"  # or the example's model retires in 2027


def test_each_worker_serves_its_metrics_on_a_port_of_its_own(tmp_path: Path) -> None:
    options = stack.Options(tmp_path, workers=3, worker_metrics_port=9700)
    address = stack.Address(1, "http://127.0.0.1:8600", None, "unix:///x?db=0")
    workers = stack.programs(options, address, {"DISTILL_WORKER_METRICS_PORT": "9700"})[1:]
    assert [worker.env["DISTILL_WORKER_METRICS_PORT"] for worker in workers] == ["9700", "9701", "9702"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"worker_metrics_port": 65_535, "workers": 2},
            "DISTILL_WORKER_METRICS_PORT leaves no port for every worker: there is none above 65535.",
        ),
        ({"host": "192.0.2.1"}, "Cannot listen on 192.0.2.1: "),
        ({"host": "nosuch.invalid"}, "Cannot listen on nosuch.invalid: "),
        ({"data_dir": Path(__file__)}, f"{Path(__file__)} cannot be used as the data directory: File exists."),
        ({"data_dir": Path("/proc/nope")}, "/proc/nope cannot be used as the data directory: No such file"),
    ],
)
def test_a_stack_that_cannot_run_says_why_before_anything_is_started(
    options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    assert _refusal(tmp_path, options).startswith(sentence)


@pytest.mark.parametrize(
    ("options_with", "sentence"),
    [
        (lambda port: {"port": port, "metrics_port": port}, "DISTILL_METRICS_PORT is that of the api."),
        (
            lambda port: {"metrics_port": port, "worker_metrics_port": port - 1, "workers": 2},
            "DISTILL_WORKER_METRICS_PORT is that of DISTILL_METRICS_PORT.",
        ),
    ],
)
def test_the_servers_of_a_stack_may_not_share_a_port(
    options_with: Callable[[int], dict[str, Any]], sentence: str, tmp_path: Path
) -> None:
    port = stack.free_port("127.0.0.1")
    assert _refusal(tmp_path, options_with(port)) == f"Port {port} of {sentence}"


def _refusal(tmp_path: Path, options: dict[str, Any]) -> str:
    given: dict[str, Any] = {"data_dir": tmp_path, "port": 0, "sandbox": False, "redis_url": "redis://127.0.0.1:1/0"}
    made = stack.Stack(stack.Options(**(given | options)), environ={}, cwd=tmp_path, say=print)
    with pytest.raises(stack.StackError) as refused:
        made.start()
    made.stop()
    return str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "job_x", "--data-dir", ""], "must name a folder"),
        (["webhook-secret", "--tenant", ""], "A tenant's name has"),
        (["webhook-secret", "--tenant", "Acme Corp"], "A tenant's name has"),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code != 0
    assert said in ended.output + str(ended.exception)


@pytest.mark.parametrize(
    ("options", "environment", "in_file", "taken"),
    [
        ([], {}, "DISTILL_DATA_DIR=of_the_file", "of_the_file"),
        ([], {}, "DISTILL_DATA_DIR_FILE=name", "of_a_name"),
        ([], {"DISTILL_DATA_DIR": "of_the_environment"}, "DISTILL_DATA_DIR=of_the_file", "of_the_environment"),
        (["--data-dir", "asked"], {}, "DISTILL_DATA_DIR=of_the_file", "asked"),
        ([], {}, "DISTILL_DATA_DIR=", ".distillery"),
    ],
)
def test_the_data_directory_may_be_named_in_the_file_of_settings(
    options: list[str],
    environment: dict[str, str],
    in_file: str,
    taken: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_SECRET_KEY", raising=False)
    (tmp_path / ".env").write_text(in_file)
    (tmp_path / "name").write_text("of_a_name\n")
    secret = keys.ensure(tmp_path / taken).secret.read_text().strip()
    ended = CliRunner().invoke(app, ["webhook-secret", *options], env=environment)
    assert ended.stdout.strip() == keys.signing_secret(secret.encode(), "local")


def test_doctor_finds_a_setting_that_is_misspelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_WORKER_HAND", "1")
    checks = doctor.examine(tmp_path, client.Endpoint("http://127.0.0.1:1", None))
    settings = next(check for check in checks if check.name == "settings")
    assert (settings.state, settings.detail) == ("warn", "DISTILL_WORKER_HAND is no setting; DISTILL_WORKER_HANDS is")


def test_doctor_finds_a_price_list_that_is_misspelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prices.toml").write_text('[house."*"]\ninput = "1"\noutput = "2"\n')
    monkeypatch.setenv("DISTILL_PRICES_FILE", "prices.toml")
    for name, prices in (("LAB", "opnai"), ("OWN", "house")):
        monkeypatch.setenv(f"DISTILL_PROVIDERS__{name}__BASE_URL", "http://127.0.0.1:1/v1")
        monkeypatch.setenv(f"DISTILL_PROVIDERS__{name}__PRICES", prices)
    settings, complaint = doctor.read_settings(tmp_path, None)
    assert settings is not None, complaint
    said = [f"{check.name}: {check.detail}" for check in doctor.price_lists(settings)]
    assert said == ["provider lab: no price list is called opnai; did you mean openai?"]


def test_doctor_says_of_a_file_that_is_no_text_which_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("DISTILL_LOG_LEVEL=débug".encode("latin-1"))
    checks = doctor.examine(tmp_path, client.Endpoint("http://127.0.0.1:1", None))
    settings = next(check for check in checks if check.name == "settings")
    assert (settings.state, settings.detail) == ("fail", ".env cannot be read: it is not UTF-8")


@pytest.mark.parametrize("base_url", [None, "http://127.0.0.1:9/v1"])
def test_a_table_of_the_sandbox_is_completed_and_its_name_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base_url: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_PROVIDERS__SANDBOX__TIMEOUT_SECONDS", "7")
    if base_url is not None:
        monkeypatch.setenv("DISTILL_PROVIDERS__SANDBOX__BASE_URL", base_url)
    settings, complaint = doctor.read_settings(tmp_path, None, sandbox=True)
    assert settings is not None, complaint
    assert settings.providers["sandbox"].timeout_seconds == 7
    address = stack.Address(1, "http://127.0.0.1:8600", "http://127.0.0.1:8601/v1", "unix:///x?db=0")
    running, complaint = doctor.read_settings(tmp_path, address)
    assert running is not None, complaint
    assert str(running.providers["sandbox"].base_url).rstrip("/") == "http://127.0.0.1:8601/v1"
    _say_where(address, tmp_path, list(settings.providers), None)
    said = capsys.readouterr().out
    assert "  providers  sandbox\n" in said
    assert '"Authorization: Bearer $DISTILL_ADMIN_KEY"' in said


def test_the_webhook_secret_is_printed_for_a_tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_SECRET_KEY", raising=False)
    secret = keys.ensure(tmp_path / "data").secret.read_text().strip()
    asked = ["webhook-secret", "--data-dir", str(tmp_path / "data")]
    assert CliRunner().invoke(app, asked).stdout.strip() == keys.signing_secret(secret.encode(), "local")
    monkeypatch.setenv("DISTILL_SECRET_KEY_FILE", str(tmp_path / "lost"))
    assert str(CliRunner().invoke(app, asked).exception).startswith(f"{tmp_path / 'lost'} cannot be read: No such file")


def test_a_job_file_that_is_not_json_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text("{")
    answer = CliRunner().invoke(app, ["submit", str(file)])
    assert answer.exit_code == 1
    assert "is not JSON" in str(answer.exception)


@pytest.mark.parametrize("command", [["keys", "list"], ["status", "job_x"], ["results", "job_x"]])
def test_a_server_of_another_kind_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setattr(httpx2.Client, "request", lambda *_, **__: httpx2.Response(200, json={}))
    ended = CliRunner().invoke(app, [*command, "--url", "http://127.0.0.1:1", "--api-key", "dk_x"])
    assert "does not answer like a Distillery API" in str(ended.exception)


def test_a_job_file_that_is_nested_too_deeply_is_said(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("[" * 200_000)
    answer = CliRunner().invoke(app, ["submit", str(tmp_path / "job.json")])
    assert "is nested too deeply" in str(answer.exception)


def test_a_failed_job_says_its_code_and_stage() -> None:
    error = {"code": "provider_auth_failed", "message": "The provider refused the key.", "stage": "training"}
    said = demo.failure(a_job(status="failed", error=error))
    assert said == "The job is failed while training: The provider refused the key. [provider_auth_failed]"


def test_lines_to_paste_carry_the_key_and_quote_the_address() -> None:
    key, status, _, dataset, _ = demo.curl_lines(client.Endpoint("http://127.0.0.1:8600", "dk_x"), "/v1/jobs/job_1")
    assert key == "export DISTILL_API_KEY=dk_x"
    assert status == 'curl -s -H "Authorization: Bearer $DISTILL_API_KEY" http://127.0.0.1:8600/v1/jobs/job_1'
    assert "'http://127.0.0.1:8600/v1/jobs/job_1/dataset?split=train'" in dataset
