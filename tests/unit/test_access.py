"""Who may do what: a table of peers, bearers, names and origins, and what each of them is."""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from solvisor.errors import Refused
from solvisor.model import Address
from solvisor_service.api import access
from solvisor_service.api.access import NOBODY, Denied, Policy, Who
from solvisor_service.api.passes import Holder, Keys
from solvisor_service.api.problems import problem_of
from solvisor_service.api.routes import ORDERS, QUESTIONS
from solvisor_service.api.ways import Role, Way

TOKEN = "t" * 43
KEYS = Keys(TOKEN)
POLICY = Policy(1000, "sim", "fem", 50, Address("127.0.0.1", 8642), ("ws04.example",), KEYS)
NOW = 1_000_000.0

ANN = Who(2000, "ann", Role.OPERATE, "socket")


def refused(status: int, reason: str, act: Callable[[], object]) -> str:
    with pytest.raises(Denied) as caught:
        act()
    assert (caught.value.status, caught.value.reason) == (status, reason)
    return str(caught.value)


# --- who it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "groups", "role"),
    [
        (0, set(), Role.ADMINISTER),
        (1000, set(), Role.ADMINISTER),
        (2000, {50}, Role.OPERATE),
        (2000, {7, 50, 9}, Role.OPERATE),
        (2000, {7}, Role.ANYONE),
        (2000, {1000, 0}, Role.ANYONE),  # a group of the owner's number is not the owner
        (50, set(), Role.ANYONE),  # nor is a user of the group's number a member
    ],
)
def test_a_peer_is_the_owner_or_root_or_a_member_or_nobody(uid: int, groups: set[int], role: Role) -> None:
    assert access.peer(POLICY, uid, frozenset(groups)) == Who(
        uid, None, role, "socket", group=50 if role is Role.OPERATE else None
    )


def test_whoever_is_let_in_stays_until_their_end_or_until_their_group_is_another() -> None:
    member, owner = access.peer(POLICY, 2000, frozenset({50})), access.peer(POLICY, 1000, frozenset({50}))
    passed, token = bearer(f"Bearer {a_pass(ends=NOW + 9)}"), bearer(f"Bearer {TOKEN}")
    rests = [access.rest(POLICY, who, NOW) for who in (member, owner, passed, token)]
    assert rests == [math.inf, math.inf, 9, math.inf]
    assert access.rest(POLICY, passed, NOW + 9) == 0
    for other in (POLICY._replace(group="cfd", gid=51), POLICY._replace(group=None, gid=None)):
        assert [access.rest(other, who, NOW) for who in (member, owner, passed, token)] == [0, math.inf, 0, math.inf]
    remade = POLICY._replace(gid=51)
    assert access.rest(remade, member, NOW) == 0, "a group of the same name is another one"


def test_without_a_group_nobody_operates() -> None:
    closed = POLICY._replace(group=None, gid=None)
    assert access.peer(closed, 2000, frozenset({0, 50, 1000})).role is Role.ANYONE


def bearer(*headers: str, policy: Policy = POLICY, now: float = NOW) -> Who:
    return access.bearer(policy, headers, now)


def a_pass(role: Role = Role.OPERATE, group: str | None = "fem", *, keys: Keys = KEYS, ends: float = NOW + 1) -> str:
    return keys.sign(Holder(2000, "ann", role, group, ends))


def test_the_token_is_the_owner_and_a_pass_its_holder() -> None:
    assert bearer() == NOBODY
    assert bearer(f"Bearer {TOKEN}") == bearer(f"bearer {TOKEN}") == Who(1000, None, Role.ADMINISTER, "tcp")
    assert bearer(f"Bearer {a_pass()}") == Who(2000, "ann", Role.OPERATE, "tcp", NOW + 1, "fem")
    assert bearer(f"Bearer {a_pass(Role.ADMINISTER, None)}").role is Role.ADMINISTER
    assert bearer(f"Bearer {a_pass(Role.LOOK)}").role is Role.LOOK


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"),
        *(f"Bearer  {TOKEN}", "Bearer pass1", "Bearer pass1..", "Bearer pass1.e30.e30", "Bearer \xff\u0100"),
        f"Bearer {'x' * 100_000}",
    ],
    ids=lambda header: header[:24],
)
def test_what_is_no_good_token_is_refused(header: str) -> None:
    assert TOKEN not in refused(401, "token", lambda: bearer(header))


def test_a_token_twice_is_refused() -> None:
    refused(401, "token", lambda: bearer(f"Bearer {TOKEN}", f"Bearer {TOKEN}"))


def test_a_pass_ends_by_its_time_by_a_new_token_and_by_another_group() -> None:
    good = f"Bearer {a_pass()}"
    assert bearer(good, now=NOW + 0.9).user == "ann"
    refused(401, "token", lambda: bearer(good, now=NOW + 1))
    refused(401, "token", lambda: bearer(good, policy=POLICY._replace(keys=Keys("u" * 43))))
    refused(401, "token", lambda: bearer(good, policy=POLICY._replace(keys=None)))
    refused(401, "token", lambda: bearer(good, policy=POLICY._replace(group="other", gid=51)))
    refused(401, "token", lambda: bearer(good, policy=POLICY._replace(group=None, gid=None)))
    assert bearer(f"Bearer {a_pass(group=None)}", policy=POLICY._replace(group=None)).role is Role.OPERATE


def test_a_pass_with_any_byte_changed_is_refused() -> None:
    good = a_pass()
    for place, letter in enumerate(good):
        changed = f"{good[:place]}{'A' if letter != 'A' else 'B'}{good[place + 1 :]}"
        # The last letter of each part holds bits that mean nothing; as text it is another one all the same.
        refused(401, "token", partial(bearer, f"Bearer {changed}"))


def test_keys_are_not_shown() -> None:
    assert TOKEN not in repr(KEYS) + str(KEYS) + repr(POLICY)
    assert Keys(TOKEN) == KEYS != Keys("u" * 43)


# --- what it may do -------------------------------------------------------------------------------------------------


def test_each_role_may_what_those_before_it_may() -> None:
    for own in Role:
        for wanted in Role:
            who = ANN._replace(role=own)
            if own >= wanted:
                access.permit(POLICY, who, "ann", wanted)
            else:
                refused(403, "not_permitted", partial(access.permit, POLICY, who, "ann", wanted))


def test_a_refusal_says_which_role_is_needed_and_who_has_it() -> None:
    def told(policy: Policy, who: Who, wanted: Role) -> str:
        return refused(403, "not_permitted", lambda: access.permit(policy, who, "ann", wanted))

    stranger = ANN._replace(role=Role.ANYONE)
    assert told(POLICY, ANN, Role.ADMINISTER) == (
        "this needs the role administer, held by sim and root; yours (ann) is operate"
    )
    assert told(POLICY, stranger, Role.LOOK) == (
        "this needs the role look, held by sim and root and members of the group fem; yours (ann) is none"
    )
    assert told(POLICY._replace(owner=0, owner_name="root", group=None), stranger, Role.LOOK) == (
        "this needs the role look, held by root; yours (ann) is none; [api] group lets others in"
    )
    assert "solvisor page" in refused(401, "token", lambda: access.permit(POLICY, NOBODY, None, Role.LOOK))


def test_every_order_needs_more_than_to_look_and_what_needs_no_role_tells_nothing() -> None:
    ways: list[Way[Any]] = [*QUESTIONS, *ORDERS]
    by_role = {role: {f"{way.method} {way.path}" for way in ways if way.role is role} for role in Role}
    assert by_role[Role.ANYONE] <= {"GET /healthz", "GET /readyz"}
    assert {each for each in by_role[Role.LOOK] if not each.startswith("GET ")} == {"POST /v1/passes"}
    assert not [each for role in (Role.OPERATE, Role.ADMINISTER) for each in by_role[role] if each.startswith("GET ")]
    assert "POST /v1/servers/{server}/scale" in by_role[Role.ADMINISTER]


# --- who answers ----------------------------------------------------------------------------------------------------


def test_a_proof_is_made_with_what_only_the_bearer_and_the_daemon_know() -> None:
    nonce, host = "0123456789abcdef" * 2, "127.0.0.1:8642"
    _, content, signature = a_pass().split(".")

    def made_by(key: bytes) -> str:
        return hmac.new(key, f"{nonce}\n{host}".encode(), "sha256").hexdigest()

    assert KEYS.proof(content, nonce, host.upper()) == made_by(signature.encode())
    assert KEYS.proof("token", nonce, host) == made_by(hmac.digest(TOKEN.encode(), b"solvisor proof", "sha256"))
    others = [("other", nonce, host), (content, nonce[1:] + "0", host), (content, nonce, "127.0.0.1:8643")]
    assert made_by(signature.encode()) not in [KEYS.proof(*each) for each in others]
    assert Keys("u" * 43).proof(content, nonce, host) != KEYS.proof(content, nonce, host)


# --- where it comes from --------------------------------------------------------------------------------------------


def source(*hosts: str, origin: tuple[str, ...] = (), policy: Policy = POLICY) -> None:
    access.check_source(policy, {"host": hosts, "origin": origin})


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8642", "localhost:8642", "LOCALHOST:8642", "[::1]:8642", "ws04.example", "WS04.example:443"]
)
def test_names_of_our_own(host: str) -> None:
    source(host)
    source(host, origin=(f"http://{host}",))


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil", "evil:8642", "127.0.0.1", "localhost", "localhost:80", "localhost:8643", "localhost.:8642"),
        *("127.0.0.1.evil:8642", "evil.ws04.example", "ws04.example.evil", "ws04.example@evil", "127.0.0.1:8642@evil"),
        *("127.0.0.1:8642:8642", "127.1:8642", "2130706433:8642", "0.0.0.0:8642", "[::]:8642", "[::1]"),
        *("ws04.example,evil", "localhost:", "localhost:8642 ", " localhost:8642", "localhost:8642/"),
        *("localhost:999999", "\xb2:8642"),
    ],
)
def test_fault_77_every_other_name_is_refused(host: str) -> None:
    refused(403, "host", lambda: source(host))


def test_fault_77_a_request_without_one_name_is_refused() -> None:
    refused(403, "host", source)
    refused(403, "host", lambda: source("localhost:8642", "localhost:8642"))
    refused(403, "host", lambda: source("localhost:8642", policy=POLICY._replace(address=None)))


def test_a_loopback_name_among_hosts_is_good_with_any_port() -> None:
    forwarded = POLICY._replace(hosts=("localhost",))
    source("localhost:9000", policy=forwarded, origin=("http://localhost:9000",))
    refused(403, "host", lambda: source("127.0.0.1:9000", policy=forwarded))


def test_a_port_that_is_usual_needs_no_number() -> None:
    usual = POLICY._replace(address=Address("127.0.0.1", 80))
    source("127.0.0.1", policy=usual, origin=("http://127.0.0.1",))
    refused(403, "host", lambda: source("127.0.0.1:8642", policy=usual))


def test_a_page_behind_a_proxy_may_speak_tls() -> None:
    source("ws04.example", origin=("https://ws04.example",))
    refused(403, "origin", lambda: source("localhost:8642", origin=("https://localhost:8642",)))


@pytest.mark.parametrize(
    "origin",
    [
        *("null", "", "http://evil", "http://localhost", "http://localhost:8643", "https://localhost:8642"),
        *("http://127.0.0.1:8642", "http://localhost:8642.evil", "http://localhost:8642/", "file://", "localhost:8642"),
    ],
)
def test_fault_78_every_other_origin_is_refused(origin: str) -> None:
    refused(403, "origin", lambda: source("localhost:8642", origin=(origin,)))


def test_fault_78_two_origins_are_refused() -> None:
    own = "http://localhost:8642"
    refused(403, "origin", lambda: source("localhost:8642", origin=(own, own)))


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("multipart/form-data; boundary=x", True),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("application/json, text/plain", False),
        ("", False),
    ],
)
def test_fault_78_a_body_that_any_form_can_send_is_refused(kind: str, good: bool) -> None:
    headers = {"content-type": (kind,), "content-length": ("2",)}
    access.check_body("GET", headers)
    if good:
        access.check_body("POST", headers)
    else:
        refused(415, "content_type", lambda: access.check_body("POST", headers))


def test_an_order_may_have_no_body() -> None:
    access.check_body("POST", {"content-length": ("0",)})
    access.check_body("POST", {})
    refused(415, "content_type", lambda: access.check_body("POST", {"content-length": ("2",)}))
    refused(415, "content_type", lambda: access.check_body("POST", {"transfer-encoding": ("chunked",)}))


@pytest.mark.parametrize(
    ("status", "title"), [(401, "not authenticated"), (403, "not permitted"), (415, "unsupported media type")]
)
def test_the_title_of_a_problem_fits_its_status(status: int, title: str) -> None:
    problem = problem_of(Denied(status, "code", "text"))
    assert (problem.status, problem.title) == (status, title)


@pytest.mark.parametrize(
    ("refusal", "status", "title"),
    [("usage", 400, "refused"), ("slow", 408, "too slow"), ("too_large", 413, "too large"), ("key", 409, "conflict")],
)
def test_so_does_that_of_a_refusal(refusal: str, status: int, title: str) -> None:
    problem = problem_of(Refused(refusal, "text"))
    assert (problem.status, problem.title) == (status, title)
