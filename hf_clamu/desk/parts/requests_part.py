"""The part of the page where requests are taken in and carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_clamu.desk.office import DeskModel, Office
from hf_clamu.desk.parts import markup
from hf_clamu.desk.supervisor import Supervisor
from hf_clamu.errors import ClamuError, TaskDataError
from hf_clamu.operations.intake.book import Asked
from hf_clamu.operations.intake.received import ReceivedRequest
from hf_clamu.operations.intake.working import work_now

__all__ = ["RequestsPart"]

_MOST_CHOICES = 300
_NOTHING_OPEN = "No request is open."


@dataclass(frozen=True)
class RequestsPart:
    """Takes requests in, orders them, strikes them out, and shows their states.

    Args:
        office (`Office`): the models.
        supervisor (`Supervisor`): of the worker.
    """

    office: Office
    supervisor: Supervisor

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
            stop = gr.Button("Stop the run", visible=False, elem_id="stop")
            strike = gr.Dropdown(label="Strike out", choices=[], elem_id="strike-choice", interactive=True)
            struck = gr.Button("Strike this request out", elem_id="strike")
        run_box, run_question, run_yes = _confirmation(gr, "run", "Yes, carry them out", "No")
        stop_box, stop_question, stop_yes = _confirmation(gr, "stop", "Yes, stop it", "No, let it run")
        said = gr.HTML(elem_id="said")
        shown = [work, table, strike, stop]

        def then_show(event: Any) -> None:
            event.then(self._show, model, shown, show_progress="hidden")

        def stopped(name: Any, request: Any) -> list[Any]:
            return self._stop(name, request.username)

        stopped.__annotations__["request"] = gr.Request  # how gradio is asked for it
        for event in self._build_intake(gr, model, said):
            then_show(event)
        run.click(self._ask, model, [run_box, run_question, said])
        then_show(run_yes.click(self._run, model, [run_box, said]))
        stop.click(self._ask_to_stop, model, [stop_box, stop_question, said])
        then_show(stop_yes.click(stopped, model, [stop_box, said]))
        then_show(struck.click(self._strike, [model, strike], said))
        for event in (timer.tick, model.change):
            event(self._show, model, shown, show_progress="hidden")

    def _build_intake(self, gr: Any, model: Any, said: Any) -> list[Any]:
        """Add where requests are taken in; gives the events after which they are shown."""
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
        fields = [tasks, name, received, due]
        added = add.click(self._add, [model, *fields], [said, *fields])
        return [added, file.upload(self._add_file, [model, file], [said, file])]

    def _show(self, name: Any) -> list[Any]:
        import gradio as gr

        try:
            model = self.office[name]
            states = model.states()
            work = work_now(model.book.folder)
        except (ClamuError, OSError) as error:
            return [markup.failure(error), "", gr.skip(), gr.skip()]
        open_names = [one.request.name for one in states if one.request.is_open and not one.request.is_waiting]
        choices = gr.update(choices=open_names[:_MOST_CHOICES])
        is_waiting = any(one.request.is_waiting for one in states)
        far = markup.progress(work, is_ending=not is_waiting)
        return [far, markup.request_table(states), choices, gr.update(visible=work is not None or is_waiting)]

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
            states = self.office[name].states()
        except (ClamuError, OSError) as error:
            return [gr.update(visible=False), "", markup.failure(error)]
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

    def _ask_to_stop(self, name: Any) -> list[Any]:
        import gradio as gr

        try:
            waiting = [one for one in self.office[name].states() if one.request.is_waiting]
        except (ClamuError, OSError) as error:
            return [gr.update(visible=False), "", markup.failure(error)]
        question = (
            f"{len(waiting)} request{'s' * (len(waiting) != 1)} will be open again. Nothing is left half-written, and "
            "what is finished by now is kept. Nothing starts again until somebody has it carried out."
        )
        return [gr.update(visible=True), markup.message(question, is_good=False), ""]

    def _stop(self, name: Any, who: str | None) -> list[Any]:
        import gradio as gr

        def said_of(stopped: Sequence[str]) -> str:
            count = len(stopped)
            left = f"{count} request{'s are' if count != 1 else ' is'} open again" if stopped else "no request waited"
            return f"The run is stopped; {left}."

        said, _ = self._said(name, lambda model: self.supervisor.end_run(model, who), said_of)
        return [gr.update(visible=False), said]

    def _strike(self, name: Any, request: Any) -> str:
        def struck(model: DeskModel) -> ReceivedRequest:
            if not isinstance(request, str) or not request:
                raise TaskDataError("Choose the request to strike out.")
            (one,) = model.book.remove([request], only_open=True)
            return one

        def said_of(one: ReceivedRequest) -> str:
            # Of one that a run had, somebody else may find a receipt.
            left = "nothing was done for it" if one.ordered is None else "what a run saved for it before stays so"
            return f"Request {one.name} is struck out; {left}."

        return self._said(name, struck, said_of)[0]

    def _said(self, name: Any, act: Callable[[DeskModel], Any], text: Callable[[Any], str]) -> tuple[str, bool]:
        """Do something with a model, and return what to say of it and whether it went well."""
        try:
            return markup.message(text(act(self.office[name])), is_good=True), True
        except (ClamuError, OSError) as error:
            return markup.failure(error), False


def _confirmation(gr: Any, name: str, yes: str, no: str) -> tuple[Any, Any, Any]:
    """Add a question that is hidden until it is asked: its box, its text, and the button that says yes."""
    with gr.Group(visible=False, elem_id=f"{name}-confirmation") as box:
        question = gr.HTML()
        with gr.Row():
            agreed = gr.Button(yes, variant="stop", elem_id=f"{name}-yes")
            refused = gr.Button(no, elem_id=f"{name}-no")
    refused.click(lambda: gr.update(visible=False), None, box)
    return box, question, agreed


def _taken_in(requests: Sequence[ReceivedRequest]) -> str:
    if len(requests) == 1:
        return f"Request {requests[0].name} is taken in, due {requests[0].due}."
    return f"{len(requests)} requests are taken in; the first is due {min(one.due for one in requests)}."
