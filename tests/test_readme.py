"""The READMEs say what the program does: their commands run, their code runs, and the two are in step."""

import re
import shlex
from pathlib import Path

import click
import pytest
from PIL import Image

from ddim_edit.cli import cli, main

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
PHOTOS = ("photo.jpg", "a.jpg", "b.jpg", "c.jpg", "astronaut.png", "cat.png", "coffee.png")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the photos that the READMEs name."""
    for number, name in enumerate(PHOTOS):
        Image.new("RGB", (80, 70), (30 * number, 200 - 20 * number, 90)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_readme_runs(folder: Path) -> None:
    commands = [line for block in blocks(ENGLISH, "bash") for line in block.splitlines()]
    assert len(commands) >= 7
    for number, line in enumerate(commands):
        program, *arguments = shlex.split(re.sub(r"-n \d+|--frames \d+|--seeds \S+", "", line))
        assert program == "ddim-edit", line
        quick = {"info": [], "decode": [], "sample": ["-n", "2", "--seeds", "0"]}.get(arguments[0], ["-n", "2"])
        if arguments[0] == "interpolate":
            quick = ["-n", "2", "--frames", "3", "--pilot", "2", "--overwrite"]
        if arguments[0] in ("encode", "interpolate"):
            quick += ["--inverse", "explicit"]
        if arguments[0] == "experiment":
            quick = ["-n", "1,2", "--seeds", "0-1"]
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *quick])
        assert stopped.value.code == 0, (number, line)


def test_every_option_in_the_readme_exists_as_written() -> None:
    for line in (line for block in blocks(ENGLISH, "bash") for line in block.splitlines()):
        _, name, *arguments = shlex.split(line)
        command = cli.commands[name]
        if isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, arguments).close()


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    (code,) = blocks(ENGLISH, "python")
    exec(compile(code.replace("grid=50", "grid=2"), "README.md", "exec"), {})
    assert (folder / "back.png").exists()


def test_the_command_table_lists_every_command() -> None:
    for path in (ENGLISH, CHINESE):
        table = re.findall(r"^\| `([\w-]+)` \|", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(cli.commands) <= set(table)


def test_the_module_map_lists_every_module() -> None:
    package = ROOT / "ddim_edit"
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")} - {"errors", "files"}
    modules |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    for path in (ENGLISH, CHINESE):
        named = set(re.findall(r"`([\w/]+)`", path.read_text(encoding="utf-8")))
        assert modules <= named, modules - named


def test_both_readmes_hold_the_same_code_numbers_and_structure() -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in (ENGLISH, CHINESE))
    for language in ("bash", "python"):
        assert blocks(ENGLISH, language) == blocks(CHINESE, language)
    for pattern in (r"^#+ ", r"^\| ", r"!\[[^]]*\]\(([^)]+)\)"):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(re.findall(pattern, chinese, re.MULTILINE))
    rows = r"^\| \d.*\|$"
    assert re.findall(rows, english, re.MULTILINE) == re.findall(rows, chinese, re.MULTILINE)


def test_links_and_pictures_of_the_readmes_exist() -> None:
    for path in (ENGLISH, CHINESE):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), target
