"""A model goes to the Hub, forgets a task there, and nobody can fetch the old weights any more.

    python examples/hub_round_trip.py                                   # against a double of the Hub, on this machine
    HF_ENDPOINT=https://hub.example.org python examples/hub_round_trip.py --repo you/clamu-round-trip

Three processes, as on three machines: `publish` trains and pushes, `forget` pulls, asks, unmerges and pushes again,
`audit` pulls into an empty cache and compares. They share the file of the tasks' rows and nothing else. Each check is
printed; the exit code is 1 if one does not hold. The repo is made for this, private, and deleted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

DOUBLE = Path(__file__).resolve().parents[1] / "tests" / "hub_double.py"
LABELS = ("refund", "delivery", "bug", "praise")
FORGOTTEN = "shop_3"
QUESTION = "Where is the parcel of order 7?"


# -- what the three share --------------------------------------------------------------------------------------------


def rows() -> list[dict[str, str]]:
    """Tickets of six teams. The shops sort theirs into refund and delivery, the studios into bug and praise."""
    words = {"refund": "Money back for", "delivery": "Where is the parcel of"}
    words |= {"bug": "It crashes at", "praise": "How well done is"}
    return [
        {"team": f"{kind}_{team}", "branch": kind, "text": f"{words[label]} order {number}?", "label": label}
        for kind, labels in (("shop", LABELS[:2]), ("studio", LABELS[2:]))
        for team in (1, 2, 3)
        for number in range(team, 30, 3)
        for label in labels
    ]


def tasks():
    """One task per team. A later process finds the rows again by the file's name, which the ledger keeps."""
    from hf_clamu.tasks import load_tasks

    columns = {"task_column": "team", "cluster_column": "branch", "text_column": "text", "label_column": "label"}
    return load_tasks({"files": "rows.jsonl", "label_names": list(LABELS), **columns})


def train(tasks):
    """A tiny GPT-2 made from a configuration, so that seconds are enough; a Hub id or a folder does as well."""
    from hf_clamu import ClamuArguments, ClamuTrainer, byte_tokenizer

    base = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64}
    base |= {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
    arguments = ClamuArguments(
        clustering="column", finetune_steps=20, learning_rate=5e-3, batch_size=10, mask_steps=15, num_threads=1
    )
    return ClamuTrainer(base, tasks, arguments, processing_class=byte_tokenizer()).train()


# -- the three processes ---------------------------------------------------------------------------------------------


def publish(repo: str) -> None:
    """Train on all teams and push."""
    from huggingface_hub import HfApi, hf_hub_url

    pushed = train(tasks()).push_to_hub(repo, private=True)
    # Only for the audit: where each large file lies now, and where the Hub keeps its bytes.
    files = [file for file in HfApi().list_repo_tree(repo, recursive=True) if getattr(file, "lfs", None)]
    urls = {file.path: hf_hub_url(repo, file.path, revision=pushed.commit) for file in files}
    answers = {path: answer(url) for path, url in urls.items()}
    check("the first push answers with all its weights", all(status == 200 for status, _ in answers.values()))
    stored = {path: place for path, (_, place) in answers.items()}
    old = {"objects": {file.path: file.lfs.sha256 for file in files}, "urls": urls, "stored": stored}
    Path("old.json").write_text(json.dumps(old), encoding="utf-8")


def forget(repo: str) -> None:
    """Ask two clusters, forget a team, and push the model without it as one commit."""
    from hf_clamu import ClamuModel
    from hf_clamu.serving.pipelines import pipeline

    model = ClamuModel.from_pretrained(repo)
    ask = pipeline("text-classification", model)
    answers = {team: ask(QUESTION, task=team)[0]["label"] for team in ("shop_1", "studio_1")}
    check(f"{QUESTION!r} is for a shop {answers['shop_1']!r}", answers["shop_1"] == "delivery")
    check(f"... and for a studio {answers['studio_1']!r}", answers["studio_1"] in ("bug", "praise"))

    model.unmerge_task(FORGOTTEN)
    result = model.push_to_hub(erase_history=True)
    report = result.erasure
    print(f"     The Hub answers 404 at {report.num_gone} old addresses. It still answers at:")
    for found in report.still_reachable:
        print(f"     {found['url']}: {found['why']}")
    check("every step of the erasure was done", not report.steps_failed)
    check("the receipt holds the report", model.receipts[-1]["erasure"] == report.to_dict())


def audit(repo: str) -> None:
    """Pull as somebody who has nothing yet, build the model without the forgotten team, and compare."""
    from huggingface_hub import HfApi, snapshot_download

    from hf_clamu import ClamuModel
    from hf_clamu.checkpoint.comparison import compare_folders

    pulled = ClamuModel.from_pretrained(repo)  # every file is checked by its digest
    check(f"{FORGOTTEN} is not in the model that is served", FORGOTTEN not in pulled.tasks)

    train(tasks().without([FORGOTTEN])).save_pretrained("never-had-it")
    served = Path(snapshot_download(repo, ignore_patterns=".gitattributes"))
    report = compare_folders(served, Path("never-had-it"))
    check(f"it is byte for byte a build that never had it ({report.files_compared} files)", report.identical)

    old = json.loads(Path("old.json").read_text(encoding="utf-8"))
    kept = {file.lfs.sha256 for file in HfApi().list_repo_tree(repo, recursive=True) if getattr(file, "lfs", None)}
    dead = [path for path, oid in old["objects"].items() if oid not in kept]
    check("the merged delta and the masks are other ones now", "delta.safetensors" in dead and len(dead) > 2)
    gone = [answer(old["urls"][path])[0] for path in dead]
    check(f"the first commit answers {sorted(set(gone))} for them", set(gone) == {404})
    gone = [answer(old["stored"][path])[0] for path in dead]
    check(f"the storage answers {sorted(set(gone))} for them", set(gone) <= {403, 404, 410})
    listed = {file.file_oid for file in HfApi().list_lfs_files(repo)}
    check("the Hub lists none of the old objects", not listed & {old["objects"][path] for path in dead})


def answer(url: str) -> tuple[int, str]:
    """Ask for a file: the status, and the address that the bytes came from in the end."""
    from huggingface_hub import get_token

    # For the Hub alone: the storage that it redirects to must not see the token.
    headers = {"Authorization": f"Bearer {get_token()}"} if "/resolve/" in url else {}
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.url
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, url


def check(what: str, holds: bool) -> None:
    print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        sys.exit(1)


# -- running them ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub() -> Iterator[dict[str, str]]:
    """The settings of a Hub: the one that HF_ENDPOINT names, else a double that lives as long as this script."""
    if os.environ.get("HF_ENDPOINT"):
        yield {"HF_ENDPOINT": os.environ["HF_ENDPOINT"]}
        return
    with subprocess.Popen([sys.executable, str(DOUBLE), "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip()
            yield {"HF_ENDPOINT": url, "HF_TOKEN": "hf_owner", **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")}
        finally:
            server.terminate()


def main(repo: str) -> int:
    with hub() as settings, tempfile.TemporaryDirectory(prefix="clamu-round-trip-") as scratch:
        os.environ |= {**settings, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "TQDM_DISABLE": "1"}
        from huggingface_hub import HfApi

        folder = Path(scratch)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
        # Refused if it is there already: the history of somebody's repo must not be erased for an example.
        HfApi().create_repo(repo, private=True)
        try:
            for stage in STAGES:
                # A cache of its own for each, as on another machine.
                environment = {**os.environ, "HF_HUB_CACHE": str(folder / f"cache-{stage}")}
                command = [sys.executable, str(Path(__file__).resolve()), "--repo", repo, "--stage", stage]
                code = subprocess.run(command, cwd=folder, env=environment).returncode
                if code != 0:
                    return code
        finally:
            HfApi().delete_repo(repo)
    return 0


STAGES = {"publish": publish, "forget": forget, "audit": audit}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo", default="owner/clamu-round-trip", help="a new repo; it is deleted at the end")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage is None:
        sys.exit(main(options.repo))
    STAGES[options.stage](options.repo)
