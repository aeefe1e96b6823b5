"""This package contains the portal, which consists of pages for operators under /portal that the server renders. Files to read
first: `page.py` (what a page is), `pages.py` (the list of all pages) and `router.py` (how a request becomes a page).
"""
