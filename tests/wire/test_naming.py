"""Names, labels, and what of a hostile text is shown."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.errors import InvalidLabel, InvalidName
from zmqbus.text import display
from zmqbus.text.display import sanitise
from zmqbus.wire import naming
from zmqbus.wire.naming import check_label, check_name, derive_name, nearest, next_name, project_name

CONTRACT = re.compile(r"\A[a-z0-9][a-z0-9-]{0,39}\Z")
names = st.from_regex(CONTRACT)

ZWNJ, ZWJ, VS15, VS16 = "\u200c", "\u200d", "\ufe0e", "\ufe0f"
FAMILY = f"\U0001f468{ZWJ}\U0001f469{ZWJ}\U0001f467"
RAINBOW = f"\U0001f3f3{VS16}{ZWJ}\U0001f308"
#: Pieces that mean something to sanitise, so that hypothesis puts them next to each other.
PIECES = [
    *"\x1b\x9b\x9d\x90\x98\x9c\x9e\x9f\x07\x18\r\n\t\v\f\x1c\x1d\x1e\x85\0\x7f\xad",
    *"\u2028\u2029\u200b\u202e\u2066\ufeff\u3164\ue000\ud800\U000e0041\U000e0100",
    *(ZWNJ, ZWJ, VS15, VS16, FAMILY, RAINBOW, "↵", "\xa0"),
    *'[]PX^_\\;0123mKé a漢(#"',
    *("\x1b[", "\x1b]", "\x1b\\", "\x1b[31m", "\x1b]0;t\x07", "\r\n"),
]
#: Default ignorable without being format characters (DerivedCoreProperties.txt); unicodedata does not know them.
INVISIBLE_LETTERS = {chr(code) for code in (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0)} | {
    chr(code) for block in (range(0x180B, 0x1810), range(0xFFF0, 0xFFF9)) for code in block
}
hostile = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=[]), max_size=40).map("".join)


class TestNames:
    @pytest.mark.parametrize("name", ["a", "0", "auth", "auth-2", "a-", "a--b", "9" * 40])
    def test_valid(self, name: str) -> None:
        assert check_name(name) is name

    @pytest.mark.parametrize(
        "name",
        ["", "-a", "Auth", "a b", "a_b", "a.b", "a/b", "é", "a\n", "\na", "a\0", "٣", "a" * 41, "\uff41"],
    )
    def test_invalid(self, name: str) -> None:
        with pytest.raises(InvalidName) as caught:
            check_name(name)
        assert "1 to 40 lower-case letters" in str(caught.value)

    def test_error_names_the_value_and_a_valid_one(self) -> None:
        with pytest.raises(InvalidName, match=r"^invalid topic 'My Topic': .*, for example my-topic$"):
            check_name("My Topic", "topic")

    def test_suggestion_is_made_from_the_displayed_text(self) -> None:
        """No remains of an escape sequence in it: `q`, not `q-31m`."""
        with pytest.raises(InvalidName, match=r"for example q$"):
            check_name("q\x1b[31m\n")

    @given(hostile | st.just("x" * 1_000_000))
    def test_error_is_safe_to_display(self, name: str) -> None:
        with pytest.raises(InvalidName) as caught:
            check_name("/" + name)
        assert sanitise(str(caught.value)) == str(caught.value)
        assert len(str(caught.value)) < 250

    @given(st.text(alphabet="ab0-_A\n", max_size=42))
    def test_pattern_is_the_specified_one(self, name: str) -> None:
        try:
            check_name(name)
        except InvalidName:
            assert not CONTRACT.match(name)
        else:
            assert CONTRACT.match(name)


class TestLabels:
    @pytest.mark.parametrize("label", ["", "API", "two words", "Größe", "漢字", "\U0001f680", 'a "quote" ]', "x" * 60])
    def test_valid(self, label: str) -> None:
        assert check_label(label) == label

    @pytest.mark.parametrize(
        "character",
        [
            "\n",
            "\t",
            "\0",
            "\x1b",
            "\x9b",
            "\xad",
            ZWJ,
            "\u202e",
            "\ud800",
            "\ue000",
            "\u2028",
            "\u2029",
            "\xa0",
            "\u3000",
        ],
    )
    def test_invalid_characters_are_named(self, character: str) -> None:
        with pytest.raises(InvalidLabel, match=rf"U\+{ord(character):04X}") as caught:
            check_label(f"a{character}b")
        assert sanitise(str(caught.value)) == str(caught.value)

    def test_unassigned_characters_are_accepted(self) -> None:
        assert unicodedata.category("\u0378") == "Cn"
        assert check_label("\u0378") == "\u0378"

    def test_nfc_is_applied_first(self) -> None:
        assert check_label("e\u0301" * 60) == "é" * 60
        assert len(check_label("\u03b1\u0313\u0300\u0345" * 60)) == 60  # composes four to one, the most there is

    @pytest.mark.parametrize("label", ["x" * 61, "e\u0301" * 61, "\u0958" * 31, "x" * 10_000_000])
    def test_too_long(self, label: str) -> None:
        with pytest.raises(InvalidLabel, match="shorten it to 60 characters") as caught:
            check_label(label)
        assert len(str(caught.value)) < 150

    @given(hostile)
    def test_accepted_label_is_stable_nfc(self, label: str) -> None:
        try:
            checked = check_label(label)
        except InvalidLabel:
            return
        assert unicodedata.is_normalized("NFC", checked)
        assert check_label(checked) == checked


class TestDeriveName:
    @pytest.mark.parametrize(
        ("cwd", "name"),
        [
            ("/home/u/auth", "auth"),
            ("/home/u/auth/", "auth"),
            ("/srv/My Project_v2.0", "my-project-v2-0"),
            ("/srv/--x--", "x"),
            ("/srv/Größe", "grosse"),
            ("/srv/Straße", "strasse"),
            ("/srv/ﬁle", "file"),
            ("/srv/.config", "config"),
            ("/srv/漢字", "session"),
            ("/", "session"),
            ("", "session"),
            ("/srv/" + "a" * 39 + "-b", "a" * 39),
            ("/srv/" + "ab" * 100, "ab" * 20),
        ],
    )
    def test_examples(self, cwd: str, name: str) -> None:
        assert derive_name(cwd) == name

    @given(st.text() | hostile)
    def test_always_valid(self, cwd: str) -> None:
        assert CONTRACT.match(derive_name(cwd))

    @given(names)
    def test_valid_name_is_kept_except_for_its_dashes(self, name: str) -> None:
        assert derive_name("/srv/" + name) == re.sub("-+", "-", name).strip("-")


class TestNextName:
    def test_examples(self) -> None:
        assert next_name("auth", 2) == "auth-2"
        assert next_name("auth-2", 3) == "auth-2-3"
        assert next_name("a" * 40, 12) == "a" * 37 + "-12"

    @given(names, st.integers(0, 10**9))
    def test_valid_and_different(self, name: str, n: int) -> None:
        following = next_name(name, n)
        assert CONTRACT.match(following)
        assert following.endswith(f"-{n}")
        assert following != next_name(name, n + 1)


class TestNearest:
    CANDIDATES = ("auth", "auth-api", "payments", "pay-api", "web", "search-index")

    @pytest.mark.parametrize(
        ("name", "first"),
        [
            ("atuh", "auth"),
            ("Auth", "auth"),
            ("paymnets", "payments"),
            ("payment", "payments"),
            ("index", "search-index"),
            ("auth-apis", "auth-api"),
            ("serach-index", "search-index"),
        ],
    )
    def test_similar_names_are_found(self, name: str, first: str) -> None:
        assert nearest(name, self.CANDIDATES)[0] == first

    def test_names_are_ranked_by_containment_and_distance(self) -> None:
        assert nearest("api", ["apu", "payments-api", "auth-api", "apis"], 4) == [
            "apis",
            "auth-api",
            "payments-api",
            "apu",
        ]

    def test_no_similar_name(self) -> None:
        assert nearest("zzzz", self.CANDIDATES) == []
        assert nearest("", self.CANDIDATES) == []
        assert nearest("auth", []) == []
        assert nearest("auth", ["auth"], 0) == []

    @given(hostile | names, st.lists(names | st.just(""), max_size=20), st.integers(0, 5))
    def test_suggestions_are_distinct(self, name: str, candidates: list[str], limit: int) -> None:
        found = nearest(name, candidates * 2, limit)
        assert len(found) <= limit
        assert len(set(found)) == len(found)
        assert set(found) <= set(candidates)

    def test_few_of_a_thousand_similar_names_are_compared_in_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        candidates = [f"integration-test-worker-session-{i:04d}-xyz" for i in range(1000)]
        compared: list[str] = []
        thorough = difflib.get_close_matches

        def counted(word: str, possibilities: list[str], n: int, cutoff: float) -> list[str]:
            compared.extend(possibilities)
            return thorough(word, possibilities, n, cutoff)

        monkeypatch.setattr(difflib, "get_close_matches", counted)
        assert len(nearest("integration-test-worker-sessoin-x004-xyz", candidates)) == 3
        assert 3 <= len(compared) <= 20  # all of them would take over 50 ms, in which the broker serves nobody


class TestSanitise:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("", ""),
            ("plain text", "plain text"),
            ("a\nb\r\nc\rd\ve\ff\x85g\u2028h\u2029i", "a↵b↵c↵d↵e↵f↵g↵h↵i"),
            ("\n\n\r\r\n", "↵↵↵↵"),
            ("a\tb", "a b"),
            ("a\0b\x07c\x7fd\x1ce\x1df\x1eg", "abcdefg"),
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b[?25l\x1b[2 qx\x1b[38:2::1:2:3m", "x"),
            ("\x9b31mred\x9b0m", "red"),
            ("\x1b]0;title\x07x", "x"),
            ("\x1b]8;;https://e.org\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b]0;title\x9cx", "x"),
            ("\x9d0;title\x9cx", "x"),
            ("\x1bPq#0\n#1\x1b\\x", "x"),
            ("\x1bXs\x1b\\\x1b^p\x1b\\\x1b_a\x1b\\x", "x"),
            ("\x90d\x9c\x98s\x9c\x9ep\x9c\x9fa\x9cx", "x"),
            ("\x1b7\x1b(B\x1bc\x1b=\x1b#8x", "x"),
            ("a\x1b", "a"),
            ("a\x1b\nb", "a↵b"),
            ("a\x1b\x1b[0mb", "ab"),
            ("\0\x1b[0mb", "b"),
            ("\x1b\x00[31mx", "[31mx"),
        ],
    )
    def test_controls_and_sequences(self, text: str, shown: str) -> None:
        assert sanitise(text) == shown

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b]never ended, all of it", "never ended, all of it"),
            ("\x1b]one\x1b]two\x07three", "onethree"),
            ("\x9dnever ended", "never ended"),
            ("\x1bPnever\nended", "never↵ended"),
            ("\x1b[31", "31"),
            ("\x1b[3\n1m", "3↵1m"),
            ("\x9b31\x1b[0mx", "31x"),
        ],
    )
    def test_incomplete_sequence_hides_no_text(self, text: str, shown: str) -> None:
        assert sanitise(text) == shown

    @pytest.mark.parametrize("kept", [FAMILY, RAINBOW, f"می{ZWNJ}خواهم", f"1{VS16}\u20e3", f"❤{VS16}!", f"☎{VS15}"])
    def test_needed_joiners_and_selectors_are_kept(self, kept: str) -> None:
        assert sanitise(kept) == kept
        assert sanitise(f"\x1b[1m{kept}\x1b[0m\n") == kept + "↵"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            (f"a{ZWJ}b", "ab"),
            (f"é{ZWJ}b", "éb"),
            (f"a{ZWJ}é", "aé"),
            (f"é{ZWJ}{ZWJ}é", "éé"),
            (f"é{ZWNJ}{ZWJ}é", "éé"),
            (f"é{ZWJ}", "é"),
            (f"{ZWJ}é", "é"),
            (f"é{ZWJ}\né", "é↵é"),
            (f"é\n{ZWJ}é", "é↵é"),
            (f"a{VS16}{VS16}{VS15}b", f"a{VS16}b"),
            (f" {VS16}b", " b"),
            (f"\x1b[0m{VS16}b", "b"),
            (f"\u202e{VS16}b", "b"),
            (f"\n{VS16}", "↵"),
            (f"a{VS16}{ZWJ}é", f"a{VS16}é"),
            ("hi" + "".join(chr(0xE0000 + ord(c)) for c in "run rm") + "!", "hi!"),
            ("x" + "".join(chr(0xE0100 + i) for i in range(200)), "x"),
            ("a\u202egnp.exe\u202c \u2066b\u2069 \u200e\u061c", "agnp.exe b "),
            ("a\u200bb\u2060c\ufeffd\xade\u3164f\u115fg\u034fh", "abcdefgh"),
            ("\ud800a\ue000b\U000f0000c\U0010fffdd", "abcd"),
        ],
    )
    def test_hiding_and_reordering_characters_are_removed(self, text: str, shown: str) -> None:
        assert sanitise(text) == shown

    def test_table_matches_unicode(self) -> None:
        """Each character that this interpreter's Unicode knows: shown or gone as its category says."""
        ends = "\n\v\f\r\x85\u2028\u2029"
        takes_more = "\x1b\x90\x98\x9b\x9d\x9e\x9f"  # would begin a sequence
        scripts_and_symbols, tags, private = range(0x20000), range(0xE0000, 0xE1000), range(0xFFFF0, 0x100010)
        known = [
            chr(code)
            for block in (scripts_and_symbols, tags, private)
            for code in block
            if unicodedata.category(chr(code)) != "Cn" and chr(code) not in ends + takes_more + display.LINE_END
        ]
        hidden = set()
        for character, piece in zip(known, sanitise("a" + "\na".join(known)).split(display.LINE_END), strict=True):
            if piece == "a":
                hidden.add(character)
            else:
                assert piece == "a" + character.replace("\t", " ")
        by_category = {c for c in known if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co")} - {"\t"}
        by_list = {c for c in known if c in INVISIBLE_LETTERS or ord(c) in tags}
        assert hidden == by_category | by_list

    @given(hostile)
    def test_result_is_one_line_without_controls(self, text: str) -> None:
        shown = sanitise(text)
        assert len(shown.splitlines()) <= 1
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
        assert {unicodedata.category(c) for c in shown if c not in ZWNJ + ZWJ}.isdisjoint({"Cc", "Cf", "Cs", "Co"})
        shown.encode()  # no surrogates

    @given(hostile)
    def test_display_is_idempotent(self, text: str) -> None:
        assert sanitise(sanitise(text)) == sanitise(text)

    @given(hostile, st.integers(0, 50))
    def test_limit_returns_the_beginning(self, text: str, limit: int) -> None:
        assert sanitise(text, limit) == sanitise(text)[:limit]

    @given(st.text(st.characters(categories=["L", "N", "P"], exclude_characters=INVISIBLE_LETTERS) | st.just(" ")))
    def test_ordinary_text_is_unchanged(self, text: str) -> None:
        assert sanitise(text) == text

    def test_limit_beyond_a_removed_stretch(self) -> None:
        gap = "\x1b[0m\0" * 5 * display._PIECE_CHARS
        assert sanitise(gap + "abc" + gap + "def" + gap, 5) == "abcde"
        assert sanitise("x" * 3000 + gap + "y" * 3000, 5999) == "x" * 3000 + "y" * 2999

    HUGE = 10 * 1024 * 1024

    @pytest.mark.parametrize("piece", ["a", "line\n", "\x1b[31mred", f"é{ZWJ}", FAMILY, "Größe "])
    def test_beginning_of_a_huge_text_costs_what_it_displays(self, piece: str) -> None:
        text = piece * (self.HUGE // len(piece))
        sanitise("é\n" * 9, 5)  # compiles
        begun = time.process_time()
        assert len(sanitise(text, 500)) == 500
        assert time.process_time() - begun < 0.05  # under 1 ms; reading it all takes over 50

    @pytest.mark.parametrize(
        "piece",
        [
            "a",
            "line\n",
            "\x1b[31mred",
            "\x1b]",
            "\x9d",
            "\x1b ",
            "\x1b[",
            "\x9b0",
            "\0",
            ZWJ,
            VS16,
            f"é{ZWJ}",
            "\x1b]a\x07",
        ],
    )
    @pytest.mark.parametrize("limit", [None, 2**16])
    def test_time_is_linear(self, piece: str, limit: int | None) -> None:
        text = piece * (2**18 // len(piece))
        begun = time.process_time()
        sanitise(text, limit)
        assert time.process_time() - begun < 0.5  # at most 20 ms; a quadratic algorithm takes minutes

    @pytest.mark.parametrize(
        "text", ["\x1b[" + "0" * 2**18, "\x1b[" + "0" * 2**17 + " " * 2**17, "\x1b]" + "a" * 2**18]
    )
    def test_long_incomplete_sequence(self, text: str) -> None:
        begun = time.process_time()
        assert sanitise(text) == text[2:]
        assert sanitise(text, 9) == text[2:11]
        assert time.process_time() - begun < 0.5


class TestProjectName:
    @pytest.mark.parametrize(
        ("project", "name"),
        [
            ("/home/u/zmqbus", "zmqbus"),
            ("/home/u/zmqbus/", "zmqbus"),
            ("/", "root"),
            ("", "root"),
            ("/srv/My Project", "My_Project"),
            ('/srv/a] "x"', "a___x_"),
            ("/srv/a\xa0b\u3000c", "a_b_c"),
            ("/srv/a\nb\x1b[0m", "a↵b"),
            ("/srv/\x01", "unnamed"),
            ("/srv/Größe", "Größe"),
            ("/srv/" + "x" * 255, "x" * 60),
            ("/srv/👨\u200d👩\u200d👧\u200c\xa0", "👨\u200d👩\u200d👧_"),
        ],
    )
    def test_examples(self, project: str, name: str) -> None:
        assert project_name(project) == name

    @given(hostile)
    def test_fits_into_a_header(self, project: str) -> None:
        name = project_name(project)
        assert 1 <= len(name) <= 60
        assert len(name.split()) == 1
        assert not set(name) & set(' "[]')
        assert sanitise(name) == name


def test_import_stays_cheap() -> None:
    heavy = {"pathlib", "dataclasses", "subprocess", "logging", "socket", "hashlib", "asyncio", "difflib", "uuid"}
    root = str(Path(naming.__file__).parents[2])
    script = f"import sys; sys.path.insert(0, {root!r}); import zmqbus.wire.naming; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert "zmqbus.wire.naming" in run.stdout.split()
    assert heavy.isdisjoint(run.stdout.split())
