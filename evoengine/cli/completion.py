"""`evoengine completion`: a script that completes verbs, options and files in a shell."""

from __future__ import annotations

import argparse
import json

import shtab

from evoengine.cli.arguments import Verbs
from evoengine.cli.parser import make_parser
from evoengine.hardware import CARDS
from evoengine.sampler import SAMPLERS

PLACES = {
    "FILE": shtab.FILE,
    "DIR": shtab.DIRECTORY,
    "PATH": shtab.FILE,
    "URL": shtab.FILE,
    "SOURCE": shtab.FILE,
    "WHAT": shtab.FILE,
    "STUDY|HEADER": shtab.FILE,
}
"""What a shell completes for a metavar: a place where files may be meant beside names is completed with files."""
NAMED = {"--sampler": SAMPLERS, "--target": tuple(CARDS), "--limits": tuple(CARDS)}
"""Names that an option takes and the parser leaves to be checked by those who know them."""


def run(arguments: argparse.Namespace) -> int:
    parser = make_parser()
    for action in _actions(parser):
        if place := PLACES.get(str(action.metavar)):
            action.complete = place  # type: ignore[attr-defined]  # where shtab looks for it
        for option in NAMED.keys() & action.option_strings:
            action.choices = NAMED[option]
        if isinstance(action, Verbs):
            for named in action._choices_actions:
                action.choices[named.dest].description = named.help
    script = shtab.complete(parser, arguments.shell)
    print(json.dumps({"shell": arguments.shell, "script": script}) if arguments.json else script)
    return 0


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Of the parser and of every verb."""
    own = list(parser._actions)
    below = [verb for action in own if isinstance(action, Verbs) for verb in action.choices.values()]
    return own + [action for verb in below for action in _actions(verb)]
