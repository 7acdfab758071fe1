"""The part of the page where requests are taken in and carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hf_clamu.desk.office import DeskModel, Office
from hf_clamu.desk.parts import markup
from hf_clamu.errors import ClamuError, TaskDataError
from hf_clamu.operations.intake.book import Asked
from hf_clamu.operations.intake.received import ReceivedRequest
from hf_clamu.operations.intake.working import is_worked_on, read_work

__all__ = ["RequestsPart"]

_MOST_CHOICES = 300
_NOTHING_OPEN = "No request is open."


class RequestsPart:
    """Takes requests in, orders them, strikes them out, and shows their states.

    Args:
        office (`Office`): the models.
    """

    def __init__(self, office: Office) -> None:
        self._office = office

    def build(self, gr: Any, model: Any, timer: Any) -> None:
        """Add the part to a page.

        Args:
            gr (*module*): gradio.
            model: component with the name of the chosen model.
            timer: component that asks for news.
        """
        work = gr.HTML(elem_id="work")
        table = gr.HTML(elem_id="requests")
        with gr.Row():
            run = gr.Button("Carry out all open requests", variant="primary", elem_id="run")
            strike = gr.Dropdown(label="Strike out", choices=[], elem_id="strike-choice", interactive=True)
            struck = gr.Button("Strike this request out", elem_id="strike")
        with gr.Group(visible=False, elem_id="confirmation") as confirmation:
            question = gr.HTML()
            with gr.Row():
                yes = gr.Button("Yes, carry them out", variant="stop", elem_id="run-yes")
                no = gr.Button("No", elem_id="run-no")
        said = gr.HTML(elem_id="said")
        with gr.Row():
            with gr.Column():
                gr.HTML("<h3>One request</h3>")
                tasks = gr.Textbox(label="Ids of the tasks to forget, one per line", lines=2, elem_id="tasks")
                name = gr.Textbox(label="Id of the request (day and number if empty)", elem_id="request-id")
                received = gr.Textbox(label="Received (2026-01-31; today if empty)", elem_id="received")
                due = gr.Textbox(label="Due (2026-01-31; 30 days later if empty)", elem_id="due")
                add = gr.Button("Take in", elem_id="add")
            with gr.Column():
                gr.HTML("<h3>Many, from a spreadsheet</h3>")
                file = gr.File(
                    label="CSV with a column 'task', and 'id', 'received', 'due'; or JSON lines",
                    file_types=[".csv", ".jsonl"],
                    type="filepath",
                    elem_id="file",
                )
        shown = [work, table, strike]
        inputs = [model, tasks, name, received, due]
        add.click(self._add, inputs, [said, tasks, name, received, due]).then(
            self._show, model, shown, show_progress="hidden"
        )
        file.upload(self._add_file, [model, file], [said, file]).then(self._show, model, shown, show_progress="hidden")
        run.click(self._ask, model, [confirmation, question, said])
        no.click(lambda: gr.update(visible=False), None, confirmation)
        yes.click(self._run, model, [confirmation, said]).then(self._show, model, shown, show_progress="hidden")
        struck.click(self._strike, [model, strike], said).then(self._show, model, shown, show_progress="hidden")
        timer.tick(self._show, model, shown, show_progress="hidden")
        model.change(self._show, model, shown, show_progress="hidden")

    def _show(self, name: Any) -> list[Any]:
        import gradio as gr

        try:
            model = self._office[name]
            folder = model.book.folder
            states = model.states()
            work = read_work(folder) if is_worked_on(folder) else None
        except (ClamuError, OSError) as error:
            return [markup.message(str(error), is_good=False), "", gr.skip()]
        open_names = [one.request.name for one in states if one.request.is_open and not one.request.is_waiting]
        return [markup.progress(work), markup.request_table(states), gr.update(choices=open_names[:_MOST_CHOICES])]

    def _add(self, name: Any, tasks: Any, request: Any, received: Any, due: Any) -> list[Any]:
        words = [line.strip() for line in str(tasks or "").splitlines() if line.strip()]
        days = {key: str(value or "").strip() or None for key, value in (("received", received), ("due", due))}

        def taken(model: DeskModel) -> Sequence[ReceivedRequest]:
            if not words:
                raise TaskDataError("Write the id of the task to forget, as the data have it.")
            return model.take_in([Asked(tasks=tuple(words), name=str(request or "").strip() or None, **days)])

        said, is_good = self._said(name, taken, _taken_in)
        return [said, *([""] * 4 if is_good else [tasks, request, received, due])]

    def _add_file(self, name: Any, file: Any) -> list[Any]:
        from hf_clamu.desk.web.uploads import read_upload

        said, _ = self._said(name, lambda model: model.take_in_file(*read_upload(file)), _taken_in)
        return [said, None]

    def _ask(self, name: Any) -> list[Any]:
        import gradio as gr

        try:
            states = self._office[name].states()
        except (ClamuError, OSError) as error:
            return [gr.update(visible=False), "", markup.message(str(error), is_good=False)]
        wanted = [one.request for one in states if one.request.is_open and not one.request.is_waiting]
        if not wanted:
            return [gr.update(visible=False), "", markup.message(_NOTHING_OPEN, is_good=True)]
        count = sum(len(one.tasks) for one in wanted)
        question = (
            f"{len(wanted)} request{'s' * (len(wanted) != 1)} with {count} task{'s' * (count != 1)}: their data are "
            "taken out of the model for good."
        )
        return [gr.update(visible=True), markup.message(question, is_good=False), ""]

    def _run(self, name: Any) -> list[Any]:
        import gradio as gr

        def said_of(ordered: Sequence[ReceivedRequest]) -> str:
            if not ordered:
                return _NOTHING_OPEN
            return f"{len(ordered)} given to the worker. You may close this page; it goes on without you."

        said, _ = self._said(name, lambda model: model.book.order(), said_of)
        return [gr.update(visible=False), said]

    def _strike(self, name: Any, request: Any) -> str:
        def struck(model: DeskModel) -> str:
            if not isinstance(request, str) or not request:
                raise TaskDataError("Choose the request to strike out.")
            model.book.remove([request], only_open=True)
            return request

        return self._said(name, struck, lambda one: f"Request {one} is struck out; nothing was done for it.")[0]

    def _said(self, name: Any, act: Callable[[DeskModel], Any], text: Callable[[Any], str]) -> tuple[str, bool]:
        """Do something with a model, and return what to say of it and whether it went well."""
        try:
            return markup.message(text(act(self._office[name])), is_good=True), True
        except (ClamuError, OSError) as error:
            return markup.message(str(error), is_good=False), False


def _taken_in(requests: Sequence[ReceivedRequest]) -> str:
    if len(requests) == 1:
        return f"Request {requests[0].name} is taken in, due {requests[0].due}."
    return f"{len(requests)} requests are taken in; the first is due {min(one.due for one in requests)}."
