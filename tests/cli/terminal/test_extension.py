"""`hf clamu`: the Hub's own command line runs what is installed here, for real and without network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_clamu

PROJECT = Path(__file__).parents[3] / "pyproject.toml"
PACKAGES = Path(hf_clamu.__file__).parents[1]
FOLDER = ".local/share/hf/extensions/hf-clamu"


@pytest.fixture
def installed(tmp_path):
    """Programs as pip writes them for the entry points of pyproject.toml, and a home of their own."""
    text = PROJECT.read_text(encoding="utf-8").partition("[project.scripts]")[2].partition("\n[")[0]
    scripts = dict(re.findall(r'^([\w-]+) = "([\w.:]+)"', text, flags=re.MULTILINE))
    assert set(scripts) == {"clamu", "hf-clamu"}
    (tmp_path / "bin").mkdir()
    for name, place in scripts.items():
        module, _, function = place.partition(":")
        script = tmp_path / "bin" / name
        start = f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        script.write_text(f"#!{sys.executable}\n{start}", encoding="utf-8")
        script.chmod(0o755)
    return tmp_path


def _run(home: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "PYTHONPATH": str(PACKAGES),
        **offline,
        **variables,
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _hf(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return _run(home, str(Path(sys.executable).parent / "hf"), *words)


def test_hf_runs_it_and_hands_everything_on(installed, trained):
    unknown = _hf(installed, "clamu", "--version")
    assert unknown.returncode != 0
    done = _run(installed, str(installed / "bin/clamu"), "--install-extension")
    program = installed / FOLDER / "hf-clamu"
    assert done.stdout == f"hf clamu runs {program} now. To undo it: hf extensions remove clamu\n", done.stderr
    assert done.returncode == 0
    assert _hf(installed, "clamu", "--version").stdout == f"clamu {hf_clamu.__version__}\n"
    found = _hf(installed, "clamu", "info", str(trained / "text"), "--format", "json")
    assert json.loads(found.stdout)["num_tasks"] == 4
    refused = _hf(installed, "clamu", "info", "nowhere", "--wrong")
    assert refused.returncode == 2
    assert refused.stderr.endswith("See hf clamu info --help.\n")
    assert _hf(installed, "clamu", "info", "--help").stdout.startswith("Usage: hf clamu info ")
    assert "clamu" in _hf(installed, "extensions", "list", "--format", "quiet").stdout
    assert "clamu" in _hf(installed, "--help").stdout
    # Once more is no harm, also from the program that hf runs.
    for name in ("bin/hf-clamu", f"{FOLDER}/hf-clamu"):
        assert _run(installed, str(installed / name), "--install-extension").returncode == 0
    assert _hf(installed, "extensions", "remove", "clamu").returncode == 0
    assert not (installed / FOLDER).exists()
    assert _hf(installed, "clamu", "--version").returncode != 0


def test_the_program_names_itself_as_it_can_be_called(installed):
    words = _run(installed, str(installed / "bin/hf-clamu"), "info", "--help").stdout.split()
    assert words[:3] == ["Usage:", "hf-clamu", "info"]


def test_an_extension_of_somebody_else_stays(installed):
    folder = installed / FOLDER
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"owner": "someone"}), encoding="utf-8")
    done = _run(installed, str(installed / "bin/clamu"), "--install-extension")
    assert done.returncode == 2
    assert done.stderr == (
        "clamu: hf clamu is installed already, from someone. To use what is installed here, first: hf extensions "
        "remove clamu.\n"
    )
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_a_hub_client_without_extensions_is_named(installed):
    known = installed / "old" / "huggingface_hub-1.4.1.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: huggingface_hub\nVersion: 1.4.1\n", encoding="utf-8")
    places = f"{known.parent}{os.pathsep}{PACKAGES}"
    done = _run(installed, str(installed / "bin/clamu"), "--install-extension", PYTHONPATH=places)
    assert done.returncode == 2
    assert done.stderr.startswith("clamu: hf of huggingface_hub 1.4.1 has no extensions. Install huggingface_hub 1.5")
    assert not (installed / ".local").exists()


def test_without_an_installed_program_nothing_is_written(installed):
    alone = installed / "alone" / "clamu"
    alone.parent.mkdir()
    shutil.copy(installed / "bin/clamu", alone)
    beside = Path(sys.executable).parent / "hf-clamu"
    if beside.exists():
        pytest.skip(f"{beside} is installed beside this Python")
    done = _run(installed, str(alone), "--install-extension")
    assert (done.returncode, done.stderr.startswith("clamu: There is no hf-clamu beside ")) == (2, True)
    assert not (installed / ".local").exists()
