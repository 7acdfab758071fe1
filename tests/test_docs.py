"""The docs do what they say: snippets run, commands parse, links lead somewhere, generated tables are up to date.

`CLAMU_WRITE_DOCS=1 pytest tests/test_docs.py -k generated` rewrites the generated tables of docs/reference.md.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

import pytest

import hf_clamu

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
_SKIP = re.compile(r"<!-- skip: (.+?) -->\s*\Z")


def _page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, text, and the reason for which it is skipped ("" if it is not)."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        skip = _SKIP.search(text[: found.start()])
        yield found.group(1), found.group(2), skip.group(1) if skip else ""


@pytest.mark.parametrize(
    "name",
    [
        *("quickstart.md", "concepts.md", "reference.md", "file-format.md", "compatibility.md", "troubleshooting.md"),
        *("architecture.md", "scaling.md", "paper.md", "how-to/README.md", "how-to/train.md", "how-to/methods.md"),
        *("how-to/serve.md", "how-to/forget.md", "how-to/hub.md", "how-to/merge-checkpoints.md"),
        *(
            "how-to/keep-and-destroy.md",
            "how-to/conversations.md",
            "from-your-csv.md",
            "is-it-for-me.md",
            "leakage.md",
        ),
    ],
)
def test_pages_exist(name):
    assert ROOT / "docs" / name in PAGES


def test_the_readme_is_short_and_leads_to_the_first_pages():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 75
    first = ("is-it-for-me.md", "quickstart.md", "from-your-csv.md", "how-to/README.md", "how-to/keep-and-destroy.md")
    assert [page for page in first if f"](docs/{page})" not in text] == []


# -- snippets --------------------------------------------------------------------------------------------------------

# Everything that snippets read, small: the demo's data and base, a text base, rows of two kinds.
_OWNERS = ("owner_00", "owner_07", "owner_17", "owner_18", "owner_19", "owner_33", "owner_40")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """A stand-in for what `clamu demo` leaves, without training."""
    import transformers

    from hf_clamu.tasks import digits
    from hf_clamu.training import seeded

    folder = tmp_path_factory.mktemp("docs")
    (folder / "demo" / "data").mkdir(parents=True)
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for owner, found in zip(_OWNERS, _by_task(digits(num_tasks=48)).values(), strict=False):
        for number, row in enumerate(found[:3] + found[-3:]):
            label = "many" if row["label"] > min(one["label"] for one in found) else "few"
            line = json.dumps({**row, "task": owner, "label": label}) + "\n"
            rows["test" if number in (0, 5) else "train"].append(line)
    for name, lines in rows.items():
        (folder / "demo" / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}
    with seeded(0):
        labels = {"id2label": {0: "few", 1: "many"}, "label2id": {"few": 0, "many": 1}}
        config = transformers.ViTConfig(num_hidden_layers=1, num_attention_heads=2, **sizes, **labels)
        transformers.ViTForImageClassification(config).save_pretrained(folder / "demo" / "base")
    return folder


def _by_task(dataset: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in dataset:
        found.setdefault(row["task"], []).append(row)
    return found


# PEFT asks transformers in a way that transformers will drop.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_snippets_run(page, demo_folder, tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(demo_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # The snippets of a page follow one another.
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, (language, code, skip) in enumerate(_blocks(page), start=1):
        if language != "python":
            continue
        if skip:
            with capsys.disabled():
                print(f"\n{page.name}, block {number} is not run: {skip}")  # noqa: T201
            continue
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)
    # transformers warns at each generation of a GPT-2 that ends with tokens beyond its vocabulary.
    gpt2 = names.get("gpt2", {})
    assert all(gpt2[key] < gpt2["vocab_size"] for key in ("bos_token_id", "eos_token_id") if gpt2)


# -- commands --------------------------------------------------------------------------------------------------------


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for language, text, _ in _blocks(page):
            if language in ("", "bash"):
                lines = text.replace("\\\n", " ").splitlines()
                found += [(page.name, line) for line in lines if line.startswith("clamu ")]
        found += [
            (page.name, line) for line in re.findall(r"`(clamu [a-z][^`]*)`", page.read_text()) if "\n" not in line
        ]
    return found


def test_there_are_commands_to_check():
    assert len(_commands()) > 20


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_parse(page, line):
    import typer

    from hf_clamu.cli.app import app

    group: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    name = words[0]
    if name.startswith("-"):
        assert name in ("--help", "--version", "--install-extension", "--install-completion", "--show-completion")
        return
    assert name in group.commands, f"{page}: there is no command {name!r}"
    command, words = group.commands[name], words[1:]
    while words and hasattr(command, "commands") and words[0] != "--help":
        assert words[0] in command.commands, f"{page}: {name} has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    if words and words != ["--help"]:
        command.make_context(name, words)


# -- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_links_lead_somewhere(page):
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", other.read_text(encoding="utf-8")), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


# -- generated tables ------------------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _settings(kind: Any, meaning: dict[str, str], presets: dict[str, Any]) -> str:
    rows = []
    for name, text in meaning.items():
        field = next((field for field in fields(kind) if field.name == name), None)
        if field is None:
            default = "`per-task` or `clusters`"
        elif presets:
            default = _defaults({preset: getattr(found, name) for preset, found in presets.items()})
        else:
            default = "required" if field.default is MISSING else f"`{json.dumps(field.default)}`"
        # Recipes and `TaskDataset.from_dataset` leave the kind of task to the columns.
        rows.append((f"`{name}`", "by columns" if name == "kind" else default, text))
    return _table(("name", "default", "meaning"), rows)


def _defaults(by_preset: dict[str, Any]) -> str:
    """The value of all presets, or that of the first and the others by name."""
    first, *others = by_preset.items()
    different = [f"`{name}`: `{json.dumps(value)}`" for name, value in others if value != first[1]]
    return "; ".join([f"`{json.dumps(first[1])}`", *different])


def _cli() -> str:
    from hf_clamu.cli.app import app

    parts = []
    commands = [("", command) for command in app.registered_commands]
    for group in app.registered_groups:
        name = group.typer_instance.info.name
        commands += [(f"{name} ", command) for command in group.typer_instance.registered_commands]
    for before, command in commands:
        callback: Any = command.callback
        called = before + (command.name or callback.__name__)
        words, rows = [f"clamu {called}"], []
        hints = typing.get_type_hints(callback, include_extras=True)
        for name, parameter in inspect.signature(callback).parameters.items():
            kind, info = typing.get_args(hints[name])[:2]
            is_option = type(info).__name__ == "OptionInfo"
            shown = _option(info, name) if is_option else info.metavar
            many = " ..." if not is_option and _is_list(kind) else ""
            if parameter.default is inspect.Parameter.empty:
                words.append(f"{shown} …" if is_option else shown + many)
                default = "required"
            else:
                words += [] if is_option else [f"[{shown}{many}]"]
                default = "" if parameter.default in (None, False) else f"`{parameter.default}`"
            rows.append((f"`{shown}{_choices(kind)}`", default, info.help))
        parts.append(f"### {called}\n\n{inspect.cleandoc(callback.__doc__)}\n\n`{' '.join(words)}`\n\n")
        parts[-1] += _table(("argument", "default", "meaning"), rows)
    return "\n\n".join(parts)


def _option(info: Any, name: str) -> str:
    # Inside Annotated, typer keeps the first name that is given for an option where its default would be.
    given = [*([info.default] if isinstance(info.default, str) else []), *(info.param_decls or ())]
    return next((one for one in given if one.startswith("--")), "--" + name.replace("_", "-"))


def _is_list(kind: Any) -> bool:
    return any(typing.get_origin(part) is list for part in (kind, *typing.get_args(kind)))


def _choices(kind: Any) -> str:
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) is Literal:
            return " " + "|".join(typing.get_args(part))
    kinds = (kind, *typing.get_args(kind))
    for part, word in ((bool, ""), (int, " N"), (Path, ""), (str, "")):
        if part in kinds:
            return word
    return ""


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")


def _api() -> str:
    parts = []
    for name in hf_clamu.__all__:
        value = getattr(hf_clamu, name)
        if inspect.isfunction(value):
            parts.append(f"### {name}\n\n`{name}({', '.join(_parameters(value))})`: {_first_line(value)}")
        if not inspect.isclass(value) or issubclass(value, Exception):
            continue
        rows = []
        for member, found in _own_members(value).items():
            found = getattr(found, "__func__", found)
            if member.startswith("_") or not (inspect.isfunction(found) or isinstance(found, property)):
                continue
            shown = member if isinstance(found, property) else f"{member}({', '.join(_parameters(found))})"
            rows.append((f"`{shown}`", _first_line(found)))
        parts.append(f"### {name}\n\n{_first_line(value)}")
        if rows:
            parts[-1] += "\n\n" + _table(("member", "what it is"), rows)
    return "\n\n".join(parts)


def _own_members(value: type) -> dict[str, Any]:
    """Return the members of a class, then those of the mixins that it joins."""
    mixins = [kind for kind in reversed(value.__mro__) if kind.__module__.startswith("hf_clamu.models.mixins")]
    return dict(item for kind in (value, *mixins) for item in vars(kind).items())


def _parameters(function: Any) -> list[str]:
    names = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    return [("**" if p.kind is p.VAR_KEYWORD else "") + p.name for p in names]


def _errors() -> str:
    from hf_clamu import ExactnessError, ScoreDropError, SignatureError

    rows = []
    for name in hf_clamu.__all__:
        value = getattr(hf_clamu, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            parents = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
            code = (
                ""
                if name == "ClamuError"
                else "1"
                if issubclass(value, (ExactnessError, ScoreDropError, SignatureError))
                else "2"
            )
            rows.append((f"`{name}`", parents, code, _first_line(value)))
    return _table(("exception", "is a", "exit code", "when"), rows)


def _generated(name: str) -> str:
    from hf_clamu import ClamuArguments, TaskSpec
    from hf_clamu.checkpoint.card.settings import CardSettings
    from hf_clamu.merging import PRESETS

    if name == "arguments":
        by_preset = {preset: ClamuArguments(preset=preset) for preset in PRESETS}
        return _settings(ClamuArguments, ClamuArguments.describe(), by_preset)
    kind: Any = {"spec": TaskSpec, "card": CardSettings}.get(name)
    if kind is not None:
        return _settings(kind, {field.name: field.metadata["help"] for field in fields(kind)}, {})
    return {"cli": _cli, "api": _api, "errors": _errors}[name]()


@pytest.mark.parametrize("name", ["arguments", "spec", "card", "cli", "api", "errors"])
def test_generated_tables_are_up_to_date(name):
    text = REFERENCE.read_text(encoding="utf-8")
    start, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
    head, found, rest = text.partition(start)
    assert found
    old, found, rest = rest.partition(end)
    assert found
    new = _generated(name) + "\n"
    if os.environ.get("CLAMU_WRITE_DOCS"):
        REFERENCE.write_text(head + start + new + end + rest, encoding="utf-8")
    else:
        assert old == new, "run CLAMU_WRITE_DOCS=1 pytest tests/test_docs.py"


def test_the_reference_covers_every_public_name():
    text = REFERENCE.read_text(encoding="utf-8")
    for name in hf_clamu.__all__:
        assert f"`{name}`" in text or f"### {name}\n" in text, f"{name} is not in docs/reference.md"


def test_names_in_code_that_the_docs_import_exist():
    for page in PAGES:
        for module, names in re.findall(r"^from (hf_clamu[\w.]*) import (.+)$", page.read_text(), flags=re.MULTILINE):
            for name in names.split(","):
                assert hasattr(importlib.import_module(module), name.strip().split(" as ")[0]), f"{page.name}: {name}"


# -- errors and architecture -----------------------------------------------------------------------------------------


def test_every_error_has_a_section_with_its_way_out():
    from hf_clamu import errors

    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    headings = [section.split("\n")[0] for section in sections]
    assert headings == list(errors.__all__)
    for heading, section in zip(headings, sections, strict=True):
        assert "**Cause.**" in section, heading
        assert "**Way out.**" in section, heading


def test_the_architecture_page_names_files_that_exist():
    paths = re.findall(r"`((?:hf_clamu|tests|docs|examples)/[\w/.-]*)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_architecture_page_names_every_layer():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    folders = [folder.name for folder in (ROOT / "hf_clamu").iterdir() if (folder / "__init__.py").is_file()]
    assert [name for name in folders if f"`hf_clamu/{name}/`" not in text] == []
