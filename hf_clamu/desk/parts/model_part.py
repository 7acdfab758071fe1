"""The part of the page that shows what a model is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_clamu.desk.office import Office
from hf_clamu.desk.parts import markup
from hf_clamu.desk.views.model_view import CHANGE_COLUMNS, CLUSTER_COLUMNS, draw_map, draw_scores, view_model
from hf_clamu.errors import ClamuError

__all__ = ["ModelPart"]


@dataclass(frozen=True)
class ModelPart:
    """Shows clusters, the map of tasks, and what requests changed.

    Args:
        office (`Office`): the models.
    """

    office: Office

    def build(self, gr: Any, model: Any, tab: Any) -> None:
        """Add the part to a page.

        Args:
            gr (*module*): gradio.
            model: component with the name of the chosen model.
            tab: of this part; what it shows is read when it is opened.
        """
        facts = gr.HTML(elem_id="model-facts")
        clusters = gr.HTML(elem_id="clusters")
        drawing, about_map = gr.Plot(show_label=False, elem_id="map"), gr.HTML()
        changes = gr.HTML(elem_id="changes")
        chart, about_chart = gr.Plot(show_label=False, elem_id="scores"), gr.HTML()
        shown = [facts, clusters, drawing, about_map, changes, chart, about_chart]
        again = gr.Button("Look again", elem_id="model-again")
        for event in (tab.select, model.change, again.click):
            event(self._show, model, shown, concurrency_limit=1)

    def _show(self, name: Any) -> list[Any]:
        import gradio as gr

        hidden = gr.update(visible=False, value=None)
        try:
            model = self.office[name]
            view = view_model(model.source, model.receipts)
        except (ClamuError, OSError) as error:
            return [markup.failure(error), "", hidden, "", "", hidden, ""]
        drawing, about_map = draw_map(view.checkpoint)
        chart, about_chart = draw_scores(view.receipts)
        plots = [hidden if one is None else gr.update(visible=True, value=one) for one in (drawing, chart)]
        changes = markup.rows_table(CHANGE_COLUMNS, view.changes) if view.changes else "<p>No request yet.</p>"
        return [
            markup.rows_table(("what", "is"), list(view.facts.items())),
            f"<h3>Clusters</h3>{markup.rows_table(CLUSTER_COLUMNS, view.clusters)}",
            plots[0],
            markup.paragraph(about_map),
            f"<h3>What requests changed for the others</h3>{changes}",
            plots[1],
            markup.paragraph(about_chart),
        ]
