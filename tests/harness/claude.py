"""Plays Claude Code: a process called `claude` with its monitors, shells and hooks.

    claude -m tests.harness.claude '{"plugin_root": "…", "plugin_data": "…", "project_dir": "…", "scratch": "…"}'

reads orders from standard input, a JSON object a line, and answers each with `{"answer": <its "id">, …}`. In between it
reports events: `{"event": "notification" | "ended", "monitor": …, …}`. The orders are the methods of `Client`, carried
out one after the other while monitors are read. At the end of standard input the monitors are killed and the process
ends.

It behaves as the real client was observed to, with its limits. Output that a limit removes is reported as well, so that
a test can demand that there was none. Where the real behaviour is unknown, the less convenient one is played: a
declared monitor gets no variables, and is never started again after its end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

from tests.harness.monitors import Config, Fields, Monitor, Tell

#: A command that takes longer, s, hangs.
SHELL_TIMEOUT_S = 90.0
HOOK_TIMEOUT_S = 10.0
#: How long a killed process may take to end, s.
END_TIMEOUT_S = 90.0


class Client:
    """One session. The public methods that take keywords are the orders."""

    def __init__(self, config: Config, tell: Tell) -> None:
        self._config = config
        self._tell = tell
        self._session_id = str(uuid.uuid4())
        # Python's variables are for this program alone (see the fixtures), not for its children.
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._monitors: dict[str, Monitor] = {}

    def start(self) -> Fields:
        """Begins the session: runs its hooks, then starts the monitors that always run."""
        hooks = self.hook("SessionStart", source="startup")["hooks"]
        return {"session_id": self._session_id, "pid": os.getpid(), "hooks": hooks, **self.reload()}

    def reload(self) -> Fields:
        """Reloads the plugin's monitors, and starts those that always run and have not been started yet."""
        return {"monitors": self._declared("always")}

    def skill(self, *, name: str) -> Fields:
        """Invokes a skill, and starts its monitors."""
        return {"monitors": self._declared(f"on-skill-invoke:{name}")}

    def monitor(self, *, command: str, timeout_ms: int = 300_000) -> Fields:
        """Starts a monitor, as the agent's Monitor tool does."""
        return {"monitor": self._watch(f"tool-{len(self._monitors)}", command, self._shell_env(), timeout_ms / 1000)}

    def stop(self, *, monitor: str) -> Fields:
        """Stops a monitor."""
        self._monitors[monitor].stop()
        return {}

    def bash(self, *, command: str, input: str = "", timeout_s: float = SHELL_TIMEOUT_S) -> Fields:
        """Runs a shell command, as the agent's Bash tool does."""
        return self._run(["bash", "-c", f"{self._sourced()}{command}"], self._shell_env(), input, timeout_s)

    def hook(self, event: str, **fields: Any) -> Fields:
        """Runs all hooks of an event; `fields` are added to the JSON on their standard input."""
        values = {"CLAUDE_CODE_SESSION_ID": self._session_id, "CLAUDE_PID": str(os.getpid()), **self._places()}
        if event == "SessionStart":
            values["CLAUDE_ENV_FILE"] = str(self._env_file)
        for option, value in self._config.options.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            values[f"CLAUDE_PLUGIN_OPTION_{option.upper()}"] = text
        given = {"session_id": self._session_id, "cwd": self._config.project_dir, "hook_event_name": event, **fields}
        results = []
        for group in self._declaration("hooks/hooks.json", {}).get("hooks", {}).get(event, []):
            matcher = group.get("matcher", "")
            if matcher and not re.fullmatch(matcher, fields.get("source", fields.get("tool_name", ""))):
                continue
            for hook in group["hooks"]:
                words = [self._placed(hook["command"]), *map(self._placed, hook.get("args", ()))]
                args = words if "args" in hook else ["sh", "-c", *words]
                done = self._run(args, {**self._env, **values}, json.dumps(given), hook.get("timeout", HOOK_TIMEOUT_S))
                results.append({**done, "output": parsed(done["stdout"])})
        return {"hooks": results}

    def clear(self) -> Fields:
        """Begins another conversation in the same process, as `/clear` does; its monitors stay."""
        self._session_id = str(uuid.uuid4())
        return {"session_id": self._session_id, **self.hook("SessionStart", source="clear")}

    def close(self) -> None:
        """Kills all monitors."""
        for monitor in self._monitors.values():
            monitor.stop()

    def _declared(self, when: str) -> list[str]:
        return [
            self._watch(declared["name"], self._placed(declared["command"]), self._env, None)
            for declared in self._declaration("monitors/monitors.json", [])
            if declared.get("when", "always") == when and declared["name"] not in self._monitors
        ]

    def _watch(self, name: str, command: str, env: dict[str, str], timeout_s: float | None) -> str:
        self._monitors[name] = Monitor(name, command, env, self._config, self._tell, timeout_s)
        return name

    def _shell_env(self) -> dict[str, str]:
        path = os.pathsep.join([self._env.get("PATH", os.defpath), f"{self._config.plugin_root}/bin"])
        return {
            **self._env,
            "PATH": path,
            "CLAUDE_CODE_SESSION_ID": self._session_id,
            "CLAUDE_PID": str(os.getpid()),
        }

    def _sourced(self) -> str:
        """The first line of each shell: it reads the file that SessionStart hooks may write."""
        return f". '{self._env_file}'\n" if self._env_file.exists() else ""

    @property
    def _env_file(self) -> Path:
        return Path(self._config.scratch, f"env-{self._session_id}.sh")

    def _places(self) -> dict[str, str]:
        return {
            "CLAUDE_PLUGIN_ROOT": self._config.plugin_root,
            "CLAUDE_PLUGIN_DATA": self._config.plugin_data,
            "CLAUDE_PROJECT_DIR": self._config.project_dir,
        }

    def _placed(self, text: str) -> str:
        for name, value in self._places().items():
            text = text.replace(f"${{{name}}}", value)
        return text

    def _declaration(self, name: str, otherwise: Any) -> Any:
        path = Path(self._config.plugin_root, name)
        return json.loads(path.read_text("utf-8")) if path.exists() else otherwise

    def _run(self, args: list[str], env: dict[str, str], given: str, timeout_s: float) -> Fields:
        """Runs a command to its end; one that takes too long is killed and has no status."""
        pipes: Fields = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        text: Fields = {"encoding": "utf-8", "errors": "replace"}
        with subprocess.Popen(args, env=env, cwd=self._config.project_dir, **pipes, **text) as process:
            try:
                stdout, stderr = process.communicate(given, timeout_s)
                status = process.returncode
            except subprocess.TimeoutExpired:
                process.kill()
                stdout, stderr = process.communicate(timeout=END_TIMEOUT_S)
                status = None
        return {"status": status, "stdout": stdout, "stderr": stderr}


def parsed(text: str) -> Any:
    """Parses the output of a hook; None if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def main() -> None:
    """Carries out orders until standard input ends."""
    one_at_a_time = threading.Lock()

    def tell(fields: Fields) -> None:
        with one_at_a_time:
            sys.stdout.write(json.dumps(fields) + "\n")
            sys.stdout.flush()

    client = Client(Config(**json.loads(sys.argv[1])), tell)
    try:
        for line in sys.stdin:
            order = json.loads(line)
            number, method = order.pop("id"), getattr(client, order.pop("order"))
            try:
                tell({**method(**order), "answer": number})
            except Exception as error:  # the test that gave the order gets it
                tell({"answer": number, "error": repr(error)})
    finally:
        client.close()


if __name__ == "__main__":
    main()
