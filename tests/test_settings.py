"""Settings: the order of sources, ignored values, and paths."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from zmqbus import settings
from zmqbus.errors import InvalidOption
from zmqbus.settings import Paths, Settings, find_project, load, shown_path, where_am_i


class Warnings(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


def quiet(flags: dict[str, object] | None = None, /, **environ: str) -> Settings:
    """Load without any warning."""
    warnings = Warnings()
    loaded = load(flags, {"HOME": "/home/u", **environ}, warnings)
    assert warnings == []
    return loaded


def ignored(flags: dict[str, object] | None = None, /, **environ: str) -> tuple[Settings, str]:
    """Load with exactly one warning."""
    warnings = Warnings()
    loaded = load(flags, {"HOME": "/home/u", **environ}, warnings)
    assert len(warnings) == 1
    return loaded, warnings[0]


def test_defaults_are_those_of_the_contract() -> None:
    assert quiet() == Settings(
        port=9473,
        idle_shutdown_s=600.0,
        data_dir="/home/u/.claude/data/inter-session",
        name=None,
        label=None,
        owner_pid_override=None,
        owner_check_interval_s=10.0,
        no_reexec=False,
        durability="process",
        loopback_only=False,
        port_chosen=False,
    )


@pytest.mark.parametrize("source", ["flag", "CLAUDE_PLUGIN_OPTION_PORT", "INTER_SESSION_PORT"])
def test_port_counts_as_chosen_unless_it_is_the_default(source: str) -> None:
    def given(port: int) -> Settings:
        return quiet({"port": port}) if source == "flag" else quiet(**{source: str(port)})

    assert given(9474).port_chosen and not given(9473).port_chosen
    assert (
        not given(9473)._replace(port=9999).port_chosen
    )  # the port of an existing session, which the user did not choose


def test_every_field_has_one_rule() -> None:
    assert [rule.field for rule in settings._RULES] == list(Settings._fields)[:-1]  # the last follows from the port


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("CLAUDE_PLUGIN_OPTION_PORT", "9000", "port", 9000),
        ("INTER_SESSION_PORT", "9001", "port", 9001),
        ("INTER_SESSION_PORT", " 65535 ", "port", 65535),
        ("INTER_SESSION_PORT", "1", "port", 1),
        ("CLAUDE_PLUGIN_OPTION_IDLE_SHUTDOWN_MINUTES", "0", "idle_shutdown_s", 0.0),
        ("INTER_SESSION_IDLE_MINUTES", "0.05", "idle_shutdown_s", 3.0),
        ("INTER_SESSION_IDLE_MINUTES", "90", "idle_shutdown_s", 5400.0),
        ("INTER_SESSION_DATA_DIR", "/srv/bus", "data_dir", "/srv/bus"),
        ("INTER_SESSION_NAME", "Not A Name!", "name", "Not A Name!"),
        ("INTER_SESSION_LABEL", "Ünïted", "label", "Ünïted"),
        ("INTER_SESSION_PPID_OVERRIDE", "4242", "owner_pid_override", 4242),
        ("INTER_SESSION_OWNER_CHECK_INTERVAL_S", "0.2", "owner_check_interval_s", 0.2),
        ("INTER_SESSION_DURABILITY", "Power", "durability", "power"),
    ],
)
def test_each_variable_sets_its_field(variable: str, text: str, field: str, value: object) -> None:
    loaded = quiet(**{variable: text})
    assert getattr(loaded, field) == value
    follows = {"port_chosen": field == "port"}
    assert loaded._asdict() == {**quiet()._asdict(), field: value, **follows}, "and no other field"


@pytest.mark.parametrize(
    ("texts", "on"), [(("1", "true", "YES", "On"), True), (("0", "false", "No", "OFF", ""), False)]
)
def test_switch(texts: tuple[str, ...], on: bool) -> None:
    assert {quiet(INTER_SESSION_NO_REEXEC=text).no_reexec for text in texts} == {on}


def test_order_of_sources() -> None:
    both = {"CLAUDE_PLUGIN_OPTION_PORT": "9001", "INTER_SESSION_PORT": "9002"}
    assert quiet({"port": "9000"}, **both).port == 9000
    assert quiet({"port": None}, **both).port == 9001
    assert quiet(INTER_SESSION_PORT="9002").port == 9002
    idle = {"CLAUDE_PLUGIN_OPTION_IDLE_SHUTDOWN_MINUTES": "2", "INTER_SESSION_IDLE_MINUTES": "3"}
    assert quiet({"idle_shutdown_minutes": 1}, **idle).idle_shutdown_s == 60.0
    assert quiet(**idle).idle_shutdown_s == 120.0


def test_flags_come_as_text_or_as_numbers() -> None:
    given_flags: dict[str, object] = {"port": 9000, "idle_shutdown_minutes": 0.5, "name": "n", "label": "l"}
    loaded = quiet(given_flags)
    assert (loaded.port, loaded.idle_shutdown_s, loaded.name, loaded.label) == (9000, 30.0, "n", "l")
    assert loaded == quiet({key: str(value) for key, value in given_flags.items()})


def test_other_flags_are_ignored() -> None:
    assert quiet({"verbose": True, "data_dir": "/elsewhere"}) == quiet()


def test_invalid_variable_is_ignored_for_the_next_source(warnings: Warnings) -> None:
    environ = {"CLAUDE_PLUGIN_OPTION_PORT": "9473abc", "INTER_SESSION_PORT": "9002", "HOME": "/home/u"}
    assert load({}, environ, warnings).port == 9002
    assert len(warnings) == 1
    assert "CLAUDE_PLUGIN_OPTION_PORT='9473abc'" in warnings[0]
    assert "from 1 to 65535" in warnings[0]


@pytest.mark.parametrize("value", ["-1", "", "abc", "70000", " ", "9473 9474"])
def test_invalid_flag_is_an_error(value: str, warnings: Warnings) -> None:
    """It was typed just now: another port would be another broker."""
    with pytest.raises(InvalidOption, match=r"^--port must be a whole number from 1 to 65535, not '") as caught:
        load({"port": value}, {"INTER_SESSION_PORT": "9002", "HOME": "/home/u"}, warnings)
    assert isinstance(caught.value, ValueError)
    assert warnings == []


def test_later_sources_are_not_parsed() -> None:
    assert quiet({"port": 9000}, INTER_SESSION_PORT="rubbish").port == 9000


PORTS = ("9473abc", "0", "70000", "-1", "+9473", "9_473", "9473.0", "nan", "inf", "٩٤٧٣", "²", "0x10", "9" * 5000)
MINUTES = ("nan", "-nan", "inf", "-inf", "-1", "1e999", "1_0", "ten", "10m", "5270401", "\u0661")


@pytest.mark.parametrize(
    ("variable", "text", "rule"),
    [
        *(("INTER_SESSION_PORT", text, "from 1 to 65535") for text in PORTS),
        *(("INTER_SESSION_IDLE_MINUTES", text, "0 (never)") for text in MINUTES),
        *(("INTER_SESSION_PPID_OVERRIDE", text, "id of a process") for text in ("0", "-1", "4294967297")),
        *(("INTER_SESSION_OWNER_CHECK_INTERVAL_S", text, "seconds from 0.01") for text in ("0", "nan", "inf")),
        ("INTER_SESSION_NO_REEXEC", "maybe", "one of 1, true"),
        ("INTER_SESSION_DURABILITY", "eternal", "one of process, power"),
        *(("INTER_SESSION_DATA_DIR", text, "directory") for text in ("/with/\0nul", "~no-such-account-here/bus")),
    ],
)
def test_invalid_values(variable: str, text: str, rule: str) -> None:
    loaded, warning = ignored(**{variable: text})
    assert loaded == quiet()
    assert f"{variable}=" in warning and rule in warning


@pytest.mark.parametrize("value", [True, 9473.0, "", b"9473", [], 10**5000], ids=lambda value: type(value).__name__)
def test_flags_of_a_wrong_type(value: object) -> None:
    with pytest.raises(InvalidOption, match=r"^--port must be "):
        quiet({"port": value})


def test_error_names_the_flag_as_typed() -> None:
    with pytest.raises(InvalidOption, match=r"^--idle-shutdown-minutes must be .*, not 'soon'$"):
        quiet({"idle_shutdown_minutes": "soon"})


def test_minus_zero_is_zero() -> None:
    assert str(quiet(INTER_SESSION_IDLE_MINUTES="-0").idle_shutdown_s) == "0.0"


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_blank_variable_counts_as_unset(blank: str) -> None:
    variables = [variable for rule in settings._RULES for variable in rule.variables]
    assert quiet(**dict.fromkeys(variables, blank)) == quiet()
    assert quiet(CLAUDE_PLUGIN_OPTION_PORT=blank, INTER_SESSION_PORT="9002").port == 9002


def test_an_empty_flag_is_a_value() -> None:
    loaded = quiet({"name": "", "label": ""}, INTER_SESSION_NAME="n", INTER_SESSION_LABEL="l")
    assert (loaded.name, loaded.label) == ("", "")


def test_long_value_is_cut_in_its_warning() -> None:
    _, warning = ignored(INTER_SESSION_PORT="x" * 100_000)
    assert len(warning) < 200
    assert "'xxx" in warning and "…" in warning


def test_warning_is_one_line_without_control_characters() -> None:
    _, warning = ignored(INTER_SESSION_PORT="\x1b[2J\n[inter-session] \udc80")
    assert warning.isprintable()


@hypothesis_settings(max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from(["port", "idle_shutdown_minutes", "name", "label"]),
        st.none() | st.text() | st.integers() | st.floats() | st.booleans(),
    ),
    st.dictionaries(st.sampled_from([v for rule in settings._RULES for v in rule.variables] + ["HOME"]), st.text()),
)
def test_the_result_is_in_range(flags: dict[str, object], environ: dict[str, str]) -> None:
    try:
        loaded = load(flags, environ, Warnings())
    except InvalidOption:
        loaded = load({}, environ, Warnings())  # which never raises
    assert type(loaded.port) is int and 1 <= loaded.port <= 65535
    assert type(loaded.idle_shutdown_s) is float and 0 <= loaded.idle_shutdown_s < float("inf")
    assert os.path.isabs(loaded.data_dir) and "\0" not in loaded.data_dir
    assert loaded.owner_pid_override is None or loaded.owner_pid_override >= 1
    assert 0 < loaded.owner_check_interval_s <= 1_000_000
    assert loaded.no_reexec in (True, False)
    assert loaded.durability in settings.DURABILITIES


@given(st.integers(1, 65535))
def test_every_valid_port_is_accepted(port: int) -> None:
    assert quiet(INTER_SESSION_PORT=str(port)).port == port


class TestDataDir:
    def test_home_of_the_given_environment(self) -> None:
        assert quiet(INTER_SESSION_DATA_DIR="~/bus").data_dir == "/home/u/bus"
        assert quiet(INTER_SESSION_DATA_DIR="~").data_dir == "/home/u"

    def test_home_of_another_account(self) -> None:
        account = pwd.getpwuid(os.getuid())
        expected = os.path.join(account.pw_dir, "bus")
        assert quiet(INTER_SESSION_DATA_DIR=f"~{account.pw_name}/bus").data_dir == expected

    def test_root_as_home(self) -> None:
        assert quiet(HOME="/", INTER_SESSION_DATA_DIR="~").data_dir == "/"
        assert quiet(HOME="/").data_dir == "/.claude/data/inter-session"

    @pytest.mark.parametrize("home", ["", "relative", "/nul\0"])
    def test_home_from_the_user_database(self, home: str) -> None:
        expected = os.path.join(pwd.getpwuid(os.getuid()).pw_dir, "bus")
        assert quiet(HOME=home, INTER_SESSION_DATA_DIR="~/bus").data_dir == expected

    def test_a_uid_without_an_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(uid: int) -> None:
            raise KeyError(uid)

        monkeypatch.setattr(pwd, "getpwuid", unknown)
        assert quiet(HOME="", INTER_SESSION_DATA_DIR="~/bus").data_dir == "/bus"

    def test_relative_to_the_current_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert quiet(INTER_SESSION_DATA_DIR="bus/../bus").data_dir == os.path.join(os.getcwd(), "bus")

    def test_relative_where_the_current_directory_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def gone() -> str:
            raise FileNotFoundError(2, "No such file or directory")

        monkeypatch.setattr(os, "getcwd", gone)
        loaded, warning = ignored(INTER_SESSION_DATA_DIR="bus")
        assert loaded == quiet()
        assert "INTER_SESSION_DATA_DIR='bus'" in warning

    def test_links_are_not_resolved(self, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(tmp_path)
        loaded = quiet(INTER_SESSION_DATA_DIR=f"{link}/")
        assert loaded.data_dir == str(link)
        assert os.path.islink(loaded.data_dir)


def test_paths() -> None:
    paths = quiet(INTER_SESSION_DATA_DIR="/d").paths
    assert paths == Paths("/d")
    assert paths.keys == "/d/keys"
    assert paths.log == "/d/messages.log"
    assert paths.database == "/d/mailboxes.sqlite3"
    assert paths.broker_log == "/d/broker.log"
    assert paths.pid_file(9473) == "/d/server.9473.pid"
    assert paths.clients == "/d/clients"
    assert paths.labels == "/d/clients/labels.json"
    assert paths.venv == "/d/venv"


class TestDefaultSources:
    def test_the_environment_of_the_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INTER_SESSION_PORT", "9111")
        monkeypatch.delenv("CLAUDE_PLUGIN_OPTION_PORT", raising=False)
        assert load().port == 9111

    def test_warnings_go_to_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        load(None, {"INTER_SESSION_PORT": "abc"})
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("warning: ignoring INTER_SESSION_PORT='abc': ")
        assert err.endswith("\n") and err.count("\n") == 1

    def test_no_stderr(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", None)
            assert load(None, {"INTER_SESSION_PORT": "abc"}).port == 9473
        assert capsys.readouterr().out == ""

    def test_stderr_closed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = (tmp_path / "stderr").open("w")
        stream.close()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            assert load(None, {"INTER_SESSION_PORT": "abc"}).port == 9473


class TestLocation:
    def test_located_settings_are_not_loaded_again(self) -> None:
        environ = {"HOME": "/home/u", "INTER_SESSION_DATA_DIR": "/d", "INTER_SESSION_PPID_OVERRIDE": "0"}
        warnings = Warnings()
        location = settings.locate(environ, warnings)
        assert location == settings.Location("/d", None)
        loaded = load({}, {**environ, "INTER_SESSION_PORT": "9002"}, warnings, location)
        assert (loaded.data_dir, loaded.port) == ("/d", 9002)
        assert len(warnings) == 1, "one warning for the wrong owner"


class TestFindProject:
    def test_root_of_the_work_tree(self, tmp_path: Path) -> None:
        deep = tmp_path / "repo" / "a" / "b"
        deep.mkdir(parents=True)
        (tmp_path / "repo" / ".git").mkdir()
        root = os.path.realpath(tmp_path / "repo")
        assert find_project(str(deep)) == root
        assert find_project(str(tmp_path / "repo")) == root
        assert find_project(f"{deep}/") == root

    def test_git_file_of_a_linked_work_tree_and_innermost_wins(self, tmp_path: Path) -> None:
        inner = tmp_path / "outer" / "inner"
        (inner / "src").mkdir(parents=True)
        (tmp_path / "outer" / ".git").mkdir()
        (inner / ".git").write_text("gitdir: elsewhere\n")
        assert find_project(str(inner / "src")) == os.path.realpath(inner)

    def test_directory_outside_of_a_work_tree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os.path, "exists", lambda path: False)
        assert find_project("/usr") == os.path.realpath("/usr")
        assert find_project("/") == "/"

    def test_links_are_resolved(self, tmp_path: Path) -> None:
        (tmp_path / "repo" / "src").mkdir(parents=True)
        (tmp_path / "repo" / ".git").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "repo" / "src")
        assert find_project(str(tmp_path / "link")) == os.path.realpath(tmp_path / "repo")

    def test_a_directory_that_is_gone(self, tmp_path: Path) -> None:
        (tmp_path / ".git").mkdir()
        assert find_project(str(tmp_path / "gone" / "deeper")) == os.path.realpath(tmp_path)


# Where this process works


def test_where_am_i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "src").mkdir()
    monkeypatch.chdir(tmp_path / "repo" / "src")
    root = os.path.realpath(tmp_path / "repo")
    assert where_am_i() == (f"{root}/src", root)


def test_missing_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError):
        os.getcwd()
    assert where_am_i() == ("", "")


def test_directories_that_are_not_utf_8_stay_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    for name in (b"caf\xe9", b"caf\xe8", "café".encode()):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(path)
        monkeypatch.chdir(os.fsdecode(path))
        places.append(where_am_i())
        places[-1].cwd.encode()  # does not raise
    assert len(set(places)) == 3
    assert [os.path.basename(place.cwd) for place in places] == ["caf\\xe9", "caf\\xe8", "café"]
    assert shown_path("/a/b") == "/a/b"
