#!/usr/bin/env bash
# Two sessions, each with a listener and a shell of its own, talk to each other.
#
#   bash examples/two_sessions.sh [python]
#
# A session belongs to the process that owns its listener: an agent, or the shell of a terminal.
# Here two `sleep` processes stand for two agents. The data directory is temporary; everything ends with the script.
set -euo pipefail

bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/../bin" && pwd)
python=${1:-python3}
here=$(mktemp -d)
export INTER_SESSION_DATA_DIR=$here/data INTER_SESSION_PORT=${INTER_SESSION_PORT:-9573}

sleep 60 & alice=$!
sleep 60 & bob=$!
as() { # as OWNER COMMAND…: runs a command as a shell of this agent
    local owner=$1
    shift
    INTER_SESSION_PPID_OVERRIDE=$owner "$python" "$@"
}
end() {
    kill "$alice" "$bob" 2>/dev/null || true
    "$python" "$bin/zmqbus" broker --stop >/dev/null || true
    wait || true
    rm -rf "$here"
}
trap end EXIT

shows() { # shows FILE TEXT: waits until a listener has printed the text
    for _ in $(seq 200); do
        grep -qF -- "$2" "$1" && return
        sleep 0.05
    done
    echo "'$2' was not shown; the listener printed:" >&2
    cat "$1" >&2
    exit 1
}
connected() { # connected OWNER: waits until its session is connected
    for _ in $(seq 200); do
        as "$1" "$bin/list.py" --self | grep -q ^name= && return
        sleep 0.05
    done
    echo "the session of $1 did not connect" >&2
    exit 1
}

as "$alice" "$bin/client.py" --name alice >"$here/alice" & listener_a=$!
as "$bob" "$bin/client.py" --name bob --label "reviewer" >"$here/bob" & listener_b=$!
connected "$alice"
connected "$bob"

echo "--- connected sessions"
"$python" "$bin/list.py"

echo "--- alice asks bob and waits for the answer"
as "$alice" "$bin/send.py" --to bob --text "question: is the parser ready for review?" --wait 20 >"$here/answer" &
asking=$!
shows "$here/bob" "question:"
question=$(sed -n 's/.*msg=\([a-z0-9]*\) .*question:.*/\1/p' "$here/bob")
as "$bob" "$bin/send.py" --to alice --reply-to "$question" --text "answer: yes, two remarks in review.md"
wait "$asking"
cat "$here/answer"

echo "--- bob sends alice a status"
as "$bob" "$bin/send.py" --to alice --text "status: I start with the lexer now"
shows "$here/alice" "lexer"

echo "--- output of alice's listener"
cat "$here/alice"
echo "--- output of bob's listener"
cat "$here/bob"

as "$alice" "$bin/zmqbus" disconnect
as "$bob" "$bin/zmqbus" disconnect
wait "$listener_a" "$listener_b"
