"""What every command must satisfy wherever it runs: it imports nothing from the working directory, writes only its output,
cache and temporary files, and talks to nobody."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

import command_reference
import pytest
from watched import NO_STRACE, PLANTED, STRACE, Room

from simmim_export.engines import ENGINES, get_engine
from simmim_export.system.children import python_code, python_command
from simmim_export.system.telemetry import SWITCHES

ROOT = Path(__file__).parents[2]
FAST = ("--rounds", "1", "--iterations", "1", "--warmup", "0")
TRAIN = ("--steps", "1", "--batch-size", "4", "--eval-scenes", "0", "-o", "{out}/x.pt")
# (program, command): the exit code, and words that take the command as far as a test has time for. The working directory is a
# bundle.
COMMANDS: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {
    ("simmim-export", "onnx"): (0, ("{checkpoint}", "-o", "{out}/b")),
    # A folder without ONNX files, described by a spec file that is not one.
    ("simmim-export", "adopt"): (5, (".", "--like", "{picture}", "-o", "{out}/b")),
    ("simmim-export", "inspect"): (0, (".",)),
    ("simmim-export", "doctor"): (0, ()),
    ("simmim-export", "build"): (0, (".", "--dry-run")),
    ("simmim-export", "verify"): (0, (".",)),
    ("simmim-export", "certify"): (0, (".", "--rounds", "1", "--engine", "ort", "--budget", "cosine=0.5")),
    ("simmim-export", "embed"): (0, (".", "--text", "a red circle")),
    ("simmim-export", "ask"): (0, (".", "{picture}", "what shape is red ?")),
    ("simmim-export", "match"): (0, (".", "{picture}", "a red circle")),
    ("simmim-export", "classify"): (0, (".", "{picture}")),
    # Until it would ask npm, which uses the network.
    ("simmim-export", "web"): (3, (".", "-o", "{out}/page", "--precision", "planned")),
    ("simmim-train", "init"): (0, ("-o", "{out}/x.pt")),
    # Far enough to import everything that it needs.
    ("simmim-train", "import"): (5, ("{picture}", "-o", "{out}/x.pt")),
    ("simmim-train", "pretrain"): (0, TRAIN),
    ("simmim-train", "finetune"): (0, (*TRAIN, "--questions", "1")),
    ("simmim-train", "evaluate"): (0, ("{trained}", "--eval-scenes", "8")),
    ("simmim-train", "draw"): (0, ("-o", "{out}/d", "--count", "1")),
    ("simmim-bench", ""): (0, ("--bundle", ".", "--engine", "ort", "--pipeline", "embed_text", *FAST)),
    ("simmim-bench", "compare"): (5, ("{picture}", "{picture}")),
    ("simmim-bench", "pair"): (
        0,
        ("--bundle", ".", "--pipeline", "embed_text", "--rounds", "1", "--iterations", "1", "--fail-on", "nothing"),
    ),
    ("simmim-bench", "report"): (5, ("{picture}", "-o", "{out}/report.html")),
    ("simmim-bench", "limit"): (0, ("--bundle", ".")),
    # Without a checkpoint, which PyTorch and the peers would run.
    ("simmim-bench", "peers"): (2, ("--bundle", ".", "--peer", "none", "--sentences", "2", *FAST)),
    # Fails because this environment has PyTorch, as the interpreter that is measured reports.
    ("simmim-bench", "footprint"): (4, ("--bundle", ".", "--environment", "{environment}")),
    # A real run takes minutes, and starts the same processes as quantization.
    ("simmim-bench", "train"): (2, ("--preset", "none")),
    ("simmim-bench", "quantization"): (
        5,
        ("--text-encoder", "./none", "--engine", "ort:fp32", "--recipe", "none", "--sentences", "2"),
    ),
}
EVERY = [(typed.program, typed.name) for typed in command_reference.commands()]


def script(program: str) -> Path:
    """The program as it is installed beside this interpreter."""
    return Path(sys.executable).with_name(program)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "room")


def fill(room: Room, bundle: Path) -> None:
    """Put a copy of ``bundle`` into the working directory, among the planted modules."""
    shutil.copytree(bundle, room.work, dirs_exist_ok=True)


def require_alone(seen) -> None:
    """Fail if a run wrote a file or made a connection that is not allowed."""
    if STRACE is None:
        pytest.skip(NO_STRACE)
    assert seen.hosts == [] and seen.written == [], seen


def test_every_command_has_a_row() -> None:
    assert set(COMMANDS) == set(EVERY)


@pytest.mark.parametrize(("program", "name"), EVERY, ids=[" ".join(words).strip() for words in EVERY])
def test_a_command_stays_alone(
    room: Room, program: str, name: str, every_bundle: Path, asked_bundle: Path, tiny_checkpoint: Path, picture: Path
) -> None:
    fill(room, every_bundle)
    # certify writes into the bundle.
    room.allowed = [room.work / "certificate.json", *room.work.glob(".certificate*")]
    code, words = COMMANDS[program, name]
    names = {"out": room.out, "checkpoint": tiny_checkpoint, "picture": picture, "environment": sys.prefix}
    names["trained"] = asked_bundle.with_name("asked.pt")
    seen = room.run(script(program), *([name] if name else []), *(word.format(**names) for word in words))
    assert seen.planted == [], seen.done.stderr
    assert seen.done.returncode == code, seen.done.stderr
    written = [path for path in seen.written or () if not path.startswith(str(room.work / ".certificate.json."))]
    seen.written = None if seen.written is None else written
    require_alone(seen)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_stays_alone(room: Room, engine: str, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    reason = get_engine(engine).why_unavailable()
    if reason is not None:
        pytest.skip(f"{engine}: {reason}")
    fill(room, tiny_bundle)
    source = ("--checkpoint", tiny_checkpoint) if get_engine(engine).reads_checkpoint else ()
    seen = room.run(script("simmim-export"), "verify", ".", "--engine", engine, *source)
    assert seen.done.returncode == 0 and seen.planted == [], seen.done.stderr
    require_alone(seen)


def test_engines_used_from_python_stay_alone(room: Room, tiny_bundle: Path) -> None:
    code = (
        "import sys, simmim_export\n"
        "for engine in ('ort', 'openvino'): simmim_export.load(sys.argv[1], engine).embed_text(['red'])"
    )
    seen = room.run(*python_code(code, tiny_bundle))
    assert seen.done.returncode == 0, seen.done.stderr
    require_alone(seen)


@pytest.mark.skipif(STRACE is None, reason=NO_STRACE)
def test_the_watch_sees_files_lookups_and_connections(room: Room) -> None:
    code = (
        "import os, socket\nopen(os.path.expanduser('~/told'), 'w').close()\nos.mkdir(os.path.expanduser('~/d'))\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))\n"
        "try: socket.gethostbyname('host.invalid')\nexcept OSError: pass"
    )
    seen = room.run(*python_code(code))
    assert [Path(path).name for path in seen.written or ()] == ["d", "told"]
    assert "192.0.2.1:9" in (seen.hosts or ()) and "/etc/resolv.conf" in (seen.hosts or ())


def test_a_plain_python_executes_planted_modules(room: Room) -> None:
    for name in PLANTED:
        room.run(sys.executable, "-c", f"import {name}")
    assert room.run(sys.executable, "-m", "simmim_export.cli", "--help").planted
    assert set((room.root / "planted").read_text().split()) >= {"json", "torch", "numpy", "simmim_export"}


def test_a_python_command_ignores_the_working_directory(room: Room) -> None:
    assert room.run(*python_command("simmim_export.cli", "--help")).planted == []
    assert room.run(*python_code("import json, random")).planted == []


OURS = [
    path for folder in ("simmim_export", "training", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_one_module_starts_python(path: Path) -> None:
    if path == ROOT / "simmim_export/system/children.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path}:{getattr(node, 'lineno', 0)}: use simmim_export.system.children"
        if isinstance(node, ast.Attribute):
            assert node.attr != "executable" or ast.unparse(node.value) != "sys", place
            started = ast.unparse(node.value) == "os" and node.attr.startswith(
                ("system", "popen", "exec", "spawn", "posix_spawn")
            )
            assert not started, place
        if isinstance(node, ast.List | ast.Tuple):
            assert not {"-m", "-c"} & {item.value for item in node.elts if isinstance(item, ast.Constant)}, place
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not modules & {"multiprocessing", "ProcessPoolExecutor", "runpy"}, place
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
            absolute = isinstance(node.args[0], ast.List) and str(ast.literal_eval(node.args[0].elts[0])).startswith(
                "/"
            )
            assert absolute or "env" in {keyword.arg for keyword in node.keywords}, place


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_that_reports_its_use_is_imported_quietly(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    quiet: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            named = {
                argument.value
                for call in calls
                if ast.unparse(call.func) == "without_telemetry"
                for argument in call.args
                if isinstance(argument, ast.Constant)
            }
            quiet |= {child for child in ast.walk(node) if _packages(child) & SWITCHES.keys() <= named}
    loud = [node for node in ast.walk(tree) if _packages(node) & SWITCHES.keys() and node not in quiet]
    assert not loud, f"{path}: import it in a block of without_telemetry: {[ast.unparse(node) for node in loud]}"


def _packages(node: ast.AST) -> set[str]:
    """The top-level packages that ``node`` imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) and not node.level else set()


# What these print is JSON in ASCII, or already escaped.
PRINTS = ("simmim_export/console/output.py", "simmim_export/system/printing.py")


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_output_is_printed_escaped(path: Path) -> None:
    if str(path.relative_to(ROOT)) in PRINTS:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("print", "Console", "sys.stdout.write", "sys.stderr.write"), (
                f"{path}:{node.lineno}: use say"
            )
