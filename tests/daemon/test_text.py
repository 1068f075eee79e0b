"""No stranger chooses what is read here: which strings of a run reach what, and where a daemon's text comes from."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import swarmd
from swarmd.config import LOCAL, DataConfig, LimitsConfig, NodeConfig, RunConfig, fingerprint, prolonged, to_plain
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import RememberedRun
from swarmd.daemon.run_text import RunText
from swarmd.daemon.store import LocalStore
from swarmd.daemon.text import (
    LocalText,
    as_first_release,
    as_known,
    is_finished,
    load_text,
    remembered_text,
    take_local,
    with_digests,
)
from swarmd.daemon.waits import Waits
from swarmd.demo.swarm import own_text
from swarmd.errors import ConfigError
from swarmd.settings import load_run, preset_names, run_from_plain
from swarmd.text import sources
from tests.stage.toy import toy_run
from tests.text.texts import as_before

TEXT = "".join(f"line {number} of a small text\n" for number in range(400))
HOSTILE = (
    "/etc/passwd",
    "../secret",
    "~/.ssh/id_ed25519",
    "secret.txt",
    "*",
    "/**/*.md",
    "/dev/zero",
    "file:///etc/passwd",
    "https://example.org/x",
    "hf:/etc",
    "hf:../x",
    "hf:a/../b",
    "hf:secret",
    "hf:https://example.org/x",
    "$(id)",
    "os",
    "local",
)


def run_on(source: str, tokenizer: str = "byte", **changes: str) -> RunConfig:
    return dataclasses.replace(toy_run(), data=DataConfig(source=source, tokenizer=tokenizer, held_out=0.1, **changes))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


# ------------------------------------------------------------------------------------------------- strings of a run

CONFINED = {
    "name": "is shown and nothing else",
    "data.source": "is followed only if it is stdlib or a dataset of the Hub",
    "data.tokenizer": "is followed only if it is byte",
    "data.text_field": "is a key that is looked up in a row",
    "data.tokens_digest": "is 32 hexadecimal digits that are compared",
    "data.tokenizer_digest": "is 32 hexadecimal digits that are compared",
}
"""Every string of a run that isn't one of a few words, and why it reaches no file, URL, import or shell."""


def strings(kind: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The settings that may hold text, and whether any text."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from strings(hint, f"{prefix}{name}.")
        elif "str" in re.findall(r"\w+", inspect.formatannotation(hint)):
            yield f"{prefix}{name}", True
        elif any(isinstance(word, str) for it in (hint, *typing.get_args(hint)) for word in typing.get_args(it)):
            yield f"{prefix}{name}", False


def with_setting(path: str, value: str) -> dict[str, typing.Any]:
    plain = to_plain(toy_run())
    *tables, name = path.split(".")
    table = plain
    for key in tables:
        table = table[key]
    table[name] = value
    return plain


def test_every_string_of_a_run_is_listed_with_what_confines_it() -> None:
    assert {path for path, free in strings(RunConfig) if free} == set(CONFINED)


@pytest.mark.parametrize("path", [path for path, free in strings(RunConfig) if not free])
def test_what_is_one_of_a_few_words_is_refused_otherwise(path: str) -> None:
    for value in HOSTILE:
        with pytest.raises(ConfigError):
            run_from_plain(with_setting(path, value))


@pytest.mark.parametrize("path", ["data.tokens_digest", "data.tokenizer_digest"])
def test_a_digest_is_nothing_else(path: str) -> None:
    for value in (*HOSTILE, "0" * 31, "0" * 33, "G" * 32):
        plain = with_setting(path, value)
        plain["data"] |= {"source": LOCAL, "tokenizer": LOCAL}
        with pytest.raises(ConfigError, match="must be 32 hexadecimal digits"):
            run_from_plain(plain)
    with pytest.raises(ConfigError, match="belongs to files of the founder's own"):
        run_from_plain(with_setting(path, "0" * 32))


@pytest.mark.parametrize("key", ["source", "tokenizer"])
@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_that_a_stranger_names_is_read(key: str, value: str, tmp_path: Path) -> None:
    run = run_from_plain(with_setting(f"data.{key}", value))
    assert LocalText().lacking(run.data)
    with pytest.raises(ConfigError, match="makes this daemon a head"):
        load_text(run, LocalText(), tmp_path / "cache", LimitsConfig())
    assert not (tmp_path / "cache").exists()


def test_a_name_is_only_shown() -> None:
    """It is used in a sentence or a title."""
    uses = [
        line.strip()
        for path in Path(swarmd.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\brun(_config)?\.name\b", line)
    ]
    assert uses
    assert not [line for line in uses if re.search(r"Path|open\(|import_module|exec|getattr", line)], uses


def test_a_field_is_only_looked_up(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "/etc/passwd": "b"}\n')
    files = sources.list_files(str(tmp_path / "rows.jsonl"))
    assert list(sources.read_files(files, "/etc/passwd")) == [("b", True, f"{tmp_path}/rows.jsonl line 1")]


# ------------------------------------------------------------------------------------------------- founding


@pytest.mark.parametrize("name", preset_names())
def test_what_a_preset_names_travels_but_for_the_tokenizer_s_path(name: str) -> None:
    run, local = take_local(load_run(name))
    assert local.source is None
    assert run.data.source == load_run(name).data.source
    if name == "tiny":
        assert (run, local.tokenizer) == (load_run(name), None)
        assert fingerprint(run) == fingerprint(load_run(name))
    else:
        assert (run.data.tokenizer, local.tokenizer) == (LOCAL, "tokenizer.json")


def test_founder_and_joiner_agree_though_their_copies_lie_elsewhere(text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.txt"
    copy.write_text(TEXT)
    runs = []
    for path in (text, copy):
        run, local = take_local(run_on(str(path)))
        assert not is_finished(run.data)
        runs.append(with_digests(run, local, tmp_path / "cache"))
        assert is_finished(runs[-1].data)
        assert str(tmp_path) not in str(to_plain(runs[-1]))
    assert runs[0] == runs[1]
    assert fingerprint(runs[0]) != fingerprint(run_on(LOCAL))
    joined = run_from_plain(to_plain(runs[0]))
    assert "--data SOURCE makes" in LocalText().lacking(joined.data)
    theirs = load_text(joined, LocalText(str(copy)), tmp_path / "theirs", LimitsConfig())
    assert theirs.digest == joined.data.tokens_digest
    copy.write_text(TEXT + "more\n")
    with pytest.raises(ConfigError, match="is not the run's"):
        load_text(joined, LocalText(str(copy)), tmp_path / "theirs", LimitsConfig())


@pytest.mark.parametrize(
    ("run", "complaint"),
    [
        (run_on("hf:secret"), "name it hf:owner/name"),
        (run_on(LOCAL, tokens_digest="0" * 32), "are found out"),
    ],
)
def test_what_cannot_travel_is_said_where_a_run_is_founded(run: RunConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        take_local(run)


def test_what_a_daemon_writes_into_its_text_s_folder_is_no_text(text: Path) -> None:
    """With `--home` in the folder of `--data`, or above it: a later life finds the same text."""
    folder = text.parent
    before = sources.list_files(str(folder))
    home = Home(folder / "home")
    store = LocalStore(home)
    home.prepare()
    home.identity.touch()
    for step in (1, 2):
        store.append_ledger({"step": step, "record": "a"})
    store.void_ledger(1)
    store.ledger_tail(1)
    assert {it.name for it in home.path.iterdir()} >= {"ledger.jsonl", "ledger-void.jsonl"}
    assert sources.list_files(str(folder)) == before
    home.identity.unlink()
    assert len(sources.list_files(str(folder))) == len(before) + 2, "elsewhere they may be anything"


def test_a_later_life_in_another_directory_finds_the_tokens(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, local = take_local(run_on("text.txt"))
    run = with_digests(run, local, tmp_path / "cache")
    load_text(run, local, tmp_path / "cache", LimitsConfig())
    monkeypatch.chdir("/")
    load_text(run, LocalText(str(text)), tmp_path / "cache", LimitsConfig())
    assert len(list((tmp_path / "cache").glob("*.tokens"))) == 1


def test_a_tokenizer_for_a_run_of_bytes_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --tokenizer out"):
        load_text(run_on("stdlib"), LocalText(None, str(text)), tmp_path / "cache", LimitsConfig())


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (DataConfig(), ""),
        (DataConfig("hf:owner/name:part"), ""),
        (DataConfig("x.txt"), "--data SOURCE makes"),
        (DataConfig("stdlib", "tokenizer.json"), "--tokenizer FILE makes"),
        (DataConfig(LOCAL, LOCAL, tokens_digest="0" * 32), "--data SOURCE and --tokenizer FILE makes"),
    ],
)
def test_who_lacks_a_copy_is_told_the_options(data: DataConfig, options: str) -> None:
    lacking = LocalText().lacking(data)
    assert (options in lacking) if options else not lacking
    assert not LocalText("a", "b").lacking(data)


def test_daemons_of_a_demo_are_told_where_the_machine_has_its_text() -> None:
    assert own_text(DataConfig()) == []
    assert own_text(DataConfig("x.txt", "t.json")) == ["--data", "x.txt", "--tokenizer", "t.json"]


# ------------------------------------------------------------------------------------------------- later lives


def test_a_later_life_knows_what_the_user_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_on(LOCAL, tokens_digest="0" * 32)
    monkeypatch.chdir(tmp_path)
    said = LocalText("text.txt", None).absolute()
    known = RememberedRun(to_plain(run), fingerprint(run), 0, (), True, said.source or "", said.tokenizer or "")
    assert remembered_text(known, run, tmp_path) == LocalText(str(tmp_path / "text.txt"))
    assert remembered_text(None, run, tmp_path) == LocalText()
    assert remembered_text(known, run_on("stdlib"), tmp_path) == LocalText(), "that was in another run"
    assert LocalText("hf:owner/name", "stdlib").absolute() == LocalText("hf:owner/name", "stdlib")
    above = LocalText("link/../text.txt").absolute().source
    assert above == f"{tmp_path}/link/../text.txt", "behind a link that is another folder"


def test_a_home_of_the_first_release_goes_on_only_with_what_it_has_read_for_this_run(
    text: Path, tmp_path: Path
) -> None:
    run, cache = run_on(str(text)), tmp_path / "cache"
    known = RememberedRun(to_plain(run), fingerprint(run), 0, (), True)
    assert remembered_text(known, run, cache) == LocalText(), "it never read it"
    load_text(run, LocalText(str(text)), cache, LimitsConfig())
    assert remembered_text(known, run, cache) == LocalText(str(text))
    assert remembered_text(dataclasses.replace(known, stage=1), run, cache) == LocalText()
    assert remembered_text(dataclasses.replace(known, data=""), run, cache) == LocalText()
    text.write_text(TEXT + "secret")
    assert remembered_text(known, run, cache) == LocalText(), "it has changed since"


@pytest.mark.parametrize("checkpointed", [True, False])
async def test_a_run_that_has_stepped_on_tokens_of_a_release_before_is_told(
    checkpointed: bool, text: Path, tmp_path: Path
) -> None:
    home, run = Home(tmp_path / "home"), run_on(str(text))
    home.prepare()
    home.remember_run(RememberedRun(to_plain(run), fingerprint(run), 0, (), checkpointed, str(text), ""))
    as_before(text, home.path / "data", [1, *TEXT.encode()])
    loading = RunText(NodeConfig(str(home.path), data=str(text)), home, Waits(list)).load(run)
    if checkpointed:
        with pytest.raises(ConfigError, match="tokens that an earlier release made of"):
            await loading
    else:
        await loading


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_resumed_run_keeps_its_digests_until_its_text_is_read(checkpointed: bool, text: Path, tmp_path: Path) -> None:
    home, written = Home(tmp_path / "home"), run_on(str(text))
    run, local = take_local(written)
    assert as_known(written, home) == run, "it is of no run yet"
    founded = with_digests(run, local, tmp_path / "cache")
    home.prepare()
    home.remember_run(RememberedRun(to_plain(founded), fingerprint(founded), 0, (), checkpointed, str(text), ""))
    text.unlink()
    assert as_known(written, home) == (founded if checkpointed else run)
    longer = dataclasses.replace(written, steps=written.steps + 5)
    assert fingerprint(prolonged(as_known(written, home), longer.steps)) == fingerprint(
        prolonged(founded if checkpointed else run, longer.steps)
    )


def test_a_resumed_run_of_the_first_release_is_as_it_was_written(text: Path, tmp_path: Path) -> None:
    home, written = Home(tmp_path / "home"), run_on(str(text))
    home.prepare()
    home.remember_run(RememberedRun(to_plain(written), fingerprint(written), 0, (), True))
    assert as_known(written, home) == written
    assert not is_finished(as_known(run_on("other.txt"), home).data)


def test_a_run_of_the_first_release_keeps_its_name(text: Path) -> None:
    old = run_on(str(text), "tokenizer.json")
    assert as_first_release(*take_local(old)) == old
