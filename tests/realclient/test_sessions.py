"""Sessions of the real client on the bus: what the model of each is shown, and what the user is asked."""

from __future__ import annotations

import pytest

from tests.realclient.conftest import Users

pytestmark = [pytest.mark.slow, pytest.mark.realclient]


def test_two_sessions_ask_and_answer(plugin_users: Users) -> None:
    auth, web = plugin_users.connect("auth"), plugin_users.connect("web")
    auth.run(f"{auth.zmqbus} send --to web --text 'question: which port?'", "^delivered msg=")
    asked = web.shown(r'\[inter-session msg=(\w+) from="auth"\] question: which port\?')[1]
    web.run(f"{web.zmqbus} send --to auth --reply-to {asked} --text 'answer: 8080'", "^delivered msg=")
    auth.shown(rf'\[inter-session msg=\w+ from="web" re={asked}\] answer: 8080')
    assert auth.questions == web.questions == [], "the user is asked nothing"
