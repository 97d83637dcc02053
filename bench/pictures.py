"""Have pictures drawn by the peers' environment, which has matplotlib."""

import subprocess
import sys
from pathlib import Path

from lab import environment
from peers import PEERS_VENV


def draw(script: str, results: Path, folder: Path) -> int:
    """Run `script` beside this file on a file of results; the exit code.

    Without that environment nothing is drawn, and it says so.
    """
    python = PEERS_VENV / "bin" / "python"
    if not python.exists():
        print(f"bench: no pictures: there is no {PEERS_VENV.name}", file=sys.stderr)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(Path(__file__).parent / script), str(results), str(folder)]
    return subprocess.run(command, env=environment(), check=False).returncode
