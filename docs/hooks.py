"""What mkdocs fills in: the commands' own help texts and the public names."""

import contextlib
import io
import os
import re

import hourglass_jax as hj


def on_page_markdown(markdown: str, *, page, **_) -> str:
    """mkdocs' event of that name."""
    if page.file.src_path == "cli.md":
        markdown = markdown.replace("<!-- commands -->", "\n\n".join(map(_command, _commands())))
    if page.file.src_path == "api.md":
        names = "\n\n".join(f"::: hourglass_jax.{name}" for name in hj.__all__)
        markdown = markdown.replace("<!-- names -->", names)
    # Links out of docs/ lead nowhere on a site: their texts stay.
    return re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", markdown)


def _commands() -> list[str]:
    from hourglass_jax.cli import _commands

    return [command.__name__ for command in _commands()]


def _command(name: str) -> str:
    from hourglass_jax.cli import main

    os.environ["COLUMNS"] = "100"
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return f"## hourglass {name}\n\n```text\n{text.getvalue().rstrip()}\n```"
