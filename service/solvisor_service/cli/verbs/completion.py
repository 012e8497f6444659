"""``solvisor completion``: what a shell needs to complete verbs, options and files."""

from __future__ import annotations

import argparse

from solvisor_service.cli.shared import Verbs, add_verb

_EXAMPLES = """\
  solvisor completion bash > ~/.local/share/bash-completion/completions/solvisor
  solvisor completion zsh > ~/.zfunc/_solvisor      (a folder of your fpath)"""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "completion",
        _completion,
        help="print a completion script for bash or zsh",
        examples=_EXAMPLES,
        with_home=False,
    )
    verb.add_argument("shell", choices=["bash", "zsh"])


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    from solvisor_service.cli import parser

    print(shtab.complete(parser(), arguments.shell))
    return 0
