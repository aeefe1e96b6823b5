"""What is written in the same transaction as the thing that happened: event rows, and tallies for the counts.

Deliveries and statistics are readers of these two; nothing else has to agree with the database.
"""
