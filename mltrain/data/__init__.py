"""Datasets: manifest, shards, order, cache, loader. No Spark, no Ray; torch only when a Loader is made."""
