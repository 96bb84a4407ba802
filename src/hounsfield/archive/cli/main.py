"""The command group and the table of its commands."""

from __future__ import annotations

import importlib
from typing import Any

import click

from hounsfield import __version__
from hounsfield.archive.cli.output import telling_pipes

# name → (module, the line in the list of commands); the module has a function of the name's last word.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Run the archive."),
    "init": ("init", "Make an empty archive and its keys."),
    "status": ("status", "Show what a running server is doing."),
    "ls": ("ls", "List patients, studies, series or instances."),
    "find": ("find", "Search an AE (C-FIND)."),
    "move": ("move", "Have an AE send studies to another (C-MOVE)."),
    "get": ("get", "Fetch studies from an AE into files (C-GET)."),
    "send": ("send", "Send DICOM files to an AE (C-STORE)."),
    "commit": ("commit", "Ask an AE to be responsible for objects (storage commitment)."),
    "echo": ("echo", "Ask an AE whether it is there (C-ECHO)."),
    "import": ("import_", "Bring existing studies in, from files or other archives."),
    "export": ("export", "Write studies out as DICOM files."),
    "delete": ("delete", "Delete studies, series or instances, for good."),
    "hold": ("hold", "Legal holds: what must not be deleted."),
    "tier": ("tier", "Where studies lie: tiers, their rules, recalls and pins."),
    "compact": ("compact", "Get back the disk that deleted objects take."),
    "reject": ("reject", "Rejection notes: what they took out of sight."),
    "fix": ("fix", "Correct what is shown: patients, studies, merges, moves."),
    "reindex": ("reindex", "Make the index anew from the stored objects."),
    "quarantine": ("quarantine", "Objects that somebody should look at."),
    "scrub": ("scrub", "Read everything again, and repair what rotted."),
    "fsck": ("fsck", "Check everything at rest, and say what repairs it."),
    "backup": ("backup", "Copy index, keys and ledger, or everything, while the archive is used."),
    "restore": ("restore", "Make an archive again from a backup."),
    "keys": ("keys", "The keys: list, check, rotate, what to save."),
    "ae": ("ae", "Known application entities, and who called lately."),
    "audit": ("audit", "Associations of the past: who called, and what came of it."),
    "routes": ("routes", "What is sent on to other AEs, and what waits or was refused."),
    "config": ("config", "Check or show the configuration."),
    "version": ("version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, which is the order in which a newcomer needs them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported; None for an unknown name. What is not ours may be a plugin's."""
        del ctx
        if cmd_name not in COMMANDS:
            from hounsfield.archive.cli.plugin_commands import plugin_command

            return plugin_command(cmd_name)
        module = importlib.import_module(f"hounsfield.archive.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """As click does: here it writes help."""
        with telling_pipes():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does."""
        with telling_pipes():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name in the error."""
        import difflib

        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], [*COMMANDS, *_plugins()], n=1)
            hint = f"did you mean {near[0]}?" if near else "`hounsfield --help` lists the commands"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without importing a single command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        plugins = [name for name in _plugins() if name not in COMMANDS]
        if plugins:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, f"What the plugin {name} can be asked for.") for name in plugins])


def _plugins() -> list[str]:
    from hounsfield.archive.app.plugins import installed

    return list(installed())


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Try it: `hounsfield serve --data ./archive`, then `hounsfield send localhost:11112 FILES`.",
)
@click.version_option(__version__, prog_name="hounsfield")
def hounsfield() -> None:
    """Hounsfield, a DICOM archive: receives over DICOM and DICOMweb, keeps sealed, serves fast.

    Every command takes --help, and --json where it shows something. Exit codes: 0 done, 1 it failed,
    2 the command line or configuration is wrong, 3 nobody there (no server, no answer), 4 done in part.
    """
