"""One binary mask per cluster, on the same clusters and the same merged delta: a file per method.

- `arguments`: the settings.
- `base`: what a localization declares and implements.
- `clamu`, `sift`, `tall`, `emr`, `global_`: the methods.
- `registry`: the methods by name.
- `localizer`: the masks of all clusters, spread over the processes and kept in the journal.
- `search`: the choice of the scaling coefficient alpha.
- `task_masks`: masks of tasks, for methods that keep one per task.
"""
