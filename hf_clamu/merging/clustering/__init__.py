"""Which tasks share a mask: a file per method.

- `arguments`: the settings.
- `base`: what a clustering declares and implements.
- `spectral`: spectral clustering of a feature per task, shared by `features` and `task_vectors`.
- `features`, `task_vectors` (also `stable_kmeans`), `anchored` (also `public_rows`), `random`, `column`, `none`: the
  methods.
- `registry`: the methods by name.
- `grouping`: clusters of tasks by the method that the settings name, and their names.
"""
