"""Files that are read without knowing what they are, and files that are replaced as a whole.

Only regular files are read, only so much of them, and never waiting: opening a FIFO waits for a writer, a device may
have no end, and JSON may be nested deeper than Python's stack. All of these are an OSError or ValueError here, whose
`strerror` or text reads well in a sentence.
"""

import errno
import io
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

PRIVATE_MODE = 0o600

_KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "it is a directory"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a FIFO, not a file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, not a file"),
    (stat.S_ISLNK, errno.ELOOP, "it is a link, not a file"),
)


def as_meant(name: str) -> Path:
    """The path that a person means by a name: ~ is a home unless a file is called so."""
    path = Path(name)
    try:
        return path if os.path.lexists(path) else path.expanduser()
    except RuntimeError:  # nobody is called so
        return path


def check_regular(path: Path | str, *, follow: bool = True) -> None:
    """Raises OSError unless a regular file is there. `follow`: a link to one will do."""
    _check(os.stat(path, follow_symlinks=follow), path)


def open_regular(path: Path | str, *, append: bool = False, follow: bool = True) -> BinaryIO:
    """Opens a regular file, unbuffered if to append (it is created if there is none), else to read. Raises OSError."""
    try:
        check_regular(path, follow=follow)  # before it is opened, since that alone moves some devices
    except FileNotFoundError:
        if not append:
            raise
    flags = (os.O_WRONLY | os.O_APPEND | os.O_CREAT) if append else os.O_RDONLY
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, PRIVATE_MODE)
    try:
        _check(os.fstat(descriptor), path)  # it may have been replaced meanwhile
        raw = io.FileIO(descriptor, "ab" if append else "rb")
    except BaseException:
        os.close(descriptor)
        raise
    return raw if append else io.BufferedReader(raw)


def open_private(path: Path | str, flags: int) -> int:
    """A descriptor of a file that only this user may read or write, whatever the umask; with O_CREAT it is made if
    there is none. Never through a link of either kind, and no mode is changed before it is clear whose file it is:
    others who may write to the folder could have put another of this user's files there. Raises OSError.
    """
    try:
        check_regular(path, follow=False)  # before it is opened, since that alone moves some devices
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, PRIVATE_MODE)
    try:
        found = os.fstat(descriptor)
        _check(found, path)  # it may have been replaced meanwhile
        if found.st_nlink > 1:
            raise OSError(errno.EMLINK, "it has a second name, a hard link; put a copy there", str(path))
        if stat.S_IMODE(found.st_mode) != PRIVATE_MODE:
            if found.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "it belongs to another user, and more than that one may use it", str(path))
            os.fchmod(descriptor, PRIVATE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path | str, limit_bytes: int, *, follow: bool = True) -> bytes:
    """The whole content of a regular file. Raises OSError, also for one that is longer."""
    with open_regular(path, follow=follow) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it is longer than {limit_bytes} bytes", str(path))
    return content


def parse_json(text: str | bytes | bytearray) -> Any:
    """Raises ValueError for all that isn't JSON, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path | str, limit_bytes: int, *, follow: bool = True) -> Any:
    """The content of a JSON file. Raises OSError, ValueError."""
    return parse_json(read_regular(path, limit_bytes, follow=follow))


def write_atomically(path: Path, content: bytes | bytearray | memoryview, *, prefix: str = "") -> None:
    """Replaces a file so that a crash leaves the old or the new content, never a part; the new one is on the disk when
    this returns. `prefix`: of the name until then (".<name>." if empty). Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=prefix or f".{path.name}.")
    try:
        os.fchmod(descriptor, PRIVATE_MODE)  # whatever the umask
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Makes a rename last over a power cut. Some file systems can't, and keep their names anyway."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _check(found: os.stat_result, path: Path | str) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    for is_kind, number, words in _KINDS:
        if is_kind(found.st_mode):
            raise OSError(number, words, str(path))
    raise OSError(errno.EINVAL, "it is a device, not a file", str(path))
