"""The command reference, from the parser itself: python docs/generate_cli.py > docs/cli.md"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from evoengine.cli.arguments import Verbs
from evoengine.cli.parser import make_parser

HEAD = """\
# Command reference

Made from the parser by `python docs/generate_cli.py > docs/cli.md`. `evoengine` and `python -m evoengine` are the same.
"""


def reference() -> str:
    parser = make_parser()
    return "\n".join([HEAD, f"{parser.epilog}\n", *_sections(parser, "")])


def _sections(parser: argparse.ArgumentParser, above: str) -> Iterator[str]:
    """Of every verb of the parser, each followed by those below it."""
    for verbs in (action for action in parser._actions if isinstance(action, Verbs)):
        helps = {choice.dest: choice.help for choice in verbs._choices_actions}
        for name, verb in verbs.choices.items():
            yield f"## {above}{name}\n\n{_sentence(str(helps[name]))}\n"
            yield "\n".join(_rows(verb)) + "\n"
            yield from _sections(verb, f"{above}{name} ")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _rows(verb: argparse.ArgumentParser) -> Iterator[str]:
    yield "| argument | meaning |"
    yield "| --- | --- |"
    formatter = verb._get_formatter()
    for action in verb._actions:
        if isinstance(action, argparse._HelpAction | Verbs):
            continue
        word = str(action.metavar or "|".join(action.choices or ())).replace("|", "\\|")
        value = f" {word}" if word and action.option_strings else ""
        names = ", ".join(f"`{name}{value}`" for name in action.option_strings) or f"`{word}`"
        meaning = formatter._expand_help(action).replace("|", "\\|")
        yield f"| {names} | {meaning} |"


if __name__ == "__main__":
    print(reference(), end="")
