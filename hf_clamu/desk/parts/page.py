"""The page, of gradio: its parts, and what all of them share."""

from __future__ import annotations

from typing import Any

from hf_clamu.desk.office import Office
from hf_clamu.desk.parts import markup
from hf_clamu.desk.parts.evidence_part import EvidencePart
from hf_clamu.desk.parts.model_part import ModelPart
from hf_clamu.desk.parts.requests_part import RequestsPart
from hf_clamu.desk.parts.try_part import TryPart
from hf_clamu.desk.supervisor import Supervisor
from hf_clamu.desk.web.uploads import take_no_links

__all__ = ["build_page", "look"]

_SECONDS_BETWEEN_NEWS = 2.0
_ABOUT = (
    "<h1>Deletion desk</h1><p>Requests to be forgotten: take them in, have them carried out, hand over the evidence. "
    "What is left is, byte for byte, what a build without that data gives.</p>"
)


def build_page(office: Office, supervisor: Supervisor, *, has_logout: bool = False) -> Any:
    """Return the page as `gradio.Blocks`.

    Args:
        office (`Office`): the models.
        supervisor (`Supervisor`): of the worker.
        has_logout (`bool`): whether users who were let in here can log out.
    """
    import gradio as gr

    def signed_in(request: Any) -> str:
        return markup.signed_in(request.username, has_logout=has_logout)

    signed_in.__annotations__["request"] = gr.Request  # how gradio is asked for it
    names = list(office.models)
    with gr.Blocks(title="Deletion desk", analytics_enabled=False) as page:
        gr.HTML(_ABOUT)
        page.load(signed_in, None, gr.HTML(elem_id="signed-in"), show_progress="hidden")
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
        timer = gr.Timer(_SECONDS_BETWEEN_NEWS)
        with gr.Tab("Requests", id="requests"):
            RequestsPart(office, supervisor).build(gr, model, timer)
        with gr.Tab("Evidence", id="evidence"):
            EvidencePart(office).build(gr, model, timer)
        with gr.Tab("Model", id="model-tab") as model_tab:
            ModelPart(office).build(gr, model, model_tab)
        with gr.Tab("Try", id="try-tab") as try_tab:
            TryPart(office).build(gr, model, try_tab)
    _hide_from_api(page)
    for block in page.blocks.values():
        take_no_links(block)
    return page


def _hide_from_api(page: Any) -> None:
    """Offer no event to programs: they have the command line, which says what it does."""
    for event in page.fns.values():
        event.api_visibility = "private"


def look() -> dict[str, Any]:
    """Return what the page looks like, as `mount_gradio_app` takes it: nothing is loaded from elsewhere."""
    import gradio as gr

    fonts = ["system-ui", "sans-serif"]
    return {"theme": gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]), "css": markup.STYLE}
