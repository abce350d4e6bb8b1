"""`python -m remora` is the `remora` command."""

from __future__ import annotations

from remora.cli import main

main()
