"""Evidence of one request: what was asked and done, what was checked, what is not shown. It knows nothing of the web.

collecting   the values of a document, from a model, its receipts and findings
cases        which request is meant, and what belongs to it
findings     what `clamu verify`, `audit` and `attack` printed, recognised by its content
not_shown    what is not shown, which depends on what was checked
summary      the same in a few plain sentences
page         the document as one printable HTML file (page.html, page.css)
bom          the model as a CycloneDX bill of materials
documents    all of them, and JSON, by the ending of a file's name
"""
