"""How a server's settings look to whoever starts it: all of them for `--help`, and one line for a wrong one.

Called by the servers' `__main__`; knows no setting. Each field of the class is an environment variable.
"""

from __future__ import annotations

import textwrap

from pydantic import ValidationError
from pydantic_settings import BaseSettings

HELP_COLUMNS = 100


def settings_help(kind: type[BaseSettings]) -> str:
    """Every setting with its default and its meaning."""
    lines = ["settings, from the environment:"]
    for name, field in kind.model_fields.items():
        lines.append(f"  {name.upper()}={shown_default(field.get_default())}")
        lines += textwrap.wrap(
            field.description or "", HELP_COLUMNS, initial_indent="      ", subsequent_indent="      "
        )
    return "\n".join(lines)


def shown_default(value: object) -> str:
    """As it would be written in the environment."""
    match value:
        case None:
            return ""
        case list():
            return ",".join(map(str, value))
        case float() if value.is_integer():
            return str(int(value))
        case bool():
            return str(int(value))
    return str(value)


def wrong_setting(error: ValidationError) -> str:
    """The first of the settings that cannot be, by its name in the environment, and why."""
    wrong = error.errors(include_url=False)[0]
    return f"{str(wrong['loc'][0]).upper()}: {wrong['msg']}"
