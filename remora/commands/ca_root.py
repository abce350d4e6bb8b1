"""`remora ca root`: replacing the root of a running mesh, in three steps."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remora.policy_options import JsonOption, OutputFormat

if TYPE_CHECKING:
    from ca.rotation import RotationStatus
    from ca.template import Signer

app = typer.Typer(no_args_is_help=True, help="Replace the root of a running mesh, in three steps.")

StateDirOption = Annotated[
    Path, typer.Option(metavar="DIR", help="The CA's state directory.", show_default=False)
]

NAMED = 20
"""Certificates that the text output lists; JSON has all."""


@app.command()
def status(state_dir: StateDirOption, output: JsonOption = OutputFormat.TEXT) -> None:
    """Show the roots, the next step, and which certificates it waits for."""
    from ca.operations import root_status
    from mesh.clock import system_now

    _show(root_status(state_dir, system_now()), output)


@app.command()
def prepare(state_dir: StateDirOption, output: JsonOption = OutputFormat.TEXT) -> None:
    """Step 1: make the next root, and have it trusted beside the present one.

    Running CAs take it up within seconds and hand it out with every
    certificate. Refused while a rotation is under way.
    """
    from ca.operations import prepare_root
    from mesh.clock import system_now

    _show(prepare_root(state_dir, system_now()), output)


@app.command()
def activate(state_dir: StateDirOption, output: JsonOption = OutputFormat.TEXT) -> None:
    """Step 2: sign with the next root.

    Refused while a certificate is in use that was handed out without it:
    its workload might not trust what the next root signs.
    """
    from ca.operations import activate_root
    from mesh.clock import system_now

    _show(activate_root(state_dir, system_now()), output)


@app.command()
def retire(state_dir: StateDirOption, output: JsonOption = OutputFormat.TEXT) -> None:
    """Step 3: trust the old root no more.

    Refused while a certificate is in use that the old root signed. Give
    root-cert.pem anew to whoever has it as a file, such as agents.
    """
    from ca.operations import retire_root
    from mesh.clock import system_now

    _show(retire_root(state_dir, system_now()), output)


def _show(found: RotationStatus, output: OutputFormat) -> None:
    from remora.policy_tools.ask import print_json, print_lines

    if output is OutputFormat.JSON:
        print_json(_data(found))
    else:
        print_lines(_lines(found))


def _data(found: RotationStatus) -> dict[str, Any]:
    return {
        "phase": str(found.phase),
        "signer": _signer_data(found.own.signer),
        "upcoming": found.own.upcoming and _signer_data(found.own.upcoming),
        "former": found.own.former and _signer_data(found.own.former),
        "roots": len(found.own.roots.authorities),
        "next": found.next_step,
        "ready": found.ready,
        "readyAt": found.ready_at and _time(found.ready_at),
        "waitingFor": [
            {
                "identity": record.identity,
                "serial": f"{record.serial:x}",
                "notAfter": _time(record.not_after),
            }
            for record in found.waiting_for
        ],
    }


def _signer_data(signer: Signer) -> dict[str, str]:
    from ca.ledger import anchor_id

    certificate = signer.certificate
    return {
        "id": anchor_id(certificate),
        "serial": f"{certificate.serial_number:x}",
        "notAfter": _time(certificate.not_valid_after_utc),
    }


def _lines(found: RotationStatus) -> list[str]:
    own = found.own
    lines = [f"rotation  {found.phase}"]
    for name, signer in (("signs", own.signer), ("next", own.upcoming), ("former", own.former)):
        if signer is not None:
            data = _signer_data(signer)
            lines.append(f"{name:<9} {data['id']}  until {data['notAfter']}")
    lines.append(f"trusted   {len(own.roots.authorities)} roots")
    if found.ready:
        return [*lines, f"ready for remora ca root {found.next_step}"]
    lines.append(
        f"{found.next_step} waits for {len(found.waiting_for)} certificates, "
        f"until {_time(found.ready_at)} at the latest"
    )
    lines.extend(
        f"  {record.identity}  {record.serial:x}  until {_time(record.not_after)}"
        for record in found.waiting_for[:NAMED]
    )
    if len(found.waiting_for) > NAMED:
        lines.append(f"  and {len(found.waiting_for) - NAMED} more (-o json lists all)")
    return lines


def _time(when: datetime | None) -> str:
    return "" if when is None else when.strftime("%Y-%m-%dT%H:%M:%SZ")
