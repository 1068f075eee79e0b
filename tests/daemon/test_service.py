"""The service: whether its user can run this swarmd, the copy that it runs otherwise, and what systemd is asked for."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd.cli.main import run_command_line
from swarmd.daemon import service, service_access, service_copy, service_manager
from swarmd.daemon.service_access import needed_to_start, obstacle, visited
from swarmd.errors import ConfigError

Patch = pytest.MonkeyPatch
Output = pytest.CaptureFixture[str]


@pytest.fixture
def open_tmp(tmp_path: Path) -> Path:
    """A directory that the service's user can reach, in as far as the test decides it."""
    place = tmp_path / "open"
    place.mkdir()
    for folder in [place, *place.parents]:
        if folder.stat().st_uid == os.getuid() and folder not in (Path("/"), Path("/tmp")):
            folder.chmod(folder.stat().st_mode | 0o055)
    place.chmod(0o755)
    return place


# ------------------------------------------------------------------------------------------------- access


def write(path: Path, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    path.chmod(mode)
    path.parent.chmod(0o755)
    return path


def test_what_all_may_read_is_no_obstacle(open_tmp: Path) -> None:
    assert obstacle([write(open_tmp / "bin" / "swarmd", 0o755)], hidden=()) == ""


def test_a_closed_directory_a_closed_file_and_a_home_are_obstacles(open_tmp: Path) -> None:
    program = write(open_tmp / "bin" / "swarmd", 0o755)
    assert "home directories are hidden" in obstacle([program], hidden=[open_tmp])
    program.chmod(0o750)
    assert obstacle([program], hidden=()) == f"{program} is closed to it"
    program.chmod(0o755)
    program.parent.chmod(0o700)
    assert obstacle([program], hidden=()) == f"{program.parent} is closed to it"


def test_links_are_followed_wherever_they_stand_on_the_way(open_tmp: Path) -> None:
    real = write(open_tmp / "home" / "me" / "env" / "python")
    (open_tmp / "home").chmod(0o755)
    (open_tmp / "home" / "me").chmod(0o755)
    (open_tmp / "opt").symlink_to("home/me")
    (open_tmp / "python").symlink_to(open_tmp / "opt" / "env" / ".." / "env" / "python")
    assert list(visited(open_tmp / "python"))[-1] == real
    assert open_tmp / "home" in visited(open_tmp / "python")
    assert obstacle([open_tmp / "python"], hidden=()) == ""
    assert obstacle([open_tmp / "python"], hidden=[open_tmp / "home"])
    (open_tmp / "home" / "me").chmod(0o700)
    assert obstacle([open_tmp / "python"], hidden=()) == f"{open_tmp / 'home' / 'me'} is closed to it"


def test_links_in_a_circle_end(open_tmp: Path) -> None:
    (open_tmp / "one").symlink_to("other")
    (open_tmp / "other").symlink_to("one")
    assert list(visited(open_tmp / "one"))[-1] == open_tmp


def test_a_start_needs_this_python_its_library_and_the_packages() -> None:
    needed = needed_to_start()
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    assert {Path(sys.executable), Path(os.__file__), Path(spec.origin)} <= set(needed)


def test_a_service_that_cannot_run_is_not_installed_and_the_remedy_is_said(monkeypatch: Patch, capsys: Output) -> None:
    written: list[bool] = []
    monkeypatch.setattr(service, "obstacle", lambda _paths: "/srv/mine is closed to it")
    monkeypatch.setattr(service, "install", lambda **_words: written.append(True))
    assert run_command_line(["service", "install"]) == 2
    assert not written
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "/srv/mine is closed to it" in said
    assert f"`sudo {service.program()} service install --copy`" in said


# ------------------------------------------------------------------------------------------------- the copy

LIGHT = (
    "typer",
    "rich",
    "click",
    "shellingham",
    "annotated_doc",
    "pygments",
    "markdown_it",
    "mdurl",
    "typing_extensions",
)


@pytest.fixture
def light(tmp_path: Path, monkeypatch: Patch) -> Path:
    """An environment with the packages alone that `swarmd --version` loads: a copy of all takes a minute."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for name in LIGHT:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            source = origin.parent if origin.name == "__init__.py" else origin
            (packages / source.name).symlink_to(source)
    (packages / "__editable__.swarmd.pth").write_text("/nowhere")
    library = [place for place in sys.path if Path(place).name not in service_copy.PACKAGE_FOLDERS]
    monkeypatch.setattr(sys, "path", [*library, str(packages)])
    return packages


NOT_NEEDED = ("distutils", "lib2to3", "pydoc_data", "tkinter", "turtledemo", "unittest", "xml")  # of Python's library


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("light")
def test_a_copy_runs_by_itself_and_is_open_to_all(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(service_copy, "obstacle", lambda _paths: "this Python is closed to it")
    monkeypatch.setattr(service_copy, "LEFT_OUT", (*service_copy.LEFT_OUT, *NOT_NEEDED))
    place = tmp_path / "opt"
    program = service_copy.copy_environment(place)
    code = "import os, sys, swarmd; print(sys.prefix, os.__file__, swarmd.__file__, os.path.realpath(sys.executable))"
    done = subprocess.run(
        [place / "bin" / "python", "-c", code], capture_output=True, text=True, check=True, cwd="/", env={}
    )
    assert all(Path(word).is_relative_to(place) for word in done.stdout.split()), done.stdout
    assert not list(place.rglob("__editable__*"))
    assert list(place.rglob("swarmd/__pycache__/*.pyc")), "the service couldn't write them"
    again = "from pathlib import Path; from swarmd.daemon import service_copy as it; it.obstacle = lambda _: ''; "
    code = f"{again} it.copy_environment(Path({str(place)!r}))"
    subprocess.run([place / "bin" / "python", "-c", code], check=True, cwd="/", env={})  # brings its Python along
    for path in place.rglob("*"):
        mode = path.stat().st_mode
        assert mode & 0o004, path
        assert mode & 0o001 or not path.is_dir(), path
    assert program.read_text().startswith(f"#!{place}/bin/python\n")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("light")
def test_a_copy_of_an_environment_whose_python_is_open_uses_that_and_is_replaced(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(service_copy, "obstacle", lambda _paths: "")
    place = tmp_path / "opt"
    program = service_copy.copy_environment(place)
    assert (place / "bin" / "python").resolve() == Path(sys.executable).resolve()
    (place / "mark").touch()
    assert service_copy.copy_environment(place) == program, "a copy is replaced"
    assert not (place / "mark").exists()
    assert service_copy.remove_copy(place)
    assert not place.exists()


@pytest.mark.usefixtures("light")
def test_what_is_no_copy_is_never_replaced_or_removed(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    with pytest.raises(ConfigError, match="is no copy that swarmd made"):
        service_copy.copy_environment(tmp_path / "opt")
    assert not service_copy.remove_copy(tmp_path / "opt")
    assert (tmp_path / "opt").exists()


def test_a_copy_that_cannot_be_made_leaves_nothing_and_the_old_one_as_it_was(
    tmp_path: Path, monkeypatch: Patch, light: Path
) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / service_copy.MARK).touch()

    def full(*_words: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        service_copy.copy_environment(tmp_path / "opt")
    assert sorted(path.name for path in tmp_path.iterdir() if path != light) == ["opt"]
    assert (tmp_path / "opt" / service_copy.MARK).exists()


def test_a_copy_that_does_not_start_is_a_sentence(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "swarmd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'libpython is missing' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match="libpython is missing"):
        service_copy._check_start(program)
    program.write_text("#!/nowhere/python\n")
    with pytest.raises(ConfigError, match="doesn't start"):
        service_copy._check_start(program)


def test_the_unit_runs_the_copy(monkeypatch: Patch, capsys: Output, tmp_path: Path) -> None:
    where = service.Places(tmp_path / "system" / service.UNIT, tmp_path / "etc")
    monkeypatch.setattr(service, "places", lambda *, user: where)
    monkeypatch.setattr(service_copy, "copy_environment", lambda: service_copy.PLACE / "bin" / "swarmd")
    assert run_command_line(["service", "install", "--copy"]) == 0
    assert "ExecStart=/opt/swarmd/bin/swarmd start" in where.unit.read_text()
    assert str(where.unit) in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- systemd


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: Patch) -> Callable[[], list[str]]:
    """Stand-ins for systemctl and journalctl, and what they were asked for."""
    asked = tmp_path / "asked"
    asked.touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("systemctl", "journalctl"):
        (tools / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> {asked}\n'
            'case "$*" in *list-units*) echo "$UNITS";; *status*) exit ${STATUS:-0};;\n'
            "*disable*) exit ${DISABLE:-0};; esac\n"
        )
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UNITS", "swarmd@1.service loaded active running swarmd, training on GPU 1")
    return lambda: asked.read_text().splitlines()


def test_uninstalling_stops_all_instances_and_removes_what_was_written(
    systemd: Callable[[], list[str]], tmp_path: Path, capsys: Output
) -> None:
    assert run_command_line(["service", "install", "--user"]) == 0
    where = service.places(user=True)
    wants = where.unit.parent / "default.target.wants"
    wants.mkdir()
    (wants / "swarmd@0.service").symlink_to(where.unit)
    settings = where.environment / "0.env"
    settings.write_text("SWARMD_DEVICE=cpu")
    assert run_command_line(["service", "uninstall", "--user"]) == 0
    assert systemd()[-2:] == [
        "systemctl --user disable --now swarmd@0.service swarmd@1.service",
        "systemctl --user daemon-reload",
    ]
    assert not where.unit.exists()
    assert not (where.environment / service.EXAMPLE).exists()
    assert settings.exists()
    assert "swarmd@0.service, swarmd@1.service" in capsys.readouterr().out


def test_an_instance_that_does_not_stop_keeps_its_unit(
    systemd: Callable[[], list[str]], monkeypatch: Patch, capsys: Output
) -> None:
    assert run_command_line(["service", "install", "--user"]) == 0
    monkeypatch.setenv("DISABLE", "1")
    assert run_command_line(["service", "uninstall", "--user"]) == 2
    assert "nothing was removed" in capsys.readouterr().err
    assert service.places(user=True).unit.exists()
    assert "systemctl --user daemon-reload" not in systemd()


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["status"], "systemctl status --no-pager --lines 3 swarmd@*.service"),
        (["status", "0"], "systemctl status --no-pager --lines 3 swarmd@0.service"),
        (["status", "swarmd@0.service", "--user"], "systemctl --user status --no-pager --lines 3 swarmd@0.service"),
        (["logs", "1"], "journalctl --unit swarmd@1.service --lines 100 --no-pager"),
        (["logs", "-f", "--user"], "journalctl --user --unit swarmd@*.service --lines 100 --follow"),
    ],
)
def test_status_and_logs_ask_systemd(words: list[str], asked: str, systemd: Callable[[], list[str]]) -> None:
    assert run_command_line(["service", *words]) == 0
    assert systemd()[-1] == asked


def test_an_instance_that_does_not_run_is_exit_code_1(systemd: Callable[[], list[str]], monkeypatch: Patch) -> None:
    monkeypatch.setenv("STATUS", "3")
    assert run_command_line(["service", "status", "0"]) == 1
    assert systemd()


@pytest.mark.usefixtures("systemd")
def test_mistakes_are_one_sentence(monkeypatch: Patch, capsys: Output, tmp_path: Path) -> None:
    monkeypatch.setenv("UNITS", "")
    monkeypatch.setattr(service_manager, "places", lambda *, user: service.Places(tmp_path / "none" / "u", tmp_path))
    for words, part in (
        (["status"], "sudo systemctl enable --now swarmd@0 starts one"),
        (["logs", "0; rm -r /"], "is no instance"),
    ):
        assert run_command_line(["service", *words]) == 2
        said = capsys.readouterr().err
        assert part in said
        assert said.count("\n") == 1
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert run_command_line(["service", "logs"]) == 2
    assert "journalctl isn't on this machine" in capsys.readouterr().err


def test_the_check_of_links_is_bounded_in_time(open_tmp: Path) -> None:
    began = time.monotonic()
    (open_tmp / "self").symlink_to("self/self")
    assert len(list(visited(open_tmp / "self" / "x"))) < 100
    assert time.monotonic() - began < 5.0
    assert service_access.LINKS_LIMIT < 100


def test_settings_are_written_for_every_card_that_has_none(
    systemd: Callable[[], list[str]], monkeypatch: Patch, capsys: Output
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    where = service.places(user=True)
    where.environment.mkdir(parents=True)
    (where.environment / "1.env").write_text("SWARMD_DEVICE=cpu")
    assert run_command_line(["service", "install", "--user", "--gpu", "all"]) == 0
    example = (where.environment / service.EXAMPLE).read_text()
    found = {path.name: path.read_text() for path in where.environment.glob("?.env")}
    assert found == {"0.env": example, "1.env": "SWARMD_DEVICE=cpu", "2.env": example}
    said = capsys.readouterr().out
    assert "enable --now swarmd@0 swarmd@1 swarmd@2\n" in said
    assert f"settings: edit {where.environment}/0.env {where.environment}/1.env {where.environment}/2.env\n" in said
    assert not systemd()


def test_settings_of_one_card_and_of_none(systemd: Callable[[], list[str]], capsys: Output) -> None:
    where = service.places(user=True)
    assert run_command_line(["service", "install", "--user"]) == 0
    assert "enable --now swarmd@0\n" in capsys.readouterr().out
    assert not list(where.environment.glob("?.env"))
    assert run_command_line(["service", "install", "--user", "--gpu", "3"]) == 0
    assert "enable --now swarmd@3\n" in capsys.readouterr().out
    assert [path.name for path in where.environment.glob("?.env")] == ["3.env"]
    assert run_command_line(["service", "install", "--user", "--gpu", "x"]) == 2
    assert not systemd()
