"""The contracts: what a clip, a label set, a dataset and a shard are, and parsers of the official lists."""
