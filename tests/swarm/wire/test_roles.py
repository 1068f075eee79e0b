"""The table of roles: every kind of request is in it, and docs/protocol.md shows the same; refusals are counted."""

import re

import pytest

from swarmd.swarm.wire.framing import KINDS
from swarmd.swarm.wire.messages.common import Request
from swarmd.swarm.wire.roles import LOG_SECONDS, RECENT_SECONDS, ROLES, Role, RoleRefusals
from tests.house import ROOT


def test_every_kind_of_request_needs_some_role() -> None:
    assert {it.__name__ for it in ROLES} == {name for name, cls in KINDS.items() if issubclass(cls, Request)}


def test_what_the_table_says_of_a_kind_its_fields_can_tell() -> None:
    for kind, needs in ROLES.items():
        fields = kind.__dataclass_fields__
        if needs.role in (Role.LEADER, Role.CONDUCTOR):
            assert "step" in fields, kind
        if needs.role is Role.LEADER:
            assert {"stage", "ballot"} <= fields.keys(), kind
        if needs.parent != "record_hash":
            assert needs.parent in fields, kind


def test_the_protocols_table_is_this_one() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    shown = dict[str, tuple[str, str]]()
    for kinds, role, whose in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\w+) \| (.*?) *\|$", text, flags=re.MULTILINE):
        shown.update(dict.fromkeys(re.findall(r"\w+", kinds), (role, whose)))
    at_a_stage = (Role.REPLICA, Role.PROVEN, Role.GIVEN, Role.LEADER)
    said = {
        kind.__name__: (needs.role.name.lower(), needs.whose.value if needs.role in at_a_stage else "")
        for kind, needs in ROLES.items()
    }
    assert shown == said


def test_refusals_are_counted_and_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    it = RoleRefusals()
    assert it.warning(0.0) == ""
    for number in range(5):
        it.note("stranger", "Freeze", 100.0 + number)
    it.note("stranger", "Close", 100.0 + LOG_SECONDS)
    assert caplog.messages == [
        "refused for want of a role: 1 Freeze; the last one of stranger",
        "refused for want of a role: 4 Freeze, 1 Close; the last one of stranger",
    ]
    assert it.warning(161.0).endswith("so far 5 Freeze, 1 Close")
    assert it.warning(161.0 + RECENT_SECONDS) == ""
