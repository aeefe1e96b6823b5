"""The portal: web pages for operators under /portal, which the server renders. Files to read first: `page.py` (what a page is),
`pages.py` (the list of all pages) and `router.py` (how a request becomes a page).
"""
