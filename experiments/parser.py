"""The argument parser of the Lightning commands: no abbreviations, and errors of one line."""

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from experiments.errors import UsageError


class HeddleArgumentParser(LightningArgumentParser):
    """LightningCLI's parser without abbreviations; a mistake becomes a :class:`UsageError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # argparse would take --trainer.max_epoch for max_epochs, although the same typo in a file is an error.
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, *arguments: Any, **settings: Any) -> Any:
        """Parse words, or the one word that jsonargparse makes of ``--section.key=null`` for a nested parser.

        It has read the value by then, and writes None where null was: text settings would become the text "None".
        """
        if isinstance(args, list) and len(args) == 1 and args[0].startswith("--") and args[0].endswith("=None"):
            args = [args[0].removesuffix("None") + "null"]
        return super().parse_args(args, *arguments, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as one line.

        Raises:
            UsageError: Always, except inside jsonargparse's own trials, which expect its own exception.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(one_line(message)) from ex


def one_line(message: str) -> str:
    """Return jsonargparse's message as one line that begins with the key.

    Args:
        message: What jsonargparse says, often a nested dump of every type that was tried.
    """
    required = re.match(r"the following arguments are required: (.*)", message)
    if required:
        keys = " and ".join(f'"{key.split(".", 1)[-1]}"' for key in required.group(1).split(", "))
        return f"{keys} must be given, in a config (-c CONFIG) or as an option"
    unknown = re.match(r"unrecognized arguments: (.*)", message)
    if unknown:
        return f'unknown argument "{unknown.group(1)}"'
    key = re.search(r'Parser key "([^"]+)"', message)
    # The dump goes from general to particular, so the deepest lines say what is wrong.
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if re.search(r"not accepted|does not accept|has no attribute|No module", line)]
    given = [line for line in lines if line.startswith("Given value:")]
    if causes:
        text = "; ".join(dict.fromkeys(causes))
    elif key and given:
        expected = [line for line in lines if line.startswith("Expected")]
        text = "; ".join(dict.fromkeys(expected + given))
    else:
        text = " ".join(line for line in lines)
    if key and key.group(1) not in text:
        text = f'"{key.group(1)}": {text}'
    return text.replace("Parser key ", "")[:600]
