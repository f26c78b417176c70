"""`evoengine doctor`: what this machine has and lacks."""

from __future__ import annotations

import argparse
import dataclasses
import json

from rich.text import Text

from evoengine.cli.tables import console, table
from evoengine.doctor import diagnose

STYLES = {"ok": "green", "warn": "yellow", "missing": "red"}


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 when something is missing that a search needs."""
    findings = diagnose(arguments.storage)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        drawn = table("evoengine doctor", "what", "state", "found", "remedy")
        for finding in findings:
            drawn.add_row(finding.name, Text(finding.state, STYLES[finding.state]), finding.detail, finding.remedy)
        console().print(drawn)
    return int(any(finding.state == "missing" for finding in findings))
