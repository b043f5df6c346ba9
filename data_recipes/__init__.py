"""One file per way of reading rows: a raw row -> prompt messages and completion.

A recipe is a module with
    COLUMNS   the columns that a row must have, with their types
    OPTIONAL  the columns that it may have (left out where there are none)
    read(row) the prompt as messages, and the completion; raises ValueError with a plain reason for a row that is wrong
    group(row) rows with the same value stay on one side of the split (left out where a row stands for itself)
A new file here can be named in `data.recipe` at once.
"""
