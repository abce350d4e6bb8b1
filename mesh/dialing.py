"""Why a connection could not be made, in the system's own words."""

from __future__ import annotations

import os


def why_not_connected(error: OSError | UnicodeError) -> str:
    """Find the system's words inside what trio raises when every attempt failed."""
    if isinstance(error, UnicodeError):
        return "it is no valid host name"
    match error.__cause__:
        case OSError() as cause:
            return why_not_connected(cause)
        case BaseExceptionGroup() as group:
            causes = [cause for cause in group.exceptions if isinstance(cause, OSError)]
            return ", ".join(dict.fromkeys(why_not_connected(cause) for cause in causes))
        case _:
            # trio puts the address into strerror; getaddrinfo's codes are negative.
            code = error.errno or 0
            return os.strerror(code) if code > 0 else error.strerror or str(error)
