"""The deletion desk: a web page over the requests that were received, their receipts and the evidence.

office.py      the models of a desk: taking requests in, ordering them, what state they are in
supervisor.py  the one worker process, started when something waits, and again when it died
access.py      who may use the page
sign_in/       signing in with an account of the Hub, in a Space
guard.py       what is refused before it comes to the page: other hosts, other sites, large bodies
page.py        the page of gradio, and a file for each of its parts: requests_part.py …
server.py      serving it
markup.py      pieces of HTML
demo.py        a model and requests to try the desk with
"""
