"""Serving the page.

access.py   who may use it
sign_in/    signing in with an account of the Hub, in a Space
guard.py    what is refused before it comes to the page: other hosts, other sites, large bodies
uploads.py  files that a browser sent
server.py   one server, with one supervisor
"""
