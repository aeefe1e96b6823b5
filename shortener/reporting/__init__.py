"""Reading: one message's status, lists and their CSV, the counts and the statistics made from them.

Nothing here changes what happened: messages, links, hits and conversions are only read. The one thing that is written is
`counts`, which tallies are folded into.
"""
