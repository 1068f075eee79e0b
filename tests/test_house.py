"""The rules of the house: who may import whom, and why; what no file may do; how long files get.

Imports are read from the source with ast, wherever in a file they stand. Two checks run the commands and look at what
was really loaded. The checks themselves are tried on made-up sources at the end.
"""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house import (
    KEPT,
    OURS,
    ROOT,
    circles,
    classes,
    constructors,
    floors_broken,
    idle_functions,
    import_graph,
    imported,
    parse,
    relative_docstrings,
    sources,
)

FILE_LINES_LIMIT = 800  # a file ends where its question ends, mostly far below
FUNCTION_LINES_LIMIT = 70
PARAMETERS_LIMIT = 6  # of a constructor in swarm/: what most need is in a PeerContext or StageContext
METHODS_LIMIT = 25  # public ones of a class: one that has more answers several questions

LEAVES = (
    "swarmd.chunks",
    "swarmd.config",
    "swarmd.device_names",
    "swarmd.errors",
    "swarmd.printable",
    "swarmd.status",
    "swarmd.values",
    "swarmd.schedule",
    "swarmd.sizes",
    "swarmd.whole",
)


class Rule(NamedTuple):
    """Those of our own modules that the files of a place may import."""

    place: str
    allowed: tuple[str, ...]
    reason: str


OWN_IMPORTS = (
    Rule(
        "swarmd/config.py", ("swarmd.constraints",), "everyone imports it, so whatever it imported everyone would carry"
    ),
    Rule("swarmd/constraints.py", (), "everyone imports it with config.py"),
    Rule("swarmd/chunks.py", ("swarmd.values",), "the swarm and a stage's files name a state alike"),
    Rule(
        "swarmd/command_line.py",
        ("swarmd", "swarmd.completion", "swarmd.exits", "swarmd.printable"),
        "swarmctl must stay light",
    ),
    Rule("swarmd/completion.py", ("swarmd.settings",), "swarmctl must stay light"),
    Rule("swarmd/device_names.py", ("swarmd.errors",), "a wrong name is answered before anything heavy is loaded"),
    Rule("swarmd/errors.py", (), "everyone imports it, so whatever it imported everyone would carry"),
    Rule("swarmd/exits.py", (), "it is the first that a process loads"),
    Rule("swarmd/files.py", (), "whoever reads a file imports it, before anything heavy is loaded"),
    Rule("swarmd/layout.py", ("swarmd.printable",), "swarmctl imports it and must stay light"),
    Rule("swarmd/live_line.py", ("swarmd.printable", "swarmd.status"), "swarmctl imports it and must stay light"),
    Rule("swarmd/memory.py", (), "the process and the device's thread call it"),
    Rule("swarmd/printable.py", (), "everything that shows words imports it, swarmctl too"),
    Rule("swarmd/screen.py", ("swarmd.printable",), "swarmctl imports it and must stay light"),
    Rule("swarmd/status.py", (), "swarmctl imports it and must stay light"),
    Rule("swarmd/values.py", (), "everyone imports it, so whatever it imported everyone would carry"),
    Rule("swarmd/whole.py", (), "the swarm and a stage's files say alike what they pass over"),
    Rule("swarmd/sizes.py", ("swarmd.config",), "placement, engine and planner count with it, without torch"),
    Rule("swarmd/schedule.py", ("swarmd.config",), "swarm/ decides the learning rate with it, without torch"),
    Rule(
        "swarmd/settings.py",
        ("swarmd.config", "swarmd.constraints", "swarmd.errors", "swarmd.files"),
        "settings are checked before anything is started",
    ),
    Rule("swarmd/swarm", (*LEAVES, "swarmd.swarm"), "the same code runs in virtual time, where no network or torch is"),
    Rule(
        "swarmd/text",
        ("swarmd.config", "swarmd.errors", "swarmd.files", "swarmd.text", "swarmd.values"),
        "what a run trains on hangs on its text, tokenizer and seed, whatever computes with it",
    ),
    Rule(
        "swarmd/stage",
        (*LEAVES, "swarmd.exits", "swarmd.files", "swarmd.memory", "swarmd.stage", "swarmd.text.tokenizer"),
        "a stage computes the same whether or not there is a swarm",
    ),
    Rule(
        "swarmd/net",
        (*LEAVES, "swarmd.files", "swarmd.net"),
        "bytes travel without anyone there knowing what they mean",
    ),
    Rule(
        "swarmd/sim",
        (
            *LEAVES,
            "swarmd.files",
            "swarmd.layout",
            "swarmd.screen",
            "swarmd.settings",
            "swarmd.swarm",
            "swarmd.stage",
            "swarmd.sim",
        ),
        "it runs production peers over simulated ports; with a real port it would not be a simulation",
    ),
    Rule(
        "swarmd/daemon",
        (
            *LEAVES,
            "swarmd",
            "swarmd.exits",
            "swarmd.files",
            "swarmd.live_line",
            "swarmd.memory",
            "swarmd.settings",
            "swarmd.swarm",
            "swarmd.stage",
            "swarmd.net",
            "swarmd.text",
            "swarmd.daemon",
        ),
        "it assembles what is real; simulated parts must not get into a daemon",
    ),
    Rule(
        "swarmd/demo",
        (
            "swarmctl",
            "swarmd.config",
            "swarmd.daemon.home",
            "swarmd.daemon.patience",
            "swarmd.demo",
            "swarmd.errors",
            "swarmd.exits",
            "swarmd.files",
            "swarmd.layout",
            "swarmd.printable",
            "swarmd.screen",
            "swarmd.settings",
            "swarmd.stage",
            "swarmd.status",
            "swarmd.values",
        ),
        "it starts daemons as processes and asks them through their control sockets, as a person would",
    ),
    Rule(
        "swarmctl/plan.py",
        (
            "swarmd.status",
            "swarmd.errors",
            "swarmd.layout",
            "swarmd.printable",
            "swarmd.screen",
            "swarmd.settings",
            "swarmd.sim",
            "swarmctl",
        ),
        "a plan is a simulation; it is made by the simulator, which needs no torch",
    ),
    Rule(
        "swarmctl",
        (
            "swarmd.command_line",
            "swarmd.completion",
            "swarmd.errors",
            "swarmd.exits",
            "swarmd.layout",
            "swarmd.live_line",
            "swarmd.printable",
            "swarmd.screen",
            "swarmd.status",
            "swarmctl",
        ),
        "it starts at once and works without torch",
    ),
)

WORLD = (
    "asyncio.subprocess",
    "concurrent",
    "datetime",
    "glob",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
)
"""What swarm/ must not import: it reaches the world through its ports, and reads time from the running loop."""

SERIALISERS = ("_pickle", "cloudpickle", "cPickle", "dill", "joblib", "marshal", "pickle", "shelve")
"""What runs code when it reads data, or ties a file to one version of Python."""


def within(name: str, modules: tuple[str, ...]) -> bool:
    """True if a dotted name is one of the modules or inside one. Plain `swarmd` is only itself: its version."""
    return any(name == module or (module != "swarmd" and name.startswith(f"{module}.")) for module in modules)


def foreign_to(rule: Rule, tree: ast.AST) -> list[str]:
    """Imports of ours that the rule does not allow."""
    ours = ((name, line) for name, line in imported(tree) if name.split(".")[0] in OURS)
    return [f"line {line} imports {name}" for name, line in ours if not within(name, rule.allowed)]


@pytest.mark.parametrize("rule", OWN_IMPORTS, ids=lambda rule: rule.place)
def test_a_room_imports_only_what_it_may(rule: Rule) -> None:
    for path in sources(rule.place):
        if path == ROOT / "swarmctl/plan.py" and rule.place == "swarmctl":
            continue  # it has a rule of its own, and is loaded only for `swarmctl plan`: see below
        assert not foreign_to(rule, parse(path)), f"{path.relative_to(ROOT)}: not allowed, because {rule.reason}"


FLOORS = {
    "swarmd/swarm": (
        ("wire",),
        ("membership",),
        ("history",),
        ("hops", "balance", "state"),
        ("rounds", "recovery"),
        ("steps",),
        ("peer",),
    ),
    "swarmd/sim": (("world", "engines"), ("faults", "planner", "spot_market"), ("campaign", "measure")),
}
"""The rooms of a place from the lowest floor up. What stands beside them, as files, is below all (`__main__` above)."""


@pytest.mark.parametrize("place", FLOORS)
def test_imports_run_downwards(place: str) -> None:
    """So that a room can be understood, tested and changed with what is below it."""
    assert not floors_broken(place, FLOORS[place])


def test_no_modules_import_each_other() -> None:
    """TYPE_CHECKING included: two files that need each other's names are one file, or lack a third."""
    assert not circles(import_graph("swarmd", "swarmctl"))


def test_swarm_needs_nothing_but_the_standard_library() -> None:
    """So that it runs in virtual time, deterministically, without waiting for a real clock, thread or socket."""
    for path in sources("swarmd/swarm"):
        assert not beyond_ports(parse(path)), path.relative_to(ROOT)


def beyond_ports(tree: ast.AST) -> list[str]:
    """Imports and calls through which code would reach the world beside its ports."""
    found = []
    for name, line in imported(tree):
        top = name.split(".")[0]
        if (top not in sys.stdlib_module_names and top != "swarmd") or within(name, WORLD):
            found.append(f"line {line} imports {name}")
        if name == "random" and any(
            isinstance(node, ast.ImportFrom) and node.lineno == line for node in ast.walk(tree)
        ):
            found.append(f"line {line} imports from random; use random.Random, injected")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random" and node.attr != "Random":
            found.append(f"line {node.lineno}: random.{node.attr} draws from the global generator")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hash", "id", "open"):
            found.append(f"line {node.lineno}: {node.func.id}() differs from run to run or reaches the disk")
    return found


def test_only_four_files_know_libp2p() -> None:
    """py-libp2p needs guards and a foreign event loop; four files hold both, and everything else can do without."""
    knowing = [ROOT / "swarmd/net" / name for name in ("libp2p.py", "gate.py", "pubsub.py", "yamux.py")]
    for path in sources("swarmd", "swarmctl", "configs"):
        if path not in knowing:
            names = [name for name, _ in imported(parse(path)) if name.split(".")[0] in ("libp2p", "trio", "multiaddr")]
            assert not names, path.relative_to(ROOT)


def test_nothing_is_unpickled() -> None:
    """A pickle from a peer or a file is a program; tensors and JSON are not."""
    for path in sources("swarmd", "swarmctl", "configs"):
        assert not unsafe_loads(parse(path)), path.relative_to(ROOT)


def unsafe_loads(tree: ast.AST) -> list[str]:
    """Imports of serialisers, and torch or numpy loading that would unpickle."""
    found = [f"line {line} imports {name}" for name, line in imported(tree) if name.split(".")[0] in SERIALISERS]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if call == "torch.save" or (call == "torch.load" and keywords.get("weights_only") != "True"):
            found.append(f"line {node.lineno}: {call} pickles")
        if keywords.get("allow_pickle", "False") != "False":
            found.append(f"line {node.lineno}: {call} may unpickle")
    return found


def test_no_decision_hangs_on_words() -> None:
    """A sentence is for people, and may be reworded; what one side says and another acts upon is a type or a field."""
    allowed = ("swarmd/stage/worker.py",)  # of CUDA, which has no codes
    for path in sources("swarmd", "swarmctl", "benchmarks"):
        if str(path.relative_to(ROOT)) not in allowed:
            assert not words_looked_at(parse(path)), path.relative_to(ROOT)


def words_looked_at(tree: ast.AST) -> list[str]:
    """Places where the text of an exception is compared, searched, or taken apart."""
    troubles = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    troubles |= {f"{name}.args[0]" for name in troubles}

    def is_text(node: ast.AST) -> bool:
        called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("str", "repr") and node.args
        return ast.unparse(node.args[0] if called else node) in troubles  # type: ignore[attr-defined]

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Is | ast.IsNot):
            looked = [it for it in (node.left, *node.comparators) if is_text(it)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOOKING:
            looked = [it for it in (node.func.value, *node.args) if is_text(it)]
        else:
            continue
        found += [f"line {node.lineno} decides by {ast.unparse(it)}" for it in looked]
    return found


LOOKING = ("startswith", "endswith", "find", "index", "count", "match", "search", "fullmatch", "findall")
"""Methods that look into a text, or have an expression do so."""


def test_bitsandbytes_is_imported_only_when_chosen() -> None:
    """It costs 1.6 s and 118 MB at import, which most daemons never need."""
    for path in sources("swarmd", "swarmctl", "configs"):
        top_level = [name for node in parse(path).body for name, _ in imported(node)]
        assert not [name for name in top_level if name.startswith("bitsandbytes")], path.relative_to(ROOT)


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    for path in sources("swarmd", "swarmctl", "benchmarks"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= FILE_LINES_LIMIT, f"{path.relative_to(ROOT)} has {lines} lines; split it by question"
        assert not long_functions(parse(path)), path.relative_to(ROOT)


def long_functions(tree: ast.AST) -> list[str]:
    return [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_LIMIT
    ]


def test_constructors_take_few_parameters() -> None:
    """A long list hides which objects a class is made of, and grows unseen."""
    found = [it for path in sources("swarmd/swarm") for it in constructors(path) if it.size > PARAMETERS_LIMIT]
    assert not found, [*map(str, found)]


def test_classes_have_few_public_methods() -> None:
    found = [it for path in sources("swarmd", "swarmctl") for it in classes(path) if it.size > METHODS_LIMIT]
    assert not found, [*map(str, found)]


def test_every_file_says_what_it_is() -> None:
    for path in sources("swarmd", "swarmctl", "benchmarks", "tests"):
        tree = parse(path)
        assert not tree.body or ast.get_docstring(tree), f"{path.relative_to(ROOT)} opens without a docstring"


def test_docstrings_open_with_their_subject() -> None:
    """A noun or a verb tells at once what a thing is or does; a clause makes the reader wait for it."""
    for path in sources("swarmd", "swarmctl"):
        assert not relative_docstrings(parse(path)), path.relative_to(ROOT)


def test_what_is_written_within_a_function_is_called() -> None:
    """A test whose coroutine is never run can't fail."""
    for path in sources("swarmd", "swarmctl", "benchmarks", "tests"):
        assert not idle_functions(parse(path)), path.relative_to(ROOT)


def test_everything_is_formatted() -> None:
    for path in sources("swarmd", "swarmctl", "benchmarks", "tests"):
        assert not KEPT.findall(path.read_text(encoding="utf-8")), f"{path.relative_to(ROOT)}: let the formatter do it"


def loaded_by(program: str) -> set[str]:
    """Top-level modules that a program has loaded when it ends."""
    program += "\nimport sys; print('loaded', *sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_swarmctl_loads_no_torch_libp2p_or_trio(tmp_path: Path) -> None:
    """It is used on machines that are busy, and in loops; it must answer at once."""
    modules = loaded_by(
        "import swarmctl.client, swarmctl.render\nfrom swarmctl.app import run_command_line\n"
        f"run_command_line(['--home', {str(tmp_path)!r}, 'status']); run_command_line(['--help'])"
    )
    assert {"swarmctl", "rich", "typer"} <= modules  # the check sees something
    assert not modules & {"torch", "libp2p", "trio", "numpy", "uvloop", "aiohttp", "bitsandbytes"}


def test_a_plan_is_simulated_without_torch_libp2p_or_trio() -> None:
    """It is asked for on laptops that will never train."""
    modules = loaded_by(
        "from swarmctl.app import run_command_line\n"
        "run_command_line(['plan', '--model', 'tiny', '--peers', '3xT4@1Gbps', '--quick'])"
    )
    assert {"swarmctl", "swarmd", "rich"} <= modules
    assert not modules & {"torch", "libp2p", "trio", "uvloop", "aiohttp", "bitsandbytes"}


def test_text_is_read_without_torch() -> None:
    """A daemon reads its text while its stage opens, or has none; and each kind of text loads its own library alone."""
    names = (path.stem for path in sources("swarmd/text") if path.stem != "__init__")
    modules = loaded_by("".join(f"import swarmd.text.{name}\n" for name in names))
    assert {"swarmd", "numpy"} <= modules
    assert not modules & {"torch", "datasets", "pyarrow", "tokenizers"}


def test_swarmd_answers_mistakes_without_loading_anything_heavy() -> None:
    modules = loaded_by(
        "from swarmd.cli.main import run_command_line\n"
        "run_command_line(['--help']); run_command_line(['start', '--gpu', '0', '--device', 'cpu'])"
    )
    assert {"swarmd", "typer"} <= modules
    assert not modules & {"torch", "libp2p", "trio", "numpy", "uvloop", "aiohttp", "rich", "plotext"}


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from random import random",
        "import random\nrandom.random()",
        "import numpy",
        "x = hash('a')",
        "def f():\n    from pathlib import Path",
        "import os.path",
    ],
)
def test_the_check_of_ports_can_fail(source: str) -> None:
    assert beyond_ports(ast.parse(source))
    assert not beyond_ports(ast.parse("import asyncio, random\nfrom swarmd.values import Frame\nrandom.Random(0)"))


@pytest.mark.parametrize(
    "test",
    ["'gone' in str(e)", "e.args[0] == 'gone'", "str(e).startswith('gone')", "re.search('gone', str(e))"],
)
def test_the_check_of_words_can_fail(test: str) -> None:
    handler = "try:\n    f()\nexcept OSError as e:\n    x = {}"
    assert words_looked_at(ast.parse(handler.format(test)))
    assert not words_looked_at(ast.parse(handler.format("e.errno == 3, isinstance(e, A), str(e) or 'no answer'")))


@pytest.mark.parametrize(
    "source", ["import pickle", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)"]
)
def test_the_check_of_pickles_can_fail(source: str) -> None:
    assert unsafe_loads(ast.parse(source))
    assert not unsafe_loads(ast.parse("torch.load(p, weights_only=True)\nnp.load(p)"))


@pytest.mark.parametrize(
    "source", ["import swarmd.net", "from swarmd import daemon", "def f():\n    import swarmctl.app"]
)
def test_the_check_of_rooms_can_fail(source: str) -> None:
    rule = next(rule for rule in OWN_IMPORTS if rule.place == "swarmd/swarm")
    assert foreign_to(rule, ast.parse(source))
    assert not foreign_to(rule, ast.parse("from swarmd import config\nimport swarmd.swarm.ports\nimport json"))


def test_the_checks_of_parameters_and_methods_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "wide.py"
    path.write_text(
        "class Wide:\n    def __init__(self, a, b, *, c): ...\n    def one(self): ...\n    def _own(self): ...\n"
        "@dataclass\nclass Plain:\n    def __init__(self, a, b, c, d): ...\n"
    )
    assert [(it.name, it.size) for it in constructors(path)] == [("Wide", 3)]
    assert [(it.name, it.size) for it in classes(path)] == [("Wide", 1), ("Plain", 0)]


def test_the_check_of_lengths_can_fail() -> None:
    assert long_functions(ast.parse("def f():\n" + "    x = 1\n" * FUNCTION_LINES_LIMIT))
    assert not long_functions(ast.parse("def f():\n" + "    x = 1\n" * (FUNCTION_LINES_LIMIT - 1)))


@pytest.mark.parametrize("opening", ["Whoever asks.", "How it is.", "What comes.", "As it was."])
def test_the_check_of_docstrings_can_fail(opening: str) -> None:
    source = 'class Asks:\n    def ask(self):\n        """{}"""'
    assert relative_docstrings(ast.parse(source.format(opening))) == [opening]
    assert not relative_docstrings(ast.parse(source.format("However, it asks whoever comes.")))


def test_the_check_of_idle_functions_can_fail() -> None:
    body = "def test():\n    async def main(): ...\n"
    assert idle_functions(ast.parse(body)) == ["main"]
    assert not idle_functions(ast.parse(body + "    run_virtual(main())"))


def test_the_check_of_formatting_can_fail() -> None:
    assert len(KEPT.findall("x = [1,2]  # fmt: skip\n# fmt: off\ny = [1,2]\n")) == 2
    assert not KEPT.findall("x = '# fmt: skip, it says'\n")
