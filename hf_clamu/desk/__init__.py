"""The deletion desk: a web page over the requests that were received, their receipts and the evidence.

office.py      the models of a desk: taking requests in, ordering them, what state they are in
supervisor.py  the one worker process, started when something waits, and again when it died
demo.py        a model and requests to try the desk with
web/           serving the page: who may use it, what is refused, files that browsers send
views/         what a model is made of, and one input through all of its weights, without gradio
parts/         the page itself, a file for each of its parts
"""
