"""`zmqbus doctor`: check the installation, and print each fault with the command that fixes it. Changes nothing."""

from __future__ import annotations

from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser
from zmqbus.doctor import report
from zmqbus.doctor.checks import examine
from zmqbus.errors import InvalidOption


def main(argv: list[str]) -> int:
    """Prints the findings; exit 1 if one is a fault."""
    parser = Parser("doctor", "Check the installation, and say how to fix each fault. Changes nothing, starts nothing.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_port()
    options = parser.parse_args(argv)
    try:
        findings = [*examine({"port": options.port})]
    except InvalidOption as error:
        return fail(error)
    print(report.for_programs(findings) if options.json else report.for_people(findings))
    return 1 if report.count(findings, "fault") else 0
