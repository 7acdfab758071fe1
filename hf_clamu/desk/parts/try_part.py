"""The part of the page that sends one input through base, global model, clusters and tasks."""

from __future__ import annotations

from typing import Any

from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.desk.office import Office
from hf_clamu.desk.parts import markup
from hf_clamu.desk.views.trying import TRY_COLUMNS, Tryout, earlier_states, takes_images, why_nothing_earlier
from hf_clamu.desk.web.uploads import read_upload
from hf_clamu.errors import ClamuError
from hf_clamu.hub.pull import resolve_folder

__all__ = ["TryPart"]

_MOST_BYTES = 20 << 20  # of an image
_MOST_TOKENS = 64


class TryPart:
    """Answers an input by all weights that a model has, and by those that it had before a request.

    Args:
        office (`Office`): the models.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._tryouts = {
            name: Tryout(source=model.source, receipts=model.receipts, task_id_key=model.task_id_key)
            for name, model in office.models.items()
        }

    def build(self, gr: Any, model: Any, tab: Any) -> None:
        """Add the part to a page.

        Args:
            gr (*module*): gradio.
            model: component with the name of the chosen model.
            tab: of this part; what it asks for is known when it is opened.
        """
        said = gr.HTML(elem_id="try-said")
        text = gr.Textbox(label="Text", lines=3, visible=False, elem_id="try-text")
        image = gr.File(label="Image", type="filepath", visible=False, elem_id="try-image")
        with gr.Row():
            task = gr.Textbox(label="Id of a task, to see what serves it", elem_id="try-task")
            before = gr.Dropdown(label="Compare with an earlier state", choices=[], elem_id="try-before")
        button = gr.Button("Try", variant="primary", elem_id="try")
        table = gr.HTML(elem_id="answers")
        for event in (tab.select, model.change):
            event(self._open, model, [text, image, before, said], concurrency_limit=1)
        inputs = [model, text, image, task, before]
        button.click(self._try, inputs, [table, said], concurrency_limit=1)

    def _open(self, name: Any) -> list[Any]:
        import gradio as gr

        try:
            model = self._office[name]
            is_image = takes_images(read_checkpoint(resolve_folder(model.source)).task_spec)
            earlier = earlier_states(model.source, model.receipts)
        except (ClamuError, OSError) as error:
            return [gr.skip(), gr.skip(), gr.skip(), markup.failure(error)]
        choices = gr.update(choices=["", *earlier], value="", visible=bool(earlier))
        note = "" if earlier else markup.paragraph(why_nothing_earlier(model.source))
        return [gr.update(visible=not is_image), gr.update(visible=is_image), choices, note]

    def _try(self, name: Any, text: Any, image: Any, task: Any, before: Any) -> list[Any]:
        try:
            model = self._office[name]
            rows = self._tryouts[model.name].rows(
                text=str(text) if text else None,
                image=read_upload(image, _MOST_BYTES, keep=True)[1] if image else None,
                task=str(task or "").strip() or None,
                before=str(before) if before else None,
                max_new_tokens=_MOST_TOKENS,
            )
        except (ClamuError, OSError) as error:
            return ["", markup.failure(error)]
        return [markup.rows_table(TRY_COLUMNS, rows), ""]
