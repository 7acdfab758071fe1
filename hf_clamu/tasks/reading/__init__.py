"""Reading data: from files and data sets to the checked rows of each task.

- `given`: the forms in which users give data
- `files`: one table from files of any kind
- `csv_file`, `json_file`, `parquet_file`: the kinds of files
- `tables`: Arrow tables from rows, and which columns are read
- `problems`: what is wrong with rows, told at once; rows with empty cells
- `splits`: the columns that a spec names, and the task of each row
- `labels`: names and numbers of labels
- `checks`: bad texts, words, labels, ids and cluster keys
- `task_rows`: the rows of each task
"""
