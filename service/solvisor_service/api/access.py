"""Who may do what: decisions about a peer of the Unix socket, a bearer's host and origin, and a route.

Rules: this is the only place that gives a role. It is pure: who a peer is, which groups it has and whether a token is
good was found out elsewhere. What is not known to be allowed is refused. This module must not know routes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from solvisor.errors import SolvisorError
from solvisor.model import Address

from .passes import Keys
from .ways import Role

ROOT: Final = 0
_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_BODIES: Final = frozenset({"application/json", "multipart/form-data"})


class Denied(SolvisorError):
    """A request that is refused for who asks, or for where it comes from. ``reason`` is the code of the answer."""

    code = "not_permitted"
    exit_status = 77

    def __init__(self, status: int, reason: str, text: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(text)


Via: TypeAlias = Literal["socket", "tcp"]
"""The doors."""


class Who(NamedTuple):
    """Who asks: ``uid`` where one is known, ``user`` where a pass gives the name.

    ``expires`` is when a pass does (seconds UTC), ``group`` whom they are let in as a member of: the number at the
    socket, the name in a pass.
    """

    uid: int | None
    user: str | None
    role: Role
    via: Via
    expires: float | None = None
    group: int | str | None = None


NOBODY: Final = Who(None, None, Role.ANYONE, "tcp")
"""Whoever showed no token."""


class Policy(NamedTuple):
    """What is in force: the daemon's user, the group that may operate, and where the TCP listener is, if it is open.

    ``gid`` is ``None`` where no group is configured, or it is not known on this machine; ``keys`` say which bearers
    are good. ``hosts`` are further names that browsers may reach the listener under.
    """

    owner: int = ROOT
    owner_name: str = "root"
    group: str | None = None
    gid: int | None = None
    address: Address | None = None
    hosts: tuple[str, ...] = ()
    keys: Keys | None = None

    @property
    def origin(self) -> str | None:
        """Where the page is, as a URL without a path."""
        return None if self.address is None else f"http://{self.address.authority}"


# --- who it is ------------------------------------------------------------------------------------------------------


def peer(policy: Policy, uid: int, groups: frozenset[int]) -> Who:
    """The peer of a connection to the Unix socket."""
    if uid in (policy.owner, ROOT):
        return Who(uid, None, Role.ADMINISTER, "socket")
    if policy.gid is not None and policy.gid in groups:
        return Who(uid, None, Role.OPERATE, "socket", group=policy.gid)
    return Who(uid, None, Role.ANYONE, "socket")


def bearer(policy: Policy, authorization: Sequence[str], now: float) -> Who:
    """Who shows these ``Authorization`` headers at ``now`` (seconds UTC); ``NOBODY`` who shows none.

    Raises ``Denied`` for a token that is not good.
    """
    if not authorization:
        return NOBODY
    scheme, _, token = authorization[0].partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer":
        raise _no_token("it needs one header: Authorization: Bearer TOKEN")
    if policy.keys is not None:
        if policy.keys.is_token(token):
            return Who(policy.owner, None, Role.ADMINISTER, "tcp")
        holder = policy.keys.holder(token, now)
        # A pass that a member gave is as good as the group: it ends when another one is configured.
        if holder is not None and holder.group in (None, policy.group):
            return Who(holder.uid, holder.user, holder.role, "tcp", holder.expires, holder.group)
    raise _no_token("this token is not good here, or has expired; solvisor page gives another one")


def rest(policy: Policy, who: Who, now: float) -> float:
    """For how many seconds from ``now`` (UTC) on they stay who they are, if the policy stays; 0 if they are not."""
    if who.group not in (None, policy.group, policy.gid):
        return 0.0
    return math.inf if who.expires is None else max(0.0, who.expires - now)


def needs_token() -> Denied:
    """The refusal of who showed no token."""
    return _no_token("it needs a token: solvisor page gives one, which goes into: Authorization: Bearer TOKEN")


def _no_token(text: str) -> Denied:
    return Denied(401, "token", text)


# --- what it may do -------------------------------------------------------------------------------------------------


def permit(policy: Policy, who: Who, user: str | None, role: Role) -> None:
    """Raise ``Denied`` unless ``who``, called ``user``, may take a route that needs ``role``."""
    if who.role >= role:
        return
    if who.via == "tcp" and who.role is Role.ANYONE:
        raise needs_token()
    holders = ["root"] if policy.owner == ROOT else [policy.owner_name, "root"]
    if role is not Role.ADMINISTER and policy.group:
        holders.append(f"members of the group {policy.group}")
    hint = "" if policy.group or role is Role.ADMINISTER else "; [api] group lets others in"
    wanted, own = role.name.lower(), who.role.name.lower() if who.role else "none"
    text = f"this needs the role {wanted}, held by {' and '.join(holders)}; yours ({user or 'unknown'}) is {own}{hint}"
    raise Denied(403, "not_permitted", text)


# --- where it comes from --------------------------------------------------------------------------------------------


def check_source(policy: Policy, headers: Mapping[str, Sequence[str]]) -> None:
    """Raise ``Denied`` for a request to the TCP listener that a page of somebody else's may have made.

    A name that an attacker lets point to this machine (DNS rebinding) is no name of ours, and a browser says truly
    which page it asks for (``Origin``).
    """
    hosts = headers.get("host", ())
    if len(hosts) != 1 or not _is_ours(policy, hosts[0]):
        text = f"asked for under a name that is not its own, nor among [api] hosts; use {policy.origin}"
        raise Denied(403, "host", text)
    origins = headers.get("origin", ())
    if origins and (len(origins) > 1 or origins[0].lower() not in _origins(policy, hosts[0].lower())):
        raise Denied(403, "origin", "asked by a page that is not this daemon's own")


def _is_ours(policy: Policy, host: str) -> bool:
    found = _AUTHORITY.fullmatch(host)
    if found is None or policy.address is None:
        return False
    name, port = found[1].lower(), int(found[2] or 80)
    if name in (each.lower() for each in policy.hosts):
        return True
    own = policy.address.host
    return name in ("127.0.0.1", "localhost", "[::1]", f"[{own}]", own) and port == policy.address.port


def _origins(policy: Policy, host: str) -> tuple[str, ...]:
    """The origins of pages that were asked for under ``host``; whoever stands before us under a name may speak TLS."""
    named = host.partition(":")[0] in (each.lower() for each in policy.hosts)
    return (f"http://{host}", f"https://{host}") if named else (f"http://{host}",)


def check_body(method: str, headers: Mapping[str, Sequence[str]]) -> None:
    """Raise ``Denied`` for an order over TCP with a body of a type that a form of any page can send."""
    types = headers.get("content-type", ())
    empty = headers.get("content-length", ("0",)) == ("0",) and "transfer-encoding" not in headers
    if method in ("GET", "HEAD") or (empty and not types):
        return
    if len(types) != 1 or types[0].partition(";")[0].strip().lower() not in _BODIES:
        wanted = "Content-Type: application/json, or multipart/form-data for a submission"
        raise Denied(415, "content_type", f"over TCP an order needs {wanted}")


def by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, tuple[str, ...]]:
    """Headers by their names in small letters."""
    found: dict[str, tuple[str, ...]] = {}
    for name, value in headers:
        key = name.decode("latin-1").lower()
        found[key] = (*found.get(key, ()), value.decode("latin-1"))
    return found


def who_of(scope: Mapping[str, Any]) -> Who | None:
    """Who asks, as it was found out for this request; ``None`` where nobody did."""
    who = scope.get("state", {}).get("who")
    return who if isinstance(who, Who) else None
