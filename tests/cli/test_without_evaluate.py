"""`evaluate` is in maintenance: what needs no class of it works without, to the same digits."""

from __future__ import annotations

import json
import subprocess
import sys

_WITHOUT = "import sys; sys.modules['evaluate'] = None; "


def _python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)


def test_a_model_is_evaluated_without_the_package(clamu, work):
    code = "from hf_clamu.cli import main; sys.exit(main(['evaluate', 'text', '--json']))"
    done = _python(_WITHOUT + code, work)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == clamu("evaluate", "text", "--json").json


def test_what_is_made_of_its_classes_says_what_to_install(tmp_path):
    code = """
import hf_clamu.evaluation as found
for name in ("Accuracy", "METRICS", "evaluator"):
    try:
        getattr(found, name)
    except ImportError as error:
        assert str(error).startswith(f"{name} is made of classes of the package evaluate, which is not installed: pip")
    else:
        raise SystemExit(name)
assert found.evaluate_model and not hasattr(found, "Accuracies")
"""
    done = _python(_WITHOUT + code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_nothing_imports_it_before_it_is_asked_for(tmp_path):
    code = "import sys, hf_clamu.evaluation, hf_clamu.cli.app; assert 'evaluate' not in sys.modules"
    done = _python(code, tmp_path)
    assert done.returncode == 0, done.stderr
