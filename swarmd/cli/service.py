"""The commands of `swarmd service`: install, uninstall, status, logs."""

from typing import Annotated

import typer

from swarmd import exits
from swarmd.cli.options import ALL, check_gpu
from swarmd.cli.reporting import reported, warn
from swarmd.command_line import Debug

_INSTALL_EXAMPLES = """
\b
Examples:
  sudo swarmd service install                      then: sudo systemctl enable --now swarmd@0
  sudo swarmd service install --gpu all            settings for every card, and the command that starts them all
  sudo swarmd service install --copy               the same, for a swarmd in a home directory
  swarmd service install --user                    then: systemctl --user enable --now swarmd@0
  swarmd service install --print                   look at it first
"""

_User = Annotated[bool, typer.Option("--user", help="That of this user's own systemd, without root.")]
_Instance = Annotated[str | None, typer.Argument(metavar="[N]", help="Of swarmd@N alone. Default: of all.")]

service = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run daemons under systemd.")


@service.callback()
def _service() -> None:
    pass


@service.command(epilog=_INSTALL_EXAMPLES)
def install(
    show: Annotated[bool, typer.Option("--print", help="Print the unit; write nothing.")] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Run a copy of this environment, under /opt/swarmd, that all users can read.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="N|all", help="Write settings for this card, too, if it has none yet. all: for each."),
    ] = None,
    user: _User = False,
    debug: Debug = False,
) -> int:
    """Write the unit swarmd@.service, one instance for each GPU, with the paths of this machine."""
    return reported(lambda: _install(show=show, copy=copy, gpu=gpu, user=user), debug=debug)


def _cards(gpu: str | None) -> list[int]:
    """The cards that settings are written for. Raises ConfigError."""
    if gpu is None:
        return []
    if gpu != ALL:
        check_gpu(gpu)
        return [int(gpu)]
    import asyncio

    from swarmd.daemon.device import list_cards

    return asyncio.run(list_cards())


def _install(*, show: bool, copy: bool, gpu: str | None, user: bool) -> int:
    from swarmd.daemon import service as files
    from swarmd.daemon.patience import said_if_long
    from swarmd.daemon.service_copy import PLACE, copy_environment

    if show:
        print(files.unit_text(user=user, command=str(PLACE / "bin" / "swarmd") if copy else ""), end="")
        return exits.DONE
    cards, command = _cards(gpu), ""
    if copy:
        with said_if_long(f"copying this environment to {PLACE}", warn):
            command = str(copy_environment())
    else:
        files.check_executable(user=user)
    print(files.advice(files.install(user=user, command=command, cards=cards), cards, user=user))
    return exits.DONE


@service.command()
def uninstall(user: _User = False, debug: Debug = False) -> int:
    """Drain and disable all instances, and remove what `install` wrote. Homes and settings stay."""
    return reported(lambda: _uninstall(user=user), debug=debug)


def _uninstall(*, user: bool) -> int:
    from swarmd.daemon import service as files
    from swarmd.daemon import service_manager as manager

    where = files.places(user=user)
    stopped = manager.stop_all(user=user) if manager.is_there() else []
    files.uninstall(user=user)
    if manager.is_there():
        manager.reload(user=user)
    print(f"stopped {', '.join(stopped) or 'nothing'}; removed {where.unit}")
    print(f"what stays: settings in {where.environment}, homes in {files.homes(user=user)}")
    return exits.DONE


@service.command()
def status(instance: _Instance = None, user: _User = False, debug: Debug = False) -> int:
    """Show how systemd sees the instances. Exit code 1 if one doesn't run."""

    def run() -> int:
        from swarmd.daemon import service_manager as manager

        return exits.DONE if manager.show(instance, user=user) == 0 else exits.FAILED

    return reported(run, debug=debug)


@service.command()
def logs(
    instance: _Instance = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing them, until Ctrl-C.")] = False,
    user: _User = False,
    debug: Debug = False,
) -> int:
    """Show the last lines that the instances logged."""

    def run() -> int:
        from swarmd.daemon import service_manager as manager

        return exits.DONE if manager.show_logs(instance, user=user, follow=follow) == 0 else exits.FAILED

    return reported(run, debug=debug)
