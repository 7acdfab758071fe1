"""The part of the page that shows and hands out the evidence of a request."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.desk.office import DeskModel, Office
from hf_clamu.desk.parts import markup
from hf_clamu.desk.web.uploads import UPLOADS_VARIABLE
from hf_clamu.errors import ClamuError, RecipeError

__all__ = ["EvidencePart"]

# In the order of the buttons.
_ENDINGS = (".html", ".json", ".cdx.json")
_NOTHING = "No request is answered yet. What is carried out appears here."


@dataclass(frozen=True)
class EvidencePart:
    """Shows the page of evidence of a request, and offers it as files.

    Args:
        office (`Office`): the models.
    """

    office: Office

    def build(self, gr: Any, model: Any, timer: Any) -> None:
        """Add the part to a page.

        Args:
            gr (*module*): gradio.
            model: component with the name of the chosen model.
            timer: component that asks for news.
        """
        with gr.Row():
            request = gr.Dropdown(label="Request", choices=[], interactive=True, elem_id="evidence-choice")
            with_ids = gr.Checkbox(label="Name its tasks (for your own files, not to be shown)", elem_id="with-ids")
            show = gr.Button("Show the evidence", variant="primary", elem_id="evidence-show")
        said = gr.HTML(elem_id="evidence-said")
        with gr.Row():
            files = [
                gr.DownloadButton(label, visible=False, elem_id=f"download-{ending}")
                for label, ending in (("Page (HTML)", "html"), ("JSON", "json"), ("CycloneDX ML-BOM", "cdx"))
            ]
        page = gr.HTML(elem_id="evidence")
        show.click(self._show, [model, request, with_ids], [said, page, *files], concurrency_limit=1)
        timer.tick(self._choices, model, request, show_progress="hidden")
        model.change(self._choices, model, request, show_progress="hidden")

    def _choices(self, name: Any) -> Any:
        import gradio as gr

        try:
            return gr.update(choices=list(_answered(self.office[name])))
        except (ClamuError, OSError):
            return gr.skip()

    def _show(self, name: Any, request: Any, with_ids: Any) -> list[Any]:
        import gradio as gr

        hidden = [gr.update(visible=False)] * 3
        try:
            values = self._collect(name, request, with_ids=with_ids is True)
            files = _write(values)
        except (ClamuError, OSError) as error:
            return [markup.message(str(error), is_good=str(error) == _NOTHING), "", *hidden]
        from hf_clamu.proofs.evidence.page import evidence_html

        # A frame of its own, without scripts: its styles are not ours, and ours are not its.
        frame = f'<iframe class="desk-evidence" sandbox srcdoc="{html.escape(evidence_html(values))}"></iframe>'
        return ["", frame, *(gr.update(visible=True, value=str(path)) for path in files)]

    def _collect(self, name: Any, request: Any, *, with_ids: bool) -> dict[str, Any]:
        from hf_clamu.proofs.evidence.collecting import collect_evidence

        model = self.office[name]
        answered = _answered(model)
        if not answered:
            raise RecipeError(_NOTHING)
        if not isinstance(request, str) or request not in answered:
            raise RecipeError("Choose a request that is answered.")
        return collect_evidence(
            model.source,
            receipts=model.options.receipts,
            request=answered[request],
            asked=model.book.done_before(request),
            with_ids=with_ids,
        )


def _answered(model: DeskModel) -> dict[str, str]:
    """Return the files of receipts by what requests are called, the last ones first."""
    done = [one.request for one in model.states()]
    found = [(one.outcome.time, one.name, one.outcome.receipt) for one in done if one.outcome and one.outcome.receipt]
    return {name: receipt for _, name, receipt in sorted(found, reverse=True)}


def _write(values: Mapping[str, Any]) -> list[Path]:
    """Write the evidence as HTML, JSON and CycloneDX where downloads are taken from."""
    from hf_clamu.proofs.evidence.documents import DOCUMENTS

    stem = f"evidence-{Path(values['receipt']['file']).stem}"
    folder = Path(tempfile.mkdtemp(dir=os.environ[UPLOADS_VARIABLE]))
    paths = [folder / f"{stem}{ending}" for ending in _ENDINGS]
    for path, ending in zip(paths, _ENDINGS, strict=True):
        path.write_text(DOCUMENTS[ending](values), encoding="utf-8")
    return paths
