"""What each row does: one file a family of peers, each with `prepare(task) -> (run, note)`.

`run(n)` does n pieces of work, waits until they are done, and tells the last value.
"""
