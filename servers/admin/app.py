"""The `dcs` command line: which commands there are, and the options before them."""

from __future__ import annotations

from typing import Annotated

import typer

from servers.admin.commands import cluster_state, directories, files, garbage, local, trash

app = typer.Typer(
    name="dcs",
    help="Distributed Chunk Storage: files by name without a mount, and the state of the cluster.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    files.create, files.read, files.size, files.delete,
    directories.ls, directories.stat, directories.mkdir, directories.rmdir, directories.mv,
    cluster_state.status, cluster_state.nodes, cluster_state.explain, cluster_state.fsck,
    cluster_state.drain, cluster_state.undrain, cluster_state.forget, directories.setrep, directories.setchunk,
    garbage.gc, trash.trash, trash.restore,
    local.umount, local.up,
):  # fmt: skip
    app.command(command.__name__)(command)
app.command("mount", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(local.mount)
app.command(
    "recover", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)(local.recover)


@app.callback()
def options(
    ctx: typer.Context,
    naming_url: Annotated[
        str | None,
        typer.Option(
            envvar="NAMING_URL",
            metavar="URL[,URL...]",
            help="The naming servers. Default: the local cluster's in DCS_HOME, else http://localhost:8000.",
        ),
    ] = None,
) -> None:
    """Distributed Chunk Storage: files by name without a mount, and the state of the cluster.

    The cluster secret comes from DCS_SECRET_FILE, DCS_SECRET or DCS_HOME/secret.
    """
    ctx.obj = naming_url
