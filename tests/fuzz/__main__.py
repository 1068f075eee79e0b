"""Fuzzes every target, or those that are named: `python -m tests.fuzz --seconds 60 frames settings`.

Each begins with its corpus and its seeds. What is new goes to `.bench/fuzz/TARGET`, and with `--keep` the least of it
that reaches as much into `tests/fuzz/corpus/`. A case that breaks something is written to `.bench/fuzz`, as
`TARGET-crash-...`; `--again FILE` plays it without a fuzzer. `--lines` prints the lines that the corpus reaches.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz.least import least
from tests.fuzz.mutation import is_case, write_case
from tests.fuzz.target import CORPUS, load, names, play

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".bench" / "fuzz"
NAME_CHARACTERS = 12  # of a case: of its hash
TOLD = re.compile(r"stat::(number_of_executed_units|peak_rss_mb):\s+(\d+)")
MEASURED = ("swarmd/net", "swarmd/swarm/wire")


def main() -> int:
    """Returns 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names()))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="adds what is new to the corpus")
    parser.add_argument("--again", type=Path, metavar="FILE", help="plays one case on the one target")
    parser.add_argument("--lines", action="store_true", help="prints the share of lines that the corpus reaches")
    options = parser.parse_args()
    targets = options.targets or names()
    if options.lines:
        return _measure_lines()
    if options.again is not None:
        play(load(targets[0]), options.again.read_bytes())
        return 0
    found = [name for name in targets if not _fuzz(name, options.seconds)]
    if options.keep:
        for name in targets:
            _keep(name)
    print(f"found something in: {', '.join(found)}" if found else "nothing was found")
    return 1 if found else 0


def _fuzz(name: str, seconds: int) -> bool:
    """Fuzzes one target, and says how it went. False if something was found."""
    work, corpus = _folders(name)
    _write_seeds(name, work)
    told = (f"-max_total_time={seconds}", "-print_final_stats=1", "-timeout=20", "-rss_limit_mb=2000")
    done = _drive(name, *told, f"-artifact_prefix={WORK}/{name}-", str(work), str(corpus))
    (WORK / f"{name}.log").write_text(done.stderr + done.stdout)
    figures = dict(TOLD.findall(done.stderr))
    cases, peak = figures.get("number_of_executed_units", "?"), figures.get("peak_rss_mb", "?")
    print(f"{name:12} {cases:>10} cases, at most {peak:>5} MB", flush=True)
    if done.returncode:
        print(done.stderr[-3000:])
    return done.returncode == 0


def _keep(name: str) -> None:
    """Makes the corpus of a target anew: the fewest cases that reach what all reach."""
    folders = _folders(name)
    found = {path.read_bytes() for folder in folders for path in folder.iterdir()}
    kept = least(lambda: load(name), filter(is_case, found))
    corpus = folders[1]
    shutil.rmtree(corpus)
    corpus.mkdir()
    for data in kept:
        _write(corpus, data)
    print(f"{name:12} {len(kept):>10} cases kept of {len(found)}, {sum(map(len, kept))} bytes", flush=True)


def _drive(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.drive", name, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)


def _folders(name: str) -> tuple[Path, Path]:
    folders = WORK / name, CORPUS / name
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def _write_seeds(name: str, folder: Path) -> None:
    target = load(name)
    for case in target.seeds():
        _write(folder, write_case(case))
    target.close()


def _write(folder: Path, data: bytes) -> None:
    (folder / hashlib.sha256(data).hexdigest()[:NAME_CHARACTERS]).write_bytes(data)


def _measure_lines() -> int:
    """Plays the corpus under coverage."""
    data = f"--data-file={WORK / 'coverage'}"
    WORK.mkdir(parents=True, exist_ok=True)
    tests = ["-m", "pytest", "-q", "tests/fuzz/test_corpus.py"]
    source = f"--source={','.join(MEASURED)}"
    subprocess.run([sys.executable, "-m", "coverage", "run", data, source, *tests], cwd=ROOT, check=True)
    return subprocess.run([sys.executable, "-m", "coverage", "report", data], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
