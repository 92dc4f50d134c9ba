"""Data sets larger than a disk's patience: WebDataset shards, Parquet files, Hugging Face data sets.

One pass lists and hashes a stream into an index on the disk (`index`); it goes on where a killed process left it. From then on rows are
read where they lie, when they are looked at (`samples`). `formats` says what each format has to answer.
"""
