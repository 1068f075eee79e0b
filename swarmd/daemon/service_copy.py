"""A copy of this Python environment that each user of the machine can run, for a service whose user can't do so.

A virtual environment under /opt, with all packages of this one. If this Python lies in a home directory or is closed to
others, its interpreter and standard library are copied, too. Nothing is downloaded.
"""

import compileall
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

from swarmd.daemon.service_access import obstacle
from swarmd.errors import ConfigError
from swarmd.printable import printable

PLACE = Path("/opt/swarmd")
MARK = "copied-by-swarmd"  # a file in a copy: nothing else is ever replaced or removed
OURS = {"swarmd": "swarmd.__main__", "swarmctl": "swarmctl.__main__"}  # programs, and where their `main` is
PACKAGES = ("swarmd", "swarmctl", "configs")  # copied from where they are: maybe a checkout
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "ensurepip", "config-*")  # of a Python
FIRST_START_S = 60.0  # a cold disk; `--version` loads nothing heavy


def copy_environment(place: Path = PLACE) -> Path:
    """Makes the copy, in the place of an earlier one; returns the program in it. Raises ConfigError."""
    if place.exists() and not (place / MARK).exists():
        raise ConfigError(f"{place} is no copy that swarmd made; move it away, then try again.")
    new = place.with_name(f"{place.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        (new / "bin").mkdir(parents=True)
        (new / MARK).touch()
        _copy_packages(new)
        _write_interpreter(new, place)
        for name, module in OURS.items():
            script = new / "bin" / name
            script.write_text(f"#!{place}/bin/python\nfrom {module} import main\n\nmain()\n", encoding="utf-8")
            script.chmod(0o755)
        # The service has no right to write there, and would compile them at each start. A pool of processes for it
        # may hang where other threads run.
        with warnings.catch_warnings(action="ignore"):
            compileall.compile_dir(new, quiet=2, stripdir=str(new), prependdir=str(place))
        _open_to_all(new)
        remove_copy(place)
        new.rename(place)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(new, ignore_errors=True)
        what = error.strerror if isinstance(error, OSError) and error.strerror else "some files can't be read"
        raise ConfigError(f"can't copy this environment to {place} ({what}); use sudo, or free some space.") from error
    program = place / "bin" / "swarmd"
    _check_start(program)
    return program


def remove_copy(place: Path = PLACE) -> bool:
    """Removes a copy, if there is one. Raises OSError."""
    if not (place / MARK).exists():
        return False
    shutil.rmtree(place)
    return True


def _version_folder() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _copy_packages(new: Path) -> None:
    """Copies all packages of this environment; of two with one name the one that is imported here."""
    target = new / "lib" / _version_folder() / "site-packages"
    for place in reversed([Path(it) for it in sys.path if Path(it).name in PACKAGE_FOLDERS and Path(it).is_dir()]):
        shutil.copytree(place, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__editable__*"))
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(next(iter(spec.submodule_search_locations)), target / name)


def _write_interpreter(new: Path, place: Path) -> None:
    """Makes it a virtual environment: of this Python where it can be used, of a copy of that otherwise."""
    named = Path(sys.base_prefix) / "bin" / _version_folder()
    base = Path(os.path.realpath(named if named.exists() else sys.executable))
    if base.is_relative_to(place) or obstacle([base, Path(os.__file__)]):  # a copy may be copied, in its own place
        python = new / "python"
        library = Path(os.__file__).parent
        (python / "bin").mkdir(parents=True)
        shutil.copy2(base, python / "bin" / base.name)
        shutil.copytree(library, python / "lib" / library.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for shared in library.parent.glob("libpython*.so*"):
            shutil.copy2(shared, python / "lib" / shared.name)
        base = place / "python" / "bin" / base.name
    (new / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8")
    for name in ("python", "python3"):
        (new / "bin" / name).symlink_to(base)


def _open_to_all(new: Path) -> None:
    """Lets every user read it, whatever the umask was."""
    for folder, _, files in os.walk(new):
        os.chmod(folder, 0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                runs = path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)


def _check_start(program: Path) -> None:
    """Starts the copy. Raises ConfigError."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, timeout=FIRST_START_S, cwd="/", env={}
        )
        trouble = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word of why"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    if trouble:
        raise ConfigError(
            f"the copy in {program.parent.parent} doesn't start ({printable(trouble)}); install swarmd anew under a "
            "Python that all users can run, as in the README, then `swarmd service install` there."
        )
