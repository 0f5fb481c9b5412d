"""A thin client of the REST API, and its errors as text for a terminal."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from cli import stack

DEFAULT_URL = f"http://127.0.0.1:{stack.API_PORT}"
#: GETs are repeated while the API restarts; anything else is for the user to repeat.
GET_ATTEMPTS = 5
#: Lines of one problem; the API itself tells no more.
FAULTS_MAX = 20

Json = dict[str, Any]


class ApiError(RuntimeError):
    """The API answered with an error, or did not answer; the message is for a terminal."""

    def __init__(self, sentence: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    url: str
    api_key: str | None


def find_endpoint(url: str | None, api_key: str | None, data_dir: Path) -> Endpoint:
    """What was named, else the stack that runs in the data directory.  Its key goes to that stack alone.

    Raises `ApiError` for an address that is none and for a key that no header can carry, without repeating either."""
    running = stack.running_at(data_dir)
    if api_key is None and (url is None or (running is not None and url.rstrip("/") == running.api_url)):
        with contextlib.suppress(OSError):
            api_key = stack.secret("DISTILL_ADMIN_KEY", os.environ, Path.cwd(), made=data_dir / "admin_key")
    if url is None:
        url = running.api_url if running is not None else DEFAULT_URL
    return Endpoint(_address(url), None if api_key is None else _plain(api_key.strip(), "API key"))


def _address(url: str) -> str:
    """Without a slash at its end.  A password in it would take the place of the API key, and be shown in messages."""
    try:
        parsed = httpx2.URL(url.strip())
        host = parsed.raw_host.decode("ascii")
        host.encode("idna")  # as the look-up does: a label has 1 to 63 characters
        right = parsed.scheme in {"http", "https"} and host and (parsed.port is None or 1 <= parsed.port <= 65_535)
    except (httpx2.InvalidURL, UnicodeError):
        right = False
    if not right or parsed.userinfo or parsed.query or parsed.fragment:
        raise ApiError(
            "The address of the API (--url, DISTILL_URL) must be like http://127.0.0.1:8600 or "
            "https://host.example/path: http or https, a host, at most a port and a path besides, and no user name "
            "or password."
        )
    return url.strip().rstrip("/")


def _plain(text: str, what: str) -> str:
    """What stands in a header: a client library would say which text does not by showing it."""
    if not (text.isascii() and text.isprintable()):
        raise ApiError(f"The {what} has characters that no header can carry: only printable ASCII on one line can.")
    return text


def sentence(status: int, body: Any) -> str:
    """An RFC 9457 problem as one sentence: what is wrong, where, and the code to look up.  Several faults follow it, a
    line each."""
    if not isinstance(body, Mapping):
        return f"The API answered {status}."
    said = str(body.get("detail") or body.get("title") or f"The API answered {status}").strip().rstrip(".")
    faults = [fault for fault in body.get("errors") or () if isinstance(fault, Mapping)]
    places = [
        ": ".join(filter(None, (str(fault.get("pointer") or ""), str(fault.get("detail") or fault.get("code") or ""))))
        for fault in faults
    ]
    if len(places) == 1 and str(faults[0].get("pointer") or faults[0].get("detail")) not in said:
        said += f" ({places[0].rstrip('.')})"
    notes = [str(body["code"])] if body.get("code") else []
    if status >= httpx2.codes.INTERNAL_SERVER_ERROR and body.get("request_id"):
        notes.append(str(body["request_id"]))
    lines = [f"{said}." + (f" [{', '.join(notes)}]" if notes else "")]
    if len(places) > 1:
        lines += [f"  {place}" for place in places[:FAULTS_MAX]]
    return "\n".join(lines)


class Api:
    """One connection to the API.  Every method raises `ApiError`."""

    def __init__(self, endpoint: Endpoint, *, timeout_seconds: float = 30.0) -> None:
        self.endpoint = endpoint
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        local = httpx2.URL(endpoint.url).host in {"127.0.0.1", "localhost", "::1"}
        self._http = httpx2.Client(
            base_url=endpoint.url, headers=headers, timeout=timeout_seconds, trust_env=not local, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: str | int) -> Json:
        """Repeated for a few seconds when the API is away or says that a repetition may help."""
        for attempt in range(1, GET_ATTEMPTS):
            try:
                return self._json("GET", path, params=params)
            except ApiError as error:
                if error.status is not None and error.status != httpx2.codes.SERVICE_UNAVAILABLE:
                    raise
                time.sleep(0.3 * attempt)  # a command waits for its one answer; nothing else runs here
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Any = None, *, idempotency_key: str | None = None, **params: str | int) -> Json:
        """body: bytes are JSON already, and sent as they are."""
        headers = {"Idempotency-Key": _plain(idempotency_key, "idempotency key")} if idempotency_key else {}
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/json"
            return self._json("POST", path, content=body, headers=headers, params=params)
        return self._json("POST", path, json=body, headers=headers, params=params)

    def delete(self, path: str) -> Json:
        return self._json("DELETE", path)

    def download(self, path: str, target: Path, **params: str | int) -> int:
        """Bytes written.  The file appears under its name only when it is whole."""
        draft = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with self._translated(), self._http.stream("GET", path, params=params) as answer, draft.open("wb") as file:
                if answer.is_error:
                    answer.read()
                    raise _as_error(answer)
                for piece in answer.iter_bytes():
                    file.write(piece)
            size = draft.stat().st_size
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return size

    def _json(self, method: str, path: str, **arguments: Any) -> Json:
        with self._translated():
            answer = self._http.request(method, path, **arguments)
        if answer.is_error or answer.is_redirect:
            raise _as_error(answer)
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict) or not ("object" in body or "status" in body):
            raise ApiError(f"{self.endpoint.url} does not answer like a Distillery API.", status=answer.status_code)
        return body

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TimeoutException as error:
            raise ApiError(f"{self.endpoint.url} did not answer in time.") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ApiError(
                f"{self.endpoint.url} cannot be reached ({error}); is it running?  `distill up` starts it here."
            ) from error


def _as_error(answer: httpx2.Response) -> ApiError:
    try:
        body = answer.json()
    except ValueError:
        body = None
    code = body.get("code") if isinstance(body, dict) else None
    if code == "missing_api_key":  # the API's own sentence tells of headers, which nobody writes here
        body |= {"detail": "The API wants a key: name yours with --api-key or DISTILL_API_KEY."}
    return ApiError(sentence(answer.status_code, body), code=code, status=answer.status_code)
