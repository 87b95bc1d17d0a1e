"""The settings of a server: declared once, checked at start, frozen afterwards.

A setting comes from an option of the command, else from its `AVICENNA_*` variable, else from the TOML file that
`--config` or `AVICENNA_CONFIG` names, else from its default. A wrong or unknown one is refused before anything starts.
`docs/SETTINGS.md` is made from the declarations below (`make settings`), and a test compares the two.
"""

# ruff: noqa: RUF009 - what `_setting` is called with is immutable
from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final, Literal

from storage.records import DAY_SECONDS, IDEMPOTENCY_KEYS_MAX, Durability
from web.identity.keys import KeySpec
from web.identity.tokens import LIFETIME_SECONDS_MAX
from web.server.setting_kinds import (
    DIRECTORY,
    FILE,
    FLAG,
    HOST,
    JWKS,
    KEY_FILE,
    LISTENING,
    NATS_SERVER,
    ORIGIN,
    PAGE_ORIGIN,
    PORT,
    SOCKET_PATH,
    TRUSTED_PROXY,
    Kind,
    choice,
    number,
    several,
    text,
    whole,
    word,
)

PREFIX: Final = "AVICENNA_"
"""Every variable that begins so is ours: one that names no setting is a slip, and refused."""

CONFIG_VARIABLE: Final = "AVICENNA_CONFIG"
URL_VARIABLE: Final = "AVICENNA_URL"
TOKEN_VARIABLE: Final = "AVICENNA_TOKEN"  # noqa: S105 - the name of a variable, not a token
OTHER_VARIABLES: Final = {
    CONFIG_VARIABLE: "The TOML file with settings, named as below.",
    URL_VARIABLE: "Which server the client commands talk to.",
    TOKEN_VARIABLE: "The token the client commands send.",
}
"""Variables with our prefix that are no settings of the server."""

CONFIG_BYTES_MAX: Final = 1024 * 1024
"""Largest settings file. Beyond: refused; it is not one."""

DATA_DEFAULT: Final = Path("data")

DATABASE_FILE: Final = "avicenna.db"
"""Name of the database within the data directory."""

BACKUPS_DIRECTORY: Final = "backups"
"""Name of the directory of backups within the data directory (0700)."""

STORAGE_SECONDS_WITH_WORKERS: Final = 10.0
"""`storage_seconds_max` where several workers ask one store and nobody has set it."""

EACH_WORKER: Final = " Each of several `workers` counts its own."
"""What is said of a limit that does not hold for all of them together."""

DAYS_MAX: Final = 36_500
"""Longest time that a setting in days may name: a hundred years."""

EngineName = Literal["sqlite", "nats"]
DamagePolicy = Literal["refuse", "set_aside"]
LogFormat = Literal["people", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogSubjects = Literal["no", "digest", "plain"]
Tracing = Literal["auto", "on", "off"]


class SettingsError(Exception):
    """Settings that cannot be used: the text names the first, its limit and what was wrong. Correct it, start again."""

    def __init__(self, *problems: str) -> None:
        """Refuse settings.

        Args:
            problems: one sentence for each setting, at least one.
        """
        more = f" (and {len(problems) - 1} more: avicenna-live serve --check)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = problems


def _setting(default: object, kind: Kind, doc: str) -> Any:
    return field(default=default, metadata={"kind": kind, "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything an operator can decide. The declaration of a field holds its default, its kind and its meaning.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """

    host: str = _setting("127.0.0.1", text(255), "Address to listen on; `0.0.0.0` or `::` for every interface.")
    port: int = _setting(8000, PORT, "TCP port to listen on; 0 takes any free one.")
    tcp: bool = _setting(True, FLAG, "Listen on `host` and `port`; `false`: on the Unix socket alone.")
    unix_socket: Path | None = _setting(
        None,
        SOCKET_PATH,
        "Listen on this Unix socket, too; the server's user and group may connect (mode 0660).",
    )
    operators_listen: str | None = _setting(
        None,
        LISTENING,
        "Listen here, too, with limits of its own, for `/healthz`, `/readyz`, `/metrics` (without a token), the status "
        "and operators' routes alone; `host` and `port` keep all routes.",
    )
    data: Path = _setting(DATA_DEFAULT, DIRECTORY, "Directory of the database and the key; made if it is missing.")
    workers: int = _setting(
        1,
        whole(1, 64, "processes"),
        "Processes that serve, each on a core of its own; above 1 one more process has the database. `max_connections` "
        "and, about, `address_share` hold for all together, other limits of connections and all rates for each.",
    )

    engine: EngineName = _setting(
        "sqlite",
        choice(EngineName),
        "Where all is kept: in a database in `data`, or in streams of NATS JetStream that several servers share "
        "([DEPLOYMENT](DEPLOYMENT.md#several-machines-on-nats)).",
    )
    nats_url: tuple[str, ...] = _setting(
        ("nats://127.0.0.1:4222",),
        several(NATS_SERVER, 16),
        "With `engine = nats`: NATS servers of one cluster; the others are learned from them. With `tls://` before "
        "one of them all are spoken to by TLS alone.",
    )
    nats_name: str = _setting(
        "avicenna", word(32), "The name of the installation: servers with the same name share everything."
    )
    nats_replicas: int = _setting(
        3, whole(1, 5, "servers"), "NATS servers that hold each stream that is made; 1: none may fail."
    )
    nats_credentials: Path | None = _setting(
        None, FILE, "A file with the nkey seed of our user at the NATS servers, or its `.creds` file; none: no user."
    )
    nats_ca: Path | None = _setting(
        None, FILE, "Certificates that vouch for the NATS servers (PEM), which implies TLS; none: those of the system."
    )
    nats_certificate: Path | None = _setting(
        None, FILE, "Our own certificate for the NATS servers (PEM), which implies TLS; none: we show none."
    )
    nats_certificate_key: Path | None = _setting(None, FILE, "Its private key (PEM).")
    node_name: str | None = _setting(
        None,
        word(48),
        "How this server is called among those on one engine, with digits of each start behind it; none: as its host.",
    )
    isolated_seconds: float = _setting(
        60.0,
        number(0, DAY_SECONDS, "seconds"),
        "A server that had others beside it, and has heard neither of them nor of the engine for so long, ends its "
        "connections with 1012, spread over 30 s: it may be the only one that is cut off. 0: never.",
    )

    allow_anonymous: bool = _setting(False, FLAG, "Let subscribers without a token follow every diagnosis.")
    query_tokens: bool = _setting(
        True, FLAG, "Accept a token in the query of the URL of a WebSocket or an event stream."
    )
    allowed_origins: tuple[str, ...] = _setting(
        (),
        several(PAGE_ORIGIN, 100),
        "Origins of pages and apps that may connect and use the HTTP API (CORS), beside the server's own.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        several(HOST, 100),
        "With `allow_anonymous`: hosts under which the server is asked, beside addresses, `localhost`, `host` and that "
        "of `public_url`; a request for another is refused.",
    )
    public_url: str | None = _setting(None, ORIGIN, "The server's own origin, as browsers behind a proxy see it.")
    trusted_proxies: tuple[IPv4Network | IPv6Network | str, ...] = _setting(
        (),
        several(TRUSTED_PROXY, 100),
        "Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; `unix`: whoever uses a Unix socket.",
    )

    token_keys: tuple[KeySpec, ...] = _setting(
        (),
        several(KEY_FILE, 100),
        "Keys that verify tokens: a secret (HS256) or a public key in PEM. `KID` is the `kid` its tokens carry. "
        "One newline at the end of a secret that is one line of text does not count.",
    )
    jwks: str | None = _setting(
        None, JWKS, "Public keys that verify tokens, as a JWKS document; a URL is fetched again as keys change."
    )
    jwks_refresh_seconds: float = _setting(
        3600.0,
        number(60, 7 * DAY_SECONDS, "seconds"),
        "A JWKS URL is fetched so often, and besides when a token names an unknown key.",
    )
    local_key: bool = _setting(
        True,
        FLAG,
        "Accept tokens made with `jwt.key` in the data directory; it is made if no other key is configured.",
    )
    token_lifetime_seconds_max: int = _setting(
        LIFETIME_SECONDS_MAX,
        whole(60, 366 * DAY_SECONDS, "seconds"),
        "Longest time from `iat` (without one: from now) to `exp` of a token; revocations are kept for as long.",
    )
    issuer: str | None = _setting(None, text(1000), "The only accepted `iss` of a token; none: not checked.")
    audience: str | None = _setting(None, text(1000), "The only accepted `aud` of a token; none: not checked.")

    durability: Durability = _setting(
        "full", choice(Durability), "`full`: an accepted event survives power loss; `normal`: a crash only."
    )
    database_must_exist: bool = _setting(
        False,
        FLAG,
        "Refuse to start without a database, as where a volume is not mounted; `avicenna-live new-database` makes one.",
    )
    storage_seconds_max: float = _setting(
        5.0,
        number(0.05, 300, "seconds"),
        "A request that waits for a disk which does not answer is answered 503 after this time. With several "
        "`workers` the default is 10: their store may begin anew meanwhile.",
    )
    damaged_database: DamagePolicy = _setting(
        "refuse",
        choice(DamagePolicy),
        "A database with a damaged structure: `refuse` to start, or rename it and begin an empty one with new epochs.",
    )
    passivate_after_seconds: float = _setting(
        300.0,
        number(0.01, DAY_SECONDS, "seconds"),
        "An actor without subscribers and mail leaves memory after this time.",
    )
    mailbox_messages_max: int = _setting(
        1000,
        whole(1, 1_000_000, "messages"),
        "Broadcasts that wait for one diagnosis; beyond: answered 429." + EACH_WORKER,
    )
    restart_intensity_max: int = _setting(
        3,
        whole(0, 1000, "restarts"),
        "Restarts of a crashing actor within the time below; beyond: quarantined." + EACH_WORKER,
    )
    restart_intensity_seconds: float = _setting(
        60.0, number(0.01, DAY_SECONDS, "seconds"), "The time in which restarts of an actor are counted."
    )
    quarantine_seconds: float = _setting(
        60.0, number(0.01, DAY_SECONDS, "seconds"), "A quarantined actor is tried again after this time."
    )
    escalation_quarantines_max: int = _setting(
        10,
        whole(0, 100_000, "quarantines"),
        "Quarantines within the time below; beyond: `/readyz` says not ready." + EACH_WORKER,
    )
    escalation_seconds: float = _setting(
        60.0, number(0.01, DAY_SECONDS, "seconds"), "The time in which quarantines are counted."
    )
    ring_bytes_max: int = _setting(
        256 * 1024 * 1024,
        whole(1024 * 1024, 2**40, "bytes"),
        "Events in memory, of all diagnoses; beyond: those that nobody follows leave, the longest unused first."
        + EACH_WORKER,
    )
    max_connections: int = _setting(
        10_000,
        whole(1, 1_000_000, "connections"),
        "Open connections of all kinds, of all `workers` together; beyond: refused, but for 16 that ask `/healthz`, "
        "`/readyz` or with an `operate` token.",
    )
    address_share: float = _setting(
        0.25,
        number(0.0001, 1),
        "The share of `max_connections` that one address (IPv6: one /64) may take up; 1: all. This machine "
        "(`127.0.0.1`, `::1`), Unix sockets and `trusted_proxies` may take up all. Each of several `workers` lets in "
        "its part.",
    )

    keep_alive_seconds: float = _setting(
        75.0,
        number(0.05, 3600, "seconds"),
        "An HTTP connection is closed after so much silence between requests (before its first byte: after 10 s); "
        "it must exceed the proxy's idle timeout.",
    )
    short_way: bool = _setting(
        True,
        FLAG,
        "Plain requests are answered without the general parser and framework; false: all requests pass them.",
    )

    user_connections_max: int | None = _setting(
        None, whole(1, 1_000_000, "connections"), "Live connections of one user; none: any number." + EACH_WORKER
    )
    diagnosis_connections_max: int | None = _setting(
        None, whole(1, 1_000_000, "connections"), "Live connections of one diagnosis; none: any number." + EACH_WORKER
    )
    address_connections_max: int | None = _setting(
        None,
        whole(1, 1_000_000, "connections"),
        "Live connections of one address (IPv6: one /64); none: any number." + EACH_WORKER,
    )
    user_requests_per_second: float | None = _setting(
        None, number(0.01, 1_000_000, "per second"), "HTTP requests of one user; none: any number." + EACH_WORKER
    )
    user_events_per_second: float | None = _setting(
        None,
        number(0.01, 1_000_000, "per second"),
        "Events one user publishes, one by one or as lines of a bulk request; none: any number." + EACH_WORKER,
    )
    address_requests_per_second: float | None = _setting(
        None,
        number(0.01, 1_000_000, "per second"),
        "HTTP requests of one address (IPv6: one /64); none: any number." + EACH_WORKER,
    )
    user_connects_per_second: float | None = _setting(
        None, number(0.01, 1_000_000, "per second"), "WebSockets one user opens; none: any number." + EACH_WORKER
    )
    address_connects_per_second: float | None = _setting(
        None,
        number(0.01, 1_000_000, "per second"),
        "WebSockets one address (IPv6: one /64) opens; none: any number." + EACH_WORKER,
    )

    idempotency_keys_max: int = _setting(
        IDEMPOTENCY_KEYS_MAX,
        whole(1, 1_000_000_000, "keys"),
        "Idempotency keys of all diagnoses (10,000,000 take about 3.5 GB); beyond: 429 for a key not stored yet.",
    )
    events_kept_days: float | None = _setting(
        None,
        number(0.01, DAYS_MAX, "days"),
        "Events older than this are dropped, within a minute; none: the newest 100 stay.",
    )
    access_trail: bool = _setting(False, FLAG, "Keep rows of who followed which diagnosis from when to when.")
    access_trail_kept_days: float | None = _setting(
        None, number(0.01, DAYS_MAX, "days"), "Rows of the access trail older than this are dropped; none: they stay."
    )
    audit_kept_days: float | None = _setting(
        None, number(0.01, DAYS_MAX, "days"), "Audit rows older than this are dropped; none: they stay."
    )

    backups_kept: int | None = _setting(
        None,
        whole(1, 100_000, "files"),
        "Copies in `backups/` that stay once a backup was made: the newest ones; none: all. Files that no backup made "
        "are never deleted.",
    )

    log_format: LogFormat = _setting("people", choice(LogFormat), "Log lines for people, or one JSON object a line.")
    log_level: LogLevel = _setting("info", choice(LogLevel), "The least important log lines that are written.")

    log_subjects: LogSubjects = _setting(
        "no",
        choice(LogSubjects),
        "How log lines about connections name the subject: not, by 16 digits of its SHA-256, or as it is.",
    )
    tracing: Tracing = _setting(
        "auto",
        choice(Tracing),
        "Spans by OpenTelemetry (the extra `otel`). `auto`: if the process has a tracer provider, as under "
        "`opentelemetry-instrument`; `on`: by the SDK, configured by its `OTEL_` variables; `off`: none.",
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None or one.default is not None:
                object.__setattr__(self, one.name, _read(_kind(one).checked, value, one.name, _kind(one)))
        if not (self.local_key or self.token_keys or self.jwks):
            raise SettingsError(
                "local_key must be true, or token_keys or jwks must name a key: no token could be verified"
            )
        if not self.tcp and self.unix_socket is None:
            raise SettingsError("unix_socket must name a path where tcp is false: nobody could connect")
        if (self.nats_certificate is None) != (self.nats_certificate_key is None):
            raise SettingsError("nats_certificate and nats_certificate_key must be given together")
        if self.shares_engine and (problems := _not_with_nats(self)):
            raise SettingsError(*problems)

    @property
    def shares_engine(self) -> bool:
        """Whether other servers write where this one does."""
        return self.engine == "nats"


def _not_with_nats(given: Settings) -> Sequence[str]:
    """Settings that have no meaning where the streams of NATS hold everything, each with what to do instead."""
    problems = []
    if given.durability != "full":
        problems.append(
            "durability must be full with engine = nats: a majority of the NATS servers holds an event before it is "
            "accepted; sync_interval in their configuration says what a loss of power costs"
        )
    if given.damaged_database != "refuse":
        problems.append(
            "damaged_database must be refuse with engine = nats: there is no database to set aside; restore the "
            "streams (nats account restore DIR), then run avicenna-live cluster renew"
        )
    if given.workers > 1:
        problems.append(
            "workers must be 1 with engine = nats: start more servers with the same nats_name, also on one machine"
        )
    return problems


def load(
    environment: Mapping[str, str], *, config: Path | None = None, options: Mapping[str, object] | None = None
) -> Settings:
    """The settings of a server that starts now.

    Args:
        environment: the variables; those without our prefix are not looked at, an empty one counts as unset.
        config: a TOML file, `None`: the one `AVICENNA_CONFIG` names, if any.
        options: settings given on the command line, by name; `None` counts as not given.

    Raises:
        SettingsError: settings are unknown or wrong, all of which it names, or the file cannot be read.
    """
    declared = {one.name: one for one in fields(Settings)}
    given = {name: text for name, text in environment.items() if name.startswith(PREFIX) and text}
    if config is None and CONFIG_VARIABLE in given:
        config = Path(given[CONFIG_VARIABLE])

    values: dict[str, Any] = {}
    problems: list[str] = []

    def take(known: Mapping[str, Field[Any]], name: str, where: str, value: object, *, is_text: bool) -> None:
        try:
            one = _known(name, where, known)
            kind = _kind(one)
            values[one.name] = _read(kind.from_text if is_text else kind.checked, value, where, kind)
        except SettingsError as error:
            problems.extend(error.problems)

    for key, value in _read_file(config).items() if config else ():
        take(declared, key, f"{key} in {config}", value, is_text=False)
    by_variable = {variable_of(name): one for name, one in declared.items()}
    for variable, spelled in sorted(given.items()):
        if variable not in OTHER_VARIABLES:
            take(by_variable, variable, variable, spelled, is_text=True)
    for name, value in (options or {}).items():
        if value is not None:
            take(declared, name, f"--{name}", value, is_text=isinstance(value, str))
    if problems:
        raise SettingsError(*problems)
    if values.get("workers", 1) > 1:
        values.setdefault("storage_seconds_max", STORAGE_SECONDS_WITH_WORKERS)
    return Settings(**values)


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def settings_page() -> str:
    """`docs/SETTINGS.md`, from the declarations."""
    rows = [
        f"| `{one.name}` | {_kind(one).name} | {_shown(one.default)} | {_kind(one).limit} | {one.metadata['doc']} |"
        for one in fields(Settings)
    ]
    others = [f"| `{name}` | {doc} |" for name, doc in OTHER_VARIABLES.items()]
    return "\n".join((_PAGE_HEAD, *rows, _PAGE_OTHERS, *others, ""))


_PAGE_HEAD: Final = """\
# Settings

<!-- Made from web/server/settings.py by `make settings`; change it there. -->

Every setting can be given as a variable of the environment (`AVICENNA_` and its name in capitals, such as
`AVICENNA_PORT`) or under its name in a TOML file that `--config` or `AVICENNA_CONFIG` names. An option of the command
wins over the variable, the variable over the file, the file over the default. A list is an array in TOML and separated
by commas in a variable; an empty variable counts as unset.

All of them are checked at start: an unknown or wrong one is one line on stderr, and the exit code is 2.
`avicenna-live serve --check` checks them without a start, and names all that are wrong.

| setting | type | default | must be | meaning |
|---|---|---|---|---|"""

_PAGE_OTHERS: Final = """
Other variables:

| variable | meaning |
|---|---|"""


def _shown(default: object) -> str:
    match default:
        case None | ():
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case tuple():
            return ", ".join(f"`{one}`" for one in default)
        case _:
            return f"`{default}`"


def _kind(one: Field[Any]) -> Kind:
    kind = one.metadata["kind"]
    assert isinstance(kind, Kind)
    assert one.default is not MISSING, "every setting has a default: the server starts without any"
    return kind


def _known(name: str, where: str, known: Mapping[str, Field[Any]]) -> Field[Any]:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise SettingsError(f"{where} is not a setting" + (f"; is {near[0]} meant?" if near else ""))


def _read(read: Callable[[Any], object], value: object, where: str, kind: Kind) -> Any:
    try:
        return read(value)
    except (ValueError, OSError):
        # No setting is a secret: keys and tokens are files and variables of their own, never shown.
        shown = str(value) if len(str(value)) <= 80 else f"{len(str(value))} characters long"
        raise SettingsError(f"{where} must be {kind.limit}; it is {shown!a}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
        if len(content) > CONFIG_BYTES_MAX:
            raise SettingsError(f"the settings file {path} must have at most {CONFIG_BYTES_MAX} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not valid TOML: {error}") from None


if __name__ == "__main__":
    print(settings_page(), end="")  # noqa: T201 - this is how `make settings` writes the page
