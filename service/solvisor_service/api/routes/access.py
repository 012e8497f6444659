"""Who asks: what the daemon makes of them, and a pass for the page."""

from __future__ import annotations

import time
from typing import Annotated, Final, get_args

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor.errors import Refused
from solvisor.manifest import rfc3339
from solvisor.questions import Conflict
from solvisor.views import Me, Pass, RoleName
from solvisor_service.api.access import Denied, Policy, Who, permit, who_of
from solvisor_service.api.asking import body_of, json_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.passes import Holder
from solvisor_service.api.ways import Role, Way

DAY: Final = 86_400
PASS_SECONDS: Final = 7 * DAY
"""How long a pass is good if nothing else is asked for; a member's at most: one may be taken out of the group."""
_ROLES: Final[dict[Role, RoleName]] = dict(zip(list(Role)[1:], get_args(RoleName), strict=True))
_BY_NAME: Final = {name: role for role, name in _ROLES.items()}


class PassBody(Struct, forbid_unknown_fields=True):
    """``seconds``: how long the pass is good, at most 90 days, 7 for whoever does not administer; ``role``: one's own
    or less, as on a wall.
    """

    seconds: Annotated[int, Meta(ge=1, le=90 * DAY)] = PASS_SECONDS
    role: RoleName | None = None


def _who(request: Request) -> Who:
    who = who_of(request.scope)
    if who is None or who.role not in _ROLES:
        raise AssertionError("somebody without a role took a way that needs one")
    return who


async def _me(request: Request, _: Desk) -> Response:
    who = _who(request)
    return json_of(Me(user=await user_of(request.scope), uid=who.uid, role=_ROLES[who.role], via=who.via))


async def _pass(request: Request, _: Desk) -> Response:
    body = await body_of(request, PassBody)
    who = _who(request)
    policy: Policy = request.app.state.policy()
    if who.via == "tcp":  # one that expires must not live on in those it made
        raise Denied(403, "not_permitted", "passes are given over the Unix socket only: solvisor page")
    if who.role is not Role.ADMINISTER and body.seconds > PASS_SECONDS:
        days = PASS_SECONDS // DAY
        raise Refused("usage", f"the pass of a member of the group is good for {days} days at most; ask for less")
    role = who.role if body.role is None else _BY_NAME[body.role]
    permit(policy, who, await user_of(request.scope), role)
    if policy.keys is None or policy.origin is None:
        raise Conflict("no_page", 'nobody listens for browsers; set listen = "127.0.0.1:8642" in [api], then reload')
    user, expires = await user_of(request.scope), int(time.time()) + body.seconds
    group = policy.group if who.role is Role.OPERATE else None
    token = policy.keys.sign(Holder(who.uid, user, role, group, expires))
    url = f"{policy.origin}/#token={token}"
    given = Pass(token=token, role=_ROLES[role], user=user, expires=rfc3339(expires * 1_000_000), url=url)
    return json_of(given, 201)


ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("GET", "/v1/me", _me, "who asks, and what that lets them do", Me),
    Way("POST", "/v1/passes", _pass, "a token for TCP, with one's own name", Pass, body=PassBody, status=201),
)
