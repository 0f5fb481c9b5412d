"""The types of single settings: what each accepts, and the words in which it refuses the rest."""

from __future__ import annotations

import base64
import json
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import parse_qs, parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode
from redis.connection import parse_url

from shared.price_file import read_prices
from shared.settings_files import read_tables

_STORE_OPTIONS: Final = {  # what both redis-py and Celery's transport understand, by the address's scheme
    "redis": frozenset({"db"}),
    "rediss": frozenset({"db", "ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}),
    "unix": frozenset({"db"}),
}
_CERT_REQS: Final = ("required", "optional", "none")
_SIGNING_KEY_BYTES_MIN: Final = 16
_PORT_MAX: Final = 65_535
NO_TABLE: Final = "\0"  # the key, which no environment can hold, of what stands where a table should


def _redis_url(url: str) -> str:
    """What its readers would take for something else: a `/` in a password ends the host, a `#` the address."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    if not _names_a_store(url):
        raise ValueError(
            "must be redis://[user:password@]host[:port][/database] or unix://[user:password@]/path[?db=database] with"
            " numbers as port and database; such characters as / # ? [ @ % in a password are to be percent-encoded"
        )
    parts = urlsplit(url)
    options, known = dict(parse_qsl(parts.query)), _STORE_OPTIONS[parts.scheme]
    if not options.keys() <= known:
        raise ValueError(f"takes no option after the ? but {', '.join(sorted(known))}")
    if options.get("ssl_cert_reqs", "required") not in _CERT_REQS:
        raise ValueError(f"must have one of {', '.join(_CERT_REQS)} as ssl_cert_reqs")
    return url


def _names_a_store(url: str) -> bool:
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        by_path = parts.scheme == "unix"
        host = parts.netloc.rpartition("@")[2]
        _ = None if by_path else parts.port  # read, so that it is checked
        parse_url(url)  # type: ignore[no-untyped-call]  # raises ValueError for the client's own options
    except ValueError:
        return False
    path = parts.path.removeprefix("/")
    databases = options.get("db", []) + ([path] if path and not by_path else [])
    well_placed = bool(path) and not host if by_path else "@" not in parts.path + parts.query
    return well_placed and "#" not in url and all(db.isascii() and db.isdecimal() for db in databases)


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known or any(sign.isspace() for sign in url):
        raise ValueError("must be an address that starts with http:// or https://")
    return url


def _listed(*example: int | str) -> BeforeValidator:
    """A list in one text, wherever it comes from: with commas, or as JSON.  example: two items, for the sentence.

    An empty text is no list: it is what a variable that is not set leaves, and of ports the empty list means any."""
    how = f"must be a list such as {','.join(map(str, example))} or {json.dumps(example)}; [] is the empty one"

    def read(value: Any) -> Any:
        items = _items(value) if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or "" in items:
            raise ValueError(how)
        return items

    return BeforeValidator(read)


def _items(text: str) -> Any:
    """None of what looks like JSON and is none."""
    if not text.lstrip().startswith(("[", "{", '"')):
        return [item.strip() for item in text.split(",")]
    try:
        return json.loads(text)
    except ValueError:
        return None


def _port(value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_PORT_MAX)) and 1 <= int(text) <= _PORT_MAX):
        raise ValueError(f"must be a port from 1 to {_PORT_MAX}, with a comma between two")
    return int(text)


def _network(value: Any) -> Any:
    """Said once, and not once for each kind of network that it might have been."""
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("must be a network as CIDR, such as 10.0.0.0/8, with a comma between two") from None


def _header_text(secret: SecretStr) -> SecretStr:
    """A key, without the line's end that `$(cat file)` leaves out and other ways to set it do not."""
    text = secret.get_secret_value().strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII on one line, as a header carries it")
    return SecretStr(text)


def _signing_secret(secret: SecretStr) -> SecretStr:
    """A secret that verifies nothing would be told by silence: every event refused."""
    try:
        key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if len(key) < _SIGNING_KEY_BYTES_MIN:
        raise ValueError("must be whsec_ and base64, as the provider shows it")
    return secret


def _table(value: Any) -> Any:
    if not isinstance(value, dict) or NO_TABLE in value:
        raise ValueError("must be a table, which is a JSON object in the environment")
    return value


def _tables_file(path: Path) -> Path:
    """Read before by the source that takes the tables out of it; here so that what is wrong in it is told."""
    read_tables(path)
    return path


def _price_file(path: Path) -> Path:
    """Read once more by who counts with it; here so that what is wrong in it is told like any wrong setting."""
    read_prices(path)
    return path


def named(sentence: str) -> PydanticCustomError:
    """A fault whose sentence names the setting, which is another than the field, or more than one."""
    return PydanticCustomError("named", "{sentence}", {"sentence": sentence})


def not_shorter_than(characters: int) -> AfterValidator:
    """In our words: pydantic counts the items of a secret."""

    def check(secret: SecretStr) -> SecretStr:
        if len(secret.get_secret_value()) < characters:
            raise ValueError(f"must have at least {characters} characters")
        return secret

    return AfterValidator(check)


RedisUrl = Annotated[str, AfterValidator(_redis_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Ports = Annotated[tuple[Annotated[int, BeforeValidator(_port)], ...], NoDecode, _listed(80, 443)]
Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...],
    NoDecode,
    _listed("10.0.0.0/8", "192.168.0.0/16"),
]
Names = Annotated[tuple[str, ...], NoDecode, _listed("one", "another")]
HeaderText = Annotated[SecretStr, AfterValidator(_header_text)]
SigningSecret = Annotated[SecretStr, AfterValidator(_signing_secret)]
_Value = TypeVar("_Value")
Table = Annotated[dict[str, _Value], BeforeValidator(_table)]
TablesFile = Annotated[Path, AfterValidator(_tables_file)]
PriceFile = Annotated[Path, AfterValidator(_price_file)]
