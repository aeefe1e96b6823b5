"""This package redirects requests for short links, classifies them as hits, and stores the hits."""
