"""The page, of gradio.

page.py           its parts together
requests_part.py  taking requests in, having them carried out, striking them out
evidence_part.py  showing and handing out the evidence of a request
model_part.py     clusters, the map of tasks, what requests changed
model_view.py     what model_part.py shows, without gradio
markup.py         pieces of HTML
"""
