"""`nomba-proxy serve`."""

import asyncio
import sys

from proxy.app import CannotStart
from proxy.app import serve as run
from proxy.settings import Settings


def serve(settings: Settings) -> int:
    """Run the proxy until it is told to stop; the exit code."""
    try:
        asyncio.run(run(settings))
    except CannotStart as error:
        print(f"nomba-proxy: cannot start: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:  # a second signal
        return 1
    return 0
