"""hivemind's own virtual environment: made when it is missing or out of date, under `.bench/` of the checkout.

hivemind pins other versions of swarmd's dependencies, so it can't share ours. torch is the same release as ours.
Needs pip and the package index the first time; knows nothing of the measurement.
"""

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

INSTALL_LIMIT_S = 1_800.0  # torch may be 200 MB, or gigabytes where the index gives it with CUDA
HIVEMIND = "hivemind==1.1.12"
NUMPY = "numpy==2.2.6"  # its codecs call int() on arrays of one element, which newer releases of numpy refuse


def ensure_hivemind(root: Path) -> Path:
    """The Python of the environment, made first if need be. Raises OSError, subprocess.SubprocessError."""
    folder = root / ".bench" / "hivemind-venv"
    python, marker = folder / "bin" / "python", folder / "installed"
    wanted = [f"torch=={importlib.metadata.version('torch').partition('+')[0]}", HIVEMIND, NUMPY]
    if marker.exists() and marker.read_text() == "\n".join(wanted):
        return python
    print("installing hivemind in an environment of its own, once ...", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    subprocess.run(install, check=True, timeout=INSTALL_LIMIT_S, capture_output=True)
    marker.write_text("\n".join(wanted))
    return python
